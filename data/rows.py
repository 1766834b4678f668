"""Reads puzzles from CSV files: every row is checked, and the result is kept in binary form in the cache folder.

    puzzles = rows.read_csv("my.csv")

The header's names say which form a file has: sudoku-extreme's (source,question,answer,rating), that of the
Kaggle set of 3 million (id,puzzle,solution,clues,difficulty) or of 9 million (puzzle,solution: rating 0). Columns
may come in any order and others beside them; a blank is '.' or '0'. An empty line is not a row.
"""

import csv
import json
import sys
import zlib
from pathlib import Path

import numpy as np
from numba import njit

from data import store

VERSION = 1  # raise it when the same file gives another set, so that caches are made again
FORMS = (("question", "answer", "rating"), ("puzzle", "solution", "difficulty"), ("puzzle", "solution"))
EXPECTED = "source,question,answer,rating or id,puzzle,solution,clues,difficulty or puzzle,solution"
SHOWN = 5  # wrong rows that an error names one by one
QUOTE, COMMA, NEWLINE, RETURN, POINT, ZERO = 34, 44, 10, 13, 46, 48
UNCLOSED, STRAY, FIELDS, LENGTH, CHARACTER, TWICE, CLUE, NUMBER = range(1, 9)  # what can be wrong with a row


class BadCsv(ValueError):
    """A CSV file that is not what it should be; the message says where, and what to do."""


def read_csv(path):
    """The puzzles of a CSV file as a PuzzleSet; parsed again only when the file has changed."""
    path = _existing(path)
    stat = path.stat()
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    made_by = {"csv": str(path.resolve()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "crc32": checksum}
    name = f"csv-{path.stem[:40]}-{zlib.crc32(made_by['csv'].encode()):08x}.npy"
    return kept(store.cache_folder() / name, made_by, lambda: parse(path))


def kept(path, made_by, make, again=False):
    """The set at `path` in the cache, if it is whole and was made by the same; else makes it and puts it there."""
    made_by = {"reader": VERSION, **made_by}
    if path.exists() and not again:
        try:
            puzzles = store.load(path)
            if puzzles.meta.get("made_by") == json.loads(json.dumps(made_by)):
                return puzzles
            reason = f"{path}: made from something else, or its source has changed"
        except store.BrokenSet as error:
            reason = str(error).rsplit(";", 1)[0]
        print(f"{reason}; making it again", file=sys.stderr)
    puzzles = make()
    store.save(path, puzzles, made_by=made_by, **puzzles.meta)
    return store.load(path)


def fetched(what, download, remedy):
    """The path that `download` returns. Whatever stops it ends the program with one line."""
    try:
        return Path(download())
    except Exception as error:  # no network, no account, a full disk, no client: each has a class of its own
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 160 else reason[:157] + "..."
        raise SystemExit(f"{what}: the download failed ({type(error).__name__}: {reason}); {remedy}") from None


def parse(path, rows=None):
    """The puzzles of a CSV file, which should have `rows` rows, straight from its bytes: nothing is cached."""
    path = _existing(path)
    if not path.stat().st_size:
        raise BadCsv(f"{path}: the file is empty; expected a header ({EXPECTED}) and a line for each puzzle")
    text = np.memmap(path, np.uint8, "r").view(np.ndarray)
    names, start = _header(text)
    chosen = _columns(path, names)
    room = _lines(text) + 1
    table, prints, faults = np.empty(room, store.ROW), np.empty(room, np.uint64), np.zeros((SHOWN, 7), np.int64)
    columns = np.array([*map(names.index, chosen), -1][:3])
    good, bad = _parse(text, start, columns, len(names), *(table[name] for name in store.ROW.names), prints, faults)
    if bad:
        shown = [f"{path}: {_describe(fault, text, chosen, len(names))}" for fault in faults[:bad]]
        count = f"{bad:,} of {good + bad:,} rows {'is' if bad == 1 else 'are'} wrong"
        if bad > SHOWN:
            count += f", of which the first {SHOWN} are above"
        shown.append(f"{path}: {count}; correct or delete what is wrong, then run the same command again")
        raise BadCsv("\n".join(shown))
    if not good:
        raise BadCsv(f"{path}: only a header; expected a line for each puzzle below it")
    if rows not in (None, good):
        raise BadCsv(
            f"{path}: expected {rows:,} rows, found {good:,}: the file is cut short or another one; "
            "delete it and fetch it again"
        )
    duplicates = good - len(np.unique(prints[:good]))
    if duplicates:
        print(f"{path}: {duplicates:,} rows repeat the puzzle of another row; they are kept", file=sys.stderr)
    return store.PuzzleSet(table[:good], {"duplicates": duplicates})


def _existing(path):
    path = Path(path).expanduser()
    if not path.is_file():
        raise BadCsv(
            f"{path}: {'not a file' if path.exists() else 'there is no such file'}; expected a CSV file's path"
        )
    return path


def _header(text):
    """(the names in the first line, where the second line begins)."""
    end = 0
    while end < len(text) and not (found := np.flatnonzero(text[end : end + 4096] == NEWLINE)).size:
        end += 4096
    end = min(len(text), end + int(found[0]) if found.size else len(text))
    line = text[:end].tobytes().decode("utf-8-sig", "replace").rstrip("\r")
    return [name.strip().lower() for name in next(csv.reader([line]), [])], end + 1


def _columns(path, names):
    """The names of the columns that hold puzzle, solution and, but for the last form, rating."""
    for form in FORMS[:2]:
        if set(form) <= set(names) and all(names.count(name) == 1 for name in form):
            return form
    if sorted(names) == sorted(FORMS[2]):  # nothing else beside them: a rating under another name would be lost
        return FORMS[2]
    form = max(FORMS[:2], key=lambda form: len(set(form) & set(names)))
    missing = [name for name in form if name not in names]
    problem = f"no column {' or '.join(missing)}" if missing else "a column comes twice"
    found = ",".join(names)
    raise BadCsv(
        f"{path}: line 1: {problem}; expected the header {EXPECTED}, "
        f"found {_quoted(found, 80)}; name the columns so in line 1"
    )


def _quoted(text, longest=30):
    return repr(text if len(text) <= longest else text[: longest - 3] + "...")


def _describe(fault, text, chosen, width):
    """One line on a row that is wrong; `fault` is what _parse noted about it."""
    line, code, column, start, end, first, second = map(int, fault)
    value = _quoted(text[start : min(end, start + 200)].tobytes().decode("utf-8", "replace"))
    where = f"line {line}, column {chosen[column]}" if column >= 0 else f"line {line}"
    if code == UNCLOSED:
        return f"{where}: expected a second quote that ends field {first}, found the end of the file"
    if code == STRAY:
        return f"{where}: expected a comma or the end of the line after the quoted field {first}, found more text"
    if code == FIELDS:
        return f"{where}: expected {width} fields, found {first}"
    if code == LENGTH:
        return f"{where}: expected 81 characters, found {end - start}: {value}"
    if code == CHARACTER:
        expected = "1 to 9 or a blank, '.' or '0'," if column == 0 else "1 to 9"
        found = text[start + first : start + first + 4].tobytes().decode("utf-8", "replace")[:1]
        return f"{where}: expected {expected} as character {first + 1}, found {found!r}"
    if code == TWICE:
        unit = f"{('row', 'column', 'box')[first // 9]} {first % 9 + 1}"
        return f"{where}: expected each digit once in {unit}, found {second} twice"
    if code == CLUE:
        clue, found = second // 10, second % 10
        return f"{where}: expected the puzzle's clue {clue} as character {first + 1}, found {found}"
    return f"{where}: expected a number, 0 or more, found {value}"


@njit(cache=True, nogil=True)
def _lines(text):
    count = 0
    for character in text:
        count += character == NEWLINE
    return count


@njit(cache=True, nogil=True)
def _parse(text, position, columns, width, solution, clues, rating, prints, faults):
    """Fills the columns of a table from `position` on; returns how many rows are good, and how many are not.

    `prints` gets a hash of each puzzle. `faults` gets the first rows that are not good: line, what is wrong,
    column, the field's start and end, and two numbers for the message.
    """
    size, line, good, bad = len(text), 1, 0, 0
    bounds, digits, fault = np.zeros((3, 2), np.int64), np.zeros(81, np.uint8), np.zeros(7, np.int64)
    while position < size:
        line += 1
        fault[:] = 0
        fault[0], fault[2] = line, -1
        fields, ended, begin = 0, False, position
        while not ended:
            if position < size and text[position] == QUOTE:
                position += 1
                start = position
                while position < size:
                    if text[position] == QUOTE:
                        if position + 1 == size or text[position + 1] != QUOTE:
                            break
                        position += 1  # two quotes stand for one
                    elif text[position] == NEWLINE:
                        line += 1
                    position += 1
                end = position
                if position >= size:
                    fault[1], fault[5] = UNCLOSED, fields + 1
                position += 1
                if position < size and text[position] == RETURN:
                    position += 1
                while position < size and text[position] != COMMA and text[position] != NEWLINE:
                    fault[1], fault[5] = STRAY, fields + 1
                    position += 1
            else:
                start = position
                while position < size and text[position] != COMMA and text[position] != NEWLINE:
                    position += 1
                end = position
                if end > start and text[end - 1] == RETURN and (end == size or text[end] == NEWLINE):
                    end -= 1
            for i in range(3):
                if columns[i] == fields:
                    bounds[i, 0], bounds[i, 1] = start, end
            fields += 1
            ended = position >= size or text[position] == NEWLINE
            position += 1
        if fields == 1 and start == end and start == begin:
            continue  # an empty line
        if fault[1] == 0 and fields != width:
            fault[1], fault[5] = FIELDS, fields
        if fault[1] == 0:
            _read(text, bounds, columns, digits, solution[good], clues[good], rating[good : good + 1], fault)
        if fault[1]:
            if bad < len(faults):
                faults[bad] = fault
            bad += 1
            continue
        print_ = np.uint64(0xCBF29CE484222325)
        for cell in range(81):
            print_ = (print_ ^ np.uint64(digits[cell])) * np.uint64(0x100000001B3)
        prints[good] = print_
        good += 1
    return good, bad


@njit(cache=True, nogil=True)
def _read(text, bounds, columns, digits, solution, clues, rating, fault):
    """Checks one row and writes it to its place in the table; `digits` gets the puzzle."""
    for i in range(2):
        start, end = bounds[i]
        fault[2], fault[3], fault[4] = i, start, end
        if end - start != 81:
            fault[1] = LENGTH
            return
        for cell in range(81):
            character = text[start + cell]
            digit = character - ZERO if character != POINT else 0
            if digit < i or digit > 9 or (i == 1 and character == POINT):
                fault[1], fault[5] = CHARACTER, cell
                return
            if i:
                solution[cell] = digit
            else:
                digits[cell] = digit
    units = np.zeros(27, np.int64)
    clues[:] = 0
    for cell in range(81):
        row, column, digit = cell // 9, cell % 9, np.int64(solution[cell])
        for unit in (row, 9 + column, 18 + row // 3 * 3 + column // 3):
            if units[unit] >> digit & 1:
                fault[1], fault[5], fault[6] = TWICE, unit, digit
                return
            units[unit] |= 1 << digit
        if digits[cell]:
            if digits[cell] != digit:
                fault[1], fault[5], fault[6] = CLUE, cell, 10 * digits[cell] + digit
                return
            clues[cell // 8] |= 128 >> cell % 8
    value = 0.0
    if columns[2] >= 0:
        fault[2], fault[3], fault[4] = 2, bounds[2, 0], bounds[2, 1]
        value = _number(text[bounds[2, 0] : bounds[2, 1]])
        if not 0 <= value < 3e38:  # float32 ends there
            fault[1] = NUMBER
            return
    rating[0] = value


@njit(cache=True, nogil=True)
def _number(text):
    """The decimal number that is written here, such as 12, 3.5 or 1e3; -1 if it is none, or below 0."""
    value, place, digits, at = 0.0, 0, 0, 0
    point = False
    while at < len(text) and text[at] | 32 != 101:  # e or E
        if text[at] == POINT and not point:
            point = True
        elif ZERO <= text[at] <= ZERO + 9:
            value = 10 * value + (text[at] - ZERO)
            digits += 1
            place += point
        else:
            return -1.0
        at += 1
    if digits == 0:
        return -1.0
    exponent, sign = 0, 1
    if at < len(text):
        at += 1
        if at < len(text) and (text[at] == 43 or text[at] == 45):  # + or -
            sign = 44 - np.int64(text[at])
            at += 1
        if at == len(text):
            return -1.0
        while at < len(text):
            if not ZERO <= text[at] <= ZERO + 9:
                return -1.0
            exponent = min(10 * exponent + np.int64(text[at] - ZERO), 1000)
            at += 1
    exponent = sign * exponent - place
    return value * 10.0**exponent if exponent >= 0 else value / 10.0**-exponent
