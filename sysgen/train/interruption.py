"""Ending a run between two steps: by a signal, a limit of time, or the caller."""

import signal
import threading
import time


class Interrupted(Exception):
    """Something asked the run to stop while it could not be ended in the middle of what it did."""


class Interruption:
    """Why a run should stop: ``reason`` is None, a signal's name, ``"time limit"`` or what the caller set it to.

    As a context manager it catches SIGINT and SIGTERM (main thread only). The first one asks for a stop; a second one
    acts as if nothing had been caught.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self._deadline = None
        self._reason = None
        self._previous = {}

    @property
    def reason(self):
        if self._reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self._reason = "time limit"
        return self._reason

    def limit(self, seconds):
        """Asks for a stop in ``seconds``; None: no limit."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def request(self, reason):
        self._reason = reason

    def check(self):
        """Raises :class:`Interrupted` if a stop was asked for."""
        if self.reason is not None:
            raise Interrupted(self.reason)

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._caught) for s in self.SIGNALS}
        return self

    def __exit__(self, *exception):
        self._restore()

    def _caught(self, number, frame):
        self.request(signal.Signals(number).name)
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
