"""ListOps and simple arithmetic: rules and statistics of the released data, every target recomputed."""

import time
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from task_oracle import (
    accepted,
    arithmetic_depth,
    arithmetic_text,
    arithmetic_value,
    counted_length,
    dependency_depth,
    draw_arithmetic,
    draw_listops,
    is_held_out,
    listops_text,
    listops_value,
    parse_arithmetic,
    parse_listops,
    tree_depth,
)

from sysgen._load import core
from sysgen.tasks import ListOps, SimpleArithmetic, _expressions, clear_cache
from sysgen.tasks._expressions import collect, equal_quota
from sysgen.tasks._random import key_of


def texts(dataset):
    return [dataset.decode(dataset[i][0]) for i in range(len(dataset))]


def bins(dataset):
    return dict(sorted(Counter(dataset.depths.tolist()).items()))


# ---- ListOps

LISTOPS_SIZES = {"num_train": 3000, "num_eval": 300}


@pytest.fixture(scope="module")
def listops():
    return {split: ListOps(split, **LISTOPS_SIZES) for split in ListOps.splits()}


@pytest.mark.parametrize("split", ListOps.SPLITS)
def test_listops_samples(listops, split):
    dataset = listops[split]
    low, high = {"valid": (7, 7), "test": (8, 9)}.get(split, (2, 6))
    for i, text in enumerate(texts(dataset)):
        tree = parse_listops(text)
        assert listops_value(tree) == int(dataset.classes[dataset[i][1]])
        assert dependency_depth(tree) == dataset.depths[i] and tree_depth(tree) == dataset.tree_depths[i]
        assert low <= dataset.tree_depths[i] <= high and dataset.depths[i] <= dataset.tree_depths[i]
        assert counted_length(tree) <= 50
        nodes = [tree]
        for node in nodes:  # grows while it runs
            if not isinstance(node, int):
                assert 2 <= len(node) - 1 <= 5
                nodes += node[1:]
    assert int(dataset.lengths.max()) <= 43


def test_listops_bins(listops):
    assert bins(listops["train"]) == dict.fromkeys(range(2, 7), 600)
    assert bins(listops["iid"]) == dict.fromkeys(range(2, 7), 60)
    assert bins(listops["valid"]) == {7: 300}
    assert bins(listops["test"]) == {8: 150, 9: 150}
    assert listops["train"].num_tokens == 15 and listops["train"].num_classes == 10


def test_listops_mean_lengths(listops):
    """Published: 22.9 tokens in train, 34.8 in valid, 35 to 38 in test; the standard deviation is below 10."""
    means = {split: float(dataset.lengths.float().mean()) for split, dataset in listops.items()}
    assert abs(means["train"] - 22.9) < 5 * 10 / 3000**0.5
    assert abs(means["valid"] - 34.8) < 5 * 10 / 300**0.5
    assert 35 - 1 < means["test"] < 38 + 1


def test_listops_wrapping_never_puts_the_old_tree_last():
    """Without random operators every tree is one digit, wrapped twice."""
    dataset = ListOps("valid", max_depth=2, op_probability=0.0, num_eval=300)
    places = Counter()
    for text in texts(dataset):
        arguments = parse_listops(text)[1:]
        (at,) = [i for i, argument in enumerate(arguments) if isinstance(argument, list)]
        places[at, len(arguments)] += 1
    assert set(places) == {(at, n) for n in (3, 4, 5) for at in range(n - 1)}


def test_listops_is_what_plain_python_draws():
    quota = dict(zip(range(2, 7), equal_quota(103, (2, 6))))
    assert quota == {2: 21, 3: 21, 4: 21, 5: 20, 6: 20}
    for part in ("train", "iid"):
        dataset = ListOps(part, seed=7, num_train=103, num_eval=103)

        def is_allowed(tree, dataset=dataset, part=part):
            ids = [dataset.vocabulary.index(word) for word in listops_text(tree).split()]
            return counted_length(tree) <= 50 and is_held_out(ids) == (part == "iid")

        trees = accepted(
            key_of(7, "listops", part), lambda d: draw_listops(d, 2, 6, 5, 0.3), dependency_depth, is_allowed, quota
        )
        assert texts(dataset) == [listops_text(tree) for tree in trees]


def test_listops_speed():
    """A million in a minute: every bin needs trials in proportion to its samples."""
    seconds = []
    for seed in (1, 2):
        start = time.perf_counter()
        ListOps(seed=seed, num_train=20_000)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) * 1_000_000 / 20_000 < 60


# ---- arithmetic

ARITHMETIC_SIZES = {"num_train": 4000, "num_eval": 800}


@pytest.fixture(scope="module", params=["reference", "balanced"])
def arithmetic(request):
    return request.param, {s: SimpleArithmetic(s, request.param, **ARITHMETIC_SIZES) for s in SimpleArithmetic.splits()}


def test_arithmetic_samples(arithmetic):
    for dataset in arithmetic[1].values():
        for i, text in enumerate(texts(dataset)):
            tree = parse_arithmetic(text)
            assert arithmetic_value(tree) == eval(text) % 10 == int(dataset.classes[dataset[i][1]])
            assert arithmetic_depth(tree) == dataset.depths[i] and len(text) == dataset.lengths[i] <= 50


def test_arithmetic_bins(arithmetic):
    datasets = arithmetic[1]
    assert bins(datasets["train"]) == {2: 200, **dict.fromkeys(range(3, 7), 1000)}
    assert bins(datasets["iid"]) == dict.fromkeys(range(3, 7), 200)
    assert bins(datasets["valid"]) == {7: 800} and bins(datasets["test"]) == {8: 400, 9: 400}
    assert datasets["train"].num_tokens == 14 and datasets["train"].num_classes == 10
    basic = texts(datasets["train"])[:200]
    assert set(basic) == {f"({a}{op}{b})" for a in range(10) for op in "+*" for b in range(10)}


def deeper_side(dataset, depths):
    """Part of the trees of these depths of which the left operand is deeper, and the right one."""
    sides = Counter()
    for text in (text for text, depth in zip(texts(dataset), dataset.depths.tolist()) if depth in depths):
        left, _, right = parse_arithmetic(text)
        difference = arithmetic_depth(left) - arithmetic_depth(right)
        sides["left" if difference > 0 else "right" if difference < 0 else "none"] += 1
    return [sides[side] / sum(sides.values()) for side in ("left", "right")]


def test_arithmetic_skew(arithmetic):
    """Published for the released generator: 90 % of train from depth 4 on are deeper on the left, 90 % of valid on the
    right; 97 % of depth 8 on the right, 11 % of depth 9. Tolerance: 5 σ of 400 samples at 90 %, and the rounding.
    """
    growth, datasets = arithmetic
    train, valid = deeper_side(datasets["train"], (4, 5, 6)), deeper_side(datasets["valid"], (7,))
    eight, nine = deeper_side(datasets["test"], (8,)), deeper_side(datasets["test"], (9,))
    tolerance = 5 * (0.9 * 0.1 / 400) ** 0.5 + 0.005
    if growth == "reference":
        for found, published in ((train[0], 0.9), (valid[1], 0.9), (eight[1], 0.97), (nine[1], 0.11)):
            assert abs(found - published) < tolerance
    else:
        for left, right in (train, valid, eight, nine):
            assert abs(left - right) < 10 * (0.25 / 400) ** 0.5


def test_arithmetic_statistics_of_the_full_set():
    """Published: 26 % of the results are 0; 17.9 tokens on average."""
    dataset = SimpleArithmetic()
    assert len(dataset) == 100_200 and bins(dataset) == {2: 200, **dict.fromkeys(range(3, 7), 25_000)}
    assert abs(float((dataset.targets == 0).float().mean()) - 0.26) < 0.005 + 5 * (0.2 / 100_000) ** 0.5
    assert abs(float(dataset.lengths.float().mean()) - 17.9) < 0.05 + 5 * 10 / 100_000**0.5


def test_arithmetic_takes_at_most_three_quarters_of_a_depth():
    """There are 210 expressions of depth 2 or less, so 10 + 2 · 210² - 210 = 88 000 of depth 3."""
    dataset = SimpleArithmetic(num_train=300_000)
    assert bins(dataset) == {2: 200, 3: 66_000, 4: 78_000, 5: 78_000, 6: 78_000}


@pytest.mark.parametrize("growth, left", [("reference", 0.0), ("balanced", 0.5)])
def test_arithmetic_is_what_plain_python_draws(growth, left):
    quota = {3: 20, 4: 20, 5: 20, 6: 20}
    dataset = SimpleArithmetic("iid", growth, seed=3, num_eval=80)

    def is_allowed(tree):
        text = arithmetic_text(tree)
        return len(text) <= 50 and is_held_out([dataset.vocabulary.index(c) for c in text])

    trees = accepted(
        key_of(3, "arithmetic", "iid"),
        lambda d: draw_arithmetic(d, 3, 6, 0.2, left),
        arithmetic_depth,
        is_allowed,
        quota,
    )
    assert texts(dataset) == [arithmetic_text(tree) for tree in trees]


# ---- both


@pytest.mark.parametrize("make", [ListOps, SimpleArithmetic])
def test_no_expression_is_twice(make):
    """Not in a split, and not in two: also where a depth has few expressions."""
    parts = [texts(make(split, num_train=10_000, num_eval=100)) for split in make.splits()]
    everything = [text for part in parts for text in part]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize("make", [ListOps, SimpleArithmetic])
def test_number_of_threads_does_not_matter(make):
    before, tables = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            clear_cache()
            tables.append(make(num_train=3000)._table)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(tables[0][name], tables[1][name]) for name in tables[0])


@pytest.mark.parametrize("make", [ListOps, SimpleArithmetic])
def test_sizes_of_other_splits_do_not_matter(make):
    assert torch.equal(make("valid", num_train=1000)._table["tokens"], make("valid", num_train=2000)._table["tokens"])


LISTOPS = {"quota": [1000], "depths": (2, 2), "max_length": 5, "max_args": 5, "op_probability": 0.3}


def test_progress_is_reported_and_may_stop(monkeypatch):
    calls = []
    monkeypatch.setattr(_expressions, "progress_bar", lambda *arguments: nullcontext(calls.append))
    ListOps(seed=11, num_train=30_000)
    assert calls and calls == sorted(calls) and calls[-1] == 30_000
    monkeypatch.setattr(_expressions, "progress_bar", lambda *arguments: nullcontext(lambda done: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        ListOps(seed=12, num_train=3000)


def test_too_few_expressions_are_an_error():
    """There are 400 of two digits, which max_length allows: 4 operators, 100 pairs."""
    with pytest.raises(
        ValueError, match=r"none of the last 1000000 expressions was new .* of 1000 samples; allow a larger"
    ):
        collect(core.listops_generate, "listops", "train", 0, False, patience=1_000_000, **LISTOPS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"max_length": 256}, r"max_length must be in \[1, 255\], got 256"),
        ({"depths": (1, 1)}, "depths must satisfy 2 <= min_depth <= max_depth <= 32, got 1 and 1"),
        ({"max_args": 2}, r"max_args must be in \[3, 31\], got 2"),
        ({"op_probability": float("nan")}, r"op_probability must be in \[0, 1\], got nan"),
        ({"depths": (2, 3)}, "quota must hold a number for each depth from 2 to 3"),
    ],
)
def test_the_core_refuses(change, message):
    with pytest.raises(ValueError, match=f"listops_generate: {message}"):
        collect(core.listops_generate, "listops", "train", 0, False, **{**LISTOPS, **change})


@pytest.mark.parametrize(
    "make, arguments, error, message",
    [
        (ListOps, {"split": "ood"}, ValueError, "split must be one of 'train', 'iid', 'valid', 'test', got 'ood'"),
        (ListOps, {"num_train": 0}, ValueError, "num_train must be at least 1, got 0"),
        (ListOps, {"num_eval": 1.5}, TypeError, "num_eval must be an int, got float"),
        (ListOps, {"op_probability": 1.0}, ValueError, r"op_probability must be in \[0, 1\), got 1.0"),
        (SimpleArithmetic, {"growth": "left"}, ValueError, "growth must be one of 'reference', 'balanced', got 'left'"),
        (SimpleArithmetic, {"max_depth": 30}, ValueError, r"max_depth must be in \[3, 29\], got 30"),
    ],
)
def test_bad_arguments(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)
