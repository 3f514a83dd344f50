"""The bAbI stories with questions (Weston et al. 2015) as (Csordas 2023, Sec. 2.4) reads them."""

import functools
import re
from pathlib import Path

import torch

from ._dataset import GeneratedDataset, check_choice, check_int, check_several
from .batching import Batch

_FILE = re.compile(r"qa(\d+)_.*_([^_]+)\.txt")
_WORD = re.compile(r"[.,?]|[^\s.,?]+")
UNKNOWN = "<UNK>"
PUNCTUATION = (".", ",", "?")


class BAbI(GeneratedDataset):
    """Stories as sequences of words with questions among them, whose answers are due in blanks behind each question.

    Words are in lower case; ``. , ?`` are words of their own; what else is not only letters becomes ``<UNK>``. Behind a
    question of an answer of m words come ``think_steps + m`` blanks, and at the last m of them the answer's words are
    the targets; everywhere else the target is 0, the blank, which is no word to answer.

    The files are not part of the package; their names are ``qa<task>_<name>_<split>.txt``, as in the folder ``en-10k``
    of ``tasks_1-20_v1-2``. The vocabulary is that of all files of the folder: the blank ``-``, ``?``, ``<UNK>``, then
    in the order of task, split and appearance (released: in the order in which the system lists the files).

    Args:
        split: ``"train"``, ``"test"`` or what else names of files end in, or several that are joined.
        data_dir: folder of the files.
        tasks: number of the task to take, or several; None: all that have files.
        think_steps: blanks before an answer.
        stories: ``"all"``, or ``"reference"``: without the last story of each file, which the released code loses.

    ``dataset[i]`` is ``(tokens, targets)``, LongTensors [n]; ``dataset.batch(indices)`` a :class:`Batch` with targets
    [B, N]. ``lengths`` and ``tasks`` (number of the task) are IntTensors [M].

    Raises:
        FileNotFoundError: ``data_dir`` holds no such files.
        ValueError: a split or task without files, a file that is no UTF-8, or a line that is not of this format, by its
            number.
    """

    def __init__(self, split="train", data_dir="tasks_1-20_v1-2/en-10k", *, tasks=None, think_steps=3, stories="all"):
        check_int("think_steps", think_steps, 0)
        check_choice("stories", stories, ("all", "reference"))
        found = ((_FILE.fullmatch(path.name), path) for path in Path(data_dir).glob("*.txt"))
        files = sorted((int(match[1]), match[2], str(path)) for match, path in found if match)
        if not files:
            raise FileNotFoundError(f"data_dir = {str(data_dir)!r} holds no files qa<task>_<name>_<split>.txt of bAbI")
        names = check_several("split", split, sorted({name for _, name, _ in files}))
        there = sorted({task for task, name, _ in files if name in names})
        wanted = there if tasks is None else check_several("tasks", tasks, there)
        changed = tuple(Path(path).stat().st_mtime_ns for _, _, path in files)
        read, self.vocabulary = _read(tuple(files), changed)
        self.split, self.seed, self.parameters = split, 0, {"think_steps": think_steps, "stories": stories}
        kept = [
            (task, story)
            for (task, name, _), told in zip(files, read)
            for story in (told if stories == "all" else told[:-1])
            if name in names and task in wanted
        ]
        self._table = _table(kept, think_steps, len(self.vocabulary))
        self._lengths = self._table["tokens_offsets"].diff()

    @property
    def tasks(self):
        """Number of the task of each story, IntTensor [M]."""
        return self._table["tasks"]

    def _target(self, i):
        return self._ragged_row("answers", i)

    def batch(self, indices):
        """The stories ``indices`` (list or LongTensor [B]) as a :class:`Batch`, without a loop over them."""
        indices = self._indices(indices)
        tokens, lengths = self._padded("tokens", indices)
        return Batch(tokens, lengths, self._padded("answers", indices)[0])


@functools.lru_cache(maxsize=1)  # the splits of a folder share it
def _read(files, changed):
    """The stories of each file, each a list of (words of a line, words of the answer or None), and the vocabulary.

    ``changed``: when; files that were written since are read again.
    """
    ids = {"-": 0, "?": 1, UNKNOWN: 2}

    @functools.cache  # few sentences that differ are most of the text
    def words(text):
        known = (w if w.isalpha() or w in PUNCTUATION else UNKNOWN for w in _WORD.findall(text.lower()))
        return tuple(ids.setdefault(word, len(ids)) for word in known)

    read = []
    for _, _, path in files:
        stories = []
        for number, line in enumerate(_lines(path), 1):
            text, *question = line.split("\t")
            index, _, sentence = text.partition(" ")
            expected = len(stories[-1]) + 1 if stories else 1
            told = words(sentence), words(question[0].replace(",", " ")) if question else None
            if not index.isdecimal() or int(index) not in (1, expected) or len(question) not in (0, 2) or told[1] == ():
                raise ValueError(
                    f"{path}, line {number}: expected '{expected} <sentence>' or '{expected} <question>?', a tab, the "
                    f"answer, a tab and the numbers of supporting lines, or the line 1 of the next story, got {line!r}"
                )
            if int(index) == 1:
                stories.append([])
            stories[-1].append(told)
        read.append(stories)
    return read, list(ids)


def _lines(path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.removesuffix("\n") for line in file]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error


def _table(stories, think_steps, num_tokens):
    """Of pairs (task, story of :func:`_read`)."""
    dtype = torch.int16 if num_tokens <= 2**15 else torch.int32
    tokens, answers, offsets = [], [], [0]
    for _, story in stories:
        for words, answer in story:
            tokens += words
            answers += [0] * len(words)
            if answer is not None:
                tokens += [0] * (think_steps + len(answer))
                answers += (0,) * think_steps + answer
        offsets.append(len(tokens))
    offsets = torch.tensor(offsets)
    return {
        "tokens": torch.tensor(tokens, dtype=dtype),
        "tokens_offsets": offsets,
        "answers": torch.tensor(answers, dtype=dtype),
        "answers_offsets": offsets,
        "tasks": torch.tensor([task for task, _ in stories], dtype=torch.int32),
    }
