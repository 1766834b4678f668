"""Solves your Sudoku with a trained network, shows how its cells settled, and checks the board against the rules.

python solve.py 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79
python solve.py puzzles.txt            one puzzle a line, nine lines of nine, or a CSV with a column question or puzzle
cat puzzles.txt | python solve.py -    the same from standard input
python solve.py puzzles.txt --quiet    a line of 81 characters for each puzzle; all dots where it is not solved
python solve.py puzzles.txt --weights runs/exp_cosine/mini-seed0/checkpoint.pt
python solve.py 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79 --watch --plot 1.png

A cell is a digit; a blank is . or 0. The network guesses every blank again and again and is stopped at the first board
that obeys all rules. No answer is looked up: the verdict comes from rows, columns, boxes and clues.
Exit status: 0 all solved; 1 the network is wrong about a puzzle; 2 a puzzle, a file or a flag cannot be used.
"""

import contextlib
import csv
import dataclasses
import importlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tqdm import tqdm

import common
from plumbing import disk

ROOT = Path(__file__).resolve().parent
ROWS = np.arange(81).reshape(9, 9)
UNITS = np.concatenate([ROWS, ROWS.T, ROWS.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)])  # cells of the 27 units
UNIT_NAMES = [f"{kind} {i}" for kind in ("row", "column", "box") for i in range(1, 10)]
CELL_NAMES = [f"r{i // 9 + 1}c{i % 9 + 1}" for i in range(81)]
BATCH = 64  # puzzles that the network works on at once
IN_FULL = 3  # more puzzles than this get one line each, and only those that are not solved


@dataclass
class Arguments:
    # 81 characters, a file, or - for standard input; several at once
    puzzles: tyro.conf.Positional[tuple[str, ...]] = ()
    weights: str = ""  # a checkpoint.pt; empty: your newest runs/exp_speedrun, else the shipped weights/speedrun.pt
    iterations: int = 256  # the most that the network may take, however few it was trained with
    keep_going: bool = False  # go through all iterations and judge the last board, not the first legal one
    check: bool = False  # first prove that each puzzle has one solution; always done when a board is wrong
    watch: bool = False  # play the iterations in the terminal, cells coloured by confidence: red, yellow, green
    plot: str = ""  # write a picture of confidence over iterations to this .png, .svg or .pdf; for one puzzle
    quiet: bool = False  # print a line of 81 characters for each puzzle; all else goes to standard error
    device: Literal["cpu", "cuda", "mps"] = "cpu"  # exp_speedrun knows only the CPU; others may use more


@dataclass
class Puzzle:
    name: str  # where it stands
    cells: np.ndarray | None  # uint8 [81], 0 is a blank
    problem: str = ""  # why it is no proper puzzle
    iterations: int = 0  # that the network took
    boards: np.ndarray | None = None  # uint8 [iterations, 81], the clues and the network's digits; or only the last
    confidence: np.ndarray | None = None  # float32 [iterations, 81], probability of those digits
    right: int = -1  # blanks that agree with the only solution, where the exact solver was asked

    def solved(self):
        return not self.problem and self.boards is not None and not violations(self.boards[-1])

    def settled(self):
        """The iteration at which each cell took its last value."""
        changed = np.diff(self.boards, axis=0, prepend=0) != 0  # the first iteration changes every cell
        return len(changed) - changed[::-1].argmax(0)


def violations(boards):
    """How many digits are missing in a unit, over the 27 units of each full board [..., 81]; none: it is legal."""
    found = np.bitwise_or.reduce(1 << boards[..., UNITS].astype(np.int16), -1)
    return 27 * 9 - np.bitwise_count(found).sum(-1, dtype=int)


def conflicts(board):
    """(unit, digit, its cells) wherever a digit stands twice in a unit."""
    for name, unit in zip(UNIT_NAMES, UNITS):
        for digit in range(1, 10):
            cells = unit[board[unit] == digit]
            if len(cells) > 1:
                yield name, digit, cells


# ---------------------------------------------------------------- puzzles in


def read(argument):
    """The puzzles of one word of the command line."""
    if argument != "-" and not os.path.exists(argument):
        text = "".join(argument.split())
        wrong = f"no such file, and as a puzzle it has {len(text)} characters, expected 81"
        return [puzzle("your puzzle", text) if len(text) == 81 else Puzzle(argument, None, wrong)]
    source = "standard input" if argument == "-" else argument
    data = sys.stdin.buffer.read() if argument == "-" else Path(argument).read_bytes()
    found = list(split(data.decode("utf-8-sig", "replace").splitlines(), source))
    if not found:
        raise SystemExit(f"{source} holds no puzzle; one is 81 characters on a line, or nine lines of nine")
    return found


def split(lines, source):
    header = [column.strip().lower() for column in lines[0].split(",")] if lines else []
    column = next((header.index(name) for name in ("question", "puzzle") if name in header), None)
    if column is not None:
        for number, row in enumerate(csv.reader(lines[1:]), 2):
            if row:
                yield puzzle(f"{source}, line {number}", row[column].strip() if column < len(row) else "")
        return
    grid, start = [], 0
    for number, line in enumerate([*lines, ""], 1):
        cells = "".join(line.split()).replace("|", "")
        if (cells and set(cells) <= set("-+")) or cells.startswith("#"):
            continue
        if grid and (len(grid) == 9 or not 0 < len(cells) < 30):
            yield puzzle(f"{source}, line {start}", grid)
            grid = []
        if 0 < len(cells) < 30:  # too short for a puzzle, so it is a row of one
            grid, start = [*grid, cells], start if grid else number
        elif cells:
            yield puzzle(f"{source}, line {number}", cells)


def puzzle(name, text):
    """A puzzle from 81 characters or from a list of nine rows, or what is wrong with it."""
    for i, row in enumerate(text if isinstance(text, list) else (), 1):
        if len(row) != 9:
            return Puzzle(name, None, f"row {i} has {len(row)} characters, expected 9")
    text = "".join(text)
    for i, character in enumerate(text):
        if character not in ".0123456789":
            place = f"character {i + 1} (row {i // 9 + 1}, column {i % 9 + 1})"
            return Puzzle(name, None, f"{place} is {character!r}; expected a digit, or . or 0 for a blank")
    if len(text) != 81:
        return Puzzle(name, None, f"{len(text)} characters, expected 81: nine rows of nine")
    cells = np.array([int(c) for c in text.replace(".", "0")], np.uint8)
    twice = [f"{unit} has the clue {digit} in {names(where)}" for unit, digit, where in conflicts(cells)]
    return Puzzle(name, cells, "; ".join(twice))


def names(cells):
    return ", ".join(CELL_NAMES[i] for i in cells)


def prove(puzzles):
    """Ask the exact solver about these puzzles: an improper one is no fault of the network."""
    from data.solver import solve  # here, because compiling it for the first time takes seconds

    if puzzles:
        for p, solution, count in zip(puzzles, *solve(np.stack([p.cells for p in puzzles]), limit=2)[:2]):
            p.problem = "" if count == 1 else "it has no solution" if count == 0 else "it has more than one solution"
            if count == 1 and p.boards is not None:
                p.right = int(((p.boards[-1] == solution) & (p.cells == 0)).sum())


# ---------------------------------------------------------------- the network


def load(path, device, console):
    """The model of a checkpoint; its code is the experiment's file, beside this one."""
    path = path / "checkpoint.pt" if path.is_dir() else path
    saved = disk.load_checkpoint(path, device)
    name = str(saved.get("experiment")) if isinstance(saved, dict) else "None"
    if not name.isidentifier() or not (ROOT / f"{name}.py").is_file():
        raise SystemExit(f"{path} is no checkpoint of an experiment here: it names {name!r}, no file beside solve.py")
    module = importlib.import_module(name)
    try:
        fields = {field.name for field in dataclasses.fields(module.Config)}
        config = module.Config(**{k: tuples(v) for k, v in saved["config"].items() if k in fields})
        model = module.Model(config)
        model.load_state_dict(saved["model"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SystemExit(f"{path} does not fit {name}.py as it is now; train again. {reason}") from None
    unknown = sorted(set(saved["config"]) - fields)
    if unknown:
        console.print(f"note: {name}.py has no {', '.join(unknown)} any more; left out of the config", style="yellow")
    console.print(f"weights: {path} ({name}.py, {sum(p.numel() for p in model.parameters()):,} parameters)")
    return model.to(device).eval()


def tuples(value):
    """A checkpoint's config went through JSON, which turns tuples into lists."""
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value


def choose_weights(given):
    own = sorted(Path("runs/exp_speedrun").glob("*/checkpoint.pt"), key=lambda path: path.stat().st_mtime)
    path = Path(given) if given else own[-1] if own else ROOT / "weights/speedrun.pt"
    if not path.exists():
        advice = "give the path of a checkpoint.pt" if given else "train with python exp_speedrun.py, or give --weights"
        raise SystemExit(f"{path} does not exist; {advice}")
    return path


@torch.no_grad()
def iterate(model, puzzles, iterations, keep_going, history):
    """Fill in boards and confidence of these puzzles, each up to its first legal board."""
    device = next(model.parameters()).device
    cells = np.stack([p.cells for p in puzzles])
    boards, confidence, legal_at = [], [], np.zeros(len(cells), int)
    for i, logits in enumerate(model(torch.from_numpy(cells).long().to(device), iterations), 1):
        sure, digit = (t.cpu().numpy() for t in logits.float().softmax(-1).nan_to_num().max(-1))
        boards.append(np.where(cells, cells, digit + 1).astype(np.uint8))
        confidence.append(sure)
        legal_at = np.where((legal_at == 0) & (violations(boards[-1]) == 0), i, legal_at)
        if legal_at.all() and not keep_going:
            break
    for k, p in enumerate(puzzles):
        p.iterations = len(boards) if keep_going or not legal_at[k] else int(legal_at[k])
        kept = slice(0 if history else p.iterations - 1, p.iterations)  # thousands of histories would fill the memory
        p.boards, p.confidence = (np.stack([step[k] for step in steps[kept]]) for steps in (boards, confidence))


def solve(model, puzzles, arguments, history):
    """In batches; most puzzles need few iterations, so the others of a large batch start again on their own."""
    quiet = None if len(puzzles) > BATCH else True
    for start in tqdm(range(0, len(puzzles), BATCH), "solving", disable=quiet, leave=False):
        left = puzzles[start : start + BATCH]
        stages = (16, 64) if len(left) > 8 and not arguments.keep_going else ()
        for iterations in [*(n for n in stages if n < arguments.iterations), arguments.iterations]:
            if left:
                iterate(model, left, iterations, arguments.keep_going, history)
            left = [p for p in left if not p.solved()]
        prove(left)


# ---------------------------------------------------------------- results out


def draw(entries, styles):
    """The lines of a board."""
    cells, dash = [Text(e, s) for e, s in zip(entries, styles)], "-" * (3 * len(entries[0]) + 3)
    lines = [Text(" | ").join(Text(" ").join(cells[i] for i in three) for three in row.reshape(3, 3)) for row in ROWS]
    return [*lines[:3], rule := Text(f"{dash}+-{dash}+{dash}"), *lines[3:6], rule, *lines[6:]]


def show(p, console):
    """The board, when its cells settled, and how it came to be."""
    blank, settled = p.cells == 0, p.settled()
    clashing = {cell for _, _, cells in conflicts(p.boards[-1]) for cell in cells}
    styles = ["bold white on red" if i in clashing else "cyan" if b else "bold" for i, b in enumerate(blank)]
    left = draw([str(digit) for digit in p.boards[-1]], styles)
    right = draw([f"{n:>3}" if b else "  ." for n, b in zip(settled, blank)], ["cyan" if b else "dim" for b in blank])
    console.print(f"\n{'board':<25}iteration at which each blank took its last digit", style="dim")
    for lines in zip(left, right):
        console.print(Text("    ").join(lines))
    at = np.array([n for n in (2**k for k in range(30)) if n < len(p.boards)] + [len(p.boards)])
    settled_by, broken = (settled[blank][:, None] <= at).sum(0), violations(p.boards[at - 1])
    console.print("\niteration " + "".join(f"{n:>5}" for n in at))
    console.print("settled   " + "".join(f"{n:>5}" for n in settled_by) + f"  of {blank.sum()} blanks")
    console.print("violations" + "".join(f"{n:>5}" for n in broken) + "  digits missing in a row, column or box\n")


def verdict(p, most=0):
    """(what the rules say about this puzzle's board, its colour); at most so many conflicts are named."""
    if p.problem:
        return f"invalid: {p.problem}", "yellow"
    if p.solved():
        words = "iteration" if p.iterations == 1 else "iterations"
        return f"solved in {p.iterations} {words}: all rows, columns and boxes hold 1 to 9, all clues stand", "green"
    found = [f"{unit} has {digit} in {names(cells)}" for unit, digit, cells in conflicts(p.boards[-1])]
    lines = found[:most] + [f"{len(found) - most} more conflicts"] * (len(found) > most)
    right = f"{p.right} of {(p.cells == 0).sum()} blanks are right"
    text = f"wrong after {p.iterations} iterations, {right}:"
    return text + (" " + "; ".join(lines) if most == 1 else "".join(f"\n  {line}" for line in lines)), "red"


def watch(p, console):
    """Play the iterations; Ctrl-C goes on to the result."""
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, transient=True) as live:
        for i, (board, sure) in enumerate(zip(p.boards, p.confidence), 1):
            colours = [f"rgb({int(255 * min(1, 2 - 2 * s))},{int(255 * min(1, 2 * s))},0)" for s in sure]
            styles = ["bold" if clue else colour for clue, colour in zip(p.cells, colours)]
            line = Text(f"iteration {i} of {len(p.boards)}, {violations(board)} violations")
            live.update(Text("\n").join([*draw([str(digit) for digit in board], styles), line]), refresh=True)
            time.sleep(min(0.25, 10 / len(p.boards)))


def plot(p, path):
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    blank, settled, iterations = p.cells == 0, p.settled(), np.arange(1, len(p.boards) + 1)
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for cell in np.flatnonzero(blank):
        colour, last = colormaps["viridis"](0.9 * settled[cell] / p.iterations), [settled[cell] - 1]
        top.plot(iterations, p.confidence[:, cell], "-o", markevery=last, markersize=4, color=colour, linewidth=1)
    title = f"{verdict(p)[0].split(':')[0]}\na line is a blank; dot and colour: when it took its last digit"
    top.set(ylabel="probability of its digit", ylim=(0, 1.03), title=title)
    bottom.step(iterations, (settled[blank] > iterations[:, None]).sum(1), where="mid", label="blanks still to change")
    bottom.step(iterations, violations(p.boards), where="mid", label="violations of the rules")
    bottom.set(xlabel="iteration", xlim=(0.5, p.iterations + 0.5))
    bottom.xaxis.get_major_locator().set_params(integer=True)
    bottom.legend()
    path = path if path.suffix else path.with_suffix(".png")
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:  # an ending that matplotlib does not know
        raise SystemExit(f"--plot {path}: {error}") from None
    return path


def report(arguments, console):
    if not arguments.puzzles:
        raise SystemExit("give a puzzle of 81 characters, a file, or - for standard input; see --help")
    if arguments.iterations < 1:
        raise SystemExit(f"--iterations {arguments.iterations}: expected 1 or more")
    puzzles, start = [p for word in arguments.puzzles for p in read(word)], time.perf_counter()
    if arguments.plot and len(puzzles) > 1:
        raise SystemExit(f"--plot draws one puzzle, and here are {len(puzzles)}")
    if arguments.check:
        prove([p for p in puzzles if not p.problem])
    good = [p for p in puzzles if not p.problem]
    full = len(puzzles) <= IN_FULL and not arguments.quiet
    if good:
        model = load(choose_weights(arguments.weights), common.pick_device(arguments.device), console)
        solve(model, good, arguments, full or bool(arguments.plot))
    watching = arguments.watch and full and console.is_terminal
    if arguments.watch and not watching:
        console.print(f"--watch needs a terminal and at most {IN_FULL} puzzles; here is the ordinary result")
    for p in puzzles:
        if arguments.quiet:
            print("".join(map(str, p.boards[-1])) if p.solved() else "." * 81)
        if full and p.boards is not None:
            if watching:
                watch(p, console)
            show(p, console)
        if full or not p.solved():
            text, colour = verdict(p, most=9 if full else 1)
            console.print(f"{p.name}: {text}", style=colour)
    if arguments.plot and good:
        console.print(f"wrote {plot(good[0], Path(arguments.plot))}")
    solved, invalid = sum(p.solved() for p in puzzles), sum(bool(p.problem) for p in puzzles)
    if len(puzzles) > 1:
        wrong, seconds = len(puzzles) - solved - invalid, time.perf_counter() - start
        console.print(f"{len(puzzles)} puzzles: {solved} solved, {wrong} wrong, {invalid} invalid; {seconds:.1f} s")
    return 2 if invalid else int(solved < len(puzzles))


def main(argv=None):
    description = __doc__.replace("\n", "\n ")  # tyro keeps the break before an indented line
    arguments = tyro.cli(Arguments, args=argv, description=description, config=(tyro.conf.FlagCreatePairsOff,))
    console = Console(stderr=arguments.quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)
    try:
        return report(arguments, console)
    except (OSError, SystemExit) as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error), style="red")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
