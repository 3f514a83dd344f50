"""``python -m sysgen.info``: what it prints is what the core and torch say."""

import json
from types import SimpleNamespace

import pytest
import torch
from support import python

from sysgen import ops
from sysgen._load import core
from sysgen.info import OPERATIONS


def info(*arguments, **environment):
    return python("-m", "sysgen.info", *arguments, **environment).stdout


def test_json():
    printed = json.loads(info("--json", SYSGEN_CPU_ISA="base"))
    assert printed["sysgen"] == core.version
    assert printed["cpu instruction sets"] == core.cpu_isas()
    assert printed["cpu instruction set in use"] == "base"
    assert printed["torch"] == torch.__version__
    assert printed["environment"]["SYSGEN_CPU_ISA"] == "base"
    assert len(printed["gpus"]) == torch.cuda.device_count()
    functions = {name for name in ops.__all__ if not isinstance(getattr(ops, name), type)}
    assert set(printed["operations"]) == functions
    for backends in printed["operations"].values():
        assert set(backends) == {"cpu", "cuda", "reference"}
        assert backends["cpu"] == "yes (base)" or "by the reference" in backends["cpu"]
        if not torch.cuda.is_available():
            assert backends["cuda"].startswith("no: ") and len(backends["cuda"]) > 10


def test_text_names_every_operation_and_its_backends():
    text = info()
    for expected in (core.version, core.__file__, torch.__version__, core.cpu_isas()[-1], "moe_ffn", "reference"):
        assert expected in text
    assert sum(line.split()[-2:] == ["reference", "yes"] for line in text.splitlines()) == len(OPERATIONS)


GPU = {"name": "NVIDIA H200", "capability": "9.0", "memory_gib": 139.0}


@pytest.mark.parametrize(
    ("route", "archs", "torch_has_cuda", "capability", "nvrtc", "answer"),
    [
        (None, None, True, "9.0", None, "no: built with neither nvcc nor GCC 12"),
        ("nvcc", "80,90a-real", False, None, None, "no: this torch is a CPU build"),
        ("nvcc", "80,90a-real", True, None, None, "no: torch sees no GPU"),
        ("nvrtc", None, True, "9.0", "NVRTC not found", "no: NVRTC not found"),
        ("nvrtc", None, True, "9.0", None, "yes (compiled by NVRTC at the first launch)"),
        ("nvcc", "80,90a-real", True, "9.0", None, "yes (compiled by nvcc)"),
        ("nvcc", "80,90a-real", True, "12.0", None, "yes (compiled by nvcc)"),  # the PTX of 80
        ("nvcc", "80,90a-real", True, "7.5", None, "no: built for 80,90a-real, the GPU is 7.5 (SYSGEN_CUDA_ARCHS=75 "),
        ("nvcc", "80-real", True, "8.6", None, "yes (compiled by nvcc)"),  # the same generation
        ("nvcc", "80-real", True, "9.0", None, "no: built for 80-real, the GPU is 9.0"),
        ("nvcc", "90a-real", True, "10.0", None, "no: built for 90a-real, the GPU is 10.0"),
        ("nvcc", "native", True, "9.0", None, "yes (compiled by nvcc)"),
    ],
)
def test_the_route_of_every_operation(monkeypatch, route, archs, torch_has_cuda, capability, nvrtc, answer):
    from sysgen import info

    monkeypatch.setattr(info, "core", SimpleNamespace(cuda_route=route, cuda_archs=archs, cpu_isa=lambda: "avx2"))
    monkeypatch.setattr(info._nvrtc, "missing", lambda: nvrtc)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: torch_has_cuda)
    backends = info._backends([{**GPU, "capability": capability}] if capability else [])
    assert set(backends) == set(info.OPERATIONS)
    for op in ("route", "cvmm", "moe_ffn", "geometric_attention", "dnc_sequence", "ntm_sequence"):
        assert backends[op]["cuda"].startswith(answer) and backends[op]["cpu"] == "yes (avx2)"
    assert backends["geometric_attention_weights"]["cpu"].startswith("no: ")
