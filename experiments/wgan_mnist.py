"""WGAN on MNIST, its critic's weights clipped (Arjovsky et al. 2017), DCGAN's networks.

    aigc train wgan_mnist --evaluate-every 500 --picture-every 500

Hardware: 2 CPU cores.
"""

import optax

from aigc_jax.core.types import Experiment
from aigc_jax.functional.adversarial import WASSERSTEIN, clip_weights
from aigc_jax.tasks.gan import gan, half_life
from experiments.dcgan_mnist import LATENT, dcgan_mnist, networks


def wgan_mnist(
    *,
    batch: int = 64,
    width: int = 32,
    learning_rate: float = 5e-5,
    bound: float = 0.01,
    n_critic: int = 5,
    average: float = 10_000.0,
) -> Experiment:
    """Draw MNIST digits from noise (Wasserstein GAN with clipped weights).

    Args:
        batch: examples a step.
        width: of the layers at 16×16; 64 is DCGAN's.
        learning_rate: of both networks' RMSProp.
        bound: within which the critic's weights are kept.
        n_critic: steps of the critic, and of this experiment, for one of the generator.
        average: images over which the average of the generator's weights halves its past.
    """
    rmsprop = optax.rmsprop(learning_rate)
    clipped = optax.chain(rmsprop, clip_weights(bound))
    task = gan(
        *networks(width),
        WASSERSTEIN,
        rmsprop,
        clipped,
        latent=LATENT,
        n_critic=n_critic,
        decay=half_life(average, batch),
    )
    return dcgan_mnist(batch=batch, width=width)._replace(task=task, steps=20_000)
