"""Adapters: what is trained beside a GPT whose own weights stay as they are, each one function."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from aigc_jax.models.gpt import GPT
from aigc_jax.nn.lora import init_lora


class Adapter(NamedTuple):
    """What is trained in a network's stead.

    Attributes:
        init: `(key, network, params) -> own`: what is trained, for a network of such parameters.
        variables: `(network, params, own)`: by collection, what the network reads besides them.
    """

    init: Callable[[Array, GPT, Any], Any]
    variables: Callable[[GPT, Any, Any], dict[str, Any]]


def low_rank(rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = ("qkv",)) -> Adapter:
    """Adapt layers by products of two thin matrices, scaled by α/rank (LoRA, Hu et al. 2021).

    Args:
        rank: of each product.
        alpha: α.
        targets: ends of the paths of layers; see `nn.lora.init_lora`.

    Raises:
        ValueError: `rank` is less than 1; or, when it is initialised, a target is no layer.
    """
    _check("rank", rank)

    def variables(network: GPT, params: Any, own: Any) -> dict[str, Any]:
        scaled = lambda path, x: alpha / rank * x if path[-1].key == "b" else x
        return {"lora": jax.tree.map_with_path(scaled, own)}

    return Adapter(lambda key, _, params: init_lora(key, params, rank, targets), variables)


def prompt(length: int = 20) -> Adapter:
    """Put embeddings before each text, of no tokens (prompt tuning, Lester et al. 2021, §2).

    They begin as those of tokens drawn from the vocabulary (§2.1); of weights that are given to a
    task, begin with `init(key, network, params)` of them, and give it that as well. Layers read
    them once, not once a row; the text itself stands at the positions at which it stands without.

    Raises:
        ValueError: `length` is less than 1; or, when it is initialised, more than the context.
    """
    _check("length", length)

    def variables(network: GPT, params: Any, own: Any) -> dict[str, Any]:
        return {"prefix": _read(network, params, own["embedding"])}

    init = lambda key, network, params: {"embedding": _embeddings(key, network, params, length)}
    return Adapter(init, variables)


def prefix(length: int = 20) -> Adapter:
    """Let every layer attend to keys and values of its own (prefix tuning, Li & Liang 2021).

    They begin as what layers make of tokens drawn from the vocabulary, which the authors found to
    do better than noise (§7.4), and descend directly: there is no perceptron between (§4.3). Of
    weights that are given to a task, see `prompt`.

    Raises:
        ValueError: `length` is less than 1; or, when it is initialised, more than the context.
    """
    _check("length", length)

    def init(key: Array, network: GPT, params: Any) -> Any:
        return _read(network, params, _embeddings(key, network, params, length))

    return Adapter(init, lambda network, params, own: {"prefix": own})


def _check(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1")


def _embeddings(key: Array, network: GPT, params: Any, length: int) -> Array:
    """Return the (length, width) embeddings of tokens drawn from the vocabulary."""
    if length > network.context:
        raise ValueError(f"length={length} is more than context={network.context}")
    tokens = jax.random.permutation(key, network.vocabulary)
    return jnp.take(params["tokens"]["embedding"], jnp.resize(tokens, (length,)), axis=0)


def _read(network: GPT, params: Any, embedding: Array) -> dict[str, Any]:
    """Return the keys and values of (n, width) embeddings: the collection `prefix` of a stack."""
    cache: Any = network.make_cache(1, len(embedding))
    variables = {"params": params}
    cache = network.apply(variables, embedding[None], cache, method="extend")[1]
    # (1, kv, n, d) of each layer -> (layers, n, kv, d)
    stacked = jax.tree.map(lambda *layers: jnp.concatenate(layers).swapaxes(1, 2), *cache)
    return {"blocks": {"attention": {"key": stacked.key, "value": stacked.value}}}
