"""Writes benchmarks/results/ptxas.md: registers, shared memory and spills of every CUDA kernel as NVRTC's ptxas reports
them, and the occupancy that follows. Needs NVRTC, g++ for the list of kernels, sysgen and what its tests need, no GPU.

Compiles the kernels of the files that differ from those that the page was written from (minutes if all do, or with
``--all``); a kernel that spills registers ends it.
"""

import hashlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sysgen import _nvrtc

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "results" / "ptxas.md"
REFRESH = "python tools/update_ptxas.py"
SHARED_PER_SM = {"sm_80": 164 * 1024, "sm_90": 228 * 1024}
# Dynamic shared memory of the kernels that ask for it, as their launchers compute it; P is the template argument.
_ARRAY = "(sizeof({}) + 127) / 128 * 128"  # as Smem lays it out
_ORDER = [_ARRAY.format(a) for a in ("typename P::Values", "typename P::Order", "typename P::A[P::WARPS]")]
DYNAMIC = {
    "cvmm_fwd_kernel": "sizeof(CvmmFwdShared<P>)",
    "cvmm_bwd_w_kernel": "sizeof(CvmmBwdWShared<P>)",
    "moe_ffn_fwd_kernel": "sizeof(MoeFfnShared<P>)",
    "geometric_attention_small_fwd_kernel": "sizeof(typename P::Matrix) * P::GROUPS",
    "geometric_attention_small_bwd_kernel": "sizeof(typename P::Matrix) * P::GROUPS * 2",
    "geometric_attention_tiled_fwd_kernel": "sizeof(GeometricTiledFwdShared<P>)",
    "geometric_attention_tiled_bwd_kernel": "sizeof(GeometricTiledBwdShared<P>)",
    "dnc_fwd_kernel": "sizeof(DncLinkTile<P>) * kDncWarps",
    "dnc_bwd_kernel": "sizeof(DncLinkTile<P>) * kDncWarps * 2",
    "allocation_fwd_kernel": f"{_ORDER[0]} + (P::BY_RANK ? 0 : {_ORDER[1]} + {_ORDER[2]})",
    "allocation_bwd_kernel": f"{_ORDER[0]} * 2 + {_ORDER[1]} + {_ORDER[2]} + "
    + _ARRAY.format("Affine<typename P::A>[P::WARPS]"),
}


class Compiled(NamedTuple):
    """One instantiation on one architecture; memory in bytes, of a block but for ``stack``, which is a thread's."""

    threads: int
    registers: int
    static: int
    dynamic: int
    stack: int
    spilled: int

    def blocks(self, arch):
        """Blocks that are resident on a multiprocessor at once, and what limits them."""
        warps = -(-self.threads // 32)
        registers_of_warp = -(-self.registers * 32 // 256) * 256
        limits = {
            "warps": 64 // warps,
            "registers": 65536 // registers_of_warp // 4 * 4 // warps,
            "shared memory": SHARED_PER_SM[arch] // (-(-(self.static + self.dynamic) // 128) * 128 + 1024),
            "blocks": 32,
        }
        least = min(limits.values())
        return least, next(name for name, limit in limits.items() if limit == least)


class NoSpills(_nvrtc.Nvrtc):
    """For which a kernel that spills registers is an error."""

    def options(self, arch):
        strict = ("--verbose", "--warn-on-spills", "--warning-as-error")
        return [*super().options(arch), *(f"--ptxas-options={option}" for option in strict)]


def name_of(kernel):
    return re.match(r"sysgen::(\w+)", kernel).group(1)


def readable(kernel):
    return kernel.replace("sysgen::", "").replace("__nv_bfloat16", "bf16").replace("__half", "f16")


def by_file(kernels):
    """{file: its kernels}: those of one file share the compiler's front end. Files whose kernels have the largest
    arguments take longest and come first, because the longest compilation must not come last.
    """
    files = {}
    for kernel in kernels:
        files.setdefault(_nvrtc.header_of(kernel[0]), []).append(kernel)
    return dict(sorted(files.items(), key=lambda item: max(kernel[2] for kernel in item[1]), reverse=True))


def _launch(index, kernel):
    """C++ that computes how a kernel is launched: its bound of threads, which is what each launcher starts."""
    name, source = name_of(kernel), _nvrtc._sources()[_nvrtc.header_of(kernel)]
    threads = re.search(rf"__launch_bounds__\(([^,)]+)[^)]*\)\s*{name}\(", source).group(1)
    traits = kernel[kernel.index("<") + 1 : -1] if "<" in kernel else "void"
    body = f"using P = {traits}; constexpr unsigned threads = {threads}, dynamic = {DYNAMIC.get(name, '0')};"
    return f"namespace sysgen::launch_{index} {{ {body} }}\n"


def compile_group(compiler, group, arch):
    """Compiles kernels of one file: [(kernel, Compiled)].

    Raises:
        RuntimeError: the compiler's log, or a kernel is not in the image.
    """
    names = [kernel[0] for kernel in group]
    program = _nvrtc.program(group) + "".join(_launch(i, name) for i, name in enumerate(names))
    # The compiler computes both numbers and tells them in the mangled name of a variable.
    program += "namespace sysgen { template <unsigned THREADS, unsigned DYNAMIC> __device__ char launched; }\n"
    launches = [
        f"&sysgen::launched<sysgen::launch_{i}::threads, sysgen::launch_{i}::dynamic>" for i in range(len(names))
    ]
    image, symbols, log = compiler.compile_with_log(program, [*names, *launches], arch)
    entries = symbols[: len(names)]
    if len(set(entries)) != len(names) or not image.startswith(b"\x7fELF"):
        raise RuntimeError(f"{names[0]} for {arch}: not every kernel has a symbol of its own")
    found = []
    for name, symbol, launch in zip(names, entries, symbols[len(names) :]):
        if f"\0.text.{symbol}\0".encode() not in image:
            raise RuntimeError(f"{name} for {arch}: no code in the image")
        threads, dynamic = map(int, re.search(r"ILj(\d+)ELj(\d+)EE", launch).groups())
        found.append((name, _figures(log, symbol, threads, dynamic)))
    return found


def _figures(log, symbol, threads, dynamic):
    said = re.search(
        rf"entry function '{symbol}'.*?properties for {symbol}\n\D*(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        log,
        re.S,
    )
    if said is None:
        raise RuntimeError(f"the log of ptxas does not tell what {symbol} needs:\n{log}")
    stack, stores, loads, registers = map(int, said.groups()[:4])
    static = re.search(r"(\d+) bytes smem", said[5])
    return Compiled(threads, registers, int(static[1]) if static else 0, dynamic, stack, stores + loads)


def fingerprint(file, kernels):
    """Of everything that determines the machine code of ``kernels``, all of one file, but for the compiler: their names
    and arguments, how they are launched, and the code, not the comments, of the file and what it includes.
    """
    sources, seen, pending = _nvrtc._sources(), {}, [file]
    while pending:
        path = pending.pop()
        if path not in seen and path in sources:
            seen[path] = " ".join(re.sub(r"//[^\n]*|/\*.*?\*/", " ", sources[path], flags=re.S).split())
            pending += re.findall(r'#include "(.+?)"', sources[path])
    launched = [(*kernel, DYNAMIC.get(name_of(kernel[0]))) for kernel in sorted(kernels)]
    return hashlib.sha256(repr((sorted(seen.items()), launched)).encode()).hexdigest()[:16]


def fingerprints(files):
    """{file: fingerprint} of what :func:`by_file` gives."""
    return {file: fingerprint(file, kernels) for file, kernels in files.items()}


def compile_all(compiler, groups):
    """{(kernel, architecture): Compiled}; compiles on all cores, as NVRTC runs without Python's lock."""
    jobs = [(group, arch) for group in groups for arch in SHARED_PER_SM]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda job: compile_group(compiler, *job), jobs)
        return {(name, arch): c for (_, arch), found in zip(jobs, done) for name, c in found}


HEAD = """# Registers, shared memory and occupancy of the CUDA kernels

Written by `{refresh}` from the log of ptxas in NVRTC {version}; a test compares it with the sources
(fingerprints at the end) and compiles a kernel of every file again. Calculated, not measured: the kernels have not run
on a GPU.

Two numbers are those of sm_80 / sm_90. Shared memory is static + dynamic, in bytes a block; the stack is in bytes a
thread. Resident on a multiprocessor: blocks (warps) and what limits them, of 64 warps, 32 blocks, 65536 registers and
164 KiB / 228 KiB of shared memory. Registers are given to warps in units of 256, and to four warps at a time; a block's
shared memory is rounded up to 128 bytes, and 1 KiB more is the system's. Threads are the kernel's bound, which its
launcher starts. What a launcher adds for the sizes of a call is not counted: where they fit, the recurrence of the NTM
takes N · W numbers of shared memory and that of the DNC the links of a block's rows, beside registers that leave a
multiprocessor one block anyway.

| kernel | threads | registers | shared memory | stack | spilled | resident sm_80 | resident sm_90 |
|---|---|---|---|---|---|---|---|
"""


FOOT = """
The sources that this page was written from:

| file | fingerprint |
|---|---|
"""


def page(version, lines, marks):
    """``lines`` are the table's, ``marks`` the fingerprints."""
    foot = "\n".join(f"| {file} | {mark} |" for file, mark in sorted(marks.items()))
    return HEAD.format(refresh=REFRESH, version=version) + "\n".join(sorted(lines)) + "\n" + FOOT + foot + "\n"


def line(name, compiled):
    """The table's line about a kernel, from ``compiled[name, arch]``."""
    each = [compiled[name, arch] for arch in SHARED_PER_SM]

    def both(text):
        values = [text(c) for c in each]
        return values[0] if values[0] == values[1] else " / ".join(values)

    resident = []
    for c, arch in zip(each, SHARED_PER_SM):
        blocks, limit = c.blocks(arch)
        resident.append(f"{blocks} ({blocks * -(-c.threads // 32)}): {limit}")
    columns = (
        f"`{readable(name)}`",
        both(lambda c: str(c.threads)),
        both(lambda c: str(c.registers)),
        both(lambda c: f"{c.static} + {c.dynamic}"),
        both(lambda c: str(c.stack)),
        both(lambda c: str(c.spilled)),
        *resident,
    )
    return f"| {' | '.join(columns)} |"


def lines_on(page):
    """{readable name: line}"""
    return {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}


def fingerprints_on(page):
    return dict(re.findall(r"^\| (\S+\.cuh) \| (\w+) \|$", page, re.M))


def version_of(page):
    return re.search(r"in NVRTC (\d+\.\d+)", page).group(1)


def refreshed(compiler, kernels, old):
    """The page of ``kernels``, with the lines of the page ``old`` for files that are as they were; "" has none."""
    files = by_file(kernels)
    marks, lines = fingerprints(files), lines_on(old)
    known = fingerprints_on(old) if old and version_of(old) == compiler.version else {}
    changed = {file for file, mark in marks.items() if known.get(file) != mark}
    compiled = compile_all(compiler, [group for file, group in files.items() if file in changed])
    now = [
        line(name, compiled) if file in changed else lines[readable(name)]
        for file, group in files.items()
        for name, *_ in group
    ]
    return page(compiler.version, now, marks)


def main():
    sys.path.append(str(ROOT / "tests"))
    from emulated_core import launching_by_name

    with launching_by_name() as core:
        kernels = core.kernels()
    PAGE.write_text(refreshed(NoSpills(), kernels, "" if "--all" in sys.argv[1:] else PAGE.read_text()))


if __name__ == "__main__":
    sys.exit(main())
