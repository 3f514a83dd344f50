"""What recurrent layers share: input, output and state in the forms that torch's own recurrent layers take."""

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def run_sequence(layer, state_type, input, state, lengths, run):
    """Brings a sequence into the form [T, B, X], runs the layer on it, and brings its output back.

    Args:
        layer: has ``input_size``, ``batch_first`` and ``initial_state(batch, device=…)``.
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
    name, size = type(layer).__name__, layer.input_size
    if not isinstance(input, torch.Tensor) or input.dim() not in (2, 3) or input.shape[-1] != size:
        raise ValueError(f"{name}: input must have shape [T, B, {size}] or [T, {size}], got {_described(input)}")
    batched = input.dim() == 3
    if not batched and lengths is not None:
        raise ValueError(f"{name}: lengths needs batched input")
    x = input if batched else input[:, None]
    x = x.transpose(0, 1) if layer.batch_first and batched else x
    y, last, *more = run(x, _batched_state(layer, state_type, state, x.shape[1], x.device, batched), lengths)
    if lengths is not None:
        runs = torch.arange(len(y), device=y.device)[:, None] < lengths
        y = y.masked_fill(~runs[..., None], 0)
    y = y.transpose(0, 1) if layer.batch_first and batched else y
    if not batched:
        y, last = y[:, 0], state_type(*(t[0] for t in last))
    return y, last, *more


def run_step(layer, state_type, input, state, run):
    """As :func:`run_sequence` for one step: input [B, X] or [X]; run: (x [B, X], state) -> (y [B, Y], state)."""
    name, size = type(layer).__name__, layer.input_size
    if not isinstance(input, torch.Tensor) or input.dim() not in (1, 2) or input.shape[-1] != size:
        raise ValueError(f"{name}: input must have shape [B, {size}] or [{size}], got {_described(input)}")
    batched = input.dim() == 2
    x = input if batched else input[None]
    y, last = run(x, _batched_state(layer, state_type, state, len(x), x.device, batched))
    return (y, last) if batched else (y[0], state_type(*(t[0] for t in last)))


def _described(input):
    return list(input.shape) if isinstance(input, torch.Tensor) else type(input).__name__


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
