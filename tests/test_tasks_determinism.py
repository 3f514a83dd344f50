"""The data of a seed are the same for ever and everywhere; what is generated is kept in memory and on disk."""

import hashlib
import json
import re

import pytest
import torch
from support import python
from task_oracle import splitmix

from sysgen import tasks
from sysgen.tasks import CTL, SCAN, CTLPlusPlus, ListOps, SimpleArithmetic, _dataset, clear_cache
from sysgen.tasks._random import Stream, below, draw, key_of, permutation

SMALL = {"num_train": 2000, "num_eval": 100}
DATASETS = {
    "CTL": lambda: CTL(CTL.SPLITS, seed=1),
    "CTL++ A": lambda: CTLPlusPlus(CTLPlusPlus.splits("A"), "A", seed=1, **SMALL),
    "CTL++ R": lambda: CTLPlusPlus(CTLPlusPlus.splits("R"), "R", seed=1, **SMALL),
    "CTL++ S": lambda: CTLPlusPlus(CTLPlusPlus.splits("S"), "S", seed=1, **SMALL),
    "arithmetic reference": lambda: SimpleArithmetic(SimpleArithmetic.SPLITS, "reference", seed=1, **SMALL),
    "arithmetic balanced": lambda: SimpleArithmetic(SimpleArithmetic.SPLITS, "balanced", seed=1, **SMALL),
    "ListOps": lambda: ListOps(("train", "iid", "valid"), seed=1, **SMALL),
    "SCAN": lambda: SCAN(SCAN.SPLITS, seed=1),
}
# A change of these numbers is a change of the data that users have: VERSION of the class must go up with it.
GOLDEN = {
    "CTL": "7047442616c5b3eb",
    "CTL++ A": "d6cd5040af0f4a38",
    "CTL++ R": "75c1f682a248af5d",
    "CTL++ S": "3309013fe9a1ced8",
    "arithmetic reference": "a235f18d53aafa3e",
    "arithmetic balanced": "bb2d8a91a99b271d",
    "ListOps": "2d6f012589e31ad4",
    "SCAN": "52be8e3ad9c392f5",
}


def checksum(dataset):
    digest = hashlib.sha256()
    for name, column in sorted(dataset._table.items()):
        digest.update(f"{name} {column.dtype} {len(column)} ".encode())
        digest.update(column.to(torch.int64).numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", DATASETS)
def test_golden_checksums(name):
    assert checksum(DATASETS[name]()) == GOLDEN[name]


def test_another_process_hash_seed_and_number_of_threads():
    code = (
        "import json, sys, torch; torch.set_num_threads(3); torch.manual_seed(9); sys.path.insert(0, sys.argv[1]); "
        "import test_tasks_determinism as t; print(json.dumps({n: t.checksum(f()) for n, f in t.DATASETS.items()}))"
    )
    folder = re.sub(r"[^/\\]+$", "", __file__)
    assert json.loads(python("-c", code, folder, PYTHONHASHSEED="123").stdout) == GOLDEN


def test_the_global_generators_are_left_alone():
    before = torch.get_rng_state()
    clear_cache()
    DATASETS["CTL"](), DATASETS["ListOps"]()
    assert torch.equal(torch.get_rng_state(), before)


# ---- random numbers


def test_splitmix64():
    """The first numbers of the published generator with the state 1234567, and the same by each route."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    numbers, stream = splitmix(1234567), Stream(1234567)
    assert [next(numbers) for _ in known] == [stream.next() for _ in known] == known
    key = key_of(2**64 - 1, "anything", 3)
    stream = Stream(key)
    assert [n % 2**64 for n in draw(key, torch.arange(1000)).tolist()] == [stream.next() for _ in range(1000)]
    stream = Stream(key)
    assert below(draw(key, torch.arange(1000)), 11).tolist() == [stream.below(11) for _ in range(1000)]


def test_random_numbers_are_uniform():
    counts = below(draw(key_of(0, "a"), torch.arange(100_000)), 10).bincount()
    assert all(abs(c - 10_000) < 5 * 9000**0.5 for c in counts.tolist())
    assert sorted(permutation(key_of(0, "b"), 1000).tolist()) == list(range(1000))
    keys = {key_of(seed, *labels) for seed in range(100) for labels in (("a",), ("b",), ("a", "b"), ("a", 0), ("a", 1))}
    assert len(keys) == 500


# ---- what is kept


@pytest.fixture
def no_generation(monkeypatch):
    """Forgets what is in memory; ``forbid()`` then makes any generation fail."""
    clear_cache()

    def forbid():
        clear_cache()

        def fail(*arguments):
            raise AssertionError("generated again")

        for cls in (CTL, ListOps):
            monkeypatch.setattr(cls, "_generate", fail)

    yield forbid
    clear_cache()


def test_splits_of_a_seed_are_generated_once(monkeypatch, no_generation):
    CTL("train")
    monkeypatch.setattr(CTL, "_generate", None)
    assert len(CTL("test")) == 1000
    with pytest.raises(TypeError):
        CTL("test", seed=1)


def test_files(tmp_path, no_generation):
    folder = tmp_path / "new" / "folder"
    small = {"num_train": 500, "cache_dir": folder}
    written = ListOps(**small), CTL("test", cache_dir=str(folder))
    files = sorted(f.name for f in folder.iterdir())
    assert len(files) == 2 and files[0].startswith("CTL_") and files[1].startswith("ListOps_")
    assert all(f.endswith(".pt") for f in files)
    no_generation()
    for dataset, again in zip(written, (ListOps(**small), CTL("test", cache_dir=folder))):
        assert checksum(dataset) == checksum(again)
    with pytest.raises(AssertionError, match="generated again"):
        ListOps(seed=1, **small)


@pytest.mark.parametrize("damage", ["cut off", "other version", "no file of ours"])
def test_bad_files_are_replaced(tmp_path, monkeypatch, no_generation, damage):
    expected = checksum(ListOps(num_train=500, cache_dir=tmp_path))
    (file,) = tmp_path.iterdir()
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "no file of ours":
        torch.save([1, 2], file)
    else:
        state = torch.load(file, weights_only=True)
        torch.save({"identity": state["identity"] + "0", "tables": {}}, file)
    clear_cache()
    assert checksum(ListOps(num_train=500, cache_dir=tmp_path)) == expected
    no_generation()
    assert checksum(ListOps(num_train=500, cache_dir=tmp_path)) == expected


def test_a_newer_version_does_not_read_the_files_of_an_older_one(tmp_path, monkeypatch, no_generation):
    ListOps(num_train=500, cache_dir=tmp_path)
    monkeypatch.setattr(ListOps, "VERSION", ListOps.VERSION + 1)
    no_generation()
    with pytest.raises(AssertionError, match="generated again"):
        ListOps(num_train=500, cache_dir=tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, no_generation):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(_dataset.torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        ListOps(num_train=500, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- what all share


def test_joined_splits():
    names = ("basic", "new_composition", "test")
    joined, parts = CTL(names), [CTL(name) for name in names]
    samples = [(t.tolist(), y) for part in parts for t, y in part]
    assert [(t.tolist(), y) for t, y in joined] == samples
    assert joined.depths.tolist() == [d for part in parts for d in part.depths.tolist()]


@pytest.mark.parametrize("name", DATASETS)
def test_vocabularies(name):
    dataset = DATASETS[name]()
    assert len(set(dataset.vocabulary)) == dataset.num_tokens
    assert dataset._table["tokens"].unique().tolist() == list(range(dataset.num_tokens))
    assert repr(dataset).startswith(type(dataset).__name__) and f"{len(dataset)} samples" in repr(dataset)
    if name != "SCAN":
        assert dataset.targets.unique().tolist() == list(range(dataset.num_classes))
        assert dataset.lengths.shape == dataset.depths.shape == dataset.targets.shape == (len(dataset),)


def test_a_bar_is_shown_where_tqdm_is(capfd):
    pytest.importorskip("tqdm")
    clear_cache()
    ListOps(num_train=500, progress=True)
    assert "listops train: 100%" in capfd.readouterr().err


def test_no_bar_without_tqdm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    clear_cache()
    assert len(ListOps(num_train=500, progress=True)) == 500


def test_everything_public_is_documented():
    for name in tasks.__all__:
        assert getattr(tasks, name).__doc__, name
