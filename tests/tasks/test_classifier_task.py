import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.types import Mode
from aigc_jax.models.bert import BERT, TextClassifier
from aigc_jax.models.convnet import ConvNet
from aigc_jax.tasks.classifier import classifier, text_classifier
from aigc_jax.train.step import averaged, init, make_step

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [-3.0, 1.0, 4.0]], np.float32)
LABEL = np.array([0, 1, 1])
KEYS = example_keys(stream(0, "test"), jnp.arange(3))


class Table(nn.Module):
    """Logits that are parameters, whatever the image."""

    @nn.compact
    def __call__(self, image, *, train=False, axis=None):
        logits = self.param("logits", lambda key: jnp.asarray(LOGITS))
        return logits, jnp.zeros((len(image), 2))


def evaluate(label=LABEL, **options):
    task = classifier(Table(), optax.sgd(0.1), **options)
    batch = {"image": jnp.zeros((3, 2, 2, 1)), "label": jnp.asarray(label)}
    params, stats = task.init(stream(0, "init"), batch)
    return task, task.phases[0].loss(params, stats, batch, KEYS, Mode(train=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_is_the_smoothed_cross_entropy(smoothing):
    _, out = evaluate(smoothing=smoothing)
    logits = LOGITS.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    # Szegedy et al. 2016, §7: (1 - ε)·H(q, p) + ε·H(u, p), u uniform.
    expected = -(1 - smoothing) * log_p[range(3), LABEL] - smoothing * log_p.mean(1)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5)
    assert out.weight.tolist() == [1, 1, 1]


def test_a_label_that_is_no_class_is_not_another():
    _, out = evaluate(label=np.array([0, 3, 1]))
    assert np.isnan(out.loss).tolist() == [False, True, False]


def test_accuracy_is_each_examples_own():
    _, out = evaluate()
    assert out.metrics["accuracy"].tolist() == [1, 0, 0]


def test_task_is_of_one_network():
    task, out = evaluate(decay=0.5)
    assert [(p.name, p.trains) for p in task.phases] == [("classifier", ("classifier",))]
    assert task.average == {"classifier": 0.5}
    assert out.stats == {"classifier": {}}  # it has no BatchNorm


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_must_be_less_than_all(smoothing):
    with pytest.raises(ValueError, match=rf"smoothing={smoothing} must be in \[0, 1\)"):
        classifier(Table(), optax.sgd(0.1), smoothing=smoothing)


def test_there_is_nothing_to_classify_without_images():
    task, _ = evaluate()
    with pytest.raises(ValueError, match="its cond must hold `image`"):
        task.sample({}, {}, KEYS, {})


def test_a_few_images_are_learned_by_heart():
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.uniform(-1, 1, (12, 4, 4, 1)), jnp.float32),
        "label": jnp.asarray(rng.permutation(np.arange(12) % 3)),
    }
    task = classifier(
        ConvNet(3, channels=(8,), features=16, dropout=0.1), optax.adam(1e-2), decay=0.9
    )
    start = jax.jit(lambda key: init(task, key, batch))(stream(0, "init"))
    step = jax.jit(make_step(task, seed=0))
    state, first = step(start, batch)

    # One step in, the average is a tenth of the start and nine tenths of the step.
    of_state = lambda s: (s.params["classifier"], s.stats["classifier"])
    expected = jax.tree.map(lambda a, x: 0.1 * a + 0.9 * x, of_state(start), of_state(state))
    params, stats = averaged(state)
    chex.assert_trees_all_close(
        (params["classifier"], stats["classifier"]), expected, rtol=1e-4, atol=1e-6
    )
    assert set(stats["classifier"]) == {"BatchNorm_0", "BatchNorm_1"}
    mean = lambda stats: np.asarray(stats["classifier"]["BatchNorm_0"]["mean"])
    assert (mean(stats) != mean(state.stats)).any()

    for _ in range(60):
        state, last = step(state, batch)
    assert float(first["classifier/loss"].total) / 12 > 0.8
    assert float(last["classifier/loss"].total) / 12 < 0.2

    judged = jax.jit(task.sample)(*averaged(state), KEYS, {"image": batch["image"]})
    assert judged["label"].tolist() == batch["label"].tolist()
    assert (judged["logits"].argmax(-1) == judged["label"]).all()
    assert judged["logits"].shape == (12, 3) and judged["features"].shape == (12, 16)


def test_a_text_classifier_learns_what_is_in_a_text():
    """Which of two tokens is there, wherever: from a BERT's weights, and past padding."""
    network = TextClassifier(BERT(8, 6, 1, 2, 16, scan=False), 2)
    task = text_classifier(network, optax.adam(1e-2))
    rng = np.random.default_rng(0)
    tokens, label = rng.integers(3, 8, (32, 6), np.int32), rng.integers(0, 2, 32)
    tokens[:, 0] = 0
    tokens[np.arange(32), rng.integers(1, 4, 32)] = 1 + label
    mask = (np.arange(6) < rng.integers(4, 7, (32, 1))).astype(np.float32)
    batch = {"tokens": jnp.asarray(tokens), "label": jnp.asarray(label), "mask": jnp.asarray(mask)}
    state = jax.jit(functools.partial(init, task))(stream(0, "init"), batch)
    step = jax.jit(make_step(task, seed=0))
    for _ in range(80):
        state, metrics = step(state, batch)
    assert metrics["classifier/accuracy"].total == 32
    given = {name: batch[name] for name in ("tokens", "mask")}
    sample = jax.jit(task.sample)
    drawn = sample(state.params, {}, KEYS, given)
    np.testing.assert_array_equal(drawn["label"], label)
    padded = given | {"tokens": jnp.where(mask > 0, tokens, 7)}
    again = sample(state.params, {}, KEYS, padded)
    np.testing.assert_allclose(again["logits"], drawn["logits"], atol=1e-5)
    # Its encoder has the shapes of one that learned to fill in what is hidden.
    of = jax.eval_shape(
        lambda: network.bert.init(stream(0, "init"), tokens, method="summarise")["params"]
    )
    chex.assert_trees_all_equal_shapes(state.params["classifier"]["bert"], of)
    with pytest.raises(ValueError, match="its cond must hold `tokens`"):
        task.sample(state.params, {}, KEYS, {})
