"""data/store.py: sets on disk survive a round trip, and a damaged one is named; samples and exclusion."""

import json
import time

import numpy as np
import pytest

from data import sources, store
from tests.data.puzzles import make


def assert_same(found, wanted):
    assert np.array_equal(found.table, wanted.table)


@pytest.fixture
def saved(clean):
    puzzles = make(1000, ratings=(0, 1.5, 60))
    store.save("set.npy", puzzles, made_by={"why": "a test"})
    return puzzles


def test_round_trip(saved):
    loaded = store.load("set.npy")
    assert_same(loaded, saved)
    assert loaded.meta["made_by"] == {"why": "a test"} and loaded.meta["rows"] == 1000
    for found, wanted in zip(loaded.rows([5, 3]), saved.rows([5, 3])):
        assert np.array_equal(found, wanted)
    puzzle, solution = loaded.rows(np.arange(1000))
    assert ((puzzle > 0).sum(1) == 45).all() and ((puzzle == 0) | (puzzle == solution)).all()
    assert loaded.rating[:3].tolist() == [0, 1.5, 60]


def test_an_empty_set_and_a_missing_one(clean):
    store.save("none.npy", make(1).subset([]))
    assert len(store.load("none.npy")) == 0
    with pytest.raises(FileNotFoundError, match=r"gone\.npy: there is no such file; delete it"):
        store.load("gone.npy")


def test_saving_again_replaces_and_leaves_nothing_else(saved, clean):
    store.save("set.npy", saved.subset(np.arange(10)))
    assert len(store.load("set.npy")) == 10
    assert sorted(path.name for path in clean.iterdir()) == ["set.json", "set.npy"]


@pytest.mark.parametrize("kept", [0, 50, 5000])
def test_a_cut_file(saved, clean, kept):
    path = clean / "set.npy"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(store.BrokenSet, match=rf"set\.npy: truncated .*{kept:,} bytes for 1,000 rows.*; fetch it"):
        store.load(path, "fetch it")


def test_a_flipped_byte(saved, clean):
    content = bytearray((clean / "set.npy").read_bytes())
    content[40_000] ^= 1
    (clean / "set.npy").write_bytes(content)
    with pytest.raises(store.BrokenSet, match="does not match its checksum"):
        store.load("set.npy")


def test_another_format_version(saved, clean):
    meta = json.loads((clean / "set.json").read_text())
    (clean / "set.json").write_text(json.dumps(meta | {"format": store.FORMAT - 1}))
    with pytest.raises(store.BrokenSet, match=f"expected format version {store.FORMAT}, found {store.FORMAT - 1}"):
        store.load("set.npy")


def test_the_sidecar_is_of_another_set(saved, clean):
    meta = json.loads((clean / "set.json").read_text())
    (clean / "set.json").write_text(json.dumps(meta | {"rows": 999}))
    with pytest.raises(store.BrokenSet, match="expected 999 rows of 96 bytes"):
        store.load("set.npy")


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_the_sidecar_is_missing_or_not_one(saved, clean, text):
    (clean / "set.json").unlink()
    if text is not None:
        (clean / "set.json").write_text(text)
    with pytest.raises(store.BrokenSet, match=r"sidecar set\.json is (missing|not readable)"):
        store.load("set.npy")


def test_a_large_set_is_mapped_at_once(clean):
    table = np.tile(make(3000).table, 100)
    store.save("large.npy", store.PuzzleSet(table))
    start = time.perf_counter()
    loaded = store.load("large.npy")
    puzzle, _ = loaded.rows(np.arange(512) * 500)
    assert time.perf_counter() - start < 0.5
    assert len(loaded) == 300_000 and puzzle.shape == (512, 81)


def test_from_arrays_refuses_what_does_not_fit():
    puzzle, solution = make(2).rows([0, 1])
    with pytest.raises(ValueError, match="two arrays"):
        store.from_arrays(puzzle[0], solution[0], 0)
    cell = np.flatnonzero(puzzle[1])[0]
    puzzle[1, cell] = puzzle[1, cell] % 9 + 1
    with pytest.raises(ValueError, match=f"puzzle 1, cell {cell}: the clue"):
        store.from_arrays(puzzle, solution, [0, 0])


def test_balanced_and_natural():
    puzzles = make(4000, ratings=(0, 0, 0, 0, 0, 2, 2, 5, 20, 99))
    rows = store.balanced_test(puzzles, 500, seed=3)
    counts = np.bincount(store.bucket_of(puzzles.rating[rows]), minlength=5)
    assert counts.tolist() == [500, 500, 400, 400, 400]  # as many as there are
    assert len(np.unique(rows)) == len(rows) and np.array_equal(rows, store.balanced_test(puzzles, 500, seed=3))
    assert not np.array_equal(rows, store.balanced_test(puzzles, 500, seed=4))
    natural = store.natural_test(puzzles, 1000, seed=3)
    assert len(np.unique(natural)) == 1000
    shares = np.bincount(store.bucket_of(puzzles.rating[natural]), minlength=5) / 1000
    assert np.abs(shares - [0.5, 0.2, 0.1, 0.1, 0.1]).max() < 0.05
    assert len(store.natural_test(puzzles, 10_000, seed=3)) == 4000


def test_exclude_finds_equivalent_puzzles():
    puzzles = make(300, seed=1)
    moved = store.from_arrays(*sources.symmetries(*puzzles.rows([7, 100]), np.random.default_rng(9)), [0, 50])
    test = store.PuzzleSet(np.concatenate([moved.table, puzzles.table[200:203]]))
    left = store.exclude(puzzles, test)
    assert np.setdiff1d(np.arange(300), left).tolist() == [7, 100, 200, 201, 202]
    assert len(store.exclude(puzzles, make(300, seed=2))) == 300
