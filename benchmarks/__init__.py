"""Throughput of the input, of a training step and of sampling: `python -m benchmarks.NAME`."""

from aigc_jax import environment

environment.tune_xla()  # as the command line does
