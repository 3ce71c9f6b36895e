"""Data: sources of examples, the fields that a batch holds of them, their order, and feeds for training."""

from archirf_jax.data.dataset import Dataset
from archirf_jax.data.images import to_float, to_uint8
from archirf_jax.data.library import folder, from_arrays, load

__all__ = ["Dataset", "folder", "from_arrays", "load", "to_float", "to_uint8"]
