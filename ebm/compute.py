"""How many puzzles each network solves for how much computing: ours, the log's, and the iterating ones of the root.

python -m ebm.compute runs/ours/full-seed0 runs/exp_iterate/equal-seed0 runs/exp_cosine_no_sam/equal-seed0 \\
    runs/ebm/equal-seed0 --output results/ebm/compute.json

All get the same fresh puzzles, at 1, 2, 4, ... steps. A step is an iteration, a step of descent (ours) or a step of
Langevin dynamics of all chains, of which the one of lowest energy counts (the log's model; its step 0 is z = 0).
FLOPs are those of the matrix products, as torch counts them; milliseconds are of this machine. `python -m ebm.report`
draws the picture from the .json file.
"""

import copy
import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode

import solve
from data import generate
from ebm import evaluate, langevin, proof
from ebm.train import load_model
from plumbing import disk

KINDS = {"71 clues": 71, "45 clues": 45, "minimal": "minimal"}  # mini runs of the log's model train on the first
SEED = proof.SEED + 2  # of the puzzles; no other seed of data/generate.py is as large but those of ebm.proof
AT_ONCE = 64  # puzzles


@dataclass
class Arguments:
    checkpoints: tyro.conf.Positional[tuple[str, ...]]  # a checkpoint.pt or a run's folder each
    puzzles: int = 200  # of each kind
    steps: int = 256  # at most
    chains: int = 8  # of Langevin dynamics
    langevin_steps: int = 64  # at most, of Langevin dynamics, 20 times as dear; the log took 50
    output: str = "compute.json"


class Iterating:
    """A network of the root or of ebm.ours: each iteration has an answer."""

    def __init__(self, path, console):
        saved = disk.load_checkpoint(path)
        device = torch.device("cpu")
        self.model = proof.load(path)[0] if saved["experiment"] == "ours" else solve.load(path, device, console)

    def flops(self, puzzle, counts):
        """For one of these puzzles, for each number of steps."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            if hasattr(self.model, "think_shard"):  # torch does not see what the kernels multiply, in float32 only
                model = copy.deepcopy(self.model).double()
                model.think_shard(model.start_shard(puzzle), 1)
            elif hasattr(self.model, "iterate_shard"):  # and this thread only
                self.model.iterate_shard(self.model.start_shard(puzzle))
            else:
                next(iter(self.model(puzzle, 1)))
        return [steps * counter.get_total_flops() / len(puzzle) for steps in counts]

    @torch.no_grad()
    def boards(self, puzzle, counts):
        """Yield (steps, boards [n, 81], the seconds they took)."""
        start = time.perf_counter()
        for step, logits in enumerate(self.model(puzzle, counts[-1]), 1):
            if step in counts:
                yield step, logits.argmax(-1) + 1, time.perf_counter() - start


class LowestChain:
    """The log's model: Langevin dynamics, and of its chains the one of lowest energy."""

    def __init__(self, path, chains):
        self.model, config = load_model(path)
        self.chains, self.kind = chains, langevin.kind_of(config.run)

    def flops(self, puzzle, counts):
        decode, step = evaluate.cost(self.model, puzzle, self.kind)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.model.context(puzzle[:1])
        once = counter.get_total_flops()
        return [once + (self.chains * (steps * step + decode) if steps else decode) for steps in counts]

    def boards(self, puzzle, counts):
        start = time.perf_counter()
        z = torch.zeros(len(puzzle), 1, self.model.config.latent)
        yield 0, langevin.read(self.model, puzzle, z)[:, 0].long(), time.perf_counter() - start
        for steps in counts:
            start = time.perf_counter()
            found = langevin.solve(self.model, puzzle, steps, self.chains, kind=self.kind)
            board = langevin.choose(found.boards.to(torch.uint8).numpy(), found.energy)["energy"]
            yield steps, torch.from_numpy(board).long(), time.perf_counter() - start


def measure(solver, puzzle, solution, counts, bar):
    """{steps: {"solved", "cells": shares with intervals, "flops" and "milliseconds" a puzzle}}"""
    right, cells, seconds = {}, {}, {}
    for at in track(range(0, len(puzzle), AT_ONCE), **bar):
        part, answer = puzzle[at : at + AT_ONCE], solution[at : at + AT_ONCE]
        for steps, board, took in solver.boards(part, counts):
            correct = (board == answer) | (part > 0)
            right.setdefault(steps, []).append(correct.all(1).numpy())
            cells.setdefault(steps, []).append((correct & (part == 0)).sum(1).numpy())
            seconds[steps] = seconds.get(steps, 0.0) + took
    ones, blanks = np.ones(len(puzzle)), (puzzle == 0).sum(1).numpy()
    return {
        str(steps): {
            "solved": evaluate.share(np.concatenate(right[steps]), ones),
            "cells": evaluate.share(np.concatenate(cells[steps]), blanks),
            "flops": flops,
            "milliseconds": 1000 * seconds[steps] / len(puzzle),
        }
        for steps, flops in zip(right, solver.flops(puzzle[:8], list(right)))
    }


def report(asked, command):
    for name in ("puzzles", "steps", "chains", "langevin_steps"):
        if getattr(asked, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(asked, name)}: expected 1 or more")
    if not asked.checkpoints:
        raise SystemExit("which networks? give the folders of runs, as in runs/ours/full-seed0")
    if problem := disk.wrong_json(asked.output):
        raise SystemExit(problem)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    paths = [disk.checkpoint_path(given) for given in asked.checkpoints]
    names = [disk.load_checkpoint(path).get("experiment") for path in paths]
    solvers = [
        LowestChain(path, asked.chains) if name == "ebm" else Iterating(path, console)
        for path, name in zip(paths, names)
    ]
    result = {"command": command, "settings": dataclasses.asdict(asked), "networks": []}
    result |= {"hardware": disk.describe(torch.device("cpu")), "commit": disk.commit()}
    sets = {kind: generate.cached(asked.puzzles, clues, SEED) for kind, clues in KINDS.items()}
    for path, name, solver in zip(paths, names, solvers):
        most = min(asked.steps, asked.langevin_steps) if name == "ebm" else asked.steps
        counts = [2**k for k in range(most.bit_length())]
        summary = disk.read_json(path.with_name("summary.json")) or {}
        row = {"experiment": name, "run": path.parent.name, "seconds": summary.get("seconds"),
               "trained_on": summary.get("hardware"), "parameters": summary.get("parameters"), "kinds": {}}  # fmt: skip
        for kind, puzzles in sets.items():
            boards = (torch.from_numpy(b.astype(np.int64)) for b in puzzles.rows(slice(asked.puzzles)))
            bar = {"console": Console(stderr=True), "transient": True, "disable": not sys.stderr.isatty()}
            bar |= {"description": f"{name}, {kind}"}
            row["kinds"][kind] = found = measure(solver, *boards, counts, bar)
            last = found[str(counts[-1])]
            console.print(
                f"{name}, {kind}: {evaluate.percent(last['solved'])} % solved after {counts[-1]} steps, "
                f"{last['flops'] / 1e6:.1f} MFLOP and {last['milliseconds']:.1f} ms a puzzle"
            )
        result["networks"].append(row)
        with disk.writing(Path(asked.output).parent, asked.output):  # after each: the next may take long
            disk.write_json(Path(asked.output), result)
    print(f"wrote {asked.output}")


def main(argv=None):
    return evaluate.start("compute", Arguments, report, __doc__, argv)


if __name__ == "__main__":
    solve.as_program(main)
