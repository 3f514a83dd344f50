"""Builds what tests need with CMake, for several test processes at a time."""

import fcntl
import os
import subprocess


def cmake_build(source, folder, target, *options):
    """Configures ``source`` in ``folder`` and builds a target; only what is out of date is compiled.

    One process at a time: the others wait, and then find everything up to date.

    Raises:
        RuntimeError: with the end of what the failing command printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", f"-S{source}", f"-B{folder}", *options]
    build = ["cmake", "--build", str(folder), "--target", target, "--parallel", str(os.cpu_count())]
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, build):
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            if result.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout[-8000:]}")
