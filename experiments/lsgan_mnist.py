"""LSGAN on MNIST (Mao et al. 2017), DCGAN's networks.

    aigc train lsgan_mnist --evaluate-every 500 --picture-every 500

Hardware: 2 CPU cores.
"""

import optax

from aigc_jax.core.types import Experiment
from aigc_jax.functional.adversarial import LEAST_SQUARES
from aigc_jax.tasks.gan import gan, half_life
from experiments.dcgan_mnist import LATENT, dcgan_mnist, networks


def lsgan_mnist(
    *,
    batch: int = 64,
    width: int = 32,
    learning_rate: float = 2e-4,
    average: float = 10_000.0,
) -> Experiment:
    """Draw MNIST digits from noise (least squares GAN).

    Args:
        batch: examples a step.
        width: of the layers at 16×16; 64 is DCGAN's.
        learning_rate: of both networks' Adam, whose β₁ is ½.
        average: images over which the average of the generator's weights halves its past.
    """
    adam = optax.adam(learning_rate, b1=0.5)
    task = gan(
        *networks(width), LEAST_SQUARES, adam, adam, latent=LATENT, decay=half_life(average, batch)
    )
    return dcgan_mnist(batch=batch, width=width)._replace(task=task)
