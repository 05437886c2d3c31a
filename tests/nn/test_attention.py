import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.nn.attention import ImageAttention, attend, fused_kernel


def softmax_attention(q, k, v, mask=None, bias=0.0):
    """softmax(q kᵀ / √d) v, head by head, in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    result = np.empty_like(q)
    for b in range(q.shape[0]):
        for head in range(q.shape[2]):
            logits = q[b, :, head] @ k[b, :, head].T / np.sqrt(q.shape[-1]) + bias
            if mask is not None:
                logits = np.where(mask, logits, -np.inf)
            weight = np.exp(logits - logits.max(-1, keepdims=True))
            result[b, :, head] = weight / weight.sum(-1, keepdims=True) @ v[b, :, head]
    return result


def qkv(t=5, s=5, dtype=np.float32, scale=1.0):
    rng = np.random.default_rng(0)
    shapes = (2, t, 3, 4), (2, s, 3, 4), (2, s, 3, 4)
    return [(scale * rng.normal(size=shape)).astype(dtype) for shape in shapes]


def test_attend_is_softmax_attention():
    for q, k, v in (qkv(), qkv(t=2, s=7), qkv(scale=10.0)):
        np.testing.assert_allclose(attend(q, k, v), softmax_attention(q, k, v), atol=1e-5)


def test_attend_passes_on_masks_and_biases():
    q, k, v = qkv()
    causal = np.tril(np.ones((5, 5), bool))
    expected = softmax_attention(q, k, v, causal)
    np.testing.assert_allclose(attend(q, k, v, is_causal=True), expected, atol=1e-5)
    np.testing.assert_allclose(attend(q, k, v, mask=causal[None, None]), expected, atol=1e-5)
    bias = np.random.default_rng(1).normal(size=(5, 5)).astype(np.float32)
    expected = softmax_attention(q, k, v, bias=bias)
    np.testing.assert_allclose(attend(q, k, v, bias=bias[None, None]), expected, atol=1e-5)


def test_what_a_cpu_runs_has_the_gradients_of_jaxs():
    q, k, v = qkv(t=4, s=6)
    g = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    ours, jaxs = (jax.vjp(run, q, k, v)[1](g) for run in (attend, jax.nn.dot_product_attention))
    chex.assert_trees_all_close(ours, jaxs, rtol=1e-5, atol=1e-5)


def test_softmax_is_taken_in_float32():
    # 1024 equal weights, each 2^-10; a bfloat16 sum of them would stick at 2^-2.
    q = k = jnp.zeros((1, 1024, 1, 8), jnp.bfloat16)
    result = attend(q[:, :1], k, jnp.ones_like(k))
    assert result.dtype == jnp.bfloat16
    assert (np.asarray(result, np.float32) == 1).all()


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 5, 4), (2, 5, 4), (2, 5, 4)],
        [(2, 5, 1, 4), (2, 5, 1, 4), (2, 6, 1, 4)],
    ],
)
def test_attend_checks_shapes(shapes):
    with pytest.raises(AssertionError):
        attend(*(jnp.zeros(shape) for shape in shapes))


H100, V100, AMD, TPU = (
    types.SimpleNamespace(compute_capability="9.0"),
    types.SimpleNamespace(compute_capability="7.0"),
    types.SimpleNamespace(compute_capability="gfx942"),
    types.SimpleNamespace(),
)


@pytest.mark.parametrize(
    ("device", "dtype", "head_channels", "kernel"),
    [
        (H100, jnp.bfloat16, 64, "cudnn"),
        (H100, jnp.float16, 8, "cudnn"),
        (H100, "bfloat16", 128, "cudnn"),
        (H100, jnp.bfloat16, 136, None),
        (H100, jnp.bfloat16, 60, None),
        (H100, jnp.float32, 64, None),
        (V100, jnp.bfloat16, 64, None),
        (AMD, jnp.bfloat16, 64, None),
        (TPU, jnp.bfloat16, 64, None),
    ],
)
def test_fused_kernel_runs_where_it_applies(device, dtype, head_channels, kernel):
    assert fused_kernel(device, dtype, head_channels) == kernel


@pytest.mark.parametrize(
    ("t", "s", "options", "kernel", "mask"),
    [
        (4, 4, {"is_causal": True}, "cudnn", None),
        (4, 6, {"mask": (2, 1, 1, 6)}, "cudnn", (2, 1, 4, 6)),
        (4, 4, {"mask": (1, 1, 4, 4)}, "cudnn", (1, 1, 4, 4)),
        (4, 5, {"mask": (2, 1, 1, 5)}, None, (2, 1, 1, 5)),
        (3, 3, {"is_causal": True}, None, None),
        (1, 4, {}, None, None),
        (4, 4, {"bias": (1, 3, 4, 4)}, None, None),
    ],
)
def test_cudnn_gets_what_it_and_its_gradients_can_do(monkeypatch, t, s, options, kernel, mask):
    asked = []
    plain = jax.nn.dot_product_attention

    def spy(*args, implementation, **kwargs):
        asked.append((implementation, kwargs))
        return plain(*args, **kwargs)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [H100])
    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    q, k, v = (jnp.tile(jnp.asarray(x, jnp.bfloat16), 2) for x in qkv(t, s))  # 8 channels
    given = {n: jnp.ones(x, bool) if n == "mask" else x for n, x in options.items()}
    if "bias" in given:
        given["bias"] = jnp.zeros(given["bias"], jnp.bfloat16)
    assert attend(q, k, v, **given).shape == q.shape
    ((chosen, passed),) = asked
    assert chosen == kernel
    assert (passed["mask"].shape if "mask" in passed else None) == mask


X = np.random.default_rng(2).normal(size=(2, 2, 4, 8)).astype(np.float32)


@functools.cache
def make(head_channels=None):
    layer = ImageAttention(head_channels)
    return layer, jax.jit(layer.init)(jax.random.key(0), X)["params"]


def test_block_starts_as_the_identity():
    layer, params = make()
    assert (np.asarray(layer.apply({"params": params}, X)) == X).all()
    assert (np.abs(params["value"]["kernel"]) > 0).any()


def test_block_is_residual_attention_over_pixels():
    layer, params = make(head_channels=4)
    assert params["query"]["kernel"].shape == (8, 2, 4)
    assert params["out"]["kernel"].shape == (2, 4, 8)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    result = np.asarray(layer.apply({"params": params}, X))

    norm = params["GroupNorm_0"]
    groups = X.reshape(2, 8, 2, 4)  # (b, h, w, c) -> (b, h*w, groups, c/groups)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    y = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(2, 8, 8) * norm["scale"] + norm["bias"]
    q, k, v = (
        np.einsum("btc,chd->bthd", y, params[n]["kernel"]) + params[n]["bias"]
        for n in ("query", "key", "value")
    )
    y = np.einsum("bthd,hdc->btc", softmax_attention(q, k, v), params["out"]["kernel"])
    expected = X + (y + params["out"]["bias"]).reshape(X.shape)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)


def test_block_in_bfloat16_keeps_float32_weights():
    layer = ImageAttention(dtype=jnp.bfloat16)
    y, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), X.astype(jnp.bfloat16))
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert y.dtype == jnp.bfloat16 and y.shape == X.shape


def test_there_are_as_many_heads_as_fit():
    params = jax.eval_shape(ImageAttention(3).init, jax.random.key(0), X)["params"]
    assert params["query"]["kernel"].shape == (8, 2, 3)
    assert params["out"]["kernel"].shape == (2, 3, 8)


def test_the_normalisation_may_be_left_out():
    layer = ImageAttention(norm=None)
    params = layer.init(jax.random.key(0), X)["params"]
    assert params.keys() == {"query", "key", "value", "out"}
    # Without it the attention is of the pixels as they are: a constant offset is not removed.
    params["out"]["kernel"] = jnp.ones_like(params["out"]["kernel"])
    with_offset, without = (layer.apply({"params": params}, x) - x for x in (X + 1, X))
    assert np.abs(with_offset - without).min() > 1e-3


@pytest.mark.parametrize("head_channels", [0, 16])
def test_a_head_has_at_most_the_channels_there_are(head_channels):
    message = rf"head_channels={head_channels} must be from 1 to the 8"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(ImageAttention(head_channels).init, jax.random.key(0), X)
