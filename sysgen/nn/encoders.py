"""Stacks of encoder layers: one layer applied repeatedly (Dehghani et al. 2019), or one for each step."""

import copy

from torch import nn

from . import _checks


class SharedEncoder(nn.Module):
    """Applies ``layer`` ``num_layers`` times, in evaluation ``num_eval_layers`` times (None: as often).

    layer: any module called as ``layer(src, src_mask=…, src_key_padding_mask=…)``. With depth as the number of steps,
    a trained model can be given more of them (ListOps: 20 in training and 24 in the test; CTL++: 8 and 10).
    """

    def __init__(self, layer, num_layers, num_eval_layers=None):
        super().__init__()
        self.layer = layer
        self.set_num_layers(num_layers, num_eval_layers)

    def set_num_layers(self, num_layers, num_eval_layers=None):
        """Changes the number of steps in training and in evaluation."""
        eval_layers = num_layers if num_eval_layers is None else num_eval_layers
        _checks.positive_int("SharedEncoder", num_layers=num_layers, num_eval_layers=eval_layers)
        self.num_layers, self.num_eval_layers = num_layers, num_eval_layers

    def reset_parameters(self):
        self.layer.reset_parameters()

    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        masks = layer_masks(src_mask, src_key_padding_mask, is_causal)
        steps = self.num_layers if self.training or self.num_eval_layers is None else self.num_eval_layers
        for _ in range(steps):
            src = self.layer(src, **masks)
        return src

    def extra_repr(self):
        return f"num_layers={self.num_layers}, num_eval_layers={self.num_eval_layers}"


class StackedEncoder(nn.Module):
    """``num_layers`` copies of ``layer``, each with initial values of its own (``layer.reset_parameters``)."""

    def __init__(self, layer, num_layers):
        super().__init__()
        _checks.positive_int("StackedEncoder", num_layers=num_layers)
        self.layers = nn.ModuleList([layer, *(copy.deepcopy(layer) for _ in range(num_layers - 1))])
        for clone in self.layers[1:]:
            clone.reset_parameters()

    def reset_parameters(self):
        for layer in self.layers:
            layer.reset_parameters()

    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        masks = layer_masks(src_mask, src_key_padding_mask, is_causal)
        for layer in self.layers:
            src = layer(src, **masks)
        return src


def layer_masks(src_mask, src_key_padding_mask, is_causal):
    """Keywords for a layer, which needs to know ``is_causal`` only where it is used."""
    masks = {"src_mask": src_mask, "src_key_padding_mask": src_key_padding_mask}
    return {**masks, "is_causal": True} if is_causal else masks
