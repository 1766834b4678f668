"""Modal without an account: local validation, what is sent, what runs in the container, the download."""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from unittest import mock

import pytest

import common
import ebm.ours
import ebm.run
import ebm.train
import ep_c512.run
import ep_c512.train
import lineage
import sudoku
from plumbing import disk, remote

ROOT = Path(remote.__file__).resolve().parent.parent


def job_of(*flags, file="sudoku.py"):
    return remote.check(file, flags, common.parse(sudoku.Config, [*flags]))


# ---------------------------------------------------------------- local validation


def test_settings():
    default = remote.settings({})
    assert (default["gpu"], default["timeout"], default["retries"], default["secrets"]) == ("H200", 24 * 3600, 10, [])
    own = {"SUDOKU_MODAL_GPU": "a100-80gb", "SUDOKU_MODAL_HOURS": "1.5", "SUDOKU_MODAL_RETRIES": "0"}
    changed = remote.settings(own | {"SUDOKU_MODAL_SECRETS": "kaggle, wandb-key", "SUDOKU_MODAL_MEMORY": "64"})
    assert (changed["gpu"], changed["timeout"], changed["retries"]) == ("A100-80GB", 5400, 0)
    assert (changed["secrets"], changed["memory"]) == (["kaggle", "wandb-key"], 65536)


@pytest.mark.parametrize(
    "name, text, message",
    [
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


def test_check(clean):
    job = job_of("--preset", "mini", "--seed", "3")
    assert (job.path, job.folder) == ("sudoku/mini-seed3", Path("runs/sudoku/mini-seed3"))
    file, flags, path, seconds, commit = job.arguments
    assert (file, path, seconds, commit) == ("sudoku.py", job.path, 24 * 3600 - remote.MARGIN, disk.commit())
    assert flags == ["--preset", "mini", "--seed", "3", "--device", "cuda", "--resume", "--runs", remote.RUNS]
    there = common.parse(sudoku.Config, job_of("--runs", "x").arguments[1])
    assert (there.runs, there.resume) == (remote.RUNS, True)
    assert (job.machine["gpu"], job_of("--device", "cpu").machine["gpu"]) == ("H200", None)
    assert job_of(file="pos_embedding/exp_a.py").path == "exp_a/full-seed0"
    with pytest.raises(SystemExit, match=r"modal volume put sudoku-data my\.csv"):
        job_of("--data", "my.csv")
    with pytest.raises(SystemExit, match="--device mps"):
        job_of("--device", "mps")
    assert job_of("--data", "/vol/data/my.csv").config.data == "/vol/data/my.csv"


@pytest.mark.parametrize("flags", [["--preset", "smoke"], ["--preset", "smoke", "--name", "mine", "--seed", "2"]])
def test_folder_is_the_one_that_a_run_takes(clean, flags):
    job = job_of(*flags)
    run = common.Run(common.parse(sudoku.Config, flags), sudoku.__file__)
    assert run.folder == job.folder
    run.lock.close()


def test_folders_of_ebm(clean):
    flags = ["--preset", "smoke", "--seed", "2"]
    config = ebm.run.parse(ebm.train.Config, flags)
    jobs = [remote.check("ebm/train.py", flags, config)]
    runs = [ebm.run.Run(config, ebm.train.configured(4, "smoke"))]
    config = common.parse(ebm.ours.Config, flags)
    jobs.append(remote.check("ebm/ours.py", flags, config))
    runs.append(common.Run(config, ebm.ours.__file__))
    assert [job.path for job in jobs] == ["ebm/run4-smoke-seed2", "ours/smoke-seed2"]
    assert [job.folder for job in jobs] == [run.folder for run in runs]
    assert [job.machine["gpu"] for job in jobs] == ["H200", None]
    assert jobs[0].fetch_command == "python -m plumbing.remote fetch ebm run4-smoke-seed2 --runs runs"
    for run in runs:
        run.lock.close()


def test_folder_of_ep_c512(clean):
    flags = ["--preset", "smoke", "--seed", "2", "--estimator", "bptt"]
    config = ep_c512.run.parse(ep_c512.train.Config, flags)
    job, run = remote.check("ep_c512/train.py", flags, config), ep_c512.run.Run(config)
    assert job.path == "ep_c512/bptt-smoke-seed2" and job.folder == run.folder
    run.lock.close()
    flags[3] = "3"
    with pytest.raises(SystemExit, match=r"modal volume put sudoku-data my\.txt"):
        remote.check("ep_c512/train.py", flags, ep_c512.run.parse(ep_c512.train.Config, [*flags, "--data", "my.txt"]))


def test_flags_of():
    here = str(ROOT / "sudoku.py")
    assert remote.flags_of("sudoku.py", ["modal", "run", "--detach", here, "--seed", "1"]) == ["--seed", "1"]
    assert remote.flags_of("sudoku.py", ["modal", "run", f"{here}::main"]) == []
    assert remote.flags_of("sudoku.py", ["modal", "run", "-m", "sudoku", "--help"]) == ["--help"]
    assert remote.flags_of("data/store.py", ["modal", "run", "-m", "data.store"]) == []
    for other in (["pytest", "tests"], ["python", here, "--seed", "1"], ["modal", "deploy", here], ["modal", "run"]):
        assert remote.flags_of("sudoku.py", other) is None


# ---------------------------------------------------------------- the app


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


def test_mounted_leaves_out_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "ROOT", tmp_path)
    ours = [
        "data/store.py",
        "ebm/train.py",
        "ep_c512/train.py",
        "exp_a.py",
        "pos_embedding/common.py",
        "pos_embedding/exp_b.py",
    ]
    ours += ["requirements.txt"]
    others = [".env", "secrets.json", "data/cache/a.npy", "data/my.csv", ".git/config", ".venv/lib/a.py"]
    others += ["runs/a/b.py", "tests/test_a.py", ".hidden/a.py", "results/a.py"]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert remote.mounted() == ours


def test_app(monkeypatch, clean):
    """With the signatures of the installed client, so a renamed argument fails here and not on the way."""
    modal = pytest.importorskip("modal")
    monkeypatch.setenv("SUDOKU_MODAL_SECRETS", "kaggle")
    with (
        mock.patch.object(modal.App, "function", autospec=True) as function,
        mock.patch.object(modal.Image, "add_local_dir", autospec=True) as mount,
    ):
        app, _ = remote.make_app(job_of(file="pos_embedding/exp_a.py"))
    sent = function.call_args.kwargs
    assert app.name == "sudoku-exp_a"
    assert (sent["gpu"], sent["timeout"], sent["retries"]) == ("H200", 86400, 10)
    assert (sent["cpu"], sent["memory"], len(sent["secrets"])) == (8.0, 32768, 1)
    assert {path: volume.name for path, volume in sent["volumes"].items()} == remote.VOLUMES
    assert sent["single_use_containers"] is True and sent["include_source"] is False
    ignore = mount.call_args.kwargs["ignore"]
    assert not any(ignore(PurePosixPath(file)) for file in ("data/store.py", "plumbing/remote.py"))
    assert all(ignore(PurePosixPath(file)) for file in (".venv/lib/a.py", ".env", "a/plumbing/remote.py"))


def test_entry_is_what_modal_run_picks(clean, monkeypatch):
    modal = pytest.importorskip("modal")
    from modal.cli.import_refs import infer_runnable, list_cli_commands

    assert remote.entry(sudoku.__file__, common.parse) is None  # no `modal run`
    volume, called = object(), []
    monkeypatch.setattr(remote, "connect", lambda: volume)
    monkeypatch.setattr(remote, "finished", lambda job, volume: job.config.seed == 1)
    monkeypatch.setattr(modal.Function, "spawn", lambda function, *arguments: "call")
    monkeypatch.setattr(remote, "wait_and_fetch", lambda call, job, volume: called.append((call, job.path, volume)))
    for seed, call in ((1, None), (2, "call")):
        monkeypatch.setattr(sys, "argv", ["modal", "run", sudoku.__file__, "--seed", str(seed)])
        commands = list_cli_commands({"app": remote.entry(sudoku.__file__, common.parse)})
        assert sorted(command.names for command in commands) == [["app.main"], ["app.train"]]
        infer_runnable(commands, "", True, False).info.raw_f("--seed", str(seed))
        assert called.pop() == (call, f"sudoku/full-seed{seed}", volume)
    container = next(command for command in commands if command.names == ["app.train"])
    assert container.runnable._source_info_.module_name == "plumbing.remote"  # what the container imports


def modal_less(tmp_path, **more):
    """An environment without account and token, whatever this machine has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "SUDOKU_MODAL_"))}
    return kept | {"HOME": str(tmp_path), "MODAL_CONFIG_PATH": str(tmp_path / "modal.toml"), "COLUMNS": "100"} | more


@pytest.fixture
def tree(tmp_path):
    """A copy of the repository with an experiment in pos_embedding/."""
    pytest.importorskip("modal")
    for pattern in remote.MOUNTED:
        for path in ROOT.glob(pattern):
            (tmp_path / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / path.relative_to(ROOT))
    shutil.move(tmp_path / "exp_cosine.py", tmp_path / "pos_embedding" / "exp_in_folder.py")

    def run(*command):
        command = [sys.executable, "-m", *command]
        return subprocess.run(command, cwd=tmp_path, env=modal_less(tmp_path), capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    "file, flags",
    [
        ("sudoku.py", ["--preset {full,gpu,mini,smoke}", "--batch INT"]),
        ("pos_embedding/exp_in_folder.py", ["--preset {full,gpu,mini,smoke}", "--batch INT"]),
        ("ep_c512/train.py", ["--preset {full,mini,smoke}", "--attn-mode {softmax,energy,mono,nemon}"]),
        ("ebm/train.py", ["--run {1,2,3,4,5}", "--preset {full,mini,smoke}", "--batch {None}|INT"]),
    ],
)
def test_help_of_modal_run(tree, file, flags):
    done = tree("modal", "run", file, "--help")
    assert done.returncode == 0, done.stderr
    for text in (f"modal run {file}", *flags, "one H200", "SUDOKU_MODAL_GPU"):
        assert text in done.stdout


def test_fan_reads_flags_of_each_file_before_it_connects(tree):
    files = ("sudoku", "pos_embedding/exp_in_folder.py")
    done = tree("plumbing.remote", "fan", *files, "--", "--seeds", "3")
    assert done.returncode == 2 and "--seed" in done.stderr
    done = tree("plumbing.remote", "fan", *files, "--", "--seed", "3")
    assert done.returncode == 1 and "`modal setup`" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------- connection

SERVER = """
import asyncio, os, sys
import grpclib.const, grpclib.server, modal
from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

class RefusesEveryToken:
    async def hello(self, stream):
        raise grpclib.GRPCError(grpclib.const.Status.UNAUTHENTICATED, "Token ID not found. Ask for help.")

    def __mapping__(self):
        unary = grpclib.const.Cardinality.UNARY_UNARY
        handler = grpclib.const.Handler(self.hello, unary, Empty, api_pb2.ClientHelloResponse)
        return {"/modal.client.ModalClient/ClientHello": handler}

async def main():
    server = grpclib.server.Server([RefusesEveryToken()])
    await server.start(host="127.0.0.1", port=0)
    print(server._server.sockets[0].getsockname()[1], flush=True)
    await server.wait_closed()

asyncio.run(main())
"""


def connect_to(port, tmp_path):
    token = {"MODAL_TOKEN_ID": "ak-a", "MODAL_TOKEN_SECRET": "as-b", "MODAL_SERVER_URL": f"http://127.0.0.1:{port}"}
    command = [sys.executable, "-c", "from plumbing import remote; remote.CONNECT = 1.5; remote.connect()"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=modal_less(tmp_path, **token), capture_output=True, text=True)
    assert time.monotonic() - began < 15  # the client alone takes about a minute
    assert done.returncode == 1 and not done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_wrong_token(tmp_path):
    pytest.importorskip("modal")
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        shown = connect_to(int(server.stdout.readline()), tmp_path)
        server.kill()
    assert "Token ID not found" in shown and "`modal setup`" in shown


@pytest.mark.parametrize("listens", [True, False], ids=["silent", "closed"])
def test_no_network(tmp_path, listens):
    pytest.importorskip("modal")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        assert "check the network" in connect_to(silent.getsockname()[1], tmp_path)


# ---------------------------------------------------------------- command line


@pytest.mark.parametrize(
    "arguments, named",
    [
        ([], "command"),
        (["fly"], "fly"),
        (["fetch", "sudoku"], "name"),
        (["fetch", "sudoku", "full-seed0", "--run", "x", "y"], "y"),
        (["fetch", "sudoku", "../full-seed0"], "../full-seed0"),
        (["fetch", "..", "full-seed0"], ".."),
        (["fetch", "sudoku", "n", "--", "--seed", "1"], "fetch"),
        (["fan"], "experiments"),
        (["fan", "sudoku", "--seed", "1"], "--seed"),
    ],
)
def test_wrong_arguments(arguments, named, capsys):
    with pytest.raises(SystemExit) as end:
        remote.main(arguments)
    shown = capsys.readouterr().err
    assert end.value.code == 2 and len(shown.splitlines()) == 1 and named in shown


@pytest.mark.parametrize(
    "named, folder",
    [("sudoku.py", "sudoku"), ("pos_embedding/exp_a", "exp_a"), ("ebm", "ebm"), ("ebm/train", "ebm"), ("ours", "ours")],
)
def test_fetch_finds_the_folder(named, folder, monkeypatch):
    fetched = []
    monkeypatch.setattr(remote, "connect", lambda: "volume")
    monkeypatch.setattr(remote, "fetch", lambda *arguments: fetched.append(arguments))
    assert remote.main(["fetch", named, "n", "--runs", "x"]) == 0
    assert fetched == [(f"{folder}/n", Path("x") / folder / "n", "volume")]


def test_fan_names_the_nearest_experiment(clean):
    with pytest.raises(SystemExit, match="sudoku"):
        remote.main(["fan", "sudok.py"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX pipe")
def test_closed_pipe(tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "plumbing.remote", "--help"]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, cwd=ROOT, env=buffered, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 130 and not done.stderr


# ---------------------------------------------------------------- in the container

STAND_IN = """
import os, pathlib, signal, sys, time
import at_the_root
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
if what in ("advance", "diverge", "break"):
    (folder / "checkpoint.pt").write_text("more")
if what in ("diverge", "break"):
    (folder / "summary.json").write_text('{"solved": null, "diverged_at": 7}' if what == "diverge" else "")
sys.exit(0 if what == "end" else 1)
"""


@pytest.fixture(params=["exp_a.py", "pos_embedding/exp_a.py"])
def container(tmp_path, monkeypatch, request):
    """The repository and the volume as they are in a container, and a count of commits."""
    (tmp_path / "pos_embedding").mkdir()
    (tmp_path / request.param).write_text(STAND_IN)
    (tmp_path / "at_the_root.py").touch()
    commits = []
    monkeypatch.setattr(remote, "ROOT", tmp_path)
    monkeypatch.setattr(remote, "RUNS", str(tmp_path / "vol"))
    monkeypatch.setattr(remote, "commit_volumes", lambda: commits.append(1))
    folder = tmp_path / "vol" / "exp_a" / "n"

    def train(what, seconds=60):
        return remote.train(request.param, [what, "--runs", remote.RUNS], "exp_a/n", seconds, "abc")

    return SimpleNamespace(train=train, folder=folder, commits=commits)


def test_run_in_the_container(container):
    assert container.train("end") == 0
    assert (container.folder / "seen").read_text() == f"end --runs {remote.RUNS} {remote.DATA} abc"
    assert container.commits


def test_failure_is_repeated_only_after_progress(container):
    assert container.train("fail") == 1  # a return value, so Modal does not try again
    with pytest.raises(RuntimeError, match="status 1"):  # an exception, so it does
        container.train("advance")
    assert len(container.commits) == 2


def test_diverged_run_is_not_repeated(container):
    assert container.train("diverge") == 1
    with pytest.raises(RuntimeError):
        container.train("break")  # an empty summary.json is not the end of a run


def test_time_limit_saves_and_continues(container):
    with pytest.raises(RuntimeError, match="status 143"):
        container.train("wait", seconds=1.5)
    assert (container.folder / "checkpoint.pt").read_text() == "saved"


def test_volumes_are_committed_while_a_run_goes_on(container, monkeypatch):
    monkeypatch.setattr(remote, "COMMIT_EVERY", 0.1)
    with pytest.raises(RuntimeError):
        container.train("wait", seconds=1)
    assert len(container.commits) > 3


def test_interrupted_container_saves(container, monkeypatch):
    """Modal takes a machine away with SIGINT to this process: the run still saves and the volume is committed."""
    popen = subprocess.Popen

    class Interrupted(popen):
        def wait(self, timeout=None):
            if not container.commits and timeout and timeout > 20:
                while not (container.folder / "ready").exists():
                    time.sleep(0.02)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(remote.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        container.train("wait")
    assert (container.folder / "checkpoint.pt").read_text() == "saved" and container.commits


# ---------------------------------------------------------------- start, wait, download


class Volume:
    """What of a modal.Volume is used here, over a folder."""

    def __init__(self, folder, breaks="", shorter=""):
        self.folder, self.breaks, self.shorter = folder, breaks, shorter

    def listdir(self, path):
        files = (self.folder / path).iterdir()
        return [SimpleNamespace(path=f"{path}/{file.name}", size=file.stat().st_size) for file in files]

    def read_file(self, path):
        data = (self.folder / path).read_bytes()
        yield data[:3]
        if self.breaks and path.endswith(self.breaks):
            raise ConnectionError("lost")
        if not self.shorter or not path.endswith(self.shorter):
            yield data[3:]


@pytest.fixture
def volume(clean):
    pytest.importorskip("modal")
    folder = clean / "vol" / "sudoku" / "n"
    folder.mkdir(parents=True)
    config = json.loads(json.dumps(vars(job_of("--name", "n").config)))
    config |= {"runs": remote.RUNS, "resume": True, "device": "cuda"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("metrics.csv", "log.txt", "checkpoint.pt", "lock"):
        (folder / name).write_text(f"first {name}")
    return Volume(clean / "vol")


def fetch(volume, name="n"):
    return remote.fetch(f"sudoku/{name}", Path("runs/sudoku") / name, volume)


def test_fetch(volume, clean, capsys):
    home, there = clean / "runs" / "sudoku" / "n", volume.folder / "sudoku" / "n"
    assert fetch(volume) == {}
    assert "not finished yet" in capsys.readouterr().out
    assert sorted(os.listdir(home)) == ["checkpoint.pt", "config.json", "log.txt", "metrics.csv"]
    (there / "checkpoint.pt").write_text("second")
    (there / "summary.json").write_text('{"solved": 0.5}')
    assert fetch(volume) == {"solved": 0.5}
    assert (home / "checkpoint.pt").read_text() == "second" and (home / "summary.json").exists()
    assert os.listdir(home.parent) == ["n"]
    (there / "summary.json").unlink()
    assert fetch(volume) == {} and not (home / "summary.json").exists()


def test_fetch_takes_the_best_checkpoints(volume, clean):
    home, there = clean / "runs" / "sudoku" / "n", volume.folder / "sudoku" / "n"
    for now in ([2, 4], [4, 6]):  # the run has replaced one meanwhile
        for path in there.glob("best-*.pt"):
            path.unlink()
        for step in now:
            (there / f"best-{step:07d}.pt").write_text(f"best at {step} of {now}")
        (there / "best-0000008.pt.9.tmp").write_text("half of it")
        fetch(volume)
        kept = {path.name: path.read_text() for path in home.glob("best-*")}
        assert kept == {f"best-{step:07d}.pt": f"best at {step} of {now}" for step in now}


@pytest.mark.parametrize("content", ["", '{"solved"', '["solved"]', "3", '{"steps": 4}'])
def test_broken_summary_is_not_a_finished_run(volume, clean, content, capsys):
    (volume.folder / "sudoku" / "n" / "summary.json").write_text(content)
    assert not remote.finished(job_of("--name", "n"), volume)
    assert fetch(volume) == {}
    assert "not finished yet" in capsys.readouterr().out
    assert not (clean / "runs" / "sudoku" / "n" / "summary.json").exists()


@pytest.mark.parametrize("fault", [{"breaks": "checkpoint.pt"}, {"shorter": "checkpoint.pt"}], ids=str)
def test_download_that_fails_changes_nothing(volume, clean, fault):
    home, there = clean / "runs" / "sudoku" / "n", volume.folder / "sudoku" / "n"
    with pytest.raises(SystemExit, match="not downloaded"):
        fetch(Volume(volume.folder, **fault))
    assert os.listdir(home.parent) == []
    fetch(volume)
    (there / "log.txt").write_text("second")
    with pytest.raises(SystemExit, match="not downloaded"):
        fetch(Volume(volume.folder, **fault))
    assert (home / "log.txt").read_text() == "first log.txt" and os.listdir(home.parent) == ["n"]


def test_fetch_names_the_runs_of_an_experiment(volume):
    with pytest.raises(SystemExit, match=r"no run sudoku/m .*: n$"):
        fetch(volume, "m")
    with pytest.raises(SystemExit, match=r"none$"):
        remote.fetch("exp_b/m", Path("runs/exp_b/m"), volume)


def test_local_run_is_not_replaced(volume, clean):
    home = clean / "runs" / "sudoku" / "n"
    home.mkdir(parents=True)
    for text in ('{"runs": "runs"}', "{"):
        (home / "config.json").write_text(text)
        with pytest.raises(SystemExit, match="made on this machine"):
            fetch(volume)
        with pytest.raises(SystemExit, match="made on this machine"):
            job_of("--name", "n")
    assert os.listdir(home) == ["config.json"]


@pytest.mark.parametrize("summary", [{"solved": 0.5}, {"solved": None, "diverged_at": 7}])
def test_finished_means_this_very_run(volume, summary):
    job = job_of("--name", "n")
    assert not remote.finished(job, volume)
    (volume.folder / "sudoku" / "n" / "summary.json").write_text(json.dumps(summary))
    assert remote.finished(job, volume) and not remote.finished(job)
    assert not remote.finished(job_of("--name", "n", "--seed", "1"), volume)
    assert not remote.finished(job_of("--name", "other"), volume)
    fetch(volume)
    assert remote.finished(job) and not remote.finished(job_of("--name", "n", "--seed", "1"))
    (volume.folder / "sudoku" / "n" / "config.json").write_text("")
    assert not remote.finished(job, volume)


def test_wait_and_fetch(volume, clean, capsys):
    def answer(value):
        return SimpleNamespace(get=mock.Mock(side_effect=[value]))

    job = job_of("--name", "n")
    remote.wait_and_fetch(answer(0), job, volume)
    shutil.rmtree(clean / "runs")
    for failure, shown in ((1, "status 1"), (RuntimeError("stopped\nlong story"), "on Modal: stopped\n")):
        with pytest.raises(SystemExit, match="sudoku/n is not finished"):
            remote.wait_and_fetch(answer(failure), job, volume)
        assert shown in capsys.readouterr().err
        assert (job.folder / "checkpoint.pt").exists()
    with pytest.raises(SystemExit, match="no run sudoku/never-began"):
        remote.wait_and_fetch(answer(1), job_of("--name", "never-began"), volume)
    (volume.folder / "sudoku" / "n" / "summary.json").write_text('{"solved": null, "diverged_at": 7}')
    remote.wait_and_fetch(answer(1), job, volume)  # a result, not a failure
    assert "diverged at step 7" in capsys.readouterr().out


@pytest.fixture
def fan(monkeypatch, clean):
    """Stand-ins for Modal around remote.fan. -> the runs that were started"""
    pytest.importorskip("modal")
    started = []
    monkeypatch.setattr(remote, "connect", lambda: "volume")
    monkeypatch.setattr(remote, "finished", lambda job, volume=None: False)
    function = SimpleNamespace(spawn=lambda file, flags, path, *rest: started.append(path) or "call")
    monkeypatch.setattr(remote, "make_app", lambda job: (mock.MagicMock(app_id="ap-1"), function))
    monkeypatch.setattr(remote, "wait_and_fetch", lambda call, job, volume: None)
    return started


def test_fan_starts_each_run_once(fan):
    assert remote.main(["fan", "exp_sam", "exp_sam.py", "sudoku", "--", "--preset", "smoke"]) == 0
    assert fan == ["exp_sam/smoke-seed0", "sudoku/smoke-seed0"]


def test_fan_reads_flags_with_the_parser_of_each_file(fan):
    assert remote.main(["fan", "ebm/train.py", "ebm/ours", "--", "--preset", "smoke", "--seed", "1"]) == 0
    assert remote.main(["fan", "ebm/train", "--", "--run", "5", "--preset", "mini"]) == 0
    assert remote.main(["fan", "ep_c512/train", "--", "--track", "--preset", "mini"]) == 0
    assert fan == ["ebm/run4-smoke-seed1", "ours/smoke-seed1", "ebm/run5-mini-seed0", "ep_c512/tracking-2-mini-seed0"]


def test_fan_that_is_interrupted_names_what_continues(fan, monkeypatch, capsys):
    """The process must end at once: leaving the apps in order stops their runs."""

    def exit_now(status):
        raise SystemError(status)

    monkeypatch.setattr(remote.os, "_exit", exit_now)
    for error, status in ((KeyboardInterrupt(), 130), (BrokenPipeError(), 1)):
        monkeypatch.setattr(remote, "wait_and_fetch", mock.Mock(side_effect=error))
        with pytest.raises(SystemError, match=str(status)):
            remote.main(["fan", "exp_sam", "--", "--preset", "smoke"])
        assert "fetch exp_sam smoke-seed0 --runs runs" in capsys.readouterr().err


def test_fan(fan, monkeypatch, clean, capsys):
    """One that fails does not stop the others, one that is finished is not started."""

    def wait_and_fetch(call, job, volume):
        if job.path.startswith("exp_sam/"):
            raise SystemExit("exp_sam failed")
        assert call == (None if "recur" in job.path else "call")

    def finished(job, volume=None):
        return job.path.startswith("exp_recur_add" if volume else "exp_warmup")

    monkeypatch.setattr(remote, "finished", finished)
    monkeypatch.setattr(remote, "wait_and_fetch", wait_and_fetch)
    files = ["exp_sam", "exp_warmup.py", "exp_recur_add", "exp_cosine.py"]
    assert remote.main(["fan", *files, "--", "--preset", "smoke"]) == 1
    assert fan == ["exp_sam/smoke-seed0", "exp_cosine/smoke-seed0"]
    shown = capsys.readouterr()
    assert "failed: exp_sam/smoke-seed0;" in shown.err and "smoke-seed0 is finished already" in shown.out
