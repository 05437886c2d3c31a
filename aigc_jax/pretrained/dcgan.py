"""The weights of PyTorch's DCGAN tutorial, in."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def read_dcgan(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert a state dict of the tutorial's `Generator` or `Discriminator`, of any depth.

    In float32 the network's outputs are PyTorch's to 1e-4; on a GPU or TPU, with
    `jax_default_matmul_precision="highest"`. Images are NHWC here and NCHW there.

    Args:
        state_dict: name -> array, as `torch.load(path, weights_only=True)` or
            `safetensors.numpy.load_file` gives it; names are `main.0.weight` and so on.

    Returns:
        `(params, stats)` in float32, of a `models.dcgan.Generator` or `Discriminator` with those
        widths: `network.apply({"params": params, **stats}, z)`.

    Raises:
        ValueError: names are missing or unexpected, or a kernel is not 4×4.

    Example:
        >>> from aigc_jax.models.dcgan import Discriminator
        >>> rng = np.random.default_rng(0)
        >>> shapes = {"main.0": (8, 3, 4, 4), "main.2": (1, 8, 4, 4)}  # an 8×8 image's
        >>> weights = {f"{name}.weight": rng.normal(size=s) for name, s in shapes.items()}
        >>> params, stats = read_dcgan(weights)
        >>> Discriminator((8,)).apply({"params": params, **stats}, np.zeros((2, 8, 8, 3))).tolist()
        [0.0, 0.0]
    """
    arrays = {name: np.asarray(array) for name, array in state_dict.items()}
    last = sum(array.ndim == 4 for array in arrays.values()) - 1
    # A generator normalises after every convolution but the last, a discriminator after every one
    # but the first and the last; nonlinearities are counted too.
    paints = any(name.startswith("main.1.") for name in arrays)
    if paints:
        convs, norms = [3 * i for i in range(last + 1)], [3 * i + 1 for i in range(last)]
    else:
        convs = [0, *(3 * i - 1 for i in range(1, last + 1))]
        norms = [3 * i for i in range(1, last)]
    of_conv, of_norm = ("weight",), ("weight", "bias", "running_mean", "running_var")
    expected = {f"main.{i}.{leaf}" for i in convs for leaf in of_conv}
    expected |= {f"main.{i}.{leaf}" for i in norms for leaf in of_norm}
    counts = {f"main.{i}.num_batches_tracked" for i in norms}  # of no use to a fixed momentum
    what = "generator" if paints else "discriminator"
    wrong = [
        *(f"{name} is missing" for name in sorted(expected - arrays.keys())),
        *(f"{name} is unexpected" for name in sorted(arrays.keys() - expected - counts)),
        *(
            f"{name} is of {arrays[name].shape}, not 4×4"
            for name in (f"main.{i}.weight" for i in convs)
            if name in arrays and arrays[name].shape[2:] != (4, 4)
        ),
    ]
    if wrong:
        raise ValueError(f"the weights are not a DCGAN {what}'s: {', '.join(wrong)}")

    at = lambda i, leaf: arrays[f"main.{i}.{leaf}"].astype(np.float32)
    params: dict[str, Any] = {}
    for n, i in enumerate(convs):
        kernel = at(i, "weight")
        if paints:
            # There a pixel paints the kernel; here it paints its mirror image.
            kernel = np.flip(kernel, (2, 3)).transpose(
                2, 3, 0, 1
            )  # (c, d, kh, kw) -> (kh, kw, c, d)
            params[f"ConvTranspose_{n}"] = {"kernel": kernel}
        else:
            kernel = kernel.transpose(2, 3, 1, 0)  # (d, c, kh, kw) -> (kh, kw, c, d)
            params[f"Conv_{n}"] = {"kernel": kernel}
    params |= {
        f"BatchNorm_{n}": {"scale": at(i, "weight"), "bias": at(i, "bias")}
        for n, i in enumerate(norms)
    }
    stats = {
        f"BatchNorm_{n}": {"mean": at(i, "running_mean"), "var": at(i, "running_var")}
        for n, i in enumerate(norms)
    }
    return params, {"batch_stats": stats} if stats else {}
