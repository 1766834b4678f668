"""What is generated: right, as asked for, the same again, and kept."""

import json

import numpy as np
import pytest

from data import generate, store
from data.solver import is_valid_solution, solve


def everything(puzzles):
    return puzzles.rows(np.arange(len(puzzles)))


@pytest.mark.parametrize("clues, low, high", [(45, 45, 45), (81, 81, 81), (24, 24, 24), ((28, 33), 28, 33)])
def test_clue_counts_and_one_solution(clues, low, high):
    puzzles = generate.generate(60, clues=clues, seed=1)
    puzzle, solution = everything(puzzles)
    solved, count, guesses = solve(puzzle)
    assert (count == 1).all() and (solved == solution).all() and is_valid_solution(puzzle, solution).all()
    assert (guesses == puzzles.rating).all()
    number = (puzzle > 0).sum(1)
    assert number.min() >= low and number.max() <= high and (low == high or len(set(number)) == 6)


def test_minimal_puzzles_lose_their_solution_with_any_clue():
    puzzles, _ = everything(generate.generate(50, clues="minimal", seed=3))
    assert 23 < (puzzles > 0).sum(1).mean() < 26
    for puzzle in puzzles:
        clues = np.flatnonzero(puzzle)
        without = np.repeat(puzzle[None], len(clues), axis=0)
        without[np.arange(len(clues)), clues] = 0
        assert (solve(without)[1] == 2).all()


def test_workers_change_nothing_and_seeds_do():
    one, three = (generate.generate(700, clues=35, seed=4, workers=workers) for workers in (1, 3))
    assert one.table.tobytes() == three.table.tobytes()
    assert one.table.tobytes() != generate.generate(700, clues=35, seed=5).table.tobytes()
    assert len(np.unique(everything(one)[0], axis=0)) == 700


def test_dug_buckets():
    puzzles = generate.generate(40, buckets={0: 10, 1: 25, 2: 5}, seed=1)
    assert np.bincount(store.bucket_of(puzzles.rating)).tolist() == [10, 25, 5]
    puzzle, solution = everything(puzzles)
    solved, count, guesses = solve(puzzle)
    assert (count == 1).all() and (solved == solution).all() and (guesses == puzzles.rating).all()


def test_climbed_bucket_is_right_and_varied(monkeypatch):
    monkeypatch.setattr(generate, "HARD_CHUNK", 12)  # a pool for twelve takes a second
    puzzles = generate.generate(12, buckets=[3], seed=1)
    puzzle, solution = everything(puzzles)
    solved, count, _ = solve(puzzle)
    assert (store.bucket_of(puzzles.rating) == 3).all() and (count == 1).all() and (solved == solution).all()
    assert len(np.unique(store.fingerprints(puzzles))) == 12  # no two are equivalent


@pytest.mark.parametrize(
    "arguments",
    [{"clues": 12}, {"clues": (40, 30)}, {"clues": 82}, {"buckets": [7]}, {"buckets": {0: 3}}, {"count": 0}],
)
def test_bad_requests_are_refused(arguments):
    with pytest.raises(ValueError, match=r"expected .* found"):
        generate.generate(**({"count": 10} | arguments))


def test_cache_notices_damage_and_other_versions(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SUDOKU_DATA", str(tmp_path))
    first = generate.cached(50, 40, 1).table.tobytes()
    (path,) = tmp_path.glob("*.npy")
    made = path.stat().st_mtime_ns
    assert generate.cached(50, 40, 1).table.tobytes() == first and path.stat().st_mtime_ns == made
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert generate.cached(50, 40, 1).table.tobytes() == first
    assert "checksum" in capsys.readouterr().err
    monkeypatch.setattr(generate, "VERSION", generate.VERSION + 1)
    assert generate.cached(50, 40, 1).table.tobytes() == first
    assert "another version" in capsys.readouterr().err
    assert json.loads(path.with_suffix(".json").read_text())["made_by"]["generator"] == generate.VERSION
    assert not list(tmp_path.glob("*.tmp"))


def test_script(tmp_path, capsys):
    path = tmp_path / "x.npy"
    generate.main(["--count", "30", "--clues", "30-32", "--seed", "1", "--output", str(path)])
    assert len(store.load(path)) == 30 and "30 puzzles" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        generate.main(["--clues", "few", "--output", str(path)])
