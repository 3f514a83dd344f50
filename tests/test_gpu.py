"""What tools/gpu_check.sh runs by itself: every registered op under compute-sanitizer, and in a CUDA graph.

The inputs are those of test_library.py, where a new op must have samples.
"""

import pytest
import torch
from test_library import overload, samples

OPS = sorted(samples())  # of every registered op: test_library.py sees to that
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def calls(name, **options):
    return [(overload(name), arguments) for arguments in samples(**options)[name]]


def as_tuple(result):
    return result if isinstance(result, (tuple, list)) else (result,)


def same(a, b):
    return all(torch.equal(x.nan_to_num(nan=1e4), y.nan_to_num(nan=1e4)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", OPS)
def test_small_calls_repeat_to_the_bit(name, dtype, cuda_kernels):
    """Every result is written, into memory that was NaN, and no race decides what it is."""
    for op, arguments in calls(name, dtype=dtype, device=cuda_kernels.device):
        first = as_tuple(op(*arguments))
        assert not any(t.isnan().any() for t in first)
        for _ in range(2):
            assert same(as_tuple(op(*arguments)), first)


def captured(call):
    """The results of a call, and a function that computes them again into the same memory from what its inputs hold."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # compiles what is compiled at the first launch
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = as_tuple(call())
    return results, graph.replay


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPS)
def test_graph_replay(name):
    """A captured op reads its inputs anew and asks the host for nothing."""
    for op, arguments in calls(name, device="cuda"):
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        changed = [t for t in tensors if t.is_floating_point()] or tensors  # a route must stay one, unless it is all
        results, replay = captured(lambda op=op, arguments=arguments: op(*arguments))
        replay()
        before = [t.clone() for t in results]
        for t in changed:
            t.copy_(t.flip(0) * 0.5 if t.is_floating_point() else t.flip(0))
        replay()
        expected = as_tuple(op(*arguments))
        assert same(results, expected) and not same(before, expected)
