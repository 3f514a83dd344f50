"""CTL++: the graphs of the variants, the published counts, every target recomputed."""

from collections import Counter, defaultdict

import pytest
import torch

from sysgen.tasks import CTLPlusPlus

VARIANTS = ("A", "R", "S")
SMALL = {"num_train": 1000, "num_eval": 10}


def walks(dataset):
    """(symbol, functions in the order of their application) of each sample, as numbers."""
    result = []
    tokens, offsets = dataset._table["tokens"].tolist(), dataset._table["tokens_offsets"].tolist()
    for begin, end in zip(offsets, offsets[1:]):
        words = [dataset.vocabulary[t] for t in tokens[begin:end]]
        if dataset.direction == "backward":
            words.reverse()
        result.append((int(words[0]), tuple(map(dataset.vocabulary.index, words[1:]))))
    return result


@pytest.fixture(scope="module")
def data():
    """Smaller than the paper's: the rules are the same."""
    sizes = {"num_train": 20_000, "pairs": False}
    return {v: {s: CTLPlusPlus(s, v, **sizes) for s in CTLPlusPlus.splits(v)} for v in VARIANTS}


@pytest.fixture(scope="module")
def strings(data):
    return {v: {name: walks(dataset) for name, dataset in splits.items()} for v, splits in data.items()}


def group(variant, function):
    """From the sizes: 16 and 16, or 16 in o and 4 in each of a1, a2, b1, b2."""
    if variant != "S":
        return "ab"[function // 16]
    return "o" if function < 16 else ("a1", "a2", "b1", "b2")[(function - 16) // 4]


def steps(variant, functions):
    return {(group(variant, f), group(variant, g)) for f, g in zip(functions, functions[1:])}


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_sizes(variant):
    """Equally many strings of each length, but at most half of all, which are 8 · 32 · 16^(depth - 1) for A and R.

    The iid samples are a part of what is drawn.
    """
    full, train, iid = (
        CTLPlusPlus(*a, pairs=p)
        for a, p in ((("train", variant), True), (("train", variant), False), (("iid", variant), False))
    )
    pairs = {"A": 4096, "R": 4096, "S": 1152}[variant]
    assert (len(full), len(train), len(iid)) == (300_000 + pairs, 300_000, 1000)
    assert train.num_tokens == 40 and train.num_classes == 8
    depths = (train.depths.bincount() + iid.depths.bincount()).tolist()
    if variant == "S":
        counts = train.graph("train").counts(train.functions.tolist(), 6)
        assert counts == {2: 1152, 4: 184_320, 6: 29_491_200}
        assert depths == [0, 0, 576, 0, 92_160, 0, 301_000 - 576 - 92_160]
    else:
        assert depths == [0, 0, 2048, 32_768, 88_728, 88_728, 88_728]


def test_sizes(data):
    for variant in VARIANTS:
        sizes = {name: len(dataset) for name, dataset in data[variant].items()}
        assert all(sizes[name] == 1000 for name in sizes if name in ("iid", "ood", "test_all", "self_loop", "overlap"))
        assert sizes["pairs"] + sizes["unseen_pairs"] == sizes["all_pairs"]
    for variant in "AR":
        assert data[variant]["ood"].depths.bincount().tolist() == [0, 0, 200, 200, 200, 200, 200]


def test_functions_are_different_bijections(data):
    for variant in VARIANTS:
        functions = {tuple(f) for f in data[variant]["train"].functions.tolist()}
        assert len(functions) == 32 and all(sorted(f) == list(range(8)) for f in functions)


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets(data, strings, variant):
    for name, dataset in data[variant].items():
        functions = dataset.functions.tolist()
        for (symbol, applied), target, depth in zip(strings[variant][name], dataset.targets.tolist(), dataset.depths):
            assert len(applied) == depth
            for f in applied:
                symbol = functions[f][symbol]
            assert symbol == target


def test_groups_in_training_and_out_of_distribution(strings):
    same, other = {("a", "a"), ("b", "b")}, {("a", "b"), ("b", "a")}
    for variant, trained, tested in (("A", other, same), ("R", same, other)):
        for name in ("train", "iid", "pairs"):
            assert set().union(*(steps(variant, f) for _, f in strings[variant][name])) == trained
        for name in ("ood", "unseen_pairs"):
            assert all(steps(variant, f) <= tested for _, f in strings[variant][name])
        assert set().union(*(steps(variant, f) for _, f in strings[variant]["test_all"])) == same | other


def test_groups_of_s(strings):
    last, first = ("a2", "b2", "o"), ("a1", "b1")
    back = {(x, y) for x in last for y in first}
    trained = {("a1", "a2"), ("b1", "b2"), ("a1", "o"), ("b1", "o")} | back
    crossed = {("a1", "b2"), ("b1", "a2")}
    s = strings["S"]
    assert set().union(*(steps("S", f) for _, f in s["train"])) == trained
    assert set().union(*(steps("S", f) for _, f in s["ood"])) == crossed | {(x, y) for x, y in back if x != "o"}
    for name in ("train", "iid", "ood", "pairs", "overlap"):
        assert all(group("S", f[0]) in first and group("S", f[-1]) in last for _, f in s[name])
    assert set().union(*(steps("S", f) for _, f in s["self_loop"])) == {(g, g) for g in (*first, *last)}
    assert set().union(*(steps("S", f) for _, f in s["overlap"])) == {(x, "o") for x in first} | {
        ("o", x) for x in first
    }
    assert len(set().union(*(steps("S", f) for _, f in s["test_all"]))) == 25


def test_restricted_symbols_of_s(data, strings):
    """Before each function of o, six symbols are shared by a1 and b1 and each has one of the other two."""
    functions = data["S"]["train"].functions.tolist()

    def before_o(name):
        found = defaultdict(set)
        for symbol, applied in strings["S"][name]:
            for f, g in zip(applied, applied[1:]):
                symbol = functions[f][symbol]
                if group("S", g) == "o" and group("S", f) in ("a1", "b1"):
                    found[g, group("S", f)].add(symbol)
        return found

    trained, unseen = before_o("train"), before_o("cross_unseen_symbols")
    assert trained == before_o("pairs") and len(trained) == 32
    shared = []
    for g in range(16):
        a, b = trained[g, "a1"], trained[g, "b1"]
        assert len(a) == len(b) == 7 and len(a & b) == 6 and a | b == set(range(8))
        assert unseen[g, "a1"] == b - a and unseen[g, "b1"] == a - b
        shared.append(a & b)
    assert all(
        shared[g] | shared[g + 1] == set(range(8)) for g in range(0, 16, 2)
    )  # a cyclic order, reshuffled when covered
    assert len({frozenset(s) for s in shared}) > 4


@pytest.mark.parametrize("overlap", [4, 8, 12, 16])
def test_pairs_of_s(overlap):
    """From a1 and b1 of g functions: to a2 and b2 on all symbols, to o on s shared ones and the others once."""
    g = (32 - overlap) // 4
    for shared in (1, 2, 6, 7, 8):
        dataset = CTLPlusPlus("pairs", "S", overlap=overlap, symbol_overlap=shared, **SMALL)
        assert len(dataset) == 2 * g * g * 8 + g * overlap * (2 * shared + 8 - shared)
        assert len(dataset) == {(4, 2): 1064, (16, 6): 1152}.get((overlap, shared), len(dataset))  # published


@pytest.mark.parametrize("variant", VARIANTS)
def test_splits_are_disjoint_and_hold_no_string_twice(strings, variant):
    splits = strings[variant]
    for samples in splits.values():
        assert len(set(samples)) == len(samples)
    trained = set(splits["train"])
    for name in ("iid", "ood", "unseen_pairs"):
        assert trained.isdisjoint(splits[name])
    assert set(splits["pairs"]).isdisjoint(splits["unseen_pairs"])
    assert set(splits["pairs"]) | set(splits["unseen_pairs"]) == set(splits["all_pairs"])
    assert {s for s in splits["train"] if len(s[1]) == 2} < set(splits["pairs"])


def test_next_function_is_uniform(strings):
    """Of the longest strings of A, of which few are drawn twice: 5 σ of a binomial."""
    longest = [s for s in strings["A"]["train"] if len(s[1]) == 6]
    for counts, n in ((Counter(s[0] for s in longest), 8), (Counter(f[0] for _, f in longest), 32)):
        mean = len(longest) / n
        assert len(counts) == n and all(abs(c - mean) < 5 * mean**0.5 for c in counts.values())
    of_a = Counter(f[3] for _, f in longest if f[0] < 16)
    mean = sum(of_a.values()) / 16
    assert len(of_a) == 16 and all(abs(c - mean) < 5 * mean**0.5 for c in of_a.values())


def test_direction():
    backward, forward = (CTLPlusPlus("ood", direction=d, **SMALL) for d in ("backward", "forward"))
    assert [t.tolist()[::-1] for t, _ in backward] == [t.tolist() for t, _ in forward]
    assert torch.equal(backward.targets, forward.targets)
    assert backward.decode(backward[0][0])[-1] in "01234567"


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"variant": "B"}, ValueError, "variant must be one of 'A', 'R', 'S', got 'B'"),
        ({"split": "overlap"}, ValueError, "split must be one of 'train', .*'unseen_pairs', got 'overlap'"),
        ({"overlap": 16}, ValueError, "overlap and symbol_overlap are of variant 'S', the variant is 'A'"),
        ({"variant": "S", "overlap": 10}, ValueError, "overlap must be a multiple of 4, got 10"),
        ({"variant": "S", "symbol_overlap": 9}, ValueError, r"symbol_overlap must be in \[1, 8\], got 9"),
        (
            {"max_depth": 2},
            ValueError,
            "offers 2048 strings of at most 2 functions, but num_train or num_eval asks for 301000",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        CTLPlusPlus(**arguments)
