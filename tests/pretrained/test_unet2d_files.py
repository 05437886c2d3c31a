"""Files of our own writing; tests/parity/test_unet2d.py has diffusers write and read them."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aigc_jax.models.unet import Levels, UNet
from aigc_jax.pretrained.unet2d import CONFIG, WEIGHTS, read_unet2d, write_unet2d

SMALL = UNet(8, (1, 2), 1, attention=Levels((1,), (1,)), dropout=0.0, groups=4)


def random_params(unet, channels=3, seed=0):
    """Fill a network with noise, of which nothing is compiled."""
    x = jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
    shapes = jax.eval_shape(unet.init, jax.random.key(0), x, jnp.zeros(1))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL)


@pytest.fixture(scope="module")
def written(tmp_path_factory, params):
    directory = tmp_path_factory.mktemp("written")
    write_unet2d(directory, SMALL, params)
    return directory


@pytest.fixture
def directory(tmp_path, written):
    return shutil.copytree(written, tmp_path / "unet")


def configure(directory, **options):
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.mark.parametrize(
    "unet",
    [
        SMALL,
        SMALL.clone(classes=3, out_channels=6, dropout=0.25),
        SMALL.clone(scale_shift=True, resample_blocks=True, head_channels=4, middle_groups=0),
        SMALL.clone(scale_shift=True, middle_groups=8, epsilon=1e-5, downsample_padding=(1, 1)),
        SMALL.clone(middle_attention=False, freq_shift=0, flip_sin_to_cos=True),
        SMALL.clone(multipliers=(1, 2.5, 1), attention=Levels((0, 2), ()), embedding_channels=24),
        SMALL.clone(multipliers=(1, 1, 1), resample_blocks=Levels((0,), (0, 2)), blocks=2),
        UNet(8, (1,), 1, attention=Levels((), (0,)), groups=2),
    ],
)
def test_what_is_written_is_read_back(unet, tmp_path):
    params = random_params(unet)
    write_unet2d(tmp_path, unet, params)
    read, found = read_unet2d(tmp_path)
    assert read == unet
    chex.assert_trees_all_equal(found, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    # And written again, byte for byte.
    write_unet2d(tmp_path / "again", read, found)
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_image_heights_become_levels_and_groups_a_number(tmp_path):
    unet = UNet(128, (1, 1), 1, attention=(4,), dropout=0.0)
    write_unet2d(tmp_path, unet, random_params(unet), sample_size=8)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    assert config["up_block_types"] == ["AttnUpBlock2D", "UpBlock2D"]
    assert config["sample_size"] == 8
    read, _ = read_unet2d(tmp_path)
    assert read == unet.clone(attention=Levels((1,), (1,)), groups=32)


def test_kernels_are_transposed(directory, params):
    weights = load_file(directory / WEIGHTS)
    at = lambda path: params[path[0]][path[1]] if len(path) == 2 else params[path[0]]
    conv = at(("down0_0", "conv1"))
    theirs = weights["down_blocks.0.resnets.0.conv1.weight"]
    assert theirs[5, 2, 0, 1] == conv["kernel"][0, 1, 2, 5]
    assert (weights["time_embedding.linear_1.weight"] == at(("time1",))["kernel"].T).all()
    # Level 1 comes first on the way up there; heads are outermost among the features.
    query = at(("up1_0_attention", "query"))
    theirs = weights["up_blocks.0.attentions.0.to_q.weight"]
    assert (theirs == query["kernel"].reshape(16, 16).T).all()
    assert weights["up_blocks.0.upsamplers.0.conv.weight"].shape == (16, 16, 3, 3)
    assert weights["down_blocks.1.resnets.0.conv_shortcut.weight"].shape == (16, 8, 1, 1)


def test_a_configuration_may_leave_out_what_is_default(directory):
    config = json.loads((directory / CONFIG).read_text())
    for name in ("freq_shift", "flip_sin_to_cos", "downsample_padding", "norm_eps", "dropout"):
        del config[name]
    (directory / CONFIG).write_text(json.dumps(config))
    unet, _ = read_unet2d(directory)
    assert (unet.freq_shift, unet.flip_sin_to_cos, unet.downsample_padding) == (0, True, (1, 1))
    assert (unet.epsilon, unet.dropout) == (1e-5, 0.0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_other_precisions_become_float32(dtype, directory, params):
    weights = {name: x.astype(dtype) for name, x in load_file(directory / WEIGHTS).items()}
    save_file(weights, directory / WEIGHTS)
    _, found = read_unet2d(directory)
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)
    chex.assert_trees_all_equal(found, expected)


def test_names_of_old_files_are_understood(directory, params):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(directory / WEIGHTS)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): x for key, x in weights.items()}
    assert "mid_block.attentions.0.proj_attn.bias" in weights
    save_file(weights, directory / WEIGHTS)
    chex.assert_trees_all_equal(read_unet2d(directory)[1], params)


# What is not there, or not supported


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("center_input_sample", True, "must be False"),
        ("time_embedding_type", "fourier", "must be 'positional'"),
        ("mid_block_type", None, "must be 'UNetMidBlock2D'"),
        ("mid_block_scale_factor", 1.4, "must be 1"),
        ("downsample_padding", 2, "must be 0 or 1"),
        ("downsample_type", "fir", "must be 'conv' or 'resnet'"),
        ("upsample_type", "fir", "must be 'conv' or 'resnet'"),
        ("act_fn", "mish", "must be 'silu' or 'swish'"),
        ("resnet_time_scale_shift", "spatial", "must be 'default' or 'scale_shift'"),
        ("class_embed_type", "timestep", "must be None"),
        ("num_class_embeds", 1, "must be None or at least 2"),
        ("down_block_types", ["DownBlock2D", "AttnSkipDownBlock2D"], "must be 2 of DownBlock2D, "),
        ("up_block_types", ["UpBlock2D"], "must be 2 of UpBlock2D, AttnUpBlock2D, "),
        ("block_out_channels", [7, 14], "must be integers, the first even"),
        ("layers_per_block", 0, "must be an integer of at least 1"),
        ("norm_num_groups", 3, "divides all of block_out_channels"),
        ("norm_num_groups", None, "divides all of block_out_channels"),
        ("attn_norm_num_groups", 5, "divides the last channels"),
        ("attention_head_dim", 17, "from 1 to 16"),
    ],
)
def test_an_option_that_is_not_supported_is_named(option, value, allowed, directory):
    configure(directory, **{option: value})
    with pytest.raises(ValueError) as error:
        read_unet2d(directory)
    message = str(error.value)
    start = f"{directory / CONFIG}: {option}={value!r} is not supported: it must be "
    assert message.startswith(start) and allowed in message and "\n" not in message


def test_other_models_and_other_options_are_refused(directory):
    configure(directory, cross_attention_dim=8)
    with pytest.raises(ValueError, match="UNet2DModel has no option cross_attention_dim"):
        read_unet2d(directory)
    configure(directory, _class_name="UNet2DConditionModel")
    with pytest.raises(ValueError, match="of a UNet2DConditionModel; it must be a UNet2DModel"):
        read_unet2d(directory)


def test_weights_that_do_not_fit_are_listed(directory):
    weights = load_file(directory / WEIGHTS)
    del weights["conv_in.bias"], weights["mid_block.resnets.1.norm2.weight"]
    weights |= {"conv_shut.weight": np.zeros(1), "conv_out.bias": np.zeros(4)}
    save_file(weights, directory / WEIGHTS)
    with pytest.raises(ValueError) as error:
        read_unet2d(directory)
    assert str(error.value) == (
        f"{directory / WEIGHTS} does not fit its {CONFIG}: conv_in.bias is missing,"
        " mid_block.resnets.1.norm2.weight is missing, conv_shut.weight is unexpected,"
        " conv_out.bias is (4,), not (3,)"
    )


def test_a_pickle_is_refused(directory):
    (directory / WEIGHTS).rename(directory / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only as a pickle, .*model\.bin, which may run any code"):
        read_unet2d(directory)


@pytest.mark.parametrize("name", ["", CONFIG, WEIGHTS])
def test_what_does_not_exist_is_named(name, directory, tmp_path):
    missing = tmp_path / "elsewhere" if not name else directory / name
    missing.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=f"{missing} does not exist"):
        read_unet2d(directory if name else missing)


def test_files_that_are_cut_short_are_named(directory):
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=f"{directory / WEIGHTS} is not whole"):
        read_unet2d(directory)
    (directory / WEIGHTS).write_bytes(whole)
    (directory / CONFIG).write_text("{")
    with pytest.raises(ValueError, match=f"{directory / CONFIG} is not JSON"):
        read_unet2d(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 2}, "patch=2 has no counterpart in UNet2DModel: it must be 1"),
        ({"multipliers": (2, 2)}, r"multipliers=\(2, 2\) .*the first must be 1"),
        ({"blocks": 0}, "blocks=0 .*at least 1"),
        ({"downsample_padding": (1, 0)}, r"downsample_padding=\(1, 0\) .*must be \(0, 1\) or"),
        ({"groups": None}, r"groups=None .*as many, not \[2, 4, 6, 8\]"),
        ({"middle_groups": 0}, "middle_groups=0 .*scale_shift alone"),
        (
            {
                "multipliers": (1, 1, 1),
                "attention": Levels((0, 1), ()),
                "resample_blocks": Levels((0,), ()),
            },
            r"resample_blocks=Levels.*must go down in one way",
        ),
    ],
)
def test_what_has_no_counterpart_is_not_written(changes, message, tmp_path):
    unet = SMALL.clone(**changes)
    with pytest.raises(ValueError, match=message):
        write_unet2d(tmp_path, unet, random_params(unet))
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_network_are_not_written(tmp_path, params):
    with pytest.raises(ValueError, match=r"not this U-Net's: label/embedding is missing"):
        write_unet2d(tmp_path, SMALL.clone(classes=2), params)
    with pytest.raises(ValueError, match=r"params/conv_in/bias is unexpected"):
        write_unet2d(tmp_path, SMALL, {"params": params})


@pytest.mark.parametrize("fails", [CONFIG, WEIGHTS])
def test_a_write_that_fails_changes_nothing(fails, directory, params, monkeypatch):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def no_room(*args, **kwargs):
        raise OSError("no space left on device")

    of = {CONFIG: "write_json", WEIGHTS: "_write_tensors"}
    monkeypatch.setattr(f"aigc_jax.pretrained.huggingface.{of[fails]}", no_room)
    with pytest.raises(OSError, match="no space"):
        write_unet2d(directory, SMALL.clone(dropout=0.5), jax.tree.map(lambda x: x + 1, params))
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
