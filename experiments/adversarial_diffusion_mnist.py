"""Class-conditional DDPM on MNIST, its x̂0 judged by a PatchGAN: `ddpm_mnist` in 10 steps of DDIM.

    aigc train adversarial_diffusion_mnist
    aigc train adversarial_diffusion_mnist --alpha 0    # the plain one beside it

Hardware: 1 CPU core a run, shared. Time: 38 minutes without the judge, 73 with it, of 3,000 steps.
Score: Fréchet distance 1.54 of its floor in 10 steps (1.42 without the judge); recall 0.65 (0.67)

99.2 % are judged the class asked for, 99.1 % without the judge, which trades variety for fidelity.
Of 1,000 samples in the features of `classifier_mnist`, with and without it: Fréchet distance 0.606
and 0.558 (as many real training digits: 0.393), kernel distance 0.0014 and 0.0120 (0.0070),
precision 0.89 and 0.86 (0.88), recall 0.65 and 0.67 (0.87), density 1.10 and 0.96 (0.93), coverage
0.35 and 0.32 (0.36). alpha was not tuned.
"""

import functools

import optax

from aigc_jax.core.types import Experiment
from aigc_jax.data.sources import tfds
from aigc_jax.functional.adversarial import r1
from aigc_jax.functional.schedules import cosine
from aigc_jax.metrics.conditional import evaluate_classes
from aigc_jax.metrics.unconditional import evaluator
from aigc_jax.models.patchgan import PatchGAN
from aigc_jax.models.unet import UNet
from aigc_jax.tasks.adversarial_diffusion import adversarial_diffusion
from aigc_jax.tasks.gan import Penalty
from experiments.classifier_mnist import classifier_mnist
from experiments.ddpm_mnist import ddpm_mnist


def adversarial_diffusion_mnist(
    *,
    batch: int = 64,
    channels: int = 32,
    learning_rate: float = 1e-3,
    guidance: float = 1.5,
    alpha: float = 0.01,
    beta: float = 0.0,
    start: int = 0,
    discriminator_rate: float = 2e-4,
    penalty: float = 0.0,
) -> Experiment:
    """Draw MNIST digits of a class asked for (DDPM with an adversary, 10 steps of DDIM).

    Args:
        batch: examples a step.
        channels: of the U-Net's first level, as of `ddpm_mnist`.
        learning_rate: of the U-Net, after 200 steps of warm-up.
        guidance: scale of classifier-free guidance in sampling.
        alpha: weight of the adversarial loss; with 0, and beta 0, this is `ddpm_mnist`.
        beta: weight of the square error of x̂0.
        start: the first step on which the discriminator trains.
        discriminator_rate: its learning rate.
        penalty: weight of R1.
    """
    plain = ddpm_mnist(
        batch=batch, channels=channels, learning_rate=learning_rate, guidance=guidance
    )
    [phase] = plain.task.phases
    task = adversarial_diffusion(
        UNet(channels, (1, 2), 1, attention=(7,), dropout=0.0, classes=10, patch=2),
        PatchGAN((32, 64), norm="none"),
        cosine(),
        phase.tx,
        optax.adam(discriminator_rate, b1=0.5),
        alpha=alpha,
        beta=beta,
        penalties=(Penalty(r1, penalty),) if penalty else (),
        start=start,
        shape=(28, 28, 1),
        classes=10,
        kind="v",
        decay=0.999,
    )
    judged = evaluator(
        classifier_mnist, tfds("mnist"), name="mnist", evaluate=evaluate_classes, classes=10
    )
    return plain._replace(
        task=task._replace(sample=functools.partial(plain.task.sample, steps=10)),
        evaluate=judged,
    )
