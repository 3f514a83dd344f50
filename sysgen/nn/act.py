"""Adaptive computation time: each column halts when it has computed enough (Graves 2016; Dehghani et al. 2019)."""

import torch
from torch import nn

from . import _checks, maps
from .encoders import layer_masks


class ACTEncoder(nn.Module):
    """Applies ``layer`` up to ``max_steps`` times; the output is a mixture of each column's states until it halts.

    The halting probability of a step is p = sigmoid(w · x + b) of the state *before* the step, and weights the state
    *after* it, as released (the text, App. D.1, has the same state in both places). A column halts once Σ p exceeds
    ``threshold``; its last step gets the remainder, so that the weights of a column sum to 1 (padded columns: 0).
    Halted columns keep being transformed and attended to until all have halted.

    Args:
        layer: called as ``layer(src, src_mask=…, src_key_padding_mask=…)``, batch first; has ``d_model``.
        max_steps: most steps.
        threshold: of Σ p; 0.99 as released.
        variant: ``"graves"``: out = Σ w · x. ``"universal"``: out = (1 − w) · out + w · x, and the last step halts
            no column.
        loss_weight: λ of the loss, λ times the mean remainder over all columns, padded ones included.
        early_exit: stop as soon as all columns have halted. That reads a value back from the device at every step, so
            not under ``torch.compile`` or in a CUDA graph. The output is the same, since later steps have weight 0.

    Returns of ``forward``: (out [B, N, d_model], loss, a scalar).
    """

    def __init__(
        self, layer, max_steps, threshold=0.99, variant="graves", loss_weight=0.03, early_exit=False, d_model=None
    ):
        super().__init__()
        _checks.positive_int("ACTEncoder", max_steps=max_steps)
        _checks.rate("ACTEncoder", threshold=threshold)
        _checks.one_of("ACTEncoder", ("graves", "universal"), variant=variant)
        if any(getattr(module, "batch_first", True) is False for module in layer.modules()):
            raise ValueError("ACTEncoder: layer must be batch first, got one with batch_first=False")
        self.layer, self.max_steps, self.threshold, self.variant = layer, max_steps, threshold, variant
        self.loss_weight, self.early_exit = loss_weight, early_exit
        like = next(layer.parameters())
        d_model = layer.d_model if d_model is None else d_model
        self.halt = nn.Linear(d_model, 1, device=like.device, dtype=like.dtype)

    def reset_parameters(self):
        self.layer.reset_parameters()
        self.halt.reset_parameters()

    def set_num_layers(self, max_steps):
        """Changes the most steps that a column may take."""
        _checks.positive_int("ACTEncoder", max_steps=max_steps)
        self.max_steps = max_steps

    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        masks = layer_masks(src_mask, src_key_padding_mask, is_causal)
        wide = torch.promote_types(src.dtype, torch.float32)
        halted = torch.zeros((*src.shape[:-1], 1), device=src.device, dtype=wide)  # Σ p, 1 where halted
        if src_key_padding_mask is not None:
            padded = src_key_padding_mask
            halted = halted.masked_fill(
                (padded if padded.dtype == torch.bool else padded == -torch.inf).unsqueeze(-1), 1
            )
        remainder, out = torch.zeros_like(halted), torch.zeros_like(src)
        for step in range(self.max_steps):
            p = torch.sigmoid(self.halt(src).to(wide))
            halts = halted + p > self.threshold  # again in each later step, where the rest is 0
            if self.variant == "graves" and step == self.max_steps - 1:
                halts = torch.ones_like(halts)
            rest = torch.where(halts, 1 - halted, 0)
            weight = torch.where(halts, rest, p)
            halted = torch.where(halts, 1, halted + weight)  # exactly 1: a sum may miss it by a rounding
            remainder = remainder + rest
            src = self.layer(src, **masks)
            if maps.wanted():
                maps.record(self, "weight", weight)
            weight = weight.to(src.dtype)
            out = torch.addcmul(out, weight, src) if self.variant == "graves" else torch.lerp(out, src, weight)
            if self.early_exit and not bool((halted < 1).any()):
                break
        return out, self.loss_weight * remainder.mean()

    def extra_repr(self):
        return (
            f"max_steps={self.max_steps}, threshold={self.threshold}, variant={self.variant!r}, "
            f"loss_weight={self.loss_weight}, early_exit={self.early_exit}"
        )
