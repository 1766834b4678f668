"""Experiments on a rented GPU, on Modal (https://modal.com; `modal setup` once makes an account and a token).

modal run exp_cosine.py --preset mini --seed 1       one run; the same flags as python exp_cosine.py
modal run --detach exp_cosine.py                     the same, but the run continues when this terminal closes
python -m plumbing.remote fan exp_cosine exp_sam -- --seed 1  several at once, one GPU each
python -m plumbing.remote fetch exp_cosine full-seed1         download what is saved of a run, finished or not

ebm/train.py, ebm/ours.py and ep_c512/train.py are started in the same ways; `fetch ebm NAME`, `fetch ours NAME` and
`fetch ep_c512 NAME` download their runs.

Runs are stored on the Modal volume `sudoku-runs` (modal volume ls sudoku-runs), puzzles on `sudoku-data`. A run that
reached the time limit or lost its machine continues from its last checkpoint; so does the same command given again.
"""

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import lineage
from plumbing import disk

ROOT = Path(__file__).resolve().parent.parent

# Each of these can be set for one command: SUDOKU_MODAL_GPU=H100 modal run exp_cosine.py
GPU = "H200"  # the log's card; batch 4096 with 16 iterations needs its 141 GB
HOURS = 24.0  # time limit of one container; 24 is Modal's maximum
RETRIES = 10  # containers that may follow the first one, each continues from the last checkpoint
CPU = 8.0  # cores, for batches and torch.compile; Modal's default is an eighth of a core
MEMORY = 32.0  # GiB
SECRETS = ""  # names of Modal secrets, separated by commas: KAGGLE_USERNAME and KAGGLE_KEY, WANDB_API_KEY

# The names in Modal's documentation; its client does not check them, and the server refuses a wrong one much later.
GPUS = ("T4", "L4", "A10", "A10G", "L40S", "A100", "A100-40GB", "A100-80GB", "RTX-PRO-6000")
GPUS += ("H100", "H100!", "H200", "B200", "B200+")
# The only files that are copied to the container.
FOLDERS = ("addition", "data", "ebm", "ep_c512", "plumbing", "pos_embedding")
MOUNTED = ("*.py", *(f"{folder}/*.py" for folder in FOLDERS), "requirements.txt")
DATA, RUNS = "/vol/data", "/vol/runs"  # where the volumes are mounted
VOLUMES = {DATA: "sudoku-data", RUNS: "sudoku-runs"}
CODE = "/root"  # where Modal's runtime looks for modules
# What is downloaded of a run; summary.json marks the end: last.
FILES = ("config.json", "metrics.csv", "log.txt", "checkpoint.pt", "best-*.pt", "summary.json")
COMMIT_EVERY = 120  # seconds between two commits of the volumes
MARGIN = 600  # seconds before the time limit at which a run is told to save and stop
CONNECT = 8.0  # seconds until we report that Modal does not answer; its client alone tries for a minute
HELP = f"""
Modal: one {GPU}, {HOURS:g} hours a container, up to {RETRIES} more from the last checkpoint; SUDOKU_MODAL_GPU, _HOURS,
_RETRIES, _CPU, _MEMORY and _SECRETS in the environment change that. Modal's own options go before the file:
modal run --detach exp_x.py --seed 1"""

# ---------------------------------------------------------------- local validation


def settings(environment=os.environ):
    """The machine to rent: the constants above, or what the environment says instead."""

    def number(name, default, low, high):
        text = environment.get(f"SUDOKU_MODAL_{name}") or default
        with contextlib.suppress(ValueError):
            if low <= type(default)(text) <= high:
                return type(default)(text)
        raise SystemExit(f"SUDOKU_MODAL_{name}={text}: expected a number from {low:g} to {high:g}")

    gpu = (environment.get("SUDOKU_MODAL_GPU") or GPU).upper()
    if gpu not in GPUS:
        raise SystemExit(f"SUDOKU_MODAL_GPU={gpu}: a run takes one GPU, any of {', '.join(GPUS)}")
    secrets = re.findall(r"[^,\s]+", environment.get("SUDOKU_MODAL_SECRETS") or SECRETS)
    for name in secrets:
        if not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
            raise SystemExit(f"SUDOKU_MODAL_SECRETS: {name} cannot be a secret's name; see `modal secret list`")
    return {
        "gpu": gpu,
        "timeout": int(3600 * number("HOURS", HOURS, 0.5, 24.0)),
        "retries": number("RETRIES", RETRIES, 0, 10),
        "cpu": number("CPU", CPU, 0.125, 64.0),
        "memory": int(1024 * number("MEMORY", MEMORY, 1.0, 336.0)),  # MiB
        "secrets": secrets,
    }


def check(file, flags, config):
    """The job for these flags; whatever is wrong with it ends the command here, before a GPU is rented."""
    from plumbing import run  # not at the top: Modal's own process in the container does not need torch

    path, machine = f"{experiment_of(file)}/{run.run_name(config)}", settings()
    folder = Path(config.runs) / path
    refuse_local_run(folder)
    data = getattr(config, "data", "")
    if data.endswith((".csv", ".txt")) and not data.startswith(f"{DATA}/"):
        raise SystemExit(
            f"--data {data}: the container cannot read files of this machine; upload it with "
            f"`modal volume put {VOLUMES[DATA]} {data} /`, then give --data {DATA}/{Path(data).name}"
        )
    if config.device == "mps":
        raise SystemExit("--device mps: no machine of Modal has this device; leave --device out, or give --device cpu")
    if config.device == "cpu":
        machine["gpu"] = None  # a GPU that is not used would still be charged
    device = ["--device", "cuda"] if config.device == "auto" else []  # CUDA or an error, for the same reason
    seconds = machine["timeout"] - MARGIN
    return SimpleNamespace(
        config=config,
        machine=machine,
        path=path,  # on the volume
        folder=folder,  # on this machine
        arguments=(file, [*flags, *device, "--resume", "--runs", RUNS], path, seconds, disk.commit()),  # of train()
        fetch_command=f"python -m plumbing.remote fetch {path.replace('/', ' ')} --runs {config.runs}",
    )


def experiment_of(file):
    """The folder in runs/ of this file's runs: of the file's name, but a train.py has that of its own folder."""
    path = PurePosixPath(file)
    return path.parent.name if path.stem == "train" and path.parent.name else path.stem


def refuse_local_run(folder):
    """A run that was made on this machine must not be replaced by a download."""
    config = folder / "config.json"
    if config.exists() and f'"runs": "{RUNS}"' not in config.read_text(errors="replace"):
        raise SystemExit(f"{folder} holds a run made on this machine; pick another --name, or move it away")


def connect():
    """Check the token and the network, in at most CONNECT seconds. -> the volume of the runs"""
    import modal

    async def hello():
        client = await modal.Client.from_env.aio()
        await client.hello.aio()

    try:
        asyncio.run(asyncio.wait_for(hello(), CONNECT))
    except (modal.exception.Error, TimeoutError) as error:
        wrong_token = isinstance(error, modal.exception.AuthError)
        reason = first_line(error).split(". ")[0]
        advice = "run `modal setup`" if wrong_token else "check the network and https://status.modal.com"
        raise SystemExit(f"no connection to Modal ({reason}); {advice}, then try again") from None
    return modal.Volume.from_name(VOLUMES[RUNS], create_if_missing=True)


def first_line(error):
    return str(error).strip().split("\n")[0] or type(error).__name__


# ---------------------------------------------------------------- the app


def mounted():
    """The files that are copied to the container, relative to the repository."""
    return sorted({path.relative_to(ROOT).as_posix() for pattern in MOUNTED for path in ROOT.glob(pattern)})


def make_app(job):
    """-> (the app, its one function)"""
    import modal

    files = set(mounted())
    machine = job.machine | {"secrets": [modal.Secret.from_name(name) for name in job.machine["secrets"]]}
    image = (
        modal.Image.debian_slim(python_version="3.11")
        .pip_install_from_requirements(str(ROOT / "requirements.txt"))
        .add_local_dir(ROOT, CODE, ignore=lambda path: path.as_posix() not in files)
    )
    app = modal.App(f"sudoku-{job.path.split('/')[0]}")
    function = app.function(
        image=image,
        **machine,
        volumes={path: modal.Volume.from_name(name, create_if_missing=True) for path, name in VOLUMES.items()},
        single_use_containers=True,  # a retry gets a new machine, not the one that failed
        include_source=False,  # only MOUNTED is copied
    )(train)
    return app, function


def entry(file, parse):
    """The app of `modal run exp_x.py FLAGS`, None for any other command.

    Modal imports the experiment before it passes the flags on, so they are read from the command line here;
    `parse` makes a config from the experiment's Config and these flags.
    """
    module = next((module for module in list(sys.modules.values()) if getattr(module, "__file__", "") == file), None)
    file = Path(file).resolve().relative_to(ROOT).as_posix()
    if (flags := flags_of(file, sys.argv)) is None:
        return None
    argv, sys.argv = sys.argv, [f"modal run {file}", *flags]  # --help shows this name
    try:
        job = check(file, flags, parse(module.Config, flags))
    except SystemExit as end:
        if end.code in (0, None):
            print(HELP)
        raise
    finally:
        sys.argv = argv
    volume = connect()
    app, function = make_app(job)

    def main(*flags):
        call = None
        if not finished(job, volume):
            print(f"# {job.path} on {job.machine['gpu'] or 'a CPU'}; its files will be downloaded to {job.folder}")
            print(f"# after modal run --detach: {job.fetch_command}", flush=True)
            call = function.spawn(*job.arguments)
        wait_and_fetch(call, job, volume)

    main.__qualname__ = "main"  # Modal accepts only global functions, though this one is never imported by name
    app.local_entrypoint()(main)
    return app


def flags_of(file, argv):
    """The flags in `modal run [options] FILE FLAGS`; None for any other command."""
    for i, word in enumerate(argv):
        name = word.split("::")[0]
        path = ROOT / (name.replace(".", "/") + ".py") if argv[i - 1] == "-m" else Path(name)
        if path.resolve() == ROOT / file and "run" in argv[1:i]:
            return argv[i + 1 :]
    return None


# ---------------------------------------------------------------- in the container


def train(file, flags, folder, seconds, commit):
    """Run python FILE FLAGS and commit the volumes meanwhile. -> its exit status

    A run that failed but saved a newer checkpoint raises an exception, so that Modal starts another container. One
    that saved nothing new would fail again, and one that wrote its summary has ended; these two are not repeated.
    """
    checkpoint, summary = (Path(RUNS) / folder / name for name in ("checkpoint.pt", "summary.json"))

    def saved():
        return checkpoint.exists() and checkpoint.stat().st_mtime_ns

    before = saved()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "SUDOKU_DATA": DATA, "SUDOKU_COMMIT": commit}
    end = time.monotonic() + seconds
    # In a session of its own: Modal's SIGINT reaches only this process, which then stops the run below.
    child = subprocess.Popen([sys.executable, file, *flags], cwd=ROOT, env=environment, start_new_session=True)
    try:
        while child.poll() is None and (left := end - time.monotonic()) > 0:
            try:
                child.wait(min(COMMIT_EVERY, left))
            except subprocess.TimeoutExpired:
                # A commit fails while a file is open for writing; the next one, or Modal's own at the end, has it.
                with contextlib.suppress(Exception):
                    commit_volumes()
    finally:
        child.terminate()  # then a run saves and ends after its step; Modal allows about 30 seconds for that
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(20)
        child.kill()  # no effect if it has ended
        child.wait()
        commit_volumes()
    if child.returncode and saved() != before and not whole(disk.read_json(summary)):
        raise RuntimeError(f"{file}: exit status {child.returncode}; the next container continues from its checkpoint")
    return child.returncode


def commit_volumes():
    """Make what was written visible to other machines."""
    import modal

    for name in VOLUMES.values():
        modal.Volume.from_name(name).commit()


# ---------------------------------------------------------------- wait, download


def whole(summary):
    """The content of a run's summary.json, {} unless it is whole: it has the figure that runs of this kind end with, or
    a null in place of it where the run has diverged."""
    return summary if isinstance(summary, dict) and {"solved", "validation"} & set(summary) else {}


def finished(job, volume=None):
    """Whether this very run has ended, on the volume or else on this machine."""
    from plumbing import run

    def read(file):
        parts = volume.read_file(f"{job.path}/{file}") if volume else [(job.folder / file).read_bytes()]
        return json.loads(b"".join(parts))

    try:
        summary, saved = whole(read("summary.json")), read("config.json")
    except (OSError, ValueError):
        return False
    now = json.loads(json.dumps(asdict(job.config)))
    return bool(summary) and all(saved.get(key) == now[key] for key in now.keys() - run.RESUMABLE)


def listing(volume, path):
    """{file: size in bytes} of a folder on the volume"""
    import modal

    try:
        return {PurePosixPath(entry.path).name: entry.size for entry in volume.listdir(path)}
    except (modal.exception.NotFoundError, FileNotFoundError):
        return {}


def wait_and_fetch(call, job, volume):
    """Wait for the run (no call: it has ended before), then download it, also what a failed run has saved."""
    try:
        status = call.get() if call else 0
        problem = f"exit status {status}" if status else ""
    except Exception as error:  # of the run, or of the connection
        problem = first_line(error)
    if problem:
        print(f"{job.path} on Modal: {problem}", file=sys.stderr, flush=True)
    summary = fetch(job.path, job.folder, volume)
    if problem and not summary:
        raise SystemExit(f"{job.path} is not finished; the same command continues from what is saved")


def fetch(path, target, volume):
    """Download a run to the folder `target`, which is unchanged if that fails. -> its summary, {} if not finished"""
    refuse_local_run(target)
    try:
        sizes = listing(volume, path)
        files = [file for kind in FILES for file in sorted(sizes) if PurePosixPath(file).match(kind)]
        if not files:
            others = ", ".join(sorted(listing(volume, path.split("/")[0]))) or "none"
            raise SystemExit(f"there is no run {path} on the volume {VOLUMES[RUNS]}; runs of this experiment: {others}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            for file in files:
                with open(Path(folder, file), "wb") as out:
                    size = sum(out.write(part) for part in volume.read_file(f"{path}/{file}"))
                if size != sizes[file]:
                    raise OSError(f"{file} has {size} bytes, expected {sizes[file]}; the run may have saved meanwhile")
            summary = whole(disk.read_json(Path(folder, "summary.json")))
            files = files if summary else [file for file in files if file != "summary.json"]
            target.mkdir(exist_ok=True)
            for older in (target / "summary.json", *target.glob("best-*.pt")):  # may be gone there since then
                older.unlink(missing_ok=True)
            for file in files:
                os.replace(Path(folder, file), target / file)
    except Exception as error:  # of Modal, of the network or of this disk
        raise SystemExit(f"{path} was not downloaded ({first_line(error)}); run the same command again") from None
    diverged = summary.get("diverged_at")
    state = f" (diverged at step {diverged})" if diverged is not None else "" if summary else " (not finished yet)"
    print(f"# {target}: {', '.join(files)}{state}", flush=True)
    return summary


def load(name):
    """Import an experiment: exp_x or exp_x.py, in any folder of the family, or one of those in ebm/ and ep_c512/."""
    file = PurePosixPath(name).with_suffix("").as_posix()
    if file in ("ebm/train", "ebm/ours", "ep_c512/train"):
        return importlib.import_module(file.replace("/", "."))
    return lineage.module(name)


def fan(names, flags):
    """Start every run on its own GPU, wait for all of them, download each. -> exit status"""
    jobs = {}
    for name in names:
        module = load(name)
        parse = getattr(module, "parse", module.common.parse)  # its own where it has one
        file = Path(module.__file__).relative_to(ROOT).as_posix()
        job = check(file, flags, parse(module.Config, flags))
        if finished(job):
            print(f"# {job.folder} is finished already", flush=True)
        else:
            jobs[job.path] = job
    if not jobs:
        return 0
    volume, calls, failed = connect(), {}, []
    with contextlib.ExitStack() as apps:
        try:
            for path, job in jobs.items():
                call = None
                if not finished(job, volume):
                    # One app each: Modal keeps a detached app only until the last call made in it has ended.
                    app, function = make_app(job)
                    apps.enter_context(app.run(detach=True))
                    call = function.spawn(*job.arguments)
                    print(f"# {path} on {job.machine['gpu'] or 'a CPU'}: modal app logs {app.app_id}", flush=True)
                calls[path] = call
            for path, call in calls.items():
                try:
                    wait_and_fetch(call, jobs[path], volume)
                except SystemExit as error:
                    print(error, file=sys.stderr, flush=True)
                    failed.append(path)
        except BaseException as error:  # Ctrl-C, a closed pipe, an error of Modal
            commands = "".join(f"\n  {jobs[path].fetch_command}" for path in calls)
            going = f"\nThese runs continue on Modal; to download them:{commands}" if calls else ""
            print(f"{first_line(error)}{going}", file=sys.stderr, flush=True)
            os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)  # leaving `apps` would stop the runs
    if failed:
        print(f"failed: {', '.join(failed)}; the same command runs only these again", file=sys.stderr)
    return 1 if failed else 0


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{message}; expected: fan FILES -- FLAGS, or fetch EXPERIMENT NAME [--runs FOLDER]\n")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    split = argv.index("--") if argv[:1] == ["fan"] and "--" in argv else len(argv)
    parser = Parser("python -m plumbing.remote", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("fetch", help="download a run from Modal")
    one.add_argument("experiment", help="as in runs/<experiment>/<name>")
    one.add_argument("name", help="as in runs/<experiment>/<name>, for example full-seed0")
    one.add_argument("--runs", default="runs", help="the folder that holds all runs on this machine (default: runs)")
    many = commands.add_parser("fan", help="run several experiments at once, one GPU each")
    many.add_argument("experiments", nargs="+", help="names or files; flags for all of them follow after --")
    asked = parser.parse_args(argv[:split])
    if asked.command == "fan":
        return fan(asked.experiments, argv[split + 1 :])
    experiment = experiment_of(asked.experiment)
    if "/" in asked.name or {experiment, asked.name} & {"", ".", ".."}:
        parser.error(f"{asked.experiment} {asked.name}: expected the names of an experiment and of one of its runs")
    fetch(f"{experiment}/{asked.name}", Path(asked.runs) / experiment / asked.name, connect())
    return 0


if __name__ == "__main__":
    lineage.run_command(main)
