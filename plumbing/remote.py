"""Experiments on a rented GPU, on Modal (https://modal.com; `modal setup` once makes an account and a token).

modal run exp_cosine.py --preset mini --seed 1       one run; the same flags as python exp_cosine.py
modal run --detach exp_cosine.py                     the same; this terminal may close meanwhile
python -m plumbing.remote fan exp_cosine exp_sam -- --seed 1  several at once, a GPU each
python -m plumbing.remote fetch exp_cosine full-seed1         bring home what there is of a run, finished or not

A run lives on the Modal volume `sudoku-runs` (modal volume ls sudoku-runs), puzzles on `sudoku-data`. It goes on from
its last checkpoint after the time limit or when Modal takes the machine away, and the same command goes on too.
"""

import argparse
import contextlib
import difflib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent

# Each of these can be set for one command: SUDOKU_MODAL_GPU=H100 modal run exp_cosine.py
GPU = "H200"  # the log's card; batch 4096 with 16 iterations needs its 141 GB
HOURS = 24.0  # how long one container may run: Modal's own limit
RETRIES = 10  # containers that may follow the first, each from the last checkpoint
CPU = 8.0  # cores: batches are made and torch.compile works there; Modal's default is an eighth of a core
MEMORY = 32.0  # GiB
SECRETS = ""  # names of Modal secrets, by commas: KAGGLE_USERNAME and KAGGLE_KEY, WANDB_API_KEY

# As Modal documents them; its client sends any name to the server, which refuses it much later.
GPUS = ("T4", "L4", "A10", "A10G", "L40S", "A100", "A100-40GB", "A100-80GB", "RTX-PRO-6000")
GPUS += ("H100", "H100!", "H200", "B200", "B200+")
# All that the container gets to see.
MOUNTED = ("*.py", "addition/*.py", "data/*.py", "plumbing/*.py", "pos_embedding/*.py", "requirements.txt")
DATA, RUNS = "/vol/data", "/vol/runs"  # where the volumes are mounted
VOLUMES = {DATA: "sudoku-data", RUNS: "sudoku-runs"}
CODE = "/root"  # where Modal's own runtime looks for modules
FILES = ("config.json", "metrics.csv", "log.txt", "checkpoint.pt", "summary.json")  # last: the mark of a finished run
COMMIT_EVERY = 120  # seconds between two times that the volumes are made safe
MARGIN = 600  # seconds before the limit at which a run is told to save and stop
HELP = f"""
Modal: one {GPU}, {HOURS:g} hours a container, up to {RETRIES} more from the last checkpoint; SUDOKU_MODAL_GPU, _HOURS,
_RETRIES, _CPU, _MEMORY and _SECRETS in the environment change that. Modal's own options go before the file:
modal run --detach exp_x.py --seed 1"""


@dataclass
class Settings:
    gpu: str | None  # None: a machine without one
    seconds: int
    retries: int
    cpu: float
    memory: int  # MiB
    secrets: list


@dataclass
class Job:
    file: str  # relative to the repository
    flags: list
    config: object
    settings: Settings

    @property
    def experiment(self):
        return PurePosixPath(self.file).stem

    @property
    def name(self):
        import common  # here, not above: Modal's own process in the container does without torch

        return common.run_name(self.config)

    @property
    def folder(self):
        return Path(self.config.runs) / self.experiment / self.name

    @property
    def remote_flags(self):
        """The user's flags; CUDA or nothing, since a GPU that stands idle costs as much."""
        device = ["--device", "cuda"] if self.config.device == "auto" else []
        return [*self.flags, *device, "--resume", "--runs", RUNS]


# ---------------------------------------------------------------- what is checked here, before anything is paid for


def settings(environment=os.environ):
    """The constants above, or what the environment says instead."""

    def number(name, default, low, high):
        text = environment.get(f"SUDOKU_MODAL_{name}") or default
        with contextlib.suppress(ValueError):
            if low <= type(default)(text) <= high:
                return type(default)(text)
        raise SystemExit(f"SUDOKU_MODAL_{name}={text}: expected a number from {low:g} to {high:g}")

    gpu = (environment.get("SUDOKU_MODAL_GPU") or GPU).upper()
    if gpu not in GPUS:
        near = difflib.get_close_matches(gpu.split(":")[0], GPUS, 1, 0.5)
        hint = f"do you mean {near[0]}? " if near else ""
        raise SystemExit(f"SUDOKU_MODAL_GPU={gpu}: {hint}A run takes one GPU, any of {', '.join(GPUS)}")
    hours = number("HOURS", HOURS, 0.5, 24.0)
    secrets = [name for name in re.split(r"[,\s]+", environment.get("SUDOKU_MODAL_SECRETS") or SECRETS) if name]
    for name in secrets:
        if not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
            raise SystemExit(f"SUDOKU_MODAL_SECRETS: {name} cannot be a secret's name; see `modal secret list`")
    return Settings(
        gpu=gpu,
        seconds=int(hours * 3600),
        retries=number("RETRIES", RETRIES, 0, 10),
        cpu=number("CPU", CPU, 0.125, 64.0),
        memory=int(1024 * number("MEMORY", MEMORY, 1.0, 336.0)),
        secrets=secrets,
    )


def check(file, flags, config_class):
    """The run that these flags ask for; what is wrong with them ends the command here, before a GPU is rented."""
    import common

    config = common.parse(config_class, flags)
    how = settings()
    if config.device == "cpu":
        how.gpu = None  # nobody pays for a card that is not used
    job = Job(file, list(flags), config, how)
    data = getattr(config, "data", "")
    if data.endswith(".csv") and not data.startswith(f"{DATA}/"):
        raise SystemExit(
            f"--data {data}: the file is here, the run is not; `modal volume put {VOLUMES[DATA]} {data} /`, "
            f"then --data {DATA}/{Path(data).name}"
        )
    refuse_own_run(job.folder)
    return job


def refuse_own_run(folder):
    """A run that was made on this machine is not replaced by one that comes from Modal."""
    path, runs = folder / "config.json", None
    if path.exists():
        with contextlib.suppress(ValueError):
            runs = json.loads(path.read_text()).get("runs")
        if runs != RUNS:
            raise SystemExit(f"{folder} holds a run made on this machine; pick another --name, or move it away")


def relative(file):
    """exp_x, exp_x.py, pos_embedding/exp_x.py or a full path, as a path in the repository."""
    stem = Path(file).with_suffix(".py")
    for path in (stem if stem.is_absolute() else ROOT / stem, *ROOT.glob(f"*/{stem.name}")):
        if path.is_file() and path.resolve().is_relative_to(ROOT):
            return path.resolve().relative_to(ROOT).as_posix()
    near = difflib.get_close_matches(stem.stem, [path.stem for path in ROOT.glob("*.py")], 3)
    raise SystemExit(f"there is no {stem} here{'; do you mean ' + ' or '.join(near) + '?' if near else ''}")


def connect():
    """Ask Modal who we are; one line says what to do when it does not know or does not answer."""
    import modal

    try:
        modal.Client.from_env().hello()
    except modal.exception.AuthError as error:
        reason = str(error).split(". ")[0]
        raise SystemExit(f"Modal does not know this machine ({reason}); run `modal setup`, then this again") from None
    except modal.exception.ConnectionError:
        raise SystemExit(
            "Modal does not answer; look at the network (and https://status.modal.com), then run this again"
        ) from None


# ---------------------------------------------------------------- the app


def mounted():
    """The files that go to the container, relative to the repository."""
    return sorted({path.relative_to(ROOT).as_posix() for pattern in MOUNTED for path in ROOT.glob(pattern)})


def make_app(job_name, how):
    """-> (the app, its one function)"""
    import modal

    files = set(mounted())
    image = (
        modal.Image.debian_slim(python_version="3.11")
        .pip_install_from_requirements(str(ROOT / "requirements.txt"))
        .add_local_dir(ROOT, CODE, ignore=lambda path: path.as_posix() not in files)
    )
    app = modal.App(f"sudoku-{job_name}")
    function = app.function(
        image=image,
        gpu=how.gpu,
        cpu=how.cpu,
        memory=how.memory,
        timeout=how.seconds,
        retries=modal.Retries(max_retries=how.retries, initial_delay=10.0, backoff_coefficient=1.0),
        volumes={path: modal.Volume.from_name(name, create_if_missing=True) for path, name in VOLUMES.items()},
        secrets=[modal.Secret.from_name(name) for name in how.secrets],
        single_use_containers=True,  # a retry gets a fresh machine, not the one that failed
        include_source=False,  # nothing but MOUNTED goes there
    )(train_there)
    return app, function


def entry(file):
    """The app of `modal run exp_x.py FLAGS`. Modal starts it before it hands over the flags, so they are read here."""

    file = relative(file)
    flags = flags_of(file, sys.argv)
    module = sys.modules.get(Path(file).stem)
    job = None
    if flags is not None and module is not None:
        job = read_flags(file, flags, module.Config)
        connect()
    app, function = make_app(Path(file).stem, job.settings if job else settings())

    def main(*arguments):
        run = job or check(file, arguments, module.Config)
        volume = runs_volume()
        if finished(run, volume):
            fetch(run.experiment, run.name, run.config.runs, volume)
            return
        print(f"# {run.experiment}/{run.name} on {run.settings.gpu or 'a CPU'}; it will come home to {run.folder}")
        print(f"# after modal run --detach: python -m plumbing.remote fetch {run.experiment} {run.name}", flush=True)
        bring_home(start(function, run), run, volume)

    main.__qualname__ = "main"  # Modal wants a function that can be imported, though this one never leaves this process
    app.local_entrypoint()(main)
    return app


def flags_of(file, argv):
    """What follows the file in `modal run [options] FILE FLAGS`; None in any other command."""
    for i, word in enumerate(argv):
        path = Path(word.split("::")[0])
        by_path = path.suffix == ".py" and path.resolve() == ROOT / file
        by_module = argv[i - 1] == "-m" and word.split("::")[0].replace(".", "/") + ".py" == file
        if (by_path or by_module) and "run" in argv[1:i]:
            return argv[i + 1 :]
    return None


def read_flags(file, flags, config_class):
    """check(), with what --help has to say about `modal run`."""
    argv, sys.argv = sys.argv, [f"modal run {PurePosixPath(file).name}", *flags]  # tyro names the command by it
    try:
        return check(file, flags, config_class)
    except SystemExit as end:
        if end.code in (0, None):
            print(HELP)
        raise
    finally:
        sys.argv = argv


# ---------------------------------------------------------------- there


def train_there(file, flags, folder, seconds, commit):
    """In the container: python FILE FLAGS, made safe all along. -> its exit status

    A run that failed after it had saved something new is tried again, by an exception that Modal's retries see; one
    that came no further than the last time would fail for ever, and is not.
    """
    checkpoint = Path(RUNS) / folder / "checkpoint.pt"
    before = stamp(checkpoint)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "SUDOKU_DATA": DATA, "SUDOKU_COMMIT": commit}
    end = time.monotonic() + seconds
    # A session of its own: when Modal interrupts this process, we choose the signal and wait for the checkpoint.
    child = subprocess.Popen([sys.executable, file, *flags], cwd=ROOT, env=environment, start_new_session=True)
    try:
        while child.poll() is None and time.monotonic() < end:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(min(COMMIT_EVERY, max(0.0, end - time.monotonic())))
            if child.poll() is None:
                # Modal commits by itself too, so nothing is lost where files that are open stand in the way.
                with contextlib.suppress(Exception):
                    make_safe()
    finally:
        stop(child)
        make_safe()
    if child.returncode and stamp(checkpoint) != before:
        raise RuntimeError(
            f"{file} stopped with status {child.returncode}; the next container goes on from its checkpoint"
        )
    return child.returncode


def stop(child):
    """SIGTERM makes a run save and end after its current step; Modal leaves about 30 seconds for that."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def make_safe():
    """Commit the volumes: from then on other machines see what was written."""
    import modal

    for name in VOLUMES.values():
        modal.Volume.from_name(name).commit()


def stamp(path):
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


# ---------------------------------------------------------------- and home again


def start(function, job):
    from plumbing import disk

    seconds = max(job.settings.seconds // 2, job.settings.seconds - MARGIN)
    return function.spawn(job.file, job.remote_flags, f"{job.experiment}/{job.name}", seconds, disk.commit())


def finished(job, volume):
    """Whether this very run has ended there before, so that nothing but the way home is left."""
    import common

    files = listing(volume, f"{job.experiment}/{job.name}")
    if "summary.json" not in files:
        return False
    saved = json.loads(b"".join(volume.read_file(f"{job.experiment}/{job.name}/config.json")))
    now = json.loads(json.dumps(asdict(job.config)))
    return all(saved.get(key) == value for key, value in now.items() if key not in common.FREE)


def runs_volume():
    import modal

    return modal.Volume.from_name(VOLUMES[RUNS], create_if_missing=True)


def listing(volume, path):
    import modal

    try:
        return {PurePosixPath(entry.path).name for entry in volume.listdir(path)}
    except (modal.exception.NotFoundError, FileNotFoundError):
        return set()


def bring_home(call, job, volume):
    """Wait for the run, then fetch it; also what there is of one that failed."""
    try:
        status = call.get()
    except Exception as error:
        status = str(error).strip().split("\n")[0] or type(error).__name__
    have = listing(volume, f"{job.experiment}/{job.name}")
    if have:
        fetch(job.experiment, job.name, job.config.runs, volume)
    if status:
        again = f"; what it saved is in {job.folder}, the same command goes on from there" if have else ""
        raise SystemExit(f"{job.experiment}/{job.name} failed on Modal (status {status}); see the lines above{again}")


def fetch(experiment, name, runs="runs", volume=None):
    """Copy a run's files from the volume to runs/<experiment>/<name>: all of them, or nothing changes here."""
    volume = volume or runs_volume()
    remote, target = f"{experiment}/{name}", Path(runs) / experiment / name
    there = listing(volume, remote)
    files = [file for file in FILES if file in there]
    if not files:
        others = ", ".join(sorted(listing(volume, experiment))) or "none"
        raise SystemExit(f"there is no run {remote} on the volume {VOLUMES[RUNS]}; of {experiment} there are: {others}")
    refuse_own_run(target)
    temporary = target.with_name(f".{name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        for file in files:
            with open(temporary / file, "wb") as out:
                for part in volume.read_file(f"{remote}/{file}"):
                    out.write(part)
        if target.exists():
            for file in files:  # summary.json is the last
                os.replace(temporary / file, target / file)
        else:
            os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"# {target}: {', '.join(files)}" + ("" if "summary.json" in files else " (not finished yet)"), flush=True)


def fan(names, flags):
    """Start every run on a GPU of its own, wait for all, fetch each. -> exit code"""
    jobs = []
    for name in names:  # before modal is imported: then an experiment's own app stays None
        file = relative(name)
        sys.path.insert(0, str((ROOT / file).parent))
        jobs.append(check(file, flags, importlib.import_module(Path(file).stem).Config))
    for job in [job for job in jobs if (job.folder / "summary.json").exists()]:
        print(f"# {job.folder} is finished already")
        jobs.remove(job)
    if not jobs:
        return 0
    connect()
    volume = runs_volume()
    failed, calls = [], []
    with contextlib.ExitStack() as apps:
        try:
            for job in jobs:
                if finished(job, volume):
                    fetch(job.experiment, job.name, job.config.runs, volume)
                    continue
                # An app for each: a detached app stays for the last call that was made in it.
                app, function = make_app(job.experiment, job.settings)
                apps.enter_context(app.run(detach=True))
                calls.append((job, start(function, job)))
                print(
                    f"# {job.experiment}/{job.name} on {job.settings.gpu or 'a CPU'}: modal app logs {app.app_id}",
                    flush=True,
                )
            for job, call in calls:
                try:
                    bring_home(call, job, volume)
                except SystemExit as error:
                    print(error, file=sys.stderr, flush=True)
                    failed.append(f"{job.experiment}/{job.name}")
        except KeyboardInterrupt:
            print("\nThe runs go on without us. To bring them home:")
            for job, _ in calls:
                print(f"  python -m plumbing.remote fetch {job.experiment} {job.name} --runs {job.config.runs}")
            sys.stdout.flush()
            os._exit(130)  # leaving the apps' contexts in order would stop them
    if failed:
        print(f"failed: {', '.join(failed)}; the same command runs only these again", file=sys.stderr)
    return 1 if failed else 0


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    flags = argv[argv.index("--") + 1 :] if "--" in argv else []
    argv = argv[: argv.index("--")] if "--" in argv else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("fetch", help="bring a run home from Modal")
    one.add_argument("experiment", help="as in runs/<experiment>/<name>")
    one.add_argument("name", help="as in runs/<experiment>/<name>, for example full-seed0")
    one.add_argument("--runs", default="runs", help="the folder that holds all runs here (default: runs)")
    many = commands.add_parser("fan", help="run several experiments at once, a GPU each")
    many.add_argument("experiments", nargs="+", help="their files; flags for all of them follow after --")
    asked = parser.parse_args(argv)
    if asked.command == "fan":
        return fan(asked.experiments, flags)
    connect()
    fetch(PurePosixPath(asked.experiment).stem, asked.name, asked.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
