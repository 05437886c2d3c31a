"""One step and one sampler, whichever compiler made them."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.keys import example_keys, normal, stream
from aigc_jax.core.parallel import make_mesh, put_batch, put_state
from aigc_jax.core.types import Mode, Out, Phase, Task
from aigc_jax.functional.schedules import linear
from aigc_jax.models.unet import UNet
from aigc_jax.tasks.diffusion import SOLVERS, diffusion
from aigc_jax.train.compile import jit_init, jit_sample, jit_step, pmap_sample, pmap_step
from aigc_jax.train.step import init

SEED = 5
B = 8


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(B, 8)).astype(np.float32),
        # Devices weigh very differently, and one of four weighs nothing.
        "weight": np.array([1, 2, 100, 50, 0, 0, 5, 7], np.float32),
    }


def make_task(modes: list[Mode] | None = None) -> Task:
    """Fit a line to noise, every second step."""

    def start(key: Any, batch: Any) -> Any:
        return {"a": {"w": jax.random.normal(key, (8, 4)), "b": jnp.zeros(3)}}, {
            "a": {"mean": jnp.zeros(8)}
        }

    def loss(params: Any, stats: Any, batch: Any, keys: Any, mode: Mode) -> Out:
        if modes is not None:
            modes.append(mode)
        error = jnp.square(batch["x"] @ params["a"]["w"] - normal(keys, (4,))).mean(-1)
        error += jnp.square(params["a"]["b"] - 1).sum()
        return Out(error, batch["weight"], {"a": {"mean": batch["x"].mean(0)}})

    phases = (
        Phase("fit", ("a",), loss, optax.adam(0.1)),
        Phase("again", ("a",), loss, optax.sgd(0.1), every=2),
    )
    return Task(start, phases, lambda *args: None, {"a": 0.5})


TASK = make_task()


def run(step: Any, put: Any = lambda batch: batch, place: Any = lambda state: state) -> Any:
    state, history = place(init(TASK, stream(SEED, "init"), make_batch())), []
    for i in range(3):
        state, metrics = step(state, put(make_batch(i)))
        history.append(metrics)
    return jax.device_get((state, history)), state


def run_jit(fsdp: int, devices: int = 4, **options: Any) -> Any:
    mesh = make_mesh(jax.devices()[:devices], fsdp)
    step = jit_step(TASK, mesh, seed=SEED, **options)
    return run(step, lambda x: put_batch(x, mesh), lambda x: put_state(x, mesh))


@pytest.fixture(scope="module")
def reference():
    return run_jit(1, devices=1)[0]


@pytest.mark.parametrize("layout", ["jit", "fsdp", "pmap", "pmap accumulate"])
def test_unequal_weights_are_divided_after_the_global_sum(layout, reference):
    if layout.startswith("pmap"):
        options = {"accumulate": 2} if "accumulate" in layout else {}
        result, _ = run(pmap_step(TASK, seed=SEED, **options))
    else:
        result, _ = run_jit(4 if layout == "fsdp" else 1)
    chex.assert_trees_all_close(result, reference, rtol=1e-4, atol=1e-5)


def gather(columns: Any, index: Any) -> Any:
    return {name: column[index] for name, column in columns.items()}


def held() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The batches of three steps as columns in another order, and where each step finds its own."""
    order = np.random.default_rng(0).permutation(3 * B)
    batches = [make_batch(i) for i in range(3)]
    columns = {k: np.concatenate([batch[k] for batch in batches])[order] for k in batches[0]}
    return columns, np.argsort(order).astype(np.int32).reshape(3, B)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("jit1", {}),
        ("jit4", {"inner_steps": 3}),
        ("fsdp4", {"accumulate": 2}),
        ("pmap4", {}),
        ("pmap4", {"inner_steps": 3, "accumulate": 2}),
    ],
)
def test_batches_gathered_within_the_step_train_the_same(layout, options, reference):
    options = {"seed": SEED, "gather": gather, **options}
    columns, index = held()
    state = init(TASK, stream(SEED, "init"), make_batch())
    axis = int("inner_steps" in options)
    if layout == "pmap4":
        step, put = pmap_step(TASK, **options), lambda x: x
    else:
        mesh = make_mesh(jax.devices()[: int(layout[-1])], 4 if layout == "fsdp4" else 1)
        step, put = jit_step(TASK, mesh, **options), lambda x: put_batch(x, mesh, axis)
        columns = jax.device_put(columns, NamedSharding(mesh, P()))
        state = put_state(state, mesh)
    history = []
    for addressed in [index] if axis else index:
        state, metrics = step(state, put(addressed), columns)
        history.append(metrics)
    if axis:
        history = [jax.tree.map(lambda x, i=i: x[i], history[0]) for i in range(3)]
    assert not any(isinstance(x, jax.Array) and x.is_deleted() for x in columns.values())
    chex.assert_trees_all_close(jax.device_get((state, history)), reference, rtol=1e-4, atol=1e-5)


def test_several_steps_a_call_copy_no_columns():
    mesh = make_mesh()
    columns = {k: np.tile(x, (10_000,) + (1,) * (x.ndim - 1)) for k, x in held()[0].items()}
    columns = jax.device_put(columns, NamedSharding(mesh, P()))
    state = put_state(init(TASK, stream(SEED, "init"), make_batch()), mesh)
    step = jit_step(TASK, mesh, seed=SEED, inner_steps=3, gather=gather)
    program = step.lower(state, put_batch(held()[1], mesh, 1), columns).compile()
    assert program.memory_analysis().temp_size_in_bytes < columns["weight"].nbytes / 4


def test_columns_are_placed_once_under_pmap(monkeypatch):
    columns, index = held()
    step = pmap_step(TASK, seed=SEED, gather=gather)
    state, _ = step(init(TASK, stream(SEED, "init"), make_batch()), index[0], columns)
    monkeypatch.setattr(jax, "device_put", pytest.fail)
    step(state, index[1], columns)


def test_state_is_made_and_kept_where_the_rule_puts_it():
    mesh = make_mesh(fsdp=4)
    start = jit_init(TASK, mesh)(stream(SEED, "init"), make_batch())
    expected = init(TASK, stream(SEED, "init"), make_batch())
    chex.assert_trees_all_equal(jax.device_get(start), jax.device_get(expected))
    state, _ = jit_step(TASK, mesh, seed=SEED)(start, put_batch(make_batch(), mesh))
    for made in (start, state):
        for w in (made.params["a"]["w"], made.opt["fit"][0].mu["a"]["w"]):
            assert w.sharding.shard_shape(w.shape) == (2, 4)
        assert made.ema["a"]["stats"]["mean"].sharding.shard_shape((8,)) == (2,)
        assert made.params["a"]["b"].sharding.is_fully_replicated
        assert made.step.sharding.is_fully_replicated
        assert all(len(x.sharding.device_set) == 4 for x in jax.tree.leaves(made))


@pytest.mark.parametrize("fsdp", [1, 4])
def test_step_compiles_once(fsdp):
    mesh = make_mesh(fsdp=fsdp)
    state = jit_init(TASK, mesh)(stream(SEED, "init"), make_batch())
    step = jit_step(TASK, mesh, seed=SEED)
    for i in range(3):
        state, _ = step(state, put_batch(make_batch(i), mesh))
    assert step._cache_size() == 1


def test_rule_is_the_callers():
    last_axis = lambda path, shape, mesh: P(None, "fsdp") if len(shape) == 2 else P()
    mesh = make_mesh(fsdp=4)
    state = jit_init(TASK, mesh, last_axis)(stream(SEED, "init"), make_batch())
    assert state.params["a"]["w"].sharding.shard_shape((8, 4)) == (8, 1)
    # Wherever a state comes from, a step leaves it where its own rule says.
    state, _ = jit_step(TASK, mesh, seed=SEED)(state, put_batch(make_batch(), mesh))
    assert state.params["a"]["w"].sharding.shard_shape((8, 4)) == (2, 4)


def test_microbatches_move_no_example_between_devices():
    mesh = make_mesh()
    state = put_state(init(TASK, stream(SEED, "init"), make_batch()), mesh)
    step = jit_step(TASK, mesh, seed=SEED, accumulate=2)
    program = step.lower(state, put_batch(make_batch(), mesh)).compile().as_text()
    moves = set(re.findall(r"all-reduce|all-gather|all-to-all|collective-permute", program))
    assert moves == {"all-reduce"}


def test_state_has_no_device_axis_under_pmap_and_is_donated():
    modes = []
    task = make_task(modes)
    state = init(task, stream(SEED, "init"), make_batch())
    step = pmap_step(task, jax.devices()[:2], seed=SEED)
    new, metrics = step(state, make_batch())
    chex.assert_trees_all_equal_shapes_and_dtypes(
        new, init(task, stream(SEED, "init"), make_batch())
    )
    assert metrics["fit/loss"].total.shape == ()
    assert {(mode.train, mode.axis) for mode in modes} == {(True, "batch")}
    again, _ = step(new, make_batch(1))
    assert again.step == 2
    assert jax.tree.leaves(new.params)[0].is_deleted()


def test_batch_must_divide_over_the_devices():
    state = init(TASK, stream(SEED, "init"), make_batch())
    six = jax.tree.map(lambda x: x[:6], make_batch())
    with pytest.raises(ValueError, match="batch of 6 does not divide over 4 devices"):
        pmap_step(TASK, seed=SEED)(state, six)
    keys = example_keys(stream(0, "sample"), jnp.arange(6))
    with pytest.raises(ValueError, match="batch of 6 does not divide over 4 devices"):
        pmap_sample(TASK)({}, {}, keys, {})
    with pytest.raises(ValueError, match="accumulate=4 must divide the batch on a device, 2"):
        pmap_step(TASK, seed=SEED, accumulate=4)(state, make_batch())


# Samplers


PICTURES = diffusion(
    UNet(8, (1,), 1, attention=(), classes=3, patch=2),
    linear(),
    optax.sgd(0.1),
    shape=(4, 4, 1),
    classes=3,
)
OPTIONS = {"steps": 3, "eta": 0.7, "guidance": 2.0}
COND = {"label": np.array([0, 1, 2, 0, 1, 2, 0, 1], np.int32)}
KEYS = example_keys(stream(0, "sample"), jnp.arange(B))


@pytest.fixture(scope="module")
def params():
    batch = {"image": jnp.zeros((1, 4, 4, 1)), "label": jnp.zeros(1, jnp.int32)}
    params = jax.jit(lambda: PICTURES.init(stream(0, "init"), batch)[0])()
    # As if it were trained: at the start the U-Net says nothing but 0.
    leaves, treedef = jax.tree.flatten(jax.device_get(params))
    rng = np.random.default_rng(0)
    leaves = [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(treedef, leaves)


@pytest.fixture(scope="module")
def alone():
    return jit_sample(PICTURES, make_mesh(jax.devices()[:1]), **OPTIONS)


@pytest.fixture(scope="module")
def samples(alone, params):
    return np.asarray(alone(params, {}, KEYS, COND))


@pytest.mark.parametrize("layout", ["jit", "pmap", "fsdp"])
def test_samples_are_bitwise_those_of_one_device(layout, samples, params):
    if layout == "pmap":
        result = pmap_sample(PICTURES, **OPTIONS)(params, {}, KEYS, COND)
    else:
        mesh = make_mesh(fsdp=4 if layout == "fsdp" else 1)
        result = jit_sample(PICTURES, mesh, **OPTIONS)(put_state(params, mesh), {}, KEYS, COND)
        assert result.sharding.shard_shape(result.shape) == (2, 4, 4, 1)
    assert (np.asarray(result) == samples).all()


def test_sample_depends_on_its_own_key_and_condition_alone(alone, samples, params):
    assert np.isfinite(samples).all() and samples.shape == (B, 4, 4, 1)
    assert len(np.unique(samples.reshape(B, -1), axis=0)) == B
    order = np.array([3, 0, 0, 7, 2, 1, 6, 4])
    permuted = alone(params, {}, KEYS[order], {"label": COND["label"][order]})
    assert (np.asarray(permuted) == samples[order]).all()


class Linear(nn.Module):
    @nn.compact
    def __call__(self, xt, t, label=None, *, train=False):
        return xt * self.param("scale", nn.initializers.ones, ()) * t[:, None, None, None]


def program(solver: str, steps: int) -> str:
    task = diffusion(Linear(), linear(1200), optax.sgd(0.1), shape=(2, 2, 1))
    params = {"denoiser": {"scale": jnp.ones(())}}
    sampler = jit_sample(task, make_mesh(jax.devices()[:1]), solver=solver, steps=steps)
    text = sampler.lower(params, {}, KEYS, {}).as_text()
    for number, name in [(steps, "n"), (steps + 1, "n+1")]:
        text = re.sub(rf"(?<![%\w]){number}(?!\d)", name, text)
    # The times are a constant, spelled out where they are few.
    return re.sub(r'dense<(\[[^]]*\]|"0x[0-9A-F]+")> : tensor<n', "dense<> : tensor<n", text)


@pytest.mark.parametrize("solver", SOLVERS)
def test_program_does_not_grow_with_the_number_of_steps(solver):
    few, many = program(solver, 50), program(solver, 1000)
    assert "stablehlo.while" in few
    assert few.splitlines() == many.splitlines()
