"""CTL++: table lookup with groups of functions (Csordás, Irie & Schmidhuber, EMNLP 2022; Csordas 2023, Ch. 6)."""

from dataclasses import dataclass, field
from itertools import product
from string import ascii_letters

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

NUM_SYMBOLS, NUM_FUNCTIONS = 8, 32
MIN_DEPTH = 2
ALL_SYMBOLS = frozenset(range(NUM_SYMBOLS))
START = "start"


@dataclass
class Graph:
    """Which functions may follow one of a group (or the start), and after which the sequence may end."""

    groups: dict  # name -> functions
    edges: dict  # group -> groups that may follow it
    ends: set  # groups that may be last
    restricted: list = field(default_factory=list)  # (group, symbols, function): may follow it on these symbols only

    def allowed(self):
        """Whether a function may follow: bool [groups + 1 (start), symbols, functions]; groups as in their order."""
        rows = [*self.groups, START]
        table = torch.zeros(len(rows), NUM_SYMBOLS, NUM_FUNCTIONS, dtype=torch.bool)
        for source, targets in self.edges.items():
            for target in targets:
                table[rows.index(source), :, self.groups[target]] = True
        for source, symbols, function in self.restricted:
            for symbol in symbols:
                table[rows.index(source), symbol, function] = True
        return table

    def group_of(self):
        """Number of the group of each function, LongTensor [functions]."""
        result = torch.empty(NUM_FUNCTIONS, dtype=torch.int64)
        for number, functions in enumerate(self.groups.values()):
            result[functions] = number
        return result

    def counts(self, functions, max_depth):
        """Number of strings of each depth as the released code counts them, {depth: number}.

        It follows the set of symbols that are possible after each function, so that with restricted edges it counts
        too many from the second of them on.
        """
        group_of = {f: name for name, members in self.groups.items() for f in members}
        ways = {(START, ALL_SYMBOLS): 1}
        result = {}
        for depth in range(1, max_depth + 1):
            following = {}
            for (source, symbols), number in ways.items():
                for target in self.edges.get(source, ()):
                    members = self.groups[target]
                    images = frozenset(functions[f][s] for f in members for s in symbols)
                    following[target, images] = following.get((target, images), 0) + number * len(members)
                for origin, on, f in self.restricted:
                    if origin == source:
                        state = group_of[f], frozenset(functions[f][s] for s in symbols & on)
                        following[state] = following.get(state, 0) + number
            ways = following
            total = sum(n * len(symbols) for (group, symbols), n in ways.items() if group in self.ends)
            if total:
                result[depth] = total
        return result


class CTLPlusPlus(ClassificationDataset):
    """A symbol and 2 to ``max_depth`` functions of it; the groups of the functions decide which may follow which.

    32 different random bijections of eight symbols (``a`` … ``F``), the same in all splits of a seed.

    * Variant ``"A"``: groups a and b of 16; in training they alternate, in ``"ood"`` all are of one group.
    * Variant ``"R"``: the same groups; in training all are of one group, in ``"ood"`` they alternate.
    * Variant ``"S"``: groups a1, a2, b1, b2 of equal size and o. In training a1 or b1 comes first, a2 follows a1 and b2
      follows b1, a function of o follows either, but each on some symbols only; after a2, b2 and o comes a1 or b1 or
      the end. In ``"ood"`` b2 follows a1, and a2 follows b1. ``symbol_overlap`` symbols are shared by a1 and b1 before
      a function of o, the others are divided between them.

    The next function is uniform over all that may follow. All lengths have equally many samples, but at most half
    of all strings of a length. The released code, followed here, has no single functions (the thesis says it has), but
    with ``pairs=True`` all strings of two functions that training allows are added to train, also those of iid.

    ===========================  ===========================================================================
    ``"train"``                  num_train, and the pairs
    ``"iid"``                    num_eval more, which but for the pairs are not in train
    ``"ood"``                    num_eval, see above
    ``"test_all"``               num_eval, any function after any; may be in train
    ``"pairs"``                  all strings of two functions that training allows: 4096; S: fewer
    ``"all_pairs"``              all strings of two functions (S: of which the first is in a1 or b1, the second not)
    ``"unseen_pairs"``           those that training does not allow
    ``"self_loop"``              S: num_eval, all functions of one group
    ``"overlap"``                S: num_eval, a1 or b1 and o in turn, on all symbols
    ``"cross_unseen_symbols"``   S: the unseen pairs with a function of o
    ===========================  ===========================================================================

    Args:
        split: one of the names above, or several that are joined.
        variant: ``"A"``, ``"R"`` or ``"S"``.
        seed: int. All splits of one seed and variant belong together.
        progress: unused, the data take about a second.
        overlap: S: number of functions in o, a multiple of 4 in [4, 28]; 16 if None.
        symbol_overlap: S: number of symbols shared before each of them, in [1, 8]; 6 if None.
        num_train, num_eval: numbers of samples.
        max_depth: largest number of functions; the thesis has 6.
        pairs: see above.
        direction: ``"backward"``: ``c b a 3``, last function first, as in the paper; or ``"forward"``: ``3 a b c``.
        cache_dir: folder in which the data are kept; None: in memory only.

    ``dataset[i]`` is ``(tokens LongTensor [depth + 1], target int)``; ``depths`` is the number of functions.
    """

    SPLITS = ("train", "iid", "ood", "test_all", "pairs", "all_pairs", "unseen_pairs")
    SPLITS_OF_S = ("self_loop", "overlap", "cross_unseen_symbols")

    def __init__(
        self,
        split="train",
        variant="A",
        seed=0,
        progress=False,
        *,
        overlap=None,
        symbol_overlap=None,
        num_train=300_000,
        num_eval=1000,
        max_depth=6,
        pairs=True,
        direction="backward",
        cache_dir=None,
    ):
        check_choice("variant", variant, ("A", "R", "S"))
        check_choice("direction", direction, ("backward", "forward"))
        if variant == "S":
            overlap = 16 if overlap is None else overlap
            symbol_overlap = 6 if symbol_overlap is None else symbol_overlap
            check_int("symbol_overlap", symbol_overlap, 1, NUM_SYMBOLS)
            check_int("overlap", overlap, 4, 28)
            if overlap % 4:
                raise ValueError(f"overlap must be a multiple of 4, got {overlap}")
        elif overlap is not None or symbol_overlap is not None:
            raise ValueError(f"overlap and symbol_overlap are of variant 'S', the variant is {variant!r}")
        check_int("num_train", num_train, 1)
        check_int("num_eval", num_eval, 1)
        check_int("max_depth", max_depth, MIN_DEPTH, 10)
        self.variant, self.overlap, self.symbol_overlap, self.direction = variant, overlap, symbol_overlap, direction
        self.num_train, self.num_eval, self.max_depth, self.pairs = num_train, num_eval, max_depth, bool(pairs)
        self.classes = [str(symbol) for symbol in range(NUM_SYMBOLS)]
        self.vocabulary = [*ascii_letters[:NUM_FUNCTIONS], *self.classes]
        parameters = {
            "variant": variant,
            "overlap": overlap,
            "symbol_overlap": symbol_overlap,
            "num_train": num_train,
            "num_eval": num_eval,
            "max_depth": max_depth,
            "pairs": self.pairs,
            "direction": direction,
        }
        super().__init__(split, seed, parameters, progress, cache_dir)

    @classmethod
    def splits(cls, variant="A"):
        """Names of the splits of a variant."""
        return cls.SPLITS + (cls.SPLITS_OF_S if variant == "S" else ())

    @staticmethod
    def _split_arguments(parameters):
        return {"variant": parameters["variant"]}

    @property
    def functions(self):
        """The tables: LongTensor [32, 8], the result of each function for each symbol."""
        stream = Stream(key_of(self.seed, "ctl++", "functions"))
        tables = {}
        while len(tables) < NUM_FUNCTIONS:
            tables[tuple(stream.permutation(NUM_SYMBOLS))] = None
        return torch.tensor(list(tables))

    @property
    def groups(self):
        """Functions of each group: {name: list of their numbers}."""
        names, first = (("a", "b"), 0) if self.variant != "S" else (("a1", "a2", "b1", "b2"), self.overlap)
        size = (NUM_FUNCTIONS - first) // len(names)
        groups = {name: list(range(first + i * size, first + (i + 1) * size)) for i, name in enumerate(names)}
        return {**groups, "o": list(range(first))} if first else groups

    def graph(self, name):
        """The :class:`Graph` ``"train"``, or that of the split ``name``."""
        groups = self.groups
        if self.variant == "S":
            return self._graph_of_s(name, groups)
        either = ("a", "b")
        same, other = {"a": ("a",), "b": ("b",)}, {"a": ("b",), "b": ("a",)}
        trained, tested = (other, same) if self.variant == "A" else (same, other)
        free = {"a": either, "b": either}
        edges = {"train": trained, "ood": tested, "unseen_pairs": tested, "test_all": free, "all_pairs": free}[name]
        return Graph(groups, {START: either, **edges}, set(either))

    def _graph_of_s(self, name, groups):
        first, last = ("a1", "b1"), ("a2", "b2", "o")
        again = dict.fromkeys(last, first)
        crossed = {"a1": ("b2",), "b1": ("a2",)}
        edges, restricted = {
            "train": ({"a1": ("a2",), "b1": ("b2",), **again}, self._restricted(groups["o"])),
            "ood": ({**crossed, **again}, []),
            "test_all": (dict.fromkeys(groups, tuple(groups)), []),
            "all_pairs": (dict.fromkeys(first, last), []),
            "unseen_pairs": (crossed, _inverted(self._restricted(groups["o"]))),
            "self_loop": ({group: (group,) for group in groups}, []),
            "overlap": ({"a1": ("o",), "b1": ("o",), "o": first}, []),
            "cross_unseen_symbols": ({}, _inverted(self._restricted(groups["o"]))),
        }[name]
        everything = name in ("test_all", "self_loop")
        return Graph(
            groups,
            {START: tuple(groups) if everything else first, **edges},
            set(groups if everything else last),
            restricted,
        )

    def _restricted(self, functions):
        """The edges from a1 and b1 to the functions of o."""
        stream = Stream(key_of(self.seed, "ctl++", "overlap", self.overlap, self.symbol_overlap))
        shared_by = self.symbol_overlap
        order = list(range(NUM_SYMBOLS))
        covered_after = -(-NUM_SYMBOLS // shared_by)
        edges = []
        for n, function in enumerate(functions):
            shared = {order[i % NUM_SYMBOLS] for i in range(n * shared_by, (n + 1) * shared_by)}
            others = sorted(ALL_SYMBOLS - shared)
            half = (len(others) + 1) // 2
            parts = [others[:half], others[half:]]
            if len(others) == 1 and stream.below(2):
                parts.reverse()
            if (n + 1) % covered_after == 0:
                order = stream.permutation(NUM_SYMBOLS)
            edges += [(group, frozenset(shared.union(part)), function) for group, part in zip(("a1", "b1"), parts)]
        return edges

    def _generate(self, part, progress):
        trained = self.graph("train")
        drawn = self._sample("train", self.num_train + self.num_eval, 0.5)
        order = permutation(key_of(self.seed, "ctl++", "split", self.variant), len(drawn["depths"]))
        pairs = self._pairs(trained)
        train = select(drawn, order[self.num_eval :].sort().values)
        tables = {
            "train": concatenate([train, pairs]) if self.pairs else train,
            "iid": select(drawn, order[: self.num_eval].sort().values),
            "pairs": pairs,
            "all_pairs": self._pairs(self.graph("all_pairs")),
            "unseen_pairs": self._pairs(self.graph("unseen_pairs")),
        }
        sampled = ("ood", "test_all")
        if self.variant == "S":
            tables["cross_unseen_symbols"] = self._pairs(self.graph("cross_unseen_symbols"))
            sampled += ("self_loop", "overlap")
        tables.update((name, self._sample(name, self.num_eval, 1.0)) for name in sampled)
        return tables

    def _sample(self, name, num, fill):
        """``num`` different strings, equally many of each depth but at most the part ``fill`` of all."""
        graph = self.graph(name)
        counts = {d: c for d, c in graph.counts(self.functions.tolist(), self.max_depth).items() if d >= MIN_DEPTH}
        tables, missing = [], num
        for i, (depth, count) in enumerate(counts.items()):
            wanted = min(int(count * fill), -(-missing // (len(counts) - i)))
            tables.append(self._walks(graph, name, depth, wanted))
            missing -= wanted
        if missing:
            raise ValueError(
                f"{name!r} of variant {self.variant!r} offers {num - missing} strings of at most {self.max_depth} "
                f"functions, but num_train or num_eval asks for {num}"
            )
        return concatenate(tables)

    def _walks(self, graph, name, depth, num):
        """``num`` different random walks of ``depth`` functions that may end there."""
        allowed, group_of, functions = graph.allowed(), graph.group_of(), self.functions
        num_allowed = allowed.sum(-1)
        choices = (~allowed).to(torch.uint8).argsort(dim=-1, stable=True)  # the allowed functions first
        may_end = torch.tensor([group in graph.ends for group in graph.groups])
        key = key_of(
            self.seed, "ctl++", "walks", self.variant, name, self.overlap or 0, self.symbol_overlap or 0, depth
        )
        num_candidates = 2 * num
        while True:
            bits = draw(key, torch.arange(num_candidates * (depth + 1)).view(num_candidates, depth + 1))
            current = start = below(bits[:, 0], NUM_SYMBOLS)
            group = torch.full_like(start, len(graph.groups))
            alive = torch.ones_like(start, dtype=torch.bool)
            steps = []
            for step in range(depth):
                options = num_allowed[group, current]
                alive &= options > 0
                steps.append(choices[group, current, below(bits[:, 1 + step], options)])
                current, group = functions[steps[-1], current], group_of[steps[-1]]
            steps = torch.stack(steps, 1)
            rows = (alive & may_end[group]).nonzero()[:, 0]
            rows = rows[first_of_each(hash_rows(torch.cat([start[:, None], steps], 1)[rows]))]
            if len(rows) >= num:
                rows = rows[:num]
                return self._table_from(start[rows], steps[rows], current[rows])
            num_candidates *= 2

    def _pairs(self, graph):
        """All strings of two functions."""
        allowed, functions = graph.allowed().tolist(), self.functions.tolist()
        groups = list(graph.groups)
        group_of = graph.group_of().tolist()
        found = [
            (symbol, f, g)
            for symbol, f, g in product(range(NUM_SYMBOLS), range(NUM_FUNCTIONS), range(NUM_FUNCTIONS))
            if allowed[len(groups)][symbol][f]
            and allowed[group_of[f]][functions[f][symbol]][g]
            and groups[group_of[g]] in graph.ends
        ]
        found = torch.tensor(found, dtype=torch.int64).view(-1, 3)
        start, steps = found[:, 0], found[:, 1:]
        return self._table_from(start, steps, self.functions[steps[:, 1], self.functions[steps[:, 0], start]])

    def _table_from(self, start, steps, results):
        depths = torch.full_like(start, steps.shape[1])
        tokens = torch.cat([start[:, None] + NUM_FUNCTIONS, steps], 1)
        if self.direction == "backward":
            tokens = reversed_rows(tokens, depths + 1)
        flat, offsets = ragged(tokens, depths + 1)
        return {
            "tokens": flat.to(torch.uint8),
            "tokens_offsets": offsets,
            "targets": results.to(torch.uint8),
            "depths": depths.int(),
        }


def _inverted(restricted):
    return [(group, ALL_SYMBOLS - symbols, function) for group, symbols, function in restricted]
