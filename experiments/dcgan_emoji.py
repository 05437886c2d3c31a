"""DCGAN on 64×64 images: emoji over white, or any folder of faces (Radford et al. 2016).

    aigc train dcgan_emoji --picture-every 1000
    aigc train dcgan_emoji --data path/to/faces

Hardware: a GPU or TPU.
"""

from typing import Literal

import jax.numpy as jnp
import optax

from aigc_jax.core.types import Experiment
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import dataset
from aigc_jax.data.transforms import chain, flip, normalise
from aigc_jax.functional.adversarial import NON_SATURATING
from aigc_jax.functional.augmentation import diff_augment
from aigc_jax.metrics.latents import picture_latents
from aigc_jax.metrics.unconditional import picture_samples
from aigc_jax.models.dcgan import Discriminator, Generator
from aigc_jax.tasks.gan import gan

LATENT = 100


def dcgan_emoji(
    *,
    data: str = "noto_emoji",
    batch: int = 64,
    width: int = 64,
    learning_rate: float = 2e-4,
    augment: bool = True,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Draw 64×64 colour images from noise (DCGAN).

    Args:
        data: a TFDS name, an .npz file or a folder of images; what is transparent lies over white.
        batch: examples a step.
        width: of the layers at 32×32; 64 is the paper's.
        learning_rate: of both networks' Adam, whose β₁ is ½.
        augment: all that the discriminator sees, differentiably, which 1,479 emoji need and a
            hundred thousand faces do not.
        dtype: of the computation; weights stay float32.
    """
    images = dataset(data, size=64, channels=3)
    widths = (8 * width, 4 * width, 2 * width, width)
    pair = (
        Generator(widths, dtype=jnp.dtype(dtype)),
        Discriminator(widths[::-1], dtype=jnp.dtype(dtype)),
    )
    adam = optax.adam(learning_rate, b1=0.5)
    task = gan(
        *pair,
        NON_SATURATING,
        adam,
        adam,
        latent=LATENT,
        augment=diff_augment if augment else None,
    )

    return Experiment(
        task=task,
        data=lambda seed: batches(images.train, batch, seed, transform=chain(flip, normalise)),
        steps=20_000,
        batch=batch,
        picture=lambda model: picture_samples(model, images) | picture_latents(model, LATENT),
    )
