"""run.sh and the chains of runs, with stand-ins for Python and for the experiments: nothing is installed or trained."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.experiments import ROOT

# Notes what it is asked for in the file CALLS, and makes the folders that venv and pip would make.
PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-c "*) exit "${REFUSED:-0}" ;;
  "-ISc "*) echo "$3 3 ${MINOR:-11}" ;;
  "-m venv")
    echo venv >>"$CALLS"
    [ ! "${NO_VENV:-}" ] || exit 1
    rm -rf "$4" && mkdir -p "$4/bin" "$4/lib/python3/site-packages/pip" && ln -s "$0" "$4/bin/python"
    printf '#!/usr/bin/env bash\\necho hello from "$@"\\n' >"$4/bin/hello" && chmod +x "$4/bin/hello" ;;
  "-m pip")
    echo pip >>"$CALLS"
    sleep "${SECONDS_OF_PIP:-0}"
    mkdir -p "$(dirname "$0")/../lib/python3/site-packages/"{torch,rich,rich-1.dist-info}
    exit "${PIP_STATUS:-0}" ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A repository with run.sh, at a path with characters that a shell could take amiss."""
    folder = tmp_path / "a [clone] $HOME"
    folder.mkdir()
    shutil.copy(ROOT / "run.sh", folder)
    (folder / "requirements.txt").write_text("torch==1\nrich==1\n")
    (tmp_path / "python-stub").write_text(PYTHON)
    (tmp_path / "python-stub").chmod(0o755)
    return folder


def environment(clone, **more):
    top = clone.parent
    return os.environ | {"PYTHON": str(top / "python-stub"), "CALLS": str(top / "calls")} | more


def run(clone, *command, script=None, cwd="/", **more):
    command = ["bash", str(script or clone / "run.sh"), *(command or ("hello", "two words"))]
    return subprocess.run(command, env=environment(clone, **more), cwd=cwd, capture_output=True, text=True, timeout=60)


def calls(clone):
    """What was asked of Python since the last time."""
    path = clone.parent / "calls"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def works(done):
    assert (done.returncode, done.stdout) == (0, "hello from two words\n"), done.stderr
    return True


def test_run_installs_once(clone):
    assert works(run(clone)) and calls(clone) == ["venv", "pip"]
    done = run(clone)
    assert works(done) and calls(clone) == [] and not done.stderr
    assert sorted(os.listdir(clone)) == [".venv", "requirements.txt", "run.sh"]
    assert (clone / "requirements.txt").read_text() == "torch==1\nrich==1\n"


def test_run_installs_what_has_changed_in_the_same_environment(clone):
    run(clone), calls(clone)
    (clone / "requirements.txt").write_text("torch==1\nrich==2\n")
    assert works(run(clone)) and calls(clone) == ["pip"]
    assert works(run(clone)) and calls(clone) == []


def test_run_goes_on_with_an_install_that_failed(clone):
    done = run(clone, PIP_STATUS="1")
    assert done.returncode == 1 and not done.stdout and "same command again" in done.stderr.splitlines()[-1]
    assert calls(clone) == ["venv", "pip"]
    assert works(run(clone)) and calls(clone) == ["pip"]


def test_run_goes_on_with_an_update_that_failed(clone):
    run(clone), calls(clone)
    (clone / "requirements.txt").write_text("torch==2\n")
    assert run(clone, PIP_STATUS="1").returncode == 1
    (clone / "requirements.txt").write_text("torch==1\nrich==1\n")  # back again, but what is installed is not
    calls(clone)
    assert works(run(clone)) and calls(clone) == ["pip"]


@pytest.mark.parametrize("damage", ["package", "python", "other python", "stamp", "everything"])
def test_run_makes_a_damaged_environment_anew(damage, clone):
    run(clone), calls(clone)
    venv, more = clone / ".venv", {}
    if damage == "package":
        shutil.rmtree(venv / "lib/python3/site-packages/rich")
    elif damage == "python":
        (venv / "bin/python").unlink()
        (venv / "bin/python").symlink_to("/gone/python3")
    elif damage == "other python":
        more = {"MINOR": "12"}
    elif damage == "stamp":
        (venv / "installed").write_text("")
    else:
        shutil.rmtree(venv)
    assert works(run(clone, **more)) and calls(clone) == ["venv", "pip"]
    assert works(run(clone, **more)) and calls(clone) == []


def test_run_tolerates_other_versions_and_further_packages(clone):
    run(clone), calls(clone)
    packages = clone / ".venv/lib/python3/site-packages"
    (packages / "rich-1.dist-info").rename(packages / "rich-2.dist-info")
    (packages / "ipython").mkdir()
    assert works(run(clone)) and calls(clone) == []


def test_run_in_a_moved_clone(clone):
    run(clone), calls(clone)
    moved = clone.rename(clone.parent / "moved")
    assert works(run(moved)) and calls(moved) == ["venv", "pip"]


def test_run_through_links_and_with_cdpath(clone):
    other = clone.parent / "other"
    (other / "clone" / "deep").mkdir(parents=True)
    (other / "absolute").symlink_to(clone / "run.sh")
    (other / "relative").symlink_to("absolute")
    (other / "folder").symlink_to(clone)
    for script in ("absolute", "relative", "folder/run.sh"):
        assert works(run(clone, script=other / script))
        assert works(run(clone, script=script, cwd=other))
    (clone / "deep").mkdir()
    (clone / "deep" / "run").symlink_to("../run.sh")
    for path in (str(other), f"{other}/clone", "."):
        assert works(run(clone, script="deep/run", cwd=clone, CDPATH=path))
        assert works(run(clone, script="run.sh", cwd=clone, CDPATH=path))
    assert calls(clone) == ["venv", "pip"]


def tools(clone, *names):
    """A PATH of these programs alone."""
    folder = clone.parent / "tools"
    folder.mkdir()
    for name in (
        "bash",
        "cat",
        "chmod",
        "cksum",
        "dirname",
        "env",
        "grep",
        "ln",
        "ls",
        "mkdir",
        "ps",
        "readlink",
        "rm",
    ):
        (folder / name).symlink_to(shutil.which(name))
    for name in ("sed", "sleep", *names):
        (folder / name).symlink_to(shutil.which(name))
    return {"PATH": str(folder)}


def test_run_without_python(clone):
    for more in (tools(clone) | {"PYTHON": "/gone/python3"}, {"PATH": str(clone.parent / "tools"), "REFUSED": "1"}):
        done = run(clone, **more)
        assert done.returncode == 1 and "Python 3.11 or later" in done.stderr.splitlines()[-1]
    done = run(clone, NO_VENV="1")
    assert done.returncode == 1 and "cannot make .venv" in done.stderr.splitlines()[-1]


def test_run_without_a_command_says_how(clone):
    done = subprocess.run(["bash", str(clone / "run.sh")], env=environment(clone), capture_output=True, text=True)
    assert done.returncode == 2 and "./run.sh COMMAND" in done.stdout and calls(clone) == []


def test_run_passes_the_status_on(clone):
    assert run(clone, "bash", "-c", "exit 7").returncode == 7
    assert run(clone, "no-such-command").returncode == 127


@pytest.mark.parametrize("flock", [True, False])
def test_two_at_once_install_once(flock, clone):
    if flock and not shutil.which("flock"):
        pytest.skip("there is no flock here")
    more = ({} if flock else tools(clone)) | {"SECONDS_OF_PIP": "1.5"}
    command = ["bash", str(clone / "run.sh"), "hello", "two words"]
    options = dict(env=environment(clone, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = subprocess.Popen(command, **options)
    while not (clone.parent / "calls").exists():
        time.sleep(0.02)
    second = subprocess.Popen(command, **options)
    output, errors = zip(*(process.communicate(timeout=60) for process in (first, second)))
    assert output == ("hello from two words\n",) * 2
    assert calls(clone) == ["venv", "pip"]
    assert "waiting" in errors[1] and "waiting" not in errors[0]
    assert sorted(os.listdir(clone)) == [".venv", "requirements.txt", "run.sh"]


@pytest.mark.parametrize("flock", [True, False])
def test_a_running_command_does_not_hold_the_lock(flock, clone):
    more = {} if flock else tools(clone)
    command = ["bash", str(clone / "run.sh"), "bash", "-c", "echo started && exec sleep 60"]
    running = subprocess.Popen(command, env=environment(clone, **more), stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout.readline() == "started\n"
        (clone / "requirements.txt").write_text("torch==2\n")
        done = run(clone, **more)
        assert works(done) and "waiting" not in done.stderr
    finally:
        running.kill()
        running.communicate()


def test_a_lock_of_a_killed_process_is_removed(clone):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (clone / ".venv.lock").symlink_to(str(dead.pid))
    assert works(run(clone, **tools(clone)))
    assert not os.path.lexists(clone / ".venv.lock")


# ---------------------------------------------------------------- chains


@pytest.fixture
def chain(tmp_path):
    """chain.sh beside experiments that print their name and flags and end with a status."""
    for folder in ("scripts", "plumbing", "pos_embedding"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "scripts" / "chain.sh", tmp_path / "scripts")
    files = {"a": 0, "b": 3, "c": 0, "pos_embedding/x": 0, "plumbing/remote": 4, "int": 130, "term": 143, "hup": 129}
    for name, status in files.items():
        text = f"import sys; print('{name}', *sys.argv[1:], flush=True); sys.exit({status})\n"
        (tmp_path / f"{name}.py").write_text(text)

    def run(*arguments, **more):
        environment = os.environ | {"PYTHON": sys.executable} | more
        command = ["bash", str(tmp_path / "scripts" / "chain.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/", timeout=60)

    return run


def test_chain_continues_past_a_failure(chain):
    done = chain("local", "a.py", "b.py", "pos_embedding/x.py", "gone.py", "--", "--seed", "1", "--note", "two words")
    flags = "--seed 1 --note two words --resume"
    assert done.stdout.splitlines() == [f"a {flags}", f"b {flags}", f"pos_embedding/x {flags}"]
    assert done.returncode == 1 and "a.py" not in done.stderr
    assert "b.py (status 3)" in done.stderr and "gone.py (status 2)" in done.stderr
    done = chain("local", "a.py", "c.py", "--")
    assert done.returncode == 0 and done.stdout.splitlines() == ["a --resume", "c --resume"] and not done.stderr


@pytest.mark.parametrize("name, status", [("int", 130), ("term", 143), ("hup", 129)])
def test_chain_stops_with_a_run_that_was_stopped(name, status, chain):
    done = chain("local", f"{name}.py", "a.py", "--")
    assert done.returncode == status and done.stdout == f"{name} --resume\n" and f"stopped in {name}.py" in done.stderr


def test_ctrl_c_stops_the_chain_even_if_the_run_ends_well(chain, tmp_path):
    text = "import signal, time; signal.signal(signal.SIGINT, lambda *_: exit(0)); print('ready', flush=True)"
    (tmp_path / "long.py").write_text(f"{text}; time.sleep(60)\n")
    command = ["bash", str(tmp_path / "scripts/chain.sh"), "local", "long.py", "a.py"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    process = subprocess.Popen(command, env=os.environ | {"PYTHON": sys.executable}, **pipes)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and output == "" and "stopped in long.py" in errors


def test_chain_on_modal_is_a_fan(chain):
    done = chain("modal", "a.py", "pos_embedding/x.py", "--", "--seed", "1")
    assert done.stdout == "plumbing/remote fan a.py pos_embedding/x.py -- --seed 1\n" and done.returncode == 4


@pytest.mark.parametrize("arguments", [[], ["local"], ["modal", "--", "--seed", "1"], ["there", "a.py"]])
def test_chain_says_how_it_is_used(arguments, chain):
    done = chain(*arguments)
    assert done.returncode == 2 and "usage: scripts/chain.sh" in done.stderr and not done.stdout


LISTS = [ROOT / "scripts" / name for name in ("baseline.sh", "cosine.sh")]


@pytest.mark.parametrize("where", ["local", "modal"])
@pytest.mark.parametrize("script", LISTS, ids=lambda path: path.name)
def test_script_names_experiments_that_exist(script, where, tmp_path):
    """Run with a stand-in for chain.sh that prints what it is given."""
    for folder in ("scripts", "elsewhere/scripts"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(script, tmp_path / "scripts")
    fake = tmp_path / "scripts" / "chain.sh"
    fake.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    command = ["bash", f"scripts/{script.name}", where, "--preset", "smoke", "--note", "two words"]
    more = dict(cwd=tmp_path, env=os.environ | {"CDPATH": str(tmp_path / "elsewhere")})
    given = subprocess.run(command, capture_output=True, text=True, check=True, **more).stdout.splitlines()
    assert given[0] == where and given[-5:] == ["--", "--preset", "smoke", "--note", "two words"]
    assert all((ROOT / file).exists() for file in given[1:-5]) and len(given) > 10
    assert os.access(script, os.X_OK)
    head = script.read_text().split("exec ")[0]
    assert all(word in head for word in ("Hardware:", "hours", "the same command"))


@pytest.mark.parametrize("arguments", [[], ["--preset", "mini"]])
@pytest.mark.parametrize("script", LISTS, ids=lambda path: path.name)
def test_script_says_how_it_is_used(script, arguments):
    done = subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True, cwd="/")
    assert done.returncode == 2 and "local|modal FLAGS" in done.stderr and not done.stdout


@pytest.mark.parametrize("script", [ROOT / "run.sh", *sorted(ROOT.glob("scripts/*.sh"))], ids=lambda path: path.name)
def test_scripts_parse(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


# ---------------------------------------------------------------- the ladder

EXPERIMENT = """import json, os, sys, time
from pathlib import Path
name, seed = Path(sys.argv[0]).stem, sys.argv[sys.argv.index("--seed") + 1]
print(name, *sys.argv[1:], os.environ.get("OMP_NUM_THREADS"), file=open("calls", "a"))
if name in os.environ.get("FAILS", "").split():
    sys.exit(int(os.environ.get("STATUS", "3")))
if name == os.environ.get("SLOW"):  # saves when it is interrupted, which takes a while
    Path("started").touch()
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        time.sleep(0.5)
        Path("saved").touch()
        sys.exit(130)
folder = Path(f"runs/{name}/{sys.argv[2]}-seed{seed}")
folder.mkdir(parents=True, exist_ok=True)
(folder / "summary.json").write_text("{}")
"""
REPORT = """import os, shutil, sys
if sys.argv[1:2] == ["keep"]:
    if os.environ.get("REFUSES", "nothing") in sys.argv[2]:
        sys.exit(1)
    shutil.copytree(sys.argv[2], sys.argv[2].replace("runs", "results", 1))
"""


@pytest.fixture
def ladder(tmp_path):
    """ladder.sh beside experiments that note how they are called and leave a summary; -> (run it, its new calls)"""
    for folder in ("scripts", "plumbing", "pos_embedding"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "scripts" / "ladder.sh", tmp_path / "scripts")
    for name in ("sudoku", "exp_other", "exp_speedrun", "pos_embedding/exp_faster_alibi"):
        (tmp_path / f"{name}.py").write_text(EXPERIMENT)
    (tmp_path / "pos_embedding/common.py").write_text("raise SystemExit('not an experiment')\n")
    (tmp_path / "report.py").write_text(REPORT)
    (tmp_path / "insights.py").write_text("print('exp_faster_alibi sudoku')\n")
    (tmp_path / "plumbing/remote.py").write_text(
        "import os, sys; print(*sys.argv[1:], file=open('calls', 'a')); os._exit(int(os.environ.get('FAN', '0')))\n"
    )

    def run(*arguments, **more):
        environment = os.environ | {"PYTHON": sys.executable} | more
        environment.pop("OMP_NUM_THREADS", None)
        command = ["bash", str(tmp_path / "scripts" / "ladder.sh"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/", timeout=60)
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        (tmp_path / "calls").unlink(missing_ok=True)
        return done, sorted(calls)

    return run


def test_the_ladder_runs_all_once_and_what_carries_insights_with_more_seeds(ladder, tmp_path):
    done, calls = ladder("mini", "--device", "two words")
    rest = "--resume --device two words 1"
    seeds = dict.fromkeys(("sudoku", "exp_faster_alibi"), (20, 21, 22)) | {"exp_other": (20,)}
    assert calls == sorted(f"{n} --preset mini --seed {s} {rest}" for n, own in seeds.items() for s in own)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results/exp_faster_alibi/mini-seed22/summary.json").exists(), "kept as it ends"


def test_the_ladder_goes_on_from_what_is_committed(ladder, tmp_path):
    folder = tmp_path / "results/sudoku/mini-seed20"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    done, calls = ladder("mini", FAILS="exp_other")
    assert [call.split()[0] + call.split()[4] for call in calls if "alibi" not in call] == [
        "exp_other20", "sudoku21", "sudoku22"]  # fmt: skip
    assert done.returncode == 1 and "exp_other.py --seed 20 failed (status 3)" in done.stderr
    done, calls = ladder("mini")
    assert len(calls) == 1 and calls[0].startswith("exp_other") and done.returncode == 0
    assert ladder("mini")[1] == []


def test_the_ladder_on_modal_is_a_fan_for_each_seed(ladder):
    calls = ladder("gpu", "modal")[1]
    files = "pos_embedding/exp_faster_alibi.py"
    assert calls == sorted(
        [f"fan sudoku.py exp_other.py {files} -- --preset gpu --seed 20"]
        + [f"fan sudoku.py {files} -- --preset gpu --seed {seed}" for seed in (21, 22)]
    )
    assert ladder("gpu")[1][0].endswith("None"), "one run at a time, with all threads"


@pytest.mark.parametrize("status", ["129", "130", "143"])
def test_the_ladder_starts_nothing_after_a_run_that_was_stopped(ladder, status):
    done, calls = ladder("mini", JOBS="1", FAILS="sudoku", STATUS=status)
    assert [call.split()[0] for call in calls] == ["sudoku"]
    assert done.returncode == 130 and "the same command goes on" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_ladder_waits_until_its_runs_have_saved(ladder, tmp_path, number):
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"PYTHON": sys.executable, "SLOW": "exp_other", "TMPDIR": str(tmp_path / "temporary")}
    command = ["bash", str(tmp_path / "scripts" / "ladder.sh"), "mini"]
    # a session of its own: the signal reaches the script alone, as with kill
    heard = signal.signal(number, signal.SIG_DFL)  # a script started under nohup cannot hear SIGHUP
    started = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(number, heard)
    while not (tmp_path / "started").exists() and started.poll() is None:
        time.sleep(0.05)
    started.send_signal(number)
    _, errors = started.communicate(timeout=30)
    assert started.returncode == 130 and "the same command goes on" in errors
    assert (tmp_path / "saved").exists(), "the script ends after its runs"
    assert not any("--seed 21" in call for call in (tmp_path / "calls").read_text().splitlines())
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("flags", [["--steps", "12"], ["--name=x"], ["--device", "cpu", "--batch=3"]])
def test_the_ladder_refuses_flags_that_change_an_experiment_before_it_starts(ladder, flags):
    done, calls = ladder("mini", *flags)
    assert done.returncode == 2 and not calls and f"{flags[-2 if flags[0] == '--steps' else -1]} could" in done.stderr


def test_the_ladder_fails_where_the_tables_cannot_be_made(ladder, tmp_path):
    (tmp_path / "report.py").write_text(REPORT + "else:\n    sys.exit(1)\n")
    done, _ = ladder("mini")
    assert done.returncode == 1 and "report.py" in done.stderr


def test_the_ladder_names_evidence_that_was_not_kept(ladder):
    done, calls = ladder("mini", REFUSES="exp_other")
    assert done.returncode == 1 and "runs/exp_other/mini-seed20: evidence not kept" in done.stderr and len(calls) == 7


def test_the_ladder_ends_with_a_stopped_fan_and_goes_on_after_a_failed_one(ladder):
    done, calls = ladder("gpu", "modal", FAN="130")
    assert done.returncode == 130 and len(calls) == 1
    done, calls = ladder("gpu", "modal", FAN="1")
    assert done.returncode == 1 and len(calls) == 3 and "some of seed 21" in done.stderr


def test_the_ladder_needs_the_names_of_the_contrasts(ladder, tmp_path):
    (tmp_path / "insights.py").write_text("raise SystemExit('no')\n")
    done, calls = ladder("mini")
    assert done.returncode == 1 and not calls


@pytest.mark.parametrize("arguments", [[], ["smoke"], ["--seed", "1"]])
def test_the_ladder_says_how_it_is_used(ladder, arguments):
    done, calls = ladder(*arguments)
    assert done.returncode == 2 and "usage: scripts/ladder.sh" in done.stderr and not calls
