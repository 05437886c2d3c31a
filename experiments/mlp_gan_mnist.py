"""The first GAN: two perceptrons on MNIST (Goodfellow et al. 2014).

    aigc train mlp_gan_mnist --inner-steps 10 --evaluate-every 2500 --picture-every 2500

Hardware: 2 CPU cores.
"""

import optax

from aigc_jax.core.types import Experiment
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import tfds
from aigc_jax.data.transforms import normalise
from aigc_jax.functional.adversarial import NON_SATURATING
from aigc_jax.metrics.collapse import watch_collapse
from aigc_jax.metrics.latents import picture_latents
from aigc_jax.metrics.unconditional import evaluator, picture_samples
from aigc_jax.models.mlp_gan import Discriminator, Generator
from aigc_jax.tasks.gan import gan
from experiments.classifier_mnist import classifier_mnist


def mlp_gan_mnist(*, batch: int = 64, latent: int = 100, learning_rate: float = 2e-4) -> Experiment:
    """Draw MNIST digits by a generator 100-256-128-784 against a discriminator 784-128-1.

    Args:
        batch: examples a step.
        latent: dimensions of z.
        learning_rate: of both networks' Adam, whose β₁ is ½.
    """
    data = tfds("mnist")
    adam = optax.adam(learning_rate, b1=0.5)
    judged = evaluator(classifier_mnist, data, name="mnist", ema=False)
    return Experiment(
        task=gan(Generator(), Discriminator(), NON_SATURATING, adam, adam, latent=latent),
        data=lambda seed: batches(data.train, batch, seed, transform=normalise),
        steps=20_000,
        batch=batch,
        evaluate=watch_collapse(judged, classes=10),
        picture=lambda model: (
            picture_samples(model, data, scale=2) | picture_latents(model, latent, scale=2)
        ),
        best=("fcd_mnist/test-1000", "min"),
    )
