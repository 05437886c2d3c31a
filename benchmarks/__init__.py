"""Throughput of the input, of a training step and of sampling: `python -m benchmarks.NAME`."""
