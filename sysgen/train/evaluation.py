"""Accuracy and loss on a split, by depth."""

import torch

from .steps import autocast

LEAST_BATCH = 512  # sequences a batch: nothing is kept for a backward pass
LARGEST_SPLIT = None  # sequences evaluated of a split; None: all


@torch.no_grad()
def evaluate(model, dataset, objective, settings, device, interruption=None):
    """Evaluates all of ``dataset``, in evaluation mode and in order of length; draws no random number.

    Returns:
        dict: ``accuracy``, ``loss`` (mean over the sequences), ``count``, and ``by_depth``: accuracy by depth, or
        ``by_target_length`` where the targets are sequences.

    Raises:
        Interrupted: ``interruption`` asks for a stop.
    """
    lengths = torch.as_tensor(dataset.lengths)
    order = torch.argsort(lengths[:LARGEST_SPLIT], stable=True)
    right, losses = [], []
    training = model.training
    model.eval()
    try:
        for indices in order.split(max(settings["batch_size"], LEAST_BATCH)):
            if interruption is not None:
                interruption.check(despite_limit=True)
            batch = dataset.batch(indices.tolist()).to(device)
            with autocast(settings, device):
                loss, correct = objective(model, batch)
            right.append(correct)
            losses.append(loss.double() * len(indices))
    finally:
        model.train(training)
    right = torch.cat(right).cpu()
    count = len(order)
    result = {
        "accuracy": right.double().mean().item(),
        "loss": float(sum(losses)) / count,
        "count": count,
    }
    by = "by_target_length" if hasattr(dataset, "target_lengths") else "by_depth"
    group = dataset.target_lengths if by == "by_target_length" else dataset.depths
    group = torch.as_tensor(group)[order]
    result[by] = {str(int(g)): right[group == g].double().mean().item() for g in group.unique()}
    return result
