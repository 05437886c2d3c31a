"""What commands set in the environment for JAX, which reads it when it is imported.

Nothing else in the library does. Once JAX is imported these come too late, and do nothing; what a
user has set stays.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

# By version of jaxlib, because a flag it does not know ends the process. Each was measured.
XLA_FLAGS = {
    # Convolutions on a CPU by Eigen, not by YNNPACK: a U-Net trains 1.5 times as fast.
    "0.10": ("--xla_cpu_experimental_ynn_fusion_type=-individual_convolution",),
}


def tune_xla() -> None:
    """Set the flags that make programs of the installed XLA faster."""
    if "jax" in sys.modules:
        return
    version = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
    given = os.environ.get("XLA_FLAGS", "").split()
    known = {flag.partition("=")[0] for flag in given}
    ours = [f for f in XLA_FLAGS.get(version, ()) if f.partition("=")[0] not in known]
    os.environ["XLA_FLAGS"] = " ".join([*given, *ours])


def keep_programs() -> None:
    """Let later commands find the programs this one compiles, in `~/.cache/aigc_jax`."""
    if "jax" in sys.modules:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "aigc_jax"))
