"""Turn the results into a page: `python -m benchmarks.report`.

Reads `benchmarks/results/*.json` and writes `benchmarks/README.md`, a table each, and a plot of the
ratios of speed beside our peers.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

# File -> (what it says, columns as (name of the value, heading, format)).
TABLES: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "peers": (
        "Beside PyTorch and diffusers: how many times as fast (over 1, we are), the median of "
        "rounds in which the two alternate, and their quartiles",
        [
            ("case", "case", ""),
            ("size", "network", ""),
            ("ratio", "ratio", ".2f"),
            ("lowest", "first quartile", ".2f"),
            ("highest", "third quartile", ".2f"),
            ("peer", "the peer's best", ""),
            ("difference", "difference", ".1e"),
        ],
    ),
    "step": (
        "Training steps",
        [
            ("experiment", "experiment", ""),
            ("compiler", "compiler", ""),
            ("batch", "batch", ""),
            ("examples_per_second_per_device", "examples/s a device", ",.0f"),
            ("step_milliseconds", "ms a step", ",.1f"),
            ("model_flop_utilisation", "MFU", ".0%"),
            ("compile_seconds", "compile, s", ".1f"),
        ],
    ),
    "loop": (
        "The loop beside its bare step",
        [
            ("batch", "batch", ""),
            ("inner_steps", "steps a dispatch", ""),
            ("step_milliseconds", "ms a step", ",.2f"),
            ("share", "share of the bare rate", ".1%"),
        ],
    ),
    "sample": (
        "Samplers",
        [
            ("solver", "solver", ""),
            ("steps", "steps", ""),
            ("batch", "batch", ""),
            ("compile_seconds", "compile, s", ".1f"),
            ("images_per_second", "images/s", ",.1f"),
        ],
    ),
    "input": (
        "Input",
        [
            ("source", "source", ""),
            ("path", "path", ""),
            ("images_per_second", "images/s", ",.0f"),
        ],
    ),
    "scaling": (
        "Predicted scaling of the DDPM CIFAR-10 step, communication not overlapped and wholly",
        [
            ("chip", "chip", ""),
            ("chips", "chips", ""),
            ("layout", "layout", ""),
            ("batch_per_chip", "batch a chip", ""),
            ("efficiency_without_overlap", "at worst", ".0%"),
            ("efficiency_with_overlap", "at best", ".0%"),
        ],
    ),
}


def table(rows: list[dict[str, Any]], columns: list[tuple[str, str, str]]) -> str:
    """Lay rows out as a Markdown table of some of their values, leaving out rows with none.

    >>> print(table([{"a": 1.25, "b": None}], [("a", "A", ".1f"), ("b", "B", "")]))
    | A | B |
    |---|---|
    | 1.2 |  |
    """
    lines = ["| " + " | ".join(heading for _, heading, _ in columns) + " |"]
    lines.append("|---" * len(columns) + "|")
    for row in rows:
        if columns[0][0] in row:
            values = [(row.get(name), how) for name, _, how in columns]
            cells = ["" if value is None else format(value, how) for value, how in values]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(results: Path) -> str:
    """Write the page of a folder of results."""
    parts = ["# Benchmarks", "Written by `python -m benchmarks.report` from `results/`."]
    for path in sorted(results.glob("*.json")):
        name = next((name for name in TABLES if path.stem.startswith(name)), None)
        if name is None:
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        says, columns = TABLES[name]
        hardware, versions = record["hardware"], record["versions"]
        devices = ", ".join(sorted(set(hardware["devices"])))
        parts += [
            f"## {says}" if path.stem == name else f"## {says} ({path.stem})",
            table(record["rows"], columns),
            f"`{record['command']}`, {record['date'][:10]}; {hardware['cores']} cores of "
            f"{hardware['cpu']}; {devices}; "
            + ", ".join(f"{name} {version}" for name, version in versions.items()),
        ]
        if name == "peers":
            parts.insert(
                -1, f"![Ratios of speed]({plot(path, record['rows']).relative_to(results.parent)})"
            )
    return "\n\n".join(parts) + "\n"


def plot(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Draw the ratios of speed, and where they would be even."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = rows[::-1]
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.4 * len(rows)), layout="constrained")
    ratios = [row["ratio"] for row in rows]
    spread = [
        [r["ratio"] - r["lowest"] for r in rows],
        [r["highest"] - r["ratio"] for r in rows],
    ]
    colours = ["tab:green" if ratio >= 1 else "tab:orange" for ratio in ratios]
    axes.barh([row["case"] for row in rows], ratios, xerr=spread, color=colours, capsize=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times as fast as the peer")
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture


def main() -> None:
    out = RESULTS.parent / "README.md"
    out.write_text(page(RESULTS), encoding="utf-8")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
