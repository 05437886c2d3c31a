"""StyleGAN2: a game whose generator mixes styles, both sides of it regularised lazily."""

from typing import Any

import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from aigc_jax.core.keys import fold, normal
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional import adversarial
from aigc_jax.functional.adversarial import NON_SATURATING, Losses, path_lengths
from aigc_jax.models.stylegan2 import Generator
from aigc_jax.tasks.gan import (
    Augment,
    Fake,
    Penalty,
    adversarial_phases,
    apply_network,
    choose_label,
    init_networks,
    judge_images,
)


def stylegan2(
    generator: Generator,
    discriminator: nn.Module,
    generator_tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    *,
    latent: int,
    classes: int = 0,
    r1: float = 10.0,
    r1_every: int = 16,
    path_length: float = 2.0,
    path_every: int = 4,
    mixing: float = 0.9,
    augment: Augment | None = None,
    decay: float | None = None,
    losses: Losses = NON_SATURATING,
) -> Task:
    """Make the task of StyleGAN2.

    Beside the game, every so many steps, the discriminator takes a step down γ·R1, and the
    generator one down the path length regulariser (eq. 4):

        k · weight · (‖Jᵀ y‖ − a)²,   a ← a + 0.01 (mean ‖Jᵀ y‖ − a)

    where k is the number of steps. The loss of an example has the mean a from before the step, so
    that it is that example's alone, and takes the whole batch, where the paper halves it. The mean
    is kept beside the average style, among the generator's stats.

    Batches hold `image` (b, h, w, c) in [−1, 1], and `label` (b,) if there are classes.

    Args:
        generator: the network, of `models.stylegan2`.
        discriminator: `(image, label, *, train, axis) -> (b,)` logits. One that compares the images
            of a group needs a batch of whole groups, under `pmap` on each device.
        generator_tx: the generator's optimiser, such as `lazy_adam(0.002, 0.0, 0.99, path_every)`.
        discriminator_tx: the discriminator's.
        latent: dimensions of z ~ N(0, 1).
        classes: number of labels that both networks take; 0 is unconditional.
        r1: γ, which depends on the data and grows with the size of the images; 0 is without.
        r1_every: steps of the game for one of R1; with 1, it is part of the discriminator's.
        path_length: weight of the path length regulariser; 0 is without.
        path_every: steps of the game for one of it.
        mixing: probability that two latents share an image's layers in training.
        augment: `(images, keys) -> images`, differentiable, of all that the discriminator sees.
        decay: of the exponential moving average of the generator's weights, which then draws
            (see `tasks.gan.half_life`); None draws with the last weights.
        losses: of both sides.

    Returns:
        The task, of the networks `generator` and `discriminator`, with the phases `discriminator`,
        `r1`, `generator` and `path_length`. Its sampler takes `z` (b, latent) in `cond`, where the
        latents are to be chosen.

    Raises:
        ValueError: an argument is out of range; when the task is initialised: the generator's
            images are not of the data's shape, or the batch is not of whole groups.

    Karras et al. 2020, *Analyzing and improving the image quality of StyleGAN*, §3.
    """
    for name, value in (("r1", r1), ("path_length", path_length)):
        if not value >= 0:
            raise ValueError(f"{name}={value} must be at least 0")
    for name, value in (("r1_every", r1_every), ("path_every", path_every)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if not 0 <= mixing <= 1:
        raise ValueError(f"mixing={mixing} must be in [0, 1]")
    penalties = (Penalty(adversarial.r1, r1, r1_every),) if r1 else ()

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        image, label = batch["image"], batch["label"] if classes else None
        params, stats = init_networks(
            key,
            image.shape,
            generator=(generator, (jnp.zeros((image.shape[0], latent)), label)),
            discriminator=(discriminator, (image, label)),
            penalties=penalties,
        )
        if path_length:
            stats["generator"] = {**stats["generator"], "path": {"length": jnp.zeros(())}}
        return params, stats

    def variables(params: Any, stats: Any) -> Any:
        return {"params": params["generator"], **stats["generator"]}

    def draw(batch: Batch, keys: Array) -> tuple[Array, Array | None, Array]:
        """Return latents, labels and the keys of noise and mixing."""
        label = batch["label"] if classes else None
        return normal(fold(keys, 0), (latent,)), label, fold(keys, 2)

    def generate(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Fake:
        z, label, noise = draw(batch, keys)
        own = params["generator"], stats["generator"]
        return Fake(*apply_network(generator, *own, mode, z, label, keys=noise, mixing=mixing))

    def path_loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        own, (z, label, noise) = variables(params, stats), draw(batch, keys)
        ws: Any = generator.apply(own, z, label, keys=noise, mixing=mixing, method="styles")

        def synthesise(ws: Array) -> Any:
            return generator.apply(own, ws, noise, method="synthesise")

        length, mean = path_lengths(synthesise, ws, fold(keys, 3)), own["path"]["length"]
        value = path_every * path_length * (length - mean) ** 2
        mean = mean + 0.01 * (length.mean() - mean)
        kept = {**stats["generator"], "path": {"length": mean}}
        return Out(value, jnp.ones_like(value), {"generator": kept}, {"length": length})

    def sample(
        params: Any,
        stats: Any,
        keys: Array,
        cond: Batch,
        *,
        truncation: float = 1.0,
        noise: bool = True,
    ) -> Array:
        """Draw images.

        Args:
            params: weights by network.
            stats: the average style, by network.
            keys: (b,).
            cond: {"label": (b,)}, or empty for classes at random; and {"z": (b, latent)} to choose
                the latents.
            truncation: ψ: how far from the average style, 0 being the average image of all.
            noise: whether details are drawn at random; without, an image is its latent's alone,
                as those of a film should be.

        Returns:
            (b, h, w, c) in [−1, 1].

        Raises:
            ValueError: a label is given to a model without classes.
        """
        z = cond.get("z", normal(fold(keys, 0), (latent,)))
        image: Any = generator.apply(
            variables(params, stats),
            z,
            choose_label(cond, keys, classes),
            keys=fold(keys, 2) if noise else None,
            truncation=truncation,
        )
        return jnp.clip(image, -1, 1)

    phases = adversarial_phases(
        generate,
        judge_images(discriminator, classes),
        losses,
        generator_tx,
        discriminator_tx,
        penalties=penalties,
        augment=augment,
    )
    if path_length:
        lazy = {"every": path_every, "optimiser": "generator"}
        phases += (Phase("path_length", ("generator",), path_loss, generator_tx, **lazy),)
    return Task(init, phases, sample, average={} if decay is None else {"generator": decay})


def lazy_adam(
    learning_rate: float, b1: float, b2: float, every: int
) -> optax.GradientTransformation:
    """Return Adam for a network that takes one lazy step more every k steps.

    λ' = c λ, β₁' = β₁^c, β₂' = β₂^c, where c = k/(k + 1): k + 1 steps then go as far, and forget as
    much, as k did.

    Args:
        learning_rate: λ, of as many steps without the lazy one.
        b1: β₁, likewise.
        b2: β₂, likewise.
        every: k.

    Raises:
        ValueError: `every` is less than 1.

    Karras et al. 2020, appendix B; λ, β₁ and β₂ are 0.002, 0 and 0.99 there.
    """
    if every < 1:
        raise ValueError(f"every={every} must be at least 1")
    c = every / (every + 1)
    return optax.adam(c * learning_rate, b1**c, b2**c)
