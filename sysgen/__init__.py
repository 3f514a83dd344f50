"""Kernels and layers for research on systematic generalisation and memory-augmented networks."""

import torch  # noqa: F401  must precede the core, so that one OpenMP runtime serves both

from . import analysis, nn, ops, reference, tasks
from ._alloc import empty_cache
from ._load import core as _core

__version__ = _core.version
__all__ = ["analysis", "empty_cache", "nn", "ops", "reference", "tasks"]
