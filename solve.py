"""Solves your Sudoku with a trained network, shows how its cells settled, and checks the board against the rules.

python solve.py 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79
python solve.py puzzles.txt            one puzzle a line, nine lines of nine, or a CSV with a column question or puzzle
cat puzzles.txt | python solve.py -    the same from standard input
python solve.py puzzles.txt --quiet    a line of 81 characters for each puzzle; dots for one that is not solved
python solve.py puzzles.txt --guess    the network says which digit to suppose; what was wrong is taken back
python solve.py puzzles.txt --weights runs/exp_cosine/mini-seed0/checkpoint.pt
python solve.py 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79 --watch --plot 1.png

A cell is a digit; a blank is . or 0. At each iteration the network predicts every blank; it stops at the first board
that obeys all rules. The verdict comes from the rules alone: rows, columns, boxes and clues. With --guess every
puzzle that has a solution is solved: the rules say when to take a supposed digit back (see guess.py).
Exit status: 0 all solved; 1 the network is wrong about a puzzle; 2 a puzzle, a file or a flag cannot be used.
"""

import contextlib
import csv
import os
import signal
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.live import Live
from rich.progress import track
from rich.text import Text

import lineage
from data.rows import UNITS, missing
from plumbing import disk
from plumbing.run import pick_device

ROOT = Path(__file__).resolve().parent
ROWS = np.arange(81).reshape(9, 9)
UNIT_NAMES = [f"{kind} {i}" for kind in ("row", "column", "box") for i in range(1, 10)]
BATCH = 64  # puzzles that the network gets at once
FULL_REPORTS = 3  # up to this many puzzles are shown in full; of more, each unsolved one gets a line


@dataclass
class Arguments:
    puzzles: tyro.conf.Positional[tuple[str, ...]] = ()  # 81 characters, a file, or - for standard input; or several
    weights: str = ""  # a checkpoint.pt or a run's folder; empty: your newest full exp_speedrun, else shipped ones
    iterations: int = 1024  # at most this many; may be more than in training
    guess: bool = False  # search: suppose digits as the network says, until the puzzle is solved
    keep_going: bool = False  # go through all iterations and judge the last board, not the first legal one
    check: bool = False  # first prove that each puzzle has one solution; always done when a board is wrong
    watch: bool = False  # play the iterations in the terminal, cells coloured by confidence: red, yellow, green
    plot: str = ""  # write a picture of confidence over iterations to this .png, .svg or .pdf; for one puzzle
    quiet: bool = False  # print a line of 81 characters for each puzzle; all else goes to standard error
    device: Literal["cpu", "cuda", "mps"] = "cpu"  # enough for the default network, and the only one for --guess


@dataclass
class Puzzle:
    name: str  # its place in the input
    cells: np.ndarray | None  # uint8 [81], 0 is a blank
    problem: str = ""  # why it is not a valid puzzle
    iterations: int = 0  # taken by the network
    boards: np.ndarray | None = None  # uint8 [iterations, 81], the clues and the network's digits; or only the last
    confidence: np.ndarray | None = None  # float32 [iterations, 81], probability of those digits
    right: int = -1  # blanks equal to the solution; -1 where the exact solver did not run
    guesses: int = -1  # digits supposed; -1 without --guess
    energy: np.ndarray | None = None  # float32 [1 + iterations], the start first; only a model of ebm/solve.py has one
    descent: int = 0  # iterations after which another descent of it begins

    def solved(self):
        return not self.problem and self.boards is not None and not violations(self.boards[-1])

    def settled(self):
        """The iteration at which each cell took its last value."""
        changed = np.diff(self.boards, axis=0, prepend=0) != 0  # the first iteration changes every cell
        return len(changed) - changed[::-1].argmax(0)


def violations(boards):
    """Digits missing, summed over the 27 units of each full board [..., 81]; 0 means that it obeys all rules."""
    return missing(boards).sum(-1)


def conflicts(board):
    """Yield (the message, the cells) for each digit that a row, column or box has more than once."""
    for name, unit in zip(UNIT_NAMES, UNITS):
        for digit in range(1, 10):
            cells = unit[board[unit] == digit]
            if len(cells) > 1:
                yield f"{name} has {digit} in {', '.join(f'r{i // 9 + 1}c{i % 9 + 1}' for i in cells)}", cells


def read(argument):
    """The puzzles of one argument of the command line."""
    if argument != "-" and not os.path.exists(argument):
        text = "".join(argument.split())
        wrong = f"no such file, and as a puzzle it has {len(text)} characters, expected 81"
        return [puzzle("your puzzle", text) if len(text) == 81 else Puzzle(argument, None, wrong)]
    source = "standard input" if argument == "-" else argument
    try:
        data = sys.stdin.buffer.read() if argument == "-" else Path(argument).read_bytes()
        found = list(split(data.decode("utf-8-sig").splitlines(), source))
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{source} cannot be read as UTF-8 text ({error}); give a text file of puzzles") from None
    if not found:
        raise SystemExit(f"{source} holds no puzzle; one is 81 characters on a line, or nine lines of nine")
    return found


def split(lines, source):
    header = [column.strip().lower() for column in lines[0].split(",")] if lines else []
    column = next((header.index(name) for name in ("question", "puzzle") if name in header), None)
    if column is not None:
        csv.field_size_limit(2**31 - 1)  # puzzle() says which field is too long
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
    """A puzzle from 81 characters or from a list of nine rows; `problem` says what is wrong with it."""
    for i, row in enumerate(text if isinstance(text, list) else (), 1):
        if len(row) != 9:
            return Puzzle(name, None, f"row {i} has {len(row)} characters, expected 9")
    text = "".join(text)
    if len(text) != 81:
        return Puzzle(name, None, f"{len(text)} characters, expected 81: nine rows of nine")
    for i, character in enumerate(text):
        if character not in ".0123456789":
            place = f"character {i + 1} (row {i // 9 + 1}, column {i % 9 + 1})"
            return Puzzle(name, None, f"{place} is {character!r}; expected a digit, or . or 0 for a blank")
    cells = np.array([int(c) for c in text.replace(".", "0")], np.uint8)
    return Puzzle(name, cells, "; ".join(message for message, _ in conflicts(cells)))


def prove(puzzles):
    """Run the exact solver: a puzzle without exactly one solution is invalid, and no error of the network."""
    from data.solver import solve  # imported only here, because its first compilation takes seconds

    if puzzles:
        for p, solution, count in zip(puzzles, *solve(np.stack([p.cells for p in puzzles]), limit=2)[:2]):
            p.problem = "" if count == 1 else "it has no solution" if count == 0 else "it has more than one solution"
            if count == 1 and p.boards is not None:
                p.right = int(((p.boards[-1] == solution) & (p.cells == 0)).sum())


def choose_weights(given, console, guess=False):
    """The checkpoint of --weights, else of the newest finished full run of exp_speedrun here, else the shipped one.
    A search has a shipped one of its own."""
    if given:
        return disk.checkpoint_path(given)
    if guess:
        return ROOT / "weights/guess.pt"
    for path in sorted(Path("runs/exp_speedrun").glob("*/checkpoint.pt"), key=os.path.getmtime, reverse=True):
        saved = {"config": {}} | disk.load_checkpoint(path, "cpu")
        if saved["config"].get("preset") == "full" and saved.get("step") == saved["config"].get("steps"):
            return path
        console.print(f"note: not a finished run of the full preset, so used only with --weights: {path}")
    return ROOT / "weights/suppose.pt"


def load(path, device, console):
    """The model of a checkpoint; its code is the file of the experiment."""
    saved = disk.load_checkpoint(path, "cpu")
    name = str(saved.get("experiment"))
    return build(saved, path, f"{name}.py", lambda: lineage.module(name), device, console)


def build(saved, path, file, find, device, console):
    """The model of what a checkpoint holds. Its code is the module that `find` gives, in the named file."""
    try:
        module = find()
        known = {field.name for field in fields(module.Config)}
        ignored = sorted(set(saved["config"]) - known)
        model = module.Model(module.Config(**{k: v for k, v in saved["config"].items() if k in known}))
        model.load_state_dict(saved["model"])
        if not all(p.isfinite().all() for p in model.parameters()):
            raise ValueError("its weights are not finite")
    except (AttributeError, ImportError, KeyError, RuntimeError, SystemExit, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SystemExit(f"{path} cannot be used: {reason}; give other --weights, or train again") from None
    devices = get_args(get_type_hints(module.Config).get("device"))
    if devices and device.type not in devices:
        raise SystemExit(f"--device {device.type}: {file} runs on {' or '.join(devices)} only")
    note = f"; ignored, as {file} has no such field: {', '.join(ignored)}" if ignored else ""
    console.print(f"weights: {path} ({file}, {sum(p.numel() for p in model.parameters()):,} parameters){note}")
    return model.to(device).eval()


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
        kept = slice(0 if history else p.iterations - 1, p.iterations)  # the history of thousands would fill the memory
        p.boards, p.confidence = (np.stack([step[k] for step in steps[kept]]) for steps in (boards, confidence))
        if getattr(model, "energies_noted", None):
            p.energy = np.stack([energy[k] for energy in model.energies_noted[: p.iterations + 1]])
            p.descent = model.descent


def search(model, puzzles):
    """Solve all of these puzzles, with suppositions that the rules can refute."""
    import guess  # imported only here, because its first compilation takes seconds

    cells = np.stack([p.cells for p in puzzles])
    for p, found in zip(puzzles, guess.solve(model, cells, guess.workers_of(model))):
        p.iterations, p.guesses = found.iterations, found.guesses
        if found.impossible:
            p.problem = "it has no solution"
        else:
            p.boards, p.confidence = found.board[None], np.ones((1, 81), np.float32)


def solve(model, puzzles, arguments, history):
    """Solve in batches. Most puzzles need few iterations; the rest of a batch starts again with a larger limit."""
    bar = dict(console=Console(stderr=True), transient=True, disable=len(puzzles) <= BATCH or not sys.stderr.isatty())
    for start in track(range(0, len(puzzles), BATCH), "solving", **bar):
        left = puzzles[start : start + BATCH]
        if arguments.guess:
            search(model, left)
            continue
        drops = hasattr(model, "think")  # a network on candidates goes on with the unsolved ones by itself
        stages = (16, 64) if len(left) > 8 and not arguments.keep_going and not drops else ()
        for iterations in [*(n for n in stages if n < arguments.iterations), arguments.iterations]:
            if left:
                iterate(model, left, iterations, arguments.keep_going, history)
            left = [p for p in left if not p.solved()]
        prove(left)


def draw(entries, styles):
    """The lines of a board."""
    cells, dash = [Text(e, s) for e, s in zip(entries, styles)], "-" * (3 * len(entries[0]) + 3)
    lines = [Text(" | ").join(Text(" ").join(cells[i] for i in three) for three in row.reshape(3, 3)) for row in ROWS]
    return [*lines[:3], rule := Text(f"{dash}+-{dash}+{dash}"), *lines[3:6], rule, *lines[6:]]


def show_board(p, console):
    """Print the board and the iteration at which each cell settled."""
    blank, settled = p.cells == 0, p.settled()
    clashing = {cell for _, cells in conflicts(p.boards[-1]) for cell in cells}
    styles = ["bold white on red" if i in clashing else "cyan" if b else "bold" for i, b in enumerate(blank)]
    left = draw([str(digit) for digit in p.boards[-1]], styles)
    right = draw([f"{n:>3}" if b else "  ." for n, b in zip(settled, blank)], ["cyan" if b else "dim" for b in blank])
    console.print(f"\n{'board':<25}iteration at which each blank took its last digit", style="dim")
    for lines in zip(left, right):
        console.print(Text("    ").join(lines))


def progress(p):
    """Iterations 1, 2, 4, 8, ... and the last; how many blanks have settled by each, and its board's violations."""
    blank = p.cells == 0
    at = np.array([n for n in (2**k for k in range(30)) if n < len(p.boards)] + [len(p.boards)])
    return at, (p.settled()[blank][:, None] <= at).sum(0), violations(p.boards[at - 1])


def show(p, console):
    """Print the board and the progress over the iterations."""
    if p.guesses >= 0:
        console.print()
        blank = p.cells == 0
        for line in draw([str(digit) for digit in p.boards[-1]], ["cyan" if b else "bold" for b in blank]):
            console.print(line)
        return
    show_board(p, console)
    at, settled_by, broken = progress(p)
    console.print("\niteration " + "".join(f"{n:>5}" for n in at))
    console.print("settled   " + "".join(f"{n:>5}" for n in settled_by) + f"  of {(p.cells == 0).sum()} blanks")
    console.print("violations" + "".join(f"{n:>5}" for n in broken) + "  digits missing in a row, column or box\n")


def verdict(p, most=0):
    """(what the rules say about this puzzle's board, the colour of the text), with at most `most` conflicts."""
    if p.problem:
        return f"invalid: {p.problem}", "yellow"
    if p.solved():
        count = f"{p.iterations} iteration{'s' * (p.iterations != 1)}"
        if p.guesses >= 0:
            count += f" with {p.guesses} guess{'es' * (p.guesses != 1)}"
        return f"solved in {count}: all rows, columns and boxes hold 1 to 9, all clues stand", "green"
    found = [message for message, _ in conflicts(p.boards[-1])]
    lines = found[:most] + [f"{len(found) - most} more conflicts"] * (len(found) > most)
    text = f"wrong after {p.iterations} iterations, {p.right} of {(p.cells == 0).sum()} blanks are right:"
    return text + (" " + "; ".join(lines) if most == 1 else "".join(f"\n  {line}" for line in lines)), "red"


def watch(p, console):
    """Show one iteration after the other; Ctrl-C skips to the result."""
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, transient=True) as live:
        for i, (board, sure) in enumerate(zip(p.boards, p.confidence), 1):
            colours = [f"rgb({int(255 * min(1, 2 - 2 * s))},{int(255 * min(1, 2 * s))},0)" for s in sure]
            styles = ["bold" if clue else colour for clue, colour in zip(p.cells, colours)]
            energy = "" if p.energy is None else f", E = {p.energy[i]:.3f}"
            line = Text(f"iteration {i} of {len(p.boards)}, {violations(board)} violations{energy}")
            live.update(Text("\n").join([*draw([str(digit) for digit in board], styles), line]), refresh=True)
            time.sleep(min(0.25, 10 / len(p.boards)))


def draw_confidence(p, axes):
    from matplotlib import colormaps

    settled, iterations = p.settled(), np.arange(1, len(p.boards) + 1)
    for cell in np.flatnonzero(p.cells == 0):
        colour, last = colormaps["viridis"](0.9 * settled[cell] / p.iterations), [settled[cell] - 1]
        axes.plot(iterations, p.confidence[:, cell], "-o", markevery=last, markersize=4, color=colour, linewidth=1)
    axes.set(ylabel="probability of its digit", ylim=(0, 1.03))


def plot(p, path):
    from matplotlib.figure import Figure

    blank, settled, iterations = p.cells == 0, p.settled(), np.arange(1, len(p.boards) + 1)
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    draw_confidence(p, top)
    top.set(title=f"{verdict(p)[0].split(':')[0]}\na line is a blank; dot and colour: when it took its last digit")
    bottom.step(iterations, (settled[blank] > iterations[:, None]).sum(1), where="mid", label="blanks still to change")
    bottom.step(iterations, violations(p.boards), where="mid", label="violations of the rules")
    bottom.set(xlabel="iteration", xlim=(0.5, p.iterations + 0.5))
    bottom.xaxis.get_major_locator().set_params(integer=True)
    bottom.legend()
    figure.savefig(path, dpi=150)


def model_for(arguments, device, console):
    return load(choose_weights(arguments.weights, console, arguments.guess), device, console)


def report(arguments, console, tool):
    """`tool` is the module with model_for, show and plot: this one or ebm/solve.py."""
    if not arguments.puzzles:
        raise SystemExit("give a puzzle of 81 characters, a file, or - for standard input; see --help")
    if arguments.iterations < 1:
        raise SystemExit(f"--iterations {arguments.iterations}: expected 1 or more")
    device = pick_device(arguments.device)
    picture = lineage.picture_path("--plot", arguments.plot) if arguments.plot else None
    puzzles, start = [p for word in arguments.puzzles for p in read(word)], time.perf_counter()
    if picture and len(puzzles) > 1:
        raise SystemExit(f"--plot draws one puzzle, and here are {len(puzzles)}")
    if arguments.guess and (arguments.watch or arguments.keep_going or picture):
        raise SystemExit("--guess keeps no history of iterations: leave out --watch, --plot and --keep-going")
    if arguments.check:
        prove([p for p in puzzles if not p.problem])
    good = [p for p in puzzles if not p.problem]
    full = len(puzzles) <= FULL_REPORTS and not arguments.quiet
    if good:
        model = tool.model_for(arguments, device, console)
        solve(model, good, arguments, full or bool(picture))
    watching = arguments.watch and full and console.is_terminal
    if arguments.watch and not watching:
        console.print(f"--watch needs a terminal and at most {FULL_REPORTS} puzzles; here is the ordinary result")
    for p in puzzles:
        if arguments.quiet:
            print("".join(map(str, p.boards[-1])) if p.solved() else "." * 81)
        if full and p.boards is not None:
            if watching:
                watch(p, console)
            tool.show(p, console)
        if full or not p.solved():
            text, colour = verdict(p, most=9 if full else 1)
            console.print(f"{p.name}: {text}", style=colour)
    if picture and good:
        tool.plot(good[0], picture)
        console.print(f"wrote {picture}")
    solved, invalid = sum(p.solved() for p in puzzles), sum(bool(p.problem) for p in puzzles)
    if len(puzzles) > 1:
        counts = f"{solved} solved, {len(puzzles) - solved - invalid} wrong, {invalid} invalid"
        console.print(f"{len(puzzles)} puzzles: {counts}; {time.perf_counter() - start:.1f} s")
    return 2 if invalid else int(solved < len(puzzles))


def main(argv=None, tool=sys.modules[__name__]):
    description = tool.__doc__.replace("\n", "\n ")  # tyro joins lines that are not indented
    arguments = tyro.cli(tool.Arguments, args=argv, description=description, config=(tyro.conf.FlagCreatePairsOff,))
    console = Console(stderr=arguments.quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)
    try:
        return report(arguments, console, tool)
    except (OSError, SystemExit) as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error), style="red")
        return 2
    except KeyboardInterrupt:
        return 130


def as_program(main):
    """Exit with the status that main gives; `... | head` ends it without a message."""
    with contextlib.suppress(AttributeError):  # Windows has no SIGPIPE
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())


if __name__ == "__main__":
    as_program(main)
