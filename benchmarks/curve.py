"""Measuring several series at one size: side by side, in rounds, after checking that they agree."""

import gc
import statistics
from typing import Callable, NamedTuple, Optional

import torch
from measure import environment, load_average, timed

from sysgen._memory import peak_memory

BUDGET = 1.2  # seconds of rounds a size
SHARE = 0.5  # seconds after which a series sits out further rounds, if it has MIN_ROUNDS
MIN_ROUNDS = 3
MAX_ROUNDS = 25


class Series(NamedTuple):
    """``run()`` returns a tuple of tensors. ``comparable``: they are what the first series returns.

    flops and bytes: useful floating-point operations, and bytes that must be read or written at least once. saved:
    a function that gives the bytes saved for backward.
    """

    run: Callable
    flops: float
    bytes: float
    comparable: bool = True
    saved: Optional[Callable] = None


class Curve:
    """Adds one point to the curves of a figure: all series at one size.

    The series are timed in turn, round after round, so that whatever else the machine does hits all of them, and
    ratios are medians of the ratios within a round. The first series is also what pytest-benchmark reports; what was
    measured of all is in its ``extra_info``.
    """

    def __init__(self, benchmark, device, records):
        self.benchmark, self.device, self.records = benchmark, device, records

    def __call__(
        self,
        series,
        *,
        figure,
        x_name,
        x,
        expected=None,
        tolerance=(0.0, 0.0),
        sizes=None,
        notes=None,
        floor=None,
        budget=BUDGET,
        **labels,
    ):
        """series: name -> :class:`Series`, or the reason why it cannot run. ``expected``: what they must return, with
        the allowed errors of the first tensor (the output) and of the others (gradients). ``floor``: seconds below
        which the first series cannot be. ``budget``: seconds of rounds."""
        runnable = {name: s for name, s in series.items() if isinstance(s, Series)}
        first, *others = runnable
        seconds, peaks = {}, {}
        for name, s in runnable.items():
            seconds[name], (result, peaks[name]) = timed(lambda s=s: peak_memory(s.run, self.device))
            if s.comparable and expected is not None:
                _check(name, result, expected, tolerance)
            del result
        del expected
        samples = self._rounds(runnable, first, others, seconds, budget)
        if self.benchmark.disabled:
            return
        point = {"figure": figure, "x_name": x_name, "x": x, **labels, **(sizes or {}), "load": load_average()}
        for name, s in series.items():
            record = {**point, "series": name}
            if name in runnable:
                record.update(_figures(s, samples[name], samples[first]), peak_bytes=peaks[name])
                if s.saved is not None:
                    record["saved_bytes"] = s.saved()
            else:
                record["skipped"] = s
            self.records.append(record)
        ours = self.records[-len(series)]
        ours.update(notes or {})
        if floor is not None:
            ours.update(floor=floor, over_floor=ours["seconds"] / floor)
        self._report(point, self.records[-len(series) :])

    def calls(self, run, **point):
        """Adds one point with one series: the time of a call in a loop of calls, too short to time alone."""
        self.benchmark.pedantic(run, rounds=50, iterations=200, warmup_rounds=3)
        if self.benchmark.disabled:
            return
        taken = list(self.benchmark.stats.stats.data)
        point["load"] = load_average()
        record = {**point, "series": "sysgen", "seconds": statistics.median(taken), "fastest": min(taken)}
        self.records.append(record)
        self._report(point, [record])

    def _report(self, point, records):
        self.benchmark.group = f"{point['figure']} {point['dtype']} {point['passes']}"
        self.benchmark.extra_info.update(point, **environment(self.device))
        self.benchmark.extra_info["series"] = {r["series"]: r for r in records}

    def _rounds(self, runnable, first, others, seconds, budget):
        samples = {name: [] for name in runnable}

        def time_others():
            for name in others:
                mine = samples[name]
                if len(mine) >= MIN_ROUNDS and sum(filter(None, mine)) > SHARE:
                    mine.append(None)
                else:
                    mine.append(timed(runnable[name].run)[0])
            others.append(others.pop(0))  # no series always follows the same one

        rounds = round(budget / sum(min(s, SHARE / MIN_ROUNDS) for s in seconds.values()))
        rounds = min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)
        run = runnable[first].run
        if self.benchmark.disabled:
            self.benchmark(run)
            return samples
        kept = [run(), run()]  # memory that stays between calls is there before the first round: two results may live
        del kept
        gc.collect()
        gc.disable()
        try:
            self.benchmark.pedantic(run, setup=time_others, rounds=rounds)
        finally:
            gc.enable()
        samples[first] = list(self.benchmark.stats.stats.data)
        return samples


def _figures(series, samples, first):
    ratios = [s / f for s, f in zip(samples, first) if s is not None]
    taken = [s for s in samples if s is not None]
    seconds = statistics.median(taken)
    return {
        "seconds": seconds,
        "fastest": min(taken),
        "rounds": len(taken),
        "ratio": statistics.median(ratios),
        "gflops": series.flops / seconds / 1e9,
        "gb_s": series.bytes / seconds / 1e9,
    }


def _check(name, result, expected, tolerance):
    """Refuses to report the speed of a wrong result: relative error in the Frobenius norm, tensor by tensor."""
    assert len(result) == len(expected), f"{name}: {len(result)} results, expected {len(expected)}"
    for i, (a, b) in enumerate(zip(result, expected)):
        a, b = a.detach().double(), b.detach().double()
        error = float((a - b).norm() / b.norm().clamp(min=torch.finfo(torch.float32).tiny))
        allowed = tolerance[min(i, 1)]
        assert error <= allowed, f"{name}: result {i} has a relative error of {error:.2g}, allowed {allowed:.2g}"
