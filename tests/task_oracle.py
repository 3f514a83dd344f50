"""What the data sets are checked against: slow, plain Python, written from the rules and not from the generators."""

import ast
import re

MASK = (1 << 64) - 1


# ---- ListOps


def parse_listops(text):
    """Nested lists ``[operator, argument, …]`` and digits."""

    def parse(words):
        word = words.pop()
        if word.isdigit():
            return int(word)
        assert word in ("[MIN", "[MAX", "[MED", "[SM"), word
        node = [word[1:]]
        while words[-1] != "]":
            node.append(parse(words))
        words.pop()
        return node

    words = text.split()[::-1]
    tree = parse(words)
    assert not words
    return tree


def listops_value(tree):
    if isinstance(tree, int):
        return tree
    values = [listops_value(argument) for argument in tree[1:]]
    if tree[0] == "SM":
        return sum(values) % 10
    if tree[0] == "MED":
        ordered, n = sorted(values), len(values)
        return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) // 2
    return min(values) if tree[0] == "MIN" else max(values)


def dependency_depth(tree):
    if isinstance(tree, int):
        return 1
    arguments, values = tree[1:], [listops_value(argument) for argument in tree[1:]]
    if tree[0] == "SM":
        needed = arguments
    elif tree[0] == "MED":
        order, n = sorted(range(len(values)), key=lambda i: values[i]), len(values)
        needed = [arguments[i] for i in (order[n // 2 : n // 2 + 1] if n % 2 else order[n // 2 - 1 : n // 2 + 1])]
    else:
        needed = [arguments[values.index(listops_value(tree))]]
    return 1 + max(dependency_depth(argument) for argument in needed)


def tree_depth(tree):
    return 1 if isinstance(tree, int) else 1 + max(tree_depth(argument) for argument in tree[1:])


def counted_length(tree):
    return 1 if isinstance(tree, int) else 3 + sum(counted_length(argument) for argument in tree[1:])


# ---- arithmetic


def parse_arithmetic(text):
    """Digits and tuples (left, operator, right)."""
    assert re.fullmatch(r"[()+*0-9]+", text) and not re.search(r"\d\d", text)
    names = {ast.Add: "+", ast.Mult: "*"}

    def convert(node):
        if isinstance(node, ast.Constant):
            return node.value
        return convert(node.left), names[type(node.op)], convert(node.right)

    tree = convert(ast.parse(text, mode="eval").body)
    assert arithmetic_text(tree) == text  # every operation is in parentheses, nothing else is
    return tree


def arithmetic_text(tree):
    return str(tree) if isinstance(tree, int) else f"({arithmetic_text(tree[0])}{tree[1]}{arithmetic_text(tree[2])})"


def arithmetic_value(tree):
    if isinstance(tree, int):
        return tree
    left, right = arithmetic_value(tree[0]), arithmetic_value(tree[2])
    return (left + right if tree[1] == "+" else left * right) % 10


def arithmetic_depth(tree):
    return 1 if isinstance(tree, int) else 1 + max(arithmetic_depth(tree[0]), arithmetic_depth(tree[2]))


# ---- SCAN


def scan_actions(command):
    """What a command asks for; an interpreter of the words, from the outside in."""
    words = command.split()
    for word, swap in (("and", False), ("after", True)):
        if word in words:
            at = words.index(word)
            parts = [scan_actions(" ".join(part)) for part in (words[:at], words[at + 1 :])]
            return parts[1] + parts[0] if swap else parts[0] + parts[1]
    repeats = {"twice": 2, "thrice": 3}.get(words[-1], 1)
    if repeats > 1:
        words = words[:-1]
    verb, manner, direction = words[0], words[1] if len(words) == 3 else None, words[-1] if len(words) > 1 else None
    action = [] if verb == "turn" else [f"I_{verb.upper()}"]
    turn = [f"I_TURN_{direction.upper()}"] if direction else []
    once = {None: turn + action, "opposite": turn + turn + action, "around": (turn + action) * 4}[manner]
    return once * repeats


# ---- the generators of the core, trial by trial


def splitmix(state):
    """The numbers of a SplitMix64 generator with this initial state."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


class Draws:
    def __init__(self, state):
        self.numbers = splitmix(state)

    def below(self, n):
        return (next(self.numbers) >> 32) * n >> 32

    def uniform(self):
        return (next(self.numbers) >> 11) / 2**53


def draw_listops(draws, min_depth, max_depth, max_args, op_probability):
    def subtree(levels):
        if levels == 1 or draws.uniform() >= op_probability:
            return draws.below(10)
        operator = draws.below(4)
        return [NAMES[operator], *(subtree(levels - 1) for _ in range(2 + draws.below(max_args - 1)))]

    tree = subtree(max_depth)
    while tree_depth(tree) < min_depth:
        operator, fresh = draws.below(4), 2 + draws.below(max_args - 2)
        place = draws.below(fresh)
        arguments = []
        for i in range(fresh + 1):
            arguments.append(tree if i == place else subtree(max_depth - 1))
        tree = [NAMES[operator], *arguments]
    return tree


NAMES = ("MIN", "MAX", "MED", "SM")


def draw_arithmetic(draws, min_depth, max_depth, op_probability, left_probability):
    def subtree(levels):
        if levels == 1 or draws.uniform() >= op_probability:
            return draws.below(10)
        operator = "+*"[draws.below(2)]
        return subtree(levels - 1), operator, subtree(levels - 1)

    tree = subtree(max_depth)
    while arithmetic_depth(tree) < min_depth:
        stays_left, operator = draws.uniform() < left_probability, "+*"[draws.below(2)]
        other = subtree(max_depth - 1)
        tree = (tree, operator, other) if stays_left else (other, operator, tree)
    return tree


def listops_text(tree):
    return str(tree) if isinstance(tree, int) else f"[{tree[0]} {' '.join(listops_text(a) for a in tree[1:])} ]"


def is_held_out(token_ids):
    value = 0xCBF29CE484222325
    for token in token_ids:
        value = ((value ^ token) * 0x100000001B3) & MASK
    finish = splitmix((value - 0x9E3779B97F4A7C15) & MASK)
    return next(finish) >> 60 == 0


def accepted(key, draw, depth_of, is_allowed, quota):
    """The trees that rejection sampling accepts: ``quota`` {depth: number}."""
    keys, left, found = splitmix(key), dict(quota), {}
    while any(left.values()):
        tree = draw(Draws(next(keys)))
        if is_allowed(tree) and left.get(depth_of(tree), 0) and str(tree) not in found:
            left[depth_of(tree)] -= 1
            found[str(tree)] = tree
    return list(found.values())
