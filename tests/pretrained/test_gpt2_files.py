"""Files of our own writing; tests/parity/test_transformers_gpt2.py has transformers write them."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

from aigc_jax.models.gpt import GPT
from aigc_jax.pretrained.gpt2 import gpt_shapes, read_gpt2, write_gpt2
from aigc_jax.pretrained.huggingface import CONFIG

WEIGHTS = "model.safetensors"
SMALL = GPT(11, 6, 2, 2, 8)


def noise(network, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = gpt_shapes(network)
    return unflatten_dict({p: rng.normal(size=s.shape).astype(dtype) for p, s in shapes.items()})


@pytest.fixture(scope="module")
def params():
    return noise(SMALL)


@pytest.fixture(scope="module")
def written(tmp_path_factory, params):
    directory = tmp_path_factory.mktemp("written")
    write_gpt2(directory, SMALL, params)
    return directory


@pytest.fixture
def directory(tmp_path, written):
    return shutil.copytree(written, tmp_path / "gpt2")


def configure(directory, **options):
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.mark.parametrize(
    "network", [SMALL, GPT(13, 5, 3, 1, 4, hidden=6, tied=False, dropout=0.25, kv_heads=1)]
)
@pytest.mark.parametrize("shard", [10**9, 400])
def test_what_is_written_is_read_back(network, shard, tmp_path):
    params = noise(network)
    write_gpt2(tmp_path, network, params, shard=shard)
    read, found = read_gpt2(tmp_path)
    assert read == network.clone(kv_heads=None)
    chex.assert_trees_all_equal(found, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    write_gpt2(tmp_path / "again", read, found, shard=shard)
    files = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert (len(files) > 3) == (shard == 400)
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_network_without_biases_is_one_whose_biases_are_zeros(tmp_path):
    network = SMALL.clone(bias=False)
    params = noise(network)
    write_gpt2(tmp_path, network, params)
    read, found = read_gpt2(tmp_path)
    assert read == SMALL
    tokens = np.arange(6)[None]
    expected = network.apply({"params": params}, tokens)
    np.testing.assert_allclose(read.apply({"params": found}, tokens), expected, rtol=1e-6)


def test_names_and_layouts_are_gpt2s(directory, params):
    weights = load_file(directory / WEIGHTS)
    assert len(weights) == 2 + 2 * 12 + 2 and "lm_head.weight" not in weights
    block = jax.tree.map(lambda x: x[1], params["blocks"])
    theirs = lambda name: weights[f"transformer.h.1.{name}"]
    qkv = block["attention"]["qkv"]
    # (in, 3·heads·d): queries of all heads come first.
    for j, part in enumerate(np.split(theirs("attn.c_attn.weight"), 3, 1)):
        np.testing.assert_array_equal(part, qkv["kernel"][:, :, j].reshape(8, 8))
    for j, part in enumerate(np.split(theirs("attn.c_attn.bias"), 3)):
        np.testing.assert_array_equal(part, qkv["bias"][:, j].reshape(8))
    out = block["attention"]["out"]["kernel"]
    np.testing.assert_array_equal(theirs("attn.c_proj.weight"), out.reshape(8, 8))
    np.testing.assert_array_equal(theirs("mlp.c_fc.weight"), block["mlp"]["in"]["kernel"])
    np.testing.assert_array_equal(theirs("ln_2.weight"), block["mlp_norm"]["scale"])
    config = json.loads((directory / CONFIG).read_text())
    assert config["n_embd"] == 8 and config["eos_token_id"] is None


def test_types_are_chosen(tmp_path, params):
    write_gpt2(tmp_path, SMALL, params, dtype=jnp.bfloat16, end=10)
    assert load_file(tmp_path / WEIGHTS)["transformer.wte.weight"].dtype == jnp.bfloat16
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    chex.assert_trees_all_equal(read_gpt2(tmp_path, dtype=jnp.bfloat16)[1], halved)
    assert json.loads((tmp_path / CONFIG).read_text())["eos_token_id"] == 10


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_masks_and_a_tied_head_are_of_no_account(prefix, directory, params):
    weights = load_file(directory / WEIGHTS)
    weights = {prefix + name.removeprefix("transformer."): x for name, x in weights.items()}
    for layer in range(2):
        weights[f"{prefix}h.{layer}.attn.bias"] = np.ones((1, 1, 6, 6), bool)
        weights[f"{prefix}h.{layer}.attn.masked_bias"] = np.float32([-1e4])
    weights["lm_head.weight"] = weights[f"{prefix}wte.weight"]
    save_file(weights, directory / WEIGHTS)
    network, found = read_gpt2(directory)
    assert network == SMALL
    chex.assert_trees_all_equal(found, params)
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    save_file(weights, directory / WEIGHTS)
    with pytest.raises(ValueError, match=r"wte.weight differs from lm_head.weight, which it has"):
        read_gpt2(directory)


def test_a_configuration_may_leave_out_what_is_default(directory):
    path = directory / CONFIG
    config = json.loads(path.read_text())
    for name in ("layer_norm_epsilon", "activation_function", "resid_pdrop", "n_inner"):
        del config[name]
    path.write_text(json.dumps(config | {"task_specific_params": {}, "n_ctx": 6}))
    assert read_gpt2(directory)[0] == SMALL.clone(dropout=0.1)


# What is not there, or not supported


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("activation_function", "relu", "must be 'gelu_new' or 'gelu_pytorch_tanh'"),
        ("layer_norm_epsilon", 1e-6, "must be 1e-05"),
        ("scale_attn_weights", False, "must be True"),
        ("scale_attn_by_inverse_layer_idx", True, "must be False"),
        ("add_cross_attention", True, "must be False"),
        ("n_layer", 0, "must be an integer of at least 1"),
        ("n_embd", "8", "must be an integer of at least 1"),
        ("n_inner", 0, "must be null or an integer of at least 1"),
        ("resid_pdrop", 1.0, r"must be a number in \[0, 1\)"),
    ],
)
def test_an_option_that_is_not_supported_is_named(option, value, allowed, directory):
    configure(directory, **{option: value})
    with pytest.raises(
        ValueError, match=f"{CONFIG}: {option}={value!r} is not supported: it {allowed}"
    ):
        read_gpt2(directory)


def test_other_models_are_refused(directory):
    configure(directory, model_type="llama")
    with pytest.raises(ValueError, match=r"is of model_type='llama'; it must be 'gpt2'$"):
        read_gpt2(directory)
    configure(directory, model_type="gpt2", n_head=3)
    with pytest.raises(ValueError, match=f"{CONFIG}: width=8 must be a multiple of heads=3$"):
        read_gpt2(directory)


def test_weights_that_do_not_fit_are_listed(directory):
    configure(directory, n_layer=1, n_positions=7)
    weights = load_file(directory / WEIGHTS)
    weights = {name: x for name, x in weights.items() if name != "transformer.ln_f.bias"}
    weights = {name: x for name, x in weights.items() if ".h.1." not in name or "c_fc" in name}
    save_file(weights, directory / WEIGHTS)
    with pytest.raises(ValueError) as error:
        read_gpt2(directory)
    assert str(error.value) == (
        f"{directory / WEIGHTS} does not fit its {CONFIG}: transformer.ln_f.bias is missing,"
        " transformer.h.1.mlp.c_fc.bias is unexpected, transformer.h.1.mlp.c_fc.weight is"
        " unexpected, transformer.wpe.weight is (6, 8), not (7, 8)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "rotary"}, "positions='rotary' has no counterpart in GPT-2: it must be"),
        ({"norm": "rms"}, "norm='rms' has no counterpart"),
        ({"mlp": "swiglu"}, "mlp='swiglu' has no counterpart"),
        ({"kv_heads": 1}, "kv_heads=1 has no counterpart in GPT-2: it must be None or heads=2"),
        ({"classes": 2}, "classes=2 has no counterpart in GPT-2: it must be 0"),
    ],
)
def test_what_has_no_counterpart_is_not_written(changes, message, tmp_path):
    network = SMALL.clone(**changes)
    with pytest.raises(ValueError, match=message):
        write_gpt2(tmp_path, network, noise(network))
    assert not list(tmp_path.iterdir())


def test_what_is_not_its_own_is_not_written(tmp_path, params):
    with pytest.raises(ValueError, match="not this GPT's: head/kernel is missing"):
        write_gpt2(tmp_path, SMALL.clone(tied=False), params)
    with pytest.raises(ValueError, match=r"end=11 must lie in \[0, 11\), the vocabulary"):
        write_gpt2(tmp_path, SMALL, params, end=11)
