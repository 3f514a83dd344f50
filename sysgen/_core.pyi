# The compiled core. `Tensor` stands for any DLPack array: torch, NumPy, CuPy. csrc/*/*.h documents the arguments.
from typing import Any, Callable

Tensor = Any

version: str
cuda_route: str | None  # "nvcc"; "nvrtc": compiled at the first launch; None: no CUDA kernels
cuda_version: str | None  # of nvcc
cuda_archs: str | None
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
    scratch: Tensor | None,
    num_threads: int,
    stream: int,
) -> None: ...
def cvmm_fwd(
    x: Tensor,
    w: Tensor,
    order: Tensor,
    inverse: Tensor,
    offsets: Tensor,
    gate: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
    other: Tensor | None,
    dot: Tensor | None,
    scratch: Tensor | None,
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
    gate: Tensor | None,
    dw: Tensor,
    scratch: Tensor | None,
    precision: int,
    num_threads: int,
    stream: int,
    /,
) -> None: ...
def geometric_attention_fwd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    direction_bias: Tensor | None,
    key_mask: Tensor | None,
    mask: Tensor | None,
    out: Tensor,
    remainder: Tensor | None,
    scratch: Tensor | None,
    scale: float,
    normalize: bool,
    eps: float,
    include_self: bool,
    is_causal: bool,
    q_offset: int,
    early_stop: bool,
    num_threads: int,
    stream: int,
    /,
) -> None: ...
def geometric_attention_bwd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    direction_bias: Tensor | None,
    key_mask: Tensor | None,
    mask: Tensor | None,
    dout: Tensor,
    dremainder: Tensor | None,
    dquery: Tensor,
    dkey: Tensor,
    dvalue: Tensor,
    dbias: Tensor | None,
    dmask: Tensor | None,
    scratch: Tensor | None,
    scale: float,
    normalize: bool,
    eps: float,
    include_self: bool,
    is_causal: bool,
    q_offset: int,
    early_stop: bool,
    num_threads: int,
    stream: int,
    /,
) -> None: ...
def listops_generate(
    tokens: Tensor,
    offsets: Tensor,
    targets: Tensor,
    depths: Tensor,
    tree_depths: Tensor,
    key: int,
    quota: list[int],
    min_depth: int,
    max_depth: int,
    max_length: int,
    max_args: int,
    op_probability: float,
    held_out: bool,
    num_threads: int,
    patience: int,
    progress: Callable[[int], Any] | None,
) -> int: ...
def arithmetic_generate(
    tokens: Tensor,
    offsets: Tensor,
    targets: Tensor,
    depths: Tensor,
    tree_depths: Tensor,
    key: int,
    quota: list[int],
    min_depth: int,
    max_depth: int,
    max_length: int,
    op_probability: float,
    left_probability: float,
    held_out: bool,
    num_threads: int,
    patience: int,
    progress: Callable[[int], Any] | None,
) -> int: ...

# Only where cuda_route is "nvrtc".
def set_kernel_compiler(compile: Callable[[str, str, int, int, int], tuple[bytes, bytes]], /) -> None: ...
def kernels() -> list[tuple[str, str, int, int]]: ...
def dry_run(call: Callable[[], Any], /) -> list[tuple[str, str, int, int]]: ...

# Only where cuda_route is not None.
def route_scratch_bytes(num_routes: int, num_experts: int) -> int: ...
def cvmm_fwd_scratch_bytes(
    x: Tensor,
    w: Tensor,
    order: Tensor,
    inverse: Tensor,
    offsets: Tensor,
    gate: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
    other: Tensor | None,
    dot: Tensor | None,
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
    gate: Tensor | None,
    dw: Tensor,
    precision: int,
    /,
) -> int: ...

class NtmOptions:
    def __init__(self, max_shift: int, eps: float, chunk: int, /) -> None: ...

def ntm_vector_bytes() -> int: ...
def ntm_sequence_scratch_bytes(
    gates: Tensor, reads: Tensor, cells: int, options: NtmOptions, backward: bool, num_threads: int, /
) -> int: ...
def ntm_sequence_fwd(
    gates: Tensor,
    weight_hidden: Tensor,
    weight_reads: Tensor,
    weight_interface: Tensor,
    bias_interface: Tensor,
    lengths: Tensor | None,
    initial: list[Tensor],
    final: list[Tensor],
    hidden: Tensor,
    reads: Tensor,
    checkpoints: Tensor | None,
    scratch: Tensor,
    cells: int,
    options: NtmOptions,
    num_threads: int,
    /,
) -> None: ...
def ntm_sequence_bwd(
    gates: Tensor,
    weight_hidden_transposed: Tensor,
    weight_reads_transposed: Tensor,
    weight_interface: Tensor,
    weight_interface_transposed: Tensor,
    bias_interface: Tensor,
    lengths: Tensor | None,
    hidden: Tensor,
    reads: Tensor,
    checkpoints: Tensor,
    dhidden: Tensor | None,
    dreads: Tensor | None,
    dfinal: list[Tensor | None],
    dgates: Tensor,
    dinterface: Tensor,
    dinitial: list[Tensor],
    scratch: Tensor,
    cells: int,
    options: NtmOptions,
    num_threads: int,
    /,
) -> None: ...

class DncOptions:
    def __init__(
        self,
        masked: bool,
        dealloc: bool,
        sharpen: bool,
        detach_write: bool,
        eps: float,
        clip: float,
        mask_min: float,
        chunk: int,
        /,
    ) -> None: ...

def dnc_vector_bytes() -> int: ...
def dnc_sequence_scratch_bytes(
    gates: Tensor, reads: Tensor, cells: int, options: DncOptions, backward: bool, num_threads: int, /
) -> int: ...
def dnc_sequence_fwd(
    gates: Tensor,
    weight_hidden: Tensor,
    weight_reads: Tensor,
    weight_interface: Tensor,
    bias_interface: Tensor,
    lengths: Tensor | None,
    initial: list[Tensor],
    final: list[Tensor],
    hidden: Tensor,
    reads: Tensor,
    checkpoints: Tensor | None,
    scratch: Tensor,
    cells: int,
    options: DncOptions,
    num_threads: int,
    stream: int,
    /,
) -> None: ...
def dnc_sequence_bwd(
    gates: Tensor,
    weight_hidden_transposed: Tensor,
    weight_reads_transposed: Tensor,
    weight_interface: Tensor,
    weight_interface_transposed: Tensor,
    bias_interface: Tensor,
    lengths: Tensor | None,
    hidden: Tensor,
    reads: Tensor,
    checkpoints: Tensor,
    dhidden: Tensor | None,
    dreads: Tensor | None,
    dfinal: list[Tensor | None],
    dgates: Tensor,
    dinterface: Tensor,
    dinitial: list[Tensor],
    scratch: Tensor,
    cells: int,
    options: DncOptions,
    num_threads: int,
    stream: int,
    /,
) -> None: ...
def gated_update_segments(rows: int, /) -> int: ...
def dropout_fwd(x: Tensor, seed: Tensor, rate: float, stream: int, out: Tensor, num_threads: int, /) -> None: ...
def gated_update_attended_fwd(
    x: Tensor,
    attended: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    seed: Tensor,
    rate: float,
    a: Tensor,
    stats: Tensor,
    num_threads: int,
    /,
) -> None: ...
def gated_update_attended_bwd(
    x: Tensor,
    attended: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    seed: Tensor,
    rate: float,
    da: Tensor,
    stats: Tensor,
    dx: Tensor,
    dattended: Tensor,
    sums: Tensor,
    num_threads: int,
    /,
) -> None: ...
def gated_update_hidden_fwd(hidden: Tensor, bias: Tensor, seed: Tensor, rate: float, num_threads: int, /) -> None: ...
def gated_update_hidden_bwd(
    hidden: Tensor, seed: Tensor, rate: float, dhidden: Tensor, sums: Tensor, num_threads: int, /
) -> None: ...
def gated_update_gate_fwd(
    x: Tensor,
    u: Tensor,
    z: Tensor,
    bias: Tensor,
    gate_bias: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    seed: Tensor,
    rate: float,
    y: Tensor,
    stats: Tensor,
    num_threads: int,
    /,
) -> None: ...
def gated_update_gate_bwd(
    x: Tensor,
    u: Tensor,
    z: Tensor,
    bias: Tensor,
    gate_bias: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    seed: Tensor,
    rate: float,
    dy: Tensor,
    stats: Tensor,
    du: Tensor,
    dz: Tensor,
    dx: Tensor,
    sums: Tensor,
    num_threads: int,
    /,
) -> None: ...
def geometric_attention_fwd_scratch_bytes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    direction_bias: Tensor | None,
    key_mask: Tensor | None,
    mask: Tensor | None,
    out: Tensor,
    remainder: Tensor | None,
    scale: float,
    normalize: bool,
    eps: float,
    include_self: bool,
    is_causal: bool,
    q_offset: int,
    early_stop: bool,
    /,
) -> int: ...
def geometric_attention_bwd_scratch_bytes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    direction_bias: Tensor | None,
    key_mask: Tensor | None,
    mask: Tensor | None,
    dout: Tensor,
    dremainder: Tensor | None,
    dquery: Tensor,
    dkey: Tensor,
    dvalue: Tensor,
    dbias: Tensor | None,
    dmask: Tensor | None,
    scale: float,
    normalize: bool,
    eps: float,
    include_self: bool,
    is_causal: bool,
    q_offset: int,
    early_stop: bool,
    /,
) -> int: ...
