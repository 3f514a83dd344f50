"""What recurrent layers share: input, output and state in the forms that torch's own recurrent layers take."""

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .._library import autocast_dtype
from ..ops._cvmm_checks import name as dtype_name
from ..reference.dnc import until_end


def run_sequence(layer, state_type, input, state, lengths, run):
    """Brings a sequence into the form [T, B, X], runs the layer on it, and brings its output back.

    Args:
        layer: has ``input_size``, ``batch_first``, ``interface`` and ``initial_state(batch, device=…)``.
        state_type: NamedTuple of tensors with the batch first.
        input: [T, B, X], [B, T, X] if ``layer.batch_first``, [T, X], or a ``PackedSequence``.
        state: of ``state_type``, without the batch where the input has none, or None.
        lengths: int64 [B] or None. Outputs behind the end of a sample are 0.
        run: (x [T, B, X], state, lengths) -> (y [T, B, Y], state, *more).

    Returns:
        (y in the form of the input, state, *more).
    """
    if isinstance(input, PackedSequence):
        return _run_packed(layer, state_type, input, state, lengths, run)
    batched = _check_input(layer, input, "B, T, " if layer.batch_first else "T, B, ", "T, ")
    if not batched and lengths is not None:
        raise ValueError(f"{type(layer).__name__}: lengths needs batched input")
    x = input if batched else input[:, None]
    x = x.transpose(0, 1) if layer.batch_first and batched else x
    y, last, *more = run(x, _batched_state(layer, state_type, state, x.shape[1], x.device, batched), lengths)
    y = until_end(y, lengths)
    y = y.transpose(0, 1) if layer.batch_first and batched else y
    if not batched:
        y, last = y[:, 0], state_type(*(t[0] for t in last))
    return y, last, *more


def run_step(layer, state_type, input, state, run):
    """As :func:`run_sequence` for one step: input [B, X] or [X]; run: (x [B, X], state) -> (y [B, Y], state)."""
    batched = _check_input(layer, input, "B, ", "")
    x = input if batched else input[None]
    y, last = run(x, _batched_state(layer, state_type, state, len(x), x.device, batched))
    return (y, last) if batched else (y[0], state_type(*(t[0] for t in last)))


def _check_input(layer, input, batched, unbatched):
    """Raises unless the input fits the layer; returns whether it has a batch.

    ``batched``, ``unbatched``: the dimensions before the features, such as ``"T, B, "``.
    """
    name, size = type(layer).__name__, layer.input_size
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"{name}: input must be a torch.Tensor, got {type(input).__name__}")
    ranks = [before.count(",") + 1 for before in (batched, unbatched)]
    if input.dim() not in ranks or input.shape[-1] != size:
        either = " or ".join(f"[{before}{size}]" for before in (batched, unbatched))
        raise ValueError(f"{name}: input must have shape {either}, got {list(input.shape)}")
    own = layer.interface.weight.dtype
    if input.dtype != own and autocast_dtype(input) is None:
        raise TypeError(
            f"{name}: input must be {dtype_name(own)} as the layer's parameters, unless autocast is on, "
            f"got {dtype_name(input.dtype)}"
        )
    return input.dim() == ranks[0]


def _batched_state(layer, state_type, state, batch, device, batched):
    if state is None:
        return layer.initial_state(batch, device=device)
    fields = state_type._fields
    if not (isinstance(state, tuple) and len(state) == len(fields) and all(map(torch.is_tensor, state))):
        raise TypeError(
            f"{type(layer).__name__}: state must be a {state_type.__name__} of {len(fields)} tensors, "
            f"got {type(state).__name__}"
        )
    return state if batched else state_type(*(t[None] for t in state))


def _run_packed(layer, state_type, packed, state, lengths, run):
    if lengths is not None:
        raise ValueError(f"{type(layer).__name__}: a PackedSequence has lengths of its own")
    x, lengths = pad_packed_sequence(packed, batch_first=layer.batch_first)  # in the order before sorting
    y, *rest = run_sequence(layer, state_type, x, state, lengths.to(x.device), run)
    order = packed.sorted_indices  # kept as it is: another sort may order samples of one length otherwise
    if order is not None:
        y, lengths = y.index_select(0 if layer.batch_first else 1, order), lengths[order.to(lengths.device)]
    y = pack_padded_sequence(y, lengths, batch_first=layer.batch_first)
    return PackedSequence(y.data, y.batch_sizes, order, packed.unsorted_indices), *rest
