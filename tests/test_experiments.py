"""Every experiment: its four names, its sizes, a few steps end to end, and what the log's figures rest on."""

import inspect
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import common
import exp_cosine_no_sam
import exp_sam
import sudoku
from data import sources, store
from plumbing import disk
from tests import experiments

PARAMETERS = {"sudoku": 800_265, "exp_recur_add": 800_265, "exp_no_x_after_init": 800_393, "exp_cosine": 800_393}


@pytest.mark.parametrize("name", experiments.names())
def test_smoke(name, clean):
    """The file trains, tests, saves and sums up; the checkpoint is the trained model and loads safely."""
    module = experiments.load(name)
    summary = module.main(["--preset", "smoke"])
    folder = clean / "runs" / name / "smoke-seed0"
    assert {"config.json", "metrics.csv", "log.txt", "checkpoint.pt", "summary.json"} <= {
        path.name for path in folder.iterdir()
    }
    saved = disk.load_checkpoint(folder / "checkpoint.pt")
    config = module.Config(**json.loads((folder / "config.json").read_text()))
    model = module.Model(config)
    model.load_state_dict(saved["model"])
    assert saved["step"] == config.steps == summary["steps"]
    rows = disk.read_rows(folder / "metrics.csv")
    assert int(rows[-1]["step"]) == config.steps
    assert math.isfinite(float(rows[-1]["loss"]))
    assert 0 <= summary["solved"] <= 1


@pytest.mark.parametrize("name", experiments.names())
def test_has_the_four_names(name):
    module = experiments.load(name)
    assert issubclass(module.Config, common.RunConfig)
    assert isinstance(module.Model(common.with_preset(module.Config(), "smoke")), torch.nn.Module)
    assert list(inspect.signature(module.train).parameters) == ["config"]
    assert callable(module.main)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_log(name):
    module = experiments.load(name)
    assert sum(p.numel() for p in module.Model(module.Config()).parameters()) == PARAMETERS[name]


def test_scale_wide_has_the_logs_parameters_not_its_width():
    import exp_scale_wide

    count = sum(p.numel() for p in exp_scale_wide.Model(exp_scale_wide.Config()).parameters())
    assert round(count / 1e6, 1) == 3.2


@pytest.mark.parametrize("preset", ["mini", "smoke"])
def test_presets_keep_the_change(preset):
    """What sets an experiment apart from its parent also does when both are shrunk."""
    pairs = [("sudoku", "sudoku_bs512", "batch"), ("exp_extreme_baseline", "exp_scale_wide", "width")]
    pairs += [("exp_extreme_baseline", "exp_scale_batch_4k", "batch"), ("train_mixed", "train_curriculum", "phases")]
    pairs += [("exp_cosine_no_sam", "exp_cosine_50k", "steps")]
    for parent, child, field in pairs:
        values = [getattr(common.with_preset(experiments.load(n).Config(), preset), field) for n in (parent, child)]
        assert values[0] != values[1], (parent, child, field)


@pytest.mark.parametrize(
    ("step", "expected"), [(85_000, 5.25e-4), (90_000, 4.46e-4), (95_000, 3.72e-4), (2_000, 1.5e-3), (140_000, 1.5e-5)]
)
def test_cosine_of_the_140k_run(step, expected):
    assert common.cosine_rate(step, 1.5e-3, 2_000, 140_000) == pytest.approx(expected, rel=2e-3)


def test_rates_of_the_70k_run():
    config = exp_cosine_no_sam.Config()
    rates = [common.cosine_rate(step, config.lr, config.warmup, config.steps) for step in range(config.steps)]
    assert rates[0] == pytest.approx(1.5e-3 / 2000)
    assert max(rates) == rates[1999] == rates[2000] == pytest.approx(1.5e-3)
    assert rates[-1] == pytest.approx(1.5e-5, rel=1e-3)
    assert common.warmup_rate(1999, 1.5e-3, 2000) == common.warmup_rate(60_000, 1.5e-3, 2000) == 1.5e-3


def test_sam_takes_the_gradient_uphill():
    """f = (a^2 + 4 b^2) / 2 at (3, 1): gradient (3, 4), norm 5; rho 0.5 climbs to (3.3, 1.4), gradient (3.3, 5.6)."""

    class Bowl(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (torch.nn.Parameter(torch.tensor([v])) for v in (3.0, 1.0))

        def loss(self):
            return (self.a**2 + 4 * self.b**2).sum() / 2

    bowl = Bowl()
    bowl.loss().backward()
    shifts = exp_sam.climb(bowl, 0.5)
    assert [p.item() for p in bowl.parameters()] == pytest.approx([3.3, 1.4])
    bowl.loss().backward()
    exp_sam.descend(bowl, shifts)
    assert [p.item() for p in bowl.parameters()] == pytest.approx([3.0, 1.0])
    assert [p.grad.item() for p in bowl.parameters()] == pytest.approx([3.3, 5.6])


def test_loss_counts_blank_cells_only():
    target = torch.full((1, 81), common.IGNORED)
    target[0, 5], target[0, 60] = 3, 7
    batch = common.Batch(None, target, None, 2)
    logits = torch.randn(1, 81, 9)
    expected = (F.cross_entropy(logits[0, 5], torch.tensor(3)) + F.cross_entropy(logits[0, 60], torch.tensor(7))) / 2
    assert sudoku.blank_loss(logits, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    shouted = torch.where(target[..., None] == common.IGNORED, 50 * logits, logits)
    assert torch.equal(sudoku.blank_loss(shouted, batch), sudoku.blank_loss(logits, batch))


def test_loss_is_the_mean_over_iterations_and_flows_back_through_predictions():
    config = common.with_preset(sudoku.Config(), "smoke")
    config.iterations = 3
    torch.manual_seed(0)
    model = sudoku.Model(config)
    puzzle = torch.randint(0, 10, (2, 81))
    target = torch.where(puzzle == 0, torch.randint(0, 9, (2, 81)), common.IGNORED)
    batch = common.Batch(puzzle, target, None, int((puzzle == 0).sum()))
    outputs = list(model(puzzle, 3))
    each = [sudoku.blank_loss(logits, batch) for logits in outputs]
    loss, last = sudoku.forward_loss(model, batch, None, config)
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-6)
    assert torch.equal(last, outputs[-1])
    assert torch.autograd.grad(each[2], outputs[0])[0].abs().sum() > 0


def test_first_iteration_sees_no_predictions():
    """With predictions at zero their projection adds nothing but its bias."""
    config = common.with_preset(exp_cosine_no_sam.Config(), "smoke")
    model = exp_cosine_no_sam.Model(config)
    puzzle = torch.randint(0, 10, (2, 81))
    before = next(model(puzzle, 1))
    with torch.no_grad():
        model.predicted.weight.normal_()
    assert torch.equal(before, next(model(puzzle, 1)))


class FakeRun:
    rank, world, device = 0, 1, torch.device("cpu")

    def __init__(self):
        self.pools = {}


def rated(edges):
    """A set whose puzzles all differ, ten to a rating 0, 1, 2, 3, 10, 11, 50, 51, 400."""
    ratings = np.repeat(np.array([0, 1, 2, 3, 10, 11, 50, 51, 400], np.float32), 10)
    solution = np.tile(np.arange(1, 10, dtype=np.uint8), (len(ratings), 9))
    puzzle = solution.copy()
    for i in range(len(puzzle)):
        puzzle[i, i % 81] = 0
    puzzle_set = store.from_arrays(puzzle, solution, ratings)
    return sources.Data(puzzle_set, puzzle_set, edges)


def test_pools_are_the_buckets_that_were_really_run():
    """70k steps: 51+ to 14k, 11+ to 28k, 1+ to 42k, then all; not the "21+, 6+, 1+" of the log's names."""
    config, data, run = exp_cosine_no_sam.Config(batch=64), rated(sources.EXTREME), FakeRun()
    for step in (0, 13_999, 14_000, 27_999, 28_000, 41_999, 42_000, 69_999):
        common.batch_at(config, data, run, step)
    lowest = [data.train.rating[pool].min() for pool in run.pools.values()]
    assert list(lowest) == [51, 11, 1, 0]
    assert len(run.pools) == 4
    assert all(len(pool) == (data.train.rating >= low).sum() for pool, low in zip(run.pools.values(), lowest))


def test_batches_are_a_function_of_seed_and_step():
    config, data = exp_cosine_no_sam.Config(batch=8), rated(sources.EXTREME)
    one, again = (common.batch_at(config, data, FakeRun(), 50_000) for _ in range(2))
    other = common.batch_at(config, data, FakeRun(), 50_001)
    config.seed = 1
    seeded = common.batch_at(config, data, FakeRun(), 50_000)
    assert torch.equal(one.puzzle, again.puzzle) and torch.equal(one.keys, again.keys)
    assert not torch.equal(one.puzzle, other.puzzle) and not torch.equal(one.puzzle, seeded.puzzle)


def test_processes_share_the_batch():
    config, data = exp_cosine_no_sam.Config(batch=8), rated(sources.EXTREME)
    whole = common.batch_at(config, data, FakeRun(), 50_000)
    parts = []
    for rank in range(4):
        run = FakeRun()
        run.rank, run.world = rank, 4
        parts.append(common.batch_at(config, data, run, 50_000))
    assert torch.equal(torch.cat([part.puzzle for part in parts]), whole.puzzle)
    assert torch.equal(torch.cat([part.keys for part in parts]), whole.keys)
    assert {part.blanks for part in parts} == {whole.blanks}


def test_targets_are_digits_on_blanks_only():
    data = rated(sources.EXTREME)
    batch = common.batch_at(exp_cosine_no_sam.Config(batch=8), data, FakeRun(), 50_000)
    blank = batch.puzzle == 0
    assert (batch.target[~blank] == common.IGNORED).all()
    assert (batch.target[blank] >= 0).all() and batch.blanks == blank.sum() == 8


def test_an_empty_pool_is_an_error():
    config = exp_cosine_no_sam.Config(batch=8, phases=((10, 500.0, math.inf),))
    with pytest.raises(SystemExit, match="no training puzzle"):
        common.batch_at(config, rated(sources.EXTREME), FakeRun(), 0)


def test_exact_evaluation_counts_by_bucket_and_iteration():
    """A stand-in that is right on bucket 0 from its first iteration, on the rest from its third."""
    data = rated(sources.EXTREME)
    data.natural = [0.5, 0.125, 0.125, 0.125, 0.125]

    class Oracle(torch.nn.Module):
        def forward(self, puzzle, iterations):
            digits = torch.arange(9).repeat(9).expand(len(puzzle), 81)
            easy = torch.isin((puzzle == 0).int().argmax(1), torch.arange(10))
            for i in range(iterations):
                right = easy | torch.tensor(i >= 2)
                yield F.one_hot(torch.where(right[:, None], digits, (digits + 1) % 9), 9).float()

    table = common.evaluate(Oracle(), data, FakeRun(), [1, 3], batch=7)
    assert table[1]["solved"][0] == 10 and table[1]["puzzles"] == [10, 20, 20, 20, 20]
    assert table[3]["share"] == 1.0 and table[3]["share_natural"] == pytest.approx(1.0)
    # a blank at places 0-9 is "easy" to the stand-in: rows 0-9 and 81-89, that is all of bucket 0 and nine of 51+
    assert table[1]["solved"] == [10, 0, 0, 0, 9]
    assert table[1]["share_natural"] == pytest.approx(0.5 + 0.125 * 9 / 20)


def test_symmetries_keep_a_grid_legal_and_the_clues_in_place():
    solution = np.tile(np.array([(3 * (r % 3) + r // 3 + c) % 9 + 1 for r in range(9) for c in range(9)]), (200, 1))
    random = np.random.default_rng(0)
    solution = solution.astype(np.uint8)
    puzzle = solution * (random.random((200, 81)) < 0.4)
    moved, moved_solution = sources.symmetries(puzzle, solution, random)
    boards = moved_solution.reshape(-1, 9, 9)
    boxes = boards.reshape(-1, 3, 3, 3, 3).transpose(0, 1, 3, 2, 4).reshape(-1, 9, 9)
    for unit in (boards, boards.transpose(0, 2, 1), boxes):
        assert (np.sort(unit, 2) == np.arange(1, 10)).all()
    assert ((moved == moved_solution) | (moved == 0)).all()
    assert ((moved > 0).sum(1) == (puzzle > 0).sum(1)).all()
    assert len(np.unique(moved_solution, axis=0)) > 195
