"""Files of our own writing; tests/parity/test_peft.py has PEFT write and read them."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

from aigc_jax.core.keys import stream
from aigc_jax.models.gpt import GPT
from aigc_jax.nn.lora import init_lora
from aigc_jax.pretrained.gpt2 import gpt_shapes
from aigc_jax.pretrained.peft import CONFIG, read_peft, write_peft

WEIGHTS = "adapter_model.safetensors"
NETWORK = GPT(11, 6, 2, 2, 8)


def noise(targets, rank=3):
    params = unflatten_dict({path: np.zeros(s.shape) for path, s in gpt_shapes(NETWORK).items()})
    rng = np.random.default_rng(0)
    factors = init_lora(stream(0, "lora"), params, rank, targets)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), factors)


@pytest.fixture(scope="module")
def factors():
    return noise(("qkv", "out"))


@pytest.fixture(scope="module")
def written(tmp_path_factory, factors):
    directory = tmp_path_factory.mktemp("written")
    write_peft(directory, NETWORK, factors, 2.0)
    return directory


@pytest.fixture
def directory(tmp_path, written):
    return shutil.copytree(written, tmp_path / "adapter")


def configure(directory, **options):
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.mark.parametrize("targets", [("qkv",), ("attention", "mlp"), ("mlp/out",)])
def test_what_is_written_is_read_back(targets, tmp_path):
    factors = noise(targets)
    write_peft(tmp_path, NETWORK, factors, 0.5, base="gpt2")
    found, scale = read_peft(tmp_path, NETWORK)
    assert scale == 0.5
    chex.assert_trees_all_equal(found, factors)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (3, 1.5, True)
    assert config["base_model_name_or_path"] == "gpt2"


def test_names_and_layouts_are_pefts(directory, factors):
    weights = load_file(directory / WEIGHTS)
    assert len(weights) == 2 * 3 * 2
    theirs = lambda name: weights[f"base_model.model.transformer.h.1.{name}.weight"]
    attention = jax.tree.map(lambda x: x[1], factors["blocks"]["attention"])
    qkv, out = attention["qkv"], attention["out"]
    np.testing.assert_array_equal(theirs("attn.c_attn.lora_A"), qkv["a"].T)
    for j, part in enumerate(np.split(theirs("attn.c_attn.lora_B"), 3)):
        np.testing.assert_array_equal(part, qkv["b"][:, :, j].reshape(3, 8).T)
    np.testing.assert_array_equal(theirs("attn.c_proj.lora_A"), out["a"].reshape(8, 3).T)
    np.testing.assert_array_equal(theirs("attn.c_proj.lora_B"), out["b"].T)
    config = json.loads((directory / CONFIG).read_text())
    assert config["target_modules"] == ["attn.c_attn", "attn.c_proj", "mlp.c_proj"]


@pytest.mark.parametrize(
    "targets",
    ["all-linear", r"transformer\.h\.\d+\.(attn|mlp)\.c_\w+", ["c_attn", "c_proj", "c_fc"]],
)
def test_targets_are_written_in_several_ways(targets, tmp_path):
    factors = noise(("attention", "mlp"))
    write_peft(tmp_path, NETWORK, factors, 2.0)
    configure(tmp_path, target_modules=targets, use_rslora=True)
    found, scale = read_peft(tmp_path, NETWORK, dtype=jnp.bfloat16)
    assert scale == pytest.approx(2 * 3**0.5)
    chex.assert_trees_all_equal(found, jax.tree.map(lambda x: x.astype(jnp.bfloat16), factors))


def test_layers_without_factors_get_zeros(directory, factors):
    configure(directory, layers_to_transform=[1])
    with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn\.lora_A\.weight is unexpected"):
        read_peft(directory, NETWORK)
    weights = load_file(directory / WEIGHTS)
    # As of a model without a head.
    names = {name.replace("transformer.", ""): x for name, x in weights.items() if ".1." in name}
    save_file(names, directory / WEIGHTS)
    found, _ = read_peft(directory, NETWORK)
    expected = jax.tree.map(
        lambda x: x * np.float32([0, 1]).reshape(2, *[1] * (x.ndim - 1)), factors
    )
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("peft_type", "PREFIX_TUNING", "must be 'LORA'"),
        ("use_dora", True, "must be left out"),
        ("bias", "all", "must be 'none'"),
        ("modules_to_save", ["wte"], "must be left out"),
        ("rank_pattern", {"c_attn": 4}, "must be left out"),
        ("some_later_config", {"a": 1}, "must be left out"),
        ("init_lora_weights", "pissa", "must be True or False or 'gaussian'"),
        ("layers_to_transform", [2], "must be within 2 layers"),
        ("target_modules", ["q_proj"], r"must be some of attn\.c_attn, attn\.c_proj, mlp\.c_fc"),
        ("target_modules", "(", r"must be some of attn\.c_attn"),
        ("lora_alpha", None, "must be a number"),
        ("r", 0, "must be an integer of at least 1"),
    ],
)
def test_an_option_that_is_not_supported_is_named(option, value, allowed, directory):
    configure(directory, **{option: value})
    with pytest.raises(ValueError, match=f"{allowed}") as error:
        read_peft(directory, NETWORK)
    start = f"{directory / CONFIG}: {option}={value!r} is not supported: it "
    assert str(error.value).startswith(start)


def test_weights_that_do_not_fit_are_listed(directory):
    configure(directory, r=4, lora_alpha=4)
    message = (
        rf"does not fit its {CONFIG}: .*h\.0\.attn\.c_attn\.lora_A\.weight is \(3, 8\), not \(4"
    )
    with pytest.raises(ValueError, match=message):
        read_peft(directory, NETWORK)


def test_what_peft_cannot_hold_is_not_written(tmp_path, factors):
    save = lambda network, factors: write_peft(tmp_path, network, factors, 1.0)
    with pytest.raises(ValueError, match="positions='rotary' has no counterpart in GPT-2"):
        save(NETWORK.clone(positions="rotary"), factors)
    with pytest.raises(ValueError, match="GPT-2 has no layer head: it has blocks/attention/qkv"):
        save(NETWORK, {"head": {"a": np.zeros((8, 3)), "b": np.zeros((3, 11))}})
    with pytest.raises(ValueError, match=r"factors have ranks \[2, 3\]: there must be one"):
        save(NETWORK, {"blocks": factors["blocks"] | {"mlp": noise(("mlp",), 2)["blocks"]["mlp"]}})
    with pytest.raises(ValueError, match=r"not this adapter's: .*qkv/a is \(2, 8, 3\), not \(3"):
        save(NETWORK.clone(layers=3), factors)
    assert not list(tmp_path.iterdir())
