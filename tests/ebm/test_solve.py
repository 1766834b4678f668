"""ebm/solve.py: the energies that it shows are the model's own, both kinds of weights, what is refused, statuses."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import solve as root
from ebm import langevin, ours, solve, train
from tests import test_solve as of_root
from tests.test_solve import ANSWER, PUZZLE, TWO_SOLUTIONS, cells

EASY = "." * 9 + ANSWER[9:]  # each blank has one candidate: any weights of ebm.ours solve it
FEW = ["--iterations", "3"]


def cases(test):
    """What a test of the root's tool is parametrised with: it must hold here too."""
    return pytest.mark.parametrize(*test.pytestmark[0].args)


def save_ours(path="ours.pt", change=lambda state: None, **config):
    """An untrained model of ebm.ours. -> the model"""
    torch.manual_seed(0)
    config = ours.Config(**{"width": 8, "pool": 8, "mlp": 12} | config)
    return save(path, "ours", ours.Model(config), config, change)


def save_replica(path="replica.pt", run=4, change=lambda state: None):
    """An untrained model of ebm.train whose decoder listens to z. -> the model"""
    torch.manual_seed(0)
    model = train.Model(train.configured(run, "smoke")).eval()
    with torch.no_grad():
        model.decoder.input.weight[:, model.config.width :] *= 10
    return save(path, "ebm", model, model.config, change)


def save(path, experiment, model, config, change):
    state = {"experiment": experiment, "config": vars(config) | {}, "model": model.state_dict()}
    change(state)
    torch.save(state, path)
    return model


@pytest.fixture
def weights(clean):
    """Flags for untrained weights of ebm.ours."""
    save_ours()
    return ["--weights", "ours.pt"]


def refused(capsys, argv, *words):
    assert solve.main(argv) == 2
    output = capsys.readouterr()
    for word in words:
        assert word in output.out + output.err


def answered(capsys, argv, status):
    assert solve.main(argv) == status
    return capsys.readouterr().out


def table(output):
    """{iteration: [energy, % of the blanks settled, violations]} as printed; of the start there is the energy alone."""
    rows = output.split("iteration        energy E   blanks settled   violations\n")[1].split("violations:")[0]
    rows = [row.replace("%", "").split() for row in rows.splitlines()]
    return {int(at): [float(number) if number != "-" else None for number in row] for at, *row in rows}


def puzzle(text):
    return torch.tensor([cells(text)])


def descent(model, text, steps):
    """Energies of the start and after each step, boards after each step: as the model's own interface gives them."""
    state, boards = model.start(puzzle(text)), []
    energies = [model.energies(state).item()]
    for _ in range(steps):
        logits, state = model.iterate(state)
        energies.append(model.energies(state).item())
        boards.append(np.where(cells(text), cells(text), logits[0].argmax(-1) + 1))
    return np.array(energies), np.array(boards)


# ---------------------------------------------------------------- what is shown


def test_a_right_board(weights, capsys):
    output = answered(capsys, [EASY, *weights], 0)
    assert "weights: ours.pt (ebm/ours.py, " in output and "\x1b" not in output
    assert "5 3 4 | 6 7 8 | 9 1 2      1   1   1 |   1   1   1 |   1   1   1" in output
    assert "solved in 1 iteration: all rows, columns and boxes hold 1 to 9, all clues stand" in output
    assert list(table(output)) == [0, 1] and table(output)[1][1:] == [100, 0]


@pytest.mark.parametrize("steps", [1, 12])
def test_what_is_printed_is_the_descent(steps, clean, capsys):
    model = save_ours(descent=0.6)
    output = answered(capsys, [PUZZLE, "--weights", "ours.pt", "--iterations", str(steps)], 1)
    energies, boards = descent(model, PUZZLE, steps)
    blank = np.array(cells(PUZZLE)) == 0
    shown = table(output)
    assert list(shown) == [0, *(n for n in (1, 2, 4, 8) if n < steps), steps]
    for at, (energy, *others) in shown.items():
        assert energy == pytest.approx(energies[at], abs=6e-4)
        if at:
            stays = (boards[at - 1 :, blank] == boards[-1, blank]).all(0)
            assert others == [round(100 * stays.mean()), root.violations(boards[at - 1])]
    assert np.ptp(energies) > 1  # and there is something to see
    fell = (np.diff(energies) < 0).sum()  # no step of these is near to rounding
    assert f"E fell in {fell} of {steps} steps" in output
    assert f": from {energies[0]:.3f} to {energies[-1]:.3f}" in output


def test_it_stops_at_the_first_legal_board_unless_told_to_go_on(weights, capsys):
    short, long = (answered(capsys, [EASY, *weights, *FEW, *flag], 0) for flag in ([], ["--keep-going"]))
    short, long = table(short), table(long)
    assert list(short) == [0, 1] and list(long) == [0, 1, 2, 3]
    assert short == {at: long[at] for at in short}


@pytest.mark.parametrize(
    ("energy", "text"),
    [
        ([9, 5, 4], "E fell in 2 of 2 steps: from 9.000 to 4.000"),
        ([9, 5, 5.5, 7.25], "E fell in 1 of 3 steps, rose in 2 (by 1.75 at most): from 9.000 to 7.250"),
        ([-1e4, -1e4 + 2e-3, -1e4 - 2e-3], "E fell in 0 of 2 steps, stayed within rounding in 2"),
        ([-1e4, -1e4 + 2, -1e4 + 2, -2e4], "E fell in 1 of 3 steps, rose in 1 (by 2 at most), stayed within"),
        ([0, 0], "E fell in 0 of 1 steps, stayed within rounding in 1"),
    ],
)  # fmt: skip
def test_how_the_energy_fell(energy, text):
    assert solve.fall(root.Puzzle("", None, energy=np.array(energy))).startswith(text)


def test_the_start_of_another_descent_is_no_rise():
    """Two steps each: after the second, the energy is that of the next descent after its first step."""
    puzzle = root.Puzzle("", None, energy=np.array([9.0, 5, 4, 20, 8]), descent=2)
    assert solve.fall(puzzle) == "E fell in 3 of 3 steps of 2 descents: from 9.000 to 8.000"
    puzzle = root.Puzzle("", None, energy=np.array([9.0, 5, 4, 3, 8]), descent=2)
    assert "rose in 1 (by 5 at most)" in solve.fall(puzzle)


@pytest.mark.parametrize("run", [1, 4])
def test_the_logs_model_shows_its_chain_of_lowest_energy(run, clean, capsys):
    model, kind = save_replica(run=run), "norm" if run == 1 else "consistency"
    output = answered(capsys, [PUZZLE, "--weights", "replica.pt", "--steps", "5", "--chains", "6"], 1)
    found = langevin.solve(model, puzzle(PUZZLE), 5, 6, kind=kind, capture=True)
    best = found.energy[0].argmin()
    assert len({tuple(board) for board in found.boards[0].tolist()}) > 1  # else any chain would do
    energies = [langevin.measure(model, puzzle(PUZZLE), z[:, best, None], 0.0, kind) for z in found.trajectory.z]
    assert list(table(output)) == [0, 1, 2, 4, 5]
    for at, (energy, *_) in table(output).items():
        assert energy == pytest.approx(energies[at]["total"].item(), abs=2e-3)
    board = langevin.choose(found.boards, found.energy)["energy"][0]
    for line in root.draw([str(digit) for digit in board], [""] * 81):
        assert line.plain in output
    assert f"run {run}, " in output and "wrong after 5 iterations" in output
    assert "6 chains" in output and "lowest energy before the last step" in output
    assert {1: "E is that chain's |z_pred|^2 + 3 penalty", 4: "|z_pred - target|^2 + 3 penalty"}[run] in output


def test_a_chain_of_a_puzzle_is_the_same_among_many(clean):
    model = solve.Langevin(save_replica(), "", "consistency", 4)
    puzzles = np.random.default_rng(0).permuted(np.tile(cells(PUZZLE), (9, 1)), axis=1)  # the ninth is in a second part
    many, alone = ([root.Puzzle("", row.astype(np.uint8)) for row in rows] for rows in (puzzles, puzzles[8:]))
    for group in (many, alone):
        root.iterate(model, group, 3, True, True)
    assert (many[8].boards == alone[0].boards).all()
    np.testing.assert_allclose(many[8].energy, alone[0].energy, rtol=1e-5)
    assert len(many[8].energy) == 4 and not np.allclose(many[7].energy, many[8].energy)


def test_no_solution_is_seen_before_the_board_stands(weights, clean, capsys, monkeypatch):
    (clean / "plain.csv").write_text(f"puzzle\n{PUZZLE}\n{EASY}\n")
    (clean / "lying.csv").write_text(f"puzzle,solution\n{PUZZLE},{EASY[::-1]}\n{EASY},{PUZZLE}\n")
    save_replica()
    for flags in ([*weights, *FEW], ["--weights", "replica.pt", "--steps", "2"]):
        plain, lying = (solve.main([name, *flags]) and capsys.readouterr().out for name in ("plain.csv", "lying.csv"))
        assert plain.replace("plain.csv", "").split("; ")[:-1] == lying.replace("lying.csv", "").split("; ")[:-1]
        assert "E fell in" in plain
    asked, prove = [], root.prove

    def watched(puzzles):
        asked.extend((p.cells.sum(), p.boards is not None) for p in puzzles)
        return prove(puzzles)

    monkeypatch.setattr(root, "prove", watched)
    assert solve.main(["plain.csv", *weights, *FEW]) == 1
    assert asked == [(sum(cells(PUZZLE)), True)]  # only a board that is wrong is compared with a solution


def test_no_blanks(weights, clean, capsys):
    save_replica()
    for name, count in (("ours.pt", "1 iteration:"), ("replica.pt", "50 iterations:")):  # the log's go through all
        output = answered(capsys, [ANSWER, "--weights", name, "--plot", "a.png"], 0)
        assert table(output)[1][1:] == [None, 0] and f"solved in {count}" in output


def test_many_puzzles(weights, clean, capsys):
    easy = [ANSWER[: 9 * i] + "." * 9 + ANSWER[9 * i + 9 :] for i in range(9)] * 10
    (clean / "many.txt").write_text("\n".join([*easy, "x" * 81, PUZZLE]))
    output = answered(capsys, ["many.txt", *weights, *FEW], 2)
    assert "92 puzzles: 90 solved, 1 wrong, 1 invalid" in output
    assert "many.txt, line 91: invalid: character 1" in output and "many.txt, line 92: wrong after 3" in output
    assert answered(capsys, ["many.txt", *weights, *FEW, "--quiet"], 2).split() == [ANSWER] * 90 + ["." * 81] * 2


def test_quiet(weights, capsys):
    assert solve.main([EASY, PUZZLE, *weights, *FEW, "--quiet"]) == 1
    output = capsys.readouterr()
    assert output.out == f"{ANSWER}\n{'.' * 81}\n"
    assert "1 solved, 1 wrong" in output.err and "E is the learned energy" in output.err


@cases(of_root.test_forms)
def test_forms(text, weights, clean, capsys, monkeypatch):
    (clean / "puzzles").write_bytes(text.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    for word in ("puzzles", "-"):
        assert "2 puzzles: 0 solved, 2 wrong, 0 invalid" in answered(capsys, [word, *weights, "--iterations", "1"], 1)


def test_check(weights, capsys):
    assert "invalid" not in answered(capsys, [EASY, *weights, "--check"], 0)
    refused(capsys, [TWO_SOLUTIONS, *weights, "--check"], "more than one solution")


# ---------------------------------------------------------------- what is refused


@cases(of_root.test_invalid_puzzles_are_named)
def test_invalid_puzzles_are_named(text, words, clean, capsys):
    (clean / "puzzles").write_bytes(text.encode("latin-1"))
    refused(capsys, ["puzzles"], *words)


@cases(of_root.test_an_improper_puzzle_is_not_the_networks_fault)
def test_an_improper_puzzle_is_not_the_networks_fault(puzzle, words, weights, capsys):
    refused(capsys, [puzzle, *weights, *FEW], f"invalid: it has {words}")


def test_refused_arguments(weights, capsys, monkeypatch):
    save_replica()
    replica = ["--weights", "replica.pt"]
    refused(capsys, [], "give a puzzle")
    refused(capsys, ["puzzels.txt"], "puzzels.txt", "no such file", "11 characters")
    refused(capsys, ["."], ". cannot be read")
    refused(capsys, [PUZZLE, *weights, "--iterations", "0"], "--iterations 0: expected 1 or more")
    for flag in ("--steps", "--chains"):
        refused(capsys, [PUZZLE, *replica, flag, "0"], f"{flag} 0: expected 1 or more")
        refused(capsys, [PUZZLE, *weights, flag, "3"], f"{flag} 3: ours.pt is of ebm/ours.py, which takes --iterations")
    refused(capsys, [PUZZLE, *replica, *FEW], "--iterations 3: replica.pt is of ebm/train.py, which takes --steps and")
    for flags in (["--weigths", "x"], ["--iterations", "nan"], ["--device", "gpu"], ["--chains", "1.5"]):
        with pytest.raises(SystemExit) as stop:
            solve.main([PUZZLE, *flags])
        assert stop.value.code == 2
    monkeypatch.setattr(root, "pick_device", torch.device)
    refused(capsys, [PUZZLE, *weights, "--device", "cuda"], "--device cuda: ebm/ours.py runs on cpu only")


def test_default_weights(clean, capsys, monkeypatch):
    monkeypatch.setattr(root, "ROOT", clean)
    refused(capsys, [EASY], "weights/ebm.pt does not exist")
    (clean / "weights").mkdir()
    save_ours("weights/ebm.pt")
    assert f"weights: {clean}/weights/ebm.pt (ebm/ours.py" in answered(capsys, [EASY], 0)


def test_the_shipped_weights_solve_the_puzzle_of_the_readme(capsys):
    assert solve.main([PUZZLE, "--quiet"]) == 0
    assert capsys.readouterr().out.split() == [ANSWER]


def test_a_runs_folder(clean, capsys):
    (clean / "run").mkdir()
    save_ours("run/checkpoint.pt", lambda state: state.update(experiment="ebm/ours"))
    assert "weights: run/checkpoint.pt (ebm/ours.py" in answered(capsys, [EASY, "--weights", "run"], 0)


@pytest.mark.parametrize(
    ("saver", "change", "words"),
    [
        (save_ours, {"experiment": "sudoku"}, "x.pt is of sudoku, expected a checkpoint of ebm/ours.py or"),
        (save_ours, {"experiment": None}, "x.pt is of None"),
        (save_ours, {"config": {"width": 24}}, "x.pt cannot be used"),
        (save_ours, {"config": {"width": "wide"}}, "x.pt cannot be used"),
        (save_ours, {"config": None}, "x.pt cannot be used"),
        (save_ours, {"model": {}}, "x.pt cannot be used"),
        (save_ours, {"experiment": "ebm"}, "x.pt is not a checkpoint of ebm.train"),
        (save_replica, {"experiment": "ours"}, "x.pt cannot be used"),
        (save_replica, {"config": None}, "x.pt is not a checkpoint of ebm.train"),
        (save_replica, {"model": {}}, "x.pt does not fit ebm/train.py"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(saver, change, words, clean, capsys):
    saver("x.pt", change=lambda state: state.update(change))
    refused(capsys, [PUZZLE, "--weights", "x.pt"], words)


def test_broken_weights(weights, clean, capsys):
    refused(capsys, [PUZZLE, "--weights", "nowhere.pt"], "nowhere.pt does not exist")
    whole = (clean / "ours.pt").read_bytes()
    for content in (b"", b"text", whole[:-200], whole[:50]):
        (clean / "x.pt").write_bytes(content)
        refused(capsys, [PUZZLE, "--weights", "x.pt"], "x.pt is not a whole checkpoint")
    for value in (float("nan"), float("inf")):
        for saver, name in ((save_ours, "message"), (save_replica, "predictor.last.weight")):
            saver("x.pt", change=lambda state: state["model"][name][0, 0].fill_(value))  # noqa: B023
            refused(capsys, [PUZZLE, "--weights", "x.pt"], "x.pt cannot be used", "not finite")


def test_an_energy_that_is_not_finite(clean, capsys):
    save_ours("x.pt", test_descent=20.0)  # each step makes the states many times larger
    for count in (1, 5):  # of so many puzzles no energy is shown
        refused(capsys, [PUZZLE] * count + ["--weights", "x.pt"], "x.pt: the energy is not finite after step ")
    assert solve.main([PUZZLE, "--weights", "x.pt", "--iterations", "2"]) == 1  # not yet
    assert "nan" not in capsys.readouterr().out
    save_ours("x.pt", lambda state: state["model"]["first"].fill_(1e30))
    refused(capsys, [PUZZLE, "--weights", "x.pt"], "x.pt: the energy is not finite after step 0")
    save_replica("x.pt", change=lambda state: state["model"]["predictor.last.weight"].fill_(1e30))
    refused(capsys, [PUZZLE, "--weights", "x.pt", "--steps", "2"], "x.pt: the energy is not finite after step 0")


# ---------------------------------------------------------------- pictures


def test_watch(weights, clean, capsys, monkeypatch):
    assert "--watch needs a terminal" in answered(capsys, [EASY, *weights, "--watch"], 0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    monkeypatch.setattr(root.time, "sleep", lambda seconds: None)
    output = answered(capsys, [PUZZLE, *weights, *FEW, "--watch"], 1)
    energies, boards = descent(save_ours(), PUZZLE, 3)
    played = re.findall(r"iteration (\d) of 3, (\d+) violations, E = (-?[\d.]+)", output)
    played = list(dict.fromkeys(played))  # the last picture is drawn twice
    assert [(int(at), int(broken)) for at, broken, _ in played] == [*enumerate(root.violations(boards), 1)]
    assert [float(energy) for *_, energy in played] == pytest.approx(energies[1:], abs=6e-4)


def test_plot(clean, capsys, monkeypatch):
    model, figures, write = save_ours(descent=1.4), [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **b: figures.append(self) or write(self, *a, **b))
    for name, start in (("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("plain", b"\x89PNG")):
        output = answered(capsys, [PUZZLE, "--weights", "ours.pt", "--iterations", "40", "--plot", name], 1)
        assert (clean / output.split("wrote ")[1].strip()).read_bytes().startswith(start)
    energies, _ = descent(model, PUZZLE, 40)
    top, bottom = figures[-1].axes
    np.testing.assert_allclose(top.lines[0].get_ydata(), energies, rtol=1e-6)
    rises = np.flatnonzero(np.diff(energies) > 1e-6 * abs(energies).max()) + 1
    assert len(rises) and (top.lines[1].get_xdata() == rises).all()
    assert len(bottom.lines) == 51 and all(len(line.get_ydata()) == 40 for line in bottom.lines)
    for axes in (top, bottom):  # texts stay inside the picture
        extent = axes.title.get_window_extent()
        assert extent.x0 > 0 and extent.x1 < figures[-1].bbox.x1


@cases(of_root.test_a_picture_that_cannot_be_written_is_refused_before_the_solving)
def test_a_picture_that_cannot_be_written_is_refused_before_the_solving(name, weights, clean, capsys, monkeypatch):
    monkeypatch.setattr(solve, "model_for", lambda *_: pytest.fail("the weights were loaded first"))
    (clean / "folder.png").mkdir()
    (clean / "readonly").mkdir()
    (clean / "readonly.svg").touch()
    allowed = root.os.access  # root may write everywhere, so the test says itself what is read-only
    monkeypatch.setattr(root.os, "access", lambda path, mode: "readonly" not in str(path) and allowed(path, mode))
    refused(capsys, [EASY, *weights, "--plot", name], f"--plot {name}")


def test_a_picture_of_several_puzzles(weights, clean, capsys):
    refused(capsys, [EASY, EASY, *weights, "--plot", "x.png"], "one puzzle")
    assert not (clean / "x.png").exists()


def test_as_a_script(weights):
    """By its path, where this folder's solve.py and data.py are in front of the root's."""
    command = [sys.executable, solve.__file__, "-", "--quiet", *weights]
    done = subprocess.run(command, input=EASY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ANSWER + "\n" and "weights: ours.pt" in done.stderr
