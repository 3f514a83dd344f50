"""Synthetic data sets of systematic generalisation, each generated from one seed, the same on every machine."""

from ._dataset import clear_cache
from .arithmetic import SimpleArithmetic
from .batching import Batch, BucketBatchSampler, collate
from .ctl import CTL
from .ctlpp import CTLPlusPlus
from .listops import ListOps
from .scan import SCAN

__all__ = [
    "CTL",
    "SCAN",
    "Batch",
    "BucketBatchSampler",
    "CTLPlusPlus",
    "ListOps",
    "SimpleArithmetic",
    "clear_cache",
    "collate",
]
