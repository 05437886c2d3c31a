import numpy as np
import pytest
from numpy.testing import assert_allclose

from aigc_jax.metrics.precision_recall import density_coverage, precision_recall, radii


def by_loops(real, fake, k):
    """Precision, recall, density and coverage, by their definitions and nothing else."""

    def distance(a, b):
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5

    def radii(x):
        return [
            sorted(distance(a, b) for j, b in enumerate(x) if j != i)[k - 1]
            for i, a in enumerate(x)
        ]

    def hits(points, centres):
        balls = list(zip(centres, radii(centres), strict=True))
        return [[distance(p, c) <= r for c, r in balls] for p in points]

    n, m = len(real), len(fake)
    inside = hits(fake, real)
    return (
        sum(map(any, inside)) / m,
        sum(map(any, hits(real, fake))) / n,
        sum(map(sum, inside)) / (k * m),
        sum(map(any, zip(*inside, strict=True))) / n,
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_all_four_are_their_definitions_however_chunked(k, chunk):
    rng = np.random.default_rng(k)
    real, fake = rng.normal(size=(20, 2)), 0.8 * rng.normal(size=(14, 2)) + 0.7
    precision, recall, density, coverage = by_loops(real.tolist(), fake.tolist(), k)
    assert 0 < recall < 1
    assert 0 < coverage < 1
    assert_allclose(precision_recall(real, fake, k=k, chunk=chunk), (precision, recall))
    assert_allclose(density_coverage(real, fake, k=k, chunk=chunk), (density, coverage))


def test_points_on_a_line_give_the_values_worked_by_hand():
    real, fake = [[0.0], [1.0], [2.0], [10.0]], [[3.0], [4.0], [82.0]]
    # At k = 1 the radii are 1, 1, 1, 8 and 1, 1, 78. 3 is on the edge of the ball of 2 and inside
    # that of 10, 4 is inside that of 10, 82 in none; 2 is on the edge of that of 3, 10 inside that
    # of 82, 0 and 1 in none.
    assert_allclose(precision_recall(real, fake, k=1), (2 / 3, 2 / 4))
    assert_allclose(density_coverage(real, fake, k=1), (3 / 3, 2 / 4))


def test_known_radii_of_the_real_set_stand_for_measuring_them():
    rng = np.random.default_rng(5)
    real, fake = rng.normal(size=(30, 2)), rng.normal(size=(20, 2))
    for metric in (precision_recall, density_coverage):
        known = metric(real, fake, k=4, real_radii=radii(real, k=4))
        assert known == metric(real, fake, k=4)
        assert metric(real, fake, k=4, real_radii=np.zeros(30))[0] == 0
        with pytest.raises(ValueError, match=r"^real_radii has shape \(20,\); real has 30 rows$"):
            metric(real, fake, k=4, real_radii=radii(fake, k=4))


def test_copies_of_the_real_set_are_perfect():
    # Each ball holds its centre and its k neighbours: density (k + 1) / k, ties being inside.
    x = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32) + 5
    assert precision_recall(x, x) == (1.0, 1.0)
    assert_allclose(density_coverage(x, x), (6 / 5, 1.0))


def test_two_sets_of_one_distribution_have_the_expected_density_and_coverage():
    n, m, k = 40, 60, 3
    rng = np.random.default_rng(1)
    values = np.array(
        [
            density_coverage(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), k=k)
            for _ in range(300)
        ]
    )
    i = np.arange(1, k + 1)
    expected = 1.0, 1 - np.prod((n - i) / (m + n - i))
    assert (np.abs(values.mean(axis=0) - expected) < 3 * values.std(axis=0) / np.sqrt(300)).all()


def test_dropping_modes_lowers_diversity_and_not_fidelity():
    rng = np.random.default_rng(2)
    modes = 20 * np.eye(4)

    def draw(kept):
        return modes[rng.integers(0, kept, size=200)] + rng.normal(size=(200, 4))

    real = draw(4)
    all_pr, half_pr = (precision_recall(real, draw(kept)) for kept in (4, 2))
    all_dc, half_dc = (density_coverage(real, draw(kept)) for kept in (4, 2))
    assert all_pr[1] > 0.85
    assert half_pr[1] < 0.55
    assert half_pr[0] > 0.85
    assert all_dc[1] > 0.85
    assert half_dc[1] < 0.55
    assert half_dc[0] > 0.85


def test_one_sample_repeated_has_precision_but_no_recall():
    real = np.random.default_rng(3).normal(size=(100, 3))
    fake = np.repeat(real[:1], 50, axis=0)
    assert precision_recall(real, fake) == (1.0, 0.01)  # its own copy, at the edge of a radius of 0
    assert density_coverage(real, fake)[1] < 0.2


def test_strays_inflate_recall_and_not_coverage():
    # Two samples in a far corner make balls, as far as their kin, that swallow all the real ones.
    rng = np.random.default_rng(4)
    real = rng.normal(size=(100, 2))
    fake = np.concatenate([rng.normal(size=(2, 2)), rng.normal(size=(2, 2)) + 30])
    assert precision_recall(real, fake)[1] > 0.9
    assert density_coverage(real, fake)[1] < 0.3


def test_too_few_rows_for_k_are_refused():
    x = np.zeros((9, 2))
    with pytest.raises(ValueError, match=r"^k=3 must be at least 1 and below the 3 rows of fake$"):
        precision_recall(x, x[:3])
    with pytest.raises(ValueError, match=r"^k=5 .* the 5 rows of real$"):
        density_coverage(x[:5], x)
    with pytest.raises(ValueError, match=r"^k=0 "):
        density_coverage(x, x, k=0)
