import json
import math
import re

import numpy as np
import pytest

from aigc_jax.metrics.frechet import fit, frechet_distance
from aigc_jax.metrics.neighbours import nearest
from aigc_jax.metrics.precision_recall import density_coverage, precision_recall
from aigc_jax.metrics.report import reference, report

RNG = np.random.default_rng(0)
TRAIN, TEST = RNG.normal(size=(300, 4)), RNG.normal(size=(120, 4))


def judged(fake, train=TRAIN, *, seed=0, **options):
    real = reference(train, TEST, name="toy", n=len(fake), seed=seed)
    return report(fake, real, **options)


def test_each_number_is_that_of_its_own_metric_and_its_floor_that_of_real_data():
    fake = 0.5 * RNG.normal(size=(80, 4)) + 0.3
    got = judged(fake, seed=3)
    assert got["fcd_toy/test-80"] == pytest.approx(frechet_distance(fit(TEST), fit(fake)))
    assert (got["precision_toy/test-80"], got["recall_toy/test-80"]) == precision_recall(TEST, fake)
    assert (got["density_toy/test-80"], got["coverage_toy/test-80"]) == density_coverage(TEST, fake)
    assert got["nearest_toy/train-80"] == np.median(nearest(fake, TRAIN).distance)
    assert got["nearest_toy_floor/train-120"] == np.median(nearest(TEST, TRAIN).distance)
    ratio = got["fcd_toy/test-80"] / got["fcd_toy_floor/test-80"]
    assert got["fcd_toy_ratio/test-80"] == pytest.approx(ratio)
    assert got["fcd_toy_ratio/test-80"] > 3
    assert got["recall_toy/test-80"] < got["recall_toy_floor/test-80"]
    assert got["kid_toy/test-80"] > got["kid_toy_floor/test-80"]


def test_real_training_data_scores_its_own_floor():
    got = judged(TRAIN)
    for metric in ("fcd", "precision", "recall", "density", "coverage"):
        value, floor = got[f"{metric}_toy/test-300"], got[f"{metric}_toy_floor/test-300"]
        assert value == pytest.approx(floor), metric
    assert got["fcd_toy_ratio/test-300"] == pytest.approx(1)
    assert got["nearest_toy/train-300"] == 0


def test_copies_show_beside_the_distance_that_real_test_data_keeps():
    copies = TRAIN[:100] + 0.01 * RNG.normal(size=(100, 4))
    got = judged(copies)
    assert got["nearest_toy/train-100"] < 0.1 * got["nearest_toy_floor/train-120"]


def test_every_metric_has_its_floor_and_keys_are_plain_and_say_what_they_are_of():
    labels = np.arange(80) % 10
    got = judged(TRAIN[:80], TRAIN[:60], fake_classes=labels, asked=labels, ema=True)
    for metric in ("fcd", "kid", "precision", "recall", "density", "coverage"):
        assert f"{metric}_toy/test-80-ema" in got
        # The training split is smaller than the samples are many: the floor says so.
        assert f"{metric}_toy_floor/test-60" in got
    assert {"nearest_toy/train-80-ema", "nearest_toy_floor/train-120"} < set(got)
    assert all(re.fullmatch(r"[\w./-]+", key, re.ASCII) for key in got)
    assert len(got) == 18
    assert all(type(value) is float for value in got.values())
    json.dumps(got, allow_nan=False)


def test_classes_are_reported_when_known():
    labels = np.repeat([0, 1], 40)
    got = judged(TRAIN[:80], fake_classes=labels, asked=np.zeros(80, int))
    assert got["entropy_toy/80"] == pytest.approx(math.log(2))
    assert got["classes_toy/80"] == 2
    assert got["agreement_toy/80"] == 0.5
    judged_only = judged(TRAIN[:80], fake_classes=labels)
    assert set(got) - set(judged_only) == {"agreement_toy/80"}


def test_a_seed_repeats_its_report_and_another_draws_another_floor():
    fake = RNG.normal(size=(50, 4))
    first = judged(fake, seed=1)
    assert judged(fake, seed=1) == first
    other = judged(fake, seed=2)
    assert other["fcd_toy_floor/test-50"] != first["fcd_toy_floor/test-50"]
    assert other["fcd_toy/test-50"] == first["fcd_toy/test-50"]


def test_one_reference_serves_many_reports_each_as_if_alone():
    real = reference(TRAIN, TEST, name="toy", n=50)
    for scale in (1.0, 0.3):
        fake = scale * RNG.normal(size=(50, 4))
        assert report(fake, real) == judged(fake)
        assert {key: value for key, value in report(fake, real).items() if "_floor/" in key} == {
            f"{metric}_toy_floor/{'train-120' if metric == 'nearest' else 'test-50'}": value
            for metric, value in real.floors.items()
        }


def test_bad_sets_are_named_as_the_caller_names_them():
    fake = RNG.normal(size=(50, 4))
    real = reference(TRAIN, TEST, name="toy", n=50)
    for name, call in (
        ("fake_features", lambda x: report(x, real)),
        ("train_features", lambda x: reference(x, TEST, name="toy", n=50)),
        ("test_features", lambda x: reference(TRAIN, x, name="toy", n=50)),
    ):
        with pytest.raises(ValueError, match=f"^{name} has 4 rows of 4 features;"):
            call(fake[:4])
        with pytest.raises(ValueError, match=f"^{name} holds NaN or infinity in 50 of its 50 rows"):
            call(np.full((50, 4), np.nan))
    with pytest.raises(ValueError, match=r"^fake_features has 3 features a row"):
        report(fake[:, :3], real)
    with pytest.raises(ValueError, match=r"^fake_features has 49 rows; the reference is for 50$"):
        report(fake[1:], real)
    with pytest.raises(ValueError, match=r"^n=5 must be more than the 4 features, and at least 6$"):
        reference(TRAIN, TEST, name="toy", n=5)
    with pytest.raises(ValueError, match=r"^asked needs fake_classes"):
        report(fake, real, asked=np.zeros(50, int))
    with pytest.raises(ValueError, match=r"^fake_classes has shape \(3,\); there are 50 samples$"):
        report(fake, real, fake_classes=[1, 2, 3])
