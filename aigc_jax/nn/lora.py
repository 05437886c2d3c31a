"""Low-rank adaptation: fine-tuning that adds to linear layers the product of two thin matrices.

Nothing of a network or its parameters changes. The factors are variables of their own, in the
collection `lora`, by the paths of the layers they are for.
"""

import contextlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

# The layers of `nn.transformer` by their names: how many axes are inputs, and how many outputs.
# Any other is a matrix.
AXES = {
    "qkv": (1, 3),
    "query": (1, 3),
    "kv": (1, 3),
    "attention/out": (2, 1),
    "cross/out": (2, 1),
}


def init_lora(
    key: Array, params: Mapping[str, Any], rank: int, targets: Sequence[str] = ("qkv",)
) -> dict[str, Any]:
    """Make the factors A and B of ΔW = A B for some layers, such that ΔW is 0.

    A is uniform in ±1/√inputs, as the authors' code draws it. A stack's factors lead with its axis
    (layers,), as its kernels do.

    Args:
        key: one key.
        params: of a network, made of `nn.transformer`.
        rank: columns of A and rows of B.
        targets: ends of the paths of layers: `qkv`, `attention/out`, `mlp/in`, `mlp/out`, `mlp`, …;
            a whole part of a block (`mlp`) is all layers in it.

    Returns:
        By the paths of layers, `a` (layers, inputs, rank) and `b` (layers, rank, outputs), in
        float32.

    Raises:
        ValueError: `rank` is less than 1, or a target is no layer's path.

    Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*, §4.1.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    flat: Any = flatten_dict(params, sep="/")
    kernels = {
        path.removesuffix("/kernel"): x for path, x in flat.items() if path.endswith("/kernel")
    }
    chosen = {target: [p for p in kernels if _is_within(p, target)] for target in targets}
    for target, paths in chosen.items():
        if not paths:
            known = ", ".join(kernels)
            raise ValueError(f"targets={target!r} is no layer of this network, which has {known}")
    factors = {}
    for path in sorted({path for paths in chosen.values() for path in paths}):
        n, m = _axes(path)
        shape = kernels[path].shape
        lead, inputs, outputs = shape[: -n - m], shape[len(shape) - n - m : -m], shape[-m:]
        bound = math.prod(inputs) ** -0.5
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        a = jax.random.uniform(own, (*lead, *inputs, rank), minval=-bound, maxval=bound)
        factors[f"{path}/a"], factors[f"{path}/b"] = a, jnp.zeros((*lead, rank, *outputs))
    return unflatten_dict(factors, sep="/")


@contextlib.contextmanager
def lora(scale: float = 1.0) -> Iterator[None]:
    """Add scale·x A B to what linear layers compute that have factors, while this is open.

    It is seen by what is traced meanwhile: open it within a function that is compiled.

    Args:
        scale: α/rank in the paper, eq. 3.

    Example:
        >>> layer, x = nn.Dense(2, use_bias=False), jnp.ones((1, 3))
        >>> params = {"kernel": jnp.zeros((3, 2))}
        >>> factors = {"a": jnp.ones((3, 1)), "b": jnp.ones((1, 2))}
        >>> with lora(0.5):
        ...     layer.apply({"params": params, "lora": factors}, x).tolist()
        [[1.5, 1.5]]
    """

    def adapted(
        next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        y = next_fun(*args, **kwargs)
        layer = context.module
        if context.method_name != "__call__" or not isinstance(layer, nn.Dense | nn.DenseGeneral):
            return y
        if not layer.has_variable("lora", "a"):
            return y
        x, a, b = promote_dtype(
            args[0],
            layer.get_variable("lora", "a"),
            layer.get_variable("lora", "b"),
            dtype=layer.dtype,
        )
        low = jnp.tensordot(x, a, a.ndim - 1)  # (..., *inputs) -> (..., rank)
        return y + scale * jnp.tensordot(low, b, 1)  # -> (..., *outputs)

    with nn.intercept_methods(adapted):
        yield


def merge(params: Mapping[str, Any], factors: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Add scale·A B to the kernels of a network, which then computes the same without factors.

    Args:
        params: of the network.
        factors: of `init_lora`, trained.
        scale: of `lora`.

    Returns:
        The parameters, each in its type.

    Raises:
        ValueError: factors are for layers that there are not, or do not fit one.
    """
    merged: Any = flatten_dict(params, sep="/")
    flat: Any = flatten_dict(factors, sep="/")
    for path in sorted({name.rpartition("/")[0] for name in flat}):
        name = f"{path}/kernel"
        if name not in merged:
            raise ValueError(f"lora has factors for {path}, of which there is no kernel")
        kernel, a, b = merged[name], flat[f"{path}/a"], flat[f"{path}/b"]
        lead = a.ndim + b.ndim - 2 - kernel.ndim  # axes of a stack
        expected = (*a.shape[:-1], *b.shape[lead + 1 :])
        if lead < 0 or expected != kernel.shape or a.shape[-1] != b.shape[lead]:
            raise ValueError(f"{path}: factors {a.shape}, {b.shape} do not fit {kernel.shape}")
        stack, rank = kernel.shape[:lead], a.shape[-1]
        delta = jnp.matmul(
            a.reshape(*stack, -1, rank), b.reshape(*stack, rank, -1), precision="highest"
        )
        delta = delta.astype(jnp.float32).reshape(kernel.shape)
        merged[name] = (kernel + scale * delta).astype(kernel.dtype)
    return unflatten_dict(merged, sep="/")


def unmerge(params: Mapping[str, Any], factors: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Undo `merge`, to rounding."""
    return merge(params, factors, -scale)


def _is_within(path: str, target: str) -> bool:
    """Tell whether a path, or that of something it is in, ends by a target."""
    return f"/{target}/" in f"/{path}/"


def _axes(path: str) -> tuple[int, int]:
    return next((n for end, n in AXES.items() if f"/{path}".endswith(f"/{end}")), (1, 1))
