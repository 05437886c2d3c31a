"""R3GAN's recipe on CIFAR-10: relativistic loss, R1 and R2 (Huang et al. 2024), SNGAN's networks.

    aigc train r3gan_cifar10 --dtype bfloat16 --evaluate-every 5000 --picture-every 5000
    aigc train r3gan_cifar10 --data cifar10_jpeg     # CIFAR-10 after JPEG: not comparable

Hardware: a GPU or TPU. The paper's own networks, larger and grouped, reach an FID of 1.96.
"""

import functools
from typing import Literal

import jax.numpy as jnp
import optax

from aigc_jax.core.types import Experiment
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import dataset
from aigc_jax.data.transforms import chain, flip, normalise
from aigc_jax.functional.adversarial import RELATIVISTIC, r1, r2
from aigc_jax.metrics.collapse import watch_collapse
from aigc_jax.metrics.latents import picture_latents
from aigc_jax.metrics.unconditional import evaluator, picture_samples
from aigc_jax.models.resnet_gan import Discriminator, Generator
from aigc_jax.tasks.gan import Penalty, gan, half_life
from experiments.classifier_cifar10 import classifier_cifar10

LATENT = 128


def r3gan_cifar10(
    *,
    data: str = "cifar10",
    batch: int = 256,
    width: int = 256,
    learning_rate: float = 2e-4,
    gamma: float = 0.05,
    average: float = 500_000.0,
    every: int = 1,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Draw 32×32 colour images from noise (relativistic GAN with both gradient penalties).

    Args:
        data: a TFDS name, `cifar10` or `cifar10_jpeg`; or an .npz file or a folder of images in
            subfolders by class.
        batch: examples a step.
        width: of the generator; the discriminator has half.
        learning_rate: of both networks' Adam, whose β₁ is 0 and β₂ 0.99.
        gamma: weight of the penalties.
        average: images over which the average of the generator's weights halves its past.
        every: 1 pays the penalties at every step, as the paper does; k every k steps, k times.
        dtype: of the computation; weights stay float32.
    """
    images = dataset(data, size=32, channels=3)
    same = {"fixup": True, "slope": 0.2, "dtype": jnp.dtype(dtype)}
    generator = Generator(width=width, norm="none", **same)
    discriminator = Discriminator(width=width // 2, spectral=False, **same)
    adam = optax.adam(learning_rate, b1=0.0, b2=0.99)
    task = gan(
        generator,
        discriminator,
        RELATIVISTIC,
        adam,
        adam,
        latent=LATENT,
        penalties=(Penalty(r1, gamma, every), Penalty(r2, gamma, every)),
        decay=half_life(average, batch),
    )
    classifier = functools.partial(classifier_cifar10, data=data)
    judged = evaluator(classifier, images, name="cifar10", ema=True)

    return Experiment(
        task=task,
        data=lambda seed: batches(images.train, batch, seed, transform=chain(flip, normalise)),
        steps=100_000,
        batch=batch,
        evaluate=watch_collapse(judged, classes=10),
        picture=lambda model: picture_samples(model, images) | picture_latents(model, LATENT),
        best=("fcd_cifar10/test-1000-ema", "min"),
    )
