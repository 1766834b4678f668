"""Modal without an account: what is checked here, what would be sent, what happens there, how a run comes home."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from unittest import mock

import pytest

import common
import lineage
import sudoku
from plumbing import remote

ROOT = Path(remote.__file__).resolve().parent.parent


# ---------------------------------------------------------------- what is checked before anything is paid for


def test_settings():
    default = remote.settings({})
    assert (default.gpu, default.seconds, default.retries, default.secrets) == ("H200", 24 * 3600, 10, [])
    own = {"SUDOKU_MODAL_GPU": "a100-80gb", "SUDOKU_MODAL_HOURS": "1.5", "SUDOKU_MODAL_RETRIES": "0"}
    changed = remote.settings(own | {"SUDOKU_MODAL_SECRETS": "kaggle, wandb-key", "SUDOKU_MODAL_MEMORY": "64"})
    assert (changed.gpu, changed.seconds, changed.retries) == ("A100-80GB", 5400, 0)
    assert (changed.secrets, changed.memory) == (["kaggle", "wandb-key"], 65536)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("GPU", "H20", "do you mean H200"),
        ("GPU", "H200:2", "one GPU"),
        ("GPU", "RTX4090", "any of T4"),
        ("HOURS", "25", "from 0.5 to 24"),
        ("HOURS", "nan", "from 0.5 to 24"),
        ("RETRIES", "2.5", "from 0 to 10"),
        ("CPU", "many", "from 0.125"),
        ("MEMORY", "-1", "from 1"),
        ("SECRETS", "my secret!", "secret!"),
    ],
)
def test_settings_that_modal_would_refuse_late(name, text, message):
    with pytest.raises(SystemExit, match=message) as error:
        remote.settings({f"SUDOKU_MODAL_{name}": text})
    assert f"SUDOKU_MODAL_{name}" in str(error.value)


def test_flags_are_checked_here(clean, capsys):
    job = remote.check("sudoku.py", ["--preset", "mini", "--seed", "3"], sudoku.Config)
    assert (job.experiment, job.name, job.folder) == ("sudoku", "mini-seed3", Path("runs/sudoku/mini-seed3"))
    assert job.remote_flags == [
        "--preset",
        "mini",
        "--seed",
        "3",
        "--device",
        "cuda",
        "--resume",
        "--runs",
        remote.RUNS,
    ]
    there = common.parse(sudoku.Config, [*remote.check("sudoku.py", ["--runs", "x"], sudoku.Config).remote_flags])
    assert (there.runs, there.resume) == (remote.RUNS, True)
    assert (job.settings.gpu, remote.check("sudoku.py", ["--device", "cpu"], sudoku.Config).settings.gpu) == (
        "H200",
        None,
    )
    with pytest.raises(SystemExit):
        remote.check("sudoku.py", ["--sed", "3"], sudoku.Config)
    assert "--seed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"modal volume put sudoku-data my\.csv"):
        remote.check("sudoku.py", ["--data", "my.csv"], sudoku.Config)
    assert remote.check("sudoku.py", ["--data", "/vol/data/my.csv"], sudoku.Config).config.data == "/vol/data/my.csv"


@pytest.mark.parametrize("flags", [["--preset", "smoke"], ["--preset", "smoke", "--name", "mine", "--seed", "2"]])
def test_folder_is_the_one_that_a_run_takes(clean, flags):
    config = common.parse(sudoku.Config, flags)
    run = common.start(config, "sudoku.py")
    assert run.folder == remote.Job("sudoku.py", flags, config, None).folder
    run.lock.close()


def test_flags_of():
    here = str(ROOT / "sudoku.py")
    assert remote.flags_of("sudoku.py", ["modal", "run", "--detach", here, "--seed", "1"]) == ["--seed", "1"]
    assert remote.flags_of("sudoku.py", ["modal", "run", f"{here}::main"]) == []
    assert remote.flags_of("sudoku.py", ["modal", "run", "-m", "sudoku", "--help"]) == ["--help"]
    for other in (["pytest", "tests"], ["python", here, "--seed", "1"], ["modal", "deploy", here], ["modal", "run"]):
        assert remote.flags_of("sudoku.py", other) is None


def test_relative():
    for name in ("sudoku", "sudoku.py", ROOT / "sudoku.py"):
        assert remote.relative(name) == "sudoku.py"
    with pytest.raises(SystemExit, match="do you mean sudoku"):
        remote.relative("sudok.py")


# ---------------------------------------------------------------- what would be sent


def test_mounted_is_what_the_container_needs():
    files = set(remote.mounted())
    assert "requirements.txt" in files
    assert {path.relative_to(ROOT).as_posix() for path in lineage.find()} <= files
    for file in sorted(files - {"requirements.txt"}):  # everything of ours that is imported goes there too
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                path = name.replace(".", "/") + ".py"
                assert path in files or not (ROOT / path).exists(), f"{file} imports {name}, which is not mounted"


def test_mounted_leaves_the_rest_at_home(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "ROOT", tmp_path)
    ours = ["data/store.py", "exp_a.py", "requirements.txt"]
    others = [".env", "secrets.json", "data/cache/a.npy", "data/my.csv", ".git/config", ".venv/lib/a.py"]
    others += ["runs/a/b.py", "tests/test_a.py", ".hidden/a.py", "results/a.py"]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert remote.mounted() == ours


def test_app(monkeypatch):
    """With the signatures of the installed client, so a renamed argument fails here and not on the way."""
    modal = pytest.importorskip("modal")
    with (
        mock.patch.object(modal.App, "function", autospec=True) as function,
        mock.patch.object(modal.Image, "add_local_dir", autospec=True) as mount,
    ):
        app, _ = remote.make_app("exp_a", remote.settings({"SUDOKU_MODAL_SECRETS": "kaggle"}))
    sent = function.call_args.kwargs
    assert app.name == "sudoku-exp_a"
    assert (sent["gpu"], sent["timeout"], sent["retries"].max_retries) == ("H200", 86400, 10)
    assert (sent["cpu"], sent["memory"], len(sent["secrets"])) == (8.0, 32768, 1)
    assert {path: volume.name for path, volume in sent["volumes"].items()} == remote.VOLUMES
    assert sent["single_use_containers"] is True and sent["include_source"] is False
    ignore = mount.call_args.kwargs["ignore"]
    assert not ignore(PurePosixPath("data/store.py")) and not ignore(PurePosixPath("plumbing/remote.py"))
    assert (
        ignore(PurePosixPath(".venv/lib/a.py"))
        and ignore(PurePosixPath(".env"))
        and ignore(PurePosixPath("a/plumbing/remote.py"))
    )


def test_entry_is_what_modal_run_picks():
    pytest.importorskip("modal")
    from modal.cli.import_refs import infer_runnable, list_cli_commands

    commands = list_cli_commands({"app": remote.entry("sudoku.py")})
    assert sorted(command.names for command in commands) == [["app.main"], ["app.train_there"]]
    assert infer_runnable(commands, "", True, False).info.raw_f.__name__ == "main"


def modal_less(tmp_path):
    """An environment without account and token, whatever this machine has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "SUDOKU_MODAL_"))}
    return kept | {"HOME": str(tmp_path), "MODAL_CONFIG_PATH": str(tmp_path / "modal.toml"), "COLUMNS": "100"}


def test_help_through_the_real_command(tmp_path):
    pytest.importorskip("modal")
    command = [sys.executable, "-m", "modal", "run", "sudoku.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=modal_less(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for text in (
        "modal run sudoku.py",
        "--preset {full,mini,smoke}",
        "--muon-lr FLOAT",
        "one H200",
        "SUDOKU_MODAL_GPU",
    ):
        assert text in done.stdout


def test_without_an_account_one_line_says_what_to_do(tmp_path):
    pytest.importorskip("modal")
    command = [sys.executable, "-m", "plumbing.remote", "fetch", "sudoku", "full-seed0"]
    done = subprocess.run(command, cwd=ROOT, env=modal_less(tmp_path), capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "`modal setup`" in done.stderr


# ---------------------------------------------------------------- there

STAND_IN = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--runs") + 1]) / "exp_a" / "n"
folder.mkdir(parents=True, exist_ok=True)
(folder / "seen").write_text(" ".join([*sys.argv[1:], os.environ["SUDOKU_DATA"], os.environ["SUDOKU_COMMIT"]]))
what = sys.argv[1]
if what == "wait":
    def stop(number, frame):
        (folder / "checkpoint.pt").write_text("saved")
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    (folder / "ready").touch()
    time.sleep(30)
if what == "advance":
    (folder / "checkpoint.pt").write_text("more")
sys.exit(0 if what == "end" else 1)
"""


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A container: the repository's place, the volume's, and a count of commits."""
    (tmp_path / "exp_a.py").write_text(STAND_IN)
    commits = []
    monkeypatch.setattr(remote, "ROOT", tmp_path)
    monkeypatch.setattr(remote, "RUNS", str(tmp_path / "vol"))
    monkeypatch.setattr(remote, "make_safe", lambda: commits.append(1))
    folder = tmp_path / "vol" / "exp_a" / "n"

    def train(what, seconds=60):
        return remote.train_there("exp_a.py", [what, "--runs", remote.RUNS], "exp_a/n", seconds, "abc")

    return SimpleNamespace(train=train, folder=folder, commits=commits)


def test_run_there(there):
    assert there.train("end") == 0
    assert (there.folder / "seen").read_text() == f"end --runs {remote.RUNS} {remote.DATA} abc"
    assert there.commits


def test_failure_is_repeated_only_after_progress(there):
    assert there.train("fail") == 1  # an answer, so Modal does not try again
    with pytest.raises(RuntimeError, match="goes on from its checkpoint"):  # an exception, so it does
        there.train("advance")
    assert len(there.commits) == 2


def test_time_limit_saves_and_goes_on(there):
    with pytest.raises(RuntimeError, match="status 143"):
        there.train("wait", seconds=1.5)
    assert (there.folder / "checkpoint.pt").read_text() == "saved"


def test_interrupted_container_saves(there, monkeypatch):
    """Modal takes a machine away with SIGINT to this process: the run still saves and the volume is committed."""
    popen = subprocess.Popen

    class Interrupted(popen):
        def wait(self, timeout=None):
            if not there.commits and timeout and timeout > 20:
                while not (there.folder / "ready").exists():
                    time.sleep(0.02)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(remote.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        there.train("wait")
    assert (there.folder / "checkpoint.pt").read_text() == "saved" and there.commits


# ---------------------------------------------------------------- and home again


class Volume:
    """What of a modal.Volume is used here, over a folder."""

    def __init__(self, folder, breaks=""):
        self.folder, self.breaks = folder, breaks

    def listdir(self, path):
        return [SimpleNamespace(path=f"{path}/{file.name}") for file in (self.folder / path).iterdir()]

    def read_file(self, path):
        data = (self.folder / path).read_bytes()
        yield data[:3]
        if self.breaks and path.endswith(self.breaks):
            raise ConnectionError("lost")
        yield data[3:]


@pytest.fixture
def volume(clean):
    pytest.importorskip("modal")
    folder = clean / "vol" / "exp_a" / "n"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"runs": remote.RUNS, "seed": 0}))
    for name in ("metrics.csv", "log.txt", "checkpoint.pt", "lock"):
        (folder / name).write_text(f"first {name}")
    return Volume(clean / "vol")


def test_fetch(volume, clean, capsys):
    home, there = clean / "runs" / "exp_a" / "n", volume.folder / "exp_a" / "n"
    remote.fetch("exp_a", "n", "runs", volume)
    assert "not finished yet" in capsys.readouterr().out
    assert sorted(os.listdir(home)) == ["checkpoint.pt", "config.json", "log.txt", "metrics.csv"]
    (there / "checkpoint.pt").write_text("second")
    (there / "summary.json").write_text("{}")
    remote.fetch("exp_a", "n", "runs", volume)
    assert (home / "checkpoint.pt").read_text() == "second" and (home / "summary.json").exists()
    assert os.listdir(home.parent) == ["n"]


def test_fetch_that_breaks_off_changes_nothing(volume, clean):
    home, there = clean / "runs" / "exp_a" / "n", volume.folder / "exp_a" / "n"
    with pytest.raises(ConnectionError):
        remote.fetch("exp_a", "n", "runs", Volume(volume.folder, breaks="checkpoint.pt"))
    assert os.listdir(home.parent) == []
    remote.fetch("exp_a", "n", "runs", volume)
    (there / "log.txt").write_text("second")
    with pytest.raises(ConnectionError):
        remote.fetch("exp_a", "n", "runs", Volume(volume.folder, breaks="checkpoint.pt"))
    assert (home / "log.txt").read_text() == "first log.txt" and os.listdir(home.parent) == ["n"]


def test_fetch_names_what_there_is(volume):
    with pytest.raises(SystemExit, match=r"no run exp_a/m .* there are: n$"):
        remote.fetch("exp_a", "m", "runs", volume)
    with pytest.raises(SystemExit, match="there are: none"):
        remote.fetch("exp_b", "m", "runs", volume)


def test_own_run_is_not_replaced(volume, clean):
    home = clean / "runs" / "exp_a" / "n"
    home.mkdir(parents=True)
    for text in ('{"runs": "runs"}', "{"):
        (home / "config.json").write_text(text)
        with pytest.raises(SystemExit, match="made on this machine"):
            remote.fetch("exp_a", "n", "runs", volume)
    assert os.listdir(home) == ["config.json"]


def job_of(seed=0, name="n"):
    config = common.with_preset(sudoku.Config(name=name, seed=seed), "smoke")
    return remote.Job("exp_a.py", [], config, remote.settings({}))


def test_finished_means_this_very_run(volume):
    config = json.loads(json.dumps(vars(job_of().config))) | {"runs": remote.RUNS, "resume": True, "device": "cuda"}
    (volume.folder / "exp_a" / "n" / "config.json").write_text(json.dumps(config))
    assert not remote.finished(job_of(), volume)
    (volume.folder / "exp_a" / "n" / "summary.json").write_text("{}")
    assert remote.finished(job_of(), volume)
    assert not remote.finished(job_of(seed=1), volume)
    assert not remote.finished(job_of(name="other"), volume)


def test_bring_home(volume, clean):
    def answer(value):
        return SimpleNamespace(get=mock.Mock(side_effect=[value]))

    remote.bring_home(answer(0), job_of(), volume)
    shutil.rmtree(clean / "runs")
    for failure, shown in ((1, "status 1"), (RuntimeError("stopped\nlong story"), "status stopped[)]")):
        with pytest.raises(SystemExit, match=f"exp_a/n failed on Modal .*{shown}.*goes on from there"):
            remote.bring_home(answer(failure), job_of(), volume)
        assert (clean / "runs" / "exp_a" / "n" / "checkpoint.pt").exists()
    with pytest.raises(SystemExit, match=r"see the lines above$"):
        remote.bring_home(answer(1), job_of(name="never-began"), volume)


def test_fan(monkeypatch, clean, capsys):
    """Each run in an app of its own, finished ones left out; one that fails does not stop the others."""
    pytest.importorskip("modal")
    started, done = [], clean / "runs" / "exp_warmup" / "smoke-seed0"
    done.mkdir(parents=True)
    (done / "summary.json").write_text("{}")
    (done / "config.json").write_text(json.dumps({"runs": remote.RUNS}))

    def home(call, job, volume):
        if job.experiment == "exp_sam":
            raise SystemExit("exp_sam failed")

    for name in ("connect", "runs_volume"):
        monkeypatch.setattr(remote, name, lambda: None)
    monkeypatch.setattr(remote, "finished", lambda job, volume: False)
    monkeypatch.setattr(remote, "make_app", lambda name, how: (mock.MagicMock(app_id=f"ap-{name}"), None))
    monkeypatch.setattr(remote, "start", lambda function, job: started.append((job.experiment, job.flags)))
    monkeypatch.setattr(remote, "bring_home", home)
    code = remote.main(["fan", "exp_sam", "exp_warmup.py", "exp_cosine.py", "--", "--preset", "smoke"])
    assert code == 1
    assert started == [("exp_sam", ["--preset", "smoke"]), ("exp_cosine", ["--preset", "smoke"])]
    shown = capsys.readouterr()
    assert "failed: exp_sam/smoke-seed0;" in shown.err and "smoke-seed0 is finished already" in shown.out


# ---------------------------------------------------------------- scripts


@pytest.fixture
def chain(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "chain.sh", tmp_path / "scripts")
    for name, status in (("a", 0), ("b", 3), ("c", 0), ("stop", 130), ("remote", 0)):
        text = f"import sys; print('{name}', *sys.argv[1:], flush=True); sys.exit({status})\n"
        (tmp_path / f"{name}.py").write_text(text)

    def run(*arguments):
        environment = os.environ | {"PYTHON": sys.executable}
        command = ["bash", str(tmp_path / "scripts" / "chain.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")

    return run


def test_chain_continues_past_a_failure(chain):
    done = chain("local", "a.py", "b.py", "c.py", "--", "--seed", "1", "--note", "two words")
    flags = "--seed 1 --note two words --resume"
    assert done.stdout.splitlines() == [f"a {flags}", f"b {flags}", f"c {flags}"]
    assert done.returncode == 1 and "b.py (status 3)" in done.stderr and "a.py" not in done.stderr
    assert chain("local", "a.py", "c.py", "--").returncode == 0


@pytest.mark.parametrize(
    "flags, folder",
    [
        ([], "runs/a/full-seed0"),
        (["--preset", "mini", "--seed=2"], "runs/a/mini-seed2"),
        (["--name=n", "--seed", "2", "--runs", "elsewhere"], "elsewhere/a/n"),
    ],
)
def test_chain_skips_what_is_finished(chain, tmp_path, flags, folder):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "summary.json").touch()
    done = chain("local", "a.py", "c.py", "--", *flags)
    assert done.stdout.splitlines() == [f"# {folder} is finished already", " ".join(["c", *flags, "--resume"])]
    assert done.returncode == 0


def test_chain_stops_at_ctrl_c(chain):
    done = chain("local", "stop.py", "a.py", "--")
    assert done.returncode == 130 and done.stdout == "stop --resume\n" and "goes on from there" in done.stderr


def test_chain_on_modal_is_a_fan(chain):
    assert chain("modal", "a.py", "c.py", "--", "--seed", "1").stdout == "remote fan a.py c.py -- --seed 1\n"


@pytest.mark.parametrize("script", sorted(ROOT.glob("scripts/*_*.sh")), ids=lambda path: path.name)
def test_script_names_experiments_that_exist(script, tmp_path):
    """Run with a stand-in for chain.sh that prints what it is given."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(script, tmp_path / "scripts")
    fake = tmp_path / "scripts" / "chain.sh"
    fake.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    command = ["bash", str(tmp_path / "scripts" / script.name), "--preset", "smoke"]
    given = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert given[0] == script.stem.split("_")[1] and given[-3:] == ["--", "--preset", "smoke"]
    assert all((ROOT / file).exists() for file in given[1:-3]) and len(given) > 6
    assert os.access(script, os.X_OK)
    head = script.read_text().split("set -u")[0]
    assert all(word in head for word in ("Hardware:", "hours", "the same command"))
