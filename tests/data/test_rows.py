"""data/rows.py: CSV files in every form; every kind of wrong row is named by line and column; the cache."""

import os
import re

import numpy as np
import pytest

from data import rows
from tests.data.puzzles import GRID, lines, make, write_extreme, write_kaggle

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SHIFTED = "".join("123456789123456789"[row : row + 9] for row in range(9))  # rows and columns are right, boxes not
HEADER = "source,question,answer,rating"
GOOD = f"web,{PUZZLE},{GRID},3"


@pytest.fixture(autouse=True)
def cache_here(clean, monkeypatch):
    monkeypatch.setenv("SUDOKU_DATA", str(clean / "cache"))


def write(text):
    with open("my.csv", "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
    return "my.csv"


def read(text):
    return rows.read_csv(write(text))


def complaint(text):
    with pytest.raises(ValueError) as caught:
        read(text)
    return str(caught.value)


def test_extreme_and_kaggle_files_give_the_same_set(clean):
    puzzles = make(700, ratings=(0, 1, 2.5, 117))
    for path in (write_extreme(clean / "a.csv", puzzles), write_kaggle(clean / "b.csv", puzzles)):
        assert np.array_equal(rows.read_csv(path).table, puzzles.table)


def test_kaggles_nine_million_have_no_rating():
    puzzles = make(20)
    body = [f"{puzzle},{solution}" for puzzle, solution, _ in lines(puzzles, blank="0")]
    assert np.array_equal(read("\n".join(["puzzle,solution", *body])).table, puzzles.table)


DIALECTS = {
    "CRLF": f"{HEADER}\r\n{GOOD}\r\n{GOOD[:-1]}4\r\n",
    "no final newline": f"{HEADER}\n{GOOD}\n{GOOD[:-1]}4",
    "CRLF, no final newline": f"{HEADER}\r\n{GOOD}\r\n{GOOD[:-1]}4",
    "byte order mark": f"\ufeffquestion,answer,rating\n{GOOD[4:]}\n{GOOD[4:-1]}4\n",
    "quoted commas": f'{HEADER}\n"a, b",{PUZZLE},{GRID},3\n"a ""b"", c","{PUZZLE}","{GRID}","4"\n',
    "quoted, CRLF": f'{HEADER}\r\n"",{PUZZLE},{GRID},"3"\r\n"x\ny",{PUZZLE},{GRID},"4"\r\n',
    "quoted header": f'"source","question","answer","rating"\n{GOOD}\n{GOOD[:-1]}4\n',
    "capitals and spaces": f"Source, Question, Answer, Rating\n{GOOD}\n{GOOD[:-1]}4\n",
    "another order": f"rating,answer,extra,question\n3,{GRID},x,{PUZZLE}\n4,{GRID},,{PUZZLE}\n",
    "empty lines": f"{HEADER}\n\n{GOOD}\r\n\r\n{GOOD[:-1]}4\n\n\n",
    "zeros for blanks": f"{HEADER}\n{GOOD.replace('.', '0')}\n{GOOD[:-1]}4\n",
}


@pytest.mark.parametrize("text", DIALECTS.values(), ids=DIALECTS.keys())
def test_dialects(text):
    puzzles = read(text)
    puzzle, solution = puzzles.rows([0, 1])
    assert puzzles.rating.tolist() == [3, 4]
    for row in range(2):
        assert "".join(map(str, puzzle[row])) == PUZZLE.replace(".", "0")
        assert "".join(map(str, solution[row])) == GRID


@pytest.mark.parametrize("text", ["0", "7", "2.5", "1e3", "12.50E-1", ".5", "3.", "0.1", "16777217"])
def test_ratings(text):
    assert read(f"{HEADER}\n{GOOD[:-1]}{text}\n").rating[0] == np.float32(text)


WRONG = {
    "short puzzle": (GOOD.replace(PUZZLE, PUZZLE[:-1]), "column question: expected 81 characters, found 80: '53..7"),
    "long answer": (GOOD.replace(GRID, GRID + "1"), "column answer: expected 81 characters, found 82: '5346"),
    "no puzzle": (GOOD.replace(PUZZLE, ""), "column question: expected 81 characters, found 0: ''"),
    "letter": (
        GOOD.replace(PUZZLE, "53x" + PUZZLE[3:]),
        "column question: expected 1 to 9 or a blank, .* 3, found 'x'",
    ),
    "blank in answer": (
        GOOD.replace(GRID, "5." + GRID[2:]),
        r"column answer: expected 1 to 9 as character 2, found '\.'",
    ),
    "0 in answer": (GOOD.replace(GRID, GRID[:-1] + "0"), "column answer: expected 1 to 9 as character 81, found '0'"),
    "bullet": (GOOD.replace(PUZZLE, "•" + PUZZLE[1:]), "column question: .* as character 1, found '•'"),
    "twice": (GOOD.replace(GRID, "535" + GRID[3:]), "column answer: expected each digit once in row 1, found 5 twice"),
    "clue": (
        GOOD.replace(PUZZLE, PUZZLE[:2] + "1" + PUZZLE[3:]),
        "column answer: expected the puzzle's clue 1 as character 3, found 4",
    ),
    "rating word": (GOOD[:-1] + "hard", "column rating: expected a number, 0 or more, found 'hard'"),
    "rating empty": (GOOD[:-1], "column rating: expected a number, 0 or more, found ''"),
    "rating nan": (GOOD[:-1] + "nan", "column rating: .* found 'nan'"),
    "rating negative": (GOOD[:-1] + "-1", "column rating: .* found '-1'"),
    "rating huge": (GOOD[:-1] + "1e99", "column rating: .* found '1e99'"),
    "rating 1.2.3": (GOOD[:-1] + "1.2.3", "column rating: .* found '1.2.3'"),
    "rating 1e": (GOOD[:-1] + "1e", "column rating: .* found '1e'"),
    "rating point": (GOOD[:-1] + ".", "column rating: .* found '.'"),
    "few fields": (f"{PUZZLE},{GRID},3", "expected 4 fields, found 3"),
    "many fields": (GOOD + ",", "expected 4 fields, found 5"),
    "after a quote": (GOOD.replace("web", '"web"x'), "expected a quoted field to end with a quote and a comma"),
    "box": (GOOD.replace(GRID, SHIFTED), "column answer: expected each digit once in box 1, found [1-9] twice"),
    "column": (GOOD.replace(GRID, "123456789" * 9), "expected each digit once in column 1, found 1 twice"),
    "two faults": (GOOD.replace(PUZZLE, "53" + PUZZLE)[:-1] + "x", "column question: expected 81 characters, found 83"),
}


@pytest.mark.parametrize("line, expected", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_row_is_named(line, expected):
    message = complaint(f"{HEADER}\n{GOOD}\n\n{line}\n{GOOD}\n")
    first, last = message.split("\n")
    assert first.startswith("my.csv: line 4")
    assert re.search(expected, first)
    assert last == "my.csv: 1 of 3 rows is wrong; correct or delete what is wrong, then run the same command again"


def test_line_numbers_count_the_lines_inside_quotes():
    message = complaint(f'{HEADER}\n"a\nb\nc",{PUZZLE},{GRID},1\n{GOOD}\n"d\ne",{PUZZLE},{GRID},x\n')
    assert message.startswith("my.csv: line 6, column rating:")


def test_line_numbers_count_empty_lines():
    message = complaint(f"\n{HEADER}\r\n\r\n\n{GOOD}\n\n\n{GOOD}x\n\n{GOOD}\n{GOOD},\n").split("\n")
    assert message[0].startswith("my.csv: line 8, column rating:")
    assert message[1].startswith("my.csv: line 11, expected 4 fields, found 5")
    assert message[2].startswith("my.csv: 2 of 4 rows are wrong; correct")


def test_a_quote_that_never_ends():
    message = complaint(f'{HEADER}\n{GOOD}\n"web,{PUZZLE},{GRID},1\n{GOOD}\n')
    assert message.startswith("my.csv: line 3, expected a quoted field to end with a quote and a comma or the end of")
    assert "1 of 2 rows is wrong" in message


def test_rows_after_one_that_is_no_csv_are_checked(monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 2)
    stray = GOOD.replace("web", '"web"x')
    message = complaint("\n".join([HEADER, GOOD, stray, GOOD, GOOD, stray, "1,2", GOOD, GOOD + "?"])).split("\n")
    assert [re.match(r"my.csv: line (\d+)", line)[1] for line in message[:-1]] == ["3", "6", "7", "9"]
    assert message[-1].startswith("my.csv: 4 of 8 rows are wrong;")


@pytest.mark.parametrize("batch", [4, 10_000])
def test_all_wrong_rows_are_counted_and_the_first_shown(monkeypatch, batch):
    monkeypatch.setattr(rows, "BATCH", batch)
    wrong = GOOD[:-1] + "?"
    message = complaint("\n".join([HEADER, GOOD, *[wrong] * 30, GOOD])).split("\n")
    assert [line.split(",")[0] for line in message[:-1]] == [f"my.csv: line {i}" for i in range(3, 8)]
    assert message[-1].startswith("my.csv: 30 of 32 rows are wrong, of which the first 5 are above; correct")


@pytest.mark.parametrize(
    "header, problem",
    [
        ("source,question,rating", "no column answer"),
        ("source,question,answer", "no column rating"),
        ("id,puzzle,solution,clues", "no column difficulty"),
        ("puzzle,solution,dificulty", "no column difficulty"),
        ("question,answer,rating,rating", "a column comes twice"),
        ("source;question;answer;rating", "no column question or answer or rating"),
        (GOOD, "no column question or answer or rating"),
    ],
)
def test_the_header(header, problem):
    message = complaint(f"{header}\n{GOOD}\n")
    assert message.startswith(f"my.csv: line 1: {problem}; expected the header source,question,answer,rating or ")
    assert f"found '{header[:70]}" in message and "\n" not in message


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "my.csv: the file is empty; expected a header"),
        (HEADER, "my.csv: only a header; expected a line for each puzzle"),
        (HEADER + "\r\n\r\n", "my.csv: only a header; expected a line for each puzzle"),
        (b"\xff\xfes\0o\0u\0", "my.csv: line 1: no column"),
        (b"\0" * 10_000, "my.csv: line 1: no column"),
        (b"\0" * 1_000_000, "my.csv: line 1: expected at most 131,072 characters"),
        ("x" * 131_073 + f"\n{GOOD}", "my.csv: line 1: expected at most 131,072 characters"),
        (f"{HEADER}\n{GOOD}\n{'x' * 200_000},{GOOD}\n", "my.csv: line 3: expected at most 131,072 characters"),
        (f'{HEADER}\n"{"y" * 100_000}\n{"x" * 100_000}",{GOOD[4:]}\n', "my.csv: line 2, expected a quoted field"),
        (f"source,question\r,answer,rating\n{GOOD}\n", "my.csv: line 1: no column answer or rating"),
        (f'"source,question\n{GOOD}\n', "my.csv: line 1: expected a quoted field"),
        (HEADER.encode("utf-16"), "my.csv: line 1: no column"),
    ],
)
def test_a_file_without_puzzles(text, expected):
    assert complaint(text).startswith(expected)


def test_a_file_in_another_encoding():
    assert read(f"{HEADER}\nété,{PUZZLE},{GRID},3\n".encode("latin-1")).rating.tolist() == [3]
    message = complaint(f"{HEADER}\n{GOOD.replace('53', 'é3', 1)}\n".encode("latin-1"))
    assert message.startswith("my.csv: line 2, column question: expected 1 to 9 or a blank, '.' or '0', as character 1")


def test_a_file_that_cannot_be_read(monkeypatch):
    write(f"{HEADER}\n{GOOD}\n")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    for function in (rows.read_csv, rows.parse):
        with pytest.raises(ValueError, match=r"my\.csv: cannot be read \(Permission denied\); check"):
            function("my.csv")


@pytest.mark.parametrize("change", ["shorter", "longer", "other content"])
def test_a_file_that_changes_while_it_is_read(monkeypatch, clean, change):
    body = "\n".join([HEADER, *[GOOD] * 5000])
    check = rows._check

    def check_and_change(*arguments):
        text = {"shorter": body[:300], "longer": body + "\n" + GOOD, "other content": body.replace("3\n", "4\n")}
        write(text[change])
        os.utime("my.csv", ns=(1, 1))
        return check(*arguments)

    monkeypatch.setattr(rows, "BATCH", 100)
    monkeypatch.setattr(rows, "_check", check_and_change)
    message = complaint(body)
    assert "my.csv: the file changed while it was read; run the same command again" in message
    assert not (clean / "cache").exists()


def test_no_such_file(clean):
    with pytest.raises(ValueError, match=r"gone\.csv: there is no such file; expected a CSV file's path"):
        rows.read_csv("gone.csv")
    (clean / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=r"folder\.csv: not a file"):
        rows.read_csv("folder.csv")


def test_repeated_puzzles_are_kept_and_counted(capsys):
    body = [",".join(("x", *line)) for line in lines(make(50))]
    assert len(read("\n".join([HEADER, *body, *body[:7]]))) == 57
    assert "my.csv: 7 rows repeat the puzzle of another row; they are kept\n" in capsys.readouterr().err


def test_a_puzzle_repeated_with_other_blanks_and_in_another_batch_counts(monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 1)
    assert read(f"{HEADER}\n{GOOD}\n{GOOD.replace('.', '0')}\n").meta["duplicates"] == 1


def test_it_says_what_was_not_checked(capsys):
    read(f"{HEADER}\n{GOOD}\n")
    assert "not checked: that each puzzle has a single solution; " in capsys.readouterr().err


def test_the_file_is_parsed_once(monkeypatch, capsys):
    first = read(f"{HEADER}\n{GOOD}\n")
    capsys.readouterr()
    monkeypatch.setattr(rows, "parse", None)
    again = rows.read_csv("my.csv")
    assert np.array_equal(first.table, again.table) and isinstance(again.table, np.memmap)
    assert capsys.readouterr().err == ""


def test_a_changed_file_is_noticed(clean, capsys):
    read(f"{HEADER}\n{GOOD}\n")
    before = os.stat("my.csv")
    write(f"{HEADER}\n{GOOD[:-1]}8\n")  # as long as it was, and with the same time
    os.utime("my.csv", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert rows.read_csv("my.csv").rating.tolist() == [8]
    assert "its source has changed; making it again" in capsys.readouterr().err
    assert len(list((clean / "cache").glob("*.npy"))) == 1  # the old one is replaced


def test_files_of_one_name_do_not_share_a_cache(clean):
    for rating, name in enumerate(("a", "b")):
        (clean / name).mkdir()
        (clean / name / "my.csv").write_text(f"{HEADER}\n{GOOD[:-1]}{rating}\n")
    assert [rows.read_csv(clean / name / "my.csv").rating[0] for name in "abab"] == [0, 1, 0, 1]


def test_a_broken_cache_is_made_again(clean, capsys):
    read(f"{HEADER}\n{GOOD}\n")
    path = next((clean / "cache").glob("csv-my-*.npy"))
    path.write_bytes(path.read_bytes()[:-1])
    assert len(rows.read_csv("my.csv")) == 1
    assert re.search("truncated .*; making it again\n", capsys.readouterr().err)
    rows.read_csv("my.csv")
    assert capsys.readouterr().err == ""


def test_a_wrong_file_leaves_no_cache(clean):
    complaint(f"{HEADER}\n{GOOD}x\n")
    assert not (clean / "cache").exists()
