"""DCGAN on CIFAR-10, 32×32 (Radford et al. 2016).

    aigc train dcgan_cifar10 --evaluate-every 5000 --picture-every 5000
    aigc train dcgan_cifar10 --data cifar10_jpeg     # CIFAR-10 after JPEG: not comparable

Hardware: a GPU or TPU. StudioGAN reports an FID of 48.3 at the best checkpoint and 137 at the last.
"""

import functools
from typing import Literal

import jax.numpy as jnp
import optax

from aigc_jax.core.types import Experiment
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import dataset
from aigc_jax.data.transforms import chain, flip, normalise
from aigc_jax.functional.adversarial import NON_SATURATING
from aigc_jax.metrics.collapse import watch_collapse
from aigc_jax.metrics.latents import picture_latents
from aigc_jax.metrics.unconditional import evaluator, picture_samples
from aigc_jax.models.dcgan import Discriminator, Generator
from aigc_jax.tasks.gan import gan
from experiments.classifier_cifar10 import classifier_cifar10

LATENT = 100


def dcgan_cifar10(
    *,
    data: str = "cifar10",
    batch: int = 64,
    width: int = 64,
    learning_rate: float = 2e-4,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Draw 32×32 colour images from noise (DCGAN).

    Args:
        data: a TFDS name, `cifar10` or `cifar10_jpeg`; or an .npz file or a folder of images in
            subfolders by class.
        batch: examples a step.
        width: of the layers at 16×16; 64 is the paper's.
        learning_rate: of both networks' Adam, whose β₁ is ½.
        dtype: of the computation; weights stay float32.
    """
    images = dataset(data, size=32, channels=3)
    widths = (4 * width, 2 * width, width)
    pair = (
        Generator(widths, dtype=jnp.dtype(dtype)),
        Discriminator(widths[::-1], dtype=jnp.dtype(dtype)),
    )
    adam = optax.adam(learning_rate, b1=0.5)
    classifier = functools.partial(classifier_cifar10, data=data)
    judged = evaluator(classifier, images, name="cifar10", ema=False)

    return Experiment(
        task=gan(*pair, NON_SATURATING, adam, adam, latent=LATENT),
        data=lambda seed: batches(images.train, batch, seed, transform=chain(flip, normalise)),
        steps=100_000,
        batch=batch,
        evaluate=watch_collapse(judged, classes=10),
        picture=lambda model: picture_samples(model, images) | picture_latents(model, LATENT),
        best=("fcd_cifar10/test-1000", "min"),
    )
