"""Batches of similar length: every sample once an epoch, resumption, the same by every route to a batch."""

import pickle
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from sysgen.tasks import CTL, SCAN, Batch, BucketBatchSampler, SimpleArithmetic, collate

LENGTHS = torch.tensor([(7 * i * i) % 23 for i in range(1009)])


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"seed": 5}, {"infinite": True}])
@pytest.mark.parametrize("batch_size", [1, 32, 1009, 5000])
def test_an_epoch_has_every_index_once(options, batch_size):
    sampler = BucketBatchSampler(LENGTHS, batch_size, **options)
    batches = [batch for batch, _ in zip(sampler, range(len(sampler)))]
    assert sorted(i for batch in batches for i in batch) == list(range(1009))
    sizes = [len(batch) for batch in batches]
    assert sum(size < batch_size for size in sizes) == (1009 % batch_size > 0)
    if not options.get("infinite"):
        assert sizes == sorted(sizes, reverse=True)


def test_batches_are_of_similar_length():
    """Sorted by their shortest sample, no batch begins before the one in front of it ends."""
    spans = sorted((int(LENGTHS[b].min()), int(LENGTHS[b].max())) for b in BucketBatchSampler(LENGTHS, 32))
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))
    order = [int(LENGTHS[b].min()) for b in BucketBatchSampler(LENGTHS, 32, shuffle=False)]
    assert order == sorted(order)


def test_epochs_differ_and_repeat():
    sampler = BucketBatchSampler(LENGTHS, 32)
    first, second = list(sampler), list(sampler)
    assert first != second and {frozenset(b) for b in first} != {frozenset(b) for b in second}
    assert sampler.epoch == 2
    sampler.set_epoch(0)
    assert list(sampler) == first and list(sampler) == second
    assert list(BucketBatchSampler(LENGTHS, 32, seed=1)) != first
    fixed = BucketBatchSampler(LENGTHS, 32, shuffle=False)
    assert list(fixed) == list(fixed)


def test_order_of_batches_and_samples_is_random():
    """Where a sample comes first, over many epochs, is uniform: 5 σ."""
    sampler = BucketBatchSampler([3] * 8, 2)
    epochs = 4000
    places = Counter(next(iter(batches))[0] for batches in (list(sampler) for _ in range(epochs)))
    assert len(places) == 8 and all(abs(n - epochs / 8) < 5 * (epochs / 8) ** 0.5 for n in places.values())


def test_breaking_off_begins_the_epoch_anew():
    sampler = BucketBatchSampler(LENGTHS, 32)
    first = next(iter(sampler))
    assert next(iter(sampler)) == first


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 17, 31, 32])
def test_resumption(stop, infinite):
    def run(sampler):
        while True:
            yield from sampler

    original = BucketBatchSampler(LENGTHS, 32, seed=3, infinite=infinite)
    stream = run(original)
    for _ in range(stop):
        next(stream)
    state = pickle.loads(pickle.dumps(original.state_dict()))
    resumed = BucketBatchSampler(LENGTHS, 32, seed=3, infinite=infinite)
    resumed.load_state_dict(state)
    rest = run(resumed)
    assert [next(stream) for _ in range(70)] == [next(rest) for _ in range(70)]


def test_drop_last():
    sampler = BucketBatchSampler(LENGTHS, 32, drop_last=True)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 31 and {len(b) for b in batches} == {32}
    left_out = [set(range(1009)) - {i for b in batches for i in b} for batches in (batches, list(sampler))]
    assert len(left_out[0]) == 17 and left_out[0] != left_out[1]


def test_no_samples():
    assert list(BucketBatchSampler([], 4)) == [] and list(BucketBatchSampler([1], 4, drop_last=True)) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.ones(2, 2, dtype=torch.int64), 4), r"lengths must be a list of integers, got shape \[2, 2\]"),
        (([1.5], 4), "lengths must be a list of integers"),
        (([1], 0), "batch_size must be an int of at least 1, got 0"),
        (([1], 2.0), "batch_size must be an int of at least 1, got 2.0"),
        (([1], 1, True, -1), r"seed must be in \[0, 2\^64\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BucketBatchSampler(*arguments)


def test_bad_states():
    sampler = BucketBatchSampler([1, 2], 1)
    with pytest.raises(ValueError, match="the state is of seed 1, this sampler has seed 0"):
        sampler.load_state_dict({"epoch": 0, "position": 0, "seed": 1})
    with pytest.raises(ValueError, match=r"position in \[0, 2\], got epoch=0, position=3"):
        sampler.set_epoch(0, 3)
    with pytest.raises(ValueError, match="infinite=True needs at least one batch"):
        BucketBatchSampler([1], 2, drop_last=True, infinite=True)


# ---- batches


@pytest.fixture(scope="module", params=["classes", "sequences"])
def dataset(request):
    return CTL(("test", "new_composition")) if request.param == "classes" else SCAN("test")


def equal(a, b):
    return all((x is None and y is None) or (x.dtype == y.dtype and torch.equal(x, y)) for x, y in zip(a, b))


def test_batch_is_collate_of_the_samples(dataset):
    for indices in ([0], [5, 5, 3], [-1, 0, 1200], list(range(0, len(dataset), 7))):
        batch = dataset.batch(indices)
        assert equal(batch, collate([dataset[i] for i in indices]))
        assert equal(batch, dataset[indices]) and equal(batch, dataset.batch(torch.tensor(indices)))
        for row, i in enumerate(indices):
            n = int(batch.lengths[row])
            assert torch.equal(batch.tokens[row, :n], dataset[i][0]) and not batch.tokens[row, n:].any()
        assert batch.tokens.dtype == batch.targets.dtype == batch.lengths.dtype == torch.int64
    assert (batch.target_lengths is None) == isinstance(dataset, CTL)


def test_samples(dataset):
    tokens, target = dataset[3]
    assert tokens.dtype == torch.int64 and tokens.shape == (dataset.lengths[3],)
    assert isinstance(target, int) == isinstance(dataset, CTL)
    assert torch.equal(dataset[-1][0], dataset[len(dataset) - 1][0])
    assert len(list(dataset)) == len(dataset)  # ends by an IndexError


def test_bad_indices(dataset):
    n = len(dataset)
    for i in (n, -n - 1):
        with pytest.raises(IndexError, match=f"index {i} is out of range for {n} samples"):
            dataset[i]
        with pytest.raises(IndexError, match=rf"indices must be in \[{-n}, {n}\)"):
            dataset.batch([0, i])


def test_indices_that_are_no_integers(dataset):
    """A mask is no list of indices, and nothing is rounded."""
    for i in (1.0, "1", slice(2), None):
        with pytest.raises(TypeError, match=f"index must be an integer.*got {type(i).__name__}"):
            dataset[i]
    for indices in ([0.0, 1.7], [True, False], torch.zeros(len(dataset), dtype=torch.bool)):
        with pytest.raises(TypeError, match="indices must be integers"):
            dataset.batch(indices)
        with pytest.raises(TypeError, match="indices must be integers"):
            dataset[indices]


@pytest.mark.parametrize("split", [None, 3])
def test_split_that_is_no_name(split):
    with pytest.raises(TypeError, match=f"split must be one or several of .*, got {type(split).__name__}"):
        CTL(split)


def test_empty_batch():
    batch = CTL("basic").batch([])
    assert [list(t.shape) for t in batch[:3]] == [[0, 0], [0], [0]]


def test_batch_moves():
    batch = CTL("basic").batch([1, 2]).to("meta")
    assert isinstance(batch, Batch) and batch.tokens.device.type == "meta" and batch.target_lengths is None


def test_data_loader_with_workers():
    """Spawned workers get the data set by pickling; both ways of passing the sampler give the same batches."""
    dataset = SimpleArithmetic("iid")
    sampler = BucketBatchSampler(dataset.lengths, 128)
    expected = [dataset.batch(indices) for indices in sampler]
    sampler.set_epoch(0)
    plain = list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate))
    sampler.set_epoch(0)
    loader = DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for batches in (plain, list(loader)):
        assert len(batches) == len(expected) == 8
        assert all(isinstance(b, Batch) and equal(b, e) for b, e in zip(batches, expected))
