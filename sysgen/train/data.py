"""Datasets of a run and the stream of its training batches."""

import torch

from .. import tasks
from .loader import Loader, pad_to_multiple
from .presets import TASKS
from .settings import SettingsError


class Data:
    """The splits of a task that a run needs, each made when it is first used.

    Args:
        settings: as from :func:`sysgen.train.settings.resolve`.
    """

    def __init__(self, settings):
        self.task = TASKS[settings["task"]]
        self._make = getattr(tasks, self.task["dataset"])
        self._options = {k: settings[k] for k in self.task["options"]}
        self._options.update(self.task.get("fixed", {}))
        if self.task.get("seeded", True):
            self._options["seed"] = settings["data_seed"]
        self._splits = {}

    def split(self, name):
        if name not in self._splits:
            try:
                self._splits[name] = self._make(name, **self._options)
            except (ValueError, OSError, MemoryError) as error:
                raise SettingsError(str(error)) from error
            if num_samples(self._splits[name]) == 0:
                options = ", ".join(f"{k} = {v!r}" for k, v in self._options.items())
                raise SettingsError(f"with {options} the split {name!r} of {self.task['dataset']} holds no samples")
        return self._splits[name]

    @property
    def train(self):
        return self.split(self.task["train"])

    def group(self, which):
        """``"validation"`` or ``"test"``: dict of the datasets by name (``"iid"``, ``"ood"``, …)."""
        return {name: self.split(split) for name, split in self.task[which].items()}


def num_samples(dataset):
    """None: without end."""
    return None if hasattr(dataset, "batches") else len(dataset)


def training_batches(dataset, settings, device, state=None):
    """The endless stream of training batches, from the beginning or from the ``state`` of a loader."""
    pin = device.type == "cuda"
    if hasattr(dataset, "batches"):
        state = state or {"step": 0}
        return Loader(_numbered(dataset, settings["batch_size"], state["step"], pin), state)
    lengths = torch.as_tensor(dataset.lengths)
    if not settings["bucketed"]:
        lengths = torch.zeros_like(lengths)  # nothing to sort by: the batches stay random
    sampler = tasks.BucketBatchSampler(lengths, settings["batch_size"], seed=settings["seed"], infinite=True)
    if state is not None:
        sampler.load_state_dict(state)
    return Loader(_prepared(dataset, sampler, settings["pad_multiple"], pin), sampler.state_dict())


def _numbered(stream, batch_size, start, pin):
    for step, batch in enumerate(stream.batches(batch_size, start), start + 1):
        yield _pinned(batch) if pin else batch, {"step": step}


def _pinned(batch):
    return type(batch)(*(None if t is None else t.pin_memory() for t in batch))


def _prepared(dataset, sampler, multiple, pin):
    for indices in sampler:
        batch = dataset.batch(indices)
        batch = batch._replace(tokens=pad_to_multiple(batch.tokens, multiple))
        yield _pinned(batch) if pin else batch, sampler.state_dict()
