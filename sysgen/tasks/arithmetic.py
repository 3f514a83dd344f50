"""Simple arithmetic (Csordas 2023, Sec. 5.4.2 and App. D.3.2)."""

import torch

from ._dataset import ClassificationDataset, check_choice, check_int, concatenate
from ._expressions import collect, core, equal_quota

OPERATORS = ("+", "*")
DIGITS = [str(digit) for digit in range(10)]


class SimpleArithmetic(ClassificationDataset):
    """Sums and products modulo 10 in parentheses, like ``((4*7)+2)``; the class is the result, a digit.

    A node is an operation with probability 0.2 (train, iid) or 0.3 (valid, test), unless it is at the largest depth. A
    tree that is too shallow becomes an operand of a new operation, with a fresh tree as the other operand. The depth
    counts the nodes from the root to the deepest digit; the thesis counts one less.

    Splits; no expression is twice in one of them, or in two:

    ===========  =================================  ===============
    ``"train"``  all 200 of depth 2, 3 … max_depth  200 + num_train
    ``"iid"``    3 … max_depth                      num_eval
    ``"valid"``  max_depth + 1                      num_eval
    ``"test"``   max_depth + 2 and max_depth + 3    num_eval
    ===========  =================================  ===============

    Each depth above 2 has equally many samples, unless these would be more than three quarters of all expressions of
    the depth. In the released data, 438 of the 1200 iid samples are in train; here iid leaves out the 200 of depth 2,
    and one expression in sixteen, by its hash, is held out for it.

    Args:
        split: one of the names above, or several that are joined.
        growth: what becomes of a tree that is too shallow. ``"reference"``: always the right operand, as in the
            released generator, whose random choice never takes the other way; about 90 % of the trees of depth 4 and
            more in train are then deeper on the left, and 90 % of those in valid on the right. ``"balanced"``: either
            operand, as intended.
        seed: int. The data depend on nothing else; in particular not on the number of threads.
        progress: show a bar, if tqdm is there.
        num_train, num_eval: numbers of samples. The thesis has runs with 50 000, 100 000 and 200 000.
        max_depth: largest depth in training, in [3, 29].
        max_length: largest number of tokens.
        cache_dir: folder in which the data are kept; None: in memory only.

    ``dataset[i]`` is ``(tokens LongTensor [n], target int)``; ``depths`` are the depths of the trees.
    """

    SPLITS = ("train", "iid", "valid", "test")
    separator = ""

    def __init__(
        self,
        split="train",
        growth="reference",
        seed=0,
        progress=False,
        *,
        num_train=100_000,
        num_eval=1000,
        max_depth=6,
        max_length=50,
        cache_dir=None,
    ):
        check_choice("growth", growth, ("reference", "balanced"))
        check_int("num_train", num_train, 1)
        check_int("num_eval", num_eval, 1)
        check_int("max_depth", max_depth, 3, 29)
        check_int("max_length", max_length, 13, 255)
        self.vocabulary = ["(", ")", *OPERATORS, *DIGITS]
        self.classes = DIGITS
        parameters = {
            "growth": growth,
            "num_train": num_train,
            "num_eval": num_eval,
            "max_depth": max_depth,
            "max_length": max_length,
        }
        super().__init__(split, seed, parameters, progress, cache_dir)

    def _part(self, split):
        return split

    def _matters(self, part, parameter):
        return parameter != ("num_eval" if part == "train" else "num_train")

    def _generate(self, part, progress):
        p = self.parameters
        top = p["max_depth"]
        depths = {"valid": (top + 1, top + 1), "test": (top + 2, top + 3)}.get(part, (3, top))
        num = p["num_train" if part == "train" else "num_eval"]
        limits = {depth: 3 * min(_num_expressions(depth), 2 * num) // 4 for depth in range(depths[0], depths[1] + 1)}
        table = collect(
            core.arithmetic_generate,
            "arithmetic",
            part,
            self.seed,
            progress,
            quota=equal_quota(num, depths, limits),
            depths=depths,
            max_length=p["max_length"],
            op_probability=0.2 if part in ("train", "iid") else 0.3,
            left_probability=0.0 if p["growth"] == "reference" else 0.5,
        )
        return {part: concatenate([_single_operations(), table]) if part == "train" else table}


def _num_expressions(depth):
    """Different expressions of a depth of at least 2."""
    below, at_most = 0, 10
    for _ in range(depth - 1):
        below, at_most = at_most, 10 + len(OPERATORS) * at_most**2
    return at_most - below


def _single_operations():
    """The 200 expressions of depth 2."""
    op, a, b = torch.cartesian_prod(torch.arange(2), torch.arange(10), torch.arange(10)).unbind(1)
    tokens = torch.stack([torch.zeros_like(a), 4 + a, 2 + op, 4 + b, torch.ones_like(a)], 1)
    depths = torch.full_like(a, 2).int()
    return {
        "tokens": tokens.flatten().to(torch.uint8),
        "tokens_offsets": 5 * torch.arange(len(a) + 1),
        "targets": (torch.where(op == 0, a + b, a * b) % 10).to(torch.uint8),
        "depths": depths,
        "tree_depths": depths,
    }
