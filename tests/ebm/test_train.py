"""The log's five runs: sizes and settings, loss terms worked out by hand, the five bugs of run 1, a run's life."""

import functools
import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import common
import ebm.run
import plumbing.run
from ebm import train
from ebm.run import parse, wrong_value
from ebm.train import Config, Model, configured, constraint_penalty, losses, one_hot, vicreg
from plumbing import disk
from tests.data import puzzles as sets
from tests.processes import start

ROOT = Path(train.__file__).resolve().parent.parent
SMOKE = ["--preset", "smoke"]
FOLDER = Path("runs/ebm/run4-smoke-seed0")
TERMS = ("total", "energy", "vicreg", "decode", "constraint")
VARIANCES = ("variance_prediction", "variance_context", "variance_target")
COLUMNS = tuple(f"{z}_{what}" for z in ("zero", "random", "oracle") for what in ("cells", "puzzles"))


@pytest.fixture(scope="module", autouse=True)
def checksums_once():
    """Every run notes the checksums of its code, which does not change meanwhile."""
    once = functools.cache(plumbing.run.checksums)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plumbing.run, "checksums", lambda files: dict(once(tuple(files))))
        yield


def model_of(run=4, **changes):
    torch.manual_seed(0)
    return Model(replace(configured(run, "smoke"), **changes))


def boards(count=4, clues=40, seed=0):
    """(puzzle, solution), int64 [count, 81]"""
    found = sets.make(count, seed, clues).rows(np.arange(count))
    return [torch.from_numpy(board.astype(np.int64)) for board in found]


def noise_of(model, count=4):
    return 0.1 * torch.randn(count, model.config.latent, generator=torch.Generator().manual_seed(1))


def seeded(model, first=0, count=4):
    common.seed_dropout(model, torch.arange(first, first + count, dtype=torch.int32))


# ---------------------------------------------------------------- the log's runs


@pytest.mark.parametrize(
    "run, trained", [(1, 7_439_049), (2, 7_471_945), (3, 7_471_945), (4, 7_471_945), (5, 36_505_481)]
)
def test_parameters(run, trained):
    model = Model(configured(run))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert not any(p.requires_grad for p in model.target_encoder.parameters())


@pytest.mark.parametrize(
    "run, facts",
    [
        (1, dict(z_encoder=False, z_noise=1.0, unit_norm=False, constraint_weight=0.0, batch=512, puzzles=100_000)),
        (2, dict(z_encoder=True, z_noise=1.0, unit_norm=False, constraint_weight=0.0, batch=512, puzzles=9_000_000)),
        (3, dict(z_encoder=True, z_noise=1.0, unit_norm=False, constraint_weight=0.0, batch=2048)),
        (4, dict(z_encoder=True, z_noise=0.1, unit_norm=True, constraint_weight=0.1, batch=2048, width=256)),
        (5, dict(z_encoder=True, z_noise=0.1, unit_norm=True, constraint_weight=0.1, batch=None, width=512)),
    ],
)
def test_runs_of_the_log(run, facts):
    config = configured(run)
    always = dict(epochs=20, lr=3e-4, warmup=2_000, weight_decay=0.01, clip=1.0, ema=0.996, dropout=0.1)
    always |= dict(vicreg_on="context", vicreg_variance=1.0, vicreg_covariance=0.01, decode_weight=1.0)
    always |= dict(decode_cells="blank", target_input="random")
    assert {name: getattr(config, name) for name in facts | always} == facts | always


def test_the_default_is_run_4():
    assert Config() == configured() == configured(4) == replace(parse(Config, []), name="")
    assert replace(parse(Config, ["--run=2", "--seed", "3"]), name="") == replace(configured(2), seed=3)
    assert parse(Config, ["--run", "2", "--preset", "mini", "--seed", "3"]).name == "run2-mini-seed3"


@pytest.mark.parametrize("preset", ["full", "mini", "smoke"])
def test_presets_keep_what_a_run_changes(preset):
    configs = {run: configured(run, preset) for run in train.RUNS}
    assert not any(map(wrong_value, configs.values()))
    for run, changes in train.RUNS.items():
        for name in changes.keys() & {"z_encoder", "unit_norm", "z_noise", "constraint_weight"}:
            assert getattr(configs[run], name) == changes[name]
    assert configs[5].width == 2 * configs[4].width and configs[2].batch * 4 == configs[3].batch == configs[4].batch


def test_mini():
    config = configured(4, "mini")
    assert (config.width, config.layers, config.data) == (64, 3, "generated:71")
    assert config.vicreg_covariance * config.width == pytest.approx(configured(4).vicreg_covariance * 256)


def test_learning_rate_follows_the_root_of_the_batch():
    peaks = [
        max(train.learning_rate(replace(configured(run), steps=99_000), step) for step in range(3_000))
        for run in (1, 3)
    ]
    assert peaks == pytest.approx([3e-4, 6e-4])


@pytest.mark.parametrize("memory, batch", [(8, 256), (12.9, 512), (25.4, 1024), (33.7, 1024), (42, 2048), (151, 2048)])
def test_batch_by_memory(memory, batch, monkeypatch):
    card = SimpleNamespace(total_memory=memory * 1e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert ebm.run.batch_for(torch.device("cuda")) == batch
    assert ebm.run.batch_for(torch.device("cpu")) == 512


# ---------------------------------------------------------------- the model


def test_a_layer_is_pytorch_s():
    """Pre-norm, GELU, attention over all cells: as nn.TransformerEncoderLayer with the same weights."""
    torch.manual_seed(0)
    ours, theirs = (
        train.Layer(16, 2, 64, 0.1).eval(),
        nn.TransformerEncoderLayer(16, 2, 64, 0.1, "gelu", batch_first=True, norm_first=True).eval(),
    )
    names = {"self_attn.in_proj_": "qkv.", "self_attn.out_proj.": "out.", "linear1.": "up.", "linear2.": "down."}
    names |= {"norm1.": "norm_attention.", "norm2.": "norm_mlp."}
    weights = {}
    for name, weight in theirs.state_dict().items():
        theirs_name = next(start for start in names if name.startswith(start))
        weights[name.replace(theirs_name, names[theirs_name])] = weight + 0.1 * torch.randn_like(weight)
        weight.copy_(weights[name.replace(theirs_name, names[theirs_name])])
    ours.load_state_dict(weights)
    h = torch.randn(3, 81, 16)
    with torch.no_grad():
        assert torch.allclose(ours(h), theirs(h), atol=1e-5)
    drawn = nn.TransformerEncoderLayer(256, 8, 1024).self_attn.in_proj_weight.std()
    assert train.Layer(256, 8, 1024, 0).qkv.weight.std().item() == pytest.approx(drawn.item(), rel=0.02)


def test_layers_start_equal():
    encoder = model_of(layers=3).context_encoder
    first, *others = [layer.state_dict() for layer in encoder.cells.layers]
    assert len(others) == 2 and all(torch.equal(first[name], other[name]) for other in others for name in first)


def test_an_encoder_knows_places():
    """The mean over cells would be the same for any order of the cells without the embeddings."""
    model, (puzzle, _) = model_of().eval(), boards()
    moved = puzzle.view(-1, 9, 9).transpose(1, 2).flatten(1)
    assert not torch.allclose(model.context(puzzle), model.context(moved), atol=1e-4)
    row, column, box = model.context_encoder.cells.places
    for cell, place in ((0, (0, 0, 0)), (40, (4, 4, 4)), (33, (3, 6, 5))):
        assert (row[cell], column[cell], box[cell]) == place
    for embedding in ("row", "column", "box"):
        before = model.context(puzzle)
        getattr(model.context_encoder.cells, embedding).weight.data.zero_()
        assert not torch.allclose(model.context(puzzle), before, atol=1e-4), embedding
    assert torch.allclose(model.context(puzzle), model.context(moved), atol=1e-4)


def test_embeddings_of_places_start_with_the_spread_that_is_asked_for():
    usual, small = model_of(width=64), model_of(width=64, embedding=0.1)
    for place in ("row", "column", "box"):
        for part in ("context_encoder", "target_encoder", "decoder"):
            wide, narrow = (getattr(getattr(model, part).cells, place).weight for model in (usual, small))
            assert 0.8 < wide.std() < 1.2 and torch.allclose(narrow, 0.1 * wide)
    assert torch.equal(usual.context_encoder.input.weight, small.context_encoder.input.weight)


def test_predictor_by_its_formula():
    p = model_of().predictor
    both = torch.randn(3, p.first.in_features)
    first = F.gelu(p.first(both))
    wanted = p.last(p.norm(first + F.gelu(p.second(first))))
    assert torch.equal(p(both), wanted)


def test_clues_are_enforced():
    model, (puzzle, solution) = model_of(), boards()
    logits = model.eval().decode(model.context(puzzle), torch.zeros(4, model.config.latent), puzzle)
    clue = puzzle > 0
    assert torch.equal(logits[clue], 1e6 * one_hot(solution)[clue])
    assert logits[~clue].abs().max() < 100


def test_z_comes_from_the_solution_but_in_run_1():
    _, solution = boards()
    for run, length in ((1, None), (2, None), (4, 1.0)):
        model = model_of(run)
        z_target, noise = model.eval().target(one_hot(solution)), noise_of(model)
        z = model.latent(z_target, noise)
        if run == 1:
            assert torch.equal(z, noise)
            continue
        wanted = model.z_encoder(z_target)
        assert torch.allclose(z - noise, wanted / wanted.norm(dim=1, keepdim=True) if length else wanted, atol=1e-6)


def test_the_target_encoder_is_an_average():
    model = model_of()
    theirs, mine = model.context_encoder.state_dict(), model.target_encoder.state_dict()
    others = [name for name in mine if name != "input.weight"]
    assert all(torch.equal(mine[name], theirs[name]) for name in others), "it starts as a copy"
    before = {name: value.clone() for name, value in mine.items()}
    with torch.no_grad():
        for p in model.context_encoder.parameters():
            p.add_(1.0)
    model.update_target(0.75)
    for name in others:
        assert torch.allclose(mine[name], before[name] + 0.25, atol=1e-6), name
    assert torch.equal(mine["input.weight"], before["input.weight"]), "neither copied nor averaged"


def test_the_target_s_input_can_be_trained():
    model = model_of(target_input="trained")
    mine, theirs = model.target_encoder.input.weight, model.context_encoder.input.weight
    assert torch.equal(mine, theirs[:, 1:])
    before = mine.clone()
    theirs.data.add_(1.0)
    model.update_target(0.9)
    assert torch.allclose(mine, before + 0.1, atol=1e-6)


def test_the_target_encoder_has_dropout_in_training_and_gives_gradients_to_boards_only():
    model, (_, solution) = model_of().train(), boards()
    found = []
    for first in (0, 0, 9):
        seeded(model, first)
        found.append(model.target(one_hot(solution)))
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2], atol=1e-3)
    model.eval()
    board = one_hot(solution).requires_grad_()
    model.target(board).square().sum().backward()
    assert board.grad.abs().sum() > 0 and all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------- losses, worked out by hand


def test_constraint_penalty_by_hand():
    solution = boards(1)[1][0]
    wrong = solution.clone()
    wrong[40] = wrong[40] % 9 + 1  # a row, a column and a box each have one digit twice and lack one: 3 x 2
    ones = torch.ones(81, dtype=torch.int64)  # each group: (9 - 1)^2 for the ones, 1 for each of eight digits: 27 x 72
    lines = torch.arange(1, 10).repeat(9)  # columns 9 x 72; boxes: three digits thrice, six lacking: 9 x (3 x 4 + 6)
    found = constraint_penalty(one_hot(torch.stack([solution, wrong, ones, lines, lines.view(9, 9).T.flatten()])))
    assert found.tolist() == [0, 6, 27 * 72, 9 * 72 + 9 * 18, 9 * 72 + 9 * 18]
    half = (one_hot(solution[None]) + one_hot(wrong[None])) / 2  # half a digit too much, half a digit short: 3 x 2 / 4
    assert constraint_penalty(half).tolist() == [1.5]
    assert constraint_penalty(torch.full((1, 81, 9), 1 / 9)).item() == pytest.approx(0, abs=1e-9)


def test_vicreg_by_hand():
    config = Config()
    one_dimension = torch.tensor([[0.0, 3.0], [2.0, 3.0]])  # deviations sqrt(2) and 0, no covariance
    assert vicreg(one_dimension, config).item() == pytest.approx((0 + 1) / 2)
    equal = torch.tensor([[0.3, 0.3], [-0.3, -0.3]])  # deviations sqrt(0.18), covariance 0.18
    both = (1 - 0.18**0.5) + 0.01 * (2 * 0.18**2) / 2
    assert vicreg(equal, config).item() == pytest.approx(both)
    first = replace(config, **train.FIRST_FORM)
    assert vicreg(equal, first).item() == pytest.approx(25 * (1 - 0.18**0.5) + 0.18**2)


class Worked(nn.Module):
    """A model whose loss can be worked out: it predicts (0, 0), the target says (1, 2), all logits are 0 on blanks."""

    def __init__(self, logits=None):
        super().__init__()
        self.logits = logits

    def context(self, puzzle):
        return torch.tensor([[0.3, 0.3], [-0.3, -0.3]])

    def target(self, board):
        return torch.tensor([[1.0, 2.0], [0.0, 1.0]])

    def latent(self, z_target, noise):
        return noise

    def predict(self, z_context, z):
        return torch.zeros(2, 2)

    def decode(self, z_context, z, puzzle):
        logits = torch.zeros(2, 81, 9) if self.logits is None else self.logits
        return torch.where(puzzle[..., None] > 0, 1e6 * F.one_hot(puzzle, 10)[..., 1:].float(), logits)


def test_losses_by_hand():
    puzzle, solution = boards(2)
    terms, _ = losses(Worked(), puzzle, solution, None, Config())
    vicreg_term = (1 - 0.18**0.5) + 0.01 * 0.18**2
    penalty = constraint_penalty(Worked().decode(None, None, puzzle).softmax(-1)).mean().item()
    assert terms["energy"].item() == pytest.approx((5 + 1) / 2)
    assert terms["vicreg"].item() == pytest.approx(vicreg_term)
    assert terms["decode"].item() == pytest.approx(np.log(9))
    assert terms["constraint"].item() == pytest.approx(penalty) and penalty > 1
    assert terms["total"].item() == pytest.approx(3 + vicreg_term + np.log(9) + 0.1 * penalty)
    assert [terms[name].item() for name in VARIANCES] == pytest.approx([0, 0.18, 0.5])
    first = losses(Worked(), puzzle, solution, None, replace(configured(1), **train.FIRST_FORM))[0]
    assert first["total"].item() == pytest.approx(3 + 25 + 0.1 * first["decode"].item())


def test_training_goes_where_it_should():
    """z_encoder is trained through z; the target encoder is not trained at all."""
    model, (puzzle, solution) = model_of().train(), boards()
    seeded(model)
    losses(model, puzzle, solution, noise_of(model), model.config)[0]["total"].backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"context_encoder", "z_encoder", "predictor", "decoder"}


# ---------------------------------------------------------------- the five bugs of run 1


def test_bug_1_the_solution_is_row_column_digit():
    """For the target encoder as for the decoder, the token of a cell holds that cell's digit."""
    model, (puzzle, solution) = model_of().eval(), boards(2)
    seen = []
    model.target_encoder.input.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    losses(model, puzzle, solution, noise_of(model, 2), model.config)
    assert torch.equal(seen[0].argmax(-1) + 1, solution) and torch.equal(seen[0].sum(-1), torch.ones(2, 81))
    right = losses(Worked(50 * one_hot(solution)), puzzle, solution, None, Config())[0]
    assert right["decode"].item() == pytest.approx(0, abs=1e-6)
    scrambled = 50 * one_hot(solution).transpose(1, 2).reshape(2, 81, 9)  # digit first
    assert losses(Worked(scrambled), puzzle, solution, None, Config())[0]["decode"].item() > 10


def test_bug_2_clues_do_not_count_in_the_decode_loss():
    puzzle, solution = boards(2, clues=60)
    blank = losses(Worked(), puzzle, solution, None, Config())[0]["decode"]
    every = losses(Worked(), puzzle, solution, None, Config(decode_cells="all"))[0]["decode"]
    assert blank.item() == pytest.approx(np.log(9)) and every.item() == pytest.approx(np.log(9) * 21 / 81)


@pytest.mark.parametrize(
    "on, reached", [("context", {"context_encoder"}), ("prediction", {"context_encoder", "predictor"})]
)
def test_bug_3_vicreg_is_on_the_context(on, reached):
    model, (puzzle, solution) = model_of(1, vicreg_on=on).train(), boards()
    seeded(model)
    losses(model, puzzle, solution, noise_of(model), model.config)[0]["vicreg"].backward()
    assert {
        name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    } == reached
    assert Config().vicreg_on == "context"


@pytest.mark.parametrize("steps", [5, 880, 100_000])
def test_bug_4_the_warm_up_ends(steps):
    """The log's 100,000 puzzles and 5 epochs are 880 steps, fewer than its warm-up of 2,000."""
    config = replace(configured(1), steps=steps)
    rates = [train.learning_rate(config, step) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(3e-4) and top == max(0, min(2_000, steps // 5) - 1)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < (0.1 if steps > 5 else 0.5) * max(rates)
    assert train.learning_rate(config, steps) == pytest.approx(0, abs=1e-12)


def columns(zero, oracle=0.5, std=1.0):
    values = {"zero": zero, "random": 0.1, "oracle": oracle}
    cells = {f"{name}_cells": value for name, value in values.items()}
    return cells | {f"{name}_puzzles": 0.0 for name in values} | {"std_context": std, "std_target": std}


def told(monkeypatch, rows):
    """Have the validations of a run find these rows, one after the other."""
    rows = iter(rows)
    monkeypatch.setattr(ebm.run, "validate", lambda model, puzzles, run: next(rows))


def best_files():
    return sorted(int(path.stem.split("-")[1]) for path in FOLDER.glob("best-*.pt"))


def test_bug_5_the_best_checkpoints_have_most_blanks_right(clean, monkeypatch):
    """Energy falls all the time, and the oracle is best where the honest column is worst: neither decides."""
    shares = [0.2, 0.6, 0.4, 0.5, 0.3, 0.1]
    told(monkeypatch, [columns(share, oracle=1 - share) for share in shares])
    energies, real = iter(range(6, 0, -1)), train.losses

    def falling(*arguments):
        terms, logits = real(*arguments)
        return terms | {"energy": torch.tensor(float(next(energies)))}, logits

    monkeypatch.setattr(train, "losses", falling)
    summary = train.main([*SMOKE, "--evaluate-every", "1"])
    assert best_files() == [2, 3, 4] and summary["best"] == {"step": 2, "zero_cells": 0.6}
    rows = disk.read_rows(FOLDER / "metrics.csv")
    assert [float(row["energy"]) for row in rows] == [6, 5, 4, 3, 2, 1]
    assert disk.load_checkpoint(FOLDER / "best-0000002.pt")["zero_cells"] == 0.6


# ---------------------------------------------------------------- validation


def test_honest_columns_do_not_see_the_answer(monkeypatch):
    """With other answers, the boards at z = 0 and at random z stay the same; the oracle's change."""
    model, found = model_of().train(), []
    real = Model.decode
    monkeypatch.setattr(Model, "decode", lambda *a: found.append(real(*a)) or found[-1])
    run = SimpleNamespace(rank=0, world=1, device=torch.device("cpu"))
    puzzles, others = sets.make(20, seed=1), sets.make(20, seed=2)
    right = ebm.run.validate(model, puzzles, run)
    wrong = ebm.run.validate(model, Answers(puzzles, others), run)
    zero, random, oracle, *again = found
    assert torch.equal(zero, again[0]) and torch.equal(random, again[1]) and not torch.equal(oracle, again[2])
    assert not torch.equal(zero, random)
    assert set(right) == set(wrong) == {*COLUMNS, "std_context", "std_target"} and model.training


class Answers:
    """The puzzles of one set with the solutions of another."""

    def __init__(self, puzzles, others):
        self.puzzles, self.others = puzzles, others

    def __len__(self):
        return len(self.puzzles)

    def rows(self, rows):
        return self.puzzles.rows(rows)[0], self.others.rows(rows)[1]


def test_validation_counts_blanks_and_puzzles(monkeypatch):
    """A model that is told the solutions, less one blank in every fourth puzzle, in more than one forward pass."""
    puzzles = sets.make(40, seed=3, clues=71)
    puzzle, solution = (torch.from_numpy(board.astype(np.int64)) for board in puzzles.rows(np.arange(40)))
    answer = solution.clone()
    for row in range(0, 40, 4):
        cell = (puzzle[row] == 0).nonzero()[0]
        answer[row, cell] = answer[row, cell] % 9 + 1
    monkeypatch.setattr(ebm.run, "AT_ONCE", 16)
    calls = []

    def decode(model, z_context, z, given):
        calls.append(z)
        part = (len(calls) - 1) // 3
        return one_hot(answer[16 * part : 16 * part + 16]) if z.any() else one_hot(solution[16 * part : 16 * part + 16])

    monkeypatch.setattr(Model, "decode", decode)
    run = SimpleNamespace(rank=0, world=1, device=torch.device("cpu"))
    row = ebm.run.validate(model_of(), puzzles, run)
    assert (row["zero_cells"], row["zero_puzzles"]) == (1, 1) and len(calls) == 9
    for name in ("random", "oracle"):
        assert row[f"{name}_puzzles"] == 0.75 and row[f"{name}_cells"] == pytest.approx(1 - 10 / 400)


def test_a_collapsed_encoder_is_noticed():
    """An encoder that gives every puzzle the same vector; dropout, which would hide it, is off in validations."""
    run = SimpleNamespace(rank=0, world=1, device=torch.device("cpu"))
    for part in ("context", "target"):
        model = model_of().train()
        fine = ebm.run.validate(model, sets.make(12), run)
        assert min(fine["std_context"], fine["std_target"]) > ebm.run.COLLAPSED
        getattr(model, f"{part}_encoder").cells.layers = nn.ModuleList()
        getattr(model, f"{part}_encoder").input.weight.data.zero_()
        row = ebm.run.validate(model, sets.make(12), run)
        assert row[f"std_{part}"] < ebm.run.COLLAPSED


def test_a_collapse_is_reported(clean, monkeypatch, capsys):
    told(monkeypatch, [columns(0.1), columns(0.1, std=1e-4), columns(0.1, std=1e-5)])
    assert train.main(SMOKE)["collapsed_at"] == 4
    output = capsys.readouterr().out
    assert "# collapse: over puzzles z_context varies by 0.0001" in output and "summary: collapsed at step 4" in output


# ---------------------------------------------------------------- a run


@pytest.mark.parametrize("run", [1, 2, 3, 4, 5])
def test_every_run_trains(run, clean, capsys):
    summary = train.main([*SMOKE, "--run", str(run)])
    folder = Path(f"runs/ebm/run{run}-smoke-seed0")
    rows = disk.read_rows(folder / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 7))
    assert all(np.isfinite(float(row[name])) for row in rows for name in (*TERMS, *VARIANCES, "lr"))
    assert [float(row["ema"]) for row in rows] == pytest.approx([0.996 + 0.004 * step / 6 for step in range(6)])
    tested = [row for row in rows if row["zero_cells"]]
    assert [int(row["step"]) for row in tested] == [2, 4, 6] and all(row[name] for row in tested for name in COLUMNS)
    assert summary["solved"] == float(rows[-1]["zero_puzzles"]) and summary["validation"]["puzzles"] == 12
    model, config = train.load_model(folder / "checkpoint.pt")
    assert config.run == run and config.steps == 6 and not model.training
    assert summary["parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    asked = "" if run == 4 else f"--run {run} "
    words = f"python -m ebm.train --preset smoke {asked}".split()
    assert sorted(summary["command"].split()) == sorted(words)
    assert "oracle, which sees the solution" in capsys.readouterr().out


def test_a_step_by_hand(clean):
    """The first step of a run: this batch, these masks, a clipped gradient, AdamW, then the average."""
    train.main([*SMOKE, "--steps", "1", "--ema", "0.5", "--clip", "0.1", "--weight-decay", "1"])
    saved = disk.load_checkpoint(FOLDER / "checkpoint.pt")
    config = Config(**saved["config"])
    torch.manual_seed(0)
    model = Model(config)
    run = SimpleNamespace(rank=0, world=1, device=torch.device("cpu"))
    batch = train.batch_at(config, train.load(config), run, 0)
    common.seed_dropout(model, batch.seeds)
    losses(model, batch.puzzle, batch.solution, batch.noise, config)[0]["total"].backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert nn.utils.clip_grad_norm_(parameters, 0.1) > 0.2
    optimizer = torch.optim.AdamW(parameters, lr=3e-3 * (16 / 512) ** 0.5, weight_decay=1.0)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    optimizer.step()
    for name, p in model.target_encoder.named_parameters():
        if name != "input.weight":
            p.data = (p + model.context_encoder.get_parameter(name)) / 2
    for name, value in saved["model"].items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-6), name


class Killed(Exception):
    pass


def killed_at(step, flags):
    """Train until this step has begun, then end as if by a kill."""
    with pytest.MonkeyPatch.context() as patch:
        real = train.batch_at

        def batch_at(config, data, run, now):
            if now == step:
                run.close()
                raise Killed
            return real(config, data, run, now)

        patch.setattr(train, "batch_at", batch_at)
        with pytest.raises(Killed):
            train.main(flags)


def results(folder):
    """(weights, metrics less the clock, best checkpoints)"""
    rows = disk.read_rows(folder / "metrics.csv")
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "puzzles_per_second")} for row in rows]
    best = {path.name: disk.load_checkpoint(path)["model"] for path in folder.glob("best-*.pt")}
    return disk.load_checkpoint(folder / "checkpoint.pt")["model"], rows, best


def assert_same(one, two):
    assert one[1] == two[1] and one[2].keys() == two[2].keys()
    for a, b in [(one[0], two[0]), *((one[2][name], two[2][name]) for name in one[2])]:
        assert all(torch.equal(a[name], b[name]) for name in a)


LONG = [*SMOKE, "--steps", "12", "--save-every", "3"]  # validations at 2, 4, ...: between two checkpoints, too


def test_a_killed_run_resumes_to_the_same_weights(clean):
    train.main([*LONG, "--name", "whole"])
    for step in (1, 5, 7, 11):
        killed_at(step, [*LONG, "--name", "killed", "--resume"])
    train.main([*LONG, "--name", "killed", "--resume"])
    assert Path("runs/ebm/killed/log.txt").read_text().count("# resumed after step") == 3
    assert_same(results(Path("runs/ebm/whole")), results(Path("runs/ebm/killed")))


def test_a_real_kill(clean):
    """The file started by its path, as in Modal's container, where this folder's data.py is in front of data/."""
    flags = [*SMOKE, "--steps", "60", "--save-every", "4", "--evaluate-every", "30"]
    folder = clean / "runs/ebm/killed"
    process = start(ROOT / "ebm/train.py", *flags, "--name", "killed")
    deadline = time.monotonic() + 120
    while not (folder / "metrics.csv").exists() or len(disk.read_rows(folder / "metrics.csv")) < 6:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    train.main([*flags, "--name", "killed", "--resume"])
    assert "# resumed after step" in (folder / "log.txt").read_text()
    train.main([*flags, "--name", "whole"])
    assert_same(results(folder), results(clean / "runs/ebm/whole"))


def test_a_signal_ends_a_run_that_has_saved(clean):
    real, number = train.batch_at, signal.SIGTERM
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(train, "batch_at", lambda *a: (a[3] == 4 and signal.raise_signal(number), real(*a))[1])
        train.main(LONG)
    assert end.value.code == 128 + number and disk.load_checkpoint(FOLDER / "checkpoint.pt")["step"] == 5
    train.main([*LONG, "--resume"])
    train.main([*LONG, "--name", "whole"])
    assert_same(results(FOLDER), results(Path("runs/ebm/whole")))


def test_a_folder_is_not_overwritten(clean):
    first = train.main(SMOKE)
    with pytest.raises(SystemExit, match="--resume"):
        train.main(SMOKE)
    assert train.main([*SMOKE, "--resume"]) == first
    with pytest.raises(SystemExit, match=r"z_noise: 0\.1 then, 0\.2 now"):
        train.main([*SMOKE, "--resume", "--z-noise", "0.2"])


def test_gradients_of_two_shares_add_up_to_those_of_the_batch():
    """VICReg's statistics and the mean over all blanks included, though the shares differ in their blanks."""
    model, (puzzle, solution), seeds = model_of().train(), boards(4), torch.arange(4, dtype=torch.int32)
    puzzle[0] = solution[0].where(torch.arange(81) > 0, 0)
    noise = noise_of(model)

    def gradients(rows, whole):
        common.seed_dropout(model, seeds[rows])
        terms, _ = losses(model, puzzle[rows], solution[rows], noise[rows], model.config, whole)
        model.zero_grad()
        terms["total"].backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    alone = gradients(slice(4), lambda share: share)
    halves, shares = (slice(0, 2), slice(2, 4)), ([], [])
    for rows, kept in zip(halves, shares):
        gradients(rows, lambda share: kept.append(share.detach()) or share)  # noqa: B023
    added = []
    for rank, rows in enumerate(halves):
        gathered = map(torch.cat, zip(*shares))
        process = SimpleNamespace(world=2, rank=rank, gathered=lambda share: next(gathered))  # noqa: B023
        added.append(gradients(rows, lambda share: ebm.run.Run.whole(process, share)))  # noqa: B023
    assert len(alone) == len(added[0]) > 40
    for one, first, second in zip(alone, *added):
        assert torch.allclose(one, first + second, atol=1e-5)


def test_torchrun_gives_the_same_curve_and_weights(clean):
    """Two processes that share each batch: dropout, noise and VICReg's statistics are those of the whole batch."""
    flags = [*SMOKE, "--steps", "8"]
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "ebm.train"]
    process = start(*words, *flags, "--name", "two")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    train.main([*flags, "--name", "one"])
    one, two = (disk.read_rows(clean / f"runs/ebm/{name}/metrics.csv") for name in ("one", "two"))
    assert len(one) == len(two) == 8
    for a, b in zip(one, two):
        for name in (*TERMS, *VARIANCES):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-4, abs=1e-6), (a["step"], name)
        assert [a[name] for name in COLUMNS] == [b[name] for name in COLUMNS]
    one, two = (disk.load_checkpoint(clean / f"runs/ebm/{name}/checkpoint.pt")["model"] for name in ("one", "two"))
    for name in one:  # a step changes a weight by about 5e-4
        assert torch.allclose(one[name], two[name], rtol=0, atol=5e-5), name


def test_a_run_that_diverges_ends_with_a_summary(clean, monkeypatch):
    real, calls = train.losses, []

    def broken(*arguments):
        calls.append(1)
        terms, logits = real(*arguments)
        return (terms | {"total": terms["total"] * float("nan")} if len(calls) == 4 else terms), logits

    monkeypatch.setattr(train, "losses", broken)
    with pytest.raises(SystemExit) as end:
        train.main([*SMOKE, "--report-every", "6"])
    assert end.value.code == 0
    summary = json.loads((FOLDER / "summary.json").read_text())
    assert summary["diverged_at"] == 4 and summary["solved"] is None
    assert disk.load_checkpoint(FOLDER / "checkpoint.pt")["step"] == 2 and best_files() == [2]


def test_best_checkpoints_survive_a_full_disk(clean, monkeypatch):
    saves, real = [], torch.save

    def save(state, file):
        saves.append(state)
        if "zero_cells" in state and state["step"] == 4:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        real(state, file)

    told(monkeypatch, [columns(0.1), columns(0.2), columns(0.3)])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match=r"best-0000004\.pt: .*No space left"):
        patch.setattr(torch, "save", save)
        train.main(SMOKE)
    assert best_files() == [2] and not list(FOLDER.glob("*.tmp"))
    train.load_model(FOLDER / "best-0000002.pt")


# ---------------------------------------------------------------- Weights & Biases


class Recorder:
    """Stands in for a W&B run."""

    offline = False

    def __init__(self, problem=None):
        self.rows, self.artifacts, self.summary, self.problem = [], [], {}, problem

    def log(self, row, step):
        self.rows.append((step, row))

    def log_artifact(self, artifact):
        if self.problem == "hangs":
            time.sleep(60)
        if self.problem:
            raise RuntimeError(self.problem)
        self.artifacts.append(artifact)
        return SimpleNamespace(wait=lambda seconds: None)

    def finish(self):
        pass


@pytest.fixture
def wandb_run(clean, monkeypatch):
    """Trains with a recorder in place of W&B's run. -> (the recorder, the log)"""
    wandb = pytest.importorskip("wandb")

    def trained(problem=None, seconds=60.0):
        recorder = Recorder(problem)
        monkeypatch.setattr(wandb, "init", lambda **options: recorder)
        monkeypatch.setattr(ebm.run, "UPLOAD_SECONDS", seconds)
        told(monkeypatch, [columns(0.1), columns(0.3), columns(0.2)])
        summary = train.main([*SMOKE, "--wandb", "offline"])
        assert summary["best"]["step"] == 4 and json.loads((FOLDER / "summary.json").read_text()) == summary
        return recorder, (FOLDER / "log.txt").read_text()

    return trained


def test_the_best_checkpoint_is_uploaded(wandb_run):
    recorder, log = wandb_run()
    (artifact,) = recorder.artifacts
    assert artifact.type == "model" and list(artifact.manifest.entries) == ["best-0000004.pt"]
    assert artifact.metadata == {"step": 4, "zero_cells": 0.3} and "best-0000004.pt sent" in log
    assert {*TERMS, *VARIANCES, "ema"} <= recorder.rows[0][1].keys() and recorder.summary["best"]["step"] == 4


@pytest.mark.parametrize("problem", ["service down", "hangs"])
def test_an_upload_that_fails_does_not_end_the_run(problem, wandb_run):
    begin = time.monotonic()
    _, log = wandb_run(problem, seconds=0.2)
    reason = {"hangs": "no answer in 0.2 s"}.get(problem, problem)
    assert f"best-0000004.pt not sent ({reason})" in log and time.monotonic() - begin < 30


# ---------------------------------------------------------------- flags, files, Modal


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--run", "6"], "--run"),
        (["--preset", "tiny"], "--preset"),
        (["--latents", "4"], "--latent"),
        (["--batch", "1"], "--batch 1: expected 2 or more"),
        (["--decoder-heads", "3"], "--decoder-heads 3: expected a divisor of --cell 64"),
        (["--heads", "7"], "--heads 7: expected a divisor of --width 256"),
        (["--ema", "1.5"], "--ema 1.5: expected a share"),
        (["--name", "../x"], "--name ../x"),
        (["--steps", "0"], "--steps 0: expected 1 or more"),
    ],
)
def test_wrong_flags_are_explained(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse(Config, flags)
    assert end.value.code == 2
    assert message in " ".join("".join(capsys.readouterr()).split())


def test_wrong_data_and_device_are_explained(clean):
    with pytest.raises(SystemExit, match=r"--data x\.json: expected generated"):
        train.main([*SMOKE, "--data", "x.json"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="--device cuda: torch finds no such device"):
            train.main([*SMOKE, "--device", "cuda"])


def test_load_model_refuses_what_is_not_a_model(clean):
    train.main([*SMOKE, "--steps", "2"])
    path = FOLDER / "checkpoint.pt"
    saved = disk.load_checkpoint(path)
    disk.save_checkpoint("other.pt", saved | {"config": {"width": 3}})
    disk.save_checkpoint("wide.pt", saved | {"config": saved["config"] | {"width": 64}})
    torch.save({"config": SimpleNamespace()}, "code.pt")  # an object: loading it could run code
    for name, message in (
        ("none.pt", r"none\.pt does not exist"),
        ("other.pt", r"other\.pt is not a checkpoint of ebm\.train"),
        ("wide.pt", r"wide\.pt does not fit ebm/train\.py"),
        ("code.pt", r"code\.pt is not a whole checkpoint"),
    ):
        with pytest.raises(SystemExit, match=message):
            train.load_model(name)
    older = {name: value for name, value in saved["config"].items() if name != "target_input"}
    disk.save_checkpoint("older.pt", saved | {"config": older})  # from before a field was added: its default
    assert train.load_model("older.pt")[1] == train.load_model(path)[1]


def test_modal_gets_the_flags(clean, monkeypatch):
    pytest.importorskip("modal")
    from plumbing import remote

    seen, real = [], remote.check
    monkeypatch.setattr(remote, "check", lambda *a: seen.append(real(*a)) or seen[-1])
    monkeypatch.setattr(remote, "connect", lambda: None)
    monkeypatch.setattr(remote, "make_app", lambda job: (SimpleNamespace(local_entrypoint=lambda: lambda f: f), None))
    monkeypatch.setattr(sys, "argv", ["modal", "run", train.__file__, "--run", "5", "--preset", "mini"])
    assert remote.entry(train.__file__, parse) is not None
    (job,) = seen
    assert job.config == parse(Config, ["--run", "5", "--preset", "mini"])
    assert job.path == "ebm/run5-mini-seed0" and job.arguments[0] == "ebm/train.py"
    assert job.arguments[1][:4] == ["--run", "5", "--preset", "mini"]
