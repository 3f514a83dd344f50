"""Finds the tools, maps the environment and calls CMake. What is compiled, and how, stands in CMakeLists.txt."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def version():
    return re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M).group(1)


def tool_is_recent(name, minimum):
    """Whether a system tool can be used, so that pip need not fetch it."""
    path = shutil.which(name)
    if path is None:
        return False
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    found = re.search(r"(\d+)\.(\d+)", text)
    return found is not None and tuple(map(int, found.groups())) >= minimum


def build_requirements():
    needed = []
    if not tool_is_recent("cmake", (3, 22)):
        needed.append("cmake>=3.22")
    if not tool_is_recent("ninja", (1, 10)):
        needed.append("ninja>=1.10")
    return needed


def find_nvcc():
    if os.environ.get("CUDACXX"):
        return os.environ["CUDACXX"]
    for home in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(home):
            candidate = Path(os.environ[home]) / "bin" / "nvcc"
            if candidate.exists():
                return str(candidate)
    found = shutil.which("nvcc")
    if found is None and Path("/usr/local/cuda/bin/nvcc").exists():
        found = "/usr/local/cuda/bin/nvcc"
    return found


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        import pybind11

        cuda = os.environ.get("SYSGEN_CUDA", "auto").lower()
        if cuda not in ("auto", "on", "off"):
            raise SystemExit(f"SYSGEN_CUDA must be auto, on or off, got {cuda!r}")
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        self._drop_stale_cache(build)
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSYSGEN_VERSION={version()}",
            f"-DSYSGEN_CUDA={cuda}",
        ]
        if os.environ.get("SYSGEN_CUDA_ARCHS"):
            configure.append(f"-DSYSGEN_CUDA_ARCHS={os.environ['SYSGEN_CUDA_ARCHS']}")
        nvcc = find_nvcc() if cuda != "off" else None
        if nvcc is not None:
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        configure += os.environ.get("CMAKE_ARGS", "").split()
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        self._run(configure)
        self._run(["cmake", "--build", str(build), "--target", "_core", "--parallel", jobs])

    @staticmethod
    def _run(command):
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError:
            raise SystemExit(f"{command[0]} was not found; install it (pip install cmake ninja)") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"building sysgen._core failed (exit {error.returncode}); see the output above") from None

    @staticmethod
    def _drop_stale_cache(build):
        """An isolated build may leave the path of a ninja that is gone; CMake cannot recover from that."""
        cache = build / "CMakeCache.txt"
        if cache.exists():
            ninja = re.search(r"^CMAKE_MAKE_PROGRAM:\w+=(.+)$", cache.read_text(), re.M)
            if ninja and not Path(ninja.group(1)).exists():
                shutil.rmtree(build)


class BuildPy(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            self._copy_device_files()

    def _copy_device_files(self):
        """For NVRTC, which compiles the kernels on the user's machine if this build has no nvcc."""
        for source in sorted((ROOT / "csrc").rglob("*.cuh")):
            target = Path(self.build_lib, "sysgen/_device", source.relative_to(ROOT / "csrc"))
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))


setup(
    version=version(),
    license="Apache-2.0",
    ext_modules=[Extension("sysgen._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPy},
    setup_requires=build_requirements(),
)
