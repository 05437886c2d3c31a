"""Beam search finds what transformers' finds, token for token, by the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.data.tokens import bucket
from aigc_jax.samplers.autoregressive import Decoder
from aigc_jax.samplers.beam import beam_search

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # PyTorch's own warnings

V, REACH, PAD = 40, 4, 0
PROMPTS = [[5, 6, 7, 8, 9], [11], [3, 3, 12, 30, 31, 2, 22, 17], [39, 1]]


def table(seed, ends, eager):
    """Return weights (REACH, V, V) of the latest tokens, by which those of `ends` do occur."""
    weights = np.random.default_rng(seed).normal(size=(REACH, V, V)).astype(np.float32)
    weights[:, :, list(ends)] += eager
    weights[:, :, PAD] -= 5
    return weights


def decoder(weights):
    """Predict from the latest tokens in the cache, which holds them themselves."""
    weights = jnp.asarray(weights)

    def extend(tokens, cache, slot, start):
        (b, t), rows = tokens.shape, jnp.arange(len(tokens))[:, None]
        own = jnp.broadcast_to(slot, (b,))[:, None] + jnp.arange(t)
        cache = cache.at[rows, own].set(tokens)
        logits = 0
        for d in range(REACH):
            part = weights[d][cache[rows, jnp.maximum(own - d, 0)]]
            logits += jnp.where((own - d >= start[:, None])[..., None], part, 0)
        return logits, cache

    return Decoder(lambda batch, slots: jnp.zeros((batch, slots), jnp.int32), extend)


def search_theirs(weights, prompts, length, stop, **options):
    """Search by transformers' `generate`, over a model that looks its logits up alike."""
    import torch
    from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    weights = torch.from_numpy(weights)

    class Table(PreTrainedModel, GenerationMixin):
        config_class = PretrainedConfig
        main_input_name = "input_ids"

        def __init__(self):
            super().__init__(PretrainedConfig(vocab_size=V, is_decoder=True, use_cache=False))
            self.parameter = torch.nn.Parameter(torch.zeros(()))

        def forward(self, input_ids, attention_mask, **_):
            logits = 0
            for d in range(min(REACH, input_ids.shape[1])):
                column = input_ids.shape[1] - 1 - d
                logits = logits + weights[d][input_ids[:, column]] * attention_mask[:, column, None]
            return CausalLMOutput(logits=logits[:, None])

        def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
            return {"input_ids": input_ids, "attention_mask": attention_mask}

    tokens, start = bucket(prompts, PAD)
    mask = torch.from_numpy((np.arange(tokens.shape[1]) >= start[:, None]).astype(np.int64))
    config = GenerationConfig(
        num_beams=options["beams"],
        length_penalty=options["length_penalty"],
        max_new_tokens=length,
        eos_token_id=list(stop) or None,
        pad_token_id=PAD,
        do_sample=False,
        early_stopping=False,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    with torch.no_grad():
        found = (
            Table()
            .eval()
            .generate(
                torch.from_numpy(tokens.astype(np.int64)),
                attention_mask=mask,
                generation_config=config,
            )
        )
    text = found.sequences.numpy()[:, tokens.shape[1] :]
    return text, found.sequences_scores.numpy()


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize(
    ("beams", "stop", "eager"),
    [(4, (7,), 0.4), (2, (7, 13, 29), 0.3), (7, (7,), 1.0), (4, (), 0.0)],
)
def test_texts_and_scores_are_theirs(beams, stop, eager, penalty):
    length, ends = 24, set()
    options = {"beams": beams, "length_penalty": penalty}
    run = jax.jit(
        lambda weights, tokens, start: beam_search(
            decoder(weights), tokens, start, length=length, stop=stop, pad=PAD, **options
        )
    )
    for seed in range(4):
        weights = table(seed, stop, eager)
        expected, expected_scores = search_theirs(weights, PROMPTS, length, stop, **options)
        text, scores = run(weights, *bucket(PROMPTS, PAD))
        assert (expected != PAD).any(1).all()
        # Theirs is cut behind the longest; behind an end it may stand filled by that token.
        width = expected.shape[1]
        for row, theirs in zip(np.asarray(text), expected, strict=True):
            hits = np.flatnonzero(np.isin(theirs, stop))
            end = hits[0] + 1 if len(hits) else width
            np.testing.assert_array_equal(row[:end], theirs[:end])
            assert (row[end:] == PAD).all()
            ends.add(int(end))
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-5)
    assert len(ends) > 1 or not stop  # texts of several lengths were among them
