"""Class-conditional DDPM on MNIST's 28×28 digits.

    aigc train ddpm_mnist

Hardware: 2 CPU cores. Time: 38.5 minutes, of which 31 train 3,000 steps, at 1 to 2.2 a second: the
cores were not ours alone.
Score: 98.7 % judged the class asked for; Fréchet distance 1.29 of its floor; recall 0.71

1,000 samples of 50 DDIM steps, 100 a class, in the features of `classifier_mnist` (99.1 % right on
the test split): Fréchet distance 0.505, where as many real training digits score 0.393; precision
0.84 (real 0.88), recall 0.71 (0.87), density 0.90 (0.93), coverage 0.31 (0.36). 1.75 bits/dim. The
guidance was chosen afterwards, on draws of another seed: 1.5 gave 99.3 % and recall 0.70 there; on
these, 1.25 gave 96.7 %, 1.55 of the floor, and recall 0.76.
"""

import functools

import optax

from aigc_jax.core.types import Experiment
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import tfds
from aigc_jax.data.transforms import normalise
from aigc_jax.functional.schedules import cosine
from aigc_jax.metrics.conditional import evaluate_classes, picture_classes
from aigc_jax.metrics.likelihood import evaluate_terms
from aigc_jax.metrics.unconditional import evaluator
from aigc_jax.models.unet import UNet
from aigc_jax.tasks.diffusion import bits_per_dim, diffusion
from experiments.classifier_mnist import classifier_mnist


def ddpm_mnist(
    *,
    batch: int = 64,
    channels: int = 32,
    learning_rate: float = 1e-3,
    guidance: float = 1.5,
) -> Experiment:
    """Draw MNIST digits of a class asked for (DDPM, 50 steps of DDIM).

    Args:
        batch: examples a step.
        channels: of the U-Net's first level, which works on 2×2 patches.
        learning_rate: after 200 steps of warm-up.
        guidance: scale of classifier-free guidance in sampling.
    """
    data = tfds("mnist")
    schedule, shape = cosine(), (28, 28, 1)
    denoiser = UNet(channels, (1, 2), 1, attention=(7,), dropout=0.0, classes=10, patch=2)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.linear_schedule(0.0, learning_rate, 200)),
    )
    task = diffusion(denoiser, schedule, tx, shape=shape, classes=10, kind="v", decay=0.999)
    bound = bits_per_dim(denoiser, schedule, classes=10, kind="v", terms=20)
    judged = evaluator(classifier_mnist, data, name="mnist", evaluate=evaluate_classes, classes=10)

    return Experiment(
        task=task._replace(sample=functools.partial(task.sample, guidance=guidance)),
        data=lambda seed: batches(data.train, batch, seed, transform=normalise),
        steps=3000,
        batch=batch,
        evaluate=lambda model: judged(model) | evaluate_terms(model, bound, data, n=512),
        picture=lambda model: picture_classes(model, data, scale=2),
        classes=data.classes,
    )
