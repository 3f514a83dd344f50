"""The names and layouts of the parameters of the released DNC (Ch. 2), and those of the layers here."""

import torch

ANCHOR = "controller_to_controls.weight"


def converted(module, take, prefix):
    """State dict of a :class:`DNC` or :class:`DNCCell` from ``take(released name, shape)``.

    The interface has the same order there; the gates of the LSTM come as f, i, o, g and the input and the reads share
    a matrix; the product of the reads with the output's weights has a bias of its own. A feed-forward controller is
    ``controller.model`` there.
    """
    state = {}
    if module.controller is None:
        h, x, words = module.hidden_size, module.input_size, module.num_reads * module.word_size
        weight = _gates(take(f"{prefix}controller.in_to_all_0.weight", torch.Size((4 * h, x + words))))
        state["weight_input"], state["weight_reads"] = weight.split([x, words], 1)
        state["bias"] = _gates(take(f"{prefix}controller.in_to_all_0.bias", module.bias.shape))
        hidden = take(f"{prefix}controller.out_to_all_0.weight", module.weight_hidden.shape)
        state["weight_hidden"] = _gates(hidden)
    else:
        for name, p in module.controller.state_dict().items():
            state[f"controller.{name}"] = take(f"{prefix}controller.model.{name}", p.shape)
    linears = {"interface": "controller_to_controls", "output": "controller_to_out", "read_output": "read_to_out"}
    for name, theirs in linears.items():
        linear = getattr(module, name)
        state[f"{name}.weight"] = take(f"{prefix}{theirs}.weight", linear.weight.shape)
        bias = take(f"{prefix}{theirs}.bias", torch.Size((linear.out_features,)))
        if linear.bias is None:
            state["output.bias"] = state["output.bias"] + bias
        else:
            state[f"{name}.bias"] = bias
    return state


def _gates(rows):
    """f, i, o, g there; i, f, g, o here."""
    f, i, o, g = rows.chunk(4)
    return torch.cat([i, f, g, o])
