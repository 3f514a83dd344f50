"""Ending a run between two steps: by a signal, a limit of time, or the caller."""

import signal
import threading
import time


class Interrupted(Exception):
    """Something asked the run to stop while it could not be ended in the middle of what it did."""


class Interruption:
    """Whether and why a run should stop: a signal's name, ``"time limit"`` or what the caller requests.

    As a context manager it catches SIGINT and SIGTERM (main thread only). The first one asks for a stop; a second one
    acts as if nothing had been caught.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self._deadline = None
        self._reason = None
        self._previous = {}

    def limit(self, seconds):
        """Asks for a stop in ``seconds``; None: no limit."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def request(self, reason):
        self._reason = reason

    def check(self, despite_limit=False):
        """Raises :class:`Interrupted` if a stop was asked for.

        ``despite_limit``: the time limit is no reason. An evaluation that takes longer than it would never end.
        """
        if self._reason is not None:
            raise Interrupted(self._reason)
        if not despite_limit and self._deadline is not None and time.monotonic() >= self._deadline:
            raise Interrupted("time limit")

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
