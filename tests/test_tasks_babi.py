"""bAbI: files of the format, made here, against what stands in them."""

import pytest
import torch

from sysgen.tasks import BAbI

ONE = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
1 Bill is 7.
2 Where is Bill? \tseven\t1
"""
NINETEEN = """1 The garden is west of the office.
2 How do you go from the garden to the office? \te,n\t1
"""


@pytest.fixture
def folder(tmp_path):
    for task, name, split, text in (
        (1, "single-fact", "train", ONE),
        (1, "single-fact", "test", NINETEEN),
        (19, "path_finding", "train", NINETEEN),
    ):
        (tmp_path / f"qa{task}_{name}_{split}.txt").write_text(text)
    (tmp_path / "readme.txt").write_text("not of the data")
    return tmp_path


def told(dataset, i):
    tokens, targets = dataset[i]
    return dataset.decode(tokens), dataset.decode(targets)


def test_stories(folder):
    dataset = BAbI("train", folder, think_steps=2)
    assert len(dataset) == 3 and dataset.tasks.tolist() == [1, 1, 19]
    assert dataset.vocabulary[:3] == ["-", "?", "<UNK>"]
    assert told(dataset, 0) == (
        "mary moved to the bathroom . john went to the hallway . where is mary ? - - -",
        "- - - - - - - - - - - - - - - - - - bathroom",
    )
    assert told(dataset, 1)[0] == "bill is <UNK> . where is bill ? - - -"
    story, answers = told(dataset, 2)
    assert story.endswith("office ? - - - -") and answers.endswith("- - - e n")
    assert dataset.lengths.tolist() == [len(dataset[i][0]) for i in range(3)]


def test_splits_share_the_vocabulary(folder):
    train, test = (BAbI(split, folder) for split in ("train", "test"))
    assert train.vocabulary == test.vocabulary and test.tasks.tolist() == [1]
    assert told(test, 0) == told(BAbI("train", folder, tasks=[19]), 0)
    (folder / "qa2_new_train.txt").write_text("1 Something else. \n")
    assert "else" in BAbI("train", folder).vocabulary  # what was read before is not taken for it


def test_batches(folder):
    dataset = BAbI("train", folder)
    batch = dataset.batch([2, 0, 1])
    assert batch.tokens.shape == batch.targets.shape == (3, int(dataset.lengths.max()))
    for row, i in enumerate((2, 0, 1)):
        tokens, targets = dataset[i]
        assert torch.equal(batch.tokens[row, : len(tokens)], tokens) and not batch.tokens[row, len(tokens) :].any()
        assert torch.equal(batch.targets[row, : len(tokens)], targets) and not batch.targets[row, len(tokens) :].any()


def test_the_released_reader_loses_the_last_story_of_a_file(folder):
    assert BAbI("train", folder, stories="reference").tasks.tolist() == [1]


@pytest.mark.parametrize(
    "line, number",
    [
        ("Mary moved.", 2),
        ("3 Mary moved.", 2),
        ("2 Where is Mary?\tbathroom", 2),
        ("2 Where is Mary?\t,\t1", 2),  # no answer
        ("\n2 Mary moved.", 2),
    ],
)
def test_bad_lines(tmp_path, line, number):
    (tmp_path / "qa3_x_train.txt").write_text(f"1 Mary moved.\n{line}\n")
    with pytest.raises(ValueError, match=f"line {number}: expected '2 <sentence>'"):
        BAbI("train", tmp_path)


def test_files_of_other_systems(tmp_path):
    """Line ends of Windows, a mark of the byte order, no end of the last line; no other character ends a line."""
    file = tmp_path / "qa1_x_train.txt"
    file.write_bytes(b"\xef\xbb\xbf1 Mary moved.\r\n2 A\x0cb\xe2\x80\xa8c.\r\n3 Where? \tbathroom\t1")
    assert told(BAbI("train", tmp_path), 0)[0] == "mary moved . a b c . where ? - - - -"
    file.write_text("")
    assert len(BAbI("train", tmp_path)) == 0
    file.write_bytes("1 Café.".encode("latin-1"))
    with pytest.raises(ValueError, match=r"qa1_x_train\.txt is no text in UTF-8"):
        BAbI("train", tmp_path)


def test_many_words(tmp_path):
    words = ["".join(chr(97 + int(digit)) for digit in str(i)) for i in range(2**15)]
    (tmp_path / "qa1_x_train.txt").write_text(f"1 {' '.join(words)}\n")
    assert told(BAbI("train", tmp_path), 0)[0] == " ".join(words)


def test_bad_arguments(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="holds no files qa"):
        BAbI("train", tmp_path_factory.mktemp("empty"))
    with pytest.raises(ValueError, match="split must be one of 'test', 'train', got 'valid'"):
        BAbI("valid", folder)
    with pytest.raises(ValueError, match="tasks must be one of 1, got 19"):
        BAbI("test", folder, tasks=[19])
    with pytest.raises(ValueError, match="tasks must be at least one of 1, 19, got none"):
        BAbI("train", folder, tasks=[])
    with pytest.raises(TypeError, match=r"split must be one or several of .*, got float"):
        BAbI(0.5, folder)
    with pytest.raises(ValueError, match="think_steps must be at least 0"):
        BAbI("train", folder, think_steps=-1)
