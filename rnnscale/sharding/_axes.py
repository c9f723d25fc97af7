"""The names of the mesh axes, which the options of a run need before jax is imported."""

AXES = ("data", "fsdp", "tensor", "seq")
"""The axes of a mesh, in order."""
