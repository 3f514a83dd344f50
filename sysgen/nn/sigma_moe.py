"""σ-MoE: a two-layer feedforward network of which each token uses k of E slices (Csordás 2023, Sec. 7.4)."""

import torch
from torch import nn
from torch.nn import functional as F

from .. import ops
from ..ops._activations import ACTIVATIONS
from ..ops._router_ops import SELECTIONS
from . import _checks
from ._entropy import selection_negentropy
from ._selection import selection_logits


class SigmaMoE(nn.Module):
    """``y = Σ_{e in top-k} s[e] · activation(x · keys[e] + bias[e]) · values[e] + o_bias`` (Eq. 7.11).

    The scores are ``s = sigmoid(expert_sel · x)``, not normalised, so that experts do not compete; computed in float32
    also under autocast. Of equal logits that of the expert with the lowest index wins.

    Args:
        d_model: width of the input.
        num_experts: E.
        expert_size: hidden width G of each expert. The dense layer of equal parameters has E · G.
        k: experts a token, ≤ E.
        activation: ``"relu"``, ``"gelu"``, ``"silu"``, ``"tanh"`` or ``"identity"``.
        selection: ``"sigmoid"``; ``"softmax"`` over all experts; or ``"softmax_after_topk"``, over the k chosen ones.
        bias: with ``bias`` [E, G] and one ``o_bias`` [d_out], which is added once and not gated.
        dropout: rate of ordinary dropout on the hidden activations.
        expert_dropout: rate δ at which experts are left out of the selection in training (Eq. 7.21), drawn for each
            token and expert, without rescaling; rounded to a multiple of 2⁻¹⁶. A token for which none is left gets
            ``o_bias``.
        num_layers: number of layers of the model; scales the initial weights (``reset_parameters``).
        d_out: width of the output, d_model if None.

    Shapes: x [..., d_model] -> [..., d_out]. Parameters keys [E, d_model, G], values [E, G, d_out],
    expert_sel [E, d_model], as in the models that the author released (:func:`load_released_state_dict`).
    """

    def __init__(
        self,
        d_model,
        num_experts,
        expert_size,
        k,
        *,
        activation="relu",
        selection="sigmoid",
        bias=False,
        dropout=0.0,
        expert_dropout=0.0,
        num_layers=1,
        d_out=None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.d_model, self.num_experts, self.expert_size, self.k = d_model, num_experts, expert_size, k
        self.activation, self.selection = activation, selection
        self.dropout, self.expert_dropout = dropout, expert_dropout
        self.num_layers, self.d_out = num_layers, d_model if d_out is None else d_out
        self._check_arguments()
        _checks.flag("SigmaMoE", bias=bias)
        kwargs = {"device": device, "dtype": dtype}
        self.keys = nn.Parameter(torch.empty(num_experts, d_model, expert_size, **kwargs))
        self.values = nn.Parameter(torch.empty(num_experts, expert_size, self.d_out, **kwargs))
        self.expert_sel = nn.Parameter(torch.empty(num_experts, d_model, **kwargs))
        self.bias = nn.Parameter(torch.empty(num_experts, expert_size, **kwargs)) if bias else None
        self.o_bias = nn.Parameter(torch.empty(self.d_out, **kwargs)) if bias else None
        self.reset_parameters()

    def _check_arguments(self):
        sizes = ("d_model", "num_experts", "expert_size", "k", "num_layers", "d_out")
        _checks.positive_int("SigmaMoE", **{name: getattr(self, name) for name in sizes})
        if self.k > self.num_experts:
            raise ValueError(f"SigmaMoE: k must be at most num_experts = {self.num_experts}, got {self.k}")
        _checks.one_of("SigmaMoE", tuple(ACTIVATIONS), activation=self.activation)
        _checks.one_of("SigmaMoE", SELECTIONS, selection=self.selection)
        _checks.rate("SigmaMoE", dropout=self.dropout, expert_dropout=self.expert_dropout)

    @torch.no_grad()
    def reset_parameters(self):
        """Initialises as the dense pre-layernorm network of width E · G (Sec. 7.4, with n_layers = ``num_layers``).

        With s = √(2 / num_layers): keys ~ N(0, s/√d_model), values ~ N(0, s/√(E · G)); expert_sel has random rows of
        norm s, i.e. root mean square s/√d_model, so that at first only the angle to x decides. Biases are 0.
        """
        scale = (2 / self.num_layers) ** 0.5
        nn.init.normal_(self.keys, std=scale / self.d_model**0.5)
        nn.init.normal_(self.values, std=scale / (self.num_experts * self.expert_size) ** 0.5)
        nn.init.normal_(self.expert_sel)
        self.expert_sel.mul_(scale / self.expert_sel.norm(dim=1, keepdim=True))
        if self.bias is not None:
            nn.init.zeros_(self.bias)
            nn.init.zeros_(self.o_bias)

    def _logits(self, x):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            given = str(x.dtype).removeprefix("torch.") if isinstance(x, torch.Tensor) else type(x).__name__
            raise TypeError(f"SigmaMoE: x must be a floating-point tensor, got {given}")
        if x.dim() == 0 or x.shape[-1] != self.d_model:
            raise ValueError(f"SigmaMoE: x must have shape [..., {self.d_model}], got {list(x.shape)}")
        return selection_logits(x, self.expert_sel)

    def _select(self, logits, return_log_sum=False):
        expert_dropout = self.expert_dropout if self.training else 0
        return ops.select_experts(
            logits, self.k, selection=self.selection, expert_dropout=expert_dropout, return_log_sum=return_log_sum
        )

    def select(self, x):
        """Experts int64 [..., k] of each token by logit (−1: none left), their gates [..., k], all logits [..., E]."""
        logits = self._logits(x)
        return *self._select(logits), logits

    def forward(self, x, return_aux=False):
        """Returns y [..., d_out], or with ``return_aux`` (y, L).

        L = Σ_e p[e] log p[e] is a scalar to be minimised, weighted by γ (Eq. 7.19-7.20; the thesis uses γ = 10⁻³ to
        10⁻⁴). With ``torch.distributed`` initialised it is taken over the tokens of all processes, so it must be asked
        for on all; its gradient is then right where gradients are averaged (DistributedDataParallel, FSDP).
        """
        logits = self._logits(x)
        experts, gate, *log_sum = self._select(logits, bool(return_aux))
        if self.training and self.dropout > 0:
            route = ops.route(experts, self.num_experts)
            hidden = ACTIVATIONS[self.activation].forward(ops.cvmm(x, route, self.keys, bias=self.bias))
            y = ops.cvmm(F.dropout(hidden, self.dropout), route, self.values, gate=gate, reduce=True)
        else:
            y = ops.moe_ffn(x, experts, gate, self.keys, self.values, b_up=self.bias, activation=self.activation)
        if self.o_bias is not None:
            y = y + self.o_bias.to(y.dtype)
        return (y, selection_negentropy(*log_sum, logits.numel() // self.num_experts)) if return_aux else y

    def extra_repr(self):
        return (
            f"d_model={self.d_model}, num_experts={self.num_experts}, expert_size={self.expert_size}, k={self.k}, "
            f"activation={self.activation!r}, selection={self.selection!r}, bias={self.bias is not None}, "
            f"dropout={self.dropout}, expert_dropout={self.expert_dropout}, d_out={self.d_out}"
        )
