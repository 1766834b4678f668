"""What runs read and write: checkpoints, metrics, JSON. All writes are atomic: a temporary file, then a rename."""

import contextlib
import csv
import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def writing(folder, name):
    """A failed write ends the run with what to do next, and leaves the file as it was."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise SystemExit(
            f"cannot write {Path(folder) / name}: {error}. What was saved before is intact; free some space or "
            "mend the permissions, then run the same command again (a run: with --resume)"
        ) from None


def say(text):
    """Print; where the reader has gone (`| head`), go on in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit would fail again


def replace(path, write):
    """Have `write` fill a temporary file beside `path`, then rename it; an existing file keeps its mode."""
    temporary = Path(f"{path}.{os.getpid()}.tmp")  # two processes may make the same file
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise


def save_checkpoint(path, state):
    import torch  # here: the commands of data/ use this module and do without

    replace(path, lambda file: torch.save(state, file))


def checkpoint_path(given):
    """The checkpoint of a run's folder, or the one that is named."""
    return Path(given, "checkpoint.pt") if Path(given).is_dir() else Path(given)


def wrong_json(path):
    """What is wrong with --output, the path of a .json file to write; None where nothing is."""
    if path.endswith(".json") and Path(path).parent.is_dir():
        return None
    return f"--output {path}: expected a .json file in a folder that exists"


def load_checkpoint(path, device="cpu"):
    """A checkpoint of ours, its checksums verified; anything else is an error that names the file."""
    import torch

    path = Path(path)
    if path.is_dir():
        raise SystemExit(f"{path} is a folder; give the path of a checkpoint.pt")
    try:
        if not zipfile.is_zipfile(path) and path.exists():
            raise ValueError("it is cut short, or no checkpoint at all")
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        if broken:
            raise ValueError(f"the content of {broken} does not match its checksum")
        saved = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(saved, dict):
            raise ValueError("it holds no dictionary of named parts")
        return saved
    except FileNotFoundError:
        raise SystemExit(f"{path} does not exist; give the path of a checkpoint.pt") from None
    except OSError as error:
        raise SystemExit(f"{path} cannot be read ({error.strerror or error}); check its permissions") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, LookupError, ValueError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else "it ends too early"
        raise SystemExit(
            f"{path} is not a whole checkpoint ({reason}); restore it from a copy, or delete it and start again"
        ) from None


def write_json(path, value):
    replace(path, lambda file: file.write(json.dumps(value, indent=1).encode() + b"\n"))


def read_json(path):
    """The value in a JSON file; None where there is no whole one."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None


def append_row(path, rows):
    """Write the last of these rows of metrics.csv; a column seen for the first time rewrites the whole file."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if len(rows) > 1 and path.exists() and len(columns) == len({name for row in rows[:-1] for name in row}):
        with open(path, "a", newline="") as file:
            csv.DictWriter(file, columns, lineterminator="\n").writerow(rows[-1])
            file.flush()
            os.fsync(file.fileno())
    else:
        write_rows(path, rows)


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path, rows, columns=None):
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(columns), *(",".join("" if row.get(c) is None else str(row[c]) for c in columns) for row in rows)]
    replace(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))


def describe(device):
    """The hardware and versions, in one line."""
    import torch

    if device.type == "cuda":
        chip = torch.cuda.get_device_name(device)
    else:
        chip = f"{cpu_name()}, {torch.get_num_threads()} threads"
    return f"{chip}; python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"


def cpu_name():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit():
    """The commit that is checked out, with + where files differ from it."""
    if "SUDOKU_COMMIT" in os.environ:  # a rented container has no .git
        return os.environ["SUDOKU_COMMIT"]
    ask = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    with contextlib.suppress(OSError):  # there is no git
        done = subprocess.run(ask, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"
    return "unknown"
