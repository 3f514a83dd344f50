"""What a column of the Neural Data Router makes of what it attended to (Csordás 2023, Eq. 5.2-5.5)."""

import torch
from torch.nn import functional as F


def gated_update(x, attended, parameters, noise, eps):
    """x and attended [R, d]; parameters in the order of :class:`sysgen.ops._gated_update.Parameters`.

    noise: factors of ``attended``, of both hidden layers side by side [R, F], and of the gates [R, 1]; eps: of the two
    norms.
    """
    p, (of_attended, of_hidden, of_gate) = parameters, noise
    a = F.layer_norm(x + of_attended * attended, x.shape[1:], p.norm1_weight, p.norm1_bias, eps[0])
    weight, bias = torch.cat((p.linear1_weight, p.gate1_weight)), torch.cat((p.linear1_bias, p.gate1_bias))
    hidden = of_hidden * F.linear(a, weight, bias).relu()
    for_update, for_gate = hidden.split((len(p.linear1_weight), len(p.gate1_weight)), 1)
    update = F.linear(for_update, p.linear2_weight, p.linear2_bias)
    update = F.layer_norm(update, x.shape[1:], p.norm2_weight, p.norm2_bias, eps[1])
    gate = of_gate * F.linear(for_gate, p.gate2_weight, p.gate2_bias).sigmoid()
    return torch.lerp(x, update, gate)
