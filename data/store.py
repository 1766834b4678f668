"""Sets of solved puzzles: stored at 96 bytes a row and checked when opened, split, and read from any CSV.

A row is the solution (81 digits), a bit for each cell that is a clue (11 bytes) and the rating (float32). A set
is an .npy file and beside it a .json file that says how it was made, its rows and its checksum.
"""

import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
from numba import njit

FORMAT = 1  # version of the layout on disk; raise it when ROW or the sidecar changes
ROW = np.dtype([("solution", "u1", 81), ("clues", "u1", 11), ("rating", "<f4")])
BUCKETS = ((0, 0), (1, 2), (3, 10), (11, 50), (51, math.inf))  # lowest and highest rating
BUCKET_NAMES = ("0", "1-2", "3-10", "11-50", "51+")


class PuzzleSet:
    def __init__(self, table, meta=None):
        self.table = table  # array of ROW, in memory or mapped from a file
        self.meta = meta or {}

    def __len__(self):
        return len(self.table)

    def rows(self, indices):
        """(puzzle, solution) of these rows, both uint8 [n, 81]; a blank of the puzzle is 0."""
        part = self.table[indices]
        solution = np.ascontiguousarray(part["solution"])
        return solution * np.unpackbits(part["clues"], axis=1, count=81), solution

    @property
    def rating(self):
        return np.ascontiguousarray(self.table["rating"])

    def subset(self, indices):
        return PuzzleSet(self.table[indices], self.meta)


def bucket_of(rating):
    """The index in BUCKETS of each rating; one between two buckets (0.5) belongs to the lower."""
    return np.searchsorted([low for low, _ in BUCKETS[1:]], rating, side="right")


def from_arrays(puzzle, solution, rating):
    """Puzzles and solutions as [n, 81] arrays, ratings as [n]."""
    puzzle, solution = np.asarray(puzzle), np.asarray(solution)
    if puzzle.ndim != 2 or puzzle.shape[1] != 81 or puzzle.shape != solution.shape:
        raise ValueError(f"expected two arrays [n, 81], found {list(puzzle.shape)} and {list(solution.shape)}")
    if np.any((puzzle != 0) & (puzzle != solution)):
        row, cell = np.argwhere((puzzle != 0) & (puzzle != solution))[0]
        raise ValueError(f"puzzle {row}, cell {cell}: the clue {puzzle[row, cell]} is not in its solution")
    table = np.empty(len(puzzle), ROW)
    table["solution"] = solution
    table["clues"] = np.packbits(puzzle != 0, axis=1)
    table["rating"] = rating
    return PuzzleSet(table)


def cache_folder():
    return Path(os.environ.get("SUDOKU_DATA") or Path(__file__).parent / "cache")


def save(path, puzzle_set, **meta):
    """Writes path (.npy) and its sidecar, each under a temporary name first: a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.ascontiguousarray(puzzle_set.table)
    meta = {"format": FORMAT, "rows": len(table), "crc32": zlib.crc32(table.view(np.uint8)), **meta}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, table)
        os.replace(temporary, path)
        temporary.write_text(json.dumps(meta, indent=1) + "\n")
        os.replace(temporary, path.with_suffix(".json"))
    finally:
        temporary.unlink(missing_ok=True)


class BrokenSet(ValueError):
    """A set on disk that is not what its sidecar says."""


def load(path, remedy="delete it and make it again"):
    """Maps a set from disk after checking its size and checksum; `remedy` ends the message of an error."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file; {remedy}")

    def broken(reason):
        return BrokenSet(f"{path}: {reason}; {remedy}")

    try:
        meta = json.loads(path.with_suffix(".json").read_text())
        version, rows, checksum = meta["format"], meta["rows"], meta["crc32"]
    except FileNotFoundError:
        raise broken(f"its sidecar {path.with_suffix('.json').name} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise broken(f"its sidecar {path.with_suffix('.json').name} is not readable") from None
    if version != FORMAT:
        raise broken(f"expected format version {FORMAT}, found {version}")
    try:
        table = np.load(path, mmap_mode="r" if rows else None)
    except (ValueError, EOFError, OSError):
        raise broken(f"truncated or not an .npy file ({path.stat().st_size:,} bytes for {rows:,} rows)") from None
    if table.dtype != ROW or table.shape != (rows,):
        raise broken(f"expected {rows:,} rows of 96 bytes, found {table.shape} of {table.dtype.itemsize}")
    if zlib.crc32(table.view(np.uint8)) != checksum:
        raise broken(f"the content does not match its checksum {checksum:08x}")
    return PuzzleSet(table, meta)


def balanced_test(puzzle_set, per_bucket, seed):
    """Sorted indices of up to `per_bucket` random puzzles from each rating bucket."""
    random = np.random.default_rng(seed)
    bucket = bucket_of(puzzle_set.rating)
    rows = [random.permutation(np.flatnonzero(bucket == i))[:per_bucket] for i in range(len(BUCKETS))]
    return np.sort(np.concatenate(rows))


def natural_test(puzzle_set, n, seed):
    """Sorted indices of `n` random puzzles (all, if there are fewer): the set's own mix of ratings."""
    return np.sort(np.random.default_rng(seed).permutation(len(puzzle_set))[:n])


def exclude(puzzle_set, test_set):
    """Indices of the rows that are not in `test_set`, neither exactly nor as an equivalent puzzle.

    Compares fingerprints that no symmetry of Sudoku changes. Two puzzles that differ may share one; then a
    training row too many is left out, never one too few.
    """
    return np.flatnonzero(~np.isin(fingerprints(puzzle_set), fingerprints(test_set)))


def fingerprints(puzzle_set):
    """uint64 [n]: the same number for puzzles that a symmetry (lines, digits, transposition) makes equal."""
    result = np.empty(len(puzzle_set), np.uint64)
    for start in range(0, len(puzzle_set), 100_000):
        rows = np.arange(start, min(start + 100_000, len(puzzle_set)))
        _fingerprint(*puzzle_set.rows(rows), result[start:])
    return result


@njit(cache=True, nogil=True)
def _mix(value):
    """A 64-bit scrambling (splitmix64), so that sums of such numbers hardly ever agree by chance."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def _fingerprint(puzzle, solution, result):
    """Colours every cell by clue or blank, then twice by the colours in its row, column, box and digit.

    Sums forget order, and rows are treated as columns are, so nothing here depends on a symmetry.
    """
    colour, unit = np.empty(81, np.uint64), np.empty((4, 9), np.uint64)
    for i in range(len(puzzle)):
        for cell in range(81):
            colour[cell] = np.uint64(0x9E3779B97F4A7C15) if puzzle[i, cell] else np.uint64(0x3C6EF372FE94F82A)
        for _ in range(2):
            unit[:] = 0
            for cell in range(81):
                mixed = _mix(colour[cell])
                row, column = cell // 9, cell % 9
                unit[0, row] += mixed
                unit[1, column] += mixed
                unit[2, row // 3 * 3 + column // 3] += mixed
                unit[3, solution[i, cell] - 1] += mixed
            for cell in range(81):
                row, column = cell // 9, cell % 9
                lines = _mix(unit[0, row]) + _mix(unit[1, column])
                box = _mix(unit[2, row // 3 * 3 + column // 3] + np.uint64(1))
                digit = _mix(unit[3, solution[i, cell] - 1] + np.uint64(2))
                colour[cell] = _mix(colour[cell]) + _mix(lines) + np.uint64(3) * box + np.uint64(5) * digit
        total = np.uint64(0)
        for cell in range(81):
            total += _mix(colour[cell])
        result[i] = total


def read_csv(path):
    """The puzzles of any CSV with question and answer, or puzzle and solution; every row is checked."""
    from data import rows  # here: that module builds on this one

    return rows.read_csv(path)
