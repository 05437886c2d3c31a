import math
import re

import numpy as np
import pytest

from aigc_jax.core.types import Model
from aigc_jax.data.sources import arrays, stacked
from aigc_jax.metrics.judge import Judge
from aigc_jax.metrics.modes import (
    count_modes,
    evaluate_modes,
    judge_triples,
    modes_floor,
    perfect_modes,
)
from aigc_jax.metrics.pictures import to_uint8

EVERY = np.stack(np.unravel_index(np.arange(1000), (10, 10, 10)), axis=1)
# Class k is grey level k: the judge reads it off the mean.
JUDGE = Judge(
    features=lambda x: x.reshape(len(x), -1),
    classes=lambda x: np.round((x.mean((1, 2, 3)) + 0.9) * 5).astype(int),
    name="grey",
    accuracy=1.0,
)


def pictures(triples):
    return np.broadcast_to((triples / 5 - 0.9)[:, None, None], (len(triples), 2, 2, 3))


def test_one_mode_is_as_far_from_all_as_can_be():
    assert count_modes([[7, 0, 3]] * 50) == (1, pytest.approx(math.log(1000)))


def test_all_modes_evenly_are_at_no_distance():
    modes, kl = count_modes(np.tile(EVERY, (3, 1)))
    assert modes == 1000
    assert kl == pytest.approx(0, abs=1e-12)
    assert kl >= 0


def test_the_order_of_channels_makes_a_mode():
    assert count_modes([[1, 2, 3], [3, 2, 1], [2, 1, 3]])[0] == 3


def test_the_divergence_weighs_modes_by_their_shares():
    kl = count_modes([[0, 0, 0]] * 3 + [[1, 1, 1]], classes=2)[1]
    assert kl == pytest.approx(0.75 * math.log(0.75 * 8) + 0.25 * math.log(0.25 * 8))


def test_a_perfect_sampler_scores_what_is_expected_of_it():
    modes, expected = perfect_modes(26_000)
    assert modes == pytest.approx(1000, abs=1e-6)
    assert expected == pytest.approx(0.01934, abs=1e-5)
    rng = np.random.default_rng(0)
    draws = [count_modes(rng.integers(10, size=(26_000, 3))) for _ in range(40)]
    assert {found for found, _ in draws} == {1000}
    kl = np.array([kl for _, kl in draws])
    assert kl.mean() == pytest.approx(expected, abs=4 * 0.0008 / math.sqrt(40))
    assert kl.std() == pytest.approx(math.sqrt(500) / 26_000, abs=0.0003)


def test_few_perfect_samples_cannot_reach_every_mode():
    assert perfect_modes(1) == (pytest.approx(1), pytest.approx(math.log(1000)))
    # Of two draws from eight modes, one in eight falls on the same: log 8 of it, else log 4.
    modes, kl = perfect_modes(2, classes=2)
    assert modes == pytest.approx(2 - 1 / 8)
    assert kl == pytest.approx((math.log(8) + 7 * math.log(4)) / 8)
    rng = np.random.default_rng(0)
    draws = [count_modes(rng.integers(10, size=(2600, 3))) for _ in range(40)]
    np.testing.assert_allclose(np.mean(draws, axis=0), perfect_modes(2600), rtol=0.01)


def test_each_channel_is_classified_by_itself():
    # More than one call of the judge, the last one not full.
    np.testing.assert_array_equal(judge_triples(pictures(EVERY[:700]), JUDGE), EVERY[:700])
    levels = to_uint8(pictures(EVERY[:20]))
    np.testing.assert_array_equal(judge_triples(levels, JUDGE), EVERY[:20])


def test_an_evaluation_counts_the_modes_of_what_is_drawn():
    seen = {}

    def draw(n, **options):
        seen.update(options)
        return np.pad(pictures(EVERY[np.arange(n) % 5]), ((0, 0), (1, 1), (1, 1), (0, 0)))

    view = lambda x: x[:, 1:-1, 1:-1]
    floor = modes_floor(JUDGE, n=20)
    scores = evaluate_modes(
        Model({}, {}, draw), JUDGE, floor, n=20, seed=3, view=view, truncation=0.5
    )
    assert seen == {"seed": 3, "truncation": 0.5}
    assert scores["modes_grey/20"] == 5
    assert scores["kl_grey/20"] == pytest.approx(math.log(1000 / 5))
    floors = scores["modes_grey_floor/uniform-20"], scores["kl_grey_floor/uniform-20"]
    assert floors == perfect_modes(20)
    assert len(scores) == 4


def test_real_images_are_the_floor_where_they_are_given():
    # Three of ten classes in the test split: 27 modes at most, which the floor must say.
    image = to_uint8(pictures(np.stack([np.arange(10)] * 3, axis=1))[..., :1])
    grey = arrays({"image": image}, {"image": image[2:5]})
    data = stacked(grey, train=1, test=400)
    model = Model({}, {}, lambda n, seed: pictures(EVERY[:n]))
    scores = evaluate_modes(model, JUDGE, modes_floor(JUDGE, data, n=300), n=300, ema=True)
    assert list(scores) == [
        "modes_grey/300-ema",
        "kl_grey/300-ema",
        "modes_grey_floor/test-300",
        "kl_grey_floor/test-300",
    ]
    assert scores["modes_grey/300-ema"] == 300
    assert scores["modes_grey_floor/test-300"] == 27
    expected = math.log(1000 / 27) + perfect_modes(300, classes=3)[1]
    assert scores["kl_grey_floor/test-300"] == pytest.approx(expected, abs=0.05)
    # A test split of fewer gives all it has, and says so.
    assert "modes_grey_floor/test-40" in modes_floor(JUDGE, stacked(grey, train=1, test=40), n=300)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: count_modes([[0, 1]]), "triples has shape (1, 2); they are (n, 3)"),
        (lambda: count_modes([[0, 1, 10]]), "labels run from 0 to 10; there are 10 classes"),
        (lambda: count_modes([[0.0, 1, 2]]), "labels is float64"),
        (lambda: count_modes(np.zeros((0, 3), int)), "labels is int64 of shape (0,)"),
        (lambda: perfect_modes(0), "n=0 must be at least 1"),
        (lambda: perfect_modes(5, classes=1), "classes=1 must be at least 2"),
        (lambda: judge_triples(np.zeros((2, 4, 4, 1)), JUDGE), "images has shape (2, 4, 4, 1)"),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()
