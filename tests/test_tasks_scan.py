"""SCAN: the whole language, and the published sizes of the length splits."""

import pytest
import torch
from task_oracle import scan_actions

from sysgen.tasks import SCAN

# (Csordas 2023, Tab. C.7): number of commands with at most so many actions
SHORT = {
    22: 16_990, 24: 17_326, 25: 17_774, 26: 18_286, 27: 18_734, 28: 19_182, 30: 19_758, 32: 20_206, 33: 20_462,
    36: 20_526, 40: 20_782,
}  # fmt: skip


@pytest.mark.parametrize("cutoff", SHORT)
def test_sizes(cutoff):
    train, iid, test = (SCAN(split, cutoff) for split in ("train", "iid", "test"))
    assert len(train) + len(iid) == SHORT[cutoff] and len(iid) == SHORT[cutoff] // 10
    assert len(train) + len(iid) + len(test) == 20_910
    assert max(train.target_lengths) <= cutoff and max(iid.target_lengths) <= cutoff < min(test.target_lengths)


def test_published_split():
    train, iid, test = (SCAN(split, 26) for split in SCAN.splits())
    assert [len(d) for d in (train, iid, test)] == [16_458, 1828, 2624]
    assert [int(d.lengths.max()) for d in (train, test)] == [9, 9]
    assert [int(d.target_lengths.max()) for d in (train, test)] == [26, 48]
    assert len(train.input_vocabulary) == train.num_tokens == 13 and len(train.output_vocabulary) == 6


def test_every_output_and_no_command_twice():
    dataset = SCAN(("train", "iid", "test"))
    commands = [dataset.decode(dataset[i][0]) for i in range(len(dataset))]
    assert len(set(commands)) == 20_910
    for i, command in enumerate(commands):
        assert dataset.decode_output(dataset[i][1]).split() == scan_actions(command)


@pytest.mark.parametrize(
    "command, actions",
    [
        ("jump", "I_JUMP"),
        ("turn left", "I_TURN_LEFT"),
        ("jump opposite left", "I_TURN_LEFT I_TURN_LEFT I_JUMP"),
        ("turn around right", " ".join(["I_TURN_RIGHT"] * 4)),
        ("walk left after run twice", "I_RUN I_RUN I_TURN_LEFT I_WALK"),
    ],
)
def test_examples_of_the_paper(command, actions):
    """Of the oracle too."""
    dataset = SCAN(SCAN.SPLITS)
    words = torch.tensor([dataset.input_vocabulary.index(word) for word in command.split()])
    found = [i for i in (dataset.lengths == len(words)).nonzero()[:, 0].tolist() if torch.equal(dataset[i][0], words)]
    assert [dataset.decode_output(dataset[i][1]) for i in found] == [actions]
    assert " ".join(scan_actions(command)) == actions


def test_bad_cutoff():
    with pytest.raises(ValueError, match=r"cutoff must be in \[1, 47\], got 48"):
        SCAN(cutoff=48)
