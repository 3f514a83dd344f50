"""The compiled file, the build, and what a user sees when something of them is missing."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from sysgen._load import core

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"


def run(*command, check=True, **options):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def tool(name):
    path = shutil.which(name)
    return path or pytest.skip(f"{name} is not installed")


# ---- the compiled file


def test_the_core_needs_no_torch_no_cuda_and_no_libpython():
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", run(tool("readelf"), "-dW", core.__file__).stdout)
    allowed = r"lib(gomp|omp|stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so|ld-linux"
    assert needed and not [n for n in needed if not re.match(allowed, n)]


def test_the_core_exports_nothing_but_its_entry_point():
    lines = run(tool("nm"), "-D", "--defined-only", core.__file__).stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["PyInit__core"]


# The files that CMake compiles once per instruction set.
PER_ISA = [f for f in sorted(CSRC.glob("*/*.cpp")) if "::SYSGEN_ISA {" in f.read_text()]
assert PER_ISA
ISA_FLAGS = {
    "base": [],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4"],
    "avx512_bf16": ["-march=x86-64-v4", "-mavx512bf16"],
}


@pytest.mark.parametrize("isa", core.cpu_isas())
@pytest.mark.parametrize("source", PER_ISA, ids=lambda p: p.name)
def test_instruction_sets_share_no_inline_code(source, isa, tmp_path):
    """The linker keeps one copy of a weak symbol: possibly the one for instructions that the machine lacks.

    Without optimisation nothing is inlined, so that every such function shows.
    """
    flags = ["-std=c++20", "-O0", "-fopenmp", f"-I{CSRC}", f"-DSYSGEN_ISA={isa}", f"-DSYSGEN_ISA_{isa}=1"]
    run(tool("g++"), *flags, *ISA_FLAGS[isa], "-c", source, "-o", tmp_path / "isa.o")
    symbols = [
        line.split(maxsplit=2)[1:]
        for line in run(tool("nm"), "-C", "--defined-only", tmp_path / "isa.o").stdout.splitlines()
    ]
    shared = [name for kind, name in symbols if kind in "WVuvw" and not name.startswith("DW.ref.")]
    assert symbols and not [n for n in shared if f"sysgen::{isa}::" not in n]


def test_the_stub_file_names_what_the_core_has():
    tree = ast.parse((ROOT / "sysgen/_core.pyi").read_text())
    functions = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    if core.cuda_route is None:
        functions = {n for n in functions if not n.endswith("_scratch_bytes")}
    if core.cuda_route != "nvrtc":
        functions -= {"set_kernel_compiler", "kernels", "dry_run"}
    attributes = {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign)}
    assert functions | attributes == {n for n in dir(core) if not n.startswith("__")}
    assert (ROOT / "sysgen/py.typed").exists()


# ---- the sources


def test_kernel_files_use_the_machine_through_device_cuh_only():
    """They are compiled by nvcc, by NVRTC and by g++ for the emulator: one language, of which this is the rim."""
    files = [f for f in sorted(CSRC.glob("*/*.cuh")) if f.parent.name not in ("device", "emulator")]
    assert files
    for file in files:
        code = re.sub(r"//[^\n]*|/\*.*?\*/", "", file.read_text(), flags=re.S)
        for banned in ("<<<", "asm", "__asm__", "__shared__", "std::", "printf", "__CUDA_ARCH__"):
            assert not re.search(rf"(?<!\w){re.escape(banned)}", code), f"{file.name}: {banned}"
        for include in re.findall(r"#\s*include\s*(\S+)", code):
            kernels = re.fullmatch(r'"(\w+/\w+\.cuh)"', include)  # their files are checked here as well
            assert kernels and (CSRC / kernels[1]).exists(), f"{file.name}: {include}"


def test_every_package_is_installed():
    declared = re.search(r"^packages = \[(.+?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S).group(1)
    found = {".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "sysgen").rglob("__init__.py")}
    assert set(re.findall(r'"(.+?)"', declared)) == found


def test_the_source_distribution_can_be_built_from(tmp_path):
    """It holds every source, so that pip can install it elsewhere."""
    pytest.importorskip("setuptools")
    (tmp_path / "egg").mkdir()
    run(sys.executable, "setup.py", "-q", "egg_info", "-e", tmp_path / "egg", "sdist", "-d", tmp_path, cwd=ROOT)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = [f for f in CSRC.rglob("*") if f.suffix in (".h", ".cpp", ".cu", ".cuh", ".map")]
    sources += [f for f in (ROOT / "sysgen").rglob("*.py*") if f.suffix in (".py", ".pyi")]
    sources += [
        ROOT / n for n in ("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", "sysgen/py.typed")
    ]
    assert not {str(f.relative_to(ROOT)) for f in sources} - held


def test_an_installation_holds_the_package_and_nothing_else():
    try:
        files = {str(f) for f in importlib.metadata.files("sysgen") or ()}
    except importlib.metadata.PackageNotFoundError:
        files = set()
    if not any(f.startswith("sysgen/") for f in files):
        pytest.skip("sysgen is not installed, or runs from its source folder")
    assert not [f for f in files if not re.match(r"sysgen(/|-[^/]+\.dist-info/)", f)]
    sources = {str(f.relative_to(ROOT)) for f in (ROOT / "sysgen").rglob("*.py")}
    assert sources | {"sysgen/py.typed", "sysgen/_core.pyi"} <= files
    assert len([f for f in files if re.match(r"sysgen/_core\..*so$", f)]) == 1


# ---- what a user sees


def test_a_source_folder_without_the_core_says_what_to_do(tmp_path):
    shutil.copytree(ROOT / "sysgen", tmp_path / "sysgen", ignore=shutil.ignore_patterns("_core.*.so", "__pycache__"))
    (tmp_path / "CMakeLists.txt").touch()
    result = run(sys.executable, "-c", "import sysgen", check=False, cwd=tmp_path)
    assert result.returncode and "ImportError: sysgen._core is missing" in result.stderr
    assert str(tmp_path / "sysgen") in result.stderr and "pip install -e ." in result.stderr
    assert "During handling" not in result.stderr
    (tmp_path / "CMakeLists.txt").unlink()
    result = run(sys.executable, "-c", "import sysgen", check=False, cwd=tmp_path)
    assert result.returncode and "incomplete" in result.stderr and "pip install ." in result.stderr


def test_a_core_that_cannot_be_loaded_says_why(tmp_path):
    shutil.copytree(ROOT / "sysgen", tmp_path / "sysgen", ignore=shutil.ignore_patterns("_core.*.so", "__pycache__"))
    (tmp_path / "sysgen" / Path(core.__file__).name).write_bytes(b"not a library")
    result = run(sys.executable, "-c", "import sysgen", check=False, cwd=tmp_path)
    assert "ImportError: sysgen._core cannot be loaded" in result.stderr and "pip install ." in result.stderr


@pytest.fixture
def no_nvcc(tmp_path):
    """An environment whose PATH holds the tools of a build but no nvcc, wherever that lives."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cmake", "ninja", "gcc", "g++", "cc", "c++", "as", "ld", "ar", "ranlib", "nm", "uname", "sh"):
        if shutil.which(name):
            (tools / name).symlink_to(shutil.which(name))
    hidden = ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "CUDAToolkit_ROOT")
    return {**{k: v for k, v in os.environ.items() if k not in hidden}, "PATH": str(tools)}


def configure(cuda, build, environment, *options):
    pybind11 = pytest.importorskip("pybind11")
    return run(
        tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja", f"-DSYSGEN_CUDA={cuda}", "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        *options, check=False, env=environment,
    )  # fmt: skip


def test_cuda_on_without_nvcc_names_the_fixes(tmp_path, no_nvcc):
    tool("ninja")
    result = configure("on", tmp_path / "build", no_nvcc)
    assert result.returncode
    for fix in ("SYSGEN_CUDA=on, but no CUDA compiler", "put nvcc on PATH", "CUDA_HOME", "SYSGEN_CUDA=off"):
        assert fix in result.stderr
    result = configure("auto", tmp_path / "build-auto", no_nvcc)
    assert result.returncode == 0, result.stderr
    assert "no nvcc found: compiled by NVRTC when they are used" in result.stdout


def test_an_unknown_value_of_sysgen_cuda_is_refused(tmp_path):
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    environment = {**os.environ, "SYSGEN_CUDA": "perhaps"}
    command = (sys.executable, "setup.py", "-q", "build_ext", "-b", tmp_path, "-t", tmp_path)
    result = run(*command, check=False, env=environment, cwd=ROOT)
    assert result.returncode and "SYSGEN_CUDA must be auto, on or off, got 'perhaps'" in result.stderr


@pytest.mark.skipif(core.cuda_route is not None, reason="this build has CUDA kernels")
@pytest.mark.cuda
def test_cuda_tensors_without_cuda_kernels():
    import torch

    from sysgen import ops

    with pytest.raises(NotImplementedError, match=r"this build of sysgen has no CUDA kernels.*SYSGEN_CUDA=on"):
        ops.route(torch.zeros(3, 2, dtype=torch.int64, device="cuda"), 4)


# ---- the CUDA compiler's report


def test_a_kernel_that_spills_registers_ends_the_build(tmp_path):
    """64 registers a thread do not hold 128 values. The flags are those of the build; ptxas needs no GPU."""
    nvcc = tool("nvcc")
    tool("ninja")
    result = configure("on", tmp_path, {**os.environ, "CUDACXX": nvcc}, "-DSYSGEN_FORBID_SPILLS=ON")
    assert result.returncode == 0, result.stderr
    (flags,) = set(re.findall(r"-Xptxas=\S+", (tmp_path / "build.ninja").read_text()))
    (tmp_path / "spilling.cu").write_text("""__global__ void __launch_bounds__(1024) spilling(float* p) {
      float v[128];
      #pragma unroll
      for (int i = 0; i < 128; ++i) v[i] = p[i * 1024 + threadIdx.x];
      __syncthreads();
      #pragma unroll
      for (int i = 0; i < 128; ++i) p[threadIdx.x * 128 + (i * 37 + 5) % 128] = v[i] * v[127 - i];
    }""")
    command = [nvcc, "-arch=sm_80", "-cubin", tmp_path / "spilling.cu", "-o", tmp_path / "spilling.cubin"]
    run(*command)
    result = run(*command, flags, check=False)
    assert result.returncode and "Registers are spilled to local memory in function" in result.stderr + result.stdout
