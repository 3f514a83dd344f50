"""Sinusoidal positions (Vaswani et al. 2017)."""

import math

import torch


def sinusoidal_positions(start, stop, d_model, device=None, dtype=None):
    """[stop − start, d_model]: sin(p·f), cos(p·f) of every position p, in turn for each f = 10⁴^(−2i/d_model).

    Positions may be negative, as distances are. Computed in float32, or float64 if ``dtype`` is that. d_model is even.
    """
    if d_model % 2:
        raise ValueError(f"sinusoidal_positions: d_model must be even, got {d_model}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    position = torch.arange(start, stop, device=device, dtype=wide)
    frequency = torch.exp(torch.arange(0, d_model, 2, device=device, dtype=wide) * (-math.log(1e4) / d_model))
    angle = position[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).to(dtype)
