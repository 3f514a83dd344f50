"""ListOps with equally many samples of each dependency depth (Csordas 2023, Sec. 5.4.3; Nangia & Bowman 2018)."""

from ._dataset import ClassificationDataset, check_int
from ._expressions import collect, core, equal_quota

OPERATORS = ("MIN", "MAX", "MED", "SM")
DIGITS = [str(digit) for digit in range(10)]


class ListOps(ClassificationDataset):
    """Nested operations on lists of digits, like ``[MAX 2 [MIN 4 7 ] 0 ]``; the class is the result, a digit.

    ``MED`` is the median, the floor of the mean of the middle two for an even number of arguments; ``SM`` the sum
    modulo 10. A node is an operator with probability ``op_probability`` unless it is at the largest tree depth, and has
    2 to ``max_args`` arguments. A tree that is too shallow becomes an argument of a new operator, with 2 to
    ``max_args - 1`` fresh ones; it is never the last argument, as in the released generator.

    The dependency depth counts the nodes on the longest path that the result depends on: 1 for a digit; for ``MIN`` and
    ``MAX`` that of the chosen argument (the first of equal ones) and for ``MED`` the largest of the one or two in the
    middle, plus 1; for ``SM`` the largest of all, plus 1. The thesis counts one less. Trees are no deeper than the
    largest dependency depth of their split.

    Splits; no expression is twice in one of them, or in two:

    ===========  ===============================  =================
    ``"train"``  dependency depths 2 … max_depth  num_train
    ``"iid"``    the same                         num_eval
    ``"valid"``  max_depth + 1                    num_eval
    ``"test"``   max_depth + 2 and max_depth + 3  num_eval
    ===========  ===============================  =================

    The released generator drew train and iid independently; here one expression in sixteen, by its hash, is held out
    for iid.

    Args:
        split: one of the names above, or several that are joined.
        seed: int. The data depend on nothing else; in particular not on the number of threads.
        progress: show a bar, if tqdm is there.
        num_train, num_eval: numbers of samples.
        max_depth: largest depth in training, in [2, 29].
        max_length: largest length, where an operator with its brackets counts 3 and a digit 1.
        max_args, op_probability: see above.
        cache_dir: folder in which the data are kept; None: in memory only.

    ``dataset[i]`` is ``(tokens LongTensor [n], target int)``. ``depths`` are the dependency depths, ``tree_depths``
    those of the trees.
    """

    SPLITS = ("train", "iid", "valid", "test")

    def __init__(
        self,
        split="train",
        seed=0,
        progress=False,
        *,
        num_train=1_000_000,
        num_eval=1000,
        max_depth=6,
        max_length=50,
        max_args=5,
        op_probability=0.3,
        cache_dir=None,
    ):
        check_int("num_train", num_train, 1)
        check_int("num_eval", num_eval, 1)
        check_int("max_depth", max_depth, 2, 29)
        check_int("max_length", max_length, 5, 255)
        check_int("max_args", max_args, 3, 31)
        if not 0 <= op_probability < 1:
            raise ValueError(f"op_probability must be in [0, 1), got {op_probability}")
        self.vocabulary = ["]", *("[" + name for name in OPERATORS), *DIGITS]
        self.classes = DIGITS
        parameters = {
            "num_train": num_train,
            "num_eval": num_eval,
            "max_depth": max_depth,
            "max_length": max_length,
            "max_args": max_args,
            "op_probability": float(op_probability),
        }
        super().__init__(split, seed, parameters, progress, cache_dir)

    def _part(self, split):
        return split

    def _matters(self, part, parameter):
        return parameter != ("num_eval" if part == "train" else "num_train")

    @property
    def tree_depths(self):
        """Depth of the tree of each sample, IntTensor [M]."""
        return self._table["tree_depths"]

    def _generate(self, part, progress):
        p = self.parameters
        top = p["max_depth"]
        depths = {"valid": (top + 1, top + 1), "test": (top + 2, top + 3)}.get(part, (2, top))
        num = p["num_train" if part == "train" else "num_eval"]
        table = collect(
            core.listops_generate,
            "listops",
            part,
            self.seed,
            progress,
            quota=equal_quota(num, depths),
            depths=depths,
            max_length=p["max_length"],
            max_args=p["max_args"],
            op_probability=p["op_probability"],
        )
        return {part: table}
