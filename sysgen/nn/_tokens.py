"""Token sequences of several lengths in one tensor."""

import torch


def check(layer, tokens, lengths, name="tokens"):
    """Lengths [B], or a full one for each sequence if None. Values are checked where that costs no synchronisation."""
    if not isinstance(tokens, torch.Tensor) or tokens.is_floating_point() or tokens.dtype == torch.bool:
        given = tokens.dtype if isinstance(tokens, torch.Tensor) else type(tokens).__name__
        raise TypeError(f"{layer}: {name} must be an integer tensor, got {given}")
    if tokens.dim() != 2:
        raise ValueError(f"{layer}: {name} must have shape [B, N], got {list(tokens.shape)}")
    b, n = tokens.shape
    if lengths is None:
        return torch.full((b,), n, device=tokens.device)
    if not isinstance(lengths, torch.Tensor) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        given = lengths.dtype if isinstance(lengths, torch.Tensor) else type(lengths).__name__
        raise TypeError(f"{layer}: lengths of {name} must be an integer tensor, got {given}")
    if lengths.shape != (b,):
        raise ValueError(f"{layer}: lengths of {name} must be integers of shape [{b}], got {list(lengths.shape)}")
    if b and lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = lengths.aminmax()
        if low < 0 or high > n:
            raise ValueError(f"{layer}: lengths of {name} must be in [0, {n}], got {int(low)} to {int(high)}")
    return lengths.to(tokens.device, torch.int64)  # torch reads an index of uint8 as a mask


def with_ends(tokens, lengths, end, begin=None):
    """Puts ``end`` behind each sequence and ``begin`` in front; what is beyond becomes token 0.

    tokens [B, N], lengths [B] -> ([B, N + 1 or 2], bool mask of the same shape, True on padding).
    """
    if tokens.dtype not in (torch.int32, torch.int64):  # narrower ones may not hold the new tokens
        tokens = tokens.to(torch.int64)
    position = torch.arange(tokens.shape[1] + 1, device=tokens.device)
    tokens = torch.nn.functional.pad(tokens, (0, 1))
    lengths = lengths.unsqueeze(1)
    tokens = tokens.masked_fill(position > lengths, 0).masked_fill(position == lengths, end)
    padding = position > lengths
    if begin is not None:
        tokens = torch.nn.functional.pad(tokens, (1, 0), value=begin)
        padding = torch.nn.functional.pad(padding, (1, 0), value=False)
    return tokens, padding
