import numpy as np
import pytest

from aigc_jax.core.types import Model
from aigc_jax.data.batches import whole
from aigc_jax.data.sources import arrays
from aigc_jax.data.transforms import normalise
from aigc_jax.metrics.collapse import collapse
from aigc_jax.metrics.conditional import evaluate_classes
from aigc_jax.metrics.judge import Judge
from aigc_jax.metrics.pictures import to_uint8
from aigc_jax.metrics.unconditional import (
    evaluate_samples,
    evaluator,
    judge_data,
    picture_samples,
)

RNG = np.random.default_rng(0)
LEVELS = np.array([-0.8, 0.0, 0.8], np.float32)


def images(label):
    """Class k is grey level k, with a little noise: four pixels, so that covariances exist."""
    noise = RNG.normal(0, 0.05, (len(label), 2, 2, 1))
    return (LEVELS[label][:, None, None, None] + noise).astype(np.float32)


def classes(image):
    return np.abs(image.mean((1, 2, 3))[:, None] - LEVELS).argmin(1)


JUDGE = Judge(lambda x: x.reshape(len(x), -1), classes, "grey", 0.9)


def split(n):
    label = np.repeat(np.arange(3), n)
    return {"image": to_uint8(images(label)), "label": label}


DATA = arrays(split(100), split(50), classes=("dark", "grey", "light"))

REAL = judge_data(JUDGE, DATA, n=120)


def padded(x):
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)


def crop(x):
    return x[:, 1:-1, 1:-1]


def test_a_perfect_model_scores_as_real_data_does():
    model = Model({}, {}, lambda n, **_: images(np.arange(n) % 3))
    scores = evaluate_samples(model, JUDGE, REAL, ema=True)
    assert scores["entropy_grey/120-ema"] == pytest.approx(np.log(3))
    assert scores["recall_grey/test-120-ema"] > 0.8
    assert scores["judge_accuracy_grey/test-150"] == 0.9
    assert scores["fcd_grey/test-120-ema"] < 0.05
    assert not any(key.startswith("agreement") for key in scores)
    assert collapse(scores, {}, classes=3) is None


def test_a_model_of_one_class_is_found_out_and_warned_of():
    model = Model({}, {}, lambda n, **_: images(np.zeros(n, int)))
    scores = evaluate_samples(model, JUDGE, REAL, ema=False)
    assert scores["classes_grey/120"] == 1
    said = collapse(scores, {}, classes=3)
    assert said is not None
    assert "classes_grey/120 is 1, the data has 3" in said
    assert "entropy_grey/120 is 0 of log 3 = 1.099" in said


def test_the_same_images_are_judged_alike_asked_for_or_not():
    drawn = images(np.repeat(np.arange(3), 40))
    free = evaluate_samples(Model({}, {}, lambda n, **_: drawn), JUDGE, REAL, ema=True)
    asked = evaluate_classes(Model({}, {}, lambda n, cond, **_: drawn), JUDGE, REAL, classes=3)
    assert asked == free | {"agreement_grey/120-ema": 1.0}


def test_padded_samples_are_judged_and_pictured_by_their_view():
    drawn = images(np.arange(120) % 3)
    plain = Model({}, {}, lambda n, **_: drawn[:n])
    large = Model({}, {}, lambda n, **_: padded(drawn[:n]))
    expected = evaluate_samples(plain, JUDGE, REAL, ema=False)
    assert evaluate_samples(large, JUDGE, REAL, ema=False, view=crop) == expected
    pictures = [
        picture_samples(plain, DATA, n=12, columns=4),
        picture_samples(large, DATA, n=12, columns=4, view=crop),
    ]
    for name in ("samples", "neighbours"):
        np.testing.assert_array_equal(pictures[0][name], pictures[1][name])
    conditional = Model({}, {}, lambda n, cond, **_: padded(images(cond["label"])))
    scores = evaluate_classes(conditional, JUDGE, REAL, classes=3, view=crop, ema=False)
    assert scores["agreement_grey/120"] == 1


def test_options_reach_the_sampler():
    seen = []

    def draw(n, **options):
        seen.append(options)
        return images(np.zeros(n, int))

    evaluate_samples(Model({}, {}, draw), JUDGE, REAL, ema=False, seed=5, truncation=0.7)
    picture_samples(Model({}, {}, draw), DATA, n=10, seed=6, truncation=0.8)
    assert seen == [{"seed": 5, "truncation": 0.7}, {"seed": 6, "truncation": 0.8}]


def test_pictures_are_a_grid_and_the_first_of_each_row_beside_its_neighbours():
    train = whole(DATA.train, normalise)["image"]
    model = Model({}, {}, lambda n, **_: train[:n])
    pictures = picture_samples(model, DATA, n=12, columns=4, scale=2)
    assert pictures["samples"].shape == (3 * (4 + 2) + 2, 4 * (4 + 2) + 2, 3)
    grid = pictures["neighbours"]
    assert grid.shape[0] == 3 * (4 + 2) + 2
    # Each sample is a training image: its nearest neighbour, after the double gap, is itself.
    np.testing.assert_array_equal(grid[2:6, 2:6], grid[2:6, 10:14])
    np.testing.assert_array_equal(grid[2:6, 2:6], pictures["samples"][2:6, 2:6])


def test_the_judge_is_trained_and_real_data_read_at_the_first_evaluation_only(monkeypatch):
    trained, seen = [], []

    def train(make, data, *, name):
        trained.append((make, data, name))
        return JUDGE._replace(features=lambda x: seen.append(len(x)) or JUDGE.features(x))

    monkeypatch.setattr("aigc_jax.metrics.unconditional.train_judge", train)
    evaluate = evaluator(make := lambda: None, DATA, name="grey", n=120, ema=False, view=crop)
    assert trained == []
    for shade in (0, 1):
        model = Model({}, {}, lambda n, seed, k=shade: padded(images(np.full(n, k))))
        assert evaluate(model)["classes_grey/120"] == 1
    assert trained == [(make, DATA, "grey")]
    assert seen == [300, 150, 120, 120]


def test_another_evaluation_takes_the_place_of_unconditional_samples(monkeypatch):
    monkeypatch.setattr("aigc_jax.metrics.unconditional.train_judge", lambda *_, **__: JUDGE)
    evaluate = evaluator(
        lambda: None, DATA, name="grey", n=120, evaluate=evaluate_classes, classes=3, steps=7
    )

    def draw(n, cond, *, seed, steps):
        assert steps == 7
        return images(cond["label"])

    assert evaluate(Model({}, {}, draw))["agreement_grey/120-ema"] == 1
