"""Compositional table lookup: sizes and rules of the released data, every target recomputed."""

import math
from collections import Counter

import pytest
import torch

from sysgen.tasks import CTL

SIZES = {
    "train": 53_704,
    "iid": 4000,
    "iid_valid": 4000,
    "iid_test": 4000,
    "valid": 1000,
    "deeper_valid": 1000,
    "test": 1000,
    "deeper_test": 1000,
    "basic": 88,
    "new_primitive_1": 1000,
    "new_primitive_2": 1000,
    "train_new_primitive": 2000,
    "new_composition": 608,
}


def strings(*arguments, **keywords):
    """(symbol, functions in the order of their application, result) of each sample."""
    dataset = CTL(*arguments, **keywords)
    tokens, offsets = dataset._table["tokens"].tolist(), dataset._table["tokens_offsets"].tolist()
    result = []
    for begin, end, target in zip(offsets, offsets[1:], dataset.targets.tolist()):
        words = [dataset.vocabulary[t] for t in tokens[begin:end]]
        if dataset.direction == "backward":
            words.reverse()
        result.append((words[0], "".join(words[1:]), dataset.classes[target]))
    return result


@pytest.fixture(scope="module")
def data():
    return {name: strings(name) for name in CTL.splits()}


@pytest.fixture(scope="module")
def tables(data):
    """The functions, as the examples of single ones show them."""
    return {(function, symbol): result for symbol, function, result in data["basic"]}


def test_sizes(data):
    assert {name: len(samples) for name, samples in data.items()} == SIZES
    assert len(set(data["train"])) == 53_224
    dataset = CTL()
    assert dataset.num_tokens == 19 and dataset.num_classes == 8
    assert dataset.lengths.dtype == dataset.depths.dtype == torch.int32 and dataset.targets.dtype == torch.int64
    assert torch.equal(dataset.lengths, dataset.depths + 1)


def test_functions_are_bijections(tables):
    symbols = {f"{i:03b}" for i in range(8)}
    assert {f for f, _ in tables} == set("abcdefghijk") and len(tables) == 88
    for function in "abcdefghijk":
        assert {tables[function, s] for s in symbols} == symbols
    assert [tables["a", s] for s in sorted(symbols)] == [CTL().classes[i] for i in CTL().functions[0]]


def test_targets(data, tables):
    for samples in data.values():
        for symbol, functions, result in samples:
            for function in functions:
                symbol = tables[function, symbol]
            assert symbol == result


def test_backward_is_forward_mirrored(data):
    for name in ("train", "test"):
        assert strings(name, "backward") == data[name]
    forward, backward = CTL("test"), CTL("test", "backward")
    assert forward[7][0].tolist() == backward[7][0].tolist()[::-1] and forward[7][1] == backward[7][1]


def test_depths(data):
    depths = {name: Counter(len(functions) for _, functions, _ in samples) for name, samples in data.items()}
    assert depths["new_composition"] == {0: 1, 1: 3, 2: 21, 3: 183, 4: 200, 5: 200}  # ceil(min(200, 9^d / 4))
    assert depths["train"][1] == 88 + 480 and set(depths["train"]) == {1, 2, 3, 4, 5}
    for name, expected in {"valid": (6, 7, 8), "test": (9, 10)}.items():
        assert set(depths[name]) == set(expected)
        mean = 1000 / len(expected)
        assert all(abs(n - mean) < 5 * math.sqrt(mean) for n in depths[name].values())  # binomial, 5 σ


def test_lengths_of_train_follow_the_sampling_rule(data):
    """n draws of each length find, of N strings of which a part is reserved, N · (1 - reserved) · (1 - exp(-n / N)).

    Published: 428 / 3736 / 20926 / 28046.
    """
    total = {d: 8 * 9**d for d in range(2, 6)}
    allowed = {d: total[d] - 8 * n for d, n in {2: 21, 3: 183, 4: 200, 5: 200}.items()}

    def found(n):
        return {d: allowed[d] * (1 - math.exp(-n / total[d])) for d in total}

    low, high = 0.0, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(found(middle).values()) < 61_136 else (low, middle)
    depths = Counter(len(functions) for _, functions, _ in data["train"])
    for depth, number in found(low).items():
        expected = number * 53_136 / 61_136
        assert abs(depths[depth] - expected) < 5 * math.sqrt(expected), depth  # the variance is below Poisson's
    for depth, published in zip(range(2, 6), (428, 3736, 20_926, 28_046)):
        assert abs(depths[depth] - published) < 5 * math.sqrt(2 * published)


def test_which_functions_occur(data):
    for name in ("iid", "iid_valid", "valid", "test", "new_composition"):
        assert set("".join(f for _, f, _ in data[name])) <= set("abcdefghi"), name
    assert all("j" in f and "k" not in f for _, f, _ in data["new_primitive_1"])
    for name in ("new_primitive_2", "train_new_primitive"):
        assert all("k" in f and "j" not in f for _, f, _ in data[name])
    repeated = Counter(data["train"])
    assert {n for (_, f, _), n in repeated.items() if f in ("j", "k")} == {31}
    assert {n for (_, f, _), n in repeated.items() if f not in ("j", "k")} == {1}


def test_splits_are_disjoint(data):
    """Except as released: basic is in train, and three of the new compositions are single functions."""
    parts = ("iid_valid", "iid_test", "valid", "test", "new_primitive_1", "new_primitive_2", "train_new_primitive")
    seen = set(data["train"])
    for name in parts:
        assert len(set(data[name])) == len(data[name]) and not seen & set(data[name]), name
        seen |= set(data[name])
    reserved = {f for _, f, _ in data["new_composition"]}
    assert len(reserved) == 608
    for name in ("train", "iid_valid", "iid_test"):
        assert {f for _, f, _ in data[name] if len(f) > 1}.isdisjoint(reserved)
    assert len({f for _, f, _ in data["train"]} & reserved) == 3
    assert set(data["basic"]) < set(data["train"])


def test_other_depths():
    baseline = {"more_depth_valid": 2, "more_depth_test": 5}
    assert set(CTL("valid", **baseline).depths.tolist()) == {6, 7}
    assert set(CTL("test", **baseline).depths.tolist()) == {8, 9, 10}


def test_seeds_differ():
    assert not torch.equal(CTL("basic", seed=0).targets, CTL("basic", seed=1).targets)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"split": "tset"}, ValueError, r"split must be one of 'train', 'iid', .*'new_composition', got 'tset'"),
        ({"split": ()}, ValueError, "split must be at least one of .*got none"),
        ({"direction": "left"}, ValueError, "direction must be one of 'forward', 'backward', got 'left'"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        ({"seed": 0.5}, TypeError, "seed must be an int, got float"),
        ({"max_depth": 2}, ValueError, r"max_depth must be in \[3, 7\], got 2"),
        ({"more_depth_test": 3}, ValueError, "more_depth_test must be at least 4, got 3"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        CTL(**arguments)
