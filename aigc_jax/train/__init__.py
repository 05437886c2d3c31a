"""The step, its compilers, checkpoints, logs and the loop. Receives a `Task` as a value."""
