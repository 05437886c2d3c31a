from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.types import Model
from aigc_jax.data.batches import batched
from aigc_jax.data.sources import arrays
from aigc_jax.metrics.judge import Judge, accuracy, train_judge
from experiments.classifier_digits import classifier_digits


def test_a_function_is_traced_once_whatever_the_numbers_of_images():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def features(x):
        return jnp.mean(x, axis=(1, 2))

    judge = Judge(
        features=lambda images: batched(features, images, size=8),
        classes=lambda images: batched(features, images, size=8).argmax(axis=1),
        name="test",
        accuracy=1.0,
    )
    for n in (3, 8, 20):
        images = np.eye(3, dtype=np.float32)[np.arange(n) % 3].reshape(n, 1, 1, 3)
        assert judge.features(images).shape == (n, 3)
        assert judge.classes(images).tolist() == [i % 3 for i in range(n)]


def test_accuracy_is_the_share_of_right_answers_on_the_test_split():
    image = np.full((4, 2, 2, 1), 255, np.uint8)
    data = arrays(
        {"image": image[:1], "label": np.array([5])},
        {"image": image, "label": np.array([1, 1, 2, 1])},
    )
    draw = lambda n, cond: {"label": cond["image"][:n, 0, 0, 0].astype(int)}  # white is 1
    assert accuracy(Model({}, {}, draw), data) == {"accuracy/test-4": 0.75}


def test_it_says_so_before_it_trains_and_only_then(tmp_path, monkeypatch, capsys):
    data = arrays(*[{"image": np.zeros((1, 8, 8, 1), np.uint8), "label": np.array([0])}] * 2)

    def fit(experiment, out, identity):
        assert experiment.evaluate is None
        out.mkdir(exist_ok=True)
        draw = lambda n, cond: {"label": np.zeros(n, int), "features": np.ones((n, 2))}
        return SimpleNamespace(interrupted=False, model=Model({}, {}, draw))

    monkeypatch.setattr("aigc_jax.metrics.judge.fit", fit)
    judges = [train_judge(classifier_digits, data, name="x", directory=tmp_path) for _ in range(2)]
    assert judges[1].accuracy == 1.0
    said = capsys.readouterr().err
    assert said.startswith("training ") and said.count("\n") == 1
    assert str(next(tmp_path.iterdir())) in said
