"""solve.py: puzzles in every form, weights that fit or not, verdicts by the rules alone, exit statuses."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import common
import solve
import sudoku
from data import sources
from tests.experiments import ROOT

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
TWO_SOLUTIONS = ANSWER.translate(str.maketrans("12", ".."))  # 1 and 2 can change places
ROWS = [PUZZLE[i : i + 9] for i in range(0, 81, 9)]

# An experiment that needs no training: its network rules out what a cell's row, column and box hold already.
LOGICIAN = """
from dataclasses import dataclass
import torch
import torch.nn.functional as F
from solve import UNITS

@dataclass
class Config:
    phases: tuple = ((1, 0.0),)

class Model(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        hash(config.phases)  # a list would not do
        self.sharp = torch.nn.Parameter(torch.zeros(1))
        sees = torch.zeros(81, 81)
        for unit in torch.tensor(UNITS):
            sees[unit[:, None], unit] = 1
        self.register_buffer("sees", sees - torch.eye(81), persistent=False)

    def forward(self, puzzle, iterations):
        fixed = F.one_hot(puzzle, 10)[..., 1:].float()
        for _ in range(iterations):
            possible = (self.sees @ fixed == 0).float() * (1 - fixed.sum(-1, keepdim=True)) + fixed
            fixed = possible * (possible.sum(-1, keepdim=True) == 1)
            yield possible * self.sharp
"""


@pytest.fixture
def logician(clean, monkeypatch):
    """Flags for weights that solve what can be solved by naked singles."""
    (clean / "logician.py").write_text(LOGICIAN)
    monkeypatch.syspath_prepend(clean)
    monkeypatch.setattr(solve, "ROOT", clean)
    config = {"phases": [[1, 0.0]], "gone": 3}
    torch.save({"experiment": "logician", "config": config, "model": {"sharp": torch.tensor([9.0])}}, "right.pt")
    yield ["--weights", "right.pt"]
    sys.modules.pop("logician", None)


@pytest.fixture
def untrained(clean):
    """Flags for random weights of the baseline."""
    save("wrong.pt")
    return ["--weights", "wrong.pt", "--iterations", "5"]


def save(path, change=lambda state: None):
    torch.manual_seed(0)
    config = common.with_preset(sudoku.Config(), "smoke")
    model = sudoku.Model(config)
    state = {
        "experiment": "sudoku",
        "config": vars(config) | {"edges": list(config.edges)},
        "model": model.state_dict(),
    }
    change(state)
    torch.save(state, path)


def cells(text):
    return [int(c) for c in text.replace(".", "0")]


def refused(capsys, argv, *words):
    assert solve.main(argv) == 2
    output = capsys.readouterr()
    for word in words:
        assert word in output.out + output.err


# ---------------------------------------------------------------- puzzles in


GRID = "\n".join(ROWS)
DRAWN = "\n".join(
    "------+-------+------" if row is None else " | ".join(" ".join(row[i : i + 3]) for i in (0, 3, 6))
    for row in [*ROWS[:3], None, *ROWS[3:6], None, *ROWS[6:]]
)


@pytest.mark.parametrize(
    "text",
    [
        f"{PUZZLE}\n{PUZZLE.replace('.', '0')}\n",
        f"# two\r\n{PUZZLE}\r\n\r\n{PUZZLE}",
        f"{GRID}\n{GRID}",
        f"{GRID}\n\n{PUZZLE}\n",
        f"{DRAWN}\n\n{DRAWN}\n",
        f"\ufeffsource,question,answer,rating\nx,{PUZZLE},{ANSWER},3\ny,{PUZZLE},{ANSWER},4\n",
        f'puzzle,solution\n"{PUZZLE}",{ANSWER}\n{PUZZLE},{ANSWER}\n',
    ],
    ids=["lines", "comment", "grids", "mixed", "drawn", "extreme", "kaggle"],
)
def test_forms(text, clean, monkeypatch):
    (clean / "puzzles").write_bytes(text.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    for word in ("puzzles", "-"):
        puzzles = solve.read(word)
        assert [p.problem for p in puzzles] == ["", ""]
        assert all(p.cells.tolist() == cells(PUZZLE) for p in puzzles)


def test_a_puzzle_as_argument(clean):
    for text in (PUZZLE, PUZZLE.replace(".", "0"), GRID, " ".join(ROWS)):
        assert solve.read(text)[0].cells.tolist() == cells(PUZZLE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PUZZLE[:-1], ["line 1", "80 characters, expected 81"]),
        (PUZZLE + "1", ["82 characters"]),
        (f"# one\n{PUZZLE[:13]}x{PUZZLE[14:]}", ["line 2", "character 14 (row 2, column 5) is 'x'"]),
        (GRID[:-1], ["row 9 has 8 characters, expected 9"]),
        ("\n".join(ROWS[:7]), ["line 1", "63 characters, expected 81"]),
        ("5" + PUZZLE[1:8] + "5" + PUZZLE[9:], ["row 1 has the clue 5 in r1c1, r1c9"]),
        (PUZZLE[:10] + "5" + PUZZLE[11:], ["box 1 has the clue 5 in r1c1, r2c2"]),
        ("id,puzzle\n1\n", ["line 2", "0 characters"]),
        ("", ["holds no puzzle"]),
        ("\x89PNG\0\xff", ["line 1"]),
    ],
)
def test_invalid_puzzles_are_named(text, words, clean, capsys):
    (clean / "puzzles").write_bytes(text.encode("latin-1"))
    refused(capsys, ["puzzles"], *words)


def test_refused_arguments(clean, capsys):
    refused(capsys, [], "give a puzzle")
    refused(capsys, ["puzzels.txt"], "puzzels.txt", "no such file", "11 characters")
    refused(capsys, ["."], "directory")
    refused(capsys, [PUZZLE, "--iterations", "0"], "--iterations 0")
    refused(capsys, [PUZZLE, PUZZLE, "--plot", "x.png"], "one puzzle")
    with pytest.raises(SystemExit) as stop:
        solve.main([PUZZLE, "--weigths", "x"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("puzzle", "words"),
    [("." * 81, "more than one solution"), ("12345678." + "." * 35 + "9" + "." * 36, "no solution")],
)
def test_an_improper_puzzle_is_not_the_networks_fault(puzzle, words, untrained, capsys):
    refused(capsys, [puzzle, *untrained], f"invalid: it has {words}")


def test_check_finds_a_second_solution_although_the_board_is_legal(logician, capsys):
    (solve.ROOT / "logician.py").write_text(LOGICIAN.replace("yield possible *", f"possible = F.one_hot(torch.tensor("
        f"{cells(ANSWER)})[None] - 1, 9)\n            yield possible *"))  # fmt: skip
    assert solve.main([TWO_SOLUTIONS, *logician]) == 0
    refused(capsys, [TWO_SOLUTIONS, *logician, "--check"], "more than one solution")
    assert solve.main([PUZZLE, *logician, "--check"]) == 0


# ---------------------------------------------------------------- verdicts


def test_a_right_board(logician, capsys):
    assert solve.main([PUZZLE, *logician]) == 0
    output = capsys.readouterr().out
    assert "5 3 4 | 6 7 8 | 9 1 2" in output
    assert "of 51 blanks" in output and "\x1b" not in output
    assert "all rows, columns and boxes hold 1 to 9, all clues stand" in output
    assert "note: logician.py has no gone any more" in output
    assert "weights: right.pt (logician.py, 1 parameters)" in output


def test_it_stops_at_the_first_legal_board_unless_told_to_go_on(logician):
    first, all_of_them = (solve.read(PUZZLE) for _ in range(2))
    model = solve.load(solve.choose_weights("right.pt"), "cpu", solve.Console(quiet=True))
    solve.solve(model, first, solve.Arguments(iterations=40), history=True)
    solve.solve(model, all_of_them, solve.Arguments(iterations=40, keep_going=True), history=True)
    (short,), (long,) = first, all_of_them
    assert 1 < short.iterations < long.iterations == 40
    assert short.boards.shape == short.confidence.shape == (short.iterations, 81)
    assert (long.boards[: short.iterations] == short.boards).all()
    assert solve.violations(short.boards)[-1] == 0 < solve.violations(short.boards)[:-1].min()
    settled = short.settled()
    for cell in range(81):
        column = short.boards[:, cell]
        assert (column[settled[cell] - 1 :] == column[-1]).all()
        assert settled[cell] == 1 or column[settled[cell] - 2] != column[-1]


def test_too_few_iterations_are_a_wrong_board(logician, capsys):
    assert solve.main([PUZZLE, *logician, "--iterations", "2"]) == 1
    assert "wrong after 2 iterations" in capsys.readouterr().out


def test_a_wrong_board_names_its_conflicts(untrained, capsys):
    assert solve.main([PUZZLE, *untrained]) == 1
    output = capsys.readouterr().out
    assert "wrong after 5 iterations" in output and "of 51 blanks are right" in output
    assert "more conflicts" in output
    (p,) = solve.read(PUZZLE)
    solve.solve(solve.load(solve.choose_weights("wrong.pt"), "cpu", solve.Console()), [p], solve.Arguments(), True)
    unit, digit, where = next(solve.conflicts(p.boards[-1]))
    assert f"{unit} has {digit} in {solve.names(where)}" in output
    assert (p.boards[:, p.cells > 0] == p.cells[p.cells > 0]).all()


def test_rules():
    board = np.array(cells(ANSWER), np.uint8)
    assert solve.violations(board) == 0 and not list(solve.conflicts(board))
    board[0] = 3  # a 5 less, a second 3: in row 1, column 1, box 1
    assert solve.violations(board) == 3
    assert [(unit, digit, list(where)) for unit, digit, where in solve.conflicts(board)] == [
        ("row 1", 3, [0, 1]),
        ("column 1", 3, [0, 72]),
        ("box 1", 3, [0, 1]),
    ]


def test_many_puzzles_in_batches(logician, clean, capsys):
    random = np.random.default_rng(0)
    many = sources.symmetries(*(np.array([cells(text)] * 150, np.uint8) for text in (PUZZLE, ANSWER)), random)
    puzzles, answers = (["".join(map(str, row)) for row in rows] for rows in many)
    puzzles[7] = "x" * 81
    (clean / "many.txt").write_text("\n".join(puzzles))
    assert solve.main(["many.txt", *logician]) == 2
    output = capsys.readouterr().out
    assert "150 puzzles: 149 solved, 0 wrong, 1 invalid" in output
    assert output.count("many.txt, line") == 1 and "many.txt, line 8: invalid: character 1" in output
    assert solve.main(["many.txt", *logician, "--quiet"]) == 2
    lines = capsys.readouterr().out.splitlines()
    answers[7] = "." * 81
    assert lines == answers


def test_quiet_prints_no_wrong_board(untrained, capsys):
    assert solve.main([PUZZLE, PUZZLE, *untrained, "--quiet"]) == 1
    output = capsys.readouterr()
    assert output.out == ("." * 81 + "\n") * 2
    assert "0 solved, 2 wrong" in output.err


# ---------------------------------------------------------------- weights


def test_default_weights(clean, logician, capsys, monkeypatch):
    refused(capsys, [PUZZLE], "speedrun.pt does not exist", "exp_speedrun.py")
    (clean / "weights").mkdir()
    (clean / "right.pt").rename("weights/speedrun.pt")
    assert solve.main([PUZZLE]) == 0
    assert "speedrun.pt (logician.py" in capsys.readouterr().out
    for age, name in ((100, "new"), (200, "old")):
        path = clean / f"runs/exp_speedrun/{name}/checkpoint.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes((clean / "weights/speedrun.pt").read_bytes())
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert solve.main([PUZZLE]) == 0
    assert "weights: runs/exp_speedrun/new/checkpoint.pt" in capsys.readouterr().out
    assert solve.main([PUZZLE, "--weights", "runs/exp_speedrun/old"]) == 0
    assert "weights: runs/exp_speedrun/old/checkpoint.pt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experiment": "../sudoku"}, "no file beside"),
        ({"experiment": "os"}, "no file beside"),
        ({"experiment": "exp_unheard_of"}, "no file beside"),
        ({"experiment": None}, "no file beside"),
        ({"experiment": "solve"}, "does not fit solve.py"),
        ({"config": {"width": 24}}, "does not fit sudoku.py"),
        ({"config": {"width": "wide"}}, "does not fit sudoku.py"),
        ({"config": None}, "does not fit sudoku.py"),
        ({"model": {}}, "does not fit sudoku.py"),
    ],
)
def test_weights_that_do_not_fit(change, words, clean, capsys):
    save("x.pt", lambda state: state.update(change))
    refused(capsys, [PUZZLE, "--weights", "x.pt"], "x.pt", words)


def test_broken_weights(clean, untrained, capsys):
    refused(capsys, [PUZZLE, "--weights", "nowhere.pt"], "nowhere.pt does not exist")
    whole = (clean / "wrong.pt").read_bytes()
    for content in (b"", b"text", whole[:-200], whole[:50]):
        (clean / "x.pt").write_bytes(content)
        refused(capsys, [PUZZLE, "--weights", "x.pt"], "x.pt is not a whole checkpoint")
    torch.save([1, 2], "x.pt")
    refused(capsys, [PUZZLE, "--weights", "x.pt"], "x.pt is no checkpoint of an experiment")
    save("x.pt", lambda state: state["model"]["head.weight"].fill_(float("nan")))
    assert solve.main([PUZZLE, "--weights", "x.pt", "--iterations", "2"]) == 1


# ---------------------------------------------------------------- pictures


def test_watch(logician, capsys, monkeypatch):
    assert solve.main([PUZZLE, *logician, "--watch"]) == 0
    output = capsys.readouterr().out
    assert "--watch needs a terminal" in output and "solved in" in output
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    monkeypatch.setattr(solve.time, "sleep", lambda seconds: None)
    assert solve.main([PUZZLE, *logician, "--watch"]) == 0
    output = capsys.readouterr().out
    assert "iteration 1 of" in output and "0 violations" in output and "\x1b[" in output and "solved in" in output


def test_plot(logician, clean, capsys):
    for name, start in (("a.svg", b"<?xml"), ("plain", b"\x89PNG")):
        assert solve.main([PUZZLE, *logician, "--plot", name]) == 0
        written = capsys.readouterr().out.split("wrote ")[1].strip()
        assert (clean / written).read_bytes().startswith(start)
    assert solve.main([ANSWER, *logician, "--plot", "a.png"]) == 0  # no blanks, one iteration
    refused(capsys, [PUZZLE, *logician, "--plot", "a.xyz"], "--plot a.xyz", "png")
    refused(capsys, [PUZZLE, *logician, "--plot", "nowhere/a.png"], "nowhere/a.png")


def test_as_a_script(untrained):
    command = [sys.executable, ROOT / "solve.py", "-", "--quiet", *untrained]
    done = subprocess.run(command, input=PUZZLE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stdout == "." * 81 + "\n"
    assert "standard input, line 1: wrong after 5 iterations" in done.stderr
