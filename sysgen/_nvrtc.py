"""CUDA kernels without nvcc: NVRTC compiles the shipped ``.cuh`` files when a kernel is launched for the first time.

A core with ``cuda_route == "nvrtc"`` asks :func:`compile_kernel` for a cubin and starts it through the driver. NVRTC
and its headers come with a CUDA build of torch, with ``pip install "sysgen[cuda13]"`` or with a toolkit.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import tempfile
from pathlib import Path

import torch

_HERE = Path(__file__).resolve().parent
_INSTALL = 'install them with pip install "sysgen[cuda13]", or set CUDA_HOME to a toolkit'


def device_folder():
    """The folder of the ``.cuh`` files: a copy within the installed package, the checkout otherwise."""
    installed = _HERE / "_device"
    return installed if installed.is_dir() else _HERE.parent / "csrc"


@functools.cache
def _sources():
    folder = device_folder()
    files = sorted(f for f in folder.rglob("*.cuh") if f.parent.name != "emulator")
    return {f.relative_to(folder).as_posix(): f.read_text() for f in files}


def header_of(kernel):
    """The file that defines a kernel, given as ``sysgen::name`` or ``sysgen::name<arguments>``."""
    name = re.match(r"sysgen::(\w+)", kernel).group(1)
    for path, text in _sources().items():
        if re.search(rf"\b{name}\(", text):
            return path
    raise RuntimeError(f"{name}: no file in {device_folder()} defines this kernel; reinstall sysgen")


# ---- NVRTC


def _places():
    """(folder of libraries, folder of headers) of wheels and toolkits, those of torch's CUDA version only."""
    majors = [int(torch.version.cuda.split(".")[0])] if torch.version.cuda else [13, 12]
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(p) for p in spec.submodule_search_locations] if spec else []
    homes = [Path(h) for h in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda") if h]
    for major in majors:
        for root in wheels:
            if major == 12:
                yield major, root / "cuda_nvrtc/lib", root / "cuda_runtime/include"
            else:
                yield major, root / f"cu{major}/lib", root / f"cu{major}/include"
        for home in homes:
            yield major, home / "lib64", home / "include"


class Nvrtc:
    """The library and the folder of CUDA's headers.

    Raises:
        RuntimeError: one of them is not there; the message says what to install.
    """

    def __init__(self):
        places = list(_places())
        files = [folder / f"libnvrtc.so.{major}" for major, folder, _ in places]
        file = next((f for f in files if f.exists()), None)
        headers = next((h for _, _, h in places if (h / "cuda_bf16.h").exists()), None)
        if file is None or headers is None:
            missing = "NVRTC (libnvrtc.so)" if file is None else "CUDA's headers (cuda_bf16.h)"
            raise RuntimeError(f"{missing} not found, to compile CUDA kernels at their first launch: {_INSTALL}")
        self.file, self.headers = file, headers
        self._lib = ctypes.CDLL(str(file))
        self._lib.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    @property
    def description(self):
        return f"{self.version} ({self.file}, headers in {self.headers})"

    def options(self, arch):
        return ["--std=c++17", f"--gpu-architecture={arch}", f"-I{device_folder()}", f"-I{self.headers}"]

    def compile(self, source, kernels, arch):
        """The image for ``sm_80`` (cubin) or ``compute_80`` (PTX), and the symbols of the kernels in it.

        Raises:
            RuntimeError: with the compiler's log.
        """
        return self.compile_with_log(source, kernels, arch)[:2]

    def compile_with_log(self, source, kernels, arch):
        """The same, and what the compiler said."""
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"sysgen.cu", 0, None, None)
        try:
            for kernel in kernels:
                self._call("nvrtcAddNameExpression", program, kernel.encode())
            options = [option.encode() for option in self.options(arch)]
            array = (ctypes.c_char_p * len(options))(*options)
            error = self._lib.nvrtcCompileProgram(program, len(options), array)
            log = self._bytes(program, "nvrtcGetProgramLog").rstrip(b"\0\n").decode(errors="replace")
            if error:
                what = f"NVRTC {self.version} cannot compile {kernels[0]} for {arch}"
                raise RuntimeError(f"{what}: {self._text(error)}\n{log}")
            image = self._bytes(program, "nvrtcGetCUBIN" if arch.startswith("sm_") else "nvrtcGetPTX")
            return image, [self._symbol(program, kernel) for kernel in kernels], log
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _symbol(self, program, kernel):
        symbol = ctypes.c_char_p()
        self._call("nvrtcGetLoweredName", program, kernel.encode(), ctypes.byref(symbol))
        return symbol.value.decode()

    def _bytes(self, program, what):
        size = ctypes.c_size_t()
        self._call(f"{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(what, program, buffer)
        return buffer.raw

    def _text(self, error):
        return self._lib.nvrtcGetErrorString(error).decode()

    def _call(self, name, *arguments):
        error = getattr(self._lib, name)(*arguments)
        if error:
            raise RuntimeError(f"{name}: {self._text(error)}")


nvrtc = functools.cache(Nvrtc)  # an exception is not kept: the next call looks again


def missing():
    """What NVRTC lacks to work here, or None."""
    try:
        nvrtc()
    except (RuntimeError, OSError) as error:
        return str(error)
    return None


# ---- what the core calls


def program(kernels):
    """CUDA C++ that defines kernels of one file and refuses to compile if NVRTC and g++ see other arguments.

    ``kernels`` are ``(kernel, arguments, bytes, alignment)``, the latter two as the core has them.
    """
    lines = [f'#include "{header_of(kernels[0][0])}"']
    for kernel, arguments, size, alignment in kernels:
        lines.append(
            f"static_assert(sizeof({arguments}) == {size} && alignof({arguments}) == {alignment},\n"
            f'              "{kernel}: the compiled core and the installed .cuh files differ; reinstall sysgen");'
        )
    return "\n".join(lines) + "\n"


def cache_folder():
    """``SYSGEN_CACHE``, or ``sysgen`` in the user's cache folder."""
    if os.environ.get("SYSGEN_CACHE"):
        return Path(os.environ["SYSGEN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sysgen"


def compile_kernel(kernel, arguments, size, alignment, capability):
    """The cubin of a kernel for a device of ``capability`` 10 · major + minor, and the kernel's symbol, both bytes.

    Raises:
        RuntimeError: NVRTC or its headers are missing, or the compilation fails; the message says what to do.
    """
    compiler, arch = nvrtc(), f"sm_{capability}"
    source = program([(kernel, arguments, size, alignment)])
    parts = (source, kernel, *compiler.options(arch), compiler.version, *_sources().values())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    file = cache_folder() / f"{key}.cubin"
    try:
        symbol, image = file.read_bytes().split(b"\n", 1)
        return image, symbol
    except OSError:
        pass  # not there yet
    image, (symbol,) = compiler.compile(source, [kernel], arch)
    _store(file, symbol.encode() + b"\n" + image)
    return image, symbol.encode()


def _store(file, content):
    """Other processes see the whole file or none. A cache that cannot be written costs time, not the result."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent)
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(content)
        os.replace(name, file)
    except OSError:
        os.unlink(name)
