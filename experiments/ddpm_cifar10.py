"""DDPM on CIFAR-10, the paper's network and hyperparameters (Ho et al. 2020, appendix B).

    aigc train ddpm_cifar10 --dtype bfloat16
    aigc train ddpm_cifar10 --data cifar10_jpeg     # CIFAR-10 after JPEG: not comparable

Hardware: a GPU or TPU. The paper trained 800,000 steps of batch 128, 21 a second on a TPU v3-8, to
an FID of 3.17.
"""

from typing import Literal

import jax.numpy as jnp
import optax

from aigc_jax.core.types import Experiment, Model
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import dataset
from aigc_jax.data.transforms import chain, flip, normalise
from aigc_jax.functional.schedules import linear
from aigc_jax.metrics.likelihood import evaluate_terms
from aigc_jax.metrics.pictures import image_grid
from aigc_jax.models.unet import Remat, UNet
from aigc_jax.tasks.diffusion import bits_per_dim, diffusion


def ddpm_cifar10(
    *,
    data: str = "cifar10",
    batch: int = 128,
    learning_rate: float = 2e-4,
    dropout: float = 0.1,
    classes: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    remat: Remat = "nothing",
) -> Experiment:
    """Draw 32×32 colour images (DDPM, the paper's 35.7 M parameters).

    Args:
        data: a TFDS name, `cifar10` or `cifar10_jpeg`; or an .npz file or a folder of images.
        batch: examples a step.
        learning_rate: after 5,000 steps of warm-up.
        dropout: probability.
        classes: 10 conditions on the label; 0 is the paper's.
        dtype: of the computation; weights stay float32.
        remat: what to recompute on the way back, for less memory; "activations" cost little time.
    """
    images = dataset(data, size=32, channels=3)
    denoiser = UNet(dropout=dropout, classes=classes, remat=remat, dtype=jnp.dtype(dtype))
    schedule = linear()
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.linear_schedule(0.0, learning_rate, 5000)),
    )

    bound = bits_per_dim(denoiser, schedule, classes=classes, terms=50)

    def picture(model: Model) -> dict:
        cond = {"label": jnp.arange(100) // 10} if classes else {}
        return {"samples": image_grid(model.draw(100, cond), 10)}

    return Experiment(
        task=diffusion(denoiser, schedule, tx, shape=(32, 32, 3), classes=classes),
        data=lambda seed: batches(images.train, batch, seed, transform=chain(flip, normalise)),
        steps=800_000,
        batch=batch,
        evaluate=lambda model: evaluate_terms(model, bound, images, n=512),
        picture=picture,
        classes=images.classes if classes else (),
    )
