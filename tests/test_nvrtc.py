"""The route without nvcc: g++ compiles the launchers, NVRTC the kernels. Everything but a GPU's own part of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulated_core import launching_by_name
from support import python

from sysgen import _nvrtc, ops
from sysgen._load import core

sys.path.append(str(Path(__file__).parent.parent / "tools"))

import update_ptxas

TESTS = Path(__file__).resolve().parent
CSRC = TESTS.parent / "csrc"
_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="would start kernels on CPU tensors")


@pytest.fixture(scope="module")
def by_name():
    """A core that launches kernels by name, over CPU tensors, in place of the installed one."""
    with launching_by_name() as module:
        yield module


@pytest.fixture(scope="module")
def nvrtc():
    try:
        return _nvrtc.nvrtc()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def kernels(by_name):
    """Every instantiation of every kernel that a launcher names: (kernel, arguments, bytes, alignment)."""
    return sorted(by_name.kernels())


def kernel_files():
    """Those that NVRTC compiles: not the ones for sm_90a alone."""
    return [file for file in CSRC.glob("*/*.cuh") if "hopper" not in file.name]


# ---- the kernels


def test_every_kernel_is_known(by_name, kernels):
    """Those of the files, each once, and whatever a call launches."""
    assert len(kernels) == len(set(kernels)) > 20
    defined = {n for f in kernel_files() for n in re.findall(r"__global__[^;{]*?\b(\w+)\(const", f.read_text())}
    assert {re.match(r"sysgen::(\w+)", k[0]).group(1) for k in kernels} == defined

    def call():
        route = ops.route(torch.zeros(7, 1, dtype=torch.int64), 1)
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            x, w = torch.zeros(7, 8, dtype=dtype), torch.zeros(1, 8, 5, dtype=dtype, requires_grad=True)
            ops.cvmm(x, route, w).sum().backward()

    launched = set(by_name.dry_run(call))
    assert len(launched) > 8 and launched <= set(kernels)


@pytest.fixture(scope="module")
def files(kernels):
    """File -> its kernels."""
    return update_ptxas.by_file(kernels)


@pytest.fixture(scope="module")
def smallest(files):
    """The kernel of every file that needs the fewest registers, by the table: (kernel, registers)."""
    lines = update_ptxas.lines_on(update_ptxas.PAGE.read_text())

    def registers(kernel):
        line = lines.get(update_ptxas.readable(kernel[0]))
        return int(re.findall(r"\d+", line.split("|")[3])[0]) if line else 0

    assert len(files) > 10
    return [
        min(((kernel, registers(kernel)) for kernel in group), key=lambda pair: pair[1]) for group in files.values()
    ]


# A kernel with more takes the compiler 4 to 20 seconds: what the table says of it holds by its file's fingerprint.
_QUICK = 128


@pytest.fixture(scope="module")
def compiled(nvrtc, smallest):
    """Figures of a kernel of nearly every file, (name, architecture) -> Compiled. A spill is an error."""
    quick = [[kernel] for kernel, registers in smallest if registers <= _QUICK]
    assert len(quick) >= 0.8 * len(smallest)
    return update_ptxas.compile_all(update_ptxas.NoSpills(), quick)


def test_a_kernel_of_every_file_compiles(nvrtc, smallest, compiled):
    """Names resolve, NVRTC sees arguments of the same size and alignment as g++, and no kernel spills registers."""
    for figures in compiled.values():
        assert figures.spilled == 0 and figures.threads % 32 == 0 and 16 <= figures.registers <= 255
    for kernel, registers in smallest:
        if registers <= _QUICK:
            assert {(kernel[0], "sm_80"), (kernel[0], "sm_90")} <= compiled.keys()
        else:
            image, (symbol,) = nvrtc.compile(_nvrtc.program([kernel]), [kernel[0]], "compute_80")
            assert re.search(rf"\.entry {symbol}\(".encode(), image)


_REFRESH = f"run {update_ptxas.REFRESH} and commit {update_ptxas.PAGE.name}"


def test_the_table_of_kernels_is_that_of_the_sources(kernels, files):
    """All kernels are on it, and what determines their machine code is what it was when they were compiled for it."""
    page = update_ptxas.PAGE.read_text()
    assert update_ptxas.lines_on(page).keys() == {update_ptxas.readable(kernel[0]) for kernel in kernels}, _REFRESH
    assert update_ptxas.fingerprints_on(page) == update_ptxas.fingerprints(files), _REFRESH
    assert page == update_ptxas.page(
        update_ptxas.version_of(page), update_ptxas.lines_on(page).values(), update_ptxas.fingerprints_on(page)
    ), _REFRESH
    for line in update_ptxas.lines_on(page).values():
        threads, registers, _, _, spilled = (re.findall(r"\d+", column) for column in line.split("|")[2:7])
        assert spilled == ["0"] and all(int(t) % 32 == 0 for t in threads), line
        assert all(16 <= int(r) <= 255 for r in registers), line


def test_the_table_tells_what_the_compiler_says(compiled, nvrtc):
    """To the number with the NVRTC that wrote it; another one may assign other registers to the same kernels."""
    page = update_ptxas.PAGE.read_text()
    lines, names = update_ptxas.lines_on(page), {name for name, _ in compiled}
    now = {name: update_ptxas.line(name, compiled) for name in names}
    if update_ptxas.version_of(page) == nvrtc.version:
        assert now == {name: lines[update_ptxas.readable(name)] for name in names}, _REFRESH


def test_a_fingerprint_is_that_of_code_and_launch(files, monkeypatch):
    before, sources = update_ptxas.fingerprints(files), _nvrtc._sources()
    shared, file = "common/warp_scan.cuh", "routing/route_kernels.cuh"
    assert f'#include "{shared}"' in sources[file]

    def changed(path, text):
        monkeypatch.setattr(_nvrtc, "_sources", lambda: {**sources, path: sources[path] + text})
        after = update_ptxas.fingerprints(files)
        return {name for name, mark in after.items() if mark != before[name]}

    assert changed(shared, "\n// said better\n\n") == set()
    assert changed(file, "\nstruct More {};") == {file}
    assert changed(shared, "\nstruct More {};") > {file}
    monkeypatch.setattr(_nvrtc, "_sources", lambda: sources)
    (name, arguments, size, alignment), *others = files[file]
    assert update_ptxas.fingerprint(file, [(name, arguments, size + 8, alignment), *others]) != before[file]
    monkeypatch.setitem(update_ptxas.DYNAMIC, update_ptxas.name_of(name), "8")
    assert update_ptxas.fingerprint(file, files[file]) != before[file]


def test_only_what_changed_is_compiled_again(kernels, files, monkeypatch):
    class Compiler:
        version = "1.2"

    figures = update_ptxas.Compiled(32, 16, 0, 0, 0, 0)
    asked = []

    def compile_all(compiler, groups):
        asked.append(sorted(_nvrtc.header_of(group[0][0]) for group in groups))
        return {(kernel[0], arch): figures for group in groups for kernel in group for arch in ("sm_80", "sm_90")}

    monkeypatch.setattr(update_ptxas, "compile_all", compile_all)
    old = update_ptxas.refreshed(Compiler, kernels, "")
    assert update_ptxas.refreshed(Compiler, kernels, old) == old
    stale = old.replace(update_ptxas.fingerprints_on(old)["routing/route_kernels.cuh"], "0" * 16)
    assert update_ptxas.refreshed(Compiler, kernels, stale) == old
    Compiler.version = "1.3"
    update_ptxas.refreshed(Compiler, kernels, old)
    assert asked == [sorted(files), [], ["routing/route_kernels.cuh"], sorted(files)]


def test_the_table_knows_who_asks_for_dynamic_shared_memory():
    """Each kernel that carves dynamic shared memory has a formula in the table, and no other."""
    carves = set()
    for file in kernel_files():
        for name, body in re.findall(r"__global__[^;{]*?\b(\w+)\(const[^{]*\{(.*?)^\}", file.read_text(), re.M | re.S):
            carves |= {name} if "Smem smem" in body else set()
    assert carves == set(update_ptxas.DYNAMIC)


@_no_gpu
def test_the_table_tells_how_kernels_are_launched(with_driver):
    """Threads and dynamic shared memory, against what the launchers ask the driver for."""
    row = r"^\| `(.+)` \| (\d+) \| [^|]+ \| .*\+ (\d+) \|"
    table = {name: numbers for name, *numbers in re.findall(row, update_ptxas.PAGE.read_text(), re.M)}
    printed = with_driver("dynamic")
    launch = r"launch (sysgen::.+) grid .* block (\d+) 1 1 shared (\d+) "
    launches = {(update_ptxas.readable(name), *numbers) for name, *numbers in re.findall(launch, printed)}
    assert {name.split("<")[0] for name, *_ in launches} >= set(update_ptxas.DYNAMIC) and len(launches) > 70, printed
    assert not [launch for launch in launches if list(launch[1:]) != table.get(launch[0])]


@pytest.mark.parametrize(
    ("figures", "sm_80", "sm_90"),
    [  # worked by hand: 65536 registers, 64 warps, 32 blocks; 163840 + 4096 and 229376 + 4096 bytes
        (dict(threads=256, registers=32), (8, "warps"), (8, "warps")),
        (dict(threads=256, registers=33), (6, "registers"), (6, "registers")),  # 40 a thread: 51 warps, in fours 48
        (dict(threads=32, registers=16), (32, "blocks"), (32, "blocks")),
        (dict(threads=128, registers=32, dynamic=80 * 1024), (2, "shared memory"), (2, "shared memory")),
        (dict(threads=128, registers=32, dynamic=82 * 1024), (1, "shared memory"), (2, "shared memory")),
    ],
)
def test_occupancy(figures, sm_80, sm_90):
    compiled = update_ptxas.Compiled(**{**dict(static=0, dynamic=0, stack=0, spilled=0), **figures})
    assert compiled.blocks("sm_80") == sm_80 and compiled.blocks("sm_90") == sm_90


def test_spilled_registers_are_found(nvrtc):
    """64 registers a thread do not hold 128 values."""
    kernel = """extern "C" __global__ void __launch_bounds__(1024) spilling(float* p) {
      float v[128];
      #pragma unroll
      for (int i = 0; i < 128; ++i) v[i] = p[i * 1024 + threadIdx.x];
      __syncthreads();
      #pragma unroll
      for (int i = 0; i < 128; ++i) p[threadIdx.x * 128 + (i * 37 + 5) % 128] = v[i] * v[127 - i];
    }"""
    with pytest.raises(RuntimeError, match="Registers are spilled to local memory in function 'spilling'"):
        update_ptxas.NoSpills().compile(kernel, ["spilling"], "sm_80")


def _members(struct):
    """The members of an argument struct, those of structs within it as ``outer.inner``."""
    text = re.sub(r"//[^\n]*", "", "".join(file.read_text() for file in sorted(CSRC.glob("*/*.cuh"))))
    body = re.search(rf"^struct {struct} {{(.+?)^}};", text, re.M | re.S)[1]
    body = re.sub(r"[^;{}]*\([^;{}]*\)[^;{}]*{[^{}]*}", "", body)  # member functions
    while body != (body := re.sub(r"<[^<>]*>", "", body)):  # template arguments hold commas too
        pass
    members = []
    for declaration in body.split(";")[:-1]:
        if "static constexpr" in declaration:
            continue
        kind = re.match(r"\s*(?:const )?(\w+)", declaration)[1]
        for part in declaration.split(","):
            name = re.search(r"(\w+)(?:\[\w+\])?$", part)[1]
            nested = "*" not in part and re.search(rf"^struct {kind} {{", text, re.M)
            members += [f"{name}.{inner}" for inner in _members(kind)] if nested else [name]
    return members


def test_both_compilers_lay_the_arguments_out_alike(nvrtc, kernels, tmp_path):
    """Offset of every member, as g++ prints it, against the one that NVRTC computes."""
    types = sorted({k[1] for k in kernels})
    members = [(t, m) for t in types for m in _members(re.match(r"sysgen::(\w+)", t).group(1))]
    assert len(types) > 10 and len(members) > 100
    includes = "".join(f'#include "{file}"\n' for file in sorted({_nvrtc.header_of(k[0]) for k in kernels}))
    aliases = "".join(f"using T{i} = {t};\n" for i, t in enumerate(types))
    prints = "".join(f'std::printf("%zu\\n", offsetof(T{types.index(t)}, {m}));\n' for t, m in members)
    (tmp_path / "host.cpp").write_text(
        f"#include <cstddef>\n#include <cstdio>\n{includes}{aliases}int main() {{\n{prints}}}\n"
    )
    flags = ["-std=c++20", "-DSYSGEN_DRIVER_LAUNCH", "-Wno-unknown-pragmas", f"-I{CSRC}"]
    subprocess.run(["g++", *flags, tmp_path / "host.cpp", "-o", tmp_path / "host"], check=True)
    offsets = subprocess.run([tmp_path / "host"], capture_output=True, text=True, check=True).stdout.split()
    asserts = [
        f"static_assert(__builtin_offsetof(T{types.index(t)}, {m}) == {offset});\n"
        for (t, m), offset in zip(members, offsets)
    ]
    assert len(offsets) == len(members)
    nvrtc.compile(includes + aliases + "".join(asserts), ["sysgen::route_offsets_kernel"], "compute_80")
    wrong = asserts[-1].replace("==", "!=")
    with pytest.raises(RuntimeError, match="static assertion failed"):
        nvrtc.compile(includes + aliases + wrong, ["sysgen::route_offsets_kernel"], "compute_80")


def test_arguments_that_differ_are_refused(nvrtc, kernels):
    kernel, arguments, size, alignment = kernels[0]
    for wrong in ((size + 8, alignment), (size, alignment * 2)):
        with pytest.raises(RuntimeError, match=r"the compiled core and the installed \.cuh files differ"):
            nvrtc.compile(_nvrtc.program([(kernel, arguments, *wrong)]), [kernel], "compute_80")


# ---- compiling at first use


@pytest.fixture
def a_kernel(kernels, monkeypatch, tmp_path):
    monkeypatch.setenv("SYSGEN_CACHE", str(tmp_path / "cache"))
    return next(k for k in kernels if "route_histogram" in k[0])


def test_a_kernel_is_compiled_once(nvrtc, a_kernel, monkeypatch, tmp_path):
    compiled, compile = [], _nvrtc.Nvrtc.compile
    monkeypatch.setattr(_nvrtc.Nvrtc, "compile", lambda self, *args: compiled.append(args) or compile(self, *args))
    image, symbol = _nvrtc.compile_kernel(*a_kernel, 80)
    assert image.startswith(b"\x7fELF") and symbol in image and len(compiled) == 1
    assert _nvrtc.compile_kernel(*a_kernel, 80) == (image, symbol) and len(compiled) == 1
    assert [f.suffix for f in (tmp_path / "cache").iterdir()] == [".cubin"]
    assert _nvrtc.compile_kernel(*a_kernel, 90)[0] != image and len(compiled) == 2  # another device
    changed = {k: v + "\n// changed" for k, v in _nvrtc._sources().items()}
    monkeypatch.setattr(_nvrtc, "_sources", lambda: changed)
    _nvrtc.compile_kernel(*a_kernel, 80)
    assert len(compiled) == 3  # other sources


def test_a_cache_that_cannot_be_written_is_not_needed(nvrtc, a_kernel, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SYSGEN_CACHE", str(tmp_path / "file" / "cache"))
    assert _nvrtc.compile_kernel(*a_kernel, 80)[0].startswith(b"\x7fELF")


def test_the_log_of_the_compiler_is_in_the_error(nvrtc, a_kernel):
    with pytest.raises(RuntimeError, match=r"route_histogram_kernel for sm_7: .*(?s:.)+gpu-architecture"):
        _nvrtc.compile_kernel(*a_kernel, 7)
    with pytest.raises(RuntimeError, match=r"no file in .* defines this kernel"):
        _nvrtc.compile_kernel("sysgen::no_kernel", "int", 4, 4, 80)


def test_without_nvrtc_the_error_says_what_to_install(a_kernel, monkeypatch, tmp_path):
    _nvrtc.nvrtc.cache_clear()
    monkeypatch.setattr(_nvrtc, "_places", lambda: [(13, tmp_path, tmp_path)])
    with pytest.raises(RuntimeError, match=r'NVRTC \(libnvrtc\.so\) not found, .*pip install "sysgen\[cuda13\]"'):
        _nvrtc.compile_kernel(*a_kernel, 80)
    (tmp_path / "libnvrtc.so.13").touch()
    with pytest.raises(RuntimeError, match=r"CUDA's headers \(cuda_bf16\.h\) not found"):
        _nvrtc.compile_kernel(*a_kernel, 80)


# ---- launches

_PROGRAM = """
import os, sys, torch
from emulated_core import launching_by_name
from sysgen import _nvrtc, ops

def compile(kernel, arguments, size, alignment, capability):
    if "offsets" in kernel and "broken" in sys.argv:
        raise KeyError(kernel)
    return f"{kernel} for {capability}\\0".encode(), kernel

with launching_by_name() as core:
    core.set_kernel_compiler(_nvrtc.compile_kernel if "nvrtc" in sys.argv else compile)
    run = lambda: ops.route(torch.zeros(5000, 2, dtype=torch.int64), 3000)
    if "large" in sys.argv:
        route = ops.route(torch.zeros(1408, 1, dtype=torch.int64), 1)
        x, w = torch.zeros(1408, 8, dtype=torch.bfloat16), torch.zeros(1, 8, 3072, dtype=torch.bfloat16)
        run = lambda: ops.cvmm(x, route, w)
    if "cooperative" in sys.argv:
        shapes = (1024, 8), (1024, 256), (1024, 256), (1024,), (799, 256), (799,)
        state, weights = ops.DNCState.zeros(1, 256, 256, 64, 4), [torch.zeros(shape) for shape in shapes]
        run = lambda: ops.dnc_sequence(torch.zeros(1, 1, 8), state, *weights)
    if "dynamic" in sys.argv:
        def run():
            halves, wide = (torch.bfloat16, torch.float16), (torch.float64, torch.float32)
            for dtype in (*wide, *halves):
                for n, d in ((16, 64), (16, 65), (64, 64), (128, 64), (200, 64), (200, 128), (200, 256)):
                    heads = torch.zeros(3, 1, 4, n, d, dtype=dtype).requires_grad_()
                    ops.geometric_attention(*heads).sum().backward()
                for tokens, d, h in ((8, 8, 8), (1408, 8, 3072), (1408, 3072, 8)):
                    for master in {dtype, torch.float32} if dtype in halves else (dtype,):
                        for precision in ("ieee", "tf32", "tf32x3") if dtype == torch.float32 else ("ieee",):
                            x = torch.zeros(tokens, d, dtype=dtype).requires_grad_()
                            w = torch.zeros(1, d, h, dtype=master).requires_grad_()
                            ids = torch.zeros(tokens, 1, dtype=torch.int64)
                            ops.cvmm(x, ids, w, precision=precision).sum().backward()
            for dtype in halves:
                for tokens in (8, 34000):
                    for master in (dtype, torch.float32):
                        x, ids = torch.zeros(tokens, 8, dtype=dtype), torch.zeros(tokens, 1, dtype=torch.int64)
                        up, down = torch.zeros(1, 8, 128, dtype=master), torch.zeros(1, 128, 8, dtype=master)
                        ops.moe_ffn(x, ids, torch.zeros(tokens, 1), up, down)
                        few, many = torch.arange(150).unsqueeze(1), torch.zeros(150, 128, 128, dtype=master)
                        for weight in (many, many.transpose(1, 2)):
                            ops.cvmm(torch.zeros(150, 128, dtype=dtype), few, weight)
            for dtype in wide:
                for cells in (64, 512, 4096):
                    ops.allocation(torch.zeros(1, cells, dtype=dtype).requires_grad_()).sum().backward()
                shapes = (12, 2), (12, 3), (12, 4), (12,), (34, 3), (34,)
                weights = [torch.zeros(shape, dtype=dtype).requires_grad_() for shape in shapes]
                state = ops.DNCState.zeros(1, 3, 5, 4, 1, dtype=dtype)
                ops.dnc_sequence(torch.zeros(2, 1, 2, dtype=dtype), state, *weights)[0].sum().backward()
    for failing in sys.argv[sys.argv.index("failing") + 1 :] if "failing" in sys.argv else ("", ""):
        os.environ["FAILS"] = failing
        print("begin", flush=True)
        try:
            run()
        except Exception as error:
            print(type(error).__name__, error, flush=True)
    for kernel in core.dry_run(run):
        print("dry", kernel[0])
"""


@pytest.fixture
def with_driver(by_name, tmp_path):
    """Runs the program above in a process whose driver is tests/cuda_driver.c; returns what it printed."""
    library = tmp_path / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", TESTS / "cuda_driver.c", "-o", library]
    subprocess.run(command, check=True)

    def run(*arguments, **environment):
        program = f"import sys; sys.path.append({str(TESTS)!r})\n{_PROGRAM}"
        environment = {"LD_LIBRARY_PATH": str(tmp_path), **environment}
        result = python("-c", program, *arguments, check=False, **environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@_no_gpu
def test_a_launch_reaches_the_driver(with_driver):
    printed = with_driver()
    _, first, second = printed.split("begin\n")
    names = re.findall(r"^dry (.+)$", printed, re.M)
    assert len(names) == 9  # two passes of four kernels, and the offsets
    for text in (first, second):
        assert re.findall(r"^launch (\S+) ", text, re.M) == names
        assert text.count("push") == text.count("pop") >= 9
    assert sorted(re.findall(r"^load (.+)$", printed, re.M)) == sorted(f"{n} for 86" for n in set(names))  # once each
    assert "load" not in second
    assert re.search(r"route_histogram_kernel grid 5 1 1 block 256 1 1 shared 0 stream 0 first [1-9a-f]", first)


@_no_gpu
def test_machine_code_reaches_the_driver(with_driver, nvrtc, tmp_path):
    printed = with_driver("nvrtc", SYSGEN_CACHE=str(tmp_path))
    assert len(re.findall(r"^load \x7fELF", printed, re.M)) == 5 == len(list(tmp_path.glob("*.cubin")))
    assert len(re.findall(r"^launch _ZN6sysgen\d+route_\w+_kernelENS_15RouteArgsDeviceE ", printed, re.M)) == 18


@_no_gpu
def test_large_shared_memory_is_asked_for(with_driver):
    printed = with_driver("large")
    (asked,) = re.findall(r"^attribute 8 of .*cvmm_fwd_kernel.* = (\d+)$", printed, re.M)  # once, not for each launch
    assert int(asked) > 48 * 1024 and re.search(rf"cvmm_fwd_kernel.* block 256 1 1 shared {asked} ", printed)


@_no_gpu
def test_blocks_that_wait_for_each_other_are_launched_together(with_driver):
    """The DNC's 3.6 MB a step are shared by a block for each quarter of a megabyte, where the device has places."""
    printed = with_driver("cooperative")
    _, first, second = printed.split("begin\n")
    for text in (first, second):
        launches = re.findall(r"^(.*launch \S+ grid \d+)", text, re.M)
        assert launches == [
            "launch sysgen::dnc_clear_kernel grid 1",
            "cooperative launch sysgen::dnc_fwd_kernel<float> grid 14",
        ]


@_no_gpu
def test_what_the_driver_refuses_is_an_error(with_driver):
    """Each call that can fail, twice and in the order in which a first launch comes to them; then it works."""
    calls = ["cuInit", "cuDevicePrimaryCtxRetain", "cuModuleLoadData", "cuLaunchKernel"]
    _, *parts = with_driver("failing", *(call for call in calls for _ in range(2)), "").split("begin\n")
    for refused in parts[:-1]:
        assert "RuntimeError route_histogram_kernel: CUDA_ERROR_NO_BINARY_FOR_GPU: a failure on purpose\n" in refused
        assert refused.count("\nlaunch ") <= 1 and refused.count("push") == refused.count("pop")
    assert len(parts) == 9 and "Error" not in parts[-1] and parts[-1].count("\nlaunch ") >= 9


@_no_gpu
def test_what_the_compiler_raises_arrives(with_driver):
    printed = with_driver("broken")
    assert printed.count("KeyError 'sysgen::route_offsets_kernel'") == 2


def _has_driver():
    import ctypes

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(_has_driver(), reason="this machine has an NVIDIA driver")
def test_without_a_driver_the_error_says_so(by_name):
    message = r"^route_histogram_kernel: no NVIDIA driver on this machine \(libcuda\.so\.1.*move the tensors to the CPU"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            ops.route(torch.zeros(3, 2, dtype=torch.int64), 4)


# ---- the build


@pytest.mark.skipif(core.cuda_route != "nvrtc", reason="the installed core has kernels compiled by nvcc")
def test_the_installed_core_launches_by_name(kernels):
    assert core.cuda_archs is None and core.cuda_version is None
    assert core.dry_run(lambda: None) == [] and sorted(core.kernels()) == kernels
    assert not subprocess.run(["nm", "-D", "-u", core.__file__], capture_output=True, text=True).stdout.count(" cu")


def test_the_device_folder_holds_what_the_kernels_include():
    held = _nvrtc._sources()
    assert "device/device.cuh" in held and not [f for f in held if f.startswith("emulator/")]
    for text in held.values():
        for name in re.findall(r'#include "((?!emulator/).+?)"', text):
            assert name in held
