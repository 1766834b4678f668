"""The measurements of ebm.proof, on energies and networks for which the answer is known."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import common
from data import generate
from ebm import ours, proof
from plumbing import candidates


@pytest.fixture(autouse=True)
def sooner(monkeypatch):
    monkeypatch.setattr(proof, "DIRECTIONS", 2)


@pytest.fixture(scope="module")
def puzzles():
    return generate.generate(4, clues=45, seed=5, progress=False).rows(np.arange(4))


def make(**changes):
    torch.manual_seed(0)
    config = common.with_preset(ours.Config(**changes), "smoke")
    return config, ours.Model(config).double()


def save(path, config, model, **changes):
    torch.save({"experiment": "ours", "step": 1, "config": dataclasses.asdict(config)} | changes
               | {"model": {name: value.float() for name, value in model.state_dict().items()}}, path)  # fmt: skip
    return str(path)


def test_update_finds_what_is_not_the_gradient(puzzles, monkeypatch):
    _, model = make()
    found = proof.difference(model, puzzles[0], 5, np.random.default_rng(0))
    assert found["largest_error"] < 1e-6 and found["steps"] == [1, 2, 4] and found["directions"] == 3 * 2
    real = model.step

    def pushed(shard):
        energy, logits, (puzzle, board, s) = real(shard)
        steps.append(s)
        return energy, logits, (puzzle, board, s + (1e-3 if len(steps) == 4 else 0))

    steps = []
    monkeypatch.setattr(model, "step", pushed)
    assert proof.difference(model, puzzles[0], 4, np.random.default_rng(0))["largest_error"] > 1e-4


def test_the_way_down_is_that_of_the_model(puzzles):
    """The energies before each step, the fall that each gradient promises, and whether the board is right."""
    _, model = make(test_descent=0.001, patience=3)
    energy, promised, solved, board = proof.descend(model, *puzzles, 0)
    state = model.start(torch.from_numpy(puzzles[0].astype(np.int64)))
    for step in range(4):
        assert np.allclose(energy[:, step], model.energies(state))
        moved = model.iterate(state)[1]
        length = sum((a[2] - b[2]).square().sum() for a, b in zip(moved, state)) / 0.001
        assert promised[:, step].sum() == pytest.approx(length.item())
        state = moved
    assert np.allclose(energy[:, 0] - energy[:, 1], promised[:, 0], rtol=0.05), "so short a step keeps its promise"
    right = [(logits.argmax(-1).numpy() + 1 == puzzles[1]).all(1) for logits in model(torch.tensor(puzzles[0]), 3)]
    assert np.array_equal(solved[:, 1:].T, right)
    assert (
        np.array_equal((board == puzzles[1]).all(1), solved[:, -1])
        and (board[puzzles[0] > 0] == puzzles[1][puzzles[0] > 0]).all()
    )
    longer, finer = (proof.descend(model, *puzzles, 0, *way) for way in ((4, 1), (2, 2)))
    assert longer[0].shape == (4, 13) and np.array_equal(longer[0][:, :4], energy)
    assert finer[0].shape == (4, 7) and np.allclose(finer[1][:, 0], promised[:, 0] / 2)
    assert np.allclose(finer[0][:, 0] - finer[0][:, 1], promised[:, 0] / 2, rtol=0.05)
    several = proof.descents(model, *puzzles, 2)
    assert np.array_equal(several[0][:, 1], proof.descend(model, *puzzles, 1)[0])
    assert not np.allclose(several[0][:, 0], several[0][:, 1]), "another descent begins elsewhere"


def test_falls_are_counted_where_there_is_something_to_fall():
    energy = np.tile(10.0 - np.arange(17), (2, 4, 1))  # two puzzles, four descents of 16 steps
    promised, solved = np.ones((2, 4, 17)), np.ones((2, 4, 17), bool)
    energy[0, 0, 5] = 20  # up once, and down again
    energy[:, 1:] += 99
    energy[0, 1:, 5:10:2] = 999  # not of the solver's descents: it has one
    promised[1, 0, 10:] = 0  # the second has converged: its rounding does not count
    row = proof.figures(1, energy, promised, solved, np.zeros(2), np.array([1.0, -1.0]), np.array([True, False]))
    assert row["falls"] == {"right": 25, "of": 26, "converged": 6, "fell_when_converged": 6}
    assert row["boards"]["share"] == 1 and row["boards"]["of"] == 1, "a board that could not be changed does not count"
    assert row["auroc"] == {"value": None, "solved": 2, "unsolved": 0}
    assert list(row["solved"]) == ["8", "16", "64"]


def test_the_lowest_descent_is_the_answer():
    energy, promised = np.ones((3, 8, 9)), np.ones((3, 8, 9))
    solved = np.zeros((3, 8, 9), bool)
    energy[0, 1, -1], solved[0, 1, -1] = 0.0, True  # the second descent is the lowest, and right
    energy[1, 3, -1], solved[1, 3, -1] = 0.0, True  # only with more steps
    energy[2, 0, -1], solved[2, 1:, -1] = -1.0, True  # right ones that are not the lowest
    row = proof.figures(2, energy, promised, solved, np.zeros(3), np.ones(3), np.ones(3, bool))
    assert {n: figure["right"] for n, figure in row["solved"].items()} == {"8": 0, "16": 1, "64": 2}
    assert row["auroc"]["value"] == pytest.approx(0.5) and row["energy"]["end"] == pytest.approx((0 + 1 - 1) / 3)


def test_the_verdict_is_that_low_energies_are_solved():
    energy, solved = np.ones((4, 4, 9)), np.zeros((4, 4, 9), bool)
    energy[:, :, -1] = np.array([-3.0, -2.0, 5.0, 6.0])[:, None]
    solved[:2] = True
    row = proof.figures(1, energy, np.ones((4, 4, 9)), solved, np.zeros(4), np.ones(4), np.ones(4, bool))
    assert row["auroc"] == {"value": 1.0, "solved": 2, "unsolved": 2}
    row = proof.figures(1, energy, np.ones((4, 4, 9)), ~solved, np.zeros(4), np.ones(4), np.ones(4, bool))
    assert row["auroc"]["value"] == 0.0


def test_a_descent_is_chosen_in_every_way(puzzles):
    """The right board is the second of three: the lowest in the first puzzle, not in the second."""
    solution = puzzles[1][:2]
    wrong = solution % 9 + 1
    wrong[:, 0] = wrong[:, 1]  # against the rules
    boards = np.stack([wrong, solution, wrong], 1)
    found = proof.choices(boards, np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]]), solution)
    right = {choice: figure["right"] for choice, figure in found.items()}
    assert right == {"one": 0, "energy": 1, "rules": 2, "majority": 0, "oracle": 2}


def test_one_descent_alone(puzzles, monkeypatch):
    """What it solves at its end, later and with a smaller step; how long the gradient is on the way."""
    _, model = make(test_descent=0.5, patience=3)
    known = {(4, 1): np.array([[0, 0, 0, 1] + [0] * 9, [0, 0, 0, 1] + [1] * 9]), (2, 2): np.array([[1] * 7, [1] * 7])}

    def descend(model, puzzle, solution, number, longer=1, finer=1):
        assert number == 0
        right = known[longer, finer].astype(bool)
        return None, 0.5 * np.arange(right.shape[1])[None].repeat(2, 0) ** 2.0, right, None

    monkeypatch.setattr(proof, "descend", descend)
    found = proof.path_figures(*proof.one_descent(model, *puzzles))
    keys = ("solved", "four times the steps", "half the step")
    assert [found[key]["right"] for key in keys] == [2, 1, 2] and (found["gained"], found["lost"]) == (0, 1)
    assert found["gradient"] == {"start": 0.0, "end": 3.0, "four times the steps": 12.0}


def test_auroc():
    low, high = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0])
    assert proof.auroc(low, high) == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 1) / 6)
    assert proof.auroc(low, low) == 0.5 and proof.auroc(low, low + 9) == 1.0
    assert proof.auroc(low, high[:0]) is None


def test_one_changed(puzzles):
    puzzle, solution = puzzles
    changed = proof.one_changed(puzzle, solution, np.random.default_rng(0))
    assert ((changed != solution).sum(1) == 1).all()
    assert (changed[puzzle > 0] == solution[puzzle > 0]).all(), "clues stay"
    board = candidates.Board(puzzle)
    for row, cell in zip(*np.nonzero(changed != solution)):
        candidate = cell * 9 + changed[row, cell] - 1
        assert ((board.place[0] == row) & (board.place[1] == candidate)).any(), "no clue excludes it"
    full = proof.one_changed(solution, solution, np.random.default_rng(0))
    assert (full == solution).all(), "nothing to change"


def test_the_energy_of_a_board_holds_the_board(puzzles, monkeypatch):
    """Each candidate's logit stays at its level, while the rest of its state goes down."""
    _, model = make(test_descent=0.02)
    level, seen = (1.5, -2.0), []
    monkeypatch.setattr(model, "gradient", lambda s, board, real=model.gradient: (seen.append(s), real(s, board))[1])
    heights = [proof.held(model, *puzzles, level, steps) for steps in (0, 20)]
    assert (heights[1] < heights[0]).all()
    board = candidates.Board(puzzles[0])
    wanted = np.where(proof.is_right(board, puzzles[1]), *level)
    for s in (seen[0], seen[-1]):
        assert np.allclose((s @ model.read).detach(), wanted)


def test_levels_are_those_of_solved_puzzles(puzzles):
    puzzle, solution = puzzles
    _, model = make()
    blank = np.cumsum(puzzle == 0, 1) == 1
    one_left = np.where(blank & (puzzle == 0), 0, solution)  # one blank with one candidate: solved, and none wrong
    with torch.no_grad():
        model.read.mul_(0).add_(1)
    right, wrong = proof.levels(model, one_left, solution, 2)
    _, board, s = model.start_shard(torch.from_numpy(one_left.astype(np.int64)))
    for _ in range(2):
        s = s - model.descent * model.gradient(s, board)[1]
    assert right == pytest.approx((s @ model.read).median().item()) and np.isnan(wrong)


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["missing.pt"], ["missing.pt"]),
        (["bad.pt", "--puzzles", "0"], ["--puzzles 0"]),
        (["bad.pt", "--steps", "0"], ["--steps 0"]),
        (["bad.pt", "--seed", "-1"], ["--seed -1"]),
        (["bad.pt", "--output", "x/y.json"], ["--output x/y.json"]),
        (["bad.pt"], ["bad.pt", "ebm/ours.py"]),
        (["other.pt"], ["other.pt", "fit"]),
    ],
)
def test_what_cannot_be_used_is_named(clean, capsys, flags, words):
    config, model = make()
    save(clean / "bad.pt", config, model, experiment="exp_cosine")
    save(clean / "other.pt", dataclasses.replace(config, width=2 * config.width), model)
    assert proof.main(flags) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_untrained_weights_are_measured_or_refused(clean, capsys, monkeypatch):
    """Where nothing is solved there is no level to hold a board at; with one, everything is written down."""
    config, model = make(patience=16)
    path = save(clean / "checkpoint.pt", config, model)
    flags = [path, "--puzzles", "2", "--steps", "16"]
    assert proof.main([*flags[:-1], "24"]) == 2 and "a multiple of 16" in capsys.readouterr().err
    assert proof.main(flags) == 2 and "solves none" in capsys.readouterr().err
    monkeypatch.setattr(proof, "levels", lambda *_: [1.0, -1.0])
    monkeypatch.setattr(proof, "held", lambda *a, real=proof.held: real(*a, steps=2))
    assert proof.main(flags) is None
    out = capsys.readouterr().out
    result = json.loads((clean / "proof.json").read_text())
    assert result["update"]["largest_error"] < 1e-6 and result["update"]["steps"][-1] == 16
    assert set(result["45 clues"]["solved"]) == {"8", "16", "64"}
    assert "E falls at" in out and "AUROC" in out and "no data" in out
