"""What all data sets share: one flat array of tokens, splits, caches."""

import math
import operator
import os
import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ._random import key_of
from .batching import Batch

_FORMAT = 1  # of the files in cache_dir
_generated = {}


def clear_cache():
    """Frees the data sets that are kept in memory."""
    _generated.clear()


def ragged(padded, lengths):
    """Flat values and offsets [M + 1] of the first ``lengths`` [M] elements of the rows of a matrix [M, W]."""
    flat = padded[torch.arange(padded.shape[1]) < lengths[:, None]]
    return flat, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def reversed_rows(padded, lengths):
    """The rows of ``padded`` [M, W] with their first ``lengths`` elements in reverse; the rest is arbitrary."""
    return padded.gather(1, (lengths[:, None] - 1 - torch.arange(padded.shape[1])).clamp(min=0))


def first_of_each(values):
    """Sorted indices of the first occurrence of each value of a tensor [M]."""
    order = values.argsort(stable=True)
    ordered = values[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first].sort().values


def concatenate(tables):
    """One table of several. A table is a dict of columns [M]; ``x`` is ragged where there is ``x_offsets`` [M + 1]."""
    result = {}
    for name in tables[0]:
        columns = [t[name] for t in tables]
        if name.endswith("_offsets"):
            starts = [0]
            for c in columns[:-1]:
                starts.append(starts[-1] + int(c[-1]))
            columns = [c[(i > 0) :] + s for i, (c, s) in enumerate(zip(columns, starts))]
        result[name] = torch.cat(columns)
    return result


def select(table, rows):
    """The given rows (LongTensor) of a table."""
    result = {}
    for name, column in table.items():
        if name.endswith("_offsets"):
            lengths = column.diff()[rows]
            starts = column[:-1][rows]
            offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            at = torch.arange(int(offsets[-1])) + (starts - offsets[:-1]).repeat_interleave(lengths)
            values = name[: -len("_offsets")]
            result[values], result[name] = table[values][at], offsets
        elif name + "_offsets" not in table:
            result[name] = column[rows]
    return result


class progress_bar:
    """Context: a function of the work done so far that moves a tqdm bar, or None without tqdm or ``wanted``."""

    def __init__(self, wanted, total, what):
        self.bar = None
        if wanted:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, desc=what, unit="sample", unit_scale=True)

    def __enter__(self):
        return None if self.bar is None else lambda done: self.bar.update(done - self.bar.n)

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()


class GeneratedDataset(Dataset):
    """A data set that is generated from a seed, with splits that belong together.

    A subclass has the attributes ``SPLITS``, ``VERSION`` (goes up whenever the data of a seed change), ``vocabulary``,
    and the methods ``_part`` (name of the part of the data that a split is generated with) and
    ``_generate(part, progress) -> {split: table}``.
    """

    SPLITS = ()
    VERSION = 1
    separator = " "

    def __init__(self, split, seed, parameters, progress, cache_dir):
        names = check_several("split", split, self.splits(**self._split_arguments(parameters)))
        key_of(seed)
        self.split, self.seed, self.parameters = split, seed, parameters
        self._table = concatenate([self._table_of(name, progress, cache_dir) for name in names])
        self._lengths = self._table["tokens_offsets"].diff()

    @classmethod
    def splits(cls):
        """Names of the splits."""
        return cls.SPLITS

    @staticmethod
    def _split_arguments(parameters):
        return {}

    def _part(self, split):
        return "all"

    def _generate(self, part, progress):
        raise NotImplementedError

    def _table_of(self, split, progress, cache_dir):
        part = self._part(split)
        settings = "_".join(f"{k}={v}" for k, v in sorted(self.parameters.items()) if self._matters(part, k))
        identity = f"{type(self).__name__}_v{_FORMAT}.{self.VERSION}_{part}_{settings}_seed={self.seed}"
        if identity not in _generated:
            file = None if cache_dir is None else Path(cache_dir) / f"{type(self).__name__}_{_digest(identity)}.pt"
            tables = None if file is None else _load(file, identity)
            if tables is None:
                tables = self._generate(part, progress)
                if file is not None:
                    _save(file, {"identity": identity, "tables": tables})
            _generated[identity] = tables
        return _generated[identity][split]

    def _matters(self, part, parameter):
        return True

    @property
    def num_tokens(self):
        """Number of different tokens: ids are in [0, num_tokens)."""
        return len(self.vocabulary)

    @property
    def lengths(self):
        """Number of tokens of each sample, IntTensor [M]."""
        return self._lengths.int()

    def __len__(self):
        return len(self._lengths)

    def __getitem__(self, index):
        """Sample ``index``, or for a list of indices their :class:`Batch`."""
        if isinstance(index, (list, torch.Tensor)) and not (isinstance(index, torch.Tensor) and index.dim() == 0):
            return self.batch(index)
        try:
            i = operator.index(index)
        except TypeError:
            what = f"an integer, or a list or tensor of integers, got {type(index).__name__}"
            raise TypeError(f"index must be {what}") from None
        if not -len(self) <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} samples")
        i %= len(self)
        return self._ragged_row("tokens", i), self._target(i)

    def _ragged_row(self, name, i):
        offsets = self._table[name + "_offsets"]
        return self._table[name][offsets[i] : offsets[i + 1]].long()

    def _indices(self, indices):
        indices = torch.as_tensor(indices)
        if indices.numel() and (indices.is_floating_point() or indices.dtype == torch.bool):
            raise TypeError(f"indices must be integers, got {indices.dtype}; of a mask take mask.nonzero()")
        indices = indices.long().reshape(-1)
        if len(indices) and not -len(self) <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"indices must be in [{-len(self)}, {len(self)}), got {indices.tolist()}")
        return indices % max(len(self), 1)

    def _padded(self, name, indices):
        offsets = self._table[name + "_offsets"]
        starts = offsets[indices]
        lengths = offsets[indices + 1] - starts
        columns = torch.arange(int(lengths.max()) if len(lengths) else 0)
        inside = columns < lengths[:, None]
        at = torch.where(inside, starts[:, None] + columns, 0)
        return torch.where(inside, self._table[name][at].long(), 0), lengths

    def decode(self, tokens):
        """The text of a sequence of token ids."""
        return self.separator.join(self.vocabulary[int(t)] for t in tokens)

    def __repr__(self):
        settings = "".join(f", {k}={v!r}" for k, v in self.parameters.items())
        return f"{type(self).__name__}({self.split!r}, seed={self.seed}{settings}): {len(self)} samples"


class ClassificationDataset(GeneratedDataset):
    """Sequences of tokens with a class each.

    ``dataset[i]`` is ``(tokens LongTensor [n], target int)``; ``dataset.batch(indices)`` a padded :class:`Batch`.

    Attributes:
        vocabulary: name of each token.
        classes: name of each class.
        lengths, depths: IntTensor [M].
        targets: LongTensor [M].
    """

    @property
    def num_classes(self):
        return len(self.classes)

    @property
    def depths(self):
        """Depth of each sample, IntTensor [M]."""
        return self._table["depths"]

    @property
    def targets(self):
        """Class of each sample, LongTensor [M]."""
        return self._table["targets"].long()

    def _target(self, i):
        return int(self._table["targets"][i])

    def batch(self, indices):
        """The samples ``indices`` (list or LongTensor [B]) as a :class:`Batch`, without a loop over them."""
        indices = self._indices(indices)
        tokens, lengths = self._padded("tokens", indices)
        return Batch(tokens, lengths, self._table["targets"][indices].long())


def check_choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_several(name, value, allowed):
    """The values as a tuple; ``value`` is one or several of ``allowed``."""
    known = ", ".join(map(repr, allowed))
    try:
        values = (value,) if isinstance(value, type(allowed[0])) else tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be one or several of {known}, got {type(value).__name__}") from None
    if not values:
        raise ValueError(f"{name} must be at least one of {known}, got none")
    for one in values:
        check_choice(name, one, allowed)
    return values


def check_bool(name, value):
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def check_int(name, value, low, high=math.inf):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not low <= value <= high:
        wanted = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def _digest(identity):
    return f"{key_of(0, identity):016x}"


def _load(file, identity):
    """The tables in ``file``, or None if it holds none of this version."""
    try:
        state = torch.load(file, weights_only=True)
    except FileNotFoundError:
        return None
    except Exception:  # written by something else, or cut off: torch raises many kinds
        return None
    return state["tables"] if isinstance(state, dict) and state.get("identity") == identity else None


def _save(file, state):
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            torch.save(state, stream)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
