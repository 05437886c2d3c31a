"""Results as JSON, with what is needed to compare and to repeat them."""

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


def write(name: str, rows: list[dict[str, Any]], folder: Path = RESULTS, **versions: str) -> Path:
    """Write `<name>.json`: the rows, and the hardware, versions, command and date they came of."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    record = {
        "hardware": hardware(),
        "versions": {"python": platform.python_version()}
        | {each: importlib.metadata.version(each) for each in ("jax", "numpy", "flax", "optax")}
        | versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return path


def read(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the rows that were written before, if any were."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def regressions(
    written: list[dict[str, Any]], rows: list[dict[str, Any]], by: tuple[str, ...], value: str
) -> list[str]:
    """Say which rows fall more than 10 % below those written before, matched by some values."""
    before = {tuple(row.get(k) for k in by): row for row in written if value in row}
    found = []
    for row in rows:
        key = tuple(row.get(k) for k in by)
        if key in before and value in row and row[value] < 0.9 * before[key][value]:
            label = " ".join(str(k) for k in key if k is not None)
            found.append(f"{label}: {value} fell from {before[key][value]} to {row[value]}")
    return found


def hardware() -> dict[str, Any]:
    """Describe the processor, how many of its cores this process may use, and JAX's devices."""
    models = [
        line.split(":", 1)[1].strip()
        for line in _cpuinfo().splitlines()
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = jax.devices()
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": cores,
        "devices": [f"{device.platform} {device.device_kind}" for device in devices],
    }


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
