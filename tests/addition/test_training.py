"""A run: its schedule and outputs, many at once as one by one, killed and resumed, the log's commands."""

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from addition import evaluate_checkpoints, sweep, tiny, train, training
from addition.model import ModelConfig
from addition.training import Settings

SMALL = ["--train-steps", "4", "--eval-interval", "2", "--batch-size", "8", "--val-size", "16", "--test-size", "16"]
LOW = ["--pos-rank", "3", "--qkv-rank", "3", "--attn-out-rank", "2", "--ffn-rank", "3"]
FULL = ["--pos-rank", "0", "--qkv-rank", "0", "--attn-out-rank", "0", "--ffn-rank", "0"]
LOG = {  # the log's commands, less steps, and the parameters they train
    "E1": ([*LOW, "--use-rmsnorm", "--tie-qkv", "shareA_tieKV", "--seed", "43"], 456),
    "E5": (["--pos-rank", "3", "--qkv-rank", "3", "--attn-out-rank", "3", "--ffn-rank", "3", "--seed", "42"], 512),
    "E8": (["--d-model", "7", "--d-ff", "14", *FULL, "--lr", "0.02", "--weight-decay", "0.01", "--seed", "42"], 763),
    "E9": (["--d-model", "7", "--d-ff", "28", *FULL, "--lr", "0.01", "--seed", "42"], 959),
    "E10": (["--d-model", "8", "--d-ff", "28", *FULL, "--lr", "0.01", "--seed", "42"], 1128),
    "E11": (["--wandb", "--wandb-mode", "disabled", "--eval-batch-size", "16", *LOW], 498),
}
TINY = Settings(train_steps=40, batch_size=16, val_size=32, test_size=16, eval_interval=10, warmup=5, init_std=0.4)


def weights(folder, kind="last"):
    return torch.load(Path(folder) / f"checkpoints/{kind}.pt", weights_only=True)["model_state"]


def silent(*_):
    pass


@pytest.mark.parametrize("name", LOG)
def test_the_log_s_commands(name, clean):
    flags, parameters = LOG[name]
    train.main(["--run-name", name, *SMALL, "--device", "cpu", *flags])
    folder = clean / "results/runs" / name
    assert json.loads((folder / "summary.json").read_text())["parameters"] == parameters
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert written == {
        "summary.json",
        "metrics.csv",
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "train_val_loss_per_step.png",
        "val_accuracy_per_step.png",
    }
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3


def test_the_log_s_evaluation(clean):
    train.main(["--run-name", "smoke", *SMALL])
    evaluate_checkpoints.main(
        ["results/runs/smoke/checkpoints/best.pt", "--device", "cpu", "--batch-size", "5000", "--output", "eval.json"]
    )
    summary = json.loads(Path("results/runs/smoke/summary.json").read_text())
    assert str(summary["errors_in_100000"]) in Path("eval.json").read_text()


def test_schedule():
    s = Settings()
    assert training.learning_rate(s, 0) == pytest.approx(0.02 / 1350)
    assert training.learning_rate(s, 1349) == pytest.approx(0.02)
    assert training.learning_rate(s, (1350 + 27_000) // 2) == pytest.approx(0.02 * 0.55, rel=1e-3)
    assert training.learning_rate(s, 27_000) == pytest.approx(0.002)
    assert training.fading(0.4, 100, 50) == pytest.approx(0.2)
    assert training.fading(0.4, 0, 10**6) == 0.4


def test_optimiser_is_adamw(monkeypatch):
    torch.manual_seed(0)
    start, gradients = torch.randn(2, 5), torch.randn(6, 2, 5) * 0.1
    flat, ours = start.clone(), training.Optimizer(start, "adamw", None)
    theirs = [torch.nn.Parameter(row.clone()) for row in start]
    optimizers = [torch.optim.AdamW([p], lr=lr, weight_decay=0.01) for p, lr in zip(theirs, (0.02, 0.005))]
    for step, gradient in enumerate(gradients):
        column = torch.ones(2, 1)
        lr = torch.tensor([[0.02], [0.005]])
        ours.step(flat, gradient, step, lr, 0.01 * column, 0.25 * column, 0.999 * column, 0 * column)
        for p, optimizer, row in zip(theirs, optimizers, gradient):
            p.grad = row.clone()
            torch.nn.utils.clip_grad_norm_([p], 0.25)
            optimizer.step()
    torch.testing.assert_close(flat, torch.stack([p.detach() for p in theirs]), rtol=1e-4, atol=1e-6)


def test_muon_steps_are_orthogonal():
    matrix = torch.randn(3, 14, 7)
    values = torch.linalg.svdvals(training.orthogonal(matrix))
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("config", [ModelConfig(pos_rank=3, qkv_rank=3), tiny.TinyConfig(embedding="arc")])
def test_many_at_once_are_the_single_runs(config, tmp_path):
    settings = replace(TINY, model=config, carry=0.5, mastery=2.0, curriculum="5:10@09", rehearse=0.2, calm=1e-3)
    several = [replace(settings, seed=seed, lr=lr) for seed, lr in ((1, 0.01), (2, 0.02), (3, 0.02))]
    names = ["one", "two", "three"]
    together = training.train(several, names, tmp_path / "all", silent)
    for name, s in zip(names, several):
        alone = training.train([s], [name], tmp_path / name, silent)[name]
        for key, value in weights(tmp_path / name).items():
            torch.testing.assert_close(value, weights(tmp_path / "all" / name)[key], rtol=2e-3, atol=2e-4)
        assert alone["best_val_exact"] == pytest.approx(together[name]["best_val_exact"], abs=0.05)
    assert not torch.equal(
        weights(tmp_path / "one")[next(iter(config.shapes()))], weights(tmp_path / "two")[next(iter(config.shapes()))]
    )


def test_both_engines_train_alike(tmp_path):
    for engine in ("torch", "fused"):
        training.train([replace(TINY, engine=engine)], [engine], tmp_path / engine, silent)
    for key, value in weights(tmp_path / "torch").items():
        torch.testing.assert_close(value, weights(tmp_path / "fused")[key], rtol=2e-3, atol=2e-4)


class Killed(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    settings = [replace(TINY, seed=seed, save_every=0, candidates=2, choose="30:1", average=0.9) for seed in (1, 2)]
    names, lines = ["one", "two"], []

    def kill(line):
        lines.append(line)
        if len(lines) == 3:
            raise Killed

    training.train(settings, names, tmp_path / "whole", silent)
    with pytest.raises(Killed):
        training.train(settings, names, tmp_path / "killed", kill)
    assert (tmp_path / "killed/state.pt").exists() and not (tmp_path / "killed/one/summary.json").exists()
    again = [replace(s, resume=True) for s in settings]
    found = training.train(again, names, tmp_path / "killed", silent)
    for name in names:
        for kind in ("best", "last"):
            a, b = weights(tmp_path / "whole" / name, kind), weights(tmp_path / "killed" / name, kind)
            assert all(torch.equal(a[key], b[key]) for key in a)
        assert found[name]["steps"] == 40
    lines.clear()
    assert training.train(again, names, tmp_path / "killed", lines.append) == found and len(lines) == 1
    rows = [(tmp_path / part / "one/metrics.csv").read_text().splitlines() for part in ("whole", "killed")]
    assert [line.rsplit(",", 1)[0] for line in rows[0]] == [line.rsplit(",", 1)[0] for line in rows[1]]


def test_resume_refuses_another_run(tmp_path):
    torch.save({"names": ["b#0"], "flat": torch.zeros(1, 3)}, tmp_path / "state.pt")
    with pytest.raises(SystemExit, match=r"state\.pt"):
        training.train([replace(TINY, resume=True)], ["a"], tmp_path, silent)


def test_the_best_candidate_goes_on(tmp_path):
    """Two of three starts cannot learn: their rate is nothing."""
    members = training.Members([replace(TINY, seed=s) for s in range(3)], ["a#0", "a#1", "b#0"], torch.device("cpu"))
    at = replace(TINY, choose="20:1")
    members.settings = [at] * 3
    assert training.beaten(members, 10, [1.0, 0.5, 2.0]) == []
    assert training.beaten(members, 20, [1.0, 0.5, 2.0]) == ["a#0"]
    assert training.beaten(members, 20, [1.0, math.nan, 2.0]) == ["a#1"]
    members.settings = [replace(at, choose="10:2,20:1")] * 3
    assert training.beaten(members, 10, [1.0, 0.5, 2.0]) == []
    assert training.beaten(members, 20, [1.0, 0.5, 2.0]) == ["a#0"]
    members.stages = [1, 0, 0]
    assert training.beaten(members, 20, [1.0, 0.5, 2.0]) == ["a#1"]
    found = training.train([replace(at, seed=5, candidates=3)], ["seed5"], tmp_path, silent)["seed5"]
    assert found["seed"] == 5 and 0 <= found["candidate"] < 3
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 5


def test_hopeless_runs_end_when_asked(tmp_path):
    found = training.train(
        [replace(TINY, give_up="20:0.5"), replace(TINY, seed=1)], ["hopeless", "other"], tmp_path, silent
    )
    assert found["hopeless"]["steps"] == 20 and found["other"]["steps"] == 40


def test_a_loss_that_is_not_finite_ends_its_run_only(tmp_path):
    lines = []
    found = training.train(
        [replace(TINY, lr=1e38, clip=1e38), replace(TINY, seed=1)], ["broken", "other"], tmp_path, lines.append
    )
    assert found["broken"]["steps"] == 10 and found["other"]["steps"] == 40
    assert any("broken" in line and "10" in line for line in lines)


def test_mastery_holds_a_stage(tmp_path):
    held = replace(TINY, curriculum="10:10@09", mastery=1e-9)
    found = training.train([held, replace(held, mastery=0.0)], ["held", "free"], tmp_path, silent)
    assert set(found) == {"held", "free"}
    stages = [
        [line.split(",")[6] for line in (tmp_path / name / "metrics.csv").read_text().splitlines()[1:]]
        for name in ("held", "free")
    ]
    assert stages == [["0"] * 4, ["0", "1", "1", "1"]]


def test_sweep_of_a_grid(clean):
    found = sweep.main([*SMALL, "--run-name", "g", "--seeds", "3-4", "9", "--grid", "lr=0.01,0.02", "carry=0,0.5"])
    assert len(found) == 12 and found["lr0.01-carry0.5-seed9"]["config"]["carry"] == 0.5
    kept = json.loads((clean / "results/runs/g/sweep.json").read_text())
    assert set(kept["members"]) == set(found) and "--seeds 3-4 9" in kept["command"]


def test_tiny_sweep(clean):
    found = tiny.main([*SMALL, "--run-name", "t", "--seeds", "0-1", "--embedding", "arc", "--values", "query"])
    assert {summary["parameters"] for summary in found.values()} == {67}


@pytest.mark.parametrize(
    "flags",
    [
        ["--pos-rank", "9"],
        ["--device", "quantum"],
        ["--device", "cuda"] if not torch.cuda.is_available() else ["--device", "mps"],
        ["--train-steps", "0"],
        ["--carry", "2"],
        ["--curriculum", "3"],
        ["--give-up", "soon"],
        ["--choose", "5500"],
        ["--pos-ranks", "3"],
    ],
)
def test_wrong_flags_are_errors(flags, clean, capsys):
    with pytest.raises(SystemExit) as error:
        train.main([*flags, *([] if flags[0] == "--train-steps" else SMALL)])
    assert error.value.code not in (0, None)
    assert flags[0].strip("-").replace("-", "_") in (str(error.value) + capsys.readouterr().err).replace("-", "_")


@pytest.mark.parametrize("words", [["--seeds", "x"], ["--seeds", "7-3"], ["--grid", "lr"], ["--grid", "d_model=3"]])
def test_wrong_sweeps_are_errors(words, clean):
    with pytest.raises(SystemExit, match=r"seeds|grid"):
        sweep.main([*SMALL, *words])


@pytest.mark.parametrize(
    "module", ["train", "sweep", "tiny", "evaluate_checkpoints", "export", "verify", "report", "bench"]
)
def test_help(module, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"addition.{module}").main(["--help"])
    assert not stop.value.code and "--help" in capsys.readouterr().out
