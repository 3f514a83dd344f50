"""One run at a time in a folder."""

import os
from contextlib import contextmanager

from .settings import SettingsError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


@contextmanager
def exclusive(folder):
    """Keeps other runs out of ``folder``, on this machine. However the process ends, the system opens it again.

    Where the operating or file system has no locks nothing is kept out.

    Raises:
        SettingsError: a run is at work in the folder.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"another run is at work in {folder}: wait for its end, or choose another output folder"
            raise SettingsError(message) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
