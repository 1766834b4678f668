"""Reads puzzles from CSV files: every row is checked, and the result is kept in binary form in the cache folder.

    puzzles = rows.read_csv("my.csv")

The names in the header say which form a file has: that of sudoku-extreme (source,question,answer,rating), of the
Kaggle set of 3 million (id,puzzle,solution,clues,difficulty) or of 9 million (puzzle,solution: rating 0). Columns
may come in any order, with others beside them; a blank is '.' or '0'. Empty lines are skipped.

The csv module splits the lines: pandas.read_csv is not faster and does not notice that fields are missing.
"""

import csv
import hashlib
import os
import re
import sys
import zlib
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np

from data import store

VERSION = 1  # raise it when the same file gives another set, so that caches are made again
FORMS = (("question", "answer", "rating"), ("puzzle", "solution", "difficulty"), ("puzzle", "solution"))
EXPECTED = "source,question,answer,rating or id,puzzle,solution,clues,difficulty or puzzle,solution"
SHOWN = 5  # wrong rows that an error describes one by one
BATCH = 500  # rows checked at once; larger batches leave the processor cache and are slower
LONGEST = 131_072  # characters in a line; the csv module has the same limit for a field
NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

DIGIT = np.full(256, 255, np.uint8)  # a character's code -> its digit (a blank: 0), or 255
DIGIT[[ord(character) for character in ".0123456789"]] = [0, *range(10)]
BIT = np.zeros(256, np.uint16)  # a digit -> the bit that stands for it
BIT[1:10] = 1 << np.arange(1, 10)
CELLS = np.arange(81).reshape(9, 9)
BOXES = CELLS.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)
UNITS = np.concatenate([CELLS, CELLS.T, BOXES])  # the cells of each row, column and box


def missing(boards):
    """int [..., 27]: how many digits each row, column and box of full boards [..., 81] lacks; 0: it obeys the rules."""
    found = np.bitwise_or.reduce(1 << np.asarray(boards)[..., UNITS].astype(np.int16), -1)
    return 9 - np.bitwise_count(found).astype(int)


def read_csv(path):
    """The puzzles of a CSV file as a PuzzleSet; parsed again only when the file has changed."""
    path = Path(os.path.expanduser(path))
    with _opened(path, mode="rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    made_by = {"reader": VERSION, "csv": str(path.resolve()), "sha256": checksum}
    name = f"csv-{path.stem[:40]}-{zlib.crc32(made_by['csv'].encode()):08x}.npy"
    return store.load_or_make(store.cache_folder() / name, made_by, lambda: parse(path))


def fetched(what, download, remedy):
    """The path that `download` returns. Any failure ends the program with one line."""
    try:
        return Path(download())
    except Exception as error:  # no network, no account, a full disk, no client: each has a class of its own
        reason = _shortened(" ".join(str(error).split()), 160)
        raise SystemExit(f"{what}: the download failed ({type(error).__name__}: {reason}); {remedy}") from None


def parse(path, rows=None):
    """The puzzles of a CSV file, which should have `rows` rows; nothing is cached."""
    path = Path(os.path.expanduser(path))
    records = _records(path)
    line, names = next(records, (1, None))
    if names is None:
        raise ValueError(f"{path}: the file is empty; expected a header ({EXPECTED}) and a line for each puzzle")
    if isinstance(names, str):
        raise ValueError(f"{path}: line {line}: {names}; correct the header")
    names = [name.strip().lower() for name in names]
    chosen = _columns(path, line, names)
    places = [names.index(name) for name in chosen]
    tables, hashes, shown, total, bad = [], [], [], 0, 0
    while batch := list(islice(records, BATCH)):
        wrong, lines, values = {}, [], []
        for line, fields in batch:
            if isinstance(fields, str):
                wrong[line] = fields
            elif len(fields) != len(names):
                wrong[line] = f"expected {len(names)} fields, found {len(fields)}"
            else:
                lines.append(line)
                values.append([fields[place] for place in places])
        if values:
            table, faults = _check(chosen, *map(list, zip(*values)))
            wrong |= {lines[row]: fault for row, fault in faults.items()}
            tables.append(table)
            hashes.append(np.array([hash(puzzle.replace(".", "0")) for puzzle, *_ in values]))
        total += len(batch)
        bad += len(wrong)
        shown += [f"{path}: line {line}, {wrong[line]}" for line in sorted(wrong)[: SHOWN - len(shown)]]
    if bad:
        count = f"{bad:,} of {total:,} rows {'is' if bad == 1 else 'are'} wrong"
        count += f", of which the first {SHOWN} are above" if bad > SHOWN else ""
        shown.append(f"{path}: {count}; correct or delete what is wrong, then run the same command again")
        raise ValueError("\n".join(shown))
    if not total:
        raise ValueError(f"{path}: only a header; expected a line for each puzzle below it")
    if rows not in (None, total):
        raise ValueError(
            f"{path}: expected {rows:,} rows, found {total:,}: the file is cut short or another one; "
            "delete it and fetch it again"
        )
    duplicates = total - len(np.unique(np.concatenate(hashes)))
    if duplicates:
        print(f"{path}: {duplicates:,} rows repeat the puzzle of another row; they are kept", file=sys.stderr)
    print(f"{path}: not checked: that each puzzle has a single solution; check with data.solver.solve", file=sys.stderr)
    return store.PuzzleSet(np.concatenate(tables), {"duplicates": duplicates})


@contextmanager
def _opened(path, **options):
    """The open file; one that cannot be read is an error of one line."""
    if not os.path.isfile(path):
        problem = "not a file" if os.path.exists(path) else "there is no such file"
        raise ValueError(f"{path}: {problem}; expected a CSV file's path")
    try:
        with open(path, **options) as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{path}: cannot be read ({reason}); check the file and its permissions") from None


def _records(path):
    """(first line, fields) of each row; of a row that is not valid CSV, (first line, what is wrong)."""
    with _opened(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        before = os.fstat(file.fileno())
        reader = csv.reader(_lines(path, file), strict=True)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                fields = f"expected a quoted field to end with a quote and a comma or the end of the line ({error})"
            if fields:
                yield line, fields
        after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ValueError(f"{path}: the file changed while it was read; run the same command again when it is complete")


def _lines(path, file):
    for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), ""), 1):
        if len(line) > LONGEST:
            raise ValueError(f"{path}: line {number}: expected at most {LONGEST:,} characters; is this a CSV file?")
        yield line


def _columns(path, line, names):
    """The names of the columns that hold puzzle, solution and (except in the last form) rating."""
    for form in FORMS[:2]:
        if set(form) <= set(names) and all(names.count(name) == 1 for name in form):
            return form
    if sorted(names) == sorted(FORMS[2]):  # no other columns: a rating under another name would be lost
        return FORMS[2]
    form = max(FORMS[:2], key=lambda form: len(set(form) & set(names)))
    missing = [name for name in form if name not in names]
    problem = f"no column {' or '.join(missing)}" if missing else "a column comes twice"
    raise ValueError(
        f"{path}: line {line}: {problem}; expected the header {EXPECTED}, "
        f"found {_shortened(','.join(names), 80)!r}; name the columns so in line {line}"
    )


def _shortened(text, longest=30):
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _check(columns, puzzles, solutions, ratings=()):
    """(a table of these rows, {row: the first fault in it}); the table is None if there are faults."""
    faults, boards = {}, []

    def note(row, column, fault):
        faults.setdefault(row, f"column {column}: {fault}")

    for column, texts, lowest in zip(columns, (puzzles, solutions), (0, 1)):
        for row, text in enumerate(texts):
            if len(text) != 81:
                note(row, column, f"expected 81 characters, found {len(text)}: {_shortened(text)!r}")
                texts[row] = "1" * 81  # stands in for the text in the checks that follow
        characters = "".join(texts).encode("ascii", "replace")  # one byte for each character
        board = DIGIT[np.frombuffer(characters, np.uint8)].reshape(-1, 81)
        expected = "1 to 9" if lowest else "1 to 9 or a blank, '.' or '0',"
        for row, cell in _first((board < lowest) | (board > 9)):
            note(row, column, f"expected {expected} as character {cell + 1}, found {texts[row][cell]!r}")
        boards.append(board)
    puzzle, solution = boards
    for row, unit in _first(np.bitwise_or.reduce(BIT[solution][:, UNITS], axis=2) != BIT.sum()):
        name = f"{('row', 'column', 'box')[unit // 9]} {unit % 9 + 1}"
        digit = np.bincount(solution[row, UNITS[unit]]).argmax()
        note(row, columns[1], f"expected each digit once in {name}, found {digit} twice")
    for row, cell in _first((puzzle != 0) & (puzzle != solution)):
        expected, found = puzzle[row, cell], solution[row, cell]
        note(row, columns[1], f"expected the puzzle's clue {expected} as character {cell + 1}, found {found}")
    rating = np.array([float(text) if NUMBER.fullmatch(text) else -1 for text in ratings] or [0] * len(puzzle))
    for row in np.flatnonzero((rating < 0) | (rating > 3e38)):  # float32 ends at 3.4e38
        note(row, columns[2], f"expected a number, 0 or more, found {_shortened(ratings[row])!r}")
    return (None if faults else store.from_arrays(puzzle, solution, rating).table), faults


def _first(wrong):
    """(row, place) of the first True in each row that has one."""
    return [(row, wrong[row].argmax()) for row in np.flatnonzero(wrong.any(1))]
