"""Endless bit sequences: a plain reader of the input, that knows the rules only, gives every target."""

import hashlib

import pytest
import torch

from sysgen.tasks import AssociativeRecall, Copy, CountedCopy, KeyValue, RepeatedCopy, Reversal

TASKS = {
    "copy": lambda split="train", seed=0: Copy(split, seed),
    "repeated copy": lambda split="train", seed=0: RepeatedCopy(split, seed),
    "counted copy": lambda split="train", seed=0: CountedCopy(split, seed, max_length=6, max_repeats=5),
    "recall": lambda split="train", seed=0: AssociativeRecall(split, seed),
    "key-value": lambda split="train", seed=0: KeyValue(split, seed),
    "key-value, two ways": lambda split="train", seed=0: KeyValue(split, seed, two_way=True),
    "reversal": lambda split="train", seed=0: Reversal(split, seed),
}
# A change of these numbers is a change of the data that users have.
GOLDEN = {
    "copy": "bc71c52f038b8978",
    "repeated copy": "6be28c334a52a274",
    "counted copy": "7684d8d8b92dc28a",
    "recall": "89d822d3c79d2a4e",
    "key-value": "72a167e0797633e2",
    "key-value, two ways": "613c43db98e7b1c3",
    "reversal": "2a4a1d854b44e2a7",
}


def rows_of(inputs):
    """Rows of 0 and 1 of one sample."""
    return [tuple(row) for row in ((inputs + 1) / 2).tolist()]


def copy_answers(rows, width=8):
    """(answers, size)"""
    answers, heard, copies, first = [], [], 0, None
    rows = iter(rows)
    for row in rows:
        heard.append(row)
        answers.append((0,) * len(row))
        if row[-1]:
            assert sum(row) == 1
            for silent in (next(rows) for _ in heard):
                assert not any(silent)
            answers += heard
            first = len(heard) - 1 if first is None else first
            heard, copies = [], copies + 1
    assert not heard
    return answers, copies, first


def counted_answers(rows):
    start, *rows = rows
    assert start == (0, 0, 0, 0, 1, 0)
    length = next(i for i, row in enumerate(rows) if row[-1])
    repeats = round(rows[length][-1] * 10)
    listed = [(*row[:4], 0) for row in rows[:length]]
    silence = rows[length + 1 :]
    assert not any(any(row) for row in silence) and not any(row[4] for row in rows)
    return [(0,) * 5] * (length + 2) + listed * repeats + [(0, 0, 0, 0, 1)], repeats


def recall_answers(rows):
    blocks, block, query = [], [], None
    for i, row in enumerate(rows):
        if row[-1] or row[-2]:
            assert sum(row) == 1
            if blocks and query is not None:
                blocks.append(block)
                silence = rows[i + 1 :]
                break
            blocks.append(block)
            query = 0 if row[-1] else None
            block = []
        else:
            block.append(row)
    *blocks, query = blocks
    assert not any(any(row) for row in silence) and len(silence) == 3 == len(query)
    return [(0,) * 10] * (len(rows) - 3) + blocks[blocks.index(query) + 1], len(blocks)


def key_value_answers(rows, flags):
    """With None where a value stands for two keys."""
    ends = [i for i, row in enumerate(rows) if any(row[16:])]
    assert [rows[i] for i in ends] == [(0,) * 16 + flag for flag in flags]
    pairs = [(row[:8], row[8:16]) for row in rows[: ends[0]]]
    keys = [key for key, _ in pairs]
    numbers = [sum(int(bit) << i for i, bit in enumerate(key)) for key in keys]
    assert numbers == sorted(set(numbers))
    answers = [(0,) * 8] * len(pairs)
    for asked, begin, end in zip((dict(pairs), None), ends, ends[1:]):
        queries = [row[:8] for row in rows[begin + 1 : end]]
        assert not any(any(row[8:]) for row in rows[begin + 1 : end])
        answers.append((0,) * 8)
        if asked is None:
            assert sorted(queries) == sorted(value for _, value in pairs)
            values = [value for _, value in pairs]
            answers += [keys[values.index(q)] if values.count(q) == 1 else None for q in queries]
        else:
            assert sorted(queries) == sorted(keys)
            answers += [asked[q] for q in queries]
    return [*answers, (0,) * 8], len(pairs)


def reversal_answers(rows):
    end = next(i for i, row in enumerate(rows) if row[-1])
    assert sum(rows[end]) == 1 and not any(any(row) for row in rows[end + 1 :]) and len(rows) == 2 * end + 1
    return [(0,) * 8] * (end + 1) + [row[:8] for row in rows[:end]][::-1], end


def answers_of(name, rows):
    if name in ("copy", "repeated copy"):
        answers, copies, first = copy_answers(rows)
        return answers, first if name == "copy" else copies
    if name == "counted copy":
        return counted_answers(rows)
    if name.startswith("key-value"):
        return key_value_answers(rows, [(1,), (1,)] if name == "key-value" else [(1, 0), (0, 1), (1, 1)])
    return {"recall": recall_answers, "reversal": reversal_answers}[name](rows)


@pytest.mark.parametrize("name", TASKS)
def test_targets(name):
    task = TASKS[name]()
    sizes = set()
    for step in range(40):
        batch = task.batch(step, 3)
        assert set(batch.inputs.unique().tolist()) <= {-1.0, 1.0} or name == "counted copy"
        assert batch.inputs.shape[2] == task.input_size and batch.targets.shape[2] == task.output_size
        for i in range(3):
            length = batch.inputs.shape[1] if batch.lengths is None else int(batch.lengths[i])
            answers, size = answers_of(name, rows_of(batch.inputs[i, :length]))
            for answer, target in zip(answers, batch.targets[i, :length].tolist()):
                assert answer is None or answer == tuple(target)
            assert len(answers) == length and size == batch.sizes[i]
            sizes.add(size)
            if batch.counted is not None:
                number = next(t for t, row in enumerate(rows_of(batch.inputs[i])) if row[-1])
                assert batch.counted[i].nonzero()[:, 0].tolist() == list(range(number + 1, length))
    low, high = {"recall": (2, 16), "repeated copy": (2, 14), "reversal": (1, 10)}.get(name, (1, 8))
    assert min(sizes) >= low and max(sizes) > high // 2


def checksum(task):
    digest = hashlib.sha256()
    for step in (0, 1, 100):
        for tensor in task.batch(step, 4):
            if tensor is not None:
                digest.update(str(list(tensor.shape)).encode() + (tensor * 10).round().to(torch.int8).numpy().tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", TASKS)
def test_golden_checksums(name):
    assert checksum(TASKS[name](seed=1)) == GOLDEN[name]


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_depends_on_seed_split_and_step_alone(name):
    task = TASKS[name]()
    stream = task.batches(16, start=5)
    batches = [next(stream) for _ in range(3)]
    torch.rand(3)
    for step, batch in enumerate(batches, 5):
        for a, b in zip(batch, TASKS[name]().batch(step, 16)):
            assert a is b is None or torch.equal(a, b)
    for other in (batches[1], TASKS[name](seed=1).batch(5, 16), TASKS[name]("valid").batch(5, 16)):
        assert other.inputs.shape != batches[0].inputs.shape or not torch.equal(other.inputs, batches[0].inputs)


def test_bits_are_fair_and_sizes_uniform():
    bits = Copy(word_bits=64, min_length=100, max_length=100).batch(0, 100).targets[:, 101:-1, :64]
    assert abs(bits.mean(dim=(0, 1)) - 0.5).max() < 5 * 0.5 / 100  # five standard errors of 10 000 bits each
    counts = torch.tensor([int(Copy().batch(step, 1).sizes) for step in range(2000)]).bincount(minlength=9)
    assert counts[0] == 0 and abs(counts[1:] - 250).max() < 5 * (2000 / 8 * 7 / 8) ** 0.5
    keys = KeyValue(min_length=4, max_length=4, word_bits=3).batch(0, 5000).inputs[:, :4, :3] > 0
    drawn = (keys * torch.tensor([1, 2, 4])).sum(2).flatten().bincount(minlength=8)
    assert abs(drawn - 2500).max() < 5 * (5000 * 0.25) ** 0.5  # each of the 8 keys is in half of the sets


@pytest.mark.parametrize("name, low, high", [("copy", 9, 16), ("repeated copy", 15, 28), ("recall", 17, 32)])
def test_longer_splits(name, low, high):
    sizes = [int(TASKS[name]("longer_test").batch(step, 1).sizes) for step in range(60)]
    assert low <= min(sizes) <= max(sizes) <= high and max(sizes) - min(sizes) > (high - low) // 2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Copy("longer"), "split must be one of 'train'"),
        (lambda: KeyValue("longer_valid"), "split must be one of 'train'"),
        (lambda: Copy(max_length=0), r"max_length must be in \[1, 1048576\], got 0"),
        (lambda: RepeatedCopy(min_copies=3, max_copies=2), r"max_copies must be in \[3"),
        (lambda: AssociativeRecall(min_length=1), "min_length must be at least 2, got 1"),
        (lambda: KeyValue(word_bits=3), r"max_length must be in \[1, 8\], got 16"),
        (lambda: Reversal(word_bits=65), r"word_bits must be in \[1, 64\], got 65"),
        (lambda: Copy(seed=-1), "seed must be in"),
        (lambda: Copy().batch(-1, 1), "step must be at least 0, got -1"),
        (lambda: Copy().batch(0, 0), "batch_size must be at least 1, got 0"),
        (lambda: KeyValue(two_way="no"), "two_way must be a bool, got str"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
