"""Adapters that go from PEFT to here, and from here to PEFT, compute and write the same."""

import jax
import numpy as np
import pytest
from random_gpt2 import END, LENGTH, filled, logits_theirs, prompts, theirs, write_theirs

from aigc_jax.core.keys import stream
from aigc_jax.nn.lora import init_lora, lora
from aigc_jax.pretrained.gpt2 import read_gpt2
from aigc_jax.pretrained.peft import read_peft, write_peft
from aigc_jax.samplers.autoregressive import Decoder, generate

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # PyTorch's own warnings

ADAPTERS = {
    "c_attn": {"target_modules": ["c_attn"], "r": 4, "lora_alpha": 10},
    "all": {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 3, "use_rslora": True},
    "some layers": {
        "target_modules": ["attn.c_proj", "c_fc"],
        "layers_to_transform": [1],
        "r": 2,
        "init_lora_weights": "gaussian",
    },
    "pattern": {"target_modules": r"transformer\.h\.\d\.(attn\.c_attn|mlp\.c_proj)", "r": 2},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    theirs("tiny").save_pretrained(directory)
    return directory


def load_base(directory):
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(directory).eval()


def logits_ours(network, params, factors, scale, tokens):
    @jax.jit
    def run(params, factors, tokens):
        with lora(scale):
            return network.apply({"params": params, "lora": factors}, tokens)

    return np.asarray(run(params, factors, tokens))


def write_ours(network, params, factors, scale, tokens):
    @jax.jit
    def run(params, factors, tokens):
        def extend(tokens, cache, slot, start):
            variables = {"params": params, "lora": factors}
            return network.apply(variables, tokens, cache, slot, start, method="extend")

        keys = jax.random.split(stream(0, "sample"), len(tokens))
        options = {"length": LENGTH, "stop": (END,), "temperature": 0.0}
        with lora(scale):
            return generate(Decoder(network.make_cache, extend), tokens, None, keys, **options)

    return np.asarray(run(params, factors, tokens))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_from_peft(adapter, base, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = load_base(base)
    tokens = prompts(model)
    plain = logits_theirs(model, tokens)
    config = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **ADAPTERS[adapter])
    model = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.15)
    model.save_pretrained(tmp_path)

    network, params = read_gpt2(base)
    factors, scale = read_peft(tmp_path, network)
    expected = logits_theirs(model, tokens)
    assert np.abs(expected - plain).max() > 0.1
    actual = logits_ours(network, params, factors, scale, tokens)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)

    text = write_ours(network, params, factors, scale, tokens)
    np.testing.assert_array_equal(text, filled(write_theirs(model, tokens)))
    assert len(np.unique(text)) > 20


@pytest.mark.parametrize("targets", [("qkv",), ("attention/out",), ("attention", "mlp")])
def test_to_peft(targets, base, tmp_path):
    from peft import PeftModel

    network, params = read_gpt2(base)
    factors = init_lora(stream(0, "lora"), params, 4, targets)
    rng = np.random.default_rng(0)
    factors = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), factors)
    write_peft(tmp_path, network, factors, 1.5, base=str(base))
    model = PeftModel.from_pretrained(load_base(base), tmp_path).eval()
    tokens = prompts(model)
    expected = logits_ours(network, params, factors, 1.5, tokens)
    np.testing.assert_allclose(logits_theirs(model, tokens), expected, rtol=0, atol=1e-4)
    merged = logits_theirs(model.merge_and_unload(), tokens)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-4)
    assert np.abs(expected - logits_ours(network, params, {}, 1.0, tokens)).max() > 0.5
