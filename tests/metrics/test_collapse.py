import math
import warnings

import pytest

from aigc_jax.core.types import Model
from aigc_jax.metrics.collapse import collapse, watch_collapse

NONE = Model({}, {}, lambda n: None)
HEALTHY = {
    "recall_mnist/test-1000": 0.6,
    "recall_mnist_floor/test-1000": 0.8,
    "entropy_mnist/1000": 2.25,
    "classes_mnist/1000": 10.0,
    "modes_mnist/26000": 995.0,
    "modes_mnist_floor/test-26000": 1000.0,
}


def signs(best, **changed):
    """Name the metrics that `collapse` complains of in healthy scores but for what is changed."""
    scores = {key: changed.get(key.partition("_")[0], value) for key, value in HEALTHY.items()}
    scores |= {key: value for key, value in HEALTHY.items() if "_floor/" in key}
    said = collapse(scores, best, classes=10)
    return [m for m in ("recall", "classes", "modes", "entropy") if said and f"{m}_mnist/" in said]


def test_healthy_scores_raise_no_warning_first_or_later():
    assert collapse(HEALTHY, {}, classes=10) is None
    assert collapse(HEALTHY, HEALTHY, classes=10) is None
    assert collapse({}, HEALTHY, classes=10) is None


@pytest.mark.parametrize(
    ("metric", "fine", "fallen"),
    [
        ("recall", 0.21, 0.19),  # a quarter of the floor, 0.8
        ("classes", 10, 9),
        ("modes", 801, 800),  # a fifth below the floor, 1000
        ("entropy", 1.54, 1.53),  # ⅔ log 10 = 1.535
    ],
)
def test_the_first_evaluation_is_held_against_real_data(metric, fine, fallen):
    assert signs({}, **{metric: fine}) == []
    assert signs({}, **{metric: fallen}) == [metric]


def test_later_evaluations_are_held_against_the_best_so_far():
    best = {"recall_mnist/test-1000": 0.7}
    assert signs(best, recall=0.36) == []
    assert signs(best, recall=0.34) == ["recall"]
    fewer = {"modes_mnist/2600": 500.0}  # no floor: nothing else is known of it
    assert collapse({"modes_mnist/2600": 401.0}, fewer) is None
    assert collapse({"modes_mnist/2600": 400.0}, fewer) is not None
    many = {"classes_x/100": 100.0}  # of a data set whose number of classes is not known
    assert collapse({"classes_x/100": 81.0}, many) is None
    assert collapse({"classes_x/100": 80.0}, many) is not None


def test_a_warning_is_one_line_of_all_that_fell_and_what_to_try():
    scores = HEALTHY | {"recall_mnist/test-1000": 0.1, "classes_mnist/1000": 6.0}
    said = collapse(scores, HEALTHY, classes=10)
    assert said is not None and "\n" not in said
    assert "recall_mnist/test-1000 is 0.1, at its best 0.6" in said
    assert "classes_mnist/1000 is 6, at its best 10" in said
    for advice in ("learning rate", "R1 and R2", "augmentation", "best checkpoint"):
        assert advice in said


def test_without_classes_nothing_is_held_against_them():
    assert collapse({"classes_x/10": 2.0, "entropy_x/10": 0.1}, {}) is None


def test_a_watch_remembers_the_best_and_hands_scores_on():
    key = "recall_mnist/test-1000"
    values = iter((0.2, 0.6, 0.4, 0.25))
    watched = watch_collapse(lambda model: {key: next(values)})
    for value in (0.2, 0.6, 0.4):
        assert watched(NONE) == {key: value}
    # Against the best, 0.6: against the last, 0.4, it would pass.
    with pytest.warns(UserWarning, match=r"recall_mnist/test-1000 is 0\.25, at its best 0\.6"):
        assert watched(NONE) == {key: 0.25}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch_collapse(lambda model: {key: 0.25})(NONE)  # another watch knows nothing of it


def test_an_untrained_generator_shows_at_the_first_evaluation():
    first = {"entropy_mnist/1000": 0.0, "classes_mnist/1000": 1.0}
    with pytest.warns(UserWarning, match=f"of log 10 = {math.log(10):.4g}"):
        watch_collapse(lambda model: first, classes=10)(NONE)
