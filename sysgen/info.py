"""``python -m sysgen.info``: the build, the machine, and which backend serves each operation, with reasons."""

import argparse
import json
import os
import platform
import shutil
import subprocess

import torch

from . import __version__, _nvrtc
from ._load import core

# Public operation -> registered operations that it runs on.
OPERATIONS = {
    "route": ("route_fwd",),
    "select_experts": ("select_experts_fwd", "select_experts_bwd"),
    "cvmm": ("cvmm_fwd", "cvmm_bwd_x", "cvmm_dot", "cvmm_bwd_w"),
    "moe_ffn": ("moe_ffn_fwd", "moe_ffn_bwd", "cvmm_bwd_w"),
    "geometric_attention": ("geometric_attention_fwd", "geometric_attention_bwd"),
    "geometric_attention_scores": (),
    "geometric_attention_weights": (),
    "content_address": ("content_address_fwd", "content_address_bwd"),
    "memory_write": ("memory_write_fwd", "memory_write_bwd"),
    "memory_read": ("memory_read_fwd", "memory_read_bwd"),
    "ntm_address": ("ntm_address_fwd", "ntm_address_bwd"),
    "retention": ("retention_fwd", "retention_bwd"),
    "usage_update": ("usage_update_fwd", "usage_update_bwd"),
    "allocation": ("allocation_fwd", "allocation_bwd"),
    "link_update": ("link_update_fwd", "link_update_bwd"),
    "link_read": ("link_read_fwd", "link_read_bwd"),
    "dnc_sequence": ("dnc_sequence_fwd", "dnc_sequence_bwd"),
    "ntm_sequence": ("ntm_sequence_fwd", "ntm_sequence_bwd"),
}


def _gpus():
    if not torch.cuda.is_available():
        return []
    gpus = []
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        gpus.append({"name": p.name, "capability": f"{p.major}.{p.minor}", "memory_gib": p.total_memory / 2**30})
    return gpus


def _nvcc():
    path = shutil.which("nvcc")
    if path is None:
        return None
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return next((line.split("release")[1].strip() for line in text.splitlines() if "release" in line), path)


def _cuda_serves(capability):
    """Whether the built architectures run on a device: code of its generation and not newer, or PTX of an older one."""
    major, minor = map(int, capability.split("."))
    device = 10 * major + minor
    for arch in core.cuda_archs.split(","):
        name, _, kind = arch.partition("-")
        if not name.rstrip("af").isdigit():  # native, all, all-major: CMake's names for what this machine has
            return True
        number = int(name.rstrip("af"))
        same_generation = number // 10 == major
        if name[-1] in "af":
            serves = number == device
        elif kind == "real":
            serves = number <= device and same_generation
        else:
            serves = number <= device
        if serves:
            return True
    return False


def hopper_path():
    """Whether CVMM takes its path for GPUs of compute capability 9.0 where the shapes allow it, with the reason."""
    if core.cuda_route != "nvcc" or not any(arch.startswith("90a") for arch in core.cuda_archs.split(",")):
        return "no: this core has no kernels for sm_90a"
    if not any(gpu["capability"] == "9.0" for gpu in _gpus()):
        return "no: torch sees no GPU of compute capability 9.0"
    if os.environ.get("SYSGEN_HOPPER") != "1":
        return "off: it has not run on hardware yet (SYSGEN_HOPPER=1 takes it)"
    return "on (SYSGEN_HOPPER=1)"


def _backends(gpus):
    cpu = f"yes ({core.cpu_isa()})"
    if core.cuda_route is None:
        cuda = "no: built with neither nvcc nor GCC 12 (install the CUDA toolkit, then SYSGEN_CUDA=on pip install .)"
    elif not torch.backends.cuda.is_built():
        cuda = "no: this torch is a CPU build"
    elif not gpus:
        cuda = "no: torch sees no GPU"
    elif core.cuda_route == "nvrtc":
        cuda = f"no: {_nvrtc.missing()}" if _nvrtc.missing() else "yes (compiled by NVRTC at the first launch)"
    elif not _cuda_serves(gpus[0]["capability"]):
        cuda = (
            f"no: built for {core.cuda_archs}, the GPU is {gpus[0]['capability']} "
            f"(SYSGEN_CUDA_ARCHS={gpus[0]['capability'].replace('.', '')} pip install .)"
        )
    else:
        cuda = "yes (compiled by nvcc)"
    backends = {op: {"cpu": cpu, "cuda": cuda, "reference": "yes"} for op in OPERATIONS}
    for op, registered in OPERATIONS.items():
        if not registered:
            reason = "no: for looking at only, computed by the reference"
            backends[op].update(cpu=reason, cuda=reason)
    return backends


def _cuda_build():
    if core.cuda_route == "nvcc":
        return f"nvcc {core.cuda_version}, architectures {core.cuda_archs}"
    if core.cuda_route == "nvrtc":
        return f"NVRTC at the first launch: {_nvrtc.missing() or _nvrtc.nvrtc().description}"
    return None


def collect():
    """Everything that the command prints, as a dictionary."""
    gpus = _gpus()
    return {
        "sysgen": __version__,
        "core": core.__file__,
        "cuda build": _cuda_build(),
        "cpu instruction sets": core.cpu_isas(),
        "cpu instruction set in use": core.cpu_isa(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch threads": torch.get_num_threads(),
        "dlpack c exchange api": hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
        "gpus": gpus,
        "nvcc": _nvcc(),
        "hopper path of cvmm": hopper_path(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("SYSGEN_")},
        "operations": _backends(gpus),
    }


def main():
    parser = argparse.ArgumentParser(prog="python -m sysgen.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    info = collect()
    if parser.parse_args().json:
        print(json.dumps(info, indent=2))
        return
    operations = info.pop("operations")
    none = {"cuda build": "none: CPU kernels only", "gpus": "none", "nvcc": "not on PATH", "environment": "no SYSGEN_*"}
    for key, value in info.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = "; ".join(f"{g['name']} (sm_{g['capability']}, {g['memory_gib']:.0f} GiB)" for g in value)
        elif isinstance(value, list):
            value = ", ".join(value)
        elif isinstance(value, dict):
            value = ", ".join(f"{k}={v}" for k, v in value.items())
        elif isinstance(value, bool):
            value = "yes" if value else "no (capsules are used)"
        print(f"{key:28}{value or none[key]}")
    print()
    width = max(map(len, operations)) + 2
    for op, backends in operations.items():
        for backend, answer in backends.items():
            print(f"{op:{width}}{backend:12}{answer}")
            op = ""


if __name__ == "__main__":
    main()
