# The compiled core. `Tensor` stands for any DLPack array: torch, NumPy, CuPy. csrc/*/*.h documents the arguments.
from typing import Any, Callable, Optional

Tensor = Any

version: str
cuda_route: Optional[str]  # "nvcc"; "nvrtc": compiled at the first launch; None: no CUDA kernels
cuda_version: Optional[str]  # of nvcc
cuda_archs: Optional[str]
emulated: bool

def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
def set_cpu_isa(name: str) -> None: ...
def route_fwd(
    experts: Tensor,
    num_experts: int,
    order: Tensor,
    inverse: Tensor,
    offsets: Tensor,
    scratch: Optional[Tensor],
    num_threads: int,
    stream: int,
) -> None: ...
def cvmm_fwd(
    x: Tensor,
    w: Tensor,
    order: Tensor,
    inverse: Tensor,
    offsets: Tensor,
    gate: Optional[Tensor],
    bias: Optional[Tensor],
    out: Optional[Tensor],
    other: Optional[Tensor],
    dot: Optional[Tensor],
    scratch: Optional[Tensor],
    reduce: bool,
    activation: int,
    precision: int,
    num_threads: int,
    stream: int,
    /,
) -> None: ...
def cvmm_bwd_w(
    x: Tensor,
    dy: Tensor,
    order: Tensor,
    inverse: Tensor,
    offsets: Tensor,
    gate: Optional[Tensor],
    dw: Tensor,
    scratch: Optional[Tensor],
    precision: int,
    num_threads: int,
    stream: int,
    /,
) -> None: ...

# Only where cuda_route is "nvrtc".
def set_kernel_compiler(compile: Callable[[str, str, int, int, int], tuple[bytes, bytes]], /) -> None: ...
def dry_run(call: Callable[[], Any], /) -> list[tuple[str, str, int, int]]: ...

# Only where cuda_route is not None.
def route_scratch_bytes(num_routes: int, num_experts: int) -> int: ...
def cvmm_fwd_scratch_bytes(
    x: Tensor,
    w: Tensor,
    order: Tensor,
    inverse: Tensor,
    offsets: Tensor,
    gate: Optional[Tensor],
    bias: Optional[Tensor],
    out: Optional[Tensor],
    other: Optional[Tensor],
    dot: Optional[Tensor],
    reduce: bool,
    activation: int,
    precision: int,
    /,
) -> int: ...
def cvmm_bwd_w_scratch_bytes(
    x: Tensor,
    dy: Tensor,
    order: Tensor,
    inverse: Tensor,
    offsets: Tensor,
    gate: Optional[Tensor],
    dw: Tensor,
    precision: int,
    /,
) -> int: ...
