import numpy as np
import pytest

from aigc_jax.core.types import Model
from aigc_jax.data.batches import whole
from aigc_jax.data.sources import arrays
from aigc_jax.data.transforms import normalise
from aigc_jax.metrics.conditional import evaluate_classes, picture_classes
from aigc_jax.metrics.judge import Judge
from aigc_jax.metrics.pictures import to_uint8
from aigc_jax.metrics.unconditional import judge_data

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


def model(draw):
    return Model({}, {}, draw)


def test_a_perfect_model_scores_as_real_data_does():
    scores = evaluate_classes(
        model(lambda n, cond, **_: images(cond["label"])),
        JUDGE,
        REAL,
        classes=3,
    )
    assert scores["agreement_grey/120-ema"] == 1
    assert scores["entropy_grey/120-ema"] == pytest.approx(np.log(3))
    assert scores["recall_grey/test-120-ema"] > 0.8
    assert scores["judge_accuracy_grey/test-150"] == 0.9
    assert scores["fcd_grey/test-120-ema"] < 0.05


def test_a_model_that_ignores_the_label_is_found_out():
    stuck = model(lambda n, cond, **_: images(np.zeros(n, int)))
    scores = evaluate_classes(stuck, JUDGE, REAL, classes=3)
    assert scores["agreement_grey/120-ema"] == pytest.approx(1 / 3)
    assert scores["classes_grey/120-ema"] == 1
    assert scores["recall_grey/test-120-ema"] < 0.5
    assert scores["fcd_grey/test-120-ema"] > 1


def test_options_reach_the_sampler():
    seen = {}

    def draw(n, cond, **options):
        seen.update(options)
        return images(cond["label"])

    evaluate_classes(model(draw), JUDGE, REAL, classes=3, seed=5, steps=7)
    assert seen == {"seed": 5, "steps": 7}


def test_classes_are_asked_for_as_evenly_as_their_number_allows():
    asked = []

    def draw(n, cond, **_):
        asked.append(np.bincount(cond["label"]).tolist())
        return images(cond["label"])

    for n in (120, 100):
        evaluate_classes(model(draw), JUDGE, judge_data(JUDGE, DATA, n=n), classes=3)
    assert asked == [[40, 40, 40], [34, 33, 33]]


def test_pictures_have_a_row_a_class_and_samples_beside_their_neighbours():
    train = whole(DATA.train, normalise)["image"]
    exact = {k: train[k * 100 : k * 100 + 4] for k in range(3)}
    drawn = model(lambda n, cond, **_: np.concatenate([exact[k] for k in range(3)]))
    pictures = picture_classes(drawn, DATA, columns=4, scale=2)
    assert pictures["samples"].shape == (3 * (4 + 2) + 2, 4 * (4 + 2) + 2, 3)
    grid = pictures["neighbours"]
    # Each sample is a training image: its nearest neighbour, after the double gap, is itself.
    left, right = grid[2:6, 2:6], grid[2:6, 10:14]
    np.testing.assert_array_equal(left, right)
