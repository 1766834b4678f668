"""What a run reads and writes: checkpoints, metrics, JSON. Each write is whole or has not happened."""

import contextlib
import csv
import json
import os
import pickle
import platform
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import torch


@contextlib.contextmanager
def writing(folder, name):
    """A failed write ends the run with what to do next, and leaves the file as it was."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise SystemExit(
            f"cannot write {Path(folder) / name}: {error}. What was saved before is intact; "
            "free some space, then run the same command with --resume"
        ) from None


def replace(path, write):
    """Have `write` fill a temporary file beside `path`, then rename it."""
    temporary = Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise


def save_checkpoint(path, state):
    replace(path, lambda file: torch.save(state, file))


def load_checkpoint(path, device="cpu"):
    """A checkpoint of ours; anything else is an error that names the file."""
    try:
        if Path(path).is_file() and not zipfile.is_zipfile(path):  # torch's errors for these do not name the file
            raise ValueError("it is cut short, or no checkpoint at all")
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise SystemExit(f"{path} does not exist; give the path of a checkpoint.pt") from None
    except (
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        KeyError,
        ValueError,
    ) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else "it ends too early"
        raise SystemExit(f"{path} is not a whole checkpoint ({reason}); delete it and start the run again") from None


def write_json(path, value):
    replace(path, lambda file: file.write(json.dumps(value, indent=1).encode() + b"\n"))


def append_row(path, row):
    """One more row of metrics.csv; a column seen for the first time is added to the whole file."""
    rows = read_rows(path) if path.exists() else []
    columns = list(dict.fromkeys([*(rows[0] if rows else ()), *row]))
    if rows and len(columns) == len(rows[0]):
        with open(path, "a", newline="") as file:
            csv.DictWriter(file, columns, lineterminator="\n").writerow(row)
            file.flush()
            os.fsync(file.fileno())
    else:
        write_rows(path, [*rows, row], columns)


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path, rows, columns):
    lines = [",".join(columns), *(",".join("" if row.get(c) is None else str(row[c]) for c in columns) for row in rows)]
    replace(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))


def keep_rows(path, last):
    """Drop what a killed run wrote after its last checkpoint: those steps come again."""
    if path.exists():
        rows = [row for row in read_rows(path) if (row["step"] or "").isdigit() and None not in row.values()]
        write_rows(path, [row for row in rows if int(row["step"]) <= last], list(rows[0]) if rows else ["step"])


def describe(device):
    """The hardware and versions, in one line."""
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
    ask = dict(cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    try:
        name = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **ask).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **ask).stdout.strip()
    except OSError:
        return "unknown"
    return (name or "unknown") + ("+" if changed else "")


def start_wandb(mode, folder, experiment, config, project="sudoku"):
    """A W&B run, or None: asking for one never blocks, prompts or kills a run."""
    if mode == "off":
        return None
    try:
        import wandb

        if mode == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
            print("# W&B: no API key (wandb login, or WANDB_API_KEY); recording offline instead", flush=True)
            mode = "offline"
        settings = wandb.Settings(init_timeout=30, silent=True, console="off")
        name = f"{experiment}-{Path(folder).name}"
        return wandb.init(
            project=project,
            name=name,
            id=name,
            resume="allow",
            mode=mode,
            dir=folder,
            config=config,
            settings=settings,
        )
    except Exception as error:
        print(f"# W&B is left out: {error}", flush=True)
        return None
