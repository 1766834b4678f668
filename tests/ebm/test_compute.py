"""ebm.compute: the same puzzles for all networks, and each step's answer counted at its own cost."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data import generate, store
from ebm import compute, data, evaluate, langevin, train
from plumbing import disk

ROOT = compute.solve.ROOT


@pytest.fixture(scope="module")
def replica(tmp_path_factory):
    path = tmp_path_factory.mktemp("ebm") / "checkpoint.pt"
    torch.manual_seed(0)
    config = train.configured(4, "smoke")
    model = train.Model(config)
    disk.save_checkpoint(path, {"experiment": "ebm", "step": 1, "config": dataclasses.asdict(config),
                                "model": model.state_dict()})  # fmt: skip
    return path


class Known:
    """Is right in the first of its puzzles after 1 step, in the second after 2, and so on."""

    def __init__(self, solution):
        self.solution, self.seen = solution, []

    def flops(self, puzzle, counts):
        return [10.0 * steps for steps in counts]

    def boards(self, puzzle, counts):
        self.seen.append(puzzle)
        for steps in counts:
            board = self.solution[: len(puzzle)].clone()
            board[steps:] = board[steps:] % 9 + 1
            yield steps, board, 0.5


def test_measure_counts_what_is_right_after_each_number_of_steps():
    solution = torch.randint(1, 10, (8, 81))
    puzzle = torch.where(torch.arange(81) < 20, solution, 0)
    known = Known(solution)
    found = compute.measure(known, puzzle, solution, [1, 2, 4], {"description": "", "disable": True})
    assert [row["solved"]["right"] for row in found.values()] == [1, 2, 4]
    assert found["4"]["cells"]["right"] == 4 * 61 and found["4"]["cells"]["of"] == 8 * 61
    assert torch.equal(torch.cat(known.seen), puzzle)
    assert found["1"]["milliseconds"] == pytest.approx(500 / 8) and found["2"]["flops"] == 20.0


def test_the_logs_model_is_read_at_zero_and_then_at_its_lowest_chain(replica):
    solver, puzzle = compute.LowestChain(replica, 3), torch.zeros(2, 81, dtype=torch.int64)
    found = {steps: board for steps, board, _ in solver.boards(puzzle, [1, 4])}
    assert list(found) == [0, 1, 4]
    zero = langevin.read(solver.model, puzzle, torch.zeros(2, 1, solver.model.config.latent))[:, 0]
    assert torch.equal(found[0], zero.long())
    solved = langevin.solve(solver.model, puzzle, 4, 3, kind="consistency")
    lowest = solved.boards[torch.arange(2), solved.energy.argmin(1)]
    assert torch.equal(found[4], lowest)
    zero, four = solver.flops(puzzle, [0, 4])
    with FlopCounterMode(display=False) as counter:
        solver.model.context(puzzle[:1])
    once = counter.get_total_flops()
    decode = evaluate.cost(solver.model, puzzle, "consistency")[0]
    assert zero == once + decode and once > 0  # its encoder runs once, for all chains
    assert four - once == 3 * (compute.LowestChain(replica, 1).flops(puzzle, [4])[0] - once) > 12 * decode


def test_an_iterating_network_is_counted_with_its_threads(capsys):
    solver = compute.Iterating(ROOT / "weights/iterate.pt", compute.Console())
    puzzle = torch.zeros(1, 81, dtype=torch.int64)
    rows = 729 * (32 * 4 * 32 + 40 * 96 + 96 * 32 + 32) + 324 * 32 * 96  # candidates, then groups
    assert solver.flops(puzzle, [3])[0] == pytest.approx(3 * 2 * rows, rel=0.05)
    boards = list(solver.boards(puzzle, [1, 2]))
    assert [steps for steps, _, _ in boards] == [1, 2] and boards[0][1].shape == (1, 81)
    assert boards[0][2] < boards[1][2]


def test_from_the_command_line(replica, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compute, "KINDS", {"71 clues": 71})
    run = tmp_path / "equal-seed0"
    run.mkdir()
    shutil.copy(replica, run / "checkpoint.pt")
    (run / "summary.json").write_text('{"seconds": 1800.0, "hardware": "here", "parameters": 5}')
    output = str(tmp_path / "c.json")
    flags = ["--puzzles", "2", "--steps", "4", "--langevin-steps", "2", "--chains", "2", "--output", output]
    assert not compute.main([str(run), str(ROOT / "weights/ebm.pt"), *flags])
    found = json.loads((tmp_path / "c.json").read_text())
    first, second = found["networks"]
    assert (first["experiment"], first["run"], first["seconds"]) == ("ebm", "equal-seed0", 1800.0)
    assert second["experiment"] == "ours" and list(second["kinds"]["71 clues"]) == ["1", "2", "4"]
    assert list(first["kinds"]["71 clues"]) == ["0", "1", "2"]
    assert "MFLOP" in capsys.readouterr().out


WRONG = [["--puzzles", "0"], ["--steps", "0"], ["--chains", "-1"], ["--langevin-steps", "0"], ["--output", "x.txt"]]


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags(flags, capsys):
    assert compute.main([str(ROOT / "weights/ebm.pt"), *flags]) == 2
    assert flags[0] in capsys.readouterr().err


def test_no_network_given(capsys):
    assert compute.main([]) == 2
    assert "runs/ours" in capsys.readouterr().err


def test_no_other_test_has_these_puzzles(clean):
    """Minimal ones: of 45 clues or more there are so many that only the seed could make two alike."""
    kept = {seed: store.fingerprints(generate.cached(20, "minimal", seed, progress=False))
            for seed in (1, 2, data.SEED, compute.proof.SEED, compute.proof.SEED + 1, compute.SEED)}  # fmt: skip
    assert not any(np.isin(kept[compute.SEED], kept[seed]).any() for seed in kept if seed != compute.SEED)
