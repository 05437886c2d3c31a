"""Adversarially regularised diffusion: what a denoiser takes a noisy image for is judged too."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.core import pop
from jax import Array

from aigc_jax.core.shapes import mean_flat
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional.adversarial import NON_SATURATING, Losses
from aigc_jax.functional.schedules import Schedule
from aigc_jax.tasks.diffusion import denoising, diffusion
from aigc_jax.tasks.gan import (
    Fake,
    Penalty,
    adversarial_phases,
    judge_images,
    refuse_batch_norm,
)


def adversarial_diffusion(
    denoiser: nn.Module,
    discriminator: nn.Module,
    schedule: Schedule,
    tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    *,
    alpha: float = 0.01,
    beta: float = 0.0,
    losses: Losses = NON_SATURATING,
    penalties: tuple[Penalty, ...] = (),
    start: int = 0,
    decay: float = 0.9999,
    **options: Any,
) -> Task:
    """Make the task of denoising diffusion with an adversary that judges x̂0.

    The denoiser descends `diffusion`'s own loss + α·adversarial(D(x̂0)) + β·‖x̂0 − x0‖², the mean
    over pixels, where x̂0 is what it takes a noisy image for. The discriminator learns to tell x̂0,
    of all times alike, from the data. It sees x̂0 clipped to [−1, 1], as samplers clip it: outside,
    its range alone would give it away, and the other terms pull it back. They take it unclipped.

    The best x̂0 of much noise is an average of images, and no image: the adversary bends the
    denoiser away from it, toward one of them, which helps a sampler of few steps and biases one of
    many. Keep α small. A denoiser of the kind "eps" divides its error by the schedule's α to x̂0,
    without bound; "v" and "x0" do not.

    Args:
        denoiser: as of `diffusion`.
        discriminator: `(image, label, *, train, axis) -> logits`, such as
            `models.patchgan.PatchGAN`; it is given the labels if its `classes` is above 0.
        schedule: of the noise.
        tx: the denoiser's optimiser.
        discriminator_tx: the discriminator's.
        alpha: weight of the adversarial loss; with 0 there is no discriminator, and if `beta` is 0
            too, the task is that of `diffusion`.
        beta: weight of the square error of x̂0.
        losses: of both sides, such as `functional.adversarial.HINGE`.
        penalties: on the discriminator's gradients.
        start: the first step on which the discriminator trains. Before, its verdict moves nothing.
        decay: of the exponential moving average of the denoiser's weights.
        **options: the other keywords of `diffusion`: `shape`, `classes`, `kind`, …

    Returns:
        The task, of the networks `denoiser` and `discriminator`, and the phases of a game between
        them. It samples as `diffusion` does.

    Raises:
        ValueError: `alpha` or `beta` is negative, or an argument is refused by `diffusion` or
            `adversarial_phases`; when the task is initialised: the gradients of a discriminator
            with BatchNorm are to be penalised.

    Sauer et al. 2023, *Adversarial diffusion distillation*, eq. 1, judge x̂0 too, and have a
    teacher's prediction in the place of x0.
    """
    for name, weight in (("alpha", alpha), ("beta", beta)):
        if not weight >= 0:
            raise ValueError(f"{name}={weight} must be at least 0")
    plain = diffusion(denoiser, schedule, tx, decay=decay, **options)
    if not alpha and not beta:
        return plain
    denoise = denoising(denoiser, schedule, **options)

    def predict(params: Any, batch: Batch, keys: Array, mode: Mode) -> Any:
        value, x0 = denoise(params, batch, keys, mode)
        error = mean_flat((x0 - batch["image"]) ** 2)
        return x0, value + beta * error, {"denoising": value, "reconstruction": error}

    if not alpha:

        def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
            _, value, metrics = predict(params, batch, keys, mode)
            return Out(value, jnp.ones_like(value), metrics=metrics)

        return plain._replace(phases=(Phase("denoiser", ("denoiser",), loss, tx),))

    classes = getattr(discriminator, "classes", 0)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        params, _ = plain.init(key, batch)
        label = batch["label"] if classes else None
        variables = discriminator.init(jax.random.fold_in(key, 1), batch["image"], label)
        stats, params["discriminator"] = pop(variables, "params")
        refuse_batch_norm(penalties, stats)
        return params, {"denoiser": {}, "discriminator": stats}

    def generate(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Fake:
        x0, value, metrics = predict(params, batch, keys, mode)
        return Fake(jnp.clip(x0, -1, 1), stats["denoiser"], value, metrics)

    phases = adversarial_phases(
        generate,
        judge_images(discriminator, classes),
        losses,
        tx,
        discriminator_tx,
        generator="denoiser",
        weight=alpha,
        penalties=penalties,
        start=start,
    )
    return plain._replace(init=init, phases=phases)
