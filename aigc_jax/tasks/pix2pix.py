"""Translation of images into images, learned from pairs: pix2pix (Isola et al. 2017)."""

from typing import Any

import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from aigc_jax.core.shapes import mean_flat
from aigc_jax.core.types import Batch, Mode, Task
from aigc_jax.functional.adversarial import NON_SATURATING, Losses
from aigc_jax.tasks.gan import Fake, adversarial_phases, apply_network, init_networks, judge_images


def halved(losses: Losses) -> Losses:
    """Halve the discriminator's loss, so that it learns more slowly than its opponent.

    Isola et al. 2017, §3.3.
    """
    return losses._replace(discriminator=lambda real, fake: 0.5 * losses.discriminator(real, fake))


def pix2pix(
    generator: nn.Module,
    discriminator: nn.Module,
    generator_tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    *,
    l1: float = 100.0,
    losses: Losses = halved(NON_SATURATING),
    decay: float | None = None,
    simultaneous: bool = False,
) -> Task:
    """Make the task of translating `source` into `image`.

    The generator descends the adversary's loss + λ·E|y − G(x)| (eq. 4), its only noise being its
    dropout; the discriminator judges pairs of source and image. Batches hold `image` (b, h, w, c)
    and `source` (b, h, w, c'), both in [−1, 1].

    Args:
        generator: `(source, *, train, axis, keys) -> image`, such as
            `models.pix2pix.UNetGenerator`.
        discriminator: `(source and image, None, *, train, axis) -> logits`, such as
            `models.patchgan.PatchGAN`.
        generator_tx: the generator's optimiser; Adam of rate 2e-4 and β₁ ½ in the paper.
        discriminator_tx: the discriminator's; likewise.
        l1: λ, the weight of the mean absolute error, which is of [−1, 1].
        losses: of the adversaries; the paper's by default, the discriminator's halved.
        decay: of the exponential moving average of the generator's weights, which then draws; None
            draws with the last weights.
        simultaneous: both descend from one pass of the generator, which saves a second.

    Returns:
        The task, of the networks `generator` and `discriminator`. Its sampler translates the
        `source` of `cond`.

    Raises:
        ValueError: `l1` is negative; when the task is initialised: the batch holds no `source`, or
            one of another size than `image`, or the generator's images are not of its shape.
    """
    if l1 < 0:
        raise ValueError(f"l1={l1} must be at least 0")
    judge = judge_images(discriminator)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        source, image = _source(batch), batch["image"]
        if source.shape[:3] != image.shape[:3]:
            raise ValueError(f"source {source.shape} and image {image.shape} must be of one size")
        return init_networks(
            key,
            image.shape,
            generator=(generator, (source,)),
            discriminator=(discriminator, (_pair(source, image), None)),
        )

    def generate(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Fake:
        own = params["generator"], stats["generator"]
        image, kept = apply_network(generator, *own, mode, batch["source"], keys=keys)
        error = mean_flat(jnp.abs(batch["image"] - image))
        return Fake(image, kept, l1 * error, {"l1": error})

    def discriminate(params: Any, stats: Any, x: Array, batch: Batch, mode: Mode) -> Any:
        return judge(params, stats, _pair(batch["source"], x), batch, mode)

    def sample(params: Any, stats: Any, keys: Array, cond: Batch, *, noise: bool = True) -> Array:
        """Translate images.

        Args:
            params: weights by network.
            stats: batch statistics by network.
            keys: (b,).
            cond: {"source": (b, h, w, c')}.
            noise: keep the dropout, the generator's only noise, as the paper does.

        Returns:
            (b, h, w, c) in [−1, 1].

        Raises:
            ValueError: there is no `source`.
        """
        own, mode = (params["generator"], stats["generator"]), Mode(train=False)
        given = keys if noise else None
        return apply_network(generator, *own, mode, _source(cond), keys=given)[0]

    phases = adversarial_phases(
        generate, discriminate, losses, generator_tx, discriminator_tx, simultaneous=simultaneous
    )
    return Task(init, phases, sample, average={} if decay is None else {"generator": decay})


def _source(given: Batch) -> Array:
    if "source" not in given:
        raise ValueError(f"there is no image to translate, 'source', among {sorted(given)}")
    return given["source"]


def _pair(source: Array, image: Array) -> Array:
    return jnp.concatenate([source, image], -1)  # -> (b, h, w, c' + c)
