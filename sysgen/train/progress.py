"""Progress for people: a tqdm bar, lines of text where tqdm is not installed, or nothing."""

import sys


class Progress:
    def __init__(self, steps, initial=0, show=True):
        self.show, self.steps, self._bar = show, steps, None
        if not show:
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self._bar = tqdm(total=steps, initial=initial, unit="step", dynamic_ncols=True, smoothing=0.1)

    def advance(self):
        if self._bar is not None:
            self._bar.update()

    def status(self, text):
        """What stands behind the bar until the next status."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def line(self, text):
        """A line that stays."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self.show:
            print(text, file=sys.stderr, flush=True)

    def close(self):
        if self._bar is not None:
            self._bar.close()
