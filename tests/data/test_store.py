"""data/store.py: sets on disk survive a round trip, and a damaged one is named; the cache; exclusion."""

import json
import os
import sys
import time

import numpy as np
import pytest

from data import sources, store
from plumbing import disk
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
    with pytest.raises(store.BrokenSet, match=rf"set\.npy: truncated .*{kept:,} bytes for 1,000 rows.*; delete it"):
        store.load(path)


def test_a_flipped_byte(saved, clean):
    content = bytearray((clean / "set.npy").read_bytes())
    content[40_000] ^= 1
    (clean / "set.npy").write_bytes(content)
    with pytest.raises(store.BrokenSet, match="does not match its checksum"):
        store.load("set.npy")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [0, 1000])
def test_any_damage_to_the_header(saved, clean, rows):
    store.save("set.npy", saved.subset(np.arange(rows)))
    content = (clean / "set.npy").read_bytes()
    starts = [b"PK\3\4", b"\x80\4.", b"\0" * 128, b"\x93NUMPY\xff\xff"]
    damaged = [start + content[len(start) :] for start in starts]
    for place in range(128):
        damaged += [content[:place] + bytes([byte]) + content[place + 1 :] for byte in (40, 57, 255)]
    found = 0
    for changed in damaged:
        (clean / "set.npy").write_bytes(changed)
        try:
            assert np.array_equal(store.load("set.npy").table, saved.table[:rows])  # a space in the header changed
        except store.BrokenSet as error:
            assert str(error).startswith("set.npy: ") and "\n" not in str(error)
            found += 1
    assert found > 200


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


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"{",
        b"[]",
        b"{}",
        b"\xff\0",
        b"[" * 100_000,
        b'{"format": 1, "rows": "x", "crc32": 5}',
        b'{"format": 1, "rows": Infinity, "crc32": []}',
    ],
)
def test_the_sidecar_is_missing_or_not_one(saved, clean, content):
    (clean / "set.json").unlink()
    if content is not None:
        (clean / "set.json").write_bytes(content)
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


def load_or_make(path, count=5, again=False):
    asked = []
    puzzles = store.load_or_make(path, {"count": count}, lambda: asked.append(1) or make(count), again)
    assert_same(puzzles, make(count))
    return len(asked)


def test_a_set_is_made_once(clean, capsys):
    assert [load_or_make("cache/x.npy") for _ in range(2)] == [1, 0]
    assert load_or_make("cache/x.npy", again=True) == 1 and capsys.readouterr().err == ""
    assert load_or_make("cache/x.npy", count=6) == 1
    assert "x.npy: made by another version or with other arguments, or its source" in capsys.readouterr().err
    (clean / "cache/x.json").write_text("{")
    assert [load_or_make("cache/x.npy", count=6) for _ in range(2)] == [1, 0]
    assert capsys.readouterr().err == "cache/x.npy: its sidecar x.json is not readable; making it again\n"


def test_a_cache_that_cannot_be_written(clean, capsys):
    (clean / "file").write_text("")
    (clean / "folder.npy").mkdir()
    for path in ("file/x.npy", "folder.npy"):
        assert load_or_make(path) == 1
        error = capsys.readouterr().err
        assert f"{path}: the puzzles cannot be kept for the next run (" in error and "SUDOKU_DATA" in error
    assert not list(clean.glob("**/*.tmp"))


def test_a_cache_that_cannot_be_read(saved, monkeypatch, capsys):
    load_or_make("x.npy")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", refuse)
        assert load_or_make("x.npy") == 1
    assert "x.npy: no permission to read it; making it again" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_set(saved, clean, monkeypatch, error):
    def half(file, table):
        file.write(b"half")
        raise error

    monkeypatch.setattr(np, "save", half)
    with pytest.raises(type(error)):
        store.save("set.npy", make(3))
    assert_same(store.load("set.npy"), saved)
    assert sorted(path.name for path in clean.iterdir()) == ["set.json", "set.npy"]


def test_a_closed_pipe_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        disk.say("first line")
        disk.say("second line")


def test_exclude_finds_equivalent_puzzles():
    puzzles = make(300, seed=1)
    moved = store.from_arrays(*sources.symmetries(*puzzles.rows([7, 100]), np.random.default_rng(9)), [0, 50])
    test = store.PuzzleSet(np.concatenate([moved.table, puzzles.table[200:203]]))
    left = store.exclude(puzzles, test)
    assert np.setdiff1d(np.arange(300), left).tolist() == [7, 100, 200, 201, 202]
    assert len(store.exclude(puzzles, make(300, seed=2))) == 300
