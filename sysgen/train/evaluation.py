"""Accuracy and loss on a split, by depth."""

import torch

from .steps import autocast

LEAST_BATCH = 512  # sequences a batch: nothing is kept for a backward pass
LARGEST_SPLIT = None  # sequences evaluated of a split; None: all
GROUPS = ("target_length", "depth", "task")  # what results go by: the first that a dataset has, in the plural


@torch.no_grad()
def evaluate(model, dataset, objective, settings, device, interruption=None):
    """Evaluates all of ``dataset``, in evaluation mode and in order of length, or the first ``eval_samples`` sequences
    of an endless one; draws no random number.

    Returns:
        dict: ``accuracy`` (part of the sequences without any wrong output), ``loss`` and ``wrong`` (outputs; means over
        the sequences), ``error`` (part of the outputs that is wrong), ``count``, and accuracy by depth, ``by_depth``,
        or ``by_target_length`` where the targets are sequences, ``by_size`` of endless ones, ``by_task``; then also
        ``error_by_task``.

    Raises:
        Interrupted: ``interruption`` asks for a stop.
    """
    name, batches = _stream(dataset, settings) if hasattr(dataset, "batches") else _sorted(dataset, settings)
    results, groups, loss_sum = [], [], 0.0
    training = model.training
    model.eval()
    try:
        for batch, group in batches:
            if interruption is not None:
                interruption.check(despite_limit=True)
            with autocast(settings, device):
                loss, *outputs = objective(model, batch.to(device))
            results.append(torch.stack(outputs))
            groups.append(group)
            loss_sum += loss.double() * len(group)
    finally:
        model.train(training)
    wrong, outputs = torch.cat(results, 1).cpu().double()
    group, right = torch.cat(groups), (wrong == 0).double()
    result = {
        "accuracy": right.mean().item(),
        "loss": float(loss_sum) / len(group),
        "wrong": wrong.mean().item(),
        "error": (wrong.sum() / outputs.sum()).item(),
        "count": len(group),
    }
    result[f"by_{name}"] = {str(int(g)): right[group == g].mean().item() for g in group.unique()}
    if name == "task":
        errors = {g: (wrong[group == g].sum() / outputs[group == g].sum()).item() for g in group.unique()}
        result["error_by_task"] = {str(int(g)): error for g, error in errors.items()}
    return result


def _sorted(dataset, settings):
    """What results go by; (batch, group of each sample), in order of length."""
    name = next(name for name in GROUPS if hasattr(dataset, f"{name}s"))
    order = torch.argsort(torch.as_tensor(dataset.lengths)[:LARGEST_SPLIT], stable=True)
    group = torch.as_tensor(getattr(dataset, f"{name}s"))
    parts = order.split(max(settings["batch_size"], LEAST_BATCH))
    return name, ((dataset.batch(indices.tolist()), group[indices]) for indices in parts)


def _stream(dataset, settings):
    count, size = min(settings["eval_samples"], LARGEST_SPLIT or settings["eval_samples"]), settings["batch_size"]
    batches = (dataset.batch(step, min(size, count - step * size)) for step in range(-(-count // size)))
    return "size", ((batch, batch.sizes) for batch in batches)
