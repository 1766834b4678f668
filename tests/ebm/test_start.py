"""ebm/ours.py as it is started: by its path, as a module, and again with the command that a run has noted."""

import json
import os
import subprocess
import sys

import torch

import common
from ebm import ours
from plumbing import disk

SMALL = ["--preset", "smoke", "--steps", "2", "--iterations", "2", "--seed", "3"]


def test_a_run_is_repeated_by_the_command_that_it_noted(clean):
    """First by its path from any folder, where this folder's data.py is in front of data/; then as with python -m."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, ours.__file__, *SMALL, "--runs", "first"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ours.app is None  # Modal's, only in `modal run`
    first = clean / "first/ours/smoke-seed3"
    command = json.loads((first / "summary.json").read_text())["command"]
    assert (first / "log.txt").read_text().startswith(f"# {command}\n")
    python, file, *flags = command.split()
    assert (python, file) == ("python", "ebm/ours.py")
    then, now = json.loads((first / "config.json").read_text()), vars(common.parse(ours.Config, flags))
    assert then == json.loads(json.dumps(now))
    ours.main([*flags, "--runs", "second"])
    saved = [disk.load_checkpoint(folder / "checkpoint.pt") for folder in (first, clean / "second/ours/smoke-seed3")]
    assert all(torch.equal(value, saved[1]["model"][name]) for name, value in saved[0]["model"].items())
