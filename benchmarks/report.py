"""Turn the results into a page: `python -m benchmarks.report`.

Reads `benchmarks/results/*.json` and writes `benchmarks/README.md`, a table each, and plots of the
ratios of speed beside our peers and of the samplers, beside the results.
"""

import json
from collections.abc import Callable
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
            ("tokens_per_second_per_device", "tokens/s a device", ",.0f"),
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
            ("share", "share of the step's rate on the same batches", ".1%"),
            ("share_with_reading", "of its rate on one batch", ".1%"),
        ],
    ),
    "sample": (
        "Samplers: cold, the first call in a process, and warm, every call after it",
        [
            ("experiment", "experiment", ""),
            ("solver", "solver", ""),
            ("steps", "steps", ""),
            ("batch", "batch", ""),
            ("samples_per_second", "samples/s", ",.1f"),
            ("latency_milliseconds", "one sample, ms", ",.1f"),
            ("latency_milliseconds_p10", "10 %", ",.1f"),
            ("latency_milliseconds_p90", "90 %", ",.1f"),
            ("cold_seconds", "cold, s", ".1f"),
            ("trace_seconds", "to trace", ".1f"),
            ("compile_seconds", "to compile", ".1f"),
            ("compile_ratio", "of fewest steps'", ".2f"),
            ("first_run_seconds", "to run", ".1f"),
        ],
    ),
    "speculative": (
        "Speculative sampling beside the target alone: how many times as fast, and quartiles",
        [
            ("target_parameters", "target's parameters", ",.0f"),
            ("draft_parameters", "draft's parameters", ",.0f"),
            ("batch", "batch", ""),
            ("ahead", "drafted a round", ""),
            ("accepted", "taken a round", ".2f"),
            ("tokens_per_second", "tokens/s", ",.0f"),
            ("ratio", "ratio", ".2f"),
            ("lowest", "first quartile", ".2f"),
            ("highest", "third quartile", ".2f"),
        ],
    ),
    "input": (
        "Input, beside a PyTorch DataLoader of the same memory or the same files",
        [
            ("source", "source", ""),
            ("path", "path", ""),
            ("images_per_second", "images/s", ",.0f"),
            ("ratio", "ratio", ".2f"),
            ("lowest", "first quartile", ".2f"),
            ("highest", "third quartile", ".2f"),
            ("peer_images_per_second", "PyTorch's images/s", ",.0f"),
            ("peer", "the peer's best", ""),
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
    """Lay rows out as a Markdown table, leaving out rows and columns with none of its values.

    >>> print(table([{"a": 1.25, "b": None}], [("a", "A", ".1f"), ("b", "B", "")]))
    | A | B |
    |---|---|
    | 1.2 |  |
    """
    columns = [each for each in columns if any(each[0] in row for row in rows)]
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
        if name in PLOTS:
            says, draw = PLOTS[name]
            picture = path.with_suffix(".png")
            if draw(picture, record["rows"]):
                parts.insert(-1, f"![{says}]({picture.relative_to(results.parent)})")
    return "\n\n".join(parts) + "\n"


def plot_ratios(picture: Path, rows: list[dict[str, Any]]) -> bool:
    """Draw the ratios of speed, and where they would be even; return whether there are any."""
    rows = [row for row in rows if "ratio" in row][::-1]
    if not rows:
        return False
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.4 * len(rows)), layout="constrained")
    names = [row.get("case") or f"{row['source']}: {row['path']}" for row in rows]
    ratios = [row["ratio"] for row in rows]
    spread = [
        [r["ratio"] - r["lowest"] for r in rows],
        [r["highest"] - r["ratio"] for r in rows],
    ]
    colours = ["tab:green" if ratio >= 1 else "tab:orange" for ratio in ratios]
    axes.barh(names, ratios, xerr=spread, color=colours, capsize=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times as fast as the peer")
    return _saved(figure, picture)


def plot_samplers(picture: Path, rows: list[dict[str, Any]]) -> bool:
    """Draw the latency of one sample against the number of steps, and what a cold start is of."""
    rows = [row for row in rows if "solver" in row]
    if not rows:
        return False
    several = len({row["experiment"] for row in rows}) > 1
    names = [f"{row['experiment']} {row['solver']}" if several else row["solver"] for row in rows]
    figure, (warm, cold) = _pyplot().subplots(
        1, 2, figsize=(10, 1.5 + 0.3 * len(rows)), layout="constrained"
    )
    for name in dict.fromkeys(names):
        own = [row for row, its in zip(rows, names, strict=True) if its == name]
        middle = [row["latency_milliseconds"] for row in own]
        spread = [
            [row["latency_milliseconds"] - row["latency_milliseconds_p10"] for row in own],
            [row["latency_milliseconds_p90"] - row["latency_milliseconds"] for row in own],
        ]
        steps = [row["steps"] for row in own]
        warm.errorbar(steps, middle, spread, label=name, marker="o", capsize=3)
    warm.set(xscale="log", yscale="log", xlabel="steps", ylabel="one sample, warm, ms")
    every = sorted({row["steps"] for row in rows})
    warm.set_xticks(every, labels=every)
    warm.set_xticks([], minor=True)
    warm.legend()

    labels = [f"{name}, {row['steps']}" for name, row in zip(names, rows, strict=True)]
    done = [0.0] * len(rows)
    for what in ("trace", "compile", "first_run"):
        seconds = [row[f"{what}_seconds"] for row in rows]
        cold.barh(labels, seconds, left=done, label=what.replace("_", " "))
        done = [a + b for a, b in zip(done, seconds, strict=True)]
    cold.invert_yaxis()
    cold.set_xlabel(f"first call, a batch of {rows[0]['batch']}, s")
    cold.legend()
    return _saved(figure, picture)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _saved(figure: Any, picture: Path) -> bool:
    figure.savefig(picture, dpi=120)
    _pyplot().close(figure)
    return True


# File -> (what its picture shows, what draws it).
PLOTS: dict[str, tuple[str, Callable[[Path, list[dict[str, Any]]], bool]]] = {
    "peers": ("Ratios of speed", plot_ratios),
    "input": ("Ratios of speed to a DataLoader's", plot_ratios),
    "sample": ("Latency of one sample, and of the first call", plot_samplers),
}


def main() -> None:
    out = RESULTS.parent / "README.md"
    out.write_text(page(RESULTS), encoding="utf-8")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
