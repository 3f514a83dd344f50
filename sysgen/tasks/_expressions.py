"""Expressions that the core draws: ListOps and arithmetic."""

import torch

from .._load import core
from ._dataset import progress_bar
from ._random import key_of


def equal_quota(num, depths, limits=None):
    """Samples of each depth from ``depths[0]`` to ``depths[1]``: equally many, or at most ``limits[depth]``."""
    quota = []
    for depth in range(depths[0], depths[1] + 1):
        share = -(-(num - sum(quota)) // (depths[1] - depth + 1))
        quota.append(min(share, limits[depth]) if limits else share)
    return quota


def collect(generate, name, part, seed, progress, *, quota, depths, max_length, patience=200_000_000, **arguments):
    """Table of ``sum(quota)`` different expressions; those of part ``"iid"`` are in no other part.

    Which of the two sides an expression is on is decided by its hash: one in sixteen is held out for ``"iid"``.
    ValueError if ``patience`` trials in a row give no new sample, MemoryError if there is no memory for so many.
    """
    num = sum(quota)
    try:
        tokens = torch.empty(num * max_length, dtype=torch.uint8)
    except RuntimeError as error:
        raise MemoryError(f"{name} {part}: no memory for {num} samples of up to {max_length} tokens") from error
    offsets = torch.empty(num + 1, dtype=torch.int64)
    targets, bins, tree_depths = (torch.empty(num, dtype=torch.uint8) for _ in range(3))
    with progress_bar(progress, num, f"{name} {part}") as report:
        generate(
            tokens,
            offsets,
            targets,
            bins,
            tree_depths,
            key=key_of(seed, name, part),
            quota=quota,
            min_depth=depths[0],
            max_depth=depths[1],
            max_length=max_length,
            held_out=part == "iid",
            num_threads=torch.get_num_threads(),
            patience=patience,
            progress=report,
            **arguments,
        )
    return {
        "tokens": tokens[: offsets[-1]].clone(),
        "tokens_offsets": offsets,
        "targets": targets,
        "depths": bins.int(),
        "tree_depths": tree_depths.int(),
    }


__all__ = ["collect", "core", "equal_quota"]
