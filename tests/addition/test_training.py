"""A run: its schedule and outputs, many at once as one by one, killed and resumed, the log's commands."""

import importlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import plumbing.run
from addition import evaluate_checkpoints, sweep, tiny, train, training
from addition.model import ModelConfig
from addition.training import Run, Settings
from plumbing import disk

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


@pytest.fixture
def quick(monkeypatch):
    """Score on a tenth of the pairs, and draw nothing."""
    monkeypatch.setattr(training, "SCORE_SEEDS", (41,))
    monkeypatch.setattr(training, "run_plots", lambda *arguments: None)


def train_all(settings, names, folder, log=None):
    """Train in this folder; `log` gets every line of the log."""
    run = Run(replace(settings[0], runs=str(folder.parent)), "train", folder.name)
    run.log = log or (lambda line: None)
    try:
        return training.train(settings, names, run)
    finally:
        run.close()
        run.lock.close()


@pytest.mark.parametrize("name", LOG)
def test_the_log_s_commands(name, clean, monkeypatch):
    monkeypatch.setattr(training, "SCORE_SEEDS", (41,))
    flags, parameters = LOG[name]
    train.main(["--run-name", name, *SMALL, "--device", "cpu", *flags])
    folder = clean / "results/runs" / name
    assert json.loads((folder / "summary.json").read_text())["parameters"] == parameters
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert written == {
        "config.json",
        "log.txt",
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


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("config", [ModelConfig(pos_rank=3, qkv_rank=3), tiny.TinyConfig(embedding="arc")])
def test_many_at_once_are_the_single_runs(config, tmp_path):
    settings = replace(TINY, model=config, carry=0.5, mastery=2.0, curriculum="5:10@09", rehearse=0.2, calm=1e-3)
    several = [replace(settings, seed=seed, lr=lr) for seed, lr in ((1, 0.01), (2, 0.02), (3, 0.02))]
    names = ["one", "two", "three"]
    together = train_all(several, names, tmp_path / "all")
    for name, s in zip(names, several):
        alone = train_all([s], [name], tmp_path / name)[name]
        for key, value in weights(tmp_path / name).items():
            torch.testing.assert_close(value, weights(tmp_path / "all" / name)[key], rtol=2e-3, atol=2e-4)
        assert alone["best_val_exact"] == pytest.approx(together[name]["best_val_exact"], abs=0.05)
    assert not torch.equal(
        weights(tmp_path / "one")[next(iter(config.shapes()))], weights(tmp_path / "two")[next(iter(config.shapes()))]
    )


@pytest.mark.usefixtures("quick")
def test_both_engines_train_alike(tmp_path):
    for engine in ("torch", "fused"):
        train_all([replace(TINY, engine=engine)], [engine], tmp_path / engine)
    for key, value in weights(tmp_path / "torch").items():
        torch.testing.assert_close(value, weights(tmp_path / "fused")[key], rtol=2e-3, atol=2e-4)


class Killed(Exception):
    pass


PAIR = [replace(TINY, seed=seed, save_every=10, candidates=2, choose="30:1") for seed in (1, 2)]
NAMES = ["one", "two"]


def stop_at(monkeypatch, step, action):
    """Have `action` called after the training step with this index."""
    train_step = training.Members.train_step

    def stepped(members, engine, index):
        lost = train_step(members, engine, index)
        if index == step:
            action()
        return lost

    monkeypatch.setattr(training.Members, "train_step", stepped)


def metrics_without_seconds(path):
    return [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]


def assert_same_results(one, two):
    for name in NAMES:
        for kind in ("best", "last"):
            a, b = weights(one / name, kind), weights(two / name, kind)
            assert all(torch.equal(a[key], b[key]) for key in a)
        assert metrics_without_seconds(one / name / "metrics.csv") == metrics_without_seconds(
            two / name / "metrics.csv"
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a sweep that nothing has stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_all(PAIR, NAMES, folder)
    return folder


def killed():
    raise Killed


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("step", [5, 24, 37])  # before the first checkpoint, between two, after candidates have ended
def test_a_killed_run_resumes_to_the_same_weights(step, whole, tmp_path, monkeypatch):
    folder, lines = tmp_path / "killed", []
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, step, killed)
        train_all(PAIR, NAMES, folder)
    assert not (folder / "one/summary.json").exists()
    again = [replace(s, resume=True) for s in PAIR]
    found = train_all(again, NAMES, folder, lines.append)
    assert any(f"resumed after step {step // 10 * 10}" in line for line in lines) == (step > 10)
    assert_same_results(whole, folder)
    assert all(summary["steps"] == 40 for summary in found.values())
    lines.clear()
    assert train_all(again, NAMES, folder, lines.append) == found
    assert not any("resumed" in line for line in lines) and not (folder / "checkpoint.pt").exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_after_the_step(name, whole, tmp_path, monkeypatch):
    """Step 14 lies between two validations and two checkpoints; the mean training loss of both parts must be kept."""
    number, folder = getattr(signal, name), tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        stop_at(patch, 13, lambda: os.kill(os.getpid(), number))
        train_all(PAIR, NAMES, folder)
    assert stopped.value.code == 128 + number
    assert disk.load_checkpoint(folder / "checkpoint.pt")["step"] == 14
    train_all([replace(s, resume=True) for s in PAIR], NAMES, folder)
    assert_same_results(whole, folder)


def stopped_run(folder, monkeypatch):
    """A run that was killed after its first checkpoint; -> its settings with --resume."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 15, killed)
        train_all([replace(TINY, save_every=10)], ["a"], folder)
    return replace(TINY, save_every=10, resume=True)


@pytest.mark.usefixtures("quick")
def test_resume_refuses_other_settings(tmp_path, monkeypatch):
    settings = stopped_run(tmp_path / "a", monkeypatch)
    before = (tmp_path / "a/checkpoint.pt").read_bytes()
    for other in (dict(lr=0.5), dict(seed=7), dict(train_steps=20), dict(model=ModelConfig(d_model=8))):
        with pytest.raises(SystemExit, match=next(iter(other))):
            train_all([replace(settings, **other)], ["a"], tmp_path / "a")
    assert (tmp_path / "a/checkpoint.pt").read_bytes() == before
    train_all([settings], ["a"], tmp_path / "a")
    with pytest.raises(SystemExit, match="lr"):  # of a run that is finished, too
        train_all([replace(settings, lr=0.5)], ["a"], tmp_path / "a")


@pytest.mark.usefixtures("quick")
def test_resume_refuses_a_checkpoint_of_other_members(tmp_path, monkeypatch):
    settings = stopped_run(tmp_path / "a", monkeypatch)
    with pytest.raises(SystemExit, match=r"checkpoint\.pt"):
        train_all([settings], ["b"], tmp_path / "a")


@pytest.mark.usefixtures("quick")
def test_a_flipped_bit_is_found(tmp_path, monkeypatch):
    settings = stopped_run(tmp_path / "a", monkeypatch)
    path = tmp_path / "a/checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"checkpoint\.pt"):
        train_all([settings], ["a"], tmp_path / "a")


@pytest.mark.usefixtures("quick")
def test_a_run_is_not_overwritten(clean):
    train.main(["--run-name", "mine", *SMALL])
    before = Path("results/runs/mine/summary.json").read_bytes()
    with pytest.raises(SystemExit, match="--resume"):
        train.main(["--run-name", "mine", *SMALL, "--seed", "7"])
    assert Path("results/runs/mine/summary.json").read_bytes() == before


@pytest.mark.usefixtures("quick")
def test_two_processes_do_not_share_a_folder(clean):
    first = Run(Settings(), "train", "mine")
    with pytest.raises(SystemExit, match="in use"):
        train.main(["--run-name", "mine", *SMALL])
    first.lock.close()
    train.main(["--run-name", "mine", *SMALL])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("file", ["checkpoint.pt", "one/metrics.csv", "one/checkpoints/last.pt", "two/summary.json"])
def test_a_full_disk_loses_nothing(file, whole, tmp_path, monkeypatch):
    """The second time that this file is written, or the only time, there is no space left."""
    folder, count, replace_file = tmp_path / "full", [], disk.replace

    def write(path, fill):
        if path == folder / file:
            count.append(path)
            if len(count) == 2 or file.endswith("summary.json"):
                raise OSError(28, "No space left on device")
        replace_file(path, fill)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="No space left") as stopped:
        patch.setattr(disk, "replace", write)
        train_all(PAIR, NAMES, folder)
    assert stopped.value.code != 0
    train_all([replace(s, resume=True) for s in PAIR], NAMES, folder)
    assert_same_results(whole, folder)


@pytest.mark.usefixtures("quick")
def test_wandb_gets_every_row_and_cannot_end_a_run(tmp_path, monkeypatch):
    sent = []

    class Service:
        def log(self, row, step):
            sent.append((step, row))
            raise ConnectionError

    monkeypatch.setattr(plumbing.run, "start_wandb", lambda *arguments: Service())
    train_all([replace(TINY, seed=seed) for seed in (1, 2)], NAMES, tmp_path / "w")
    assert [step for step, _ in sent] == [10, 20, 30, 40] and {"one#0/val_exact", "two#0/lr"} <= sent[0][1].keys()


@pytest.fixture
def three():
    """Two candidates of run a, and one of run b, after a validation."""
    settings = [replace(TINY, seed=s, choose="20:1") for s in range(3)]
    members = training.Members(settings, ["a#0", "a#1", "b#0"], torch.device("cpu"))
    members.train_loss, members.best_exact = [1.0, 0.5, 2.0], [0.0, 0.0, 0.0]
    return members


@pytest.mark.usefixtures("quick")
def test_the_best_candidate_goes_on(three, tmp_path):
    """That is the one furthest in the curriculum, then the one with the lowest loss."""
    assert three.select(10, [], validated=True) == ([0, 1, 2], [])
    assert three.select(20, [], validated=True) == ([1, 2], [])
    assert three.select(20, [], validated=False) == ([0, 1, 2], [])
    three.settings = [replace(s, choose="10:2,20:1") for s in three.settings]
    assert three.select(10, [], validated=True) == ([0, 1, 2], [])
    assert three.select(20, [], validated=True) == ([1, 2], [])
    three.stages = [1, 0, 0]
    assert three.select(20, [], validated=True) == ([0, 2], [])
    assert three.select(40, [], validated=True) == ([], [0, 2])  # the last step
    settings = replace(TINY, choose="20:1", seed=5, candidates=3)
    found = train_all([settings], ["seed5"], tmp_path / "five")["seed5"]
    assert found["seed"] == 5 and 0 <= found["candidate"] < 3
    assert len((tmp_path / "five/metrics.csv").read_text().splitlines()) == 5


def test_a_candidate_that_diverges_leaves_its_run_to_the_others(three):
    assert three.select(7, [1], validated=False) == ([0, 2], [])
    assert three.select(7, [0, 1], validated=False) == ([2], [0])
    assert three.select(40, [0, 1], validated=False) == ([2], [0])  # the last step: b is validated first
    three.best_exact = [0.1, 0.2, 0.0]
    assert three.select(7, [0, 1], validated=False) == ([2], [1])  # none is left: the run ends with its best so far


@pytest.mark.usefixtures("quick")
def test_a_run_that_diverges_is_a_result(tmp_path):
    """It ends alone, at once, and no weights that are not finite are saved."""
    lines, broken = [], replace(TINY, lr=1e38, clip=1e38)
    found = train_all([broken, replace(TINY, seed=1)], ["broken", "other"], tmp_path / "both", lines.append)
    step = found["broken"]["diverged_at"]
    assert 1 <= step < 10 and found["broken"]["steps"] == step
    assert found["broken"]["errors_in_100000"] > 9_000 and found["broken"]["best_val_exact"] == 0
    assert found["other"]["steps"] == 40 and "diverged_at" not in found["other"]
    assert any("broken" in line and str(step) in line for line in lines)
    kept = json.loads((tmp_path / "both/broken/summary.json").read_text())
    assert kept["diverged_at"] == step
    for path in (tmp_path / "both").rglob("*.pt"):
        assert all(value.isfinite().all() for value in disk.load_checkpoint(path)["model_state"].values())
    assert "nan" not in (tmp_path / "both/broken/metrics.csv").read_text()
    alone = train_all([broken], ["broken"], tmp_path / "broken")["broken"]
    assert alone["diverged_at"] == step
    again = train_all([replace(broken, resume=True)], ["broken"], tmp_path / "broken")["broken"]
    assert again["diverged_at"] == step


@pytest.mark.usefixtures("quick")
def test_mastery_holds_a_stage(tmp_path):
    held = replace(TINY, curriculum="10:10@09", mastery=1e-9)
    found = train_all([held, replace(held, mastery=0.0)], ["held", "free"], tmp_path / "m")
    assert set(found) == {"held", "free"}
    stages = [
        [line.split(",")[6] for line in (tmp_path / "m" / name / "metrics.csv").read_text().splitlines()[1:]]
        for name in ("held", "free")
    ]
    assert stages == [["0"] * 4, ["0", "1", "1", "1"]]


@pytest.mark.usefixtures("quick")
def test_sweep_of_a_grid(clean):
    found = sweep.main([*SMALL, "--run-name", "g", "--seeds", "3-4", "9", "--grid", "lr=0.01,0.02", "carry=0,0.5"])
    assert len(found) == 12 and found["lr0.01-carry0.5-seed9"]["config"]["carry"] == 0.5
    kept = json.loads((clean / "results/runs/g/summary.json").read_text())
    assert set(kept["members"]) == set(found) and "--seeds 3-4 9" in kept["command"]


@pytest.mark.usefixtures("quick")
def test_tiny_sweep(clean):
    found = tiny.main([*SMALL, "--run-name", "t", "--seeds", "0-1", "--embedding", "arc", "--values", "query"])
    assert {summary["parameters"] for summary in found.values()} == {67}


@pytest.mark.parametrize(
    "flags",
    [
        "--pos-rank 9", "--d-model 0", "--companion nan", "--companion -1", "--device quantum", "--device mps",
        "--engine jax", "--train-steps 0", "--train-steps -5", "--lr nan", "--lr inf", "--lr -1", "--lr 0",
        "--weight-decay -1", "--batch-size 0", "--val-size 99999999999", "--beta2 2", "--beta2 1",
        "--clip 0", "--carry 2", "--rehearse nan", "--warmup -1", "--candidates 0", "--save-every 0", "--seed -5",
        "--seed 1000000000", "--curriculum 3", "--curriculum 5:11",
        "--choose 5500", "--choose -5:1", "--choose 5:0", "--wandb-mode later", "--pos-ranks 3", "--run-name ../../x",
        "--run-name .", "--runs /dev/null", "--preset none",
    ],
)  # fmt: skip
def test_wrong_flags_are_errors(flags, clean, capsys):
    """One line that names the flag, and no folder is left behind."""
    flag, value = flags.split()
    if value == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    small = dict(zip(SMALL[::2], SMALL[1::2])) | {flag: value}
    with pytest.raises(SystemExit) as error:
        train.main([word for pair in small.items() for word in pair])
    message = str(error.value) + capsys.readouterr().err
    assert error.value.code not in (0, None)
    assert (flag.strip("-").replace("-", "_") in message.replace("-", "_")) or (
        flag == "--run-name" and "--name" in message
    )
    assert not [path for path in clean.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "words",
    [
        "--seeds x", "--seeds 7-3", "--seeds -1", "--seeds 1-", "--seeds", "--seeds 0-99999999999",
        "--seeds 99999999999", "--grid lr", "--grid lr=", "--grid lr=x", "--grid lr=nan", "--grid lr=1 lr=2",
        "--grid d_model=3", "--grid seed=1", "--grid wandb=1", "--grid lengths=long", "--grid candidates=1.5",
        "--grid curriculum=x", "--grid train_steps=4", "--grid batch_size=8", "--grid val_size=8", "--grid test_size=8",
        "--grid eval_batch_size=8", "--grid eval_interval=2", "--grid optimizer=muon",
    ],
)  # fmt: skip
def test_wrong_sweeps_are_errors(words, clean):
    with pytest.raises(SystemExit, match=r"seed|grid|lr|lengths|curriculum") as error:
        sweep.main([*SMALL, *words.split()])
    assert error.value.code != 0 and not list(clean.iterdir())


def test_a_value_that_is_given_twice_is_run_once():
    assert sweep.numbers(["1", "1-2"]) == [1, 2]
    assert sweep.parse_grid(["lr=0.1,0.10", "curriculum=5:3;5:3"]) == {"lr": [0.1], "curriculum": ["5:3"]}


@pytest.mark.parametrize(
    "module", ["train", "sweep", "tiny", "evaluate_checkpoints", "export", "verify", "report", "bench"]
)
def test_help(module, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"addition.{module}").main(["--help"])
    assert not stop.value.code and "--help" in capsys.readouterr().out
