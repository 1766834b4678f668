"""Solves your Sudoku by descent on a learned energy, and shows the energy falling while the board settles.

python -m ebm.solve 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79
python -m ebm.solve puzzles.txt            one puzzle a line, nine lines of nine, or a CSV with a column puzzle
cat puzzles.txt | python -m ebm.solve -    the same from standard input
python -m ebm.solve puzzles.txt --quiet    a line of 81 characters for each puzzle; dots for one that is not solved
python -m ebm.solve puzzle.txt --watch --plot 1.png
python -m ebm.solve puzzles.txt --weights runs/ebm/run4-mini-seed0 --chains 4 --steps 100

A cell is a digit; a blank is . or 0. With weights of ebm.ours an iteration is one step of descent, and it stops at the
first board that obeys all rules. With weights of ebm.train, the log's model, it is a step of Langevin dynamics, and the
chain of lowest energy is shown after all its steps. Nothing here sees a solution before the board stands, and the
verdict comes from the rules alone: rows, columns, boxes and clues.
Exit status: 0 all solved; 1 the network is wrong about a puzzle; 2 a puzzle, a file or a flag cannot be used.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):  # run by its path: this file must not hide the root's solve.py
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

import solve
from ebm import langevin, ours
from ebm.train import load_model
from plumbing import disk

FILES = {"ours": "ebm/ours.py", "ebm": "ebm/train.py"}  # the code of what a checkpoint calls its experiment
FLAGS = {"ours": ("iterations",), "ebm": ("steps", "chains")}  # what counts with its weights
ROUNDING = 1e-6  # a smaller change, as a share of E, may come from rounding to float32


@dataclass
class Arguments(solve.Arguments):
    weights: str = ""  # a checkpoint.pt or a run's folder, of ebm.ours or of ebm.train; empty: the shipped of ebm.ours
    iterations: int = 256  # at most so many steps of descent; only with weights of ebm.ours
    steps: int = 50  # of Langevin dynamics; only with weights of ebm.train
    chains: int = 8  # of Langevin dynamics, each from another random z; only with weights of ebm.train
    plot: str = ""  # write a picture of energy and confidence over iterations to this .png, .svg or .pdf; one puzzle
    device: Literal["cpu", "cuda", "mps"] = "cpu"  # ebm.ours runs on the CPU only


class Descent(torch.nn.Module):
    """A model of ebm.ours whose forward notes energies: first the start's, then those after each step."""

    def __init__(self, model, path):
        super().__init__()
        self.model, self.path, self.descent = model, path, model.patience

    def forward(self, puzzle, iterations):
        shown = len(puzzle) <= solve.FULL_REPORTS  # an energy costs as much as a step
        self.energies_noted = []
        self.note(0, self.model.start(puzzle), shown)
        for step, (logits, state) in enumerate(self.model.answers(puzzle, iterations), 1):
            finite(logits, step, self.path)
            self.note(step, state, shown)
            yield logits

    def note(self, step, state, shown):
        """The energy of the descent under way; an earlier one may have ended lower."""
        if shown:
            self.energies_noted.append(finite(self.model.energies(state), step, self.path))


class Langevin(torch.nn.Module):
    """The same for a model of ebm.train: of each puzzle only the chain of lowest energy, chosen as in the log."""

    def __init__(self, model, path, kind, chains):
        super().__init__()
        self.model, self.path, self.kind, self.chains, self.descent = model, path, kind, chains, 0

    def forward(self, puzzle, iterations):
        parts = [self.best_chain(part, iterations) for part in puzzle.split(8)]  # all chains are kept until one is best
        probabilities, energies = (torch.cat(found, 1) for found in zip(*parts))
        self.energies_noted = [finite(energy, step, self.path) for step, energy in enumerate(energies)]
        yield from probabilities[1:].log()

    def best_chain(self, puzzle, steps):
        """(probabilities, energies) [1 + steps, n, ...]. E is that of the last step all along: the weight of the rules
        grows on the way, so an energy that grew would say nothing."""
        found = langevin.solve(self.model, puzzle, steps, self.chains, kind=self.kind, capture=True)
        best = torch.where(found.energy.isfinite(), found.energy, torch.inf).argmin(1)
        path, every = found.trajectory, torch.arange(len(puzzle))
        z = path.z[:, every, best].transpose(0, 1)
        total = langevin.measure(self.model, puzzle, z, tau=0.0, kind=self.kind)["total"]
        return path.probabilities[:, every, best], total.T


def finite(values, step, path):
    if not values.isfinite().all():
        raise SystemExit(f"{path}: the energy is not finite after step {step}; give other --weights, or train again")
    return values.detach().numpy()


def model_for(arguments, device, console):
    """The model of --weights, or of the shipped weights."""
    path = disk.checkpoint_path(arguments.weights or solve.ROOT / "weights/ebm.pt")
    saved = disk.load_checkpoint(path)
    name = re.split("[./]", str(saved.get("experiment")))[-1]
    if name not in FILES:
        expected = f"expected a checkpoint of {' or '.join(FILES.values())}"
        raise SystemExit(f"{path} is of {saved.get('experiment')}, {expected}; python solve.py takes the others")
    for flag in [flag for flags in FLAGS.values() for flag in flags]:
        value = getattr(arguments, flag)
        if flag not in FLAGS[name] and value != getattr(Arguments, flag):
            counts = " and ".join(f"--{flag}" for flag in FLAGS[name])
            raise SystemExit(f"--{flag} {value}: {path} is of {FILES[name]}, which takes {counts} instead")
        if value < 1:
            raise SystemExit(f"--{flag} {value}: expected 1 or more")
    if name == "ours":
        model = solve.build(saved, path, FILES[name], lambda: ours, device, console)
        console.print("E is the learned energy; an iteration is one step of descent on it")
        return Descent(model, path)
    model, config = load_model(path)
    if not all(p.isfinite().all() for p in model.parameters()):
        raise SystemExit(f"{path} cannot be used: its weights are not finite; give other --weights, or train again")
    parameters = sum(p.numel() for p in model.parameters())
    console.print(f"weights: {path} ({FILES[name]}, run {config.run}, {parameters:,} parameters)")
    kind = langevin.kind_of(config.run)
    first = {"norm": "|z_pred|^2", "consistency": "|z_pred - target|^2"}[kind]
    chains, steps = arguments.chains, arguments.steps
    console.print(f"Langevin: {chains} chains from random z; shown: the one of lowest energy before the last step")
    console.print(f"E is that chain's {first} + {langevin.penalty_weight(0.0):g} penalty; an iteration is one step")
    arguments.iterations, arguments.keep_going = steps, True  # the log's chains go through all steps
    return Langevin(model.to(device), path, kind, chains)


def changes(p):
    """(the change of E in each step, none where another descent began; what of it may be rounding)"""
    change = np.diff(p.energy)
    if p.descent:
        change[p.descent :: p.descent] = np.nan
    return change, ROUNDING * np.abs(p.energy).max()


def fall(p):
    """How steadily the energy fell."""
    change, least = changes(p)
    begun = 1 + np.isnan(change).sum()
    change = change[~np.isnan(change)]
    fell, rose = (change < -least).sum(), (change > least).sum()
    text = f"E fell in {fell} of {len(change)} steps"
    text += f" of {begun} descents" if begun > 1 else ""
    text += f", rose in {rose} (by {change.max():.3g} at most)" if rose else ""
    text += f", stayed within rounding in {len(change) - fell - rose}" if fell + rose < len(change) else ""
    return f"{text}: from {p.energy[0]:.3f} to {p.energy[-1]:.3f}"


def show(p, console):
    """Print the board, when each cell settled, and the energy over the iterations."""
    solve.show_board(p, console)
    blanks = (p.cells == 0).sum()
    console.print("\niteration        energy E   blanks settled   violations")
    console.print(f"{0:>9}{p.energy[0]:>16.3f}")
    for at, settled, broken in zip(*solve.progress(p)):
        share = f"{100 * settled / blanks:.0f} %" if blanks else "-"
        console.print(f"{at:>9}{p.energy[at]:>16.3f}{share:>17}{broken:>13}")
    console.print("violations: digits missing in a row, column or box\n")
    console.print(fall(p))


def plot(p, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    top.plot(p.energy, "-o", color="black", linewidth=1, markersize=2)
    change, least = changes(p)
    rises = 1 + np.flatnonzero(change > least)
    top.plot(rises, p.energy[rises], "o", color="red", markersize=3, label="E rose")
    top.set(ylabel="energy E", title=f"{solve.verdict(p)[0].split(':')[0]}\n{fall(p).split(':')[0]}")
    if len(rises):
        top.legend()
    solve.draw_confidence(p, bottom)
    bottom.set(xlabel="iteration", title="a line is a blank; dot and colour: when it took its last digit")
    bottom.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)  # most happens in the first few iterations
    bottom.set_xticks(ticks := [0, *(2**k for k in range(p.iterations.bit_length()))], ticks)
    bottom.set(xlim=(-0.05, 1.05 * p.iterations))
    figure.savefig(path, dpi=150)


def main(argv=None):
    return solve.main(argv, sys.modules[__name__])


if __name__ == "__main__":
    solve.as_program(main)
