"""Synthetic data sets of systematic generalisation, each generated from one seed, the same on every machine."""

from ._dataset import clear_cache
from .batching import Batch, BucketBatchSampler, collate
from .ctl import CTL

__all__ = ["CTL", "Batch", "BucketBatchSampler", "clear_cache", "collate"]
