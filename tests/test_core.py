"""The compiled core called directly: any DLPack array, and a clear error for what it cannot take; its memory."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import sysgen
from sysgen import _alloc
from sysgen._load import core

IDS = torch.tensor([[1, 0], [1, -1], [0, 0]])
OUT = [torch.empty(n, dtype=torch.int32) for n in (6, 6, 3)]


def route(experts=IDS, order=OUT[0], inverse=OUT[1], offsets=OUT[2]):
    core.route_fwd(experts, 2, order, inverse, offsets, None, 1, 0)


def test_numpy_arrays():
    out = [np.empty(n, np.int32) for n in (6, 6, 3)]
    route(IDS.numpy(), *out)
    route()
    for a, b in zip(out, OUT):
        assert (a == b.numpy()).all()


def test_tensors_that_require_a_gradient():
    x, w = torch.ones(3, 4, requires_grad=True), torch.ones(2, 4, 5, requires_grad=True)
    route()
    out = torch.empty(3, 2, 5)
    core.cvmm_fwd(x, w, OUT[0], OUT[1].view(3, 2), OUT[2], *(None,) * 2, out, *(None,) * 3, False, 0, 0, 1, 0)
    assert out.unique().tolist() == [0.0, 4.0]


def fake(t):
    with FakeTensorMode() as mode:
        return mode.from_tensor(t)


def cvmm(**change):
    arguments = {
        "x": torch.zeros(3, 4),
        "w": torch.zeros(2, 4, 5),
        "order": OUT[0],
        "inverse": OUT[1].view(3, 2),
        "offsets": OUT[2],
        "gate": None,
        "bias": None,
        "out": torch.zeros(3, 2, 5),
        **change,
    }
    core.cvmm_fwd(*arguments.values(), None, None, None, False, 0, 0, 1, 0)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: route(fake(IDS)), ValueError, r"a fake or meta tensor reached the compiled core"),
        (lambda: route(IDS.to("meta")), RuntimeError, r"meta"),
        (lambda: route(IDS.view((1,) * 7 + (3, 2))), ValueError, r"at most 8 dimensions, got 9"),
        (lambda: route(IDS.float()), TypeError, r"route: experts must be int64, int32, got float32"),
        (lambda: route(IDS.to(torch.complex64)), TypeError, r"route: experts must be .* got an unsupported dtype"),
        (lambda: route(IDS.T), ValueError, r"route: experts must be contiguous, got shape \[2, 3\]"),
        (lambda: route([1, 2]), TypeError, r"incompatible function arguments"),
        (lambda: route(None), TypeError, r"incompatible function arguments"),
        (lambda: route(order=OUT[0][:5]), ValueError, r"route: order must have 6 elements, got 5"),
        (lambda: route(inverse=OUT[1].long()), TypeError, r"route: inverse must be int32, got int64"),
        (lambda: route(offsets=torch.empty(6, dtype=torch.int32)[::2]), ValueError, r"route: offsets must be contig"),
        (lambda: cvmm(x=torch.zeros(3, 5)), ValueError, r"cvmm: x must have shape \[3, 4\], got \[3, 5\]"),
        (lambda: cvmm(x=torch.zeros(3, 8)[:, ::2]), ValueError, r"cvmm: x must have an inner stride of 1"),
        (lambda: cvmm(x=torch.zeros(3, 2, 8)[..., :4]), None, None),
        (lambda: cvmm(x=torch.zeros(3, 3, 4)[:, :2]), ValueError, r"cvmm: x must have .* evenly spaced rows"),
        (lambda: cvmm(w=torch.zeros(4, 5)), ValueError, r"cvmm: weight must have 3 dimensions \[E, d, h\]"),
        (lambda: cvmm(w=torch.zeros(2, 4, 5).double()), TypeError, r"cvmm: weight must be float32 .* got float64"),
        (lambda: cvmm(w=torch.zeros(3, 4, 5)), ValueError, r"cvmm: route.offsets must have 4 elements, got 3"),
        (lambda: cvmm(gate=torch.zeros(3, 2).double()), TypeError, r"cvmm: gate must be float32, got float64"),
        (lambda: cvmm(bias=torch.zeros(5)), ValueError, r"cvmm: bias must have shape \[2, 5\], got \[5\]"),
        (lambda: cvmm(out=torch.zeros(3, 5)), ValueError, r"cvmm: out must have shape \[3, 2, 5\], got \[3, 5\]"),
    ],
)
def test_what_it_cannot_take(call, error, message):
    if error is None:
        return call()
    with pytest.raises(error, match=message):
        call()


LARGE = 32 << 20  # eight of them are kept


def test_memory_of_large_results_is_kept_for_the_next():
    """A tensor gives its block back when it is freed, the next of about that size gets it, and 256 MiB stay at most."""
    sysgen.empty_cache()
    before = torch.empty(0)

    def large(numel=LARGE // 4, **options):
        return _alloc.empty(before, (numel,), **options)

    first, second = large(), large()
    assert first.data_ptr() != second.data_ptr() and first.dtype == torch.float32 and first._base is None
    at = {first.data_ptr(), second.data_ptr()}
    view = first[5:]
    del first, second
    assert large().data_ptr() in at - {view.data_ptr() - 20}, "the block of `first` is in use"
    del view
    third = [large(LARGE // 8, dtype=torch.float64), large(LARGE // 4 + 1)]
    assert third[0].data_ptr() in at and third[0].dtype == torch.float64 and third[1].shape == (LARGE // 4 + 1,)
    strided = _alloc.empty(before, (4, LARGE // 16), strides=(1, 4))
    assert strided.stride() == (1, 4) and strided.fill_(3).sum() == 3 * LARGE // 4
    del strided, third
    many = [large() for _ in range(10)]
    del many
    released = core.release_kept_blocks()
    assert 6 * LARGE < released <= 8 * LARGE and core.release_kept_blocks() == 0
    huge = large(9 * LARGE // 4)
    del huge
    assert core.release_kept_blocks() == 0


def test_large_results_cost_few_page_faults():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this system has no transparent huge pages")
    if resource.getpagesize() != 4096:
        pytest.skip("counted for pages of 4 KiB")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    out = _alloc.empty(torch.empty(0), (2 * LARGE // 4,)).fill_(1)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert out[-1] == 1 and faults < out.nbytes / 4096 / 4, "16384 pages"
