"""Networks on candidates on a GPU: the same results as the CPU's kernels, and nothing left on the wrong side."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import common
import exp_iterate
import exp_suppose
import lineage
import plumbing.run
import solve
from data import generate
from data.rows import missing
from plumbing import candidates, disk
from tests.pretend import Pretended

# several shards of puzzles, which a GPU takes as one, and suppositions from the second step on
SMALL = ["--preset", "smoke", "--batch", "20", "--steps", "4", "--width", "16", "--mlp", "24", "--lr", "0.002"]
SMALL += ["--depth", "6", "--iterations", "20", "--save-every", "2", "--easy-steps", "1", "--evaluate-every", "99"]
SMALL += ["--test-per-bucket", "5"]
SUPPOSING = ["--plain-steps", "1", "--plain", "9", "--explore", "4", "--merge", "3"]


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a pretended GPU; everything happens in one thread."""
    pretended, load = Pretended(), disk.load_checkpoint

    def load_checkpoint(path, device="cpu"):
        saved = load(path)
        return saved if torch.device(device).type == "cpu" else pretended.loaded(saved)

    def deepcopy(parameter, memo, real=torch.nn.Parameter.__deepcopy__):
        return pretended.moved(real(parameter, memo)) if parameter in pretended.there else real(parameter, memo)

    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", deepcopy)
    monkeypatch.setattr(plumbing.run, "pick_device", torch.device)
    monkeypatch.setattr(disk, "describe", lambda device, real=disk.describe: real(torch.device("cpu")))
    monkeypatch.setattr(disk, "load_checkpoint", load_checkpoint)
    for experiment in map(lineage.module, lineage.ON_CANDIDATES):
        monkeypatch.setattr(experiment, "workers", lambda: SimpleNamespace(map=map))
    with pretended:
        yield pretended


def results(experiment, name):
    folder = Path("runs") / experiment.__name__ / name
    saved = disk.load_checkpoint(folder / "checkpoint.pt")
    return json.loads((folder / "summary.json").read_text()), [row["loss"] for row in saved["rows"]], saved


def same(experiment, one, other):
    (summary, losses, saved), (other_summary, other_losses, other_saved) = (
        results(experiment, n) for n in (one, other)
    )
    assert len(losses) == 4 and losses == pytest.approx(other_losses, abs=1e-4)
    for name, weight in saved["model"].items():
        atol = 0.01 if experiment.__name__ == "exp_deep_bf16" else 1e-3
        assert torch.allclose(weight, other_saved["model"][name], atol=atol), name
    for name, value in saved["optimizers"][2].items():  # the slots
        assert torch.allclose(value.float(), other_saved["optimizers"][2][name].float(), atol=0.02), name
    assert summary["test"].keys() == other_summary["test"].keys()
    for count, row in summary["test"].items():
        assert row["solved"] == other_summary["test"][count]["solved"]
        assert row["cells"] == pytest.approx(other_summary["test"][count]["cells"], abs=5)


def run(experiment, device, name, *more):
    experiment.main(
        [*SMALL, *SUPPOSING * hasattr(experiment.Config, "plain"), "--device", device, "--name", name, *more]
    )


@pytest.mark.parametrize("name", lineage.ON_CANDIDATES)
def test_a_run_on_a_gpu_is_the_run_on_a_cpu(name, clean, gpu, monkeypatch):
    """Trained, tested, interrupted and resumed, there or here."""
    experiment, opened, open_folder = lineage.module(name), [], common.Run.open_folder
    run(experiment, "cpu", "cpu")
    run(experiment, "cuda", "gpu")
    same(experiment, "cpu", "gpu")

    def refill(self, config, data, step, real=experiment.Slots.refill):
        if step == 2:
            raise KeyboardInterrupt
        return real(self, config, data, step)

    ways = {"exp_iterate": (("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")), "exp_suppose": (("cuda", "cuda"),)}
    for half, rest in ways.get(name, ()):  # the others have the slots of these
        with monkeypatch.context() as patch:
            patch.setattr(experiment.Slots, "refill", refill)
            patch.setattr(common.Run, "open_folder", lambda run: opened.append(run) or open_folder(run))
            with pytest.raises(KeyboardInterrupt):
                run(experiment, half, f"{half}-{rest}")
            opened[-1].close()
        run(experiment, rest, f"{half}-{rest}", "--resume")
        same(experiment, "cpu", f"{half}-{rest}")


@pytest.mark.parametrize("experiment", [exp_iterate, exp_suppose])
def test_nothing_waits_in_an_iteration(experiment, gpu):
    """Only where solved puzzles leave, and where suppositions are chosen."""
    torch.manual_seed(0)
    config = common.with_preset(experiment.Config(), "smoke")
    puzzle = torch.from_numpy(generate.cached(20, clues=45, seed=5, progress=False).rows(range(20))[0].astype(np.int64))
    with torch.no_grad():
        model, puzzle = experiment.Model(config).to(gpu.device), puzzle.to(gpu.device)
        assert len(model.start(puzzle)) == 1, "all puzzles at once"
        before = gpu.waits
        found = list(model(puzzle, 64))
    assert len(found) == 64 and gpu.waits - before <= 3 * 64 / experiment.REGROUP


@pytest.mark.parametrize("weights", ["iterate", "suppose"])
def test_the_shipped_networks_solve_the_same_puzzles(weights, gpu):
    """Solved ones leave and the rest are put together anew."""
    console = SimpleNamespace(print=lambda text: None)
    rows = generate.cached(30, clues="minimal", seed=6, progress=False).rows(range(30))
    given, solution = (torch.from_numpy(part.astype(np.int64)) for part in rows)
    given[0] = solution[0]  # no blank at all: a puzzle without candidates
    found = {}
    with torch.no_grad():
        for device in (torch.device("cpu"), gpu.device):
            model = solve.load(solve.ROOT / f"weights/{weights}.pt", device, console)
            found[device.type] = torch.stack([logits.cpu().argmax(-1) + 1 for logits in model(given.to(device), 40)])
            assert (next(model(given[:1].to(device), 1)).cpu().argmax(-1) + 1 == solution[:1]).all()
    right = [(boards == solution).all(2) for boards in found.values()]
    assert torch.equal(*right) and 10 < right[0][-1].sum() <= 30 and right[0][7].sum() < right[0][-1].sum()


def test_boards_that_obey_the_rules():
    solution = torch.from_numpy(generate.cached(5, clues=45, seed=5, progress=False).rows(range(5))[1])
    logits = torch.nn.functional.one_hot(solution.long() - 1, 9).float()
    blank = torch.zeros_like(solution)
    assert candidates.obeys_rules(blank, logits).all() and candidates.obeys_rules(solution, 0 * logits).all()
    place = torch.arange(81)
    for wrong in (place // 9 + place % 9, place // 9 * 3 + place // 27 + place, place // 9, place % 9, place * place):
        board = (wrong % 9 + 1).expand(5, 81)
        expected = (missing(board.numpy()).sum(1) == 0).tolist()
        assert candidates.obeys_rules(board, logits).tolist() == expected


def test_the_pretended_gpu_refuses_what_a_gpu_refuses():
    with Pretended() as gpu:
        here, index = torch.ones(3), torch.tensor([0, 2])
        there = here.to("cuda")
        for wrong in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: there.numpy(),
            lambda: np.asarray(there),
            lambda: here[index.to("cuda")],
            lambda: there.__setitem__(index, here[index]),
            lambda: torch.nn.Linear(3, 1)(there),
            lambda: torch.where(here > 0, there, 0.0),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        mixed = there + torch.tensor(1.0), there[index], there.new_zeros(2), torch.zeros(2, device=there.device)
        assert all(x.device == there.device for x in (*mixed, *(2 * there), there.to(torch.long).to(there)))
        assert (there.cpu() + here).tolist() == [2, 2, 2] and gpu.waits == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("experiment", [exp_iterate, exp_suppose])
def test_on_a_real_gpu(experiment, clean):
    run(experiment, "cpu", "cpu")
    run(experiment, "cuda", "gpu")
    same(experiment, "cpu", "gpu")
