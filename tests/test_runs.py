"""A run's life: killed, resumed, interrupted, shared among processes, refused, out of disk, not finite."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import common
import exp_cosine_no_sam as experiment
from plumbing import disk
from tests.experiments import ROOT

SMOKE = ["--preset", "smoke"]


def run(*words, **options):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, *map(str, words)], env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT, **options
    )


def test_ten_kills_change_nothing(tmp_path, cache):
    flags = ["--preset", "smoke", "--steps", "150", "--save-every", "7", "--evaluate-every", "50"]
    process = run(ROOT / "tests/kill.py", "exp_cosine_no_sam", "--quiet", "--runs", tmp_path, "--", *flags)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    log = (tmp_path / "exp_cosine_no_sam/killed/log.txt").read_text()
    assert log.count("# resumed after step") == 10


def test_an_interrupted_run_saves_and_resumes(clean):
    process = run(ROOT / "exp_cosine_no_sam.py", *SMOKE, "--steps", "100000", "--save-every", "100000")
    folder = clean / "runs/exp_cosine_no_sam/smoke-seed0"
    for _ in range(600):
        time.sleep(0.05)
        if (folder / "metrics.csv").exists():
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert "--resume goes on" in output
    step = disk.load_checkpoint(folder / "checkpoint.pt")["step"]
    assert int(disk.read_rows(folder / "metrics.csv")[-1]["step"]) == step


def test_torchrun_gives_the_same_curve(clean):
    """Two processes that share each batch, dropout included, against one: equal up to floating-point order."""
    flags = [*SMOKE, "--steps", "12", "--precision", "fp32"]
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "exp_cosine_no_sam.py"]
    process = run(*words, *flags, "--name", "two")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    experiment.main([*flags, "--name", "one"])
    one, two = (disk.read_rows(clean / f"runs/exp_cosine_no_sam/{name}/metrics.csv") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two] and len(one) == 12
    for a, b in zip(one, two):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=5e-6)
    assert one[-1]["test_solved"] == two[-1]["test_solved"]
    weights = [disk.load_checkpoint(clean / f"runs/exp_cosine_no_sam/{name}/checkpoint.pt") for name in ("one", "two")]
    for name, value in weights[0]["model"].items():
        if "qkv.bias" in name:
            continue  # the keys' bias moves no softmax: its gradient is rounding noise, which Adam blows up
        assert torch.allclose(value, weights[1]["model"][name], atol=1e-4), name


def test_two_runs_in_one_folder(clean):
    config = common.parse(experiment.Config, SMOKE)
    first = common.Run(config, experiment.__file__)
    with pytest.raises(SystemExit, match="in use by another process"):
        common.Run(config, experiment.__file__)
    first.lock.close()
    common.Run(config, experiment.__file__).lock.close()


def test_a_finished_folder_is_not_overwritten(clean):
    experiment.main(SMOKE)
    with pytest.raises(SystemExit, match="--resume"):
        experiment.main(SMOKE)
    again = experiment.main([*SMOKE, "--resume"])
    assert (
        again["solved"] == json.loads((clean / "runs/exp_cosine_no_sam/smoke-seed0/summary.json").read_text())["solved"]
    )
    with pytest.raises(SystemExit, match="lr: "):
        experiment.main([*SMOKE, "--resume", "--lr", "0.1"])


def test_a_cut_checkpoint_is_named(clean):
    experiment.main(SMOKE)
    path = clean / "runs/exp_cosine_no_sam/smoke-seed0/checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit, match=r"checkpoint\.pt is not a whole checkpoint"):
        experiment.main([*SMOKE, "--resume"])


def test_a_full_disk_keeps_the_last_checkpoint(clean, monkeypatch):
    """The disk fills up during the third save: the error names the file, the second checkpoint still loads."""
    saves, real = [], torch.save

    def save(state, file):
        saves.append(state["step"])
        if len(saves) == 3:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        real(state, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(SystemExit, match=r"checkpoint\.pt.*No space left"):
        experiment.main(SMOKE)
    folder = clean / "runs/exp_cosine_no_sam/smoke-seed0"
    assert disk.load_checkpoint(folder / "checkpoint.pt")["step"] == saves[1]
    assert not list(folder.glob("*.tmp"))


def test_a_run_that_diverges_ends_with_a_summary(clean, monkeypatch, capsys):
    """The third step is bad, the next report and save are due at the fourth: the summary names the third."""
    real, calls = experiment.blank_loss, []

    def blank_loss(logits, batch):
        calls.append(1)
        return real(logits, batch) * (float("nan") if len(calls) == 5 else 1)  # two iterations a step

    monkeypatch.setattr(experiment, "blank_loss", blank_loss)
    with pytest.raises(SystemExit) as end:
        experiment.main([*SMOKE, "--report-every", "4"])
    assert end.value.code == 0
    folder = clean / "runs/exp_cosine_no_sam/smoke-seed0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["diverged_at"] == 3 and summary["solved"] is None
    assert "diverged at step 3" in capsys.readouterr().out
    saved = disk.load_checkpoint(folder / "checkpoint.pt")
    assert saved["step"] == 2 and all(value.isfinite().all() for value in saved["model"].values())
    with pytest.raises(SystemExit) as again:
        experiment.main([*SMOKE, "--report-every", "4", "--resume"])
    assert again.value.code == 0 and len(calls) < 12, "a diverged run is not trained again"


def test_weights_that_are_not_finite_are_never_saved(clean, monkeypatch):
    """The loss is still finite when an update ruins the weights."""
    real, steps = torch.optim.AdamW.step, []

    def step(self):
        steps.append(1)
        real(self)
        if len(steps) == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(SystemExit) as end:
        experiment.main([*SMOKE, "--evaluate-every", "100"])
    folder = clean / "runs/exp_cosine_no_sam/smoke-seed0"
    assert end.value.code == 0 and json.loads((folder / "summary.json").read_text())["diverged_at"] == 4
    assert disk.load_checkpoint(folder / "checkpoint.pt")["step"] == 2


def test_wandb_offline_records_and_cannot_break_a_run(clean, monkeypatch):
    import wandb

    def broken(**options):
        raise RuntimeError("service down")

    monkeypatch.setattr(wandb, "init", broken)
    assert "solved" in experiment.main([*SMOKE, "--wandb", "offline"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--widht", "3"], "--width"),
        (["--width", "wide"], "--width"),
        (["--preset", "tiny"], "mini"),
        (["--device", "tpu"], "cuda"),
    ],
)
def test_bad_flags_name_the_nearest(flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        common.parse(experiment.Config, flags)
    assert error.value.code == 2
    output = capsys.readouterr()
    assert words in output.out + output.err


def test_flags_come_on_top_of_the_preset():
    config = common.parse(experiment.Config, ["--preset=mini", "--width", "40"])
    mini = common.with_preset(experiment.Config(), "mini")
    assert (config.width, config.batch, config.preset) == (40, mini.batch, "mini")
    assert common.parse(experiment.Config, []) == experiment.Config()


def test_unknown_data_is_explained():
    config = experiment.Config(data="nonsense")
    from data import sources

    with pytest.raises(SystemExit, match="kaggle, extreme"):
        sources.load(config)
