"""What bits buy: the distortion of reconstructions against the rate of their latents."""

from typing import Any

import numpy as np


def rate_distortion_plot(
    rates: Any, distortions: Any, names: Any, *, title: str = "", dpi: int = 120
) -> np.ndarray:
    """Plot models of the same data by their rate R = KL(q(z|x) ‖ p(z)) and distortion D.

    D = E[−log p(x|z)], so that R + D = −ELBO, whose least value among the models is drawn as a line
    of slope −1. No model lies below the entropy of the data, R + D ≥ H.

    Args:
        rates: (n,) nats.
        distortions: (n,) nats.
        names: n words beside the points, such as the β of each.
        title: of the plot.
        dpi: dots an inch, of 6 by 4.5 inches.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the three are not of one length, or there are none.

    Reference: Alemi et al. 2018, "Fixing a broken ELBO", figure 1.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rate, distortion = np.asarray(rates, float), np.asarray(distortions, float)
    if rate.ndim != 1 or not rate.shape == distortion.shape == (len(names),) or not len(rate):
        raise ValueError(
            f"rates {rate.shape}, distortions {distortion.shape} and {len(names)} names must be as "
            "many, and at least one"
        )
    order = np.argsort(rate)
    figure = Figure((6, 4.5), dpi, layout="constrained")
    axes = figure.add_subplot()
    best = (rate + distortion).min()
    ends = np.array([0, rate.max() * 1.05])
    axes.plot(ends, best - ends, ":", color="grey", label=f"−ELBO = {best:.4g} nats")
    axes.plot(rate[order], distortion[order], "o-")
    for name, x, y in zip(names, rate, distortion, strict=True):
        axes.annotate(str(name), (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set_xlabel("rate: KL(q(z|x) ‖ p(z)), nats")
    axes.set_ylabel("distortion: −E log p(x|z), nats")
    axes.set_title(title)
    axes.legend(frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]  # (H, W, 4) -> (H, W, 3)
