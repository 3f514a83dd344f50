"""Compositional table lookup (Liška et al. 2018; Csordas 2023, Sec. 5.4.1 and App. D.3.1)."""

import math
from string import ascii_lowercase

import torch

from ._dataset import (
    ClassificationDataset,
    check_choice,
    check_int,
    concatenate,
    first_of_each,
    ragged,
    reversed_rows,
    select,
)
from ._random import Stream, below, draw, hash_rows, key_of, permutation

NUM_SYMBOLS, NUM_FUNCTIONS = 8, 11
NUM_COMPOSED = NUM_FUNCTIONS - 2  # the last two occur in training alone only
NUM_REPEATS = 30  # of each example of these two
NUM_HELD_OUT = 4000
NUM_TEST = 1000  # of each other part of the validation and test data


class CTL(ClassificationDataset):
    """A symbol and functions to be applied to it one after the other; the class is the result.

    The functions ``a`` … ``k`` are random bijections of eight symbols (words of three bits), the same in all splits.
    A tenth of all compositions of two to ``max_depth`` of the first nine, with each symbol, is in the training data
    (531 360 / 10), drawn with lengths uniform as far as there are enough, and without the up to 200 compositions of
    each depth (about a quarter at most) that are reserved for ``"new_composition"``. Each single function with each
    symbol is in there too, those of ``j`` and ``k`` 30 more times: 53 704 samples, 53 224 of them different.

    Splits, as in the released data (Csordas 2023):

    ================================  ====================================================================  ==========
    ``"train"``                                                                                                 53 704
    ``"iid_valid"``, ``"iid_test"``   like the compositions in train; disjoint (``"iid"``: the latter)            4000
    ``"valid"``, ``"deeper_valid"``   depth max_depth + 1 to max_depth + more_depth_valid: 6–8                    1000
    ``"test"``, ``"deeper_test"``     depth above it up to max_depth + more_depth_test: 9–10; the metric          1000
    ``"basic"``                       single functions, all of them in train                                        88
    ``"new_primitive_1"``             compositions with ``j``                                                     1000
    ``"new_primitive_2"``             compositions with ``k``                                                     1000
    ``"train_new_primitive"``         2000 more of these, to train on; not in train                               2000
    ``"new_composition"``             the reserved ones. Three are of one function and so in train, one of none    608
    ================================  ====================================================================  ==========

    The released test file joins ``("basic", "iid_test", "new_primitive_1", "new_primitive_2", "test",
    "new_composition")``, its validation file ``("iid_valid", "valid")``.

    Args:
        split: one of the names above, or several that are joined.
        direction: ``"forward"``: ``101 d a b``, first function first; ``"backward"``: ``b a d 101``. The same samples.
        seed: int. All splits of one seed belong together.
        progress: unused, the data take less than a second.
        max_depth: largest number of functions in training, 3 or more.
        more_depth_valid, more_depth_test: see above. The baselines without a gate were validated with
            more_depth_valid=2, so that their test data have depth 8–10.
        cache_dir: folder in which the data are kept; None: in memory only.

    ``dataset[i]`` is ``(tokens LongTensor [depth + 1], target int)``; ``depths`` is the number of functions.
    """

    SPLITS = (
        "train", "iid", "iid_valid", "iid_test", "valid", "deeper_valid", "test", "deeper_test", "basic",
        "new_primitive_1", "new_primitive_2", "train_new_primitive", "new_composition",
    )  # fmt: skip

    def __init__(
        self,
        split="train",
        direction="forward",
        seed=0,
        progress=False,
        *,
        max_depth=5,
        more_depth_valid=3,
        more_depth_test=5,
        cache_dir=None,
    ):
        check_choice("direction", direction, ("forward", "backward"))
        check_int("max_depth", max_depth, 3, 7)
        check_int("more_depth_valid", more_depth_valid, 1)
        check_int("more_depth_test", more_depth_test, more_depth_valid + 1)
        self.direction = direction
        self.max_depth, self.more_depth_valid, self.more_depth_test = max_depth, more_depth_valid, more_depth_test
        self.classes = [f"{symbol:03b}" for symbol in range(NUM_SYMBOLS)]
        self.vocabulary = self.classes + list(ascii_lowercase[:NUM_FUNCTIONS])
        parameters = {
            "direction": direction,
            "max_depth": max_depth,
            "more_depth_valid": more_depth_valid,
            "more_depth_test": more_depth_test,
        }
        super().__init__(split, seed, parameters, progress, cache_dir)

    @property
    def functions(self):
        """The tables: LongTensor [11, 8], the result of each function for each symbol."""
        stream = Stream(key_of(self.seed, "ctl", "tables"))
        return torch.tensor([stream.permutation(NUM_SYMBOLS) for _ in range(NUM_FUNCTIONS)])

    def _generate(self, part, progress):
        reserved = self._reserved()
        compositions = sum(NUM_COMPOSED**depth for depth in range(2, self.max_depth + 1))
        num_drawn = NUM_SYMBOLS * compositions // 10 + 2 * NUM_HELD_OUT
        valid_depths = (self.max_depth + 1, self.max_depth + self.more_depth_valid)
        test_depths = (valid_depths[1] + 1, self.max_depth + self.more_depth_test)
        iid = self._sample("iid", num_drawn, (2, self.max_depth), NUM_COMPOSED, exclude=reserved)
        order = permutation(key_of(self.seed, "ctl", "split"), num_drawn)
        held_out, kept = order[: 2 * NUM_HELD_OUT], order[2 * NUM_HELD_OUT :].sort().values
        basic = self._single_functions(range(NUM_FUNCTIONS))
        repeated = self._single_functions(range(NUM_COMPOSED, NUM_FUNCTIONS))
        with_second = self._sample("new_primitive_2", 3 * NUM_TEST, (2, self.max_depth), NUM_COMPOSED + 1, forced=10)
        chosen = permutation(key_of(self.seed, "ctl", "new_primitive_2 split"), 3 * NUM_TEST)
        symbols = draw(key_of(self.seed, "ctl", "new_composition"), torch.arange(len(reserved[1])))
        symbols = below(symbols, NUM_SYMBOLS)
        tables = {
            "train": concatenate([basic, select(iid, kept)] + [repeated] * NUM_REPEATS),
            "iid_test": select(iid, held_out[:NUM_HELD_OUT]),
            "iid_valid": select(iid, held_out[NUM_HELD_OUT:]),
            "basic": basic,
            "new_primitive_1": self._sample(
                "new_primitive_1", NUM_TEST, (2, self.max_depth), NUM_COMPOSED + 1, forced=9
            ),
            "new_primitive_2": select(with_second, chosen[:NUM_TEST]),
            "train_new_primitive": select(with_second, chosen[NUM_TEST:].sort().values),
            "valid": self._sample("valid", NUM_TEST, valid_depths, NUM_COMPOSED),
            "test": self._sample("test", NUM_TEST, test_depths, NUM_COMPOSED),
            "new_composition": self._table_from(symbols, *reserved),
        }
        tables.update(iid=tables["iid_test"], deeper_valid=tables["valid"], deeper_test=tables["test"])
        return tables

    def _reserved(self):
        """The compositions that are kept out of training: functions [M, max_depth] and their number [M]."""
        stream = Stream(key_of(self.seed, "ctl", "reserved"))
        reserved = []
        for depth in range(self.max_depth + 1):
            wanted = math.ceil(min(200, NUM_COMPOSED**depth / 4))
            drawn = {}
            while len(drawn) < wanted:
                drawn[tuple(stream.below(NUM_COMPOSED) for _ in range(depth))] = None
            reserved += drawn
        padded = [[*composition, *[0] * (self.max_depth - len(composition))] for composition in reserved]
        return torch.tensor(padded), torch.tensor([len(composition) for composition in reserved])

    def _sample(self, purpose, num, depths, num_functions, exclude=None, forced=None):
        """``num`` different samples; ``forced`` is a function that each must hold at least once."""
        width = depths[1]
        key = key_of(self.seed, "ctl", purpose)
        num_candidates = 2 * num
        while True:
            bits = draw(key, torch.arange(num_candidates * (width + 3)).view(num_candidates, width + 3))
            lengths = depths[0] + below(bits[:, 0], depths[1] - depths[0] + 1)
            symbols = below(bits[:, 1], NUM_SYMBOLS)
            functions = below(bits[:, 3:], num_functions)
            if forced is not None:
                functions[functions == NUM_COMPOSED] = forced
                functions[torch.arange(num_candidates), below(bits[:, 2], lengths)] = forced
            compositions = _hash(functions, lengths)
            strings = hash_rows(torch.stack([compositions, symbols], 1))
            allowed = torch.arange(num_candidates)
            if exclude is not None:
                allowed = allowed[torch.isin(compositions, _hash(*exclude), invert=True)]
            rows = allowed[first_of_each(strings[allowed])]
            if len(rows) >= num:
                rows = rows[:num]
                return self._table_from(symbols[rows], functions[rows], lengths[rows])
            num_candidates *= 2

    def _single_functions(self, functions):
        functions = torch.tensor(list(functions)).repeat_interleave(NUM_SYMBOLS)
        symbols = torch.arange(NUM_SYMBOLS).repeat(len(functions) // NUM_SYMBOLS)
        return self._table_from(symbols, functions[:, None], torch.ones_like(symbols))

    def _table_from(self, symbols, functions, lengths):
        """Table of samples: symbols [M], and the first ``lengths`` [M] of functions [M, W] as they are applied."""
        results = symbols
        tables = self.functions
        for step, function in enumerate(functions.unbind(1)):
            results = torch.where(step < lengths, tables[function, results], results)
        tokens = torch.cat([symbols[:, None], functions + NUM_SYMBOLS], 1)
        if self.direction == "backward":
            tokens = reversed_rows(tokens, lengths + 1)
        flat, offsets = ragged(tokens, lengths + 1)
        return {
            "tokens": flat.to(torch.uint8),
            "tokens_offsets": offsets,
            "targets": results.to(torch.uint8),
            "depths": lengths.int(),
        }


def _hash(functions, lengths):
    """Hash of the first ``lengths`` [M] of functions [M, W], for one W."""
    inside = torch.arange(functions.shape[1]) < lengths[:, None]
    return hash_rows(torch.where(inside, functions, -1))
