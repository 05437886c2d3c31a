"""Classify CIFAR-10: the judge of the GANs on it.

    aigc train classifier_cifar10
    aigc train classifier_cifar10 --data cifar10_jpeg     # CIFAR-10 after JPEG

Hardware: 2 CPU cores.
"""

import optax

from aigc_jax.core.types import Experiment
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import dataset
from aigc_jax.data.transforms import chain, flip, normalise
from aigc_jax.metrics.judge import accuracy
from aigc_jax.models.convnet import ConvNet
from aigc_jax.tasks.classifier import classifier


def classifier_cifar10(
    *,
    data: str = "cifar10",
    batch: int = 128,
    decay_steps: int = 4000,
    learning_rate: float = 2e-3,
    dropout: float = 0.3,
    smoothing: float = 0.1,
) -> Experiment:
    """Classify 32×32 colour images.

    Args:
        data: a TFDS name, `cifar10` or `cifar10_jpeg`; or an .npz file or a folder of images.
        batch: examples a step.
        decay_steps: the learning rate falls to 0 over these, as a cosine.
        learning_rate: the first.
        dropout: probability.
        smoothing: of the labels.
    """
    images = dataset(data, size=32, channels=3)
    network = ConvNet(
        classes=len(images.classes), channels=(32, 64, 128), features=128, dropout=dropout
    )
    tx = optax.adamw(optax.cosine_decay_schedule(learning_rate, decay_steps), weight_decay=1e-3)

    return Experiment(
        task=classifier(network, tx, smoothing=smoothing),
        data=lambda seed: batches(images.train, batch, seed, transform=chain(flip, normalise)),
        steps=decay_steps,
        batch=batch,
        evaluate=lambda model: accuracy(model, images),
        classes=images.classes,
    )
