"""Logits are adjusted as transformers adjusts them, each way alone and all in its order."""

import numpy as np
import pytest

from aigc_jax.functional.logits import adjust_logits

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # PyTorch's own warnings

B, V, PAD = 6, 50, 0
RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(B, V))).astype(np.float32)
TOKENS = RNG.integers(1, V, (B, 12))
START = np.array([0, 3, 11, 5, 0, 7])
COUNTS = np.arange(12) >= START[:, None]

OPTIONS = {
    "repetition_penalty": 1.4,
    "temperature": 0.8,
    "top_k": 20,
    "top_p": 0.85,
    "min_p": 0.08,
}
# All runs of neighbours in the order, each option alone among them, and extremes.
CASES = [dict(list(OPTIONS.items())[i:j]) for i in range(len(OPTIONS)) for j in range(i + 1, 6)] + [
    {"repetition_penalty": 0.7},
    {"temperature": 3.0, "top_p": 0.3},
    {"top_k": 80},
    {"top_p": 0.01},
]


def theirs(options):
    """Run the list of processors that `generate` would make of these options."""
    import torch
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_layer=1, n_head=1, n_embd=4))
    off = {"top_k": 0, "top_p": 1.0}
    config = GenerationConfig(do_sample=True, **(off | options))
    mask = torch.from_numpy(COUNTS.astype(np.int64))
    processors = model._get_logits_processor(
        config, input_ids_seq_length=12, model_kwargs={"attention_mask": mask}
    )
    return processors(torch.from_numpy(TOKENS), torch.from_numpy(LOGITS.copy())).numpy()


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(options))
def test_logits_are_adjusted_alike(options):
    expected = theirs(options)
    actual = np.asarray(adjust_logits(LOGITS, TOKENS, COUNTS, **options))
    np.testing.assert_array_equal(np.isinf(actual), np.isinf(expected))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert not np.array_equal(expected, LOGITS) or options == {"top_k": 80}
