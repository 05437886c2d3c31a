"""One evaluation of samples against real data, every number beside what real data itself scores."""

from typing import Any

import numpy as np

from aigc_jax.metrics.classes import agreement, class_entropy
from aigc_jax.metrics.features import as_features
from aigc_jax.metrics.frechet import fit, frechet_distance
from aigc_jax.metrics.kernel import kernel_distance
from aigc_jax.metrics.neighbours import nearest
from aigc_jax.metrics.precision_recall import density_coverage, precision_recall


def report(
    fake_features: Any,
    real_train_features: Any,
    real_test_features: Any,
    *,
    name: str,
    fake_classes: Any = None,
    asked: Any = None,
    ema: bool = False,
    seed: int = 0,
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
        fake_features: (n, d) of the samples.
        real_train_features: (r, d) of the training split.
        real_test_features: (t, d) of the test split. Each of the three needs more rows than d.
        name: of the feature space, such as the judge's.
        fake_classes: (n,) integers, what the judge takes the samples for, or None.
        asked: (n,) integers, what the samples were to be, or None.
        ema: whether the samples are of averaged weights.
        seed: of the draws of training examples and of the subsets.

    Returns:
        {key: value} in the order of the table.

    Raises:
        ValueError: a set has no more rows than features, is not finite or not as wide as the
            others; or `asked` came without `fake_classes`, or either is not (n,).
    """
    test = _enough(as_features(real_test_features, "real_test_features"), "real_test_features")
    width = test.shape[1]
    fake = _enough(as_features(fake_features, "fake_features", width), "fake_features")
    train = as_features(real_train_features, "real_train_features", width)
    train = _enough(train, "real_train_features")
    if asked is not None and fake_classes is None:
        raise ValueError("asked needs fake_classes, what the judge takes the samples for")
    for what, labels in (("fake_classes", fake_classes), ("asked", asked)):
        if labels is not None and np.shape(labels) != (len(fake),):
            raise ValueError(f"{what} has shape {np.shape(labels)}; there are {len(fake)} samples")

    m = min(len(fake), len(train))
    real = train[np.random.default_rng(seed).choice(len(train), m, replace=False)]
    scores, floors = _against(test, fake, seed), _against(test, real, seed)
    n = f"{len(fake)}-ema" if ema else f"{len(fake)}"
    result = {}
    for metric, value in scores.items():
        result[f"{metric}_{name}/test-{n}"] = value
        result[f"{metric}_{name}_floor/test-{m}"] = floors[metric]
        if metric == "fcd":
            ratio = value / floors[metric] if floors[metric] else float("inf")
            result[f"fcd_{name}_ratio/test-{n}"] = ratio
    result[f"nearest_{name}/train-{n}"] = float(np.median(nearest(fake, train).distance))
    floor = float(np.median(nearest(test, train).distance))
    result[f"nearest_{name}_floor/train-{len(test)}"] = floor
    if fake_classes is not None:
        counts = np.unique(np.asarray(fake_classes), return_counts=True)[1]
        result[f"entropy_{name}/{n}"] = class_entropy(counts)
        result[f"classes_{name}/{n}"] = float(len(counts))
    if asked is not None:
        result[f"agreement_{name}/{n}"] = agreement(asked, fake_classes)
    return result


def _against(real: np.ndarray, fake: np.ndarray, seed: int) -> dict[str, float]:
    size = min(1000, len(real) // 2, len(fake) // 2)
    precision, recall = precision_recall(real, fake)
    density, coverage = density_coverage(real, fake)
    return {
        "fcd": frechet_distance(fit(real), fit(fake)),
        "kid": kernel_distance(real, fake, size=size, seed=seed)[0],
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }


def _enough(x: np.ndarray, name: str) -> np.ndarray:
    if len(x) <= max(x.shape[1], 5):
        raise ValueError(
            f"{name} has {len(x)} rows of {x.shape[1]} features; a report needs more rows than "
            "features, and at least 6"
        )
    return x
