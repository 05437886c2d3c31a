"""Class-conditional DDPM on MNIST's 28×28 digits.

aigc train ddpm_mnist
"""

import functools

import optax

from aigc_jax.core.types import Experiment, Model
from aigc_jax.data.batches import batches, whole
from aigc_jax.data.sources import tfds
from aigc_jax.data.transforms import normalise
from aigc_jax.functional.schedules import cosine
from aigc_jax.metrics.conditional import evaluate_classes, picture_classes
from aigc_jax.metrics.judge import train_judge
from aigc_jax.models.unet import UNet
from aigc_jax.tasks.diffusion import diffusion
from experiments.classifier_mnist import classifier_mnist


def ddpm_mnist(
    *,
    batch: int = 64,
    channels: int = 48,
    learning_rate: float = 1e-3,
    guidance: float = 1.25,
) -> Experiment:
    """Draw MNIST digits of a class asked for (DDPM, 50 steps of DDIM).

    Args:
        batch: examples a step.
        channels: of the U-Net's first level, which works on 2×2 patches.
        learning_rate: after 200 steps of warm-up.
        guidance: scale of classifier-free guidance in sampling.
    """
    data = tfds("mnist")
    denoiser = UNet(channels, (1, 2), 1, attention=(7,), dropout=0.0, classes=10, patch=2)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.linear_schedule(0.0, learning_rate, 200)),
    )
    task = diffusion(denoiser, cosine(), tx, shape=(28, 28, 1), classes=10, kind="v", decay=0.999)

    def evaluate(model: Model) -> dict[str, float]:
        train, test = whole(data.train, normalise), whole(data.test, normalise)
        judge = train_judge(classifier_mnist, test, name="mnist")
        return evaluate_classes(model, judge, train["image"], test["image"], classes=10)

    def picture(model: Model) -> dict:
        train = whole(data.train, normalise)["image"]
        return picture_classes(model, train, classes=10, scale=2)

    return Experiment(
        task=task._replace(sample=functools.partial(task.sample, guidance=guidance)),
        data=lambda seed: batches(data.train, batch, seed, transform=normalise),
        steps=3000,
        batch=batch,
        evaluate=evaluate,
        picture=picture,
        classes=data.classes,
    )
