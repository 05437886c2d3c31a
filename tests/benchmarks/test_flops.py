from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks.flops import _of_jaxpr, count_flops

A, B = jnp.zeros((2, 3)), jnp.zeros((3, 5))
PRODUCT = 2 * 2 * 3 * 5
NHWC = ("NHWC", "HWIO", "NHWC")


def test_a_batched_product_counts_each_of_its_matrices():
    assert (
        count_flops(lambda a: jnp.einsum("bij,jk->bik", a, B), jnp.zeros((7, 2, 3))) == 7 * PRODUCT
    )


@pytest.mark.parametrize(("groups", "strides"), [(1, (1, 1)), (1, (2, 2)), (2, (1, 1))])
def test_a_convolution_counts_its_taps_at_each_pixel(groups, strides):
    conv = lambda x, w: lax.conv_general_dilated(
        x, w, strides, "SAME", dimension_numbers=NHWC, feature_group_count=groups
    )
    pixels = 8 * 6 // (strides[0] * strides[1])
    flops = count_flops(conv, jnp.zeros((5, 8, 6, 4)), jnp.zeros((3, 3, 4 // groups, 10)))
    assert flops == 2 * 5 * pixels * 10 * (3 * 3 * 4 // groups)


def test_loops_branches_and_calls_are_looked_into():
    once = lambda a: a @ B @ B.T
    assert count_flops(jax.jit(once), A) == 2 * PRODUCT
    assert (
        count_flops(lambda a: lax.scan(lambda a, _: (once(a), None), a, length=6), A)
        == 12 * PRODUCT
    )
    assert count_flops(lambda a: lax.cond(a[0, 0] > 0, once, lambda a: a, a), A) == 2 * PRODUCT
    assert count_flops(lambda a: jax.checkpoint(once)(a), A) == 2 * PRODUCT


def test_a_gradient_is_twice_its_function():
    loss = lambda a, b: jnp.tanh(a @ b).sum()
    assert count_flops(jax.grad(loss, argnums=(0, 1)), A, B) == 3 * PRODUCT


def test_attention_that_is_one_kernel_counts_its_products():
    shapes = [(2, 6, 4, 8), (2, 5, 2, 8), (2, 5, 2, 8)]
    operands = [SimpleNamespace(aval=SimpleNamespace(shape=shape)) for shape in shapes]

    def count(way):
        primitive = SimpleNamespace(name=f"dot_product_attention_{way}_wrapper")
        equation = SimpleNamespace(primitive=primitive, params={}, invars=operands)
        return _of_jaxpr(SimpleNamespace(eqns=[equation]))

    q, k = (jnp.zeros((2, n, 4, 8)) for n in (6, 5))
    attend = lambda q, k, v: jnp.einsum("bhts,bshd->bthd", jnp.einsum("bthd,bshd->bhts", q, k), v)
    assert count("fwd") == count_flops(attend, q, k, k)
    total = lambda *x: attend(*x).sum()
    assert count("fwd") + count("bwd") == count_flops(jax.grad(total, (0, 1, 2)), q, k, k)


def test_what_is_no_product_counts_nothing():
    assert count_flops(lambda a: jnp.exp(a).sum() + (a * a).mean(), A) == 0
