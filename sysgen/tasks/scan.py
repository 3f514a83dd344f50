"""SCAN with the length splits of Csordás, Irie & Schmidhuber (EMNLP 2021; Csordas 2023, Tab. C.7)."""

from itertools import product

import torch

from ._dataset import GeneratedDataset, check_int, select
from ._random import key_of, permutation
from .batching import Batch

TURNS = ("left", "right")
ACTIONS = ("walk", "look", "run", "jump")
COUNTS = ("twice", "thrice")


class SCAN(GeneratedDataset):
    """Commands in simple English and the actions that they ask for (Lake & Baroni, ICML 2018); all 20 910 of them.

    Grammar: ``C → S | S and S | S after S``, ``S → V (twice | thrice)?``, ``V →`` one of walk, look, run, jump, alone
    or with left, right, or opposite or around one of these; or turn with one of the last six. ``x left`` is a turn and
    x, ``opposite`` two turns and x, ``around`` four times a turn and x; turn itself adds nothing. ``x after y`` is y,
    then x.

    Splits by the length of the output: those longer than ``cutoff`` are ``"test"``; of the others a random tenth is
    ``"iid"``, the rest ``"train"``. For the cutoff 26: 2624, 1828, 16 458. Which samples are in iid differs from the
    released split, which depends on the order of the original file.

    Args:
        split: ``"train"``, ``"iid"`` or ``"test"``, or several that are joined.
        cutoff: largest length of the output in training, in [1, 47]; the paper has 22, 24, 25, 26, 27, 28, 30, 32, 33,
            36 and 40.
        seed: int.
        progress: unused, the data take less than a second.
        cache_dir: folder in which the data are kept; None: in memory only.

    ``dataset[i]`` is ``(input, output)``, LongTensors [n] and [m] of ids of ``input_vocabulary`` (13 words) and
    ``output_vocabulary`` (6), without markers of begin and end. ``lengths`` and ``target_lengths`` are IntTensors [M].
    """

    SPLITS = ("train", "iid", "test")

    def __init__(self, split="train", cutoff=26, seed=0, progress=False, *, cache_dir=None):
        check_int("cutoff", cutoff, 1, 47)
        self.cutoff = cutoff
        self.input_vocabulary = [*ACTIONS, "turn", *TURNS, "opposite", "around", *COUNTS, "and", "after"]
        self.output_vocabulary = [f"I_{word.upper()}" for word in ACTIONS] + [f"I_TURN_{d.upper()}" for d in TURNS]
        self.vocabulary = self.input_vocabulary
        super().__init__(split, seed, {"cutoff": cutoff}, progress, cache_dir)

    @property
    def target_lengths(self):
        """Number of actions of each sample, IntTensor [M]."""
        return self._table["outputs_offsets"].diff().int()

    def decode_output(self, tokens):
        """The text of a sequence of ids of ``output_vocabulary``."""
        return " ".join(self.output_vocabulary[int(t)] for t in tokens)

    def _target(self, i):
        return self._ragged_row("outputs", i)

    def batch(self, indices):
        """The samples ``indices`` (list or LongTensor [B]) as a :class:`Batch`, without a loop over them."""
        indices = self._indices(indices)
        return Batch(*self._padded("tokens", indices), *self._padded("outputs", indices))

    def _generate(self, part, progress):
        pairs = list(_commands())
        words = {name: i for i, name in enumerate(self.input_vocabulary)}
        actions = {name: i for i, name in enumerate(self.output_vocabulary)}
        table = {}
        for name, sequences, ids in (
            ("tokens", [command for command, _ in pairs], words),
            ("outputs", [output for _, output in pairs], actions),
        ):
            table[name] = torch.tensor([ids[word] for sequence in sequences for word in sequence], dtype=torch.uint8)
            lengths = torch.tensor([0] + [len(sequence) for sequence in sequences])
            table[name + "_offsets"] = lengths.cumsum(0)
        short = table["outputs_offsets"].diff() <= self.cutoff
        trained, tested = short.nonzero()[:, 0], (~short).nonzero()[:, 0]
        order = permutation(key_of(self.seed, "scan", "split"), len(trained))
        num_iid = len(trained) // 10
        return {
            "train": select(table, trained[order[num_iid:].sort().values]),
            "iid": select(table, trained[order[:num_iid].sort().values]),
            "test": select(table, tested),
        }


def _phrases():
    for word in (*ACTIONS, "turn"):
        action = [] if word == "turn" else [f"I_{word.upper()}"]
        if action:
            yield [word], action
        for direction in TURNS:
            turn = [f"I_TURN_{direction.upper()}"]
            yield [word, direction], turn + action
            yield [word, "opposite", direction], turn + turn + action
            yield [word, "around", direction], 4 * (turn + action)


def _sentences():
    for words, actions in _phrases():
        yield words, actions
        for repeats, count in enumerate(COUNTS, 2):
            yield [*words, count], repeats * actions


def _commands():
    sentences = list(_sentences())
    yield from sentences
    for (left, done_left), (right, done_right) in product(sentences, sentences):
        yield [*left, "and", *right], done_left + done_right
        yield [*left, "after", *right], done_right + done_left
