"""The task abstraction, addressed randomness, shape idioms and device meshes."""
