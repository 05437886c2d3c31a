"""Plot the rate-distortion curve of trained VAEs: `python -m benchmarks.rate_distortion RUN ...`.

    for beta in 0.25 0.5 1 2 4 8 16; do
      aigc train beta_vae_mnist --beta $beta --inner-steps 10 --out runs/beta-$beta
    done
    python -m benchmarks.rate_distortion runs/beta-* --out rate_distortion.png

A point is a run: the `kl` and the `reconstruction` of the test split in its evaluation.json, beside
the β that its experiment was given.
"""

import argparse
import json
from pathlib import Path

from aigc_jax.files import write_png
from aigc_jax.metrics.rate_distortion import rate_distortion_plot


def read(run: Path) -> tuple[float, float, str]:
    """Return the rate and the distortion of a run, in nats, and its name."""
    scores = json.loads((run / "evaluation.json").read_text())
    arguments = json.loads((run / "experiment.json").read_text())["arguments"]
    found = {name.partition("/")[0]: value for name, value in scores.items()}
    return found["kl"], found["reconstruction"], f"β = {arguments['beta']:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Plot the rate-distortion curve of VAEs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("rate_distortion.png"))
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    for run in options.runs:
        if not (run / "evaluation.json").is_file():
            parser.error(f"{run} holds no evaluation.json; aigc evaluate {run} makes it")
    points = sorted(read(run) for run in options.runs)
    for rate, distortion, name in points:
        print(f"{name}: rate {rate:.2f} + distortion {distortion:.2f} = {rate + distortion:.2f}")
    write_png(options.out, rate_distortion_plot(*zip(*points, strict=True), title=options.title))
    print(options.out)


if __name__ == "__main__":
    main()
