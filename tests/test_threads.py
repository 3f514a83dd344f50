"""Results do not depend on the number of threads, on repetition or on the process that asks."""

import os
import threading

import pytest
import torch
from support import DTYPES, dtype_id, python, routes, values

from sysgen import ops


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs_of(dtypes, skewed, tokens=4000, k=3, d=61, h=47, num_experts=6):
    g = torch.Generator().manual_seed(0)
    experts = routes(g, (tokens,), k, num_experts)
    if skewed:  # one expert has nearly all, another a handful
        experts[50:] = 4
        experts[9:][experts[9:] == 1] = 4
    return {
        "x": values(g, (tokens, d), dtypes[0]).requires_grad_(),
        "experts": experts,
        "gate": values(g, (tokens, k))
        .to(torch.float64 if dtypes[0] == torch.float64 else torch.float32)
        .requires_grad_(),
        "w_up": values(g, (num_experts, d, h), dtypes[1], scale=d**-0.5).requires_grad_(),
        "w_down": values(g, (num_experts, h, d), dtypes[1], scale=h**-0.5).requires_grad_(),
    }


def results_of(inputs):
    leaves = [t for t in inputs.values() if t.requires_grad]
    y = ops.moe_ffn(**inputs)
    return [
        *ops.route(inputs["experts"], len(inputs["w_up"]))[:3],
        y.detach(),
        *torch.autograd.grad(y, leaves, torch.ones_like(y)),
    ]


def assert_equal(first, second):
    for a, b in zip(first, second):
        assert torch.equal(a, b)


@pytest.mark.parametrize("d, h", [(300, 523), (523, 100)], ids=["narrow sums", "wide sums"])
@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[2]], ids=dtype_id)
def test_the_number_of_threads_changes_no_bit_of_few_rows(isa, dtypes, d, h):
    """Columns or experts are divided instead of routes: wide rows, some tens of them an expert."""
    inputs = inputs_of(dtypes, False, tokens=60, d=d, h=h)
    torch.set_num_threads(1)
    one = results_of(inputs)
    for threads in (2, 3, 5):  # 3 take equal shares of 300 columns
        torch.set_num_threads(threads)
        assert_equal(results_of(inputs), one)


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
def test_the_number_of_threads_changes_no_bit(isa, dtypes, skewed):
    inputs = inputs_of(dtypes, skewed)
    torch.set_num_threads(1)
    one = results_of(inputs)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert_equal(results_of(inputs), one)


def test_parts_of_a_routing_change_no_bit(isa):
    """Sums of an expert with few rows are taken in another order, whatever part of its rows a kernel sees: moe_ffn
    divides 1100 tokens by the number of threads, and expert 0 has 100 rows, but 25 in a quarter of the tokens."""
    inputs = inputs_of(DTYPES[1], False, tokens=1100, k=2, d=300, h=150, num_experts=2)
    inputs["experts"] = torch.ones(1100, 2, dtype=torch.int64)
    for first in range(0, 1100, 275):
        inputs["experts"][first : first + 25, 0] = 0
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(results_of(inputs))
    for other in results[1:]:
        assert_equal(results[0], other)


def test_a_hundred_repeats_with_two_threads_are_equal():
    torch.set_num_threads(2)
    inputs = inputs_of(DTYPES[1], skewed=True, tokens=1500)
    first = results_of(inputs)
    for _ in range(100):
        assert_equal(results_of(inputs), first)


def test_calls_from_several_python_threads():
    """The core holds no state that two callers share: scratch memory belongs to a thread."""
    inputs = inputs_of(DTYPES[1], skewed=False, tokens=800)
    expected = results_of(inputs)
    failures = []

    def work():
        for _ in range(10):
            try:
                assert_equal(results_of(inputs), expected)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures[0]


FORK = """
import os, sys
import torch
from torch.utils.data import DataLoader, Dataset
from sysgen import ops

torch.set_num_threads(2)
g = torch.Generator().manual_seed(0)
x, w = torch.randn(4096, 64, generator=g), torch.randn(8, 64, 64, generator=g)
ids = torch.randint(8, (4096, 2), generator=g)
expected = ops.cvmm(x, ids, w)  # the pool of threads now exists

class Rows(Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, i):
        return ops.cvmm(x, ids, w)

for y in DataLoader(Rows(), batch_size=None, num_workers=1, multiprocessing_context="fork"):
    assert torch.equal(y, expected)
if os.fork() == 0:  # like every parallel operation of torch, this needs one thread in a forked child
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(ops.cvmm(x, ids, w), expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_forked_child_does_not_hang():
    python("-c", FORK)


def test_threads_of_torch_are_ours():
    """One OpenMP runtime: a limit that is set in torch holds in the core."""
    code = """
import os, torch
from sysgen import ops
torch.set_num_threads(1)
x, w, ids = torch.randn(20000, 64), torch.randn(8, 64, 64), torch.randint(8, (20000, 4))
before = len(os.listdir("/proc/self/task"))
ops.cvmm(x, ids, w)
assert len(os.listdir("/proc/self/task")) == before
torch.set_num_threads(2)
ops.cvmm(x, ids, w)
assert len(os.listdir("/proc/self/task")) == before + 1
"""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("counts threads in /proc")
    python("-c", code)
