"""Kill a run at random moments, resume it each time, and compare its end with a run that was left alone.

python tests/kill.py exp_cosine_no_sam --kills 10 -- --preset mini

Both runs start as forks of a process that has imported everything, so that a kill hits the run and not its start.
"""

import argparse
import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def fork(module, arguments, quiet):
    child = os.fork()
    if child == 0:
        if quiet:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
        try:
            module.main(arguments)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--runs", default="runs/kill", help="the folder of both runs")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--output", help="also write what came out to this .json file")
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:cut])
    module = importlib.import_module(options.experiment)
    flags = [*argv[cut + 1 :], "--runs", options.runs]
    moments = random.Random(options.seed)
    begin = time.monotonic()
    _, status = os.waitpid(fork(module, [*flags, "--name", "whole"], options.quiet), 0)
    if status:
        raise SystemExit("the run that was left alone failed")
    duration = time.monotonic() - begin
    kills = finished = 0
    while not finished:
        child = fork(module, [*flags, "--name", "killed", "--resume"], options.quiet)
        deadline = time.monotonic() + moments.uniform(0.02, 1.5) * duration / options.kills
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                if status:
                    raise SystemExit(f"a resumed run failed with status {status}")
                finished = True
                break
            if kills < options.kills and time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += 1
                break
            time.sleep(0.005)
    import torch  # only now: a parent with threads must not fork

    from plumbing import disk

    folders = [Path(options.runs) / options.experiment / name for name in ("whole", "killed")]
    whole, killed = (disk.load_checkpoint(folder / "checkpoint.pt") for folder in folders)
    for name, value in whole["model"].items():
        assert torch.equal(value, killed["model"][name]), f"{name} differs after {kills} kills"
    columns = [
        [
            (row["step"], row["loss"], row["accuracy"], row["test_solved"])
            for row in disk.read_rows(folder / "metrics.csv")
        ]
        for folder in folders
    ]
    assert columns[0] == columns[1], "metrics differ"
    said = (
        f"{kills} kills of {options.experiment}: all weights the same bit for bit, {len(columns[0])} metrics rows too"
    )
    print(said)
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python tests/kill.py", *argv])
        disk.write_json(
            options.output, {"said": said, "command": command, "hardware": disk.describe(torch.device("cpu"))}
        )
    return kills


if __name__ == "__main__":
    main()
