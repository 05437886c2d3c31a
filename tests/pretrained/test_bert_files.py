"""Files of our own writing; tests/parity/test_transformers_bert.py has transformers write them."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aigc_jax.models.bert import BERT
from aigc_jax.pretrained.bert import read_bert, write_bert
from aigc_jax.pretrained.huggingface import CONFIG

WEIGHTS = "model.safetensors"
SMALL = BERT(11, 6, 2, 2, 8)
HEADS = {
    None: lambda bert, tokens: bert(tokens),
    "head": lambda bert, tokens: bert.predict(tokens),
    "pooler": lambda bert, tokens: bert.summarise(tokens),
    "both": lambda bert, tokens: (bert.predict(tokens), bert.summarise(tokens)),
}


@functools.cache
def noise(heads="both", network=SMALL):
    init = functools.partial(network.init, method=HEADS[heads])
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


@pytest.fixture
def directory(tmp_path):
    write_bert(tmp_path, SMALL, noise())
    return tmp_path


def configure(directory, **options):
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("network", [SMALL, BERT(13, 5, 1, 1, 4, 6, 3, 0.25)])
def test_what_is_written_is_read_back(network, heads, tmp_path):
    params = noise(heads, network)
    write_bert(tmp_path, network, params, shard=400)
    read, found = read_bert(tmp_path)
    assert read == network
    chex.assert_trees_all_equal(found, params)
    write_bert(tmp_path / "again", read, found, shard=400)
    for path in tmp_path.glob("*.*"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_names_and_layouts_are_berts(directory):
    weights, params = load_file(directory / WEIGHTS), noise()
    block = jax.tree.map(lambda x: x[1], params["blocks"])
    qkv = block["attention"]["qkv"]
    for j, part in enumerate(("query", "key", "value")):
        name = f"bert.encoder.layer.1.attention.self.{part}"
        kernel = qkv["kernel"][:, :, j].reshape(8, 8)
        np.testing.assert_array_equal(weights[f"{name}.weight"], kernel.T)
        np.testing.assert_array_equal(weights[f"{name}.bias"], qkv["bias"][:, j].reshape(8))
    theirs = weights["bert.encoder.layer.1.attention.output.dense.weight"]
    np.testing.assert_array_equal(theirs, block["attention"]["out"]["kernel"].reshape(8, 8).T)
    theirs = weights["bert.encoder.layer.1.intermediate.dense.weight"]
    np.testing.assert_array_equal(theirs, block["mlp"]["in"]["kernel"].T)
    assert weights["cls.predictions.bias"].shape == (11,)
    assert json.loads((directory / CONFIG).read_text())["architectures"] == ["BertForMaskedLM"]


def test_without_a_head_names_have_no_prefix(tmp_path):
    write_bert(tmp_path, SMALL, noise("pooler"), dtype=jnp.bfloat16)
    weights = load_file(tmp_path / WEIGHTS)
    assert {name.split(".")[0] for name in weights} == {"embeddings", "encoder", "pooler"}
    assert {x.dtype for x in weights.values()} == {np.dtype(jnp.bfloat16)}
    assert json.loads((tmp_path / CONFIG).read_text())["architectures"] == ["BertModel"]


def test_what_old_files_hold_is_understood(directory):
    weights = load_file(directory / WEIGHTS)
    old = {}
    for name, x in weights.items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        old[name] = x
    old["bert.embeddings.position_ids"] = np.arange(6)[None]
    old["cls.seq_relationship.weight"] = np.zeros((2, 8), np.float32)
    old["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")
    save_file(old, directory / WEIGHTS)
    chex.assert_trees_all_equal(read_bert(directory)[1], noise())


# What is not there, or not supported


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("hidden_act", "relu", "must be 'gelu' or"),
        ("layer_norm_eps", 1e-5, "must be 1e-12"),
        ("position_embedding_type", "relative_key", "must be 'absolute'"),
        ("is_decoder", True, "must be False"),
        ("add_cross_attention", True, "must be False"),
        ("tie_word_embeddings", False, "must be True"),
        ("num_hidden_layers", 0, "must be an integer of at least 1"),
        ("hidden_dropout_prob", "no", r"must be a number in \[0, 1\)"),
    ],
)
def test_an_option_that_is_not_supported_is_named(option, value, allowed, directory):
    configure(directory, **{option: value})
    message = f"{CONFIG}: {option}={value!r} is not supported: it {allowed}"
    with pytest.raises(ValueError, match=message):
        read_bert(directory)


def test_other_models_are_refused(directory):
    configure(directory, model_type="roberta")
    with pytest.raises(ValueError, match=r"is of model_type='roberta'; it must be 'bert'$"):
        read_bert(directory)
    configure(directory, model_type="bert", num_attention_heads=3)
    with pytest.raises(ValueError, match=f"{CONFIG}: width=8 must be a multiple of heads=3$"):
        read_bert(directory)


def test_weights_that_do_not_fit_are_listed(directory):
    weights = load_file(directory / WEIGHTS)
    del weights["bert.pooler.dense.bias"], weights["bert.encoder.layer.0.output.dense.bias"]
    save_file(weights | {"classifier.weight": np.zeros((2, 8))}, directory / WEIGHTS)
    with pytest.raises(ValueError) as error:
        read_bert(directory)
    assert str(error.value) == (
        f"{directory / WEIGHTS} does not fit its {CONFIG}: bert.encoder.layer.0.output.dense.bias"
        " is missing, bert.pooler.dense.bias is missing, classifier.weight is unexpected"
    )


def test_parameters_of_another_network_are_not_written(directory, tmp_path):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"not this BERT's: .*is \(2, 8\), not \(3, 8\)"):
        write_bert(directory, SMALL.clone(layers=3), noise())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
