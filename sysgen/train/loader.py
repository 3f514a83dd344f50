"""Batches of an endless, resumable stream, prepared on a thread while the model computes."""

import queue
import threading

import torch

_DONE = object()


class Loader:
    """Endless iterator over the batches of a dataset.

    ``state`` belongs to the batches that were handed out, not to those already prepared: saved with a checkpoint and
    given to a new loader, it continues with the very next batch.

    Args:
        batches: an endless iterator of ``(batch, state)``; ``state`` is that after the batch.
        depth: batches that may be prepared ahead.
    """

    def __init__(self, batches, state=None, depth=4):
        self.state = state
        self._queue = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches,), name="sysgen-loader", daemon=True)
        self._thread.start()

    def _fill(self, batches):
        try:
            for item in batches:
                if not self._put(item):
                    return
            self._put(_DONE)
        except BaseException as error:  # handed to the consumer: a silent thread would leave it waiting for ever
            self._put(error)

    def _put(self, item):
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self):
        return self

    def __next__(self):
        item = self._queue.get()
        if item is _DONE:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        batch, self.state = item
        return batch

    def close(self):
        """Ends the thread. The batches it had prepared are dropped; ``state`` does not count them."""
        self._stopped.set()
        self._thread.join()


def pad_to_multiple(tokens, multiple):
    """tokens [B, N] padded with 0 on the right, so that N is a multiple and few different lengths occur."""
    missing = -tokens.shape[1] % multiple
    return torch.nn.functional.pad(tokens, (0, missing)) if missing else tokens
