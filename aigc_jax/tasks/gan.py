"""Generative adversarial networks: any two networks, losses, penalties and augmentation.

`adversarial_phases` is the game itself, of anything that makes images against anything that judges
them; `gan` is the game from noise. Other families bring their own generator to it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.core import pop
from jax import Array

from aigc_jax.core.keys import fold, normal, randint
from aigc_jax.core.shapes import mean_flat
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional.adversarial import Losses


class Fake(NamedTuple):
    """What a generator made of a batch.

    Attributes:
        image: (b, h, w, c).
        stats: its network's proposed state.
        loss: (b,) what it descends besides the adversary's loss.
        metrics: name -> (b,).
    """

    image: Array
    stats: Any
    loss: Array | float = 0.0
    metrics: dict[str, Array] = {}


class Penalty(NamedTuple):
    """A penalty on the discriminator's gradients.

    Attributes:
        function: of `functional.adversarial`: `(critic, real, fake, keys) -> (b,)`.
        weight: of its mean in the loss.
        every: 1 adds it to every step's loss; k takes a step of its own down k times the penalty,
            every k steps, with the discriminator's optimiser (Karras et al. 2020, §3.1).
    """

    function: Callable[..., Array]
    weight: float
    every: int = 1

    @property
    def name(self) -> str:
        """What its metric and its phase are called: as its function."""
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        return function.__name__


Generate = Callable[[Any, Any, Batch, Array, Mode], Fake]  # params, stats, batch, keys, mode
Discriminate = Callable[[Any, Any, Array, Batch, Mode], tuple[Array, Any]]
Augment = Callable[[Array, Array], Array]  # images, keys


def gan(
    generator: nn.Module,
    discriminator: nn.Module,
    losses: Losses,
    generator_tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    *,
    latent: int,
    prior: Callable[[Array, tuple[int, ...]], Array] = normal,
    classes: int = 0,
    penalties: tuple[Penalty, ...] = (),
    n_critic: int = 1,
    generator_steps: int = 1,
    augment: Augment | None = None,
    decay: float | None = None,
    simultaneous: bool = False,
) -> Task:
    """Make the task of a generative adversarial network (Goodfellow et al. 2014).

    Batches hold `image` (b, h, w, c) in [−1, 1], and `label` (b,) if there are classes.

    Args:
        generator: `(z, label, *, train, axis) -> image`, such as `models.dcgan.Generator`.
        discriminator: `(image, label, *, train, axis) -> logits`, (b,) or of patches.
        losses: such as `functional.adversarial.NON_SATURATING`.
        generator_tx: the generator's optimiser.
        discriminator_tx: the discriminator's.
        latent: dimensions of z.
        prior: `(keys, shape) -> (b, *shape)`, which draws z; N(0, 1).
        classes: number of labels that both networks take; 0 is unconditional.
        penalties: on the discriminator's gradients.
        n_critic: steps of the discriminator for one of the generator.
        generator_steps: how many the generator takes in a row, each from latents of its own.
        augment: `(images, keys) -> images`, differentiable, of all that the discriminator sees.
        decay: of the exponential moving average of the generator's weights, which then draws
            (see `half_life`); None draws with the last weights.
        simultaneous: both descend from one pass of the generator, which saves a second.

    Returns:
        The task, of the networks `generator` and `discriminator`. Its sampler takes `z`
        (b, latent) in `cond`, where the latents are to be chosen.

    Raises:
        ValueError: an argument is out of range; when the task is initialised: the generator's
            images are not of the data's shape, or the gradients of a critic with BatchNorm are to
            be penalised.
    """
    network = functools.partial(apply_network, generator)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        image, label = batch["image"], batch["label"] if classes else None
        z = jnp.zeros((image.shape[0], latent))
        return init_networks(
            key,
            image.shape,
            generator=(generator, (z, label)),
            discriminator=(discriminator, (image, label)),
            penalties=penalties,
        )

    def generate(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Fake:
        label = batch["label"] if classes else None
        z = prior(fold(keys, 0), (latent,))
        return Fake(*network(params["generator"], stats["generator"], mode, z, label))

    def sample(
        params: Any, stats: Any, keys: Array, cond: Batch, *, truncation: float = 1.0
    ) -> Array:
        """Draw images.

        Args:
            params: weights by network.
            stats: batch statistics by network.
            keys: (b,).
            cond: {"label": (b,)}, or empty for classes at random; and {"z": (b, latent)} to choose
                the latents.
            truncation: standard deviation of z; less is more typical and less varied.

        Returns:
            (b, h, w, c) in [−1, 1].

        Raises:
            ValueError: a label is given to a model without classes.
        """
        z = truncation * cond.get("z", prior(fold(keys, 0), (latent,)))
        label = choose_label(cond, keys, classes)
        mode = Mode(train=False)
        return network(params["generator"], stats["generator"], mode, z, label)[0]

    phases = adversarial_phases(
        generate,
        judge_images(discriminator, classes),
        losses,
        generator_tx,
        discriminator_tx,
        penalties=penalties,
        n_critic=n_critic,
        generator_steps=generator_steps,
        augment=augment,
        simultaneous=simultaneous,
    )
    return Task(init, phases, sample, average={} if decay is None else {"generator": decay})


def adversarial_phases(
    generate: Generate,
    discriminate: Discriminate,
    losses: Losses,
    generator_tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    *,
    generator: str = "generator",
    weight: float = 1.0,
    penalties: tuple[Penalty, ...] = (),
    n_critic: int = 1,
    generator_steps: int = 1,
    start: int = 0,
    augment: Augment | None = None,
    simultaneous: bool = False,
) -> tuple[Phase, ...]:
    """Make the phases of a game between a generator and the network `discriminator`.

    Args:
        generate: `(params, stats, batch, keys, mode) -> Fake`, all networks' params and stats.
        discriminate: `(params, stats, images, batch, mode) -> (logits, stats)`, of the
            discriminator's own params and stats.
        losses: of both sides.
        generator_tx: the generator's optimiser.
        discriminator_tx: the discriminator's.
        generator: the name of its network.
        weight: of the adversary's loss beside the generator's own.
        penalties: on the discriminator's gradients.
        n_critic: steps of the discriminator for one of the generator.
        generator_steps: how many the generator takes in a row.
        start: the first step on which the discriminator trains. Before, its verdict moves nothing.
        augment: `(images, keys) -> images`, of all that the discriminator sees.
        simultaneous: both descend from one pass of the generator.

    Returns:
        `discriminator`, a phase for each lazy penalty, and one named as the generator, then
        `generator_2`, …, which go on with its optimiser's moments; or a single phase `game` if they
        are simultaneous.

    Raises:
        ValueError: an argument is out of range, or does not go with `simultaneous`.
    """
    if n_critic < 1:
        raise ValueError(f"n_critic={n_critic} must be at least 1")
    if generator_steps < 1:
        raise ValueError(f"generator_steps={generator_steps} must be at least 1")
    for penalty in penalties:
        if not penalty.weight >= 0:
            raise ValueError(f"{penalty.name}: weight={penalty.weight} must be at least 0")
        if penalty.every < 1:
            raise ValueError(f"{penalty.name}: every={penalty.every} must be at least 1")
    alone = n_critic == generator_steps == 1 and not start and all(p.every == 1 for p in penalties)
    if simultaneous and not alone:
        raise ValueError(
            "simultaneous=True needs n_critic=1, generator_steps=1, start=0 and penalties of "
            "every=1"
        )

    def critic(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Any:
        """Return the discriminator as `(images, stats) -> (logits, stats)`."""

        def judge(x: Array, stats: Any = stats["discriminator"]) -> tuple[Array, Any]:
            # Real and generated alike: a different view of each would only add noise.
            x = x if augment is None else augment(x, fold(keys, 1))
            return discriminate(params["discriminator"], stats, x, batch, mode)

        return judge

    def penalise(judge: Any, which: Any, real: Array, fake: Array, keys: Array) -> dict[str, Array]:
        return {
            p.name: p.function(lambda x: judge(x)[0], real, fake, fold(keys, 2 + i))
            for i, p in which
        }

    now = [(i, p) for i, p in enumerate(penalties) if p.every == 1]
    lazy = [(i, p) for i, p in enumerate(penalties) if p.every > 1]

    def of_discriminator(judge: Any, real: Array, fake: Array, keys: Array) -> Out:
        on_real, stats = judge(real)
        on_fake, stats = judge(fake, stats)
        value = losses.discriminator(on_real, on_fake)
        paid = penalise(judge, now, real, fake, keys)
        value += sum(p.weight * paid[p.name] for _, p in now)
        metrics = {"real": mean_flat(on_real), "fake": mean_flat(on_fake), **paid}
        return Out(value, jnp.ones_like(value), {"discriminator": stats}, metrics)

    def of_generator(judge: Any, real: Array, fake: Fake, mode: Mode) -> Out:
        image = fake.image
        if start and mode.step is not None:
            # No gradient passes back from a judge that has learned nothing yet.
            image = jnp.where(mode.step >= start, image, jax.lax.stop_gradient(image))
        on_real, stats = judge(real)
        on_fake, _ = judge(image, stats)
        adversary = losses.generator(on_real, on_fake)
        metrics = dict(fake.metrics)
        if metrics:
            metrics["adversary"] = adversary
        value = fake.loss + weight * adversary
        return Out(value, jnp.ones_like(value), {generator: fake.stats}, metrics)

    def discriminator_loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        fake = generate(params, stats, batch, fold(keys, 0), mode).image
        judge = critic(params, stats, batch, keys, mode)
        return of_discriminator(judge, batch["image"], jax.lax.stop_gradient(fake), keys)

    def generator_loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        fake = generate(params, stats, batch, fold(keys, 0), mode)
        judge = critic(params, stats, batch, keys, mode)
        return of_generator(judge, batch["image"], fake, mode)

    def game_loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        fake, real = generate(params, stats, batch, fold(keys, 0), mode), batch["image"]
        frozen = jax.lax.stop_gradient(params)
        # What the two sides compute alike, the compiler computes once.
        judge = critic(params, stats, batch, keys, mode)
        d = of_discriminator(judge, real, jax.lax.stop_gradient(fake.image), keys)
        g = of_generator(critic(frozen, stats, batch, keys, mode), real, fake, mode)
        metrics = d.metrics | g.metrics | {"discriminator": d.loss, generator: g.loss}
        return Out(d.loss + g.loss, d.weight, d.stats | g.stats, metrics)

    def lazy_loss(i: int, p: Penalty) -> Callable[..., Out]:
        def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
            fake = generate(params, stats, batch, fold(keys, 0), mode).image
            judge = critic(params, stats, batch, keys, mode)
            paid = penalise(judge, [(i, p)], batch["image"], jax.lax.stop_gradient(fake), keys)
            [value] = paid.values()
            return Out(p.every * p.weight * value, jnp.ones_like(value), metrics=paid)

        return loss

    if simultaneous:
        both: Any = {"discriminator": discriminator_tx, generator: generator_tx}
        tx = optax.partition(both, {name: name for name in both})
        return (Phase("game", tuple(both), game_loss, tx),)
    return (
        Phase(
            "discriminator", ("discriminator",), discriminator_loss, discriminator_tx, start=start
        ),
        *(
            Phase(
                p.name,
                ("discriminator",),
                lazy_loss(i, p),
                discriminator_tx,
                every=p.every,
                start=start,
                optimiser="discriminator",
            )
            for i, p in lazy
        ),
        *(
            Phase(
                f"{generator}_{i}" if i > 1 else generator,
                (generator,),
                generator_loss,
                generator_tx,
                every=n_critic,
                optimiser=generator if i > 1 else None,
            )
            for i in range(1, generator_steps + 1)
        ),
    )


def judge_images(discriminator: nn.Module, classes: int = 0) -> Discriminate:
    """Make the `discriminate` of a network that judges an image, with its label if it has one."""

    def discriminate(params: Any, stats: Any, x: Array, batch: Batch, mode: Mode) -> Any:
        label = batch["label"] if classes else None
        return apply_network(discriminator, params, stats, mode, x, label)

    return discriminate


def init_networks(
    key: Array,
    shape: tuple[int, ...],
    *,
    generator: tuple[nn.Module, tuple[Any, ...]],
    discriminator: tuple[nn.Module, tuple[Any, ...]],
    penalties: tuple[Penalty, ...] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Initialise both sides of a game, and hold them to the data.

    Args:
        key: one key.
        shape: (b, h, w, c) of the data's images.
        generator: its network, and the arguments it is called with.
        discriminator: likewise.
        penalties: on the discriminator's gradients.

    Returns:
        `(params, stats)`, by network.

    Raises:
        ValueError: the generator's images are of another shape; or the gradients of a critic with
            BatchNorm are to be penalised.
    """
    params, stats = {}, {}
    networks = {"generator": generator, "discriminator": discriminator}
    for part, (name, (network, args)) in zip(jax.random.split(key), networks.items(), strict=True):
        output, variables = network.init_with_output(part, *args)
        if name == "generator" and output.shape != shape:
            raise ValueError(
                f"the generator makes images of {output.shape[1:]}; the data's are {shape[1:]}"
            )
        stats[name], params[name] = pop(variables, "params")
    refuse_batch_norm(penalties, stats["discriminator"])
    return params, stats


def refuse_batch_norm(penalties: tuple[Penalty, ...], stats: Any) -> None:
    """Hold a discriminator whose gradients are penalised to logits of one example each.

    Args:
        penalties: on the discriminator's gradients.
        stats: its state, by collection.

    Raises:
        ValueError: it keeps batch statistics.
    """
    if penalties and "batch_stats" in stats:
        raise ValueError(
            f"{penalties[0].name} penalises the gradient of each example's logit, and "
            "BatchNorm makes a logit depend on the whole batch; use a discriminator without it, "
            "norm='none'"
        )


def choose_label(cond: Batch, keys: Array, classes: int) -> Array | None:
    """Return the labels asked for; without any, classes at random, or None if there are none.

    Raises:
        ValueError: a label is given to a model without classes.
    """
    if "label" in cond:
        if not classes:
            raise ValueError("a label was given, but this model is unconditional")
        return cond["label"]
    return randint(fold(keys, 1), 0, classes) if classes else None


def half_life(images: float, batch: int) -> float:
    """Return the decay of an average that halves what it held every so many images.

    Args:
        images: seen while a weight's share in the average halves.
        batch: images a step.

    Raises:
        ValueError: either is not above 0.

    Example:
        >>> half_life(64, 64)
        0.5

    Karras et al. 2018, *Progressive growing of GANs*, §A.1, count it so.
    """
    if images <= 0 or batch <= 0:
        raise ValueError(f"images={images} and batch={batch} must be above 0")
    return 0.5 ** (batch / images)


def apply_network(
    network: nn.Module, params: Any, stats: Any, mode: Mode, *args: Any, **kwargs: Any
) -> tuple[Any, Any]:
    """Apply a network, and return its output and what its state comes to.

    Args:
        network: `(*args, train, axis, **kwargs) -> output`.
        params: its own.
        stats: its own state, by collection, which moves in training alone.
        mode: how it is applied.
        *args: of the network.
        **kwargs: likewise.
    """
    output, updated = network.apply(
        {"params": params, **stats},
        *args,
        train=mode.train,
        axis=mode.axis,
        mutable=list(stats) if mode.train else [],
        **kwargs,
    )
    return output, {**stats, **updated}
