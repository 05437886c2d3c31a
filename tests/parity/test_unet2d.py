"""U-Nets that go from diffusers to here, and from here to diffusers, compute the same."""

import jax
import numpy as np
import pytest

from aigc_jax.models.unet import Levels, UNet
from aigc_jax.pretrained.unet2d import read_unet2d, write_unet2d

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # diffusers' own warnings

T = np.array([3, 700])
SMALL = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
# As google/ddpm-cifar10-32 is published, but for its size.
DDPM = {
    "in_channels": 3,
    "attention_head_dim": None,
    "block_out_channels": [16, 32, 32],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "layers_per_block": 2,
    "norm_eps": 1e-6,
    "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
# As ADM has it, conditioned on one of 5 labels, with a variance.
ADM = {
    "attention_head_dim": 4,
    "block_out_channels": [8, 12, 16],
    "down_block_types": ["ResnetDownsampleBlock2D"] * 2 + ["AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D"] + ["ResnetUpsampleBlock2D"] * 2,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "num_class_embeds": 5,
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
}
CONFIGURATIONS = {
    "defaults": SMALL,
    "ddpm": DDPM,
    "adm": ADM,
    "one level": SMALL
    | {
        "block_out_channels": [24],
        "down_block_types": ["AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D"],
        "norm_num_groups": 3,
    },
    "sides and ways differ": SMALL
    | {
        "block_out_channels": [16, 8, 8],
        "down_block_types": ["AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"],
        "upsample_type": "resnet",
        "downsample_padding": 0,
        "act_fn": "swish",
    },
    "no attention in the middle": SMALL | {"add_attention": False, "num_class_embeds": 2},
    "groups of the middle": SMALL
    | {
        "attn_norm_num_groups": 2,
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_dim": 20,
        "norm_eps": 0.3,
        "freq_shift": 0.5,
    },
    "heads that do not divide": SMALL
    | {
        "attention_head_dim": 3,
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ["UNetResAttnDownBlock2D", "UNetResDownBlock2D"],
        "up_block_types": ["UNetResUpBlock2D", "UNetResAttnUpBlock2D"],
    },
}
NAMES = list(CONFIGURATIONS)


def theirs(name):
    """Build a model of which nothing is near a constant."""
    import diffusers
    import torch

    torch.manual_seed(NAMES.index(name))
    model = diffusers.UNet2DModel(**CONFIGURATIONS[name]).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            if "to_q" in key or "to_k" in key:
                parameter *= 4  # attention that is nearly uniform would hide its heads
    return model


def inputs(model, size=8):
    config = model.config
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, size, size + 4, config.in_channels)).astype(np.float32)
    label = None if config.num_class_embeds is None else np.array([0, config.num_class_embeds - 1])
    return x, label


def run_theirs(model, x, label):
    import torch

    with torch.no_grad():
        x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        label = None if label is None else torch.from_numpy(label)
        y = model(x, torch.from_numpy(T), class_labels=label).sample
    return y.numpy().transpose(0, 2, 3, 1)


def run_ours(unet, params, x, label):
    run = jax.jit(lambda params, x: unet.apply({"params": params}, x, T, label))
    return np.asarray(run(params, x))


@pytest.fixture(params=NAMES)
def model(request):
    return theirs(request.param)


def test_from_diffusers(model, tmp_path):
    model.save_pretrained(tmp_path)
    x, label = inputs(model)
    expected = run_theirs(model, x, label)
    actual = run_ours(*read_unet2d(tmp_path), x, label)
    assert actual.shape == expected.shape and expected.std() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)


def test_from_diffusers_and_back(model, tmp_path):
    import diffusers

    model.save_pretrained(tmp_path)
    size = model.config.sample_size
    write_unet2d(tmp_path / "back", *read_unet2d(tmp_path), sample_size=size)
    back = diffusers.UNet2DModel.from_pretrained(tmp_path / "back")
    expected, actual = model.state_dict(), back.state_dict()
    assert actual.keys() == expected.keys()
    assert all((actual[key] == expected[key]).all() for key in expected)
    # What stands for the same; or for nothing, as in a model that does not attend.
    spelled = {"swish": "silu"}
    for key, value in model.config.items():
        if not key.startswith("_") and key != "attn_norm_num_groups":
            value = [str(v).removeprefix("UNetRes") for v in value] if "types" in key else value
            found = list(back.config[key]) if "types" in key else back.config[key]
            assert found == (spelled.get(value, value) if key == "act_fn" else value), key


@pytest.mark.parametrize(
    "unet",
    [
        UNet(16, (1, 1.5, 2), 1, attention=(4,), groups=4),
        UNet(
            128,
            (1, 1),
            1,
            attention=Levels((1,), (0,)),
            head_channels=64,
            classes=3,
            out_channels=6,
            scale_shift=True,
            resample_blocks=True,
            flip_sin_to_cos=True,
        ),
    ],
)
def test_to_diffusers(unet, tmp_path):
    import diffusers

    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    label = np.array([0, 3]) if unet.classes else None
    params = jax.eval_shape(unet.init, jax.random.key(0), x, T)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: (rng.normal(size=leaf.shape) / max(1, np.prod(leaf.shape[:-1])) ** 0.5).astype(
            np.float32
        ),
        params,
    )
    write_unet2d(tmp_path, unet, params, sample_size=8)
    model = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    assert model.config.sample_size == 8
    expected = run_ours(unet, params, x, label)
    assert expected.std() > 0.1
    np.testing.assert_allclose(run_theirs(model, x, label), expected, atol=1e-4, rtol=0)


# Every one of these would be seen if it were read wrongly.
MISREAD = {
    "downsample_padding": (1, 1),
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "epsilon": 1e-2,
    "groups": 2,
    "head_channels": 4,
}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    model = theirs("ddpm")
    directory = tmp_path_factory.mktemp("ddpm")
    model.save_pretrained(directory)
    x, label = inputs(model)
    return (*read_unet2d(directory), x, run_theirs(model, x, label))


@pytest.mark.parametrize("attribute", MISREAD)
def test_an_option_read_wrongly_would_show(attribute, known):
    unet, params, x, expected = known
    wrong = unet.clone(**{attribute: MISREAD[attribute]})
    if attribute == "head_channels":
        params = split_heads(params, MISREAD[attribute])
    assert np.abs(run_ours(wrong, params, x, None) - expected).max() > 1e-3


def split_heads(params, size):
    split = {
        "query": lambda leaf: leaf.reshape(*leaf.shape[:-2], -1, size),
        "out": lambda leaf: leaf.reshape(-1, size, leaf.shape[-1]) if leaf.ndim == 3 else leaf,
    }
    split["key"] = split["value"] = split["query"]
    return {
        name: {
            layer: jax.tree.map(split.get(layer, lambda leaf: leaf), leaves)
            for layer, leaves in module.items()
        }
        if "attention" in name
        else module
        for name, module in params.items()
    }
