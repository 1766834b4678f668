"""A run's life: killed, resumed, interrupted, shared among processes, refused, out of disk, not finite."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import common
import exp_cosine_no_sam as experiment
import solve
from data import generate
from plumbing import disk
from plumbing.run import checksums
from plumbing.tracking import limited, start_wandb
from tests.experiments import ROOT

SMOKE = ["--preset", "smoke"]
FOLDER = Path("runs/exp_cosine_no_sam/smoke-seed0")


ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}


def run(*words):
    """The process of a command, both its outputs as one."""
    environment = ENVIRONMENT | {"SUDOKU_DATA": os.environ["SUDOKU_DATA"]}
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_ten_kills_change_nothing(tmp_path, cache):
    flags = ["--preset", "smoke", "--steps", "150", "--save-every", "7", "--evaluate-every", "50"]
    process = run(ROOT / "tests/kill.py", "exp_cosine_no_sam", "--quiet", "--runs", tmp_path, "--", *flags)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    log = (tmp_path / "exp_cosine_no_sam/killed/log.txt").read_text()
    assert log.count("# resumed after step") == 10


def begun(folder, process):
    """Wait until the run has finished a step."""
    deadline = time.monotonic() + 60
    while not (folder / "metrics.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_that_has_saved(number, clean):
    process = run(ROOT / "exp_cosine_no_sam.py", *SMOKE, "--steps", "100000", "--save-every", "100000")
    begun(clean / FOLDER, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"{number.name}: saving after this step" in output and "--resume goes on" in output
    assert "Traceback" not in output
    step = disk.load_checkpoint(clean / FOLDER / "checkpoint.pt")["step"]
    assert int(disk.read_rows(clean / FOLDER / "metrics.csv")[-1]["step"]) == step


def test_a_second_ctrl_c_ends_at_once(clean, monkeypatch):
    seen = []
    run = common.Run(common.parse(experiment.Config, SMOKE), experiment.__file__)
    run.resume(experiment.Model(run.config))
    signal.raise_signal(signal.SIGINT)
    seen.append(run.interrupted)
    with pytest.raises(SystemExit, match="ended at once"):
        signal.raise_signal(signal.SIGINT)
    run.close()
    assert seen == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


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
    assert again == json.loads((FOLDER / "summary.json").read_text())
    more = experiment.main([*SMOKE, "--resume", "--test-iterations", "5"])
    assert set(more["test"]) == {"2", "5"} and more["solved"] == again["solved"]
    with pytest.raises(SystemExit, match="lr: "):
        experiment.main([*SMOKE, "--resume", "--lr", "0.1"])


def test_only_the_default_evaluation_is_computed_once(clean, monkeypatch):
    """A finished run is not tested again; one without a whole summary is."""
    experiment.main(SMOKE)
    real, calls = common.evaluate, []
    monkeypatch.setattr(common, "evaluate", lambda *a: calls.append(1) or real(*a))
    experiment.main([*SMOKE, "--resume"])
    assert not calls
    (FOLDER / "summary.json").write_text("")
    assert experiment.main([*SMOKE, "--resume"])["solved"] is not None
    assert calls


@pytest.fixture
def half(clean):
    """The folder of a run that stopped after four of seven steps."""
    with pytest.MonkeyPatch.context() as patch:
        real = common.batch_at

        def batch_at(config, data, run, step):
            if step == 4:
                run.close()
                raise SystemExit("killed")
            return real(config, data, run, step)

        patch.setattr(common, "batch_at", batch_at)
        with pytest.raises(SystemExit, match="killed"):
            experiment.main(SMOKE)
    return FOLDER


def rewrite(folder, **changes):
    saved = disk.load_checkpoint(folder / "checkpoint.pt")
    disk.save_checkpoint(folder / "checkpoint.pt", saved | changes)


def resumed(*flags):
    return experiment.main([*SMOKE, "--resume", *flags])


def test_a_cut_checkpoint_is_named(half):
    path = half / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit, match=r"checkpoint\.pt is not a whole checkpoint"):
        resumed()


def test_a_flipped_bit_is_noticed(half):
    path = half / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    weight = disk.load_checkpoint(path)["model"]["head.weight"].numpy().tobytes()
    data[data.index(weight) + 9] ^= 4
    path.write_bytes(data)
    with pytest.raises(SystemExit, match=r"checkpoint\.pt is not a whole checkpoint.*checksum"):
        resumed()


def test_a_checkpoint_of_another_experiment(half):
    rewrite(half, experiment="exp_cosine")
    with pytest.raises(SystemExit, match=r"is of exp_cosine, not of exp_cosine_no_sam"):
        resumed()


@pytest.mark.parametrize("step", [-1, 8, 2.5, "3"])
def test_a_step_out_of_range(half, step):
    rewrite(half, step=step)
    with pytest.raises(SystemExit, match="outside 0 to 7"):
        resumed()


def test_a_checkpoint_of_another_network(half):
    saved = disk.load_checkpoint(half / "checkpoint.pt")
    rewrite(half, model=saved["model"] | {"head.weight": torch.zeros(9, 5)})
    with pytest.raises(SystemExit, match=r"does not fit exp_cosine_no_sam\.py.*head\.weight"):
        resumed()


def test_a_checkpoint_without_its_parts(half):
    disk.save_checkpoint(half / "checkpoint.pt", {"step": 3})
    with pytest.raises(SystemExit, match="not a run's checkpoint"):
        resumed()


def test_changed_code_is_said_in_log_and_summary(half):
    saved = disk.load_checkpoint(half / "checkpoint.pt")
    rewrite(half, code=saved["code"] | {"exp_cosine_no_sam.py": 1, "common.py": 2})
    summary = resumed()
    assert summary["code_changed"] == ["common.py", "exp_cosine_no_sam.py"]
    assert (
        "the code has changed since the checkpoint (exp_cosine_no_sam.py, common.py)" in (half / "log.txt").read_text()
    )


def test_comments_are_no_change_of_code(tmp_path):
    source, sums, path = Path(experiment.__file__).read_text(), [], tmp_path / "exp.py"
    for text in (source, source + "\n# a comment\n", source.replace("loss.backward()", "(2 * loss).backward()")):
        path.write_text(text)
        sums.append(checksums([path]))
    assert sums[0] == sums[1] != sums[2]


def test_a_closed_pipe_does_not_end_a_run(clean):
    """python exp_x.py | head: the run goes on, and --help ends in silence."""
    process = run(ROOT / "exp_cosine_no_sam.py", *SMOKE, "--steps", "40", "--evaluate-every", "99")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert json.loads((clean / FOLDER / "summary.json").read_text())["steps"] == 40
    assert (clean / FOLDER / "log.txt").read_text().count("\nstep ") == 41
    command = f"{sys.executable} {ROOT}/exp_cosine_no_sam.py --help | head -1"
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert shown.stderr == "" and shown.stdout.startswith("usage")


def test_replaced_puzzles_are_noticed(clean, cache):
    puzzles = generate.cached(400, clues=60, seed=9, progress=False)

    def write(rows):
        lines = ["question,answer,rating"]
        for puzzle, solution in zip(*puzzles.rows(np.asarray(rows))):
            lines.append(f"{''.join(map(str, puzzle))},{''.join(map(str, solution))},0")
        Path("mine.csv").write_text("\n".join(lines) + "\n")

    flags = [*SMOKE, "--data", "mine.csv", "--phases", "9", "0", "9"]
    write(range(400))
    experiment.main(flags)
    (FOLDER / "summary.json").unlink()
    write(range(399))
    with pytest.raises(SystemExit, match="other puzzles"):
        experiment.main([*flags, "--resume"])


def test_rows_doubled_or_lost_are_mended_from_the_checkpoint(half):
    lines = (half / "metrics.csv").read_text().splitlines()
    (half / "metrics.csv").write_text("\n".join([lines[0], lines[2], lines[2], *lines[2:4], "9,half a ro"]))
    resumed()
    assert [row["step"] for row in disk.read_rows(half / "metrics.csv")] == [str(n) for n in range(1, 8)]
    rows = disk.read_rows(half / "metrics.csv")
    experiment.main([*SMOKE, "--name", "whole"])
    whole = disk.read_rows(half.parent / "whole" / "metrics.csv")
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole]


def test_missing_files_of_a_run_are_made_again(half):
    for name in ("config.json", "metrics.csv", "log.txt"):
        (half / name).unlink()
    resumed()
    assert json.loads((half / "config.json").read_text())["preset"] == "smoke"
    assert len(disk.read_rows(half / "metrics.csv")) == 7


def test_a_full_disk_while_resuming_loses_nothing(half, monkeypatch):
    real, before = disk.replace, (half / "checkpoint.pt").read_bytes()

    def replace(path, write):
        if path.name == "metrics.csv":
            raise OSError(28, "No space left on device")
        real(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "replace", replace)
        with pytest.raises(SystemExit, match=r"metrics\.csv.*No space left"):
            resumed()
    gc.collect()
    assert (half / "checkpoint.pt").read_bytes() == before
    assert resumed()["steps"] == 7


def test_what_a_killed_write_leaves_is_removed(half):
    (half / "checkpoint.pt.123.tmp").write_bytes(b"half")
    resumed()
    assert not list(half.glob("*.tmp"))


def test_files_reach_the_disk_before_they_get_their_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: calls.append(name) or real(*a))
    disk.replace(tmp_path / "a", lambda file: file.write(b"x"))
    assert calls == ["fsync", "replace"] and (tmp_path / "a").read_bytes() == b"x"


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


def test_wandb_that_fails_cannot_break_a_run(clean, monkeypatch):
    import wandb

    def broken(**options):
        raise RuntimeError("service down")

    monkeypatch.setattr(wandb, "init", broken)
    assert "solved" in experiment.main([*SMOKE, "--wandb", "offline"])


class Recorder:
    """Stands in for a W&B run whose server takes rows and then never answers."""

    def __init__(self):
        self.rows, self.summary = [], {}

    def log(self, row, step):
        self.rows.append(step)

    def finish(self):
        time.sleep(60)


@pytest.mark.parametrize("server", ["closed", "silent"])
def test_wandb_online_without_an_answer_loses_seconds_only(server, clean, monkeypatch):
    """At the start: a port that refuses, or one that answers nothing; at the end: an upload that hangs."""
    import wandb

    opened, recorder = {}, Recorder()
    monkeypatch.setattr(wandb, "init", lambda **options: opened.update(options) or recorder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]  # bound, but nobody listens
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        if server == "silent":
            monkeypatch.setattr(socket, "create_connection", lambda *a: time.sleep(60))
        begin, lines = time.monotonic(), []
        run = start_wandb("online", clean, "exp", {}, lines.append)
    assert opened["mode"] == "offline" and "does not answer" in lines[0] and run is recorder
    limited(run.finish)
    assert time.monotonic() - begin < 5 + 3  # the import of wandb, on a busy machine


def test_rows_reach_wandb(clean, monkeypatch):
    import wandb

    recorder = Recorder()
    recorder.finish = lambda: None
    monkeypatch.setattr(wandb, "init", lambda **options: recorder)
    summary = experiment.main([*SMOKE, "--wandb", "offline"])
    assert recorder.rows == list(range(1, 8)) and recorder.summary["solved"] == summary["solved"]


BAD = """--widht 3: --width | --width wide: --width | --preset tiny: mini | --device tpu: cuda | --batch 0: --batch
--iterations 0: 1 or more | --heads 3: divisor of --width 128 | --lr nan: --lr | --lr inf: finite | --lr -1: 0 or more
--dropout 1: below 1 | --dropout -0.1: 0 or more | --save-every 0: 1 or more | --report-every 0: 1 or more
--evaluate-every 0: 1 or more | --steps -5: 1 or more | --steps 0: 1 or more | --test-iterations 0: 1 or more
--precision fp8: bf16 | --width 0: 1 or more | --layers 0: 1 or more | --seed -1: 0 or more | --edges 3: rising
--edges 3 1: rising | --phases 5 9 3: rating | --weight-decay nan: finite | --mlp 0: 1 or more | --train-puzzles -1: 0
--warmup -1: 0 or more | --test-per-bucket -5: 0 or more | --wandb maybe: offline
--steps 1e3: --steps | --name ../../x: --name | --name a/b: --name | --name .x: --name"""


@pytest.mark.parametrize("line", [line.strip() for line in BAD.replace("\n", "|").split("|")])
def test_bad_flags_name_the_flag_and_what_is_expected(line, capsys):
    flags, words = line.split(": ")
    with pytest.raises(SystemExit) as error:
        common.parse(experiment.Config, flags.split())
    assert error.value.code == 2
    output = capsys.readouterr()
    assert words in output.out + output.err
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN, "the next write to a closed pipe would end the program"


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="needs a machine without")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_missing(device, clean):
    with pytest.raises(SystemExit, match=f"--device {device}: torch finds no such device"):
        experiment.main([*SMOKE, "--device", device])


def test_a_folder_that_cannot_be_written(clean):
    Path("runs").write_text("a file")
    with pytest.raises(SystemExit, match=r"cannot write to runs"):
        experiment.main(SMOKE)


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


def test_checkpoints_that_stay_can_be_tested(clean):
    command = ["--preset", "smoke", "--steps", "7", "--save-every", "4", "--keep-every", "3", "--name", "kept"]
    experiment.main(command)
    folder = clean / "runs/exp_cosine_no_sam/kept"
    kept = {path.stem: disk.load_checkpoint(path) for path in folder.glob("checkpoint-*.pt")}
    assert {name: saved["step"] for name, saved in kept.items()} == {f"checkpoint-{n}": n for n in (3, 6, 7)}
    assert disk.load_checkpoint(folder / "checkpoint.pt")["step"] == 7
    last = kept["checkpoint-7"]["model"]
    assert any(not torch.equal(last[name], value) for name, value in kept["checkpoint-3"]["model"].items())
    solve.load(folder / "checkpoint-3.pt", torch.device("cpu"), Console())
