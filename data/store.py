"""Sets of solved puzzles: stored at 96 bytes a row, checked when opened, compared with each other.

A row is the solution (81 digits), one bit for each cell that is a clue (11 bytes) and the rating (float32). A set
is an .npy file and beside it a .json file (the sidecar) with its origin, its number of rows and its checksum.
"""

import json
import math
import os
import sys
import zlib
from pathlib import Path

import numpy as np
from numba import njit

from plumbing import disk

FORMAT = 1  # version of the layout on disk; raise it when ROW or the sidecar changes
ROW = np.dtype([("solution", "u1", 81), ("clues", "u1", 11), ("rating", "<f4")])
KAGGLE = (0.0, 1.0, 2.0, 3.0, 4.0, 10.0)  # edges of the difficulty buckets of the Kaggle set
EASIEST = (0.0, 0.1)  # its lowest difficulty: exactly 0.0
EXTREME = (0.0, 1.0, 3.0, 11.0, 51.0, math.inf)  # edges of the rating buckets of sudoku-extreme and generate.py
EXTREME_NAMES = ("0", "1-2", "3-10", "11-50", "51+")
REMEDY = "; delete it and make it again"


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


def rows_by_bucket(puzzles, edges):
    ratings = np.asarray(puzzles.rating)
    return [np.flatnonzero((ratings >= low) & (ratings < below)) for low, below in zip(edges, edges[1:])]


def cache_folder():
    return Path(os.environ.get("SUDOKU_DATA") or Path(__file__).parent / "cache")


def save(path, puzzle_set, **meta):
    """Writes path (.npy) and its sidecar; both writes are atomic."""
    path = Path(path)
    table = np.ascontiguousarray(puzzle_set.table)
    meta = {"format": FORMAT, "rows": len(table), "crc32": zlib.crc32(table.view(np.uint8)), **meta}
    disk.replace(path, lambda file: np.save(file, table))
    disk.write_json(path.with_suffix(".json"), meta)


class BrokenSet(ValueError):
    """A set on disk that does not match its sidecar, or cannot be read."""


def load(path):
    """Maps a set from disk after checking its size and checksum."""
    path = Path(path)
    sidecar = path.with_suffix(".json")
    if not os.path.exists(path):  # unlike path.exists(), no error in a folder that cannot be read
        raise FileNotFoundError(f"{path}: there is no such file{REMEDY}")

    def broken(reason):
        return BrokenSet(f"{path}: {reason}{REMEDY}")

    if not os.path.exists(sidecar):
        raise broken(f"its sidecar {sidecar.name} is missing")
    try:
        meta = json.loads(sidecar.read_bytes())
        version, rows, checksum = meta["format"], int(meta["rows"]), int(meta["crc32"])
    except Exception:  # damaged content can cause any error
        raise broken(f"its sidecar {sidecar.name} is not readable") from None
    if version != FORMAT:
        raise broken(f"expected format version {FORMAT}, found {version}")
    try:
        table = np.load(path, mmap_mode="r" if rows else None)
        shape, dtype = table.shape, table.dtype
    except PermissionError:
        raise broken("no permission to read it") from None
    except Exception:  # a damaged header can cause any error
        raise broken(f"truncated or not an .npy file ({os.path.getsize(path):,} bytes for {rows:,} rows)") from None
    if dtype != ROW or shape != (rows,):
        raise broken(f"expected {rows:,} rows of 96 bytes, found {shape} of {dtype.itemsize}")
    if zlib.crc32(table.view(np.uint8)) != checksum:
        raise broken(f"the content does not match its checksum {checksum:08x}")
    return PuzzleSet(table, meta)


def load_or_make(path, made_by, make, again=False):
    """The set at `path` if it is undamaged and was made by the same (`made_by`); otherwise made and kept there."""
    made_by = json.loads(json.dumps(made_by))  # as the sidecar returns it
    if os.path.exists(path) and not again:
        try:
            puzzles = load(path)
            if puzzles.meta.get("made_by") == made_by:
                return puzzles
            reason = f"{path}: made by another version or with other arguments, or its source has changed"
        except BrokenSet as error:
            reason = str(error).removesuffix(REMEDY)
        print(f"{reason}; making it again", file=sys.stderr)
    puzzles = make()
    try:
        save(path, puzzles, made_by=made_by, **puzzles.meta)
        return load(path)
    except (OSError, BrokenSet) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "let SUDOKU_DATA name a folder that can be written, with free space"
        print(f"{path}: the puzzles cannot be kept for the next run ({reason}); {remedy}", file=sys.stderr)
        return puzzles


def exclude(puzzle_set, test_set):
    """Indices of the rows that are not in `test_set`, neither exactly nor as an equivalent puzzle.

    Compares fingerprints that no symmetry of Sudoku changes. Two puzzles that differ may have the same one; then
    a training row is left out without need, but an equivalent puzzle is never kept.
    """
    return np.flatnonzero(~np.isin(fingerprints(puzzle_set), fingerprints(test_set)))


def fingerprints(puzzle_set):
    """uint64 [n]: the same number for puzzles that are equal under a symmetry (lines, digits, transposition)."""
    result = np.empty(len(puzzle_set), np.uint64)
    for start in range(0, len(puzzle_set), 100_000):
        _fingerprint(*puzzle_set.rows(slice(start, start + 100_000)), result[start:])
    return result


@njit(cache=True, nogil=True)
def _mix(value):
    """A 64-bit hash (splitmix64): sums of such numbers are practically never equal by chance."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def _fingerprint(puzzle, solution, result):
    """Gives every cell a colour: first clue or blank, then twice a hash of the colours in its units and digit.

    Sums do not depend on the order, and rows and columns are treated alike, so no symmetry changes the result.
    """
    unit = np.empty((4, 9), np.uint64)
    for i in range(len(puzzle)):
        colour = np.where(puzzle[i] > 0, np.uint64(0x9E3779B97F4A7C15), np.uint64(0x3C6EF372FE94F82A))
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
        result[i] = _mix(colour).sum()
