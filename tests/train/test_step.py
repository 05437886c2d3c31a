"""The laws of a step, each on a task small enough to work out by hand."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax.core.keys import example_keys, normal, stream
from aigc_jax.core.types import Mean, Out, Phase, Task
from aigc_jax.train.step import averaged, init, make_step

SEED = 5
B = 8


def make_batch(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    batch = {
        "x": rng.normal(size=(B, 3)),
        "y": rng.normal(size=B),
        # Microbatches of every second or fourth example weigh very differently.
        "weight": np.array([1, 100, 2, 50, 3, 0, 5, 7]),
    }
    return {name: jnp.asarray(x, jnp.float32) for name, x in batch.items()}


def fit_line(network: str) -> Any:
    """Fit x·w to y, with weights, proposing as statistics the means of the batch."""

    def loss(params, stats, batch, keys, mode):
        error = jnp.square(batch["x"] @ params[network]["w"] - batch["y"])
        return Out(
            error, batch["weight"], {network: {"mean": batch["x"].mean(0)}}, {"error": error}
        )

    return loss


def make_task(*phases: Phase, networks: tuple[str, ...] = ("a", "b"), average: Any = {}) -> Task:
    def start(key, batch):
        params = {n: {"w": jnp.arange(1.0, 4.0) + i} for i, n in enumerate(networks)}
        return params, {n: {"mean": jnp.zeros(3)} for n in networks}

    return Task(start, phases, lambda *args: None, average)


def begin(task: Task) -> Any:
    return init(task, stream(SEED, "init"), make_batch())


def compiled(task: Task, **options: Any) -> Any:
    return jax.jit(make_step(task, seed=SEED, **options))


def weighted_mean(w: jax.Array, batch: Any) -> jax.Array:
    error = jnp.square(batch["x"] @ w - batch["y"])
    return jnp.sum(error * batch["weight"]) / jnp.sum(batch["weight"])


LINE = make_task(Phase("fit", ("a",), fit_line("a"), optax.sgd(1.0)))


# Weights to begin from


def test_a_network_begins_from_weights_that_are_given():
    task = make_task(Phase("fit", ("a",), fit_line("a"), optax.sgd(1.0)), average={"a": 0.9})
    given = {"w": np.array([7.0, 8.0, 9.0])}
    state = init(task, stream(SEED, "init"), make_batch(), {"a": given})
    np.testing.assert_array_equal(state.params["a"]["w"], given["w"])
    np.testing.assert_array_equal(state.ema["a"]["params"]["w"], given["w"])
    np.testing.assert_array_equal(state.params["b"]["w"], begin(task).params["b"]["w"])
    assert state.params["a"]["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"c": {}}, r"weights of 'c' are given; the networks are \['a', 'b'\]"),
        ({"a": {"w": np.ones(4)}}, r"the first being w: \(4,\) is given, and \(3,\) wanted"),
        ({"a": {"v": np.ones(3)}}, r"at 2 paths, the first being v: \(3,\) is given, and nothing"),
    ],
)
def test_weights_of_others_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        init(LINE, stream(SEED, "init"), make_batch(), weights)


# Law 2: only the step divides


@pytest.fixture(scope="module")
def whole():
    return compiled(LINE)(begin(LINE), make_batch())


def test_gradient_is_that_of_the_weighted_mean(whole):
    state, metrics = whole
    start, batch = begin(LINE), make_batch()
    w = start.params["a"]["w"]
    value, gradient = jax.value_and_grad(weighted_mean)(w, batch)
    chex.assert_trees_all_close(w - state.params["a"]["w"], gradient, rtol=1e-5)
    loss = metrics["fit/loss"]
    np.testing.assert_allclose(loss.total / loss.weight, value, rtol=1e-5)
    assert loss.weight == batch["weight"].sum()
    chex.assert_trees_all_close(metrics["fit/error"], loss)
    np.testing.assert_allclose(metrics["fit/grad_norm"].total, jnp.linalg.norm(gradient), rtol=1e-5)
    assert metrics["fit/skipped"] == Mean(0, 1)
    assert set(metrics) == {"fit/loss", "fit/error", "fit/grad_norm", "fit/skipped"}


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_microbatches_of_unequal_weight_make_the_same_step(accumulate, whole):
    start, batch = begin(LINE), make_batch()
    result = compiled(LINE, accumulate=accumulate)(start, batch)
    chex.assert_trees_all_close(result, whole, rtol=1e-5, atol=1e-5)

    # What this holds against: means of microbatches, averaged.
    parts = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
    w = start.params["a"]["w"]
    naive = w - np.mean([jax.grad(weighted_mean)(w, part) for part in parts], 0)
    assert np.abs(naive - whole[0].params["a"]["w"]).max() > 0.1


def test_accumulate_must_divide_the_batch():
    with pytest.raises(ValueError, match="accumulate=3 must divide the batch on a device, 8"):
        jax.eval_shape(make_step(LINE, seed=SEED, accumulate=3), begin(LINE), make_batch())


@pytest.mark.parametrize(
    "out",
    [
        lambda x: Out(x.mean(), jnp.ones(B)),
        lambda x: Out(x, jnp.ones(())),
        lambda x: Out(x[:, None], jnp.ones((B, 1))),
        lambda x: Out(x, jnp.ones(B), metrics={"mean": x.mean()}),
        lambda x: Out(x.astype(jnp.bfloat16), jnp.ones(B)),
    ],
    ids=["mean loss", "scalar weight", "rank 2", "scalar metric", "bfloat16 loss"],
)
def test_loss_must_keep_examples_apart(out):
    loss = lambda params, stats, batch, keys, mode: out(batch["x"] @ params["a"]["w"])
    task = make_task(Phase("fit", ("a",), loss, optax.sgd(1.0)))
    with pytest.raises(AssertionError):
        jax.eval_shape(make_step(task, seed=SEED), begin(task), make_batch())


# Law 1: a phase writes only the networks it trains


def test_a_metric_must_not_hide_the_steps_own():
    def loss(params, stats, batch, keys, mode):
        error = jnp.square(batch["x"] @ params["a"]["w"])
        return Out(error, batch["weight"], metrics={"grad_norm": error})

    task = make_task(Phase("fit", ("a",), loss, optax.sgd(1.0)))
    with pytest.raises(ValueError, match=r"^phase 'fit' calls a metric 'grad_norm'"):
        jax.eval_shape(make_step(task, seed=SEED), begin(task), make_batch())


def test_phase_writes_only_what_it_trains():
    def loss(params, stats, batch, keys, mode):
        # Reads and would gladly change everything.
        w = sum(params[n]["w"] for n in ("a", "b", "frozen"))
        error = jnp.square(batch["x"] @ w)
        return Out(error, jnp.ones(B), {n: {"mean": jnp.ones(3)} for n in params})

    task = make_task(
        Phase("first", ("a",), loss, optax.adam(0.1)),
        Phase("second", ("b",), fit_line("b"), optax.adam(0.1), start=10),
        networks=("a", "b", "frozen"),
    )
    start = begin(task)
    state, _ = compiled(task)(start, make_batch())
    for network in ("b", "frozen"):
        chex.assert_trees_all_equal(state.params[network], start.params[network])
        chex.assert_trees_all_equal(state.stats[network], start.stats[network])
    chex.assert_trees_all_equal(state.opt["second"], start.opt["second"])
    assert (state.params["a"]["w"] != start.params["a"]["w"]).all()
    assert (state.stats["a"]["mean"] == 1).all()


def test_phases_see_what_those_before_them_changed():
    tx = optax.sgd(0.1)

    def follow(params, stats, batch, keys, mode):
        gap = jnp.sum(jnp.square(params["b"]["w"] - params["a"]["w"])) + stats["a"]["mean"].sum()
        return Out(jnp.full(B, gap), jnp.ones(B))

    first, second = Phase("a", ("a",), fit_line("a"), tx), Phase("b", ("b",), follow, tx)
    batch = make_batch()
    for phases in [(first, second), (second, first)]:
        task = make_task(*phases)
        start = begin(task)
        state, metrics = compiled(task)(start, batch)
        seen = state if phases[0] is first else start
        gap = jnp.sum(jnp.square(start.params["b"]["w"] - seen.params["a"]["w"]))
        expected = gap + seen.stats["a"]["mean"].sum()
        np.testing.assert_allclose(
            metrics["b/loss"].total / metrics["b/loss"].weight, expected, rtol=1e-5
        )


# Law 3: randomness is addressed


def noisy(network: str) -> Any:
    def loss(params, stats, batch, keys, mode):
        noise = normal(keys, ())
        return Out(noise * params[network]["w"].sum(), batch["weight"], metrics={"noise": noise})

    return loss


def noise_of(metrics: Any, phase: str) -> float:
    return float(metrics[f"{phase}/noise"].total)


def test_key_is_of_seed_phase_step_and_example():
    task = make_task(Phase("p", ("a",), noisy("a"), optax.sgd(0.0)))
    step, state, batch = compiled(task), begin(task), make_batch()
    for i in range(3):
        keys = example_keys(jax.random.fold_in(stream(SEED, "p"), i), jnp.arange(B))
        expected = jnp.sum(normal(keys, ()) * batch["weight"])
        state, metrics = step(state, batch)
        np.testing.assert_allclose(noise_of(metrics, "p"), expected, rtol=1e-6)

    _, in_parts = compiled(task, accumulate=4)(begin(task), batch)
    _, at_once = step(begin(task), batch)
    np.testing.assert_allclose(noise_of(in_parts, "p"), noise_of(at_once, "p"), rtol=1e-5)


def test_another_phase_does_not_change_the_randomness_of_one():
    p, q = (Phase(name, (n,), noisy(n), optax.sgd(0.0)) for name, n in [("p", "a"), ("q", "b")])
    batch, seen = make_batch(), []
    for phases in [(p,), (p, q), (q, p)]:
        task = make_task(*phases)
        seen.append(compiled(task)(begin(task), batch)[1])
    assert noise_of(seen[0], "p") == noise_of(seen[1], "p") == noise_of(seen[2], "p")
    assert noise_of(seen[1], "q") == noise_of(seen[2], "q") != noise_of(seen[1], "p")


# Law 4: statistics are linear averages


def test_statistics_average_over_microbatches(whole):
    expected = {"mean": make_batch()["x"].mean(0)}
    chex.assert_trees_all_close(whole[0].stats["a"], expected, rtol=1e-6)
    state, _ = compiled(LINE, accumulate=2)(begin(LINE), make_batch())
    chex.assert_trees_all_close(state.stats["a"], expected, rtol=1e-5)


# Schedules


def test_phases_run_when_they_are_due():
    schedules = {"always": (1, 0), "third": (3, 0), "late": (1, 4), "both": (2, 3)}
    task = make_task(
        *(
            Phase(n, (n,), fit_line(n), optax.adam(0.1), every=every, start=start)
            for n, (every, start) in schedules.items()
        ),
        networks=tuple(schedules),
    )
    step, state, runs = compiled(task), begin(task), {n: [] for n in schedules}
    for i in range(9):
        before, (state, metrics) = state, step(state, make_batch(i))
        for name in schedules:
            of_phase = {n: m for n, m in metrics.items() if n.startswith(f"{name}/")}
            changed = (state.params[name]["w"] != before.params[name]["w"]).all()
            if changed:
                runs[name].append(i)
                assert all(m.weight > 0 for m in of_phase.values())
            else:
                of_state = lambda s, n=name: (s.params[n], s.stats[n], s.opt[n])
                chex.assert_trees_all_equal(of_state(state), of_state(before))
                assert all(m == Mean(0, 0) for m in of_phase.values())
            assert state.opt[name][0].count == len(runs[name])
        assert state.step == i + 1
    assert runs == {
        "always": [0, 1, 2, 3, 4, 5, 6, 7, 8],
        "third": [2, 5, 8],
        "late": [4, 5, 6, 7, 8],
        "both": [3, 5, 7],
    }


# Sharing an optimiser


def shared(tx: Any, **penalty: Any) -> Task:
    """Fit a line, and every second step shrink it, with the same moments."""

    def shrink(params, stats, batch, keys, mode):
        size = jnp.sum(jnp.square(params["a"]["w"]))
        return Out(jnp.full(B, size), jnp.ones(B))

    options = {"every": 2, "optimiser": "fit", **penalty}
    return make_task(
        Phase("fit", ("a",), fit_line("a"), tx),
        Phase("shrink", ("a",), shrink, tx, **options),
        Phase("other", ("b",), fit_line("b"), tx),
    )


def test_phases_share_one_optimiser_and_both_move_its_moments():
    tx = optax.adam(0.1)
    task = shared(tx)
    step, state = compiled(task), begin(task)
    assert set(state.opt) == {"fit", "other"}
    w = {"a": state.params["a"]}
    opt = tx.init(w)
    counts = []
    for i in range(4):
        batch = make_batch(i)
        state, metrics = step(state, batch)
        descents = [lambda w: weighted_mean(w["a"]["w"], batch)]
        if i % 2:
            descents.append(lambda w: jnp.sum(jnp.square(w["a"]["w"])))
        for loss in descents:
            updates, opt = tx.update(jax.grad(loss)(w), opt)
            w = optax.apply_updates(w, updates)
        counts.append(int(state.opt["fit"][0].count))
        chex.assert_trees_all_close(
            (state.params["a"], state.opt["fit"]), (w["a"], opt), rtol=1e-4, atol=1e-6
        )
        assert metrics["shrink/loss"].weight == (B if i % 2 else 0)
    assert counts == [1, 3, 4, 6]
    assert state.opt["other"][0].count == 4


def test_a_shared_optimiser_is_not_one_of_its_own():
    tx = optax.sgd(0.02, momentum=0.9)
    results = []
    for optimiser in ("fit", None):
        task = shared(tx, optimiser=optimiser)
        step, state = compiled(task), begin(task)
        for i in range(4):
            state, _ = step(state, make_batch(i))
        results.append(np.asarray(state.params["a"]["w"]))
    assert set(state.opt) == {"fit", "shrink", "other"}
    assert np.abs(results[0] - results[1]).max() > 0.01


def test_a_dropped_step_leaves_shared_moments():
    """The second phase is not finite, so what it leaves is what the first made."""

    def broken(params, stats, batch, keys, mode):
        return Out(batch["y"] * params["a"]["w"].sum() * jnp.nan, jnp.ones(B))

    tx = optax.adam(0.1)
    fit = Phase("fit", ("a",), fit_line("a"), tx)
    task = make_task(fit, Phase("broken", ("a",), broken, tx, optimiser="fit"))
    state, metrics = compiled(task)(begin(task), make_batch())
    alone = make_task(fit)
    expected, _ = compiled(alone)(begin(alone), make_batch())
    chex.assert_trees_all_close(
        (state.params, state.opt["fit"]), (expected.params, expected.opt["fit"]), rtol=1e-6
    )
    assert metrics["broken/skipped"] == Mean(1, 1)


@pytest.mark.parametrize(
    ("optimiser", "trains", "like"),
    [
        ("other", ("a",), r"\['fit'\]"),  # trains another network
        ("fit", ("a", "b"), r"\[\]"),  # trains more
        ("missing", ("a",), r"\['fit'\]"),
        ("shrink", ("a",), r"\['fit'\]"),  # has none of its own
    ],
)
def test_an_optimiser_is_shared_for_the_same_networks(optimiser, trains, like):
    task = shared(optax.sgd(0.1))
    fit, shrink, other = task.phases
    shrink = shrink._replace(trains=trains, optimiser=optimiser)
    message = rf"phase 'shrink' shares optimiser='{optimiser}'; .* are {like}"
    with pytest.raises(ValueError, match=message):
        begin(task._replace(phases=(fit, shrink, other)))


# What is not finite


def distance(params, stats, batch, keys, mode):
    # At 0 the distance is finite and its gradient is not.
    error = jnp.linalg.norm(batch["x"] * params["a"]["w"], axis=-1) + batch["y"]
    return Out(error, batch["weight"], {"a": {"mean": batch["x"].mean(0)}}, {"error": error})


FRAGILE = make_task(
    Phase("distance", ("a",), distance, optax.adam(0.1)),
    Phase("fit", ("b",), fit_line("b"), optax.adam(0.1)),
)


@pytest.fixture(scope="module")
def fragile_step():
    return compiled(FRAGILE)


@pytest.mark.parametrize(
    ("name", "value"), [("y", np.nan), ("y", np.inf), ("x", np.nan), ("x", 0.0), ("x", 1e25)]
)
def test_what_is_not_finite_is_dropped(name, value, fragile_step):
    before, _ = fragile_step(begin(FRAGILE), make_batch())
    bad = make_batch(1)
    bad[name] = bad[name].at[0].set(value)
    after, metrics = fragile_step(before, bad)

    phase = lambda state: (state.params["a"], state.stats["a"], state.opt["distance"])
    chex.assert_trees_all_equal(phase(after), phase(before))
    assert after.step == before.step + 1 == 2
    assert metrics["distance/skipped"] == Mean(1, 1)
    for dropped in ("loss", "grad_norm", "error"):
        assert metrics[f"distance/{dropped}"] == Mean(0, 0)
    # The other phase is judged by itself.
    healthy = name == "x" and value == 0
    assert metrics["fit/skipped"] == Mean(1 - healthy, 1)
    assert (after.params["b"]["w"] != before.params["b"]["w"]).all() == healthy
    if not healthy:
        chex.assert_trees_all_equal(after._replace(step=before.step), before)

    recovered, metrics = fragile_step(after, make_batch(2))
    assert metrics["distance/skipped"] == metrics["fit/skipped"] == Mean(0, 1)
    assert (recovered.params["a"]["w"] != after.params["a"]["w"]).all()
    chex.assert_tree_all_finite(recovered)


# Averages


def test_average_moves_by_its_decay_after_a_warm_up():
    decay = 0.5
    task = make_task(
        Phase("fit", ("a",), fit_line("a"), optax.sgd(0.02)),
        Phase("other", ("b",), fit_line("b"), optax.sgd(0.02)),
        average={"a": decay},
    )
    step, state = compiled(task), begin(task)
    expected = jax.tree.map(np.float64, {"params": state.params["a"], "stats": state.stats["a"]})
    decays = []
    for t in range(12):
        state, _ = step(state, make_batch(t))
        decays.append(min(decay, (1 + t) / (10 + t)))
        now = {"params": state.params["a"], "stats": state.stats["a"]}
        expected = jax.tree.map(
            lambda a, x: decays[-1] * a + (1 - decays[-1]) * np.float64(x), expected, now
        )
    assert decays[0] == 0.1 and decays[-2:] == [decay, decay]
    assert set(state.ema) == {"a"}
    chex.assert_trees_all_close(state.ema["a"], expected, rtol=1e-5)

    params, stats = averaged(state)
    chex.assert_trees_all_equal(params["a"], state.ema["a"]["params"])
    chex.assert_trees_all_equal(stats["a"], state.ema["a"]["stats"])
    assert (params["a"]["w"] != state.params["a"]["w"]).all()
    chex.assert_trees_all_equal((params["b"], stats["b"]), (state.params["b"], state.stats["b"]))


# The start


def test_a_count_is_not_averaged():
    def start(key, batch):
        return {"a": {"w": jnp.ones(3)}}, {"a": {"seen": jnp.int32(0)}}

    def loss(params, stats, batch, keys, mode):
        error = jnp.square(batch["x"] @ params["a"]["w"])
        return Out(error, batch["weight"])

    task = Task(start, (Phase("fit", ("a",), loss, optax.sgd(0.1)),), lambda *_: None, {"a": 0.9})
    state = begin(task)
    state = state._replace(stats={"a": {"seen": jnp.int32(7)}})
    state, _ = compiled(task)(state, make_batch())
    seen = state.ema["a"]["stats"]["seen"]
    assert seen == 7 and seen.dtype == jnp.int32


def test_no_two_leaves_of_a_state_share_a_buffer():
    def start(key, batch):
        shared = jnp.arange(4.0)
        return {"a": {"u": shared, "v": shared}}, {"a": {"s": shared}}

    loss = lambda params, stats, batch, keys, mode: Out(
        batch["y"] * params["a"]["u"].sum(), jnp.ones(B)
    )
    phase = Phase("fit", ("a",), loss, optax.adam(0.1))
    task = Task(start, (phase,), lambda *args: None, {"a": 0.9})
    make = lambda key, batch: init(task, key, batch)
    for run in (make, jax.jit(make)):
        state = run(stream(SEED, "init"), make_batch())
        pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
        assert len(set(pointers)) == len(pointers)
    donating = jax.jit(make_step(task, seed=SEED), donate_argnums=0)
    new, _ = donating(state, make_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert new.step == 1


@pytest.mark.parametrize(
    ("phases", "average", "message"),
    [
        ([("p", "a"), ("q", "b"), ("p", "b")], {}, "two phases share a name: .*p.*q.*p"),
        ([("p", "c")], {}, r"phase 'p' trains \['c'\]; the networks are \['a', 'b'\]"),
        ([("p", "a")], {"c": 0.9}, r"average names \['c'\]; the networks are \['a', 'b'\]"),
    ],
)
def test_names_must_be_right(phases, average, message):
    phases = (Phase(name, (n,), fit_line("a"), optax.sgd(0.1)) for name, n in phases)
    with pytest.raises(ValueError, match=message):
        begin(make_task(*phases, average=average))


@pytest.mark.parametrize(
    ("phase", "average", "accumulate", "message"),
    [
        ({"every": 0}, {}, 1, "every=0 must be at least 1"),
        ({"start": -1}, {}, 1, "start=-1 must not be negative"),
        ({}, {"a": 1.5}, 1, r"average\['a'\]=1.5 must lie in \[0, 1\]"),
        ({}, {}, 0, "accumulate=0 must be at least 1"),
    ],
)
def test_numbers_must_make_sense(phase, average, accumulate, message):
    task = make_task(Phase("p", ("a",), fit_line("a"), optax.sgd(0.1), **phase), average=average)
    with pytest.raises(ValueError, match=message):
        step = make_step(task, seed=SEED, accumulate=accumulate)
        jax.eval_shape(step, begin(task), make_batch())


def test_leaves_of_a_batch_must_agree():
    bad = {**make_batch(), "y": jnp.zeros(7)}
    with pytest.raises(ValueError, match=r"batch\['y'\] has shape \(7,\)|must lead with"):
        jax.eval_shape(make_step(LINE, seed=SEED), begin(LINE), bad)


def test_loss_is_told_how_it_is_evaluated():
    modes = []

    def loss(params, stats, batch, keys, mode):
        modes.append(mode)
        return fit_line("a")(params, stats, batch, keys, mode)

    task = make_task(Phase("fit", ("a",), loss, optax.sgd(0.1)))
    jax.eval_shape(make_step(task, seed=SEED), begin(task), make_batch())
    assert {(mode.train, mode.axis) for mode in modes} == {(True, None)}


# Types


def test_bfloat16_computes_and_float32_remembers():
    def run(dtype):
        network = nn.Dense(1, dtype=dtype)

        def start(key, batch):
            return {"a": network.init(key, batch["x"])["params"]}, {}

        def loss(params, stats, batch, keys, mode):
            output = network.apply({"params": params["a"]}, batch["x"])
            assert output.dtype == dtype
            error = jnp.square(output[:, 0].astype(jnp.float32) - batch["y"])
            return Out(error, batch["weight"])

        phase = Phase("fit", ("a",), loss, optax.sgd(0.01, momentum=0.9))
        task = Task(start, (phase,), lambda *args: None, {"a": 0.9})
        step, state = compiled(task), begin(task)
        for i in range(3):
            state, _ = step(state, make_batch(i))
        return state

    state, reference = run(jnp.bfloat16), run(jnp.float32)
    chex.assert_trees_all_equal_dtypes(state, reference)
    floats = jax.tree.leaves((state.params, state.opt, state.ema))
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}
    chex.assert_trees_all_close(state.params, reference.params, atol=0.02)
    # Updates too small for bfloat16 to hold are kept.
    kernel = np.asarray(state.params["a"]["kernel"])
    assert (kernel != kernel.astype(jnp.bfloat16).astype(np.float32)).all()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_knows_its_step(accumulate):
    def annealed(params, stats, batch, keys, mode):
        value = jnp.sum(params["a"]["w"]) * jnp.ones(len(keys)) * mode.step
        return Out(value, jnp.ones(len(keys)), metrics={"step": jnp.ones(len(keys)) * mode.step})

    task = make_task(Phase("a", ("a",), annealed, optax.sgd(1.0)))
    state, step = begin(task), compiled(task, accumulate=accumulate)
    for i in range(3):
        before = state.params["a"]["w"]
        state, metrics = step(state, make_batch())
        mean = metrics["a/step"]
        assert mean.total / mean.weight == i
        np.testing.assert_allclose(before - state.params["a"]["w"], i, rtol=1e-6)
