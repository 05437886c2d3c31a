"""Checkpoints: written in the background, whole or not at all, and verified when read."""

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policy

from aigc_jax.core.types import State

TMP_DIR_SUFFIX = ".orbax-checkpoint-tmp"  # what orbax appends while it writes
DIGESTS = "digests.json"

# Orbax narrates every save through absl, with tracebacks of errors that it then raises as well.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Checkpoints:
    """The checkpoints of one run: the last few, and the best.

    Args:
        directory: where they live; made if it is not there.
        keep: how many of the latest to keep.
        best: the metric whose best checkpoint is kept too, and whether "max" or "min" is best.
        report: receives a line for each checkpoint found damaged.
        writable: False leaves the directory as it is, so that a run can be read while it trains.

    Raises:
        ValueError: `keep` is below 1, or `best` asks for neither "max" nor "min".

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> state = State(jnp.int32(7), {"net": {"w": jnp.ones(3)}}, {}, {}, {})
        >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
        ...     checkpoints.save(state, {"experiment": "demo"})
        ...     restored, step = checkpoints.restore(jax.eval_shape(lambda: state))
        >>> step, restored.params["net"]["w"].tolist()
        (7, [1.0, 1.0, 1.0])
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 3,
        best: tuple[str, str] | None = None,
        report: Callable[[str], None] = warnings.warn,
        writable: bool = True,
    ):
        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1")
        if best is not None and best[1] not in ("max", "min"):
            raise ValueError(f'best={best} must end with "max" or "min"')
        self.directory = Path(directory).resolve()
        self._report = report
        self._writable = writable
        policies: list[policy.PreservationPolicy] = [policy.LatestN(keep)]
        if best is not None:
            policies.append(
                policy.BestN(
                    get_metric_fn=_quality(*best), n=1, keep_checkpoints_without_metrics=False
                )
            )
        # Orbax reads all metrics when it opens, and would open nothing if one did not parse.
        broken = self._unreadable_metrics() if jax.process_index() == 0 else []
        unread = bool(_agreed(", ".join(map(str, broken))))
        if unread and writable:
            self._set_aside(broken)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=_quality(*best) if best is not None else None,
                preservation_policy=policy.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=writable,
                create=writable,
                lightweight_initialize=unread and not writable,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Return the steps at which there is a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(
        self, state: State, identity: dict[str, Any], metrics: dict[str, float] | None = None
    ) -> None:
        """Write a checkpoint in the background; a step that has one already is left as it is.

        The state is copied before this returns, so the next step may donate it.

        Args:
            state: of concrete arrays, in any layout.
            identity: what the run is, as JSON.
            metrics: those of an evaluation at this step, for `best`.

        Raises:
            OSError: this or the previous checkpoint could not be written. Earlier ones are intact.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self.wait()  # `_seal` of the previous one must not find the new step
        self._saving = step
        self._check_room(state)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
                    identity=ocp.args.JsonSave(identity),  # pyright: ignore[reportCallIssue]
                ),
                metrics=metrics,
                force=True,
            )
        except Exception as error:
            raise self._unwritten(_reason(error)) from error

    def wait(self) -> None:
        """Wait until every checkpoint is on disk.

        Raises:
            OSError: one could not be written. Earlier ones are intact.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(_reason(error)) from error

    def close(self) -> None:
        """Wait until every checkpoint is on disk and release what writes them."""
        self.wait()
        self._manager.close()

    def identity(self, step: int) -> dict[str, Any]:
        """Return the identity that was saved at a step."""
        args = ocp.args.Composite(identity=ocp.args.JsonRestore())
        return dict(self._manager.restore(step, args=args)["identity"])

    def restore(
        self, like: State, which: Literal["latest", "best"] = "latest"
    ) -> tuple[State, int]:
        """Read the newest checkpoint that is whole.

        A damaged one is reported, and set aside as `<step>.damaged` if an older one is read in its
        place, so that training can write that step again.

        Args:
            like: the shapes, types and shardings wanted (`jax.ShapeDtypeStruct`), whatever layout
                the checkpoint was written from.
            which: "best" tries the one with the best metric first.

        Returns:
            The state and its step.

        Raises:
            FileNotFoundError: there is no checkpoint.
            OSError: there is none that is whole.
            ValueError: the newest whole one holds something else than `like`.
        """
        self.wait()
        steps = self.steps()[::-1]
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self.directory}")
        if which == "best" and (best := self._manager.best_step()) is not None:
            steps = [best, *(step for step in steps if step != best)]
        damaged: dict[int, str] = {}
        for step in steps:
            if reason := self._damage(step):
                damaged[step] = reason
                self._report(f"checkpoint {step} in {self.directory} is damaged: {reason}")
            else:
                break
        else:
            raise OSError(
                f"every checkpoint in {self.directory} is damaged; "
                f"the latest, {steps[0]}: {damaged[steps[0]]}"
            )
        if misfit := self._misfit(step, like):
            raise ValueError(f"checkpoint {step} in {self.directory} is of another model: {misfit}")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))  # pyright: ignore[reportCallIssue]
        state = self._manager.restore(step, args=args)["state"]
        if damaged and self._writable:
            self._set_aside(list(damaged))
            self._manager.reload()
        return state, step

    def _damage(self, step: int) -> str:
        """Return what is wrong with a checkpoint's files, as process 0 sees them, or nothing."""
        reason = ""
        if jax.process_index() == 0:
            try:
                reason = _compare(self.directory / str(step))
            except (OSError, ValueError) as error:
                reason = _reason(error)
        return _agreed(reason)

    def _misfit(self, step: int, like: State) -> str:
        """Return the first leaf that is not as wanted, or nothing."""
        path = epath.Path(self.directory / str(step) / "state")
        held = ocp.tree.to_flat_dict(ocp.StandardCheckpointHandler().metadata(path).tree, sep=".")
        asked = ocp.tree.to_flat_dict(like, sep=".")
        for name in sorted({*held, *asked}):
            there, here = (
                f"{tree[name].dtype}{list(tree[name].shape)}" if name in tree else "nothing"
                for tree in (held, asked)
            )
            if there != here:
                return f"its {name} is {there}, not {here}"
        return ""

    def _unreadable_metrics(self) -> list[int]:
        steps = []
        for path in self.directory.glob("*/metrics/metrics"):
            step = path.parts[-3]
            if not step.isdigit():  # still being written, or set aside
                continue
            try:
                json.loads(path.read_text())
            except (OSError, ValueError) as error:
                self._report(f"checkpoint {step} in {self.directory} is damaged: {_reason(error)}")
                steps.append(int(step))
        return steps

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                aside = self.directory / f"{step}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                (self.directory / str(step)).rename(aside)
        multihost_utils.sync_global_devices("checkpoints set aside")

    def _check_room(self, state: State) -> None:
        """Refuse what will not fit. A write that fails half way leaves more to clear away."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        reason = f"it takes {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
        if reason := _agreed(reason if free < needed else ""):
            raise self._unwritten(reason)

    def _seal(self) -> None:
        """Record the digest of every file of a checkpoint before it is committed."""
        directory = self.directory / f"{self._saving}{TMP_DIR_SUFFIX}"
        (directory / DIGESTS).write_text(json.dumps(_digests(directory), indent=1))

    def _unwritten(self, reason: str) -> OSError:
        self._manager.reload()  # it has struck off already what the new one was to replace
        return OSError(
            f"a checkpoint could not be written to {self.directory}: {reason}; "
            "earlier ones are intact"
        )


def _quality(name: str, mode: str) -> Callable[[dict[str, float]], float]:
    """Return the number to maximise; a checkpoint without it, or with a NaN, is the worst."""

    def quality(metrics: dict[str, float]) -> float:
        value = metrics.get(name, math.nan) * (1 if mode == "max" else -1)
        return -math.inf if math.isnan(value) else value

    return quality


def _digests(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a checkpoint, by its path within."""
    digests = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.parent != directory:
            with path.open("rb") as file:
                name = path.relative_to(directory).as_posix()
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _compare(directory: Path) -> str:
    """Return how the files of a checkpoint differ from what was written, or nothing."""
    written = json.loads((directory / DIGESTS).read_text())
    found = _digests(directory)
    if missing := sorted(written.keys() - found.keys()):
        return f"{missing[0]} is missing"
    if changed := [name for name, digest in written.items() if found[name] != digest]:
        return f"{changed[0]} is not what was written"
    return ""


def _agreed(reason: str) -> str:
    """Return what process 0 finds wrong, or nothing, on every process."""
    wrong = multihost_utils.broadcast_one_to_all(np.bool_(reason != ""))
    return (reason or "see process 0") if wrong else ""


def _reason(error: BaseException) -> str:
    """Reduce an error to one line: what the system said, if that is in it."""
    text = str(error)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(code) in text:
            return os.strerror(code)
    line = next((line for line in text.splitlines() if line.strip()), "").strip()
    line = line if len(line) <= 300 else line[:300] + "…"
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
