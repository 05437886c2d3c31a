"""Denoising diffusion, of any schedule, parametrization, weighting and solver."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from aigc_jax.core.keys import fold, randint, uniform
from aigc_jax.core.keys import normal as draw_normal
from aigc_jax.core.shapes import expand
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional import diffusion as f
from aigc_jax.functional import schedules
from aigc_jax.functional.schedules import Schedule
from aigc_jax.samplers import diffusion as samplers
from aigc_jax.samplers.guidance import guide

# A sampler or a spacing is an option of the command line as soon as its function exists.
SOLVERS = {
    n.removeprefix("sample_"): s for n, s in vars(samplers).items() if n.startswith("sample_")
}
del SOLVERS["prior"]
SPACINGS = {n.removesuffix("_times"): s for n, s in vars(schedules).items() if n.endswith("_times")}
if TYPE_CHECKING:
    Solver = Spacing = str
else:
    Solver = Literal[tuple(SOLVERS)]
    Spacing = Literal[tuple(SPACINGS)]


def diffusion(
    denoiser: nn.Module,
    schedule: Schedule,
    tx: optax.GradientTransformation,
    *,
    shape: tuple[int, int, int],
    classes: int = 0,
    kind: f.Kind = "eps",
    learned_variance: bool = False,
    gamma: float | None = None,
    drop_label: float = 0.1,
    decay: float = 0.9999,
) -> Task:
    """Make the task of denoising diffusion (Ho et al. 2020).

    Batches hold `image` (b, h, w, c) in [−1, 1], and `label` (b,) if there are classes.

    Args:
        denoiser: `(xt, t, label, *, train) -> output`, such as `models.unet.UNet`; it takes the
            label `classes` for none, and outputs 2c channels if the variance is learned.
        schedule: of the noise.
        tx: the optimiser.
        shape: (h, w, c) of the images.
        classes: number of labels; 0 is unconditional.
        kind: what the denoiser outputs: the noise, the image, or the velocity v (Salimans & Ho
            2022).
        learned_variance: train the hybrid loss (Nichol & Dhariwal 2021, eq. 16).
        gamma: of the min-SNR weight (Hang et al. 2023), 5 in the paper; None is unweighted.
        drop_label: probability of training without the label, which guidance needs.
        decay: of the exponential moving average of the weights.

    Returns:
        The task, of one network, `denoiser`, and one phase of that name.

    Raises:
        ValueError: `kind` is unknown, `drop_label` is not a probability, a learned variance is
            to be weighted, or v is to be learned under a variance-exploding schedule.
    """
    denoise = denoising(
        denoiser,
        schedule,
        shape=shape,
        classes=classes,
        kind=kind,
        learned_variance=learned_variance,
        gamma=gamma,
        drop_label=drop_label,
    )

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        image = batch["image"]
        t = jnp.zeros(image.shape[0])
        variables = denoiser.init(key, image, t, batch["label"] if classes else None)
        return {"denoiser": variables["params"]}, {}

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        value, _ = denoise(params, batch, keys, mode)
        return Out(loss=value, weight=jnp.ones_like(value))

    def sample(
        params: Any,
        stats: Any,
        keys: Array,
        cond: Batch,
        *,
        solver: Solver = "ddim",
        steps: int = 50,
        spacing: Spacing = "trailing",
        guidance: float = 1.0,
        rescale: float = 0.0,
        eta: float | None = None,
        variance: f.Variance | None = None,
        churn: float | None = None,
        clip: float | None = 1.0,
    ) -> Array:
        """Draw images.

        Args:
            params: weights by network.
            stats: not read.
            keys: (b,).
            cond: {"label": (b,)}, or empty for no condition.
            solver: how to integrate.
            steps: of the solver.
            spacing: of the times at which it steps.
            guidance: scale of classifier-free guidance; 1 is none.
            rescale: φ of guidance' rescaling, in [0, 1].
            eta: of ddim: 0 is deterministic, 1 is ancestral.
            variance: of ddpm.
            churn: of heun: how much fresh noise.
            clip: bound on the predicted |x0|, or none.

        Returns:
            (b, h, w, c), about [−1, 1].

        Raises:
            ValueError: an option is unknown, or not this solver's.
        """
        options: dict[str, Any] = {"eta": eta, "variance": variance, "churn": churn}
        if variance is None and learned_variance and solver == "ddpm":
            options["variance"] = "learned"
        options = {name: value for name, value in options.items() if value is not None}
        run = _choose("solver", solver, SOLVERS)
        if wrong := set(options) - set(inspect.signature(run).parameters):
            raise ValueError(f"{sorted(wrong)[0]} is not an option of solver={solver!r}")
        if solver == "ddim":  # a clipped x0 and an ε that disagrees with it diverge under guidance
            options["recompute"] = True
        times = _choose("spacing", spacing, SPACINGS)(schedule, steps)
        predict = predictor(
            denoiser,
            schedule,
            params,
            cond,
            classes=classes,
            kind=kind,
            scale=guidance,
            rescale=rescale,
        )
        x = samplers.sample_prior(schedule, keys, shape)
        return run(predict, schedule, times, x, keys, clip=clip, **options)

    phase = Phase("denoiser", ("denoiser",), loss, tx)
    return Task(init, (phase,), sample, average={"denoiser": decay})


def denoising(
    denoiser: nn.Module,
    schedule: Schedule,
    *,
    shape: tuple[int, int, int],
    classes: int = 0,
    kind: f.Kind = "eps",
    learned_variance: bool = False,
    gamma: float | None = None,
    drop_label: float = 0.1,
) -> Callable[[Any, Batch, Array, Mode], tuple[Array, Array]]:
    """Make `(params, batch, keys, mode) -> (loss, x0)` of images noised to random times.

    The arguments are those of `diffusion`, and what it raises is raised here. The loss, (b,), is
    what it descends; x0, (b, h, w, c) float32, is the image that the denoiser takes the noisy one
    for: its mean, if it learns a variance, and not clipped.
    """
    if kind not in get_args(f.Kind):
        raise ValueError(f"kind={kind!r} must be one of {', '.join(map(repr, get_args(f.Kind)))}")
    if not 0 <= drop_label <= 1:
        raise ValueError(f"drop_label={drop_label} must lie in [0, 1]")
    if kind == "v" and not schedule.preserving:
        raise ValueError(
            "kind='v' grows with the noise of a variance-exploding schedule; use 'eps'"
        )
    if learned_variance and gamma is not None:
        raise ValueError(f"gamma={gamma} cannot weight the hybrid loss of learned_variance=True")

    def denoise(params: Any, batch: Batch, keys: Array, mode: Mode) -> tuple[Array, Array]:
        x0 = batch["image"]
        if x0.shape[1:] != shape:
            raise ValueError(f"images are {x0.shape[1:]}; the task was made for shape={shape}")
        t = randint(fold(keys, 0), 0, schedule.steps)
        eps = draw_normal(fold(keys, 1), shape)
        label = None
        if classes:
            dropped = uniform(fold(keys, 2)) < drop_label
            label = jnp.where(dropped, classes, batch["label"])
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        xt = f.diffuse(x0, eps, alpha, sigma)
        output = _output(
            denoiser,
            schedule,
            params,
            xt,
            t.astype(jnp.float32),
            label,
            train=mode.train,
            rngs={"dropout": fold(keys[:1], 3)[0]},
        )
        if learned_variance:
            value = f.hybrid_loss(schedule, kind, output, x0, eps, t)
        else:
            value = f.simple_loss(output, f.target(kind, x0, eps, alpha, sigma))
            if gamma is not None:
                value *= f.min_snr_weight(schedule.logsnr(t), gamma, kind)
        return value, f.predict(kind, output, xt, alpha, sigma).x0

    return denoise


def predictor(
    denoiser: nn.Module,
    schedule: Schedule,
    params: Any,
    cond: Batch,
    *,
    classes: int = 0,
    kind: f.Kind = "eps",
    scale: float = 1.0,
    rescale: float = 0.0,
) -> f.Predict:
    """Make the `(xt, t) -> Prediction` that samplers and bounds call.

    Args:
        denoiser: as given to `diffusion`.
        schedule: likewise.
        params: weights by network.
        cond: {"label": (b,)}, or empty for no condition.
        classes: as given to `diffusion`.
        kind: likewise.
        scale: of classifier-free guidance; 1 is none.
        rescale: φ of its rescaling.

    Raises:
        ValueError: a label is given to a model without classes, or guidance without a label.
    """
    label = cond.get("label")
    if label is not None and not classes:
        raise ValueError("a label was given, but this model is unconditional")
    if label is None and scale != 1:
        raise ValueError(f"guidance={scale} needs a label to guide to")

    def network(xt: Array, t: Array, label: Array | None) -> Any:
        return _output(denoiser, schedule, params, xt, t, label, train=False)

    output: Callable[[Array, Array], Array] = lambda xt, t: network(xt, t, None)
    if label is not None:
        output = guide(network, label, jnp.full_like(label, classes), scale, rescale)

    def predict(xt: Array, t: Array) -> f.Prediction:
        return f.predict(kind, output(xt, t), xt, schedule.alpha(t), schedule.sigma(t))

    return predict


def bits_per_dim(
    denoiser: nn.Module,
    schedule: Schedule,
    *,
    classes: int = 0,
    kind: f.Kind = "eps",
    learned_variance: bool = False,
    terms: int | None = None,
) -> Callable[..., dict[str, Array]]:
    """Make `(params, stats, batch, keys) -> {"bits_per_dim": (b,)}`: each example's bound.

    Args:
        denoiser: as given to `diffusion`, like the next four.
        schedule: of the noise.
        classes: number of labels.
        kind: what the denoiser outputs.
        learned_variance: whether it outputs a variance too; otherwise the bound is the small one's.
        terms: of the bound, drawn one a stratum; all by default.

    Returns:
        The function; its variational bounds are in bits/dim, on images of 8 bits a value.
    """
    variance = "learned" if learned_variance else "small"

    def bound(params: Any, stats: Any, batch: Batch, keys: Array) -> dict[str, Array]:
        cond = {"label": batch["label"]} if classes else {}
        predict = predictor(denoiser, schedule, params, cond, classes=classes, kind=kind)
        bits = f.variational_bound(
            predict, schedule, batch["image"], keys, variance=variance, terms=terms
        )
        return {"bits_per_dim": bits}

    return bound


def _output(
    denoiser: nn.Module, schedule: Schedule, params: Any, xt: Array, t: Array, *args: Any, **kw: Any
) -> Any:
    """Apply the network, to inputs of about unit variance whatever the schedule."""
    if not schedule.preserving:
        xt = expand(schedule.unit(t), xt.ndim) * xt
    return denoiser.apply({"params": params["denoiser"]}, xt, t, *args, **kw)


def _choose(name: str, value: str, table: dict[str, Any]) -> Any:
    if value not in table:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, table))}")
    return table[value]
