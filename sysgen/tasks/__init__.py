"""Synthetic data sets of systematic generalisation, each generated from one seed, the same on every machine."""

from ._dataset import clear_cache
from .arithmetic import SimpleArithmetic
from .babi import BAbI
from .batching import Batch, BucketBatchSampler, collate
from .ctl import CTL
from .ctlpp import CTLPlusPlus
from .listops import ListOps
from .memory import AssociativeRecall, BitBatch, BitStream, Copy, CountedCopy, KeyValue, RepeatedCopy, Reversal
from .scan import SCAN

__all__ = [
    "CTL",
    "SCAN",
    "AssociativeRecall",
    "BAbI",
    "Batch",
    "BitBatch",
    "BitStream",
    "BucketBatchSampler",
    "CTLPlusPlus",
    "Copy",
    "CountedCopy",
    "KeyValue",
    "ListOps",
    "RepeatedCopy",
    "Reversal",
    "SimpleArithmetic",
    "clear_cache",
    "collate",
]
