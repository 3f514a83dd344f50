"""Training of the thesis' models on its tasks: ``python -m sysgen.train``, or :func:`run` from Python."""

from .checkpoint import CheckpointError
from .comparison import plot_runs
from .interruption import Interruption
from .loop import Diverged
from .presets import PRESETS
from .run import run
from .settings import FIELDS, SettingsError

__all__ = ["FIELDS", "PRESETS", "CheckpointError", "Diverged", "Interruption", "SettingsError", "plot_runs", "run"]
