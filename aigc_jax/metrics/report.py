"""One evaluation of samples against real data, every number beside what real data itself scores."""

from typing import Any, NamedTuple

import numpy as np

from aigc_jax.metrics.classes import agreement, class_entropy
from aigc_jax.metrics.features import as_features
from aigc_jax.metrics.frechet import fit, frechet_distance
from aigc_jax.metrics.kernel import kernel_distance
from aigc_jax.metrics.neighbours import nearest
from aigc_jax.metrics.precision_recall import density_coverage, precision_recall, radii


class Reference(NamedTuple):
    """What samples are held against: real data in a feature space, measured once for many reports.

    Attributes:
        name: of the feature space, such as the judge's.
        n: samples in a report.
        train: (r, d) features of the training split.
        test: (t, d) features of the test split.
        radii: k -> (t,) the radii of the balls about the test split.
        floors: metric -> what real data scores.
        seed: of the draw of training examples and of the subsets.
    """

    name: str
    n: int
    train: np.ndarray
    test: np.ndarray
    radii: dict[int, np.ndarray]
    floors: dict[str, float]
    seed: int


def reference(
    train_features: Any, test_features: Any, *, name: str, n: int = 1000, seed: int = 0
) -> Reference:
    """Measure real data once: what as many real training examples score in the samples' place.

    Args:
        train_features: (r, d) of the training split.
        test_features: (t, d) of the test split. Each needs more rows than d.
        name: of the feature space, such as the judge's.
        n: samples in a report, more than d; a training split of fewer gives all it has.
        seed: of the draw of training examples and of the subsets.

    Raises:
        ValueError: `n` is no more than the features are, a set has no more rows than features or is
            not finite, or they are not equally wide.
    """
    test = _enough(as_features(test_features, "test_features"), "test_features")
    if n <= max(test.shape[1], 5):
        raise ValueError(f"n={n} must be more than the {test.shape[1]} features, and at least 6")
    train = as_features(train_features, "train_features", test.shape[1])
    train = _enough(train, "train_features")
    real = Reference(name, n, train, test, {k: radii(test, k=k) for k in (3, 5)}, {}, seed)
    places = np.random.default_rng(seed).choice(len(train), min(n, len(train)), replace=False)
    floors = _against(real, train[places])
    return real._replace(floors=floors | {"nearest": _nearest(real, test)})


def report(
    fake_features: Any,
    real: Reference,
    *,
    fake_classes: Any = None,
    asked: Any = None,
    ema: bool = False,
) -> dict[str, float]:
    """Judge samples in a feature space, against the real test split.

    A key says what was measured, in whose features, against which split and on how many samples:
    `recall_digits/test-1000`; `-ema` follows for averaged weights. Beside each stands its floor,
    `recall_digits_floor/test-1000`: what as many real training examples score in the samples'
    place, by the same estimator. A training split of fewer gives all it has, and the floor's key
    says how many. No model is expected to do better than real data: one that does, by more than
    noise, has copied the test split or the judge is blind to what it does worse.

    | metric | what |
    |---|---|
    | `fcd`, `fcd_*_ratio` | the Fréchet distance, and its ratio to its floor |
    | `kid` | the kernel distance: mean of 100 subsets of 1000, or of half of a smaller set |
    | `precision`, `recall` | at k = 3 |
    | `density`, `coverage` | at k = 5 |
    | `nearest` | median distance to the nearest training example; the floor is the test split's |
    | `entropy` | of the judged classes, in nats; no floor |
    | `classes` | how many classes the samples are judged to be of; no floor |
    | `agreement` | share of samples judged of the class asked for; no floor |

    Args:
        fake_features: (n, d) of the samples, as many as the reference expects, more than d.
        real: what `reference` measured.
        fake_classes: (n,) integers, what the judge takes the samples for, or None.
        asked: (n,) integers, what the samples were to be, or None.
        ema: whether the samples are of averaged weights.

    Returns:
        {key: value} in the order of the table.

    Raises:
        ValueError: the features are not (n, d), more than d and finite; or `asked` came without
            `fake_classes`, or either is not (n,).
    """
    fake = as_features(fake_features, "fake_features", real.test.shape[1])
    fake = _enough(fake, "fake_features")
    if len(fake) != real.n:
        raise ValueError(f"fake_features has {len(fake)} rows; the reference is for {real.n}")
    if asked is not None and fake_classes is None:
        raise ValueError("asked needs fake_classes, what the judge takes the samples for")
    for what, labels in (("fake_classes", fake_classes), ("asked", asked)):
        if labels is not None and np.shape(labels) != (len(fake),):
            raise ValueError(f"{what} has shape {np.shape(labels)}; there are {len(fake)} samples")

    name, m = real.name, min(real.n, len(real.train))
    n = f"{real.n}-ema" if ema else f"{real.n}"
    result = {}
    for metric, value in _against(real, fake).items():
        floor = real.floors[metric]
        result[f"{metric}_{name}/test-{n}"] = value
        result[f"{metric}_{name}_floor/test-{m}"] = floor
        if metric == "fcd":
            result[f"fcd_{name}_ratio/test-{n}"] = value / floor if floor else float("inf")
    result[f"nearest_{name}/train-{n}"] = _nearest(real, fake)
    result[f"nearest_{name}_floor/train-{len(real.test)}"] = real.floors["nearest"]
    if fake_classes is not None:
        counts = np.unique(np.asarray(fake_classes), return_counts=True)[1]
        result[f"entropy_{name}/{n}"] = class_entropy(counts)
        result[f"classes_{name}/{n}"] = float(len(counts))
    if asked is not None:
        result[f"agreement_{name}/{n}"] = agreement(asked, fake_classes)
    return result


def _against(real: Reference, fake: np.ndarray) -> dict[str, float]:
    size = min(1000, len(real.test) // 2, len(fake) // 2)
    precision, recall = precision_recall(real.test, fake, k=3, real_radii=real.radii[3])
    density, coverage = density_coverage(real.test, fake, k=5, real_radii=real.radii[5])
    return {
        "fcd": frechet_distance(fit(real.test), fit(fake)),
        "kid": kernel_distance(real.test, fake, size=size, seed=real.seed)[0],
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }


def _nearest(real: Reference, rows: np.ndarray) -> float:
    return float(np.median(nearest(rows, real.train).distance))


def _enough(x: np.ndarray, name: str) -> np.ndarray:
    if len(x) <= max(x.shape[1], 5):
        raise ValueError(
            f"{name} has {len(x)} rows of {x.shape[1]} features; a report needs more rows than "
            "features, and at least 6"
        )
    return x
