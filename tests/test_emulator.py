"""The CUDA emulator: right kernels run right in every order, each planted bug is caught by the build that is meant to
catch it, misuse is refused by name, and every wrapper does what the PTX manual says."""

import functools
import os
import re
import subprocess

import emulator_model
import pytest
from emulator_programs import KINDS, ROOT, build, missing, run

DEVICE = ROOT / "csrc/device/device.cuh"
HOPPER = ROOT / "csrc/device/hopper.cuh"
ORDERS = ("forward", "reverse", "random:1", "random:2")

# Programs that go on after a finding, so that one run shows all bugs. Shared memory lies at the same addresses in every
# kernel; a race there is reported each time.
ALL_FINDINGS = {
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=0",
    "TSAN_OPTIONS": "halt_on_error=0:exitcode=0:suppress_equal_addresses=0",
}


def sections(output):
    """Case name -> what was printed between its "==" line and the next."""
    parts = re.split(r"^== (\S+/\w+)$", output, flags=re.M)
    found = {}
    for name, text in zip(parts[1::2], parts[2::2]):
        found.setdefault(name, []).append(text)
    return found


@functools.cache
def planted(kind):
    """Orders -> sections of a run with all bugs; after a crash the run is continued behind it."""
    build("emulator_programs")
    runs = {}
    for order in ORDERS if kind == "plain" else ORDERS[:2] if kind == "asan" else ORDERS[:1]:
        _, output = run(f"planted_bugs_{kind}", order, **ALL_FINDINGS)
        runs[order] = sections(output)
    return runs


RIGHT = ["product_f32", "product_bf16", "row_scan", "histogram_offsets"]
RIGHT += ["persistent_smooth", "warp_transpose", "paired_warps", "mixed", "ring_product"]


@pytest.mark.parametrize("kind", KINDS)
def test_right_kernels_have_no_findings(kind):
    build("emulator_programs")
    for orders in ("forward", "reverse", {"plain": 15, "asan": 4, "tsan": 4}[kind]):
        status, output = run(f"planted_bugs_{kind}", orders, "right", UBSAN_OPTIONS="halt_on_error=1")
        found = sections(output)
        assert status == 0 and list(found) == [f"{name}/none" for name in RIGHT], output[-3000:]
        for name, texts in found.items():
            assert len(texts) == max(1, orders if isinstance(orders, int) else 1)
            for text in texts:
                assert re.fullmatch(r"\n(bank conflicts: 0\n)?-- right\n", text), f"{name}: {text}"


@pytest.mark.parametrize("kind", KINDS)
def test_right_kernels_run_after_wrong_ones(kind):
    for order, found in planted(kind).items():
        for name in RIGHT:
            texts = found[f"{name}/none"]
            assert len(texts) == 2, f"{order}: the run ended early"
            assert all("-- right" in text for text in texts)


WRONG = "-- wrong"
RACE = r"ThreadSanitizer: data race .*planted_kernels.cuh:\d+"
COPY_RACE = r"ThreadSanitizer: data race .*(planted_kernels.cuh|memory.h|tensor_core.h):\d+"
RING_RACE = r"ThreadSanitizer: data race .*hopper.h:\d+"
POISON = r"use-after-poison .*planted_kernels.cuh:\d+"
AT = r".* at tests/emulator/planted_(?:kernels|hopper).cuh:\d+, block \(\d,\d,0\) thread \(\d+,0,0\)"


def error(text):
    return "-- error: .*" + re.escape(text) + AT


DEADLOCK = (
    r"-- error: \w+<BUG>: deadlock: \d+ threads wait.*:\n  block \(0,0,0\): \d+ threads, the first is thread .*:\d+"
)

# bug -> kind -> what must be printed; a kind that is not named need not see the bug
BUGS = {
    "product_f32/shared_overrun": {
        "plain": error("written outside a shared array"),
        "asan": r"use-after-poison.*(\n.*)*planted_kernels.cuh:\d+",
    },
    "product_f32/inner_index": {"plain": WRONG, "asan": r"planted_kernels.cuh:\d+:\d+: runtime error: index 20 out"},
    "product_f32/misaligned_copy": dict.fromkeys(KINDS, error("is not aligned to them")),
    "product_f32/no_sync_after_wait": {"plain": WRONG, "asan": WRONG, "tsan": COPY_RACE},
    "product_f32/refill_too_early": {"plain": WRONG, "asan": WRONG, "tsan": COPY_RACE},
    "product_f32/one_group_too_few": {"plain": WRONG, "asan": POISON, "tsan": RACE},
    "product_f32/no_wait": {"plain": WRONG, "asan": POISON, "tsan": RACE},
    "product_f32/unguarded_load": {"asan": r"heap-buffer-overflow .*planted_kernels.cuh:\d+"},
    "product_f32/unguarded_store": {"tsan": RACE},
    "product_f32/uninitialised_sum": {"plain": WRONG, "asan": WRONG, "tsan": WRONG},
    "product_f32/short_launch": dict.fromkeys(KINDS, error("need 9216 bytes, the launch asked for 9088")),
    "product_f32/copies_not_waited_for": dict.fromkeys(KINDS, error("before its cp.async copies were waited for")),
    "product_bf16/mma_no_sync": {"plain": WRONG, "asan": "use-after-poison", "tsan": COPY_RACE},
    "product_bf16/mma_one_group_too_few": {"plain": WRONG, "asan": WRONG, "tsan": COPY_RACE},
    "product_bf16/swapped_fragments": {"plain": WRONG, "asan": WRONG, "tsan": WRONG},
    "product_bf16/divergent_mma": dict.fromkeys(KINDS, error("lanes of one mask are in different warp operations")),
    "product_bf16/no_padding": dict.fromkeys(KINDS, r"bank conflicts: [1-9]\d+"),
    "row_scan/shuffle_in_branch": dict.fromkeys(KINDS, DEADLOCK),
    "row_scan/no_sync_before_read": {"plain": WRONG, "tsan": RACE},
    "row_scan/too_many_lanes": {
        "plain": error("written outside a shared array"),
        "asan": "runtime error: index 2 out of bounds",
        "tsan": RACE,
    },
    "row_scan/no_sync_after_read": {"plain": WRONG, "tsan": RACE},
    "row_scan/threads_skip_function": dict.fromkeys(KINDS, error("threads of one block meet at different barriers")),
    "row_scan/early_exit": dict.fromkeys(KINDS, error("has left the kernel while")),
    "histogram_offsets/no_sync_after_zero": {"plain": WRONG, "tsan": COPY_RACE},
    "histogram_offsets/lost_update": {"tsan": RACE},
    "histogram_offsets/no_fence_before": {"tsan": RACE},
    "histogram_offsets/no_fence_after": {"tsan": RACE},
    "histogram_offsets/fence_too_early": {"tsan": RACE},
    "persistent_smooth/no_sync_after_grid_barrier": {"tsan": RACE},
    "persistent_smooth/skipped_grid_barrier": {"plain": WRONG, "tsan": RACE},
    "persistent_smooth/not_resident": dict.fromkeys(KINDS, error("a spin loop waits for what never comes")),
    "warp_transpose/no_syncwarp": {"plain": WRONG, "asan": WRONG, "tsan": RACE},
    "paired_warps/barrier_count": dict.fromkeys(KINDS, DEADLOCK),
    "mixed/misaligned_load": {"asan": r"planted_kernels.cuh:\d+:\d+: runtime error: load of misaligned address"},
    "mixed/index_overflow": {"asan": r"planted_kernels.cuh:\d+:\d+: runtime error: signed integer overflow"},
    "mixed/two_barriers": dict.fromkeys(KINDS, error("threads of one block meet at different barriers")),
    "ring_product/released_too_early": {"tsan": RING_RACE},
    "ring_product/full_stage_overwritten": {
        "plain": error("an operand in shared memory changed before wgmma_wait; the wgmma is"),
        "asan": "use-after-poison",
        "tsan": error("an operand in shared memory changed before wgmma_wait; the wgmma is"),
    },
    "ring_product/one_lane_waits": {"tsan": RING_RACE},
    "ring_product/no_proxy_fence": dict.fromkeys(KINDS, error("nobody has called fence_proxy_async in between")),
    "ring_product/no_wgmma_fence": dict.fromkeys(KINDS, error("without a wgmma_fence since the last wgmma_commit")),
    "ring_product/wrong_k_step": dict.fromkeys(KINDS, WRONG),
    "ring_product/too_few_bytes": dict.fromkeys(KINDS, DEADLOCK),
    "ring_product/arrival_not_counted": dict.fromkeys(KINDS, "-- error|use-after-poison"),
    "ring_product/wgmma_not_waited_for": dict.fromkeys(KINDS, error("ended before its wgmma was waited for")),
    "ring_product/divergent_wgmma": dict.fromkeys(KINDS, DEADLOCK),
    "ring_product/barriers_not_published": {"tsan": RING_RACE},
    "ring_product/not_swizzled": dict.fromkeys(KINDS, WRONG),
}


def test_every_planted_bug_has_an_expectation():
    names = re.findall(r"WRONG\((\w+), (\w+)\),", (ROOT / "tests/emulator/planted_bugs.cpp").read_text())
    assert {f"{kernel}/{bug}" for kernel, bug in names} == set(BUGS)


@pytest.mark.parametrize(("bug", "kind"), [(bug, kind) for bug, kinds in BUGS.items() for kind in kinds])
def test_planted_bug_is_caught(bug, kind):
    """In at least one order; what a report says is in the table."""
    expected, runs = BUGS[bug][kind], planted(kind)
    assert any(re.search(expected, text) for found in runs.values() for text in found[bug]), "\n".join(
        f"{order}: {text}" for order, found in runs.items() for text in found[bug]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("program", "checks"), [("reports", 61), ("reports_hopper", 20)])
def test_misuse_is_refused_and_work_is_counted(program, checks, kind):
    build("emulator_programs")
    status, output = run(f"{program}_{kind}")
    assert status == 0 and output.endswith("\n0 failed\n"), output
    assert len(re.findall(r"^ok ", output, re.M)) >= checks


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_without_end_is_reported_and_ended(kind):
    build("emulator_programs")
    status, output = run(f"reports_{kind}", "hang", timeout=20)
    assert status == 1
    assert re.search(r"spinning_kernel: no end after 0.2 s of CPU time .*, block \(0,0,0\) thread \(0,0,0\)", output)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-U__x86_64__"], "the CUDA emulator of sysgen runs on x86-64 Linux only"),
        (["-U__linux__"], "the CUDA emulator of sysgen runs on x86-64 Linux only"),
        (["-D__clang__"], "the CUDA emulator of sysgen needs GCC 12 or later with -std=c++20"),
        (["-std=c++17"], "the CUDA emulator of sysgen needs GCC 12 or later with -std=c++20"),
    ],
    ids=str,
)
def test_other_machines_and_compilers_are_refused(flags, message):
    """As the preprocessor would see them."""
    if reason := missing():
        pytest.skip(reason)
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-DSYSGEN_EMULATOR", f"-I{ROOT / 'csrc'}", *flags]
    result = subprocess.run([*command, "-E", "-x", "c++", DEVICE], capture_output=True, text=True, check=False)
    assert result.returncode and f"#error {message}" in " ".join(result.stderr.replace('"', "").split())


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SYSGEN_EMULATOR_ORDER", "backwards", "forward, reverse or random:<seed> was expected, got 'backwards'"),
        ("SYSGEN_EMULATOR_TIMEOUT", "soon", "a positive number of seconds was expected, got 0"),
    ],
)
def test_environment_is_checked(variable, value, message):
    build("emulator_programs")
    status, output = run("conformance_plain", **{variable: value})
    assert status == 1 and f"{variable}: {message}" in output


# ---- conformance ----------------------------------------------------------------------------------------------------


CONFORMANCE = {"conformance": emulator_model.expected_rows, "conformance_hopper": emulator_model.expected_hopper_rows}


def golden(program):
    return (ROOT / f"tests/emulator/{program}.golden").read_text()


@pytest.mark.parametrize("program", CONFORMANCE)
@pytest.mark.parametrize(("kind", "order"), [("plain", o) for o in ORDERS] + [("asan", "reverse"), ("tsan", "forward")])
def test_conformance_rows_are_the_golden_ones(program, kind, order):
    build("emulator_programs")
    status, output = run(f"{program}_{kind}", order=order)
    assert status == 0 and output == golden(program)


@pytest.mark.parametrize("program", CONFORMANCE)
def test_golden_rows_follow_the_model(program):
    rows = {line.split()[0]: [int(w, 16) for w in line.split()[1:]] for line in golden(program).splitlines()}
    expected = CONFORMANCE[program]()
    assert list(rows) == list(expected)
    for name, row in expected.items():
        assert rows[name] == row, name


def wrappers(file):
    return set(re.findall(r"^__device__ __forceinline__ [\w:]+[&\s]+(\w+)[<(]", file.read_text(), re.M))


def test_every_wrapper_and_intrinsic_has_a_conformance_row():
    names = wrappers(DEVICE) | wrappers(HOPPER)
    assert {"cp_async", "wgmma", "tma_load_3d"} <= names and len(names) > 30
    for file in (ROOT / "csrc/emulator").glob("*.h"):
        text = file.read_text()
        names |= set(re.findall(r"^(?:inline |constexpr )?\w+ ((?:__|atomic[A-Z]|rsqrt)\w+)\(", text, re.M))
        names |= set(re.findall(r"^SYSGEN_EMULATOR_\w+\((?:\w+, )?((?:__|atomic[A-Z])\w+)", text, re.M))
    assert {"__shfl_up_sync", "__reduce_min_sync", "atomicXor", "atomicCAS", "__ldcg", "__floats2half2_rn"} <= names
    programs = "".join((ROOT / f"tests/emulator/{program}.cpp").read_text() for program in CONFORMANCE)
    used = set(re.findall(r"\w+", re.sub(r"//[^\n]*", "", programs)))
    # a pause and the sanitizers' functions give nothing that could be compared
    assert {n for n in names - used if not re.match("__(asan|tsan|sanitizer)_", n)} == {"__nanosleep"}
