"""What Transformers are made of: attention, perceptrons, blocks of both, and stacks of blocks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from aigc_jax.core.keys import fold
from aigc_jax.nn.attention import attend
from aigc_jax.nn.dense import dot_general
from aigc_jax.nn.dropout import drop
from aigc_jax.nn.positions import rotate

Init = Callable[..., Array]

# What a mesh's `tensor` axis divides: heads, hidden units, and the vocabulary; see `Task.tensor`.
# Then a block communicates twice: after its attention, and after its perceptron.
TENSOR_AXES = {
    "qkv/kernel": -3,
    "qkv/bias": -3,
    "query/kernel": -3,
    "query/bias": -3,
    "kv/kernel": -3,
    "kv/bias": -3,
    "attention/out/kernel": -3,
    "cross/out/kernel": -3,
    "mlp/in/kernel": -1,
    "mlp/in/bias": -1,
    "mlp/gate/kernel": -1,
    "mlp/gate/bias": -1,
    "mlp/out/kernel": -2,
    "tokens/embedding": -2,
    "head/kernel": -1,
    "head/bias": -1,
}


class Cache(NamedTuple):
    """What one layer remembers of the tokens it has read, each in its slot.

    Heads come before slots, as products of a query with them read them: the other way round, they
    would be turned around for every token that is written.

    Attributes:
        key: (b, kv_heads, slots, d).
        value: (b, kv_heads, slots, d).
    """

    key: Array
    value: Array


class Attention(nn.Module):
    """Multi-head attention of tokens to each other, or to those of another sequence.

    Vaswani et al. 2017, §3.2.2. Queries, keys and values are one product, laid out by the heads
    that share a key: so that heads divide over devices.

    Keys and values that stand in the collection `prefix`, `key` and `value` (n, kv_heads, d), are
    attended to by every token besides, wherever it stands (prefix tuning, Li & Liang 2021, §4.2).

    Attributes:
        heads: how many; they divide the width.
        kv_heads: how many have keys and values of their own, each for heads/kv_heads of them
            (grouped-query attention, Ainslie et al. 2023); None is all.
        rotary: whether positions turn queries and keys (`nn.positions.rotate`), but for another
            sequence's, which stand in no order with these.
        bias: whether the projections have one.
        kernel_init: of queries, keys and values.
        out_kernel_init: of the projection back.
        dtype: of the computation.
    """

    heads: int
    kv_heads: int | None = None
    rotary: bool = False
    bias: bool = True
    kernel_init: Init = nn.initializers.normal(0.02)
    out_kernel_init: Init = nn.initializers.normal(0.02)
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        memory: Array | Cache | None = None,
        *,
        position: Array | None = None,
        cache: Cache | None = None,
        slot: int | Array = 0,
        **kwargs: Any,
    ) -> tuple[Array, Cache | None]:
        """Attend.

        Args:
            x: (b, t, width).
            memory: (b, s, width), attended to in place of x itself; or its keys and values, as
                they were returned when it was first read.
            position: (b or 1, t), for `rotary`.
            cache: of slots that are attended to as well; x is written to it, from `slot` on. Not
                for a memory.
            slot: () or (b,).
            **kwargs: `mask`, `bias`, `is_causal` of `attend`.

        Returns:
            (b, t, width), and the cache after it; or the keys and values of the memory.
        """
        width = x.shape[-1]
        kv = self.kv_heads or self.heads
        group, d = self.heads // kv, width // self.heads

        def project(x: Array, each: int, name: str) -> Array:  # -> (b, t, kv, each, d)
            shape, init = (kv, each, d), self.kernel_init
            layer = nn.DenseGeneral(
                shape,
                use_bias=self.bias,
                kernel_init=init,
                dtype=self.dtype,
                dot_general=dot_general,
                name=name,
            )
            return layer(x)

        if memory is None:
            q, k, v = jnp.split(project(x, group + 2, "qkv"), [group, group + 1], 3)
            k, v = k[..., 0, :], v[..., 0, :]  # (b, t, kv, 1, d) -> (b, t, kv, d)
        else:
            q = project(x, group, "query")
            if not isinstance(memory, Cache):
                k, v = jnp.split(project(memory, 2, "kv"), 2, 3)
                # (b, s, kv, 1, d) -> (b, kv, s, d)
                memory = Cache(*(x[..., 0, :].swapaxes(1, 2) for x in (k, v)))
            cache = memory
        q = q.reshape(*q.shape[:2], self.heads, d)  # (b, t, kv, group, d) -> (b, t, heads, d)
        if memory is None and self.rotary:
            assert position is not None
            q, k = rotate(q, position), rotate(k, position)
        if memory is None and cache is not None:
            cache = Cache(write(cache.key, k, slot), write(cache.value, v, slot))
        if cache is not None:
            k, v = (x.swapaxes(1, 2) for x in cache)  # (b, kv, s, d) -> (b, s, kv, d)
        if memory is None and self.has_variable("prefix", "key"):
            own = Cache(*(self.get_variable("prefix", name) for name in Cache._fields))
            k, v, kwargs = put_before(k, v, own, **kwargs)
        y = attend(q, k, v, **kwargs)
        out = nn.DenseGeneral(
            width,
            (-2, -1),
            use_bias=self.bias,
            kernel_init=self.out_kernel_init,
            dtype=self.dtype,
            dot_general=dot_general,
            name="out",
        )
        return out(y), cache  # (b, t, heads, d) -> (b, t, width)


def put_before(
    k: Array, v: Array, own: Cache, *, is_causal: bool = False, **kwargs: Any
) -> tuple[Array, Array, dict[str, Any]]:
    """Put keys and values that all queries see before those of a sequence.

    Args:
        k: (b, s, kv_heads, d).
        v: likewise.
        own: (n, kv_heads, d) each.
        is_causal: as of `attend`, of as many queries.
        **kwargs: `mask`, `bias` of `attend`, of s keys.

    Returns:
        Keys and values (b, n + s, kv_heads, d), and options of `attend` for so many.
    """
    n, s = len(own.key), k.shape[1]
    both = lambda x, y: jnp.concatenate(
        [jnp.broadcast_to(y.astype(x.dtype), (len(x), *y.shape)), x], 1
    )
    if is_causal:
        past = jnp.tri(s, dtype=bool)[None, None]
        kwargs["mask"] = kwargs["mask"] & past if "mask" in kwargs else past
    for name, seen in (("mask", True), ("bias", 0.0)):
        if name in kwargs:  # (..., s) -> (..., n + s)
            last = [(0, 0)] * 3 + [(n, 0)]
            kwargs[name] = jnp.pad(kwargs[name], last, constant_values=seen)
    return both(k, own.key), both(v, own.value), kwargs


def write(slots: Array, x: Array, slot: int | Array) -> Array:
    """Write (b, t, kv, d) to the slots slot, …, slot + t − 1 of (b, kv, slots, d).

    `slot` is (), or (b,) where rows stand at different slots.
    """
    x = x.astype(slots.dtype).swapaxes(1, 2)  # (b, t, kv, d) -> (b, kv, t, d)
    if jnp.ndim(slot) == 0:
        return lax.dynamic_update_slice_in_dim(slots, x, slot, 2)
    return jax.vmap(lambda old, new, at: lax.dynamic_update_slice_in_dim(old, new, at, 1))(
        slots, x, slot
    )


def look_back(
    slot: int | Array, t: int, slots: int, start: Array | None = None
) -> tuple[Array, Array]:
    """Tell where tokens stand that are written to slots, and which slots each of them attends to.

    Each sees those from `start` up to itself, and none of what is yet to be written; what stands
    before `start`, padding, sees itself besides: there must be something.

    Args:
        slot: () or (b,), of the first token.
        t: how many tokens.
        slots: how many there are.
        start: (b,) the slot where each row's sequence begins; None is 0.

    Returns:
        The positions of the tokens, their slots less `start` (b or 1, t), and a mask of `attend`
        (b or 1, 1, t, slots).

    >>> position, mask = look_back(2, 1, 4, jnp.array([1]))
    >>> position.tolist(), mask[0, 0].tolist()
    ([[1]], [[False, True, True, False]])
    """
    begin = jnp.zeros((1, 1), jnp.int32) if start is None else start[:, None]
    own = jnp.asarray(slot).reshape(-1, 1) + jnp.arange(t)  # (b or 1, t)
    there = jnp.arange(slots)
    seen = (there <= own[..., None]) & (there >= begin[..., None])  # (b or 1, t, slots)
    seen |= there == own[..., None]
    return jnp.maximum(own - begin, 0), seen[:, None]


class MLP(nn.Module):
    """A perceptron of each token: W₂ f(W₁ x), or gated, W₂ (f(W₁ x) ⊙ W₃ x) (Shazeer 2020).

    Attributes:
        hidden: units.
        activation: f.
        gated: whether there is a W₃: with `jax.nn.silu`, SwiGLU.
        bias: whether the layers have one.
        kernel_init: of W₁ and W₃.
        out_kernel_init: of W₂.
        dtype: of the computation.
    """

    hidden: int
    activation: Callable[[Array], Array] = jax.nn.gelu
    gated: bool = False
    bias: bool = True
    kernel_init: Init = nn.initializers.normal(0.02)
    out_kernel_init: Init = nn.initializers.normal(0.02)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (b, t, width) to (b, t, width)."""

        def dense(features: int, init: Init, name: str) -> nn.Dense:
            return nn.Dense(
                features,
                use_bias=self.bias,
                kernel_init=init,
                dtype=self.dtype,
                dot_general=dot_general,
                name=name,
            )

        y = self.activation(dense(self.hidden, self.kernel_init, "in")(x))  # -> (b, t, hidden)
        if self.gated:
            y = y * dense(self.hidden, self.kernel_init, "gate")(x)
        return dense(x.shape[-1], self.out_kernel_init, "out")(y)


class Block(nn.Module):
    """Attention and a perceptron, each added to what it read.

    Attributes:
        attention: makes an `Attention`, by `name`.
        mlp: makes an `MLP`.
        norm: makes a normalisation.
        pre_norm: whether each part is normalised before it reads (Xiong et al. 2020), or after it
            is added (Vaswani et al. 2017).
        cross: whether it also attends to another sequence, between the two.
        dropout: share of each part's output that training zeroes.
    """

    attention: Callable[..., Attention]
    mlp: Callable[..., MLP]
    norm: Callable[..., nn.Module]
    pre_norm: bool = True
    cross: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Array,
        keys: Array | None = None,
        memory: Array | Cache | None = None,
        memory_mask: Array | None = None,
        **attending: Any,
    ) -> tuple[Array, Cache | None]:
        """Map (b, t, width) to itself, and return the attention's cache.

        Args:
            x: (b, t, width).
            keys: (b,) of the dropout; None to drop nothing.
            memory: (b, s, width), or its keys and values, for `cross`.
            memory_mask: of `attend`, (b, 1, 1, s), for `cross`.
            **attending: options of `Attention`.
        """
        cache = None

        def attended(x: Array) -> Array:
            nonlocal cache
            y, cache = self.attention(name="attention")(x, **attending)
            return y

        parts: dict[str, Callable[[Array], Array]] = {"attention": attended}
        if self.cross:
            read: dict[str, Any] = {} if memory_mask is None else {"mask": memory_mask}
            parts["cross"] = lambda x: self.attention(name="cross")(x, memory, **read)[0]
        parts["mlp"] = self.mlp(name="mlp")
        for i, (name, part) in enumerate(parts.items()):
            norm: Any = self.norm(name=f"{name}_norm")
            y = part(norm(x) if self.pre_norm else x)
            x = x + drop(y, None if keys is None else fold(keys, i), self.dropout)
            x = x if self.pre_norm else norm(x)
        return x, cache


def run_blocks(
    block: nn.Module,
    x: Array,
    layers: int,
    *,
    keys: Array | None = None,
    scan: bool = True,
    remat: bool = False,
    **options: Any,
) -> Array:
    """Run a stack of blocks, whose parameters are those of one with an axis (layers,) before.

    Args:
        block: a `Block`, bound to the module that calls.
        x: (b, t, width).
        layers: how many.
        keys: (b,) of the dropout.
        scan: compile one block and loop over the layers; or compile each, which takes longer and
            may run faster. Parameters are the same.
        remat: keep only what goes between blocks for the way back, and compute the rest again.
        **options: of `Block`, the same for every layer.

    Returns:
        (b, t, width).
    """

    def run(block: Any, x: Array, layer: Array) -> tuple[Array, None]:
        own = None if keys is None else fold(keys, layer)
        return block(x, keys=own, **options)[0], None

    # Within a scan nothing merges what is computed again with what was computed before.
    body = nn.remat(run, prevent_cse=not scan) if remat else run
    stack = nn.scan(
        body,
        variable_axes={True: 0},
        split_rngs={True: True},
        length=layers,
        unroll=1 if scan else layers,
    )
    return stack(block, x, jnp.arange(layers))[0]


def extend_blocks(
    block: nn.Module,
    x: Array,
    caches: tuple[Cache, ...],
    memories: tuple[Cache, ...] | None = None,
    **options: Any,
) -> tuple[Array, tuple[Cache, ...]]:
    """Run a stack of blocks, as `run_blocks`, on caches, one a layer.

    Each layer is compiled: a loop over layers would copy their caches. Its parameters may be in
    parts, by `unstack`.

    Args:
        block: as of `run_blocks`.
        x: (b, t, width).
        caches: of the tokens before them.
        memories: keys and values of another sequence, one a layer, for `cross`.
        **options: of `Block`, the same for every layer.

    Returns:
        (b, t, width), and the caches after it.
    """
    alone, variables = block.unbind()
    after = []
    for layer, cache in enumerate(caches):
        own = jax.tree.map(
            lambda v, layer=layer: v[layer], variables, is_leaf=lambda v: isinstance(v, tuple)
        )
        memory = None if memories is None else memories[layer]
        read: Any = alone.apply(own, x, memory=memory, cache=cache, **options)
        x = read[0]
        after.append(read[1])
    return x, tuple(after)


def unstack(params: dict[str, Any], name: str = "blocks") -> dict[str, Any]:
    """Take the parameters of a stack apart, for `extend_blocks` to read within a loop.

    A loop would take them out of the stack anew each time it goes round, and copy them: on a CPU,
    twice the time of a token.

    Args:
        params: of a network, or what else it reads by the same paths.
        name: of the stack.

    Returns:
        The same, but for the stack's arrays (layers, ...), each a tuple of (...).
    """
    if name not in params:
        return params
    return params | {name: jax.tree.map(tuple, params[name])}
