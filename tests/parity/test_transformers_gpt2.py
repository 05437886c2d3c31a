"""GPT-2s that go from transformers to here, and back, compute and write the same."""

import jax
import numpy as np
import pytest
from random_gpt2 import END, LENGTH, SIZES, filled, logits_theirs, prompts, theirs, write_theirs

from aigc_jax.core.keys import stream
from aigc_jax.models.gpt import GPT
from aigc_jax.pretrained.gpt2 import gpt_shapes, read_gpt2, write_gpt2
from aigc_jax.samplers.autoregressive import generate
from aigc_jax.samplers.beam import beam_search
from aigc_jax.tasks.lm import decoder

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # PyTorch's own warnings


def logits_ours(network, params, tokens):
    return jax.jit(network.apply)({"params": params}, tokens)


@pytest.mark.parametrize("size", SIZES)
def test_from_transformers_and_back(size, tmp_path):
    from transformers import GPT2LMHeadModel

    model = theirs(size)
    model.save_pretrained(tmp_path, max_shard_size="1MB" if size == "medium" else "5GB")
    assert size != "medium" or (tmp_path / "model.safetensors.index.json").exists()
    network, params = read_gpt2(tmp_path)
    tokens = prompts(model, length=80)
    expected = logits_theirs(model, tokens)
    assert expected.std() > 1
    np.testing.assert_allclose(logits_ours(network, params, tokens), expected, atol=1e-4, rtol=0)

    shard = 10**6 if size == "medium" else 10**9
    write_gpt2(tmp_path / "back", network, params, end=END, shard=shard)
    back, info = GPT2LMHeadModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()) and back.config.eos_token_id == END
    np.testing.assert_array_equal(logits_theirs(back.eval(), tokens), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_ours_goes_to_transformers(tied, tmp_path):
    from transformers import AutoModelForCausalLM

    network = GPT(61, 40, 3, 4, 32, tied=tied, dropout=0.25)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32),
        jax.eval_shape(network.init, stream(0, "init"), np.zeros((1, 2), np.int32))["params"],
    )
    assert len(jax.tree.leaves(params)) == len(gpt_shapes(network))
    write_gpt2(tmp_path, network, params)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert model.config.embd_pdrop == 0.25
    tokens = prompts(model, length=40)
    expected = logits_ours(network, params, tokens)
    assert np.std(expected) > 1
    np.testing.assert_allclose(logits_theirs(model, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", ["tiny", "medium"])
def test_what_is_written_is_theirs(size, tmp_path):
    """Greedily and by four beams, over 64 tokens."""
    model = theirs(size)
    model.save_pretrained(tmp_path)
    network, params = read_gpt2(tmp_path)
    tokens = prompts(model)
    options = {"length": LENGTH, "stop": (END,), "pad": 0}

    @jax.jit
    def run(params, tokens):
        read = decoder(network, {"gpt": params})
        keys = jax.random.split(stream(0, "sample"), len(tokens))
        greedy = generate(read, tokens, None, keys, temperature=0.0, **options)
        return greedy, beam_search(read, tokens, None, beams=4, **options)[0]

    greedy, beams = map(np.asarray, run(params, tokens))
    np.testing.assert_array_equal(greedy, filled(write_theirs(model, tokens)))
    np.testing.assert_array_equal(beams, filled(write_theirs(model, tokens, num_beams=4)))
    assert len(np.unique(greedy)) > 20  # it does not repeat itself
