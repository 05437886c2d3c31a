"""Tests run on a CPU that pretends to be four devices: every layout is exercised anywhere."""

import importlib.metadata
import os

FLAGS = [
    "--xla_force_host_platform_device_count=4",
    # Programs here are compiled once and run for milliseconds: compiling is what takes time.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
# A flag that an XLA does not know ends the process.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Loops are emitted without MLIR, in half the time.
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
