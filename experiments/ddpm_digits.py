"""Class-conditional DDPM on scikit-learn's 8×8 digits: the demo.

    aigc train ddpm_digits

Hardware: 2 CPU cores. Time: 2.3 minutes, of which 20 s compile and 70 s train 1,200 steps.
Score: 99.8 % judged the class asked for; Fréchet distance 1.37 of its floor; recall 0.71

1,000 samples of 50 DDIM steps, 100 a class, in the features of `classifier_digits` (98.6 % right on
held-out digits): Fréchet distance 0.475, where as many real training digits score 0.347; precision
0.89 (real 0.92), recall 0.71 (0.74), density 1.22 (1.16), coverage 0.99 (0.98). 3.81 bits/dim. More
guidance buys agreement with recall: without it 98.3 % and 0.81, at 2.0 100 % and 0.49 (after 2,000
steps, another training of the judge). The guidance was chosen by these same metrics, on one seed:
they are a little optimistic.
"""

import functools

import optax

from aigc_jax.core.types import Experiment
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import digits
from aigc_jax.data.transforms import normalise
from aigc_jax.functional.schedules import cosine
from aigc_jax.metrics.conditional import evaluate_classes, picture_classes
from aigc_jax.metrics.likelihood import evaluate_terms
from aigc_jax.metrics.unconditional import evaluator
from aigc_jax.models.unet import UNet
from aigc_jax.tasks.diffusion import bits_per_dim, diffusion
from experiments.classifier_digits import classifier_digits


def ddpm_digits(
    *,
    batch: int = 64,
    channels: int = 32,
    learning_rate: float = 2e-3,
    dropout: float = 0.0,
    guidance: float = 1.25,
) -> Experiment:
    """Draw 8×8 digits of a class asked for (DDPM, 50 steps of DDIM).

    Args:
        batch: examples a step.
        channels: of the U-Net.
        learning_rate: after 100 steps of warm-up.
        dropout: probability.
        guidance: scale of classifier-free guidance in sampling.
    """
    data = digits()
    schedule, shape = cosine(), (8, 8, 1)
    denoiser = UNet(channels, (1, 1), 1, attention=(4,), dropout=dropout, classes=10)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.linear_schedule(0.0, learning_rate, 100)),
    )
    task = diffusion(denoiser, schedule, tx, shape=shape, classes=10, kind="v", decay=0.998)
    bound = bits_per_dim(denoiser, schedule, classes=10, kind="v", terms=20)
    judged = evaluator(
        classifier_digits, data, name="digits", evaluate=evaluate_classes, classes=10
    )

    return Experiment(
        task=task._replace(sample=functools.partial(task.sample, guidance=guidance)),
        data=lambda seed: batches(data.train, batch, seed, transform=normalise),
        steps=1200,
        batch=batch,
        evaluate=lambda model: judged(model) | evaluate_terms(model, bound, data, n=360),
        picture=lambda model: picture_classes(model, data, scale=4),
        classes=data.classes,
    )
