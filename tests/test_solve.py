"""solve.py: puzzles in every form, weights that fit or not, verdicts by the rules alone, exit statuses."""

import importlib
import io
import json
import os
import subprocess
import sys
from typing import Literal

import numpy as np
import pytest
import torch

import common
import exp_suppose
import lineage
import solve
import sudoku
from data import sources
from tests.experiments import ROOT, load, names

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
    monkeypatch.setattr(lineage, "module", importlib.import_module)
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
        ("5" + PUZZLE[1:8] + "5" + PUZZLE[9:], ["row 1 has 5 in r1c1, r1c9"]),
        (PUZZLE[:10] + "5" + PUZZLE[11:], ["box 1 has 5 in r1c1, r2c2"]),
        ("id,puzzle\n1\n", ["line 2", "0 characters"]),
        ("", ["holds no puzzle"]),
        ("\0" * 300, ["line 1", "300 characters"]),
        ("\x89PNG\0\xff", ["puzzles cannot be read as UTF-8 text"]),
        ("1" * 200_000, ["line 1", "200000 characters"]),
        ("1," * 200_000, ["line 1", "400000 characters"]),
        (f"puzzle,note\n{'1' * 200_000},a\n", ["line 2", "200000 characters"]),
        (f"puzzle,note\r{PUZZLE[:-1]},a\r", ["line 2", "80 characters"]),
    ],
)
def test_invalid_puzzles_are_named(text, words, clean, capsys):
    (clean / "puzzles").write_bytes(text.encode("latin-1"))
    refused(capsys, ["puzzles"], *words)


def test_refused_arguments(clean, capsys):
    refused(capsys, [], "give a puzzle")
    refused(capsys, ["puzzels.txt"], "puzzels.txt", "no such file", "11 characters")
    refused(capsys, ["."], ". cannot be read", "directory")
    refused(capsys, ["/proc/self/mem"], "/proc/self/mem")
    for count in ("0", "-5"):
        refused(capsys, [PUZZLE, "--iterations", count], f"--iterations {count}")
    for flags in (["--weigths", "x"], ["--iterations", "nan"], ["--device", "gpu"]):
        with pytest.raises(SystemExit) as stop:
            solve.main([PUZZLE, *flags])
        assert stop.value.code == 2


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_missing_device_is_not_an_error_of_the_weights(device, untrained, capsys):
    if getattr(torch, device).is_available():
        pytest.skip(f"there is {device} here")
    refused(capsys, [PUZZLE, "--weights", "nowhere.pt", "--device", device], f"--device {device}")


def test_a_device_that_the_experiment_does_not_know(clean, capsys, monkeypatch):
    monkeypatch.setattr(solve, "pick_device", torch.device)
    monkeypatch.setitem(exp_suppose.Config.__annotations__, "device", Literal["cpu"])
    refused(capsys, [PUZZLE, "--device", "cuda"], "--device cuda: exp_suppose.py runs on cpu only")


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
    assert "weights: right.pt (logician.py, 1 parameters)" in output
    assert "logician.py has no such field: gone" in output


def test_it_stops_at_the_first_legal_board_unless_told_to_go_on(logician):
    first, all_of_them = (solve.read(PUZZLE) for _ in range(2))
    model = solve.load("right.pt", torch.device("cpu"), solve.Console(quiet=True))
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
    solve.solve(solve.load("wrong.pt", torch.device("cpu"), solve.Console()), [p], solve.Arguments(), True)
    message, _ = next(solve.conflicts(p.boards[-1]))
    assert message in output
    assert (p.boards[:, p.cells > 0] == p.cells[p.cells > 0]).all()


def test_rules():
    board = np.array(cells(ANSWER), np.uint8)
    assert solve.violations(board) == 0 and not list(solve.conflicts(board))
    board[0] = 3  # a 5 less, a second 3: in row 1, column 1, box 1
    assert solve.violations(board) == 3
    assert [(message, list(where)) for message, where in solve.conflicts(board)] == [
        ("row 1 has 3 in r1c1, r1c2", [0, 1]),
        ("column 1 has 3 in r1c1, r9c1", [0, 72]),
        ("box 1 has 3 in r1c1, r1c2", [0, 1]),
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


def test_default_weights(logician, clean, capsys):
    def chosen():
        assert solve.main([PUZZLE]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights: ")]
        return line.removeprefix("weights: ").split(" (logician.py")[0]

    saved = torch.load("right.pt")
    refused(capsys, [PUZZLE], "weights/suppose.pt does not exist")
    (clean / "weights").mkdir()
    (clean / "right.pt").rename("weights/suppose.pt")
    assert chosen() == str(clean / "weights/suppose.pt")
    runs = [("old", "full", 4), ("new", "full", 4), ("cut", "full", 3), ("mini", "mini", 4), ("smoke", "smoke", 4)]
    for age, (name, preset, step) in enumerate(runs):
        folder = clean / f"runs/exp_speedrun/{name}"
        folder.mkdir(parents=True)
        config = saved["config"] | {"preset": preset, "steps": 4}
        torch.save(saved | {"config": config, "step": step}, folder / "checkpoint.pt")
        os.utime(folder / "checkpoint.pt", (1000 + age,) * 2)
    assert chosen() == "runs/exp_speedrun/new/checkpoint.pt"
    assert solve.main([PUZZLE, "--weights", "runs/exp_speedrun/smoke"]) == 0
    assert "weights: runs/exp_speedrun/smoke/checkpoint.pt" in capsys.readouterr().out
    for name in ("old", "new"):
        (clean / f"runs/exp_speedrun/{name}/checkpoint.pt").unlink()
    assert chosen() == str(clean / "weights/suppose.pt")
    torch.save({"model": 1}, "runs/exp_speedrun/smoke/checkpoint.pt")
    assert chosen() == str(clean / "weights/suppose.pt")


@pytest.mark.parametrize("name", names())
def test_a_checkpoint_of_any_experiment(name, clean):
    module = load(name)
    config = common.with_preset(module.Config(), "smoke")
    through_json = json.loads(json.dumps(vars(config)))  # as in a run: tuples have become lists
    torch.save({"experiment": name, "config": through_json, "model": module.Model(config).state_dict()}, "x.pt")
    (p,) = solve.read(PUZZLE)
    solve.iterate(solve.load("x.pt", torch.device("cpu"), solve.Console()), [p], 1, False, True)
    assert p.boards.shape == (1, 81)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experiment": "os"}, "x.pt cannot be used"),
        ({"experiment": "exp_unheard_of"}, "exp_unheard_of"),
        ({"experiment": None}, "None"),
        ({"experiment": "solve"}, "x.pt cannot be used"),
        ({"config": {"width": 24}}, "x.pt cannot be used"),
        ({"config": {"width": "wide"}}, "x.pt cannot be used"),
        ({"config": None}, "x.pt cannot be used"),
        ({"model": {}}, "x.pt cannot be used"),
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
    torch.save({"experiment": "sudoku"}, "x.pt")
    refused(capsys, [PUZZLE, "--weights", "x.pt"], "x.pt cannot be used")
    for value in (float("nan"), float("inf")):
        save("x.pt", lambda state: state["model"]["head.weight"][0, 0].fill_(value))  # noqa: B023
        refused(capsys, [PUZZLE, "--weights", "x.pt"], "x.pt", "not finite")
    (clean / "run/checkpoint.pt").mkdir(parents=True)
    for path in ("weightless", "run", "run/checkpoint.pt"):
        refused(capsys, [PUZZLE, "--weights", path], path)


def test_flipped_bits(untrained, clean, capsys):
    content = (clean / "wrong.pt").read_bytes()
    weights = torch.load("wrong.pt")["model"]["head.weight"].numpy().tobytes()
    at = content.index(weights)
    (clean / "x.pt").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    refused(capsys, [PUZZLE, "--weights", "x.pt"], "x.pt is not a whole checkpoint")


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


@pytest.mark.parametrize("name", [".", "a.xyz", "nowhere/a.png", "1.5", "folder.png", "readonly/a.png", "readonly.svg"])
def test_a_picture_that_cannot_be_written_is_refused_before_the_solving(name, logician, clean, capsys, monkeypatch):
    (clean / "folder.png").mkdir()
    (clean / "readonly").mkdir()
    (clean / "readonly.svg").touch()
    allowed = os.access  # root may write everywhere, so the test says itself what is read-only
    monkeypatch.setattr(os, "access", lambda path, mode: "readonly" not in str(path) and allowed(path, mode))
    monkeypatch.setattr(solve, "read", lambda word: pytest.fail("the puzzle was read first"))
    refused(capsys, [PUZZLE, *logician, "--plot", name], f"--plot {name}")
    refused(capsys, [PUZZLE, *logician, "--plot", name, "--quiet"], f"--plot {name}")


def test_a_picture_of_several_puzzles(logician, clean, capsys):
    refused(capsys, [PUZZLE, PUZZLE, *logician, "--plot", "x.png"], "one puzzle")
    assert not (clean / "x.png").exists()


def test_as_a_script(untrained):
    command = [sys.executable, ROOT / "solve.py", "-", "--quiet", *untrained]
    done = subprocess.run(command, input=PUZZLE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stdout == "." * 81 + "\n"
    assert "standard input, line 1: wrong after 5 iterations" in done.stderr


def test_a_reader_that_stops_early(clean):
    (clean / "many.txt").write_text(f"{PUZZLE[:-1]}\n" * 3000)
    command = f"'{sys.executable}' '{ROOT}/solve.py' many.txt | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("many.txt, line 1") and not done.stderr
