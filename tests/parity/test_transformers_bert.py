"""BERTs that go from transformers to here, and back, compute the same."""

import functools

import jax
import numpy as np
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.models.bert import BERT
from aigc_jax.pretrained.bert import read_bert, write_bert

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # PyTorch's own warnings

SIZES = {
    "tiny": {
        "vocab_size": 61,
        "max_position_embeddings": 30,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "type_vocab_size": 3,
    },
    "medium": {
        "vocab_size": 900,
        "max_position_embeddings": 128,
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "intermediate_size": 768,
    },
}


@functools.cache
def theirs(name, size):
    """Build a model whose every parameter counts, and whose logits are not flat."""
    import torch
    import transformers

    torch.manual_seed(list(SIZES).index(size))
    model = getattr(transformers, name)(transformers.BertConfig(**SIZES[size])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                parameter.normal_(0, 2 / parameter.shape[-1] ** 0.5)
    return model


def inputs(size):
    rng = np.random.default_rng(1)
    b, t = 3, SIZES[size]["max_position_embeddings"]
    tokens = rng.integers(0, SIZES[size]["vocab_size"], (b, t), np.int32)
    segment = rng.integers(0, SIZES[size].get("type_vocab_size", 2), (b, t), np.int32)
    return tokens, (np.arange(t) < np.array([[t], [t // 2], [3]])).astype(np.int32), segment


def run_theirs(model, tokens, mask, segment):
    import torch

    tokens, mask, segment = (torch.from_numpy(x.astype(np.int64)) for x in (tokens, mask, segment))
    with torch.no_grad():
        out = model(tokens, attention_mask=mask, token_type_ids=segment, output_hidden_states=True)
    found = {"features": out.hidden_states[-1]}
    for ours, names in (("pooled", ["pooler_output"]), ("logits", ["logits", "prediction_logits"])):
        found |= {ours: out[name] for name in names if out.get(name) is not None}
    return {name: x.numpy() for name, x in found.items()}


def run_ours(network, params, tokens, mask, segment):
    def everything(bert):
        x = bert(tokens, mask, segment)
        found = {"features": x}
        found |= {"logits": bert.logits(x)} if "head" in params else {}
        return found | ({"pooled": bert.pool(x)} if "pooler" in params else {})

    run = jax.jit(lambda params: network.apply({"params": params}, method=everything))
    return {name: np.asarray(x) for name, x in run(params).items()}


def check(actual, expected, mask):
    for name in expected.keys() & actual.keys():
        real = mask.astype(bool) if actual[name].ndim == 3 else slice(None)
        x, y = actual[name][real], expected[name][real]
        assert y.std() > 0.3
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "found"),
    [
        ("BertModel", "tiny", {"features", "pooled"}),
        ("BertForMaskedLM", "tiny", {"features", "logits"}),
        ("BertForMaskedLM", "medium", {"features", "logits"}),
        ("BertForPreTraining", "tiny", {"features", "logits", "pooled"}),
    ],
)
def test_from_transformers_and_back(name, size, found, tmp_path):
    import transformers

    model = theirs(name, size)
    model.save_pretrained(tmp_path, max_shard_size="1MB" if size == "medium" else "5GB")
    network, params = read_bert(tmp_path)
    arrays = inputs(size)
    expected, actual = run_theirs(model, *arrays), run_ours(network, params, *arrays)
    assert actual.keys() == found
    check(actual, expected, arrays[1])

    write_bert(tmp_path / "back", network, params, shard=10**6)
    back = getattr(transformers, name).from_pretrained(tmp_path / "back").eval()
    for key, value in run_theirs(back, *arrays).items():
        np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize(
    ("name", "method"), [("BertForMaskedLM", "predict"), ("BertModel", "summarise")]
)
def test_ours_goes_to_transformers(name, method, tmp_path):
    import transformers

    network = BERT(61, 30, 3, 4, 32, segments=3, dropout=0.25)
    rng = np.random.default_rng(0)
    init = functools.partial(network.init, method=method)
    shapes = jax.eval_shape(init, stream(0, "init"), np.zeros((1, 2), np.int32))
    params = jax.tree.map(
        lambda s: rng.normal(0, 0.4, s.shape).astype(np.float32), shapes["params"]
    )
    write_bert(tmp_path, network, params)
    model, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and model.config.hidden_dropout_prob == 0.25
    arrays = inputs("tiny")
    check(run_theirs(model.eval(), *arrays), run_ours(network, params, *arrays), arrays[1])
