"""VQ-VAE: an autoencoder of discrete codes, and a Transformer that draws them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.core import pop
from jax import Array, lax

from aigc_jax.core.keys import fold
from aigc_jax.core.shapes import mean_flat
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional.likelihood import categorical_nll
from aigc_jax.models.gpt import GPT
from aigc_jax.nn.quantizer import FiniteScalarQuantizer, VectorQuantizer
from aigc_jax.nn.transformer import unstack
from aigc_jax.samplers.autoregressive import sample_tokens
from aigc_jax.tasks.gan import choose_label

Quantizer = VectorQuantizer | FiniteScalarQuantizer


def vqvae(
    encoder: nn.Module,
    quantizer: Quantizer,
    decoder: nn.Module,
    tx: optax.GradientTransformation,
    *,
    data_variance: float = 1.0,
    prior: GPT | None = None,
    prior_tx: optax.GradientTransformation | None = None,
    prior_start: int = 0,
    grid: tuple[int, int] | None = None,
    classes: int = 0,
) -> Task:
    """Make the task of a VQ-VAE (van den Oord et al. 2017).

    Its loss is ‖x − x̂‖²/σ² + β‖z − sg(e)‖², each averaged over an example's values, as DeepMind's
    published code has it (eq. 3, a Gaussian likelihood); the codebook's averages move beside it.
    The prior's is −log p(codes) in nats an image, of codes that its gradient does not reach (§3.3).
    Batches hold `image` (b, h, w, c) in [−1, 1], and `label` (b,) if there are classes.

    Args:
        encoder: `x -> z`, (b, h', w', d); such as `models.vqvae.Encoder`.
        quantizer: of `nn.quantizer`.
        decoder: `z -> x̂`; such as `models.vqvae.Decoder`.
        tx: the autoencoder's optimiser.
        data_variance: σ², of the images' values.
        prior: draws codes, row by row: `GPT(quantizer.codes, h'·w', …)` of `max(classes, 1)`
            classes. None makes an autoencoder that only reconstructs.
        prior_tx: the prior's optimiser.
        prior_start: the first step on which the prior trains.
        grid: (h', w') of the codes, if there is a prior.
        classes: number of labels that the prior takes; 0 is unconditional.

    Returns:
        The task, of the networks `encoder`, `quantizer`, `decoder` and perhaps `prior`, with a
        phase `vqvae` and perhaps one `prior`.

    Raises:
        ValueError: an argument is out of range, or the prior does not fit the rest; when the task
            is initialised: the encoder's codes are not laid out as `grid` says.
    """
    if not data_variance > 0:
        raise ValueError(f"data_variance={data_variance} must be above 0")
    if prior is not None:
        if prior_tx is None or grid is None:
            raise ValueError(
                f"a prior needs prior_tx and grid={grid}, the rows and columns of codes"
            )
        _check_prior(prior, quantizer.codes, grid, classes)
    elif classes or prior_tx or grid:
        raise ValueError(f"classes={classes}, prior_tx and grid={grid} are for a prior: prior=None")
    networks: dict[str, nn.Module] = {
        "encoder": encoder,
        "quantizer": quantizer,
        "decoder": decoder,
    }
    nats = code_nats(encoder, quantizer, prior, classes=classes) if prior else None

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        x, params, stats = batch["image"], {}, {}
        keys = jax.random.split(key, 4)
        shape = x.shape
        for part, (name, network) in zip(keys, networks.items(), strict=False):
            x, variables = network.init_with_output(part, x)
            if name == "encoder" and grid not in (None, x.shape[1:3]):
                raise ValueError(f"grid={grid}; the encoder makes {x.shape[1:3]} of {shape[1:]}")
            x = x.codes if name == "quantizer" else x
            stats[name], params[name] = pop({"params": {}, **variables}, "params")
        if x.shape != shape:
            raise ValueError(
                f"the decoder makes images of {x.shape[1:]}; the data's are {shape[1:]}"
            )
        if prior is not None:
            tokens = jnp.zeros((shape[0], prior.context), jnp.int32)
            params["prior"] = prior.init(keys[3], tokens)["params"]
        return params, {name: of for name, of in stats.items() if of}

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        image = batch["image"]
        z: Any = encoder.apply({"params": params["encoder"]}, image)
        state = stats.get("quantizer", {})
        quantised, state = quantizer.apply(
            {"params": params["quantizer"], **state},
            z,
            fold(keys, 0),
            train=mode.train,
            mutable=list(state) if mode.train else [],
        )
        decoded: Any = decoder.apply({"params": params["decoder"]}, quantised.codes)
        error = mean_flat(jnp.square(decoded - image)) / data_variance
        value = error + quantised.loss
        metrics = {"reconstruction": error, "codes": quantised.loss}
        proposed = {"quantizer": state} if state else {}
        return Out(value, jnp.ones_like(value), proposed, metrics)

    def prior_loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        assert nats is not None
        value = nats(params, stats, batch)
        return Out(value, jnp.ones_like(value))

    def sample(
        params: Any, stats: Any, keys: Array, cond: Batch, *, temperature: float = 1.0
    ) -> Array:
        """Draw images from the prior, or decode what is given.

        Args:
            params: weights by network.
            stats: the codebook's averages.
            keys: (b,).
            cond: {"z": (b, h', w')} codes to decode; or {"image": (b, h, w, c)} to reconstruct; or
                {"label": (b,)} to draw, or empty for classes at random.
            temperature: divides the prior's logits; 0 takes the likeliest codes. A reconstruction
                has none.

        Returns:
            (b, h, w, c) in [−1, 1].

        Raises:
            ValueError: nothing is given, and there is no prior; or a label, and it has no classes.
        """
        if "z" in cond:
            index = cond["z"]
        elif "image" in cond:
            index = encode(encoder, quantizer, params, stats, cond["image"])
        elif prior is None or grid is None:
            raise ValueError("prior=None: this model draws nothing; give it images to reconstruct")
        else:
            label = choose_label(cond, keys, classes)
            index = draw_codes(prior, params["prior"], keys, label, temperature=temperature)
            index = index.reshape(-1, *grid)  # (b, h'*w') -> (b, h', w')
        decoded = decode(quantizer, decoder, params, stats, index)
        return jnp.clip(decoded, -1, 1)

    phases = [Phase("vqvae", tuple(networks), loss, tx)]
    if prior is not None and prior_tx is not None:
        phases.append(Phase("prior", ("prior",), prior_loss, prior_tx, start=prior_start))
    return Task(init, tuple(phases), sample)


def encode(
    encoder: nn.Module, quantizer: Quantizer, params: Any, stats: Any, image: Array
) -> Array:
    """Return the codes of images: (b, h, w, c) to (b, h', w') int32."""
    z: Any = encoder.apply({"params": params["encoder"]}, image)
    quantised: Any = quantizer.apply(_variables(params, stats), z)
    return quantised.index


def encode_batch(encoder: nn.Module, quantizer: Quantizer) -> Callable[[Any, Any, Batch], Array]:
    """Make the `encode` that `metrics.codebook.evaluate_codebook` asks for."""
    return lambda params, stats, batch: encode(encoder, quantizer, params, stats, batch["image"])


def decode(quantizer: Quantizer, decoder: nn.Module, params: Any, stats: Any, index: Array) -> Any:
    """Return the images of codes: (b, h', w') to (b, h, w, c), not clipped."""
    codes: Any = quantizer.apply(_variables(params, stats), index, method="read")
    return decoder.apply({"params": params["decoder"]}, codes)


def draw_codes(
    prior: GPT, params: Any, keys: Array, label: Array | None = None, *, temperature: float = 1.0
) -> Array:
    """Draw codes from a prior, one by one.

    Args:
        prior: of `context` codes.
        params: its own.
        keys: (b,).
        label: (b,) or None.
        temperature: divides the logits.

    Returns:
        (b, context) int32.
    """

    apart = {"params": unstack(params)}

    def step(carry: Any, token: Array) -> tuple[Any, Array]:
        cache, position = carry
        read: Any = prior.apply(apart, token[:, None], cache, position, method="extend")
        logits, cache = read
        return (cache, position + 1), logits[:, 0]  # (b, 1, codes) -> (b, codes)

    return sample_tokens(
        step,
        (prior.make_cache(len(keys)), jnp.zeros((), jnp.int32)),
        _start(prior, len(keys), label),
        fold(keys, 0),
        length=prior.context,
        temperature=temperature,
    )


def code_nats(
    encoder: nn.Module, quantizer: Quantizer, prior: GPT, *, classes: int = 0
) -> Callable[[Any, Any, Batch], Array]:
    """Make `(params, stats, batch) -> (b,)`: −log p(codes) in nats an image, given its label."""

    def nats(params: Any, stats: Any, batch: Batch) -> Array:
        frozen = lax.stop_gradient((params["encoder"], params["quantizer"]))
        own = {"encoder": frozen[0], "quantizer": frozen[1]}
        index = encode(encoder, quantizer, own, stats, batch["image"])
        tokens = index.reshape(len(index), -1)  # (b, h', w') -> (b, h'*w')
        start = _start(prior, len(index), batch["label"] if classes else None)
        read = jnp.concatenate([start[:, None], tokens[:, :-1]], 1)
        logits: Any = prior.apply({"params": params["prior"]}, read)
        return categorical_nll(logits, tokens)

    return nats


def vqvae_terms(
    encoder: nn.Module,
    quantizer: Quantizer,
    decoder: nn.Module,
    *,
    data_variance: float = 1.0,
    prior: GPT | None = None,
    classes: int = 0,
) -> Callable[[Any, Any, Batch, Array], dict[str, Array]]:
    """Make the terms by which `metrics.likelihood.evaluate_terms` measures a VQ-VAE.

    The arguments are those of `vqvae`.

    Returns:
        `(params, stats, batch, keys) -> {"mse", "mse_variance", "code_nats"}`, each (b,): the mean
        squared error of reconstructions in [−1, 1], the same over the data's variance, and, with a
        prior, the nats of an image's codes.
    """
    nats = code_nats(encoder, quantizer, prior, classes=classes) if prior else None

    def terms(params: Any, stats: Any, batch: Batch, keys: Array) -> dict[str, Array]:
        index = encode(encoder, quantizer, params, stats, batch["image"])
        decoded = decode(quantizer, decoder, params, stats, index)
        error = mean_flat(jnp.square(decoded - batch["image"]))
        values = {"mse": error, "mse_variance": error / data_variance}
        return values | ({"code_nats": nats(params, stats, batch)} if nats else {})

    return terms


def _variables(params: Any, stats: Any) -> dict[str, Any]:
    return {"params": params["quantizer"], **stats.get("quantizer", {})}


def _start(prior: GPT, batch: int, label: Array | None) -> Array:
    """Return (b,) the tokens that codes begin with: one for each class."""
    label = jnp.zeros(batch, jnp.int32) if label is None else label
    return (prior.vocabulary + label).astype(jnp.int32)


def _check_prior(prior: GPT, codes: int, grid: tuple[int, int], classes: int) -> None:
    wanted = {"vocabulary": codes, "context": grid[0] * grid[1], "classes": max(classes, 1)}
    for name, value in wanted.items():
        if getattr(prior, name) != value:
            raise ValueError(f"the prior's {name}={getattr(prior, name)} must be {value} here")
