"""Looking at what trained models do. Figures need matplotlib, the extra ``analysis``."""

from .memory_trace import plot_memory_trace

__all__ = ["plot_memory_trace"]
