"""Kill a run at steps drawn by chance, resume it each time, and compare its end with a run that was left alone.

python tests/kill.py exp_cosine_no_sam --kills 10 -- --preset mini
python tests/kill.py ebm/train --kills 10 -- --run 4 --preset mini
python tests/kill.py ep_c512/train --kills 10 -- --preset mini --steps 500 --save-every 20

Both runs start as forks of a process that has imported everything, so that a kill hits the run and not its start.
"""

import argparse
import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).parent.parent))

from plumbing import disk, remote

CLOCK = ("seconds", "puzzles_per_second", "tokens_per_second")  # columns that differ between any two runs


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


def resumes(folder):
    """How often this run went on from a checkpoint."""
    log = folder / "log.txt"
    return log.read_text().count("# resumed after step") if log.exists() else 0


def reached(folder):
    """The last step that metrics.csv has a whole row of."""
    try:
        lines = (folder / "metrics.csv").read_text().split("\n")[1:-1]
    except FileNotFoundError:
        return 0
    return int(lines[-1].split(",")[0]) if lines else 0


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="exp_x, or with its folder: pos_embedding/exp_x, ebm/train, ep_c512/train")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the steps")
    parser.add_argument("--runs", default="runs/kill", help="the folder of both runs")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--output", help="also write what came out to this .json file")
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:cut])
    file = PurePosixPath(options.experiment).with_suffix(".py")
    module = importlib.import_module(".".join(file.with_suffix("").parts))
    flags = [*argv[cut + 1 :], "--runs", options.runs]
    config = getattr(module, "parse", module.common.parse)(module.Config, flags)  # its own where it has one
    folders = [Path(options.runs) / remote.experiment_of(file) / name for name in ("whole", "killed")]
    _, status = os.waitpid(fork(module, [*flags, "--name", "whole"], options.quiet), 0)
    if status:
        raise SystemExit("the run that was left alone failed")
    steps = random.Random(options.seed).sample(range(config.save_every + 1, reached(folders[0])), options.kills)
    for number, step in enumerate([*sorted(steps), None]):
        child = fork(module, [*flags, "--name", "killed", "--resume"], options.quiet)
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if step is not None and resumes(folders[1]) == number and reached(folders[1]) >= step:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
        if step is None and ended[1]:
            raise SystemExit(f"the last resumed run failed with status {ended[1]}")
        if step is not None and not os.WIFSIGNALED(ended[1]):
            raise SystemExit(f"the run that was to be killed at step {step} ended by itself, with status {ended[1]}")
    resumed = resumes(folders[1])
    if resumed != options.kills:
        raise SystemExit(f"{options.kills} kills, but {resumed} runs resumed from a checkpoint")
    import torch  # only now: a parent with threads must not fork

    whole, killed = (disk.load_checkpoint(folder / "checkpoint.pt") for folder in folders)
    for name, value in whole["model"].items():
        assert torch.equal(value, killed["model"][name]), f"{name} differs after {options.kills} kills"
    rows = [
        [{name: row[name] for name in row if name not in CLOCK} for row in disk.read_rows(folder / "metrics.csv")]
        for folder in folders
    ]
    assert rows[0] == rows[1], "metrics differ"
    said = f"{options.kills} kills of {options.experiment}, each followed by a resume: "
    said += f"all weights the same bit for bit, {len(rows[0])} metrics rows too"
    print(said)
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python tests/kill.py", *argv])
        disk.write_json(
            options.output, {"said": said, "command": command, "hardware": disk.describe(torch.device("cpu"))}
        )
    return resumed


if __name__ == "__main__":
    main()
