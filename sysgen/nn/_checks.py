"""Checks of constructor arguments."""

import math

from ..ops._geometric_attention_checks import check_flag
from ..ops._recurrence_checks import check_number


def positive_int(layer, **values):
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{layer}: {name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{layer}: {name} must be at least 1, got {value}")


def rate(layer, **values):
    for name, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{layer}: {name} must be a number, got {value!r}")
        if not 0 <= value <= 1:
            raise ValueError(f"{layer}: {name} must be in [0, 1], got {value}")


def one_of(layer, known, **values):
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{layer}: {name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def positive(layer, **values):
    for name, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{layer}: {name} must be a number, got {value!r}")
        if not 0 < value < math.inf:
            raise ValueError(f"{layer}: {name} must be positive and finite, got {value}")


def finite(layer, **values):
    for name, value in values.items():
        check_number(layer, name, value, lambda v: v > -math.inf, "finite")


def flag(layer, **values):
    for name, value in values.items():
        check_flag(layer, name, value)


def at_least_zero(layer, **values):
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{layer}: {name} must be an int, got {value!r}")
        if value < 0:
            raise ValueError(f"{layer}: {name} must be at least 0, got {value}")
