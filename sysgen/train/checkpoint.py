"""Checkpoints: written whole or not at all, read without executing anything that is in them."""

import io
import os
from pathlib import Path

import torch

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not belong to this run; the message is meant for the user."""


def save(path, content):
    """Writes ``content`` under a temporary name, flushes it to the disk and renames it."""
    buffer = io.BytesIO()  # torch.save hides what the file system says, such as that the disk is full
    torch.save({"format": FORMAT, **content}, buffer)
    temporary = Path(f"{path}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def load(path, map_location="cpu"):
    """Reads what :func:`save` wrote."""
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many kinds for bytes that are not its own
        reason = (str(error) or "it is empty").splitlines()[0]
        raise CheckpointError(f"{path} is no readable checkpoint: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise CheckpointError(f"{path} has checkpoint format {found!r}; this version reads {FORMAT}")
    return content


def rng_state(device):
    """The states of the generators that dropout and initialisation draw from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state, device):
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
