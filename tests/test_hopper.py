"""The path of CVMM for GPUs of compute capability 9.0: the reference's results, from the layer of Python down. The
program tests/kernels/cvmm_fwd_emulated.cpp has the ragged shapes, and the comparison with the sm_80 path."""

import pytest
import torch
from support import check_cvmm
from test_cvmm import make_inputs

from sysgen import info, ops


@pytest.fixture
def hopper(cuda_kernels, monkeypatch):
    """The emulator, or a GPU that has this path."""
    if cuda_kernels.device == "cuda" and not info.hopper_path().startswith("off"):
        pytest.skip(info.hopper_path())
    monkeypatch.setenv("SYSGEN_HOPPER", "1")
    return cuda_kernels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [((70,), 3, 72, 136, 3), ((200,), 1, 136, 40, 2)], ids=str)
def test_values_and_gradients(hopper, shape, dtype):
    """The gradient of x runs through the same path, with the weights transposed."""
    for routed in (False, True):
        options = {"routed": routed, "reduce": not routed, "gate": True, "bias": routed}
        check_cvmm(
            ops, make_inputs(*shape, (dtype, dtype), hopper.device, **options, layout="contiguous"), what=str(options)
        )


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_small_groups(hopper, weights):
    """One route an expert or two, with the weights as columns of the product, float32 ones rounded on the way; and the
    gradient of x."""
    options = {"routed": False, "reduce": True, "gate": True, "bias": False}
    dtypes = (torch.bfloat16, weights)
    inputs = make_inputs((96,), 2, 72, 136, 140, dtypes, hopper.device, **options, layout="contiguous")
    check_cvmm(ops, inputs)


@pytest.mark.cuda
def test_it_is_taken_only_if_asked_for(monkeypatch):
    if not info.hopper_path().startswith("off"):
        pytest.skip(info.hopper_path())
    x, weight = torch.randn(512, 64, device="cuda").bfloat16(), torch.randn(2, 64, 128, device="cuda").bfloat16()
    experts = torch.arange(512, device="cuda").view(-1, 1) % 2
    for wanted in "01":
        monkeypatch.setenv("SYSGEN_HOPPER", wanted)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            ops.cvmm(x, experts, weight)
            torch.cuda.synchronize()
        assert any("cvmm_hopper_kernel" in event.key for event in profile.key_averages()) == (wanted == "1")


@pytest.mark.parametrize(
    ("route", "archs", "gpus", "wanted", "expected"),
    [
        (None, "", [], None, "no: this core has no kernels for sm_90a"),
        ("nvrtc", None, ["9.0"], "1", "no: this core has no kernels for sm_90a"),
        ("nvcc", "80", ["9.0"], "1", "no: this core has no kernels for sm_90a"),
        ("nvcc", "80,90a-real", [], "1", "no: torch sees no GPU of compute capability 9.0"),
        ("nvcc", "80,90a-real", ["8.0", "12.0"], "1", "no: torch sees no GPU of compute capability 9.0"),
        ("nvcc", "80,90a-real", ["9.0"], None, "off: it has not run on hardware yet (SYSGEN_HOPPER=1 takes it)"),
        ("nvcc", "80,90a-real", ["9.0"], "0", "off: it has not run on hardware yet (SYSGEN_HOPPER=1 takes it)"),
        ("nvcc", "90a", ["8.0", "9.0"], "1", "on (SYSGEN_HOPPER=1)"),
    ],
)
def test_info_says_whether_it_is_taken(monkeypatch, route, archs, gpus, wanted, expected):
    class Core:
        cuda_route, cuda_archs = route, archs

    monkeypatch.setattr(info, "core", Core)
    monkeypatch.setattr(info, "_gpus", lambda: [{"capability": c} for c in gpus])
    monkeypatch.delenv("SYSGEN_HOPPER", raising=False)
    if wanted is not None:
        monkeypatch.setenv("SYSGEN_HOPPER", wanted)
    assert info.hopper_path() == expected
