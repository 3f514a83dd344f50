"""Batches of sequences of similar length."""

from typing import NamedTuple, Optional

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from ._random import draw, key_of, permutation


class Batch(NamedTuple):
    """Padded sequences with their targets.

    Args:
        tokens: int64 [B, N], 0 beyond the length. 0 is also a token: use ``lengths``.
        lengths: int64 [B].
        targets: int64 [B] (classes), or [B, M] (sequences, 0 beyond their length).
        target_lengths: int64 [B] for sequences, None for classes.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    target_lengths: Optional[torch.Tensor] = None

    def to(self, device, non_blocking=False):
        """The batch on another device."""
        return Batch(*(t if t is None else t.to(device, non_blocking=non_blocking) for t in self))


def collate(samples):
    """Makes a :class:`Batch` of samples ``(tokens, class)`` or ``(tokens, tokens)``; ``collate_fn`` of a DataLoader."""
    inputs, targets = zip(*samples)
    lengths = torch.tensor([len(t) for t in inputs])
    tokens = pad_sequence(inputs, batch_first=True)
    if not isinstance(targets[0], torch.Tensor):
        return Batch(tokens, lengths, torch.tensor(targets))
    return Batch(tokens, lengths, pad_sequence(targets, batch_first=True), torch.tensor([len(t) for t in targets]))


class BucketBatchSampler(Sampler):
    """Lists of indices of samples of similar length, each index once an epoch.

    The samples are shuffled, sorted stably by length and cut into batches, whose order is shuffled; an incomplete
    batch comes last. An epoch's order depends on ``seed`` and the epoch alone. The next epoch begins by itself when
    one is used up; an iteration that was broken off begins its epoch anew.

    >>> sampler = BucketBatchSampler(dataset.lengths, 512)
    >>> for indices in sampler:
    ...     batch = dataset.batch(indices)

    With workers: ``DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=2)``, or, without a loop
    over the samples, ``DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=2)``.

    Args:
        lengths: length of each sample, int [M].
        batch_size: samples a batch.
        shuffle: False for batches in the order of length, always the same.
        seed: int in [0, 2^64).
        drop_last: leave as many random samples out of each epoch as would make an incomplete batch.
        infinite: never stop, but go on with the next epoch; an incomplete batch then comes anywhere.

    ``state_dict()`` holds the place of the next batch that the sampler hands out. A DataLoader with workers asks for
    batches ahead of their use; there, resume with ``set_epoch(epoch, position)`` from the number of batches used.
    """

    def __init__(self, lengths, batch_size, shuffle=True, seed=0, *, drop_last=False, infinite=False):
        lengths = torch.as_tensor(lengths) if len(lengths) else torch.zeros(0, dtype=torch.int64)
        if lengths.dim() != 1 or lengths.is_floating_point():
            raise ValueError(f"lengths must be a list of integers, got shape {list(lengths.shape)} of {lengths.dtype}")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an int of at least 1, got {batch_size!r}")
        if infinite and not (len(lengths) // batch_size if drop_last else len(lengths)):
            raise ValueError("infinite=True needs at least one batch, and lengths holds too few")
        self.lengths, self.batch_size = lengths, batch_size
        self.shuffle, self.seed, self.drop_last, self.infinite = shuffle, seed, drop_last, infinite
        key_of(seed)  # refuses a bad one
        self.epoch = self.position = self._start = 0

    def __len__(self):
        """Batches an epoch."""
        n = len(self.lengths)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def set_epoch(self, epoch, position=0):
        """The next iteration begins with batch ``position`` of ``epoch``."""
        if epoch < 0 or not 0 <= position <= len(self):
            raise ValueError(
                f"epoch must be at least 0 and position in [0, {len(self)}], got epoch={epoch}, position={position}"
            )
        self.epoch, self.position, self._start = epoch, position, position

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed}

    def load_state_dict(self, state):
        """Continues where ``state`` was taken, for a sampler with the same arguments."""
        if state["seed"] != self.seed:
            raise ValueError(f"the state is of seed {state['seed']}, this sampler has seed {self.seed}")
        self.set_epoch(state["epoch"], state["position"])

    def _batches(self, epoch):
        n = len(self.lengths)
        order = permutation(key_of(self.seed, "batches", epoch), n) if self.shuffle else torch.arange(n)
        if self.drop_last:
            order = order[: n - n % self.batch_size]
        order = order[self.lengths[order].argsort(stable=True)]
        batches = order.split(self.batch_size) if len(order) else ()
        if not self.shuffle:
            return batches
        rank = draw(key_of(self.seed, "order", epoch), torch.arange(len(batches)))
        if not self.infinite and len(order) % self.batch_size:
            rank[-1] = torch.iinfo(torch.int64).max
        return [batches[i] for i in rank.argsort(stable=True).tolist()]

    def __iter__(self):
        self.position, self._start = self._start, 0
        while True:
            batches = self._batches(self.epoch)
            while self.position < len(batches):
                self.position += 1
                yield batches[self.position - 1].tolist()
            self.epoch, self.position = self.epoch + 1, 0
            if not self.infinite:
                return
