"""Mode collapse, said as it happens."""

import math
import warnings
from collections.abc import Callable, Mapping

from aigc_jax.core.types import Model

ADVICE = (
    "try a lower learning rate of the discriminator, R1 and R2 or a gradient penalty, "
    "differentiable augmentation, or stopping at the best checkpoint"
)


def collapse(
    scores: Mapping[str, float], best: Mapping[str, float], *, classes: int = 0
) -> str | None:
    """Say in one line that samples have lost diversity, and what to try; or None if they have not.

    It reads the keys of `report` and `evaluate_modes`:

    | metric | against the best so far | against real data, at the first evaluation too |
    |---|---|---|
    | `recall` | less than ½ of it | less than ¼ of its floor |
    | `classes` | less by ⅕ or more | fewer than `classes` |
    | `modes` | less by ⅕ or more | less than its floor by ⅕ or more |
    | `entropy` | | less than ⅔ of log(`classes`) |

    Recall moves by some hundredths between evaluations of 1,000 samples, so half is no noise. A
    generator that is not trained yet shows the same signs as one that has collapsed.

    Args:
        scores: of one evaluation.
        best: the highest value of each key before it; empty at the first.
        classes: how many classes the data has; 0 leaves out what is held against that.

    >>> collapse({"classes_mnist/1000": 10.0}, {}, classes=10)
    >>> collapse({"classes_mnist/1000": 7.0}, {}, classes=10).partition(":")[0]
    'the samples lack diversity (classes_mnist/1000 is 7, the data has 10)'
    """
    floors = {
        key.partition("_floor/")[0]: value for key, value in scores.items() if "_floor/" in key
    }
    signs = []
    for key, value in scores.items():
        if "_floor/" in key:
            continue
        stem = key.partition("/")[0]
        before, floor = best.get(key, -math.inf), floors.get(stem, -math.inf)
        fell = f"{key} is {value:.4g}, at its best {before:.4g}"
        below = f"{key} is {value:.4g}, real data's {floor:.4g}"
        match stem.partition("_")[0]:
            case "recall" if value < before / 2:
                signs.append(fell)
            case "recall" if value < floor / 4:
                signs.append(below)
            case "classes" | "modes" if value <= 0.8 * before:
                signs.append(fell)
            case "modes" if value <= 0.8 * floor:
                signs.append(below)
            case "classes" if value < classes:
                signs.append(f"{key} is {value:.4g}, the data has {classes}")
            case "entropy" if classes and value < 2 / 3 * math.log(classes):
                signs.append(f"{key} is {value:.4g} of log {classes} = {math.log(classes):.4g}")
    return f"the samples lack diversity ({'; '.join(signs)}): {ADVICE}" if signs else None


def watch_collapse(
    evaluate: Callable[[Model], dict[str, float]], *, classes: int = 0
) -> Callable[[Model], dict[str, float]]:
    """Make an evaluation warn of a collapse as it happens; its scores stay what they are.

    It remembers the best of each score from evaluation to evaluation, of this process: a resumed
    run is at first held against real data alone.

    Args:
        evaluate: `(model) -> scores`, such as `evaluator` makes.
        classes: how many classes the data has; 0 if that is not known.

    Returns:
        `(model) -> scores`, which warns where `collapse` has something to say.

    >>> watched = watch_collapse(lambda model: {"classes_mnist/1000": 10.0}, classes=10)
    >>> watched(Model({}, {}, None))
    {'classes_mnist/1000': 10.0}
    """
    best: dict[str, float] = {}

    def watched(model: Model) -> dict[str, float]:
        scores = evaluate(model)
        if sign := collapse(scores, best, classes=classes):
            warnings.warn(sign, stacklevel=2)
        for key, value in scores.items():
            best[key] = max(value, best.get(key, value))
        return scores

    return watched
