import numpy as np
import pytest

from aigc_jax.core.types import Model
from aigc_jax.data.sources import arrays
from aigc_jax.metrics.codebook import evaluate_codebook


def test_codes_are_counted_over_all_examples_and_by_batches():
    code = np.array([0, 0, 0, 2, 2, 2, 2, 5], np.int32)[:, None].repeat(4, 1)
    data = arrays({"code": code}, {"code": code})
    encode = lambda params, stats, batch: batch["code"] + params["shift"]
    model = Model({"shift": np.int32(1)}, {}, None)
    scores = evaluate_codebook(model, encode, 10, data, transform=None, batch=4)
    entropy = lambda *p: -sum(q * np.log(q) for q in p)
    whole = np.exp(entropy(3 / 8, 4 / 8, 1 / 8))
    of_4 = np.exp(entropy(1 / 4, 3 / 4))
    expected = {"codes/test-8": 3, "perplexity/test-8": whole, "perplexity_of_4/test-8": of_4}
    assert scores == pytest.approx(expected, rel=1e-5)
    some = evaluate_codebook(model, encode, 10, data, transform=None, n=7, batch=3)
    assert some.keys() == {"codes/test-6", "perplexity/test-6", "perplexity_of_3/test-6"}
    assert some["perplexity_of_3/test-6"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"^batch=9 must be at most the number of examples"):
        evaluate_codebook(model, encode, 10, data, transform=None, batch=9)
