"""Endless batches of bit sequences that a memory must keep (Csordas 2023, chapter 2; Graves et al. 2014 and 2016)."""

from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F

from ._dataset import check_bool, check_choice, check_int
from ._random import below, draw, key_of


class BitBatch(NamedTuple):
    """Sequences of bits with the bits to answer at every step; B samples, T steps, X and Y bits.

    Args:
        inputs: float32 [B, T, X]; −1 and 1 stand for 0 and 1.
        targets: float32 [B, T, Y], 0 or 1.
        sizes: int64 [B]: how large each sample is: rows, copies, blocks or pairs.
        lengths: int64 [B], or None where all samples have T steps.
        counted: bool [B, T]: the steps whose answer matters, or None for all.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    sizes: torch.Tensor
    lengths: Optional[torch.Tensor] = None
    counted: Optional[torch.Tensor] = None

    def to(self, device, non_blocking=False):
        """The batch on another device."""
        return BitBatch(*(t if t is None else t.to(device, non_blocking=non_blocking) for t in self))


class _Random:
    """Numbers of one batch: each call takes a stream of its own."""

    def __init__(self, *labels):
        self._labels, self._calls = labels, 0

    def _draw(self, shape):
        self._calls += 1
        count = torch.Size(shape).numel()
        return draw(key_of(*self._labels, self._calls), torch.arange(count)).view(shape)

    def bits(self, *shape):
        """Fair bits, float32; the last dimension is at most 64."""
        words = self._draw(shape[:-1])
        return ((words[..., None] >> torch.arange(shape[-1])) & 1).float()

    def below(self, n, *shape):
        """Uniform integers in [0, n); ``n`` < 2^31, an int or an int64 tensor."""
        return below(self._draw(shape), n)

    def between(self, low, high, *shape):
        """Uniform integers in [low, high]."""
        return low + self.below(high - low + 1, *shape)

    def permutations(self, count, n):
        """int64 [count, n]."""
        return self._draw((count, n)).argsort(dim=1, stable=True)

    def subsets(self, count, n, size):
        """Sorted random sets of ``size`` different numbers in [0, n): int64 [count, size] (Floyd's sampling)."""
        chosen = torch.full((count, size), n)
        for i in range(size):
            last = n - size + i
            number = self.below(last + 1, count)
            taken = (chosen == number[:, None]).any(1)
            chosen[:, i] = torch.where(taken, last, number)
        return chosen.sort(1).values


class BitStream:
    """Endless batches of a task; batch number ``step`` depends on the arguments and on ``step`` alone.

    Sizes are drawn uniformly from the range of the split, once for a whole batch, so that nothing is padded; the bits
    are independent. ``"valid"`` and ``"test"`` are other batches of the same kind as ``"train"``; of ``"longer_valid"``
    and ``"longer_test"``, which most tasks have, sizes are from the largest in training plus 1 to twice the largest.

    >>> task = Copy("train", seed=0)
    >>> for batch in task.batches(16):
    ...     y, _ = dnc(batch.inputs)  # with batch_first=True

    Attributes:
        input_size, output_size: bits of a step that goes in and that comes out.
        size_name: what ``BitBatch.sizes`` counts.
    """

    SPLITS = ("train", "valid", "test", "longer_valid", "longer_test")
    size_name = "rows"

    def __init__(self, split, seed, ranges, longer):
        """``ranges``: (smallest, largest) of each size by name; those in ``longer`` grow in the longer splits."""
        check_choice("split", split, self.SPLITS)
        key_of(seed)  # refuses a bad one
        self.split, self.seed = split, seed
        self._ranges = {}
        for name, (low, high) in ranges.items():
            check_int(f"min_{name}", low, 1)
            check_int(f"max_{name}", high, low, 2**20)
            self._ranges[name] = (high + 1, 2 * high) if split.startswith("longer") and name in longer else (low, high)

    def batch(self, step, batch_size):
        """Batch number ``step`` (from 0) of ``batch_size`` samples, a :class:`BitBatch`."""
        check_int("step", step, 0)
        check_int("batch_size", batch_size, 1)
        inputs, targets, *more = self._make(_Random(self.seed, type(self).__name__, self.split, step), batch_size)
        return BitBatch(inputs * 2 - 1, targets, *more)

    def batches(self, batch_size, start=0):
        """All batches from number ``start`` on, without end."""
        while True:
            yield self.batch(start, batch_size)
            start += 1

    def _make(self, random, batch_size):
        """(inputs and targets as 0 and 1, sizes, and what else a batch has)."""
        raise NotImplementedError

    def _size(self, random, name, *shape):
        """Of the whole batch, an int, or with a ``shape`` a tensor."""
        size = random.between(*self._ranges[name], *shape)
        return size if shape else int(size)

    def __repr__(self):
        ranges = "".join(f", {name} {low} to {high}" for name, (low, high) in self._ranges.items())
        return f"{type(self).__name__}({self.split!r}, seed={self.seed}{ranges})"


def _check_word(word_bits):
    check_int("word_bits", word_bits, 1, 64)


class RepeatedCopy(BitStream):
    """Several lists to copy, one after the other: more rows than the memory has cells, which so must be freed.

    Each copy is L random rows and a row with only the marker bit, the last one, set; then L + 1 silent rows in which
    they are to be repeated, marker included. All samples of a batch have the same number of copies and the same L's.
    T = Σ 2 (L + 1). ``sizes`` are the numbers of copies; longer is more copies.

    Args:
        split, seed: see :class:`BitStream`.
        min_length, max_length: of L. These are the sizes of (Csordas 2023, Sec. 2.4); the released settings exchange
            the ranges of L and of the number of copies.
        min_copies, max_copies: of the number of copies.
        word_bits: random bits of a row.
    """

    size_name = "copies"

    def __init__(
        self, split="train", seed=0, *, min_length=1, max_length=8, min_copies=2, max_copies=14, word_bits=8
    ):  # fmt: skip
        _check_word(word_bits)
        ranges = {"length": (min_length, max_length), "copies": (min_copies, max_copies)}
        super().__init__(split, seed, ranges, self._longer())
        self.word_bits = word_bits
        self.input_size = self.output_size = word_bits + 1

    def _longer(self):
        return ("copies",)

    def _make(self, random, batch_size):
        copies = self._size(random, "copies")
        lengths = self._size(random, "length", copies).tolist()
        rows = random.bits(batch_size, sum(lengths) + copies, self.word_bits)
        data = F.pad(rows, (0, 1))
        ends = torch.tensor(lengths).cumsum(0) + torch.arange(copies)
        data[:, ends] = 0
        data[:, ends, -1] = 1
        silent = torch.zeros(batch_size, max(lengths) + 1, self.input_size)
        inputs, targets = [], []
        for part in data.split([length + 1 for length in lengths], 1):
            silence = silent[:, : part.shape[1]]
            inputs += [part, silence]
            targets += [silence, part]
        return torch.cat(inputs, 1), torch.cat(targets, 1), torch.full((batch_size,), copies)


class Copy(RepeatedCopy):
    """L random rows to repeat: :class:`RepeatedCopy` with one copy. ``sizes`` are the L's.
    T = 2 (L + 1).
    """

    size_name = "rows"

    def __init__(self, split="train", seed=0, *, min_length=1, max_length=8, word_bits=8):
        lengths = {"min_length": min_length, "max_length": max_length}
        super().__init__(split, seed, **lengths, min_copies=1, max_copies=1, word_bits=word_bits)

    def _longer(self):
        return ("length",)

    def _make(self, random, batch_size):
        inputs, targets, _ = super()._make(random, batch_size)
        return inputs, targets, torch.full((batch_size,), inputs.shape[1] // 2 - 1)


class CountedCopy(BitStream):
    """L random rows to repeat as often as a number in the input says (Graves et al. 2014, Sec. 4.2; in the form of
    deepmind/dnc, whose sizes are the defaults).

    A row with the start bit, L random rows, a row whose last bit stands for the number n of repeats, then L · n rows
    and a row with the end bit to answer; only these count. L and n are those of each sample, shorter ones are padded.
    In the input the number is n / 10 where other bits are 0 or 1 (so it is 2 n / 10 − 1 among −1 and 1).
    ``sizes`` are the numbers of repeats.
    """

    size_name = "repeats"

    def __init__(
        self, split="train", seed=0, *, min_length=1, max_length=2, min_repeats=1, max_repeats=2, word_bits=4
    ):  # fmt: skip
        _check_word(word_bits)
        ranges = {"length": (min_length, max_length), "repeats": (min_repeats, max_repeats)}
        super().__init__(split, seed, ranges, ("repeats",))
        self.word_bits = word_bits
        self.input_size, self.output_size = word_bits + 2, word_bits + 1

    def _make(self, random, batch_size):
        length = self._size(random, "length", batch_size)[:, None]
        repeats = self._size(random, "repeats", batch_size)[:, None]
        rows = random.bits(batch_size, int(length.max()), self.word_bits)
        first = length + 2  # step of the first answer
        end = first + length * repeats
        step = torch.arange(int(end.max()) + 1)
        shown = (step > 0) & (step <= length)
        answered = (step >= first) & (step < end)

        def rows_at(index, where):
            index = torch.where(where, index, 0)[..., None].expand(-1, -1, self.word_bits)
            return rows.gather(1, index) * where[..., None]

        number = (step == length + 1) * (repeats / 10)
        start = (step == 0).expand_as(number)
        flags = torch.stack([start.float(), number], 2)
        inputs = torch.cat([rows_at(step - 1 + 0 * length, shown), flags], 2)
        answers = rows_at((step - first) % length, answered)
        targets = torch.cat([answers, (step == end).float()[..., None]], 2)
        return inputs, targets, repeats[:, 0], end[:, 0] + 1, (step >= first) & (step <= end)


class AssociativeRecall(BitStream):
    """L blocks of words; one of them is shown again, and the block after it is to be answered (Graves et al. 2014,
    Sec. 4.3; Csordas 2023, Sec. 2.4).

    A word has ``word_bits`` random bits and two flags: the first is set alone in the row between two blocks, the second
    in the row after the last block and in the row after the query. The answer is due in the last ``block_words`` rows,
    which are silent; before, the target is 0. T = (L + 1) (block_words + 1) + block_words. ``sizes`` are the numbers of
    blocks.

    Args:
        split, seed: see :class:`BitStream`.
        min_length, max_length: of L; at least 2.
        block_words, word_bits: words of a block, random bits of a word.
    """

    size_name = "blocks"

    def __init__(self, split="train", seed=0, *, min_length=2, max_length=16, block_words=3, word_bits=8):
        _check_word(word_bits)
        check_int("block_words", block_words, 1)
        check_int("min_length", min_length, 2)
        super().__init__(split, seed, {"length": (min_length, max_length)}, ("length",))
        self.block_words, self.word_bits = block_words, word_bits
        self.input_size = self.output_size = word_bits + 2

    def _make(self, random, batch_size):
        length, words = self._size(random, "length"), self.block_words
        blocks = random.bits(batch_size, length, words, self.word_bits)
        shown = random.below(length - 1, batch_size)
        sample = torch.arange(batch_size)
        # every block and, last, the query, each with a row of flags behind it
        rows = F.pad(torch.cat([blocks, blocks[sample, shown][:, None]], 1), (0, 2, 0, 1))
        rows[:, : length - 1, -1, -2] = 1
        rows[:, length - 1 :, -1, -1] = 1
        inputs = F.pad(rows.flatten(1, 2), (0, 0, 0, words))
        answer = F.pad(blocks[sample, shown + 1], (0, 2))
        targets = F.pad(answer, (0, 0, inputs.shape[1] - words, 0))
        return inputs, targets, torch.full((batch_size,), length)


class KeyValue(BitStream):
    """L different keys with a value each; then each key alone, whose value is to be answered (Csordas 2023, Sec. 2.4).

    Rows of a key and its value, the keys in ascending order with the lowest bit first; a row with only the flag; the
    keys in random order, values silent, whose value is the target of the same row; a row with the flag. T = 2 (L + 1).
    With ``two_way`` there are two flags and a third part: the values, in another order and in the place of the keys,
    whose key is the target (of a value that occurs twice one of the two). The flags of the three parts' last rows are
    (1, 0), (0, 1) and (1, 1); T = 3 (L + 1). ``sizes`` are the L's. There are no longer splits.

    Args:
        split, seed: see :class:`BitStream`.
        min_length, max_length: of L; no more than there are keys.
        word_bits: bits of a key and of a value (Csordas 2023: 8; the released settings: 6).
        two_way: see above.
    """

    SPLITS = ("train", "valid", "test")
    size_name = "pairs"

    def __init__(self, split="train", seed=0, *, min_length=2, max_length=16, word_bits=8, two_way=False):
        check_int("word_bits", word_bits, 1, 30)
        check_int("max_length", max_length, 1, 2**word_bits)
        super().__init__(split, seed, {"length": (min_length, max_length)}, ())
        check_bool("two_way", two_way)
        self.word_bits, self.two_way = word_bits, two_way
        self.input_size, self.output_size = 2 * word_bits + 1 + self.two_way, word_bits

    def _make(self, random, batch_size):
        length, width = self._size(random, "length"), self.word_bits
        numbers = random.subsets(batch_size, 2**width, length)
        keys = ((numbers[..., None] >> torch.arange(width)) & 1).float()
        values = random.bits(batch_size, length, width)

        def queries(asked, answered):
            order = random.permutations(batch_size, length)[..., None].expand(-1, -1, width)
            return F.pad(asked.gather(1, order), (0, width)), answered.gather(1, order)

        parts = [(torch.cat([keys, values], 2), torch.zeros_like(values)), queries(keys, values)]
        flags = [[1.0], [1.0]]
        if self.two_way:
            parts.append(queries(values, keys))
            flags = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
        inputs = torch.cat([F.pad(shown, (0, len(flags[0]), 0, 1)) for shown, _ in parts], 1)
        targets = torch.cat([F.pad(answer, (0, 0, 0, 1)) for _, answer in parts], 1)
        inputs[:, length :: length + 1, 2 * width :] = torch.tensor(flags)
        return inputs, targets, torch.full((batch_size,), length)


class Reversal(BitStream):
    """L random rows, a row with only the marker bit, the last one, set; then L silent rows in which the random rows are
    to be answered from the last to the first, without the marker bit (a task of stack memories; Grefenstette et al.
    2015). T = 2 L + 1. ``sizes`` are the L's.

    Args:
        split, seed: see :class:`BitStream`.
        min_length, max_length: of L.
        word_bits: random bits of a row.
    """

    def __init__(self, split="train", seed=0, *, min_length=1, max_length=10, word_bits=8):
        _check_word(word_bits)
        super().__init__(split, seed, {"length": (min_length, max_length)}, ("length",))
        self.word_bits = word_bits
        self.input_size, self.output_size = word_bits + 1, word_bits

    def _make(self, random, batch_size):
        length = self._size(random, "length")
        rows = random.bits(batch_size, length, self.word_bits)
        inputs = F.pad(rows, (0, 1, 0, length + 1))
        inputs[:, length, -1] = 1
        return inputs, F.pad(rows.flip(1), (0, 0, length + 1, 0)), torch.full((batch_size,), length)
