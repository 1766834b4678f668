"""How a checkpoint fails: when its failing puzzles were best, whether they still change, which cells stay wrong.

python analyze_failures.py runs/exp_cosine/mini-seed0                     its own test set
python analyze_failures.py runs/exp_cosine/mini-seed0 --iterations 64 --plot failures.png
python analyze_failures.py weights/suppose.pt --data my.csv --show        also the median failure of each bucket

A puzzle fails when a blank is wrong after the last iteration; it was best at the first of the iterations with most
blanks right.
"""

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro
from rich.console import Console
from rich.progress import track

import eval_extreme
import lineage
import solve
from data import sources, store
from plumbing.run import pick_device


@dataclass
class Arguments:
    weights: tyro.conf.Positional[str]  # a checkpoint.pt or a run's folder
    data: str = "own"  # the run's test set; or extreme, a .csv or .npy file, as for eval_extreme.py
    iterations: int = 0  # 0: as in training
    per_bucket: int = 500  # at most so many random puzzles of each bucket
    batch: int = 256  # puzzles that the network gets at once
    show: bool = False  # print the median failure of each bucket: its board, and the blanks that are wrong
    plot: str = ""  # draw what is printed to this .png, .svg or .pdf
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


@torch.no_grad()
def boards_of(model, puzzles, iterations, batch, device):
    """The full boards after each iteration, uint8 [iterations, puzzles, 81]."""
    found = np.empty((iterations, len(puzzles), 81), np.uint8)
    bar = {"console": Console(stderr=True), "transient": True, "disable": not sys.stderr.isatty()}
    for first in track(range(0, len(puzzles), batch), "testing", **bar):
        cells = puzzles[first : first + batch]
        for i, logits in enumerate(model(torch.from_numpy(cells).long().to(device), iterations)):
            digits = logits.argmax(-1).cpu().numpy() + 1
            found[i, first : first + batch] = np.where(cells, cells, digits)
    return found


def analyse(boards, puzzle, solution, bucket):
    """What happened to each puzzle, over the iterations: arrays [iterations, puzzles] and [puzzles]."""
    blank, wrong = puzzle == 0, boards != solution
    blanks = blank.sum(1)
    right = blanks - wrong.sum(2)
    changes = (boards[1:] != boards[:-1]).any(2)  # from each iteration to the next
    swings = changes[1:] & (boards[2:] == boards[:-2]).all(2)  # back to the board of two iterations ago
    best = right.argmax(0) + 1
    return SimpleNamespace(
        blanks=blanks, wrong=wrong[-1], right=right, changes=changes, swings=swings, best=best, bucket=bucket,
        failed=wrong[-1].any(1), once=(right == blanks).any(0), lost=right.max(0) - right[-1],
        violations=solve.violations(boards[-1]), clues=81 - blanks,
    )  # fmt: skip


def by_bucket(found, names):
    rows = []
    for i, name in enumerate(names):
        here, failed = found.bucket == i, (found.bucket == i) & found.failed
        mean = lambda values, which=failed: values[which].mean() if which.any() else np.nan  # noqa: E731
        rows.append((name, here.sum(), failed.sum(), mean(found.wrong.sum(1)), mean(found.violations),
                     mean(found.clues), mean(found.clues, here & ~found.failed), mean(found.best)))  # fmt: skip
    columns = ["rated", "puzzles", "failed", "wrong cells", "violations", "clues", "clues of solved", "best at"]
    return pd.DataFrame(rows, columns=columns)


def share(values):
    return f"{100 * np.mean(values):5.1f} %" if len(values) else "    -"


def tell(found, names):
    """The findings as lines of text."""
    failed = found.failed
    count = len(found.right)
    yield f"{len(failed):,} puzzles, {failed.sum():,} failed after {count} iterations; means of the failures:"
    yield by_bucket(found, names).to_string(index=False, float_format="{:.1f}".format, na_rep="-")
    wrong = found.wrong.sum(1)[failed]
    yield "\nof the failures:"
    for low, high in ((1, 5), (6, 10), (11, 20), (21, 81)):
        yield f"{share((wrong >= low) & (wrong <= high))}  {low}-{high} cells wrong"
    yield f"{share(found.violations[failed] == 0)}  obey all rules, so they are another solution"
    lost = found.lost[failed]
    yield f"{share(lost > 0)}  had more cells right at an earlier iteration, {mean_of(lost[lost > 0])} on average"
    yield f"{share(found.once[failed])}  were solved at an earlier iteration"
    if count > 1:
        yield f"{share(found.changes[-1][failed])}  still changed at the last iteration"
    if count > 2:
        yield f"{share(found.swings[-1][failed])}  went back there to the board of two iterations before"
    if count > 1:
        yield f"{share(found.changes[-1][~failed])}  of the solved ones still changed"
    cells = np.argsort(-found.wrong.sum(0), kind="stable")[:10]
    counts = (f"r{cell // 9 + 1}c{cell % 9 + 1} {found.wrong[:, cell].sum()}" for cell in cells)
    yield f"\ncells most often wrong: {', '.join(counts)}"
    yield "\nblanks right, %, after iteration"
    some = sorted({*range(1, min(count, 8) + 1), *(2**k for k in range(3, 20) if 2**k <= count), count})
    accuracy = 100 * found.right / np.maximum(1, found.blanks)
    rows = {"solved": accuracy[:, ~failed].mean(1) if (~failed).any() else np.full(count, np.nan),
            "failed": accuracy[:, failed].mean(1) if failed.any() else np.full(count, np.nan)}  # fmt: skip
    table = pd.DataFrame({n: [values[n - 1] for values in rows.values()] for n in some}, rows)
    yield table.to_string(float_format="{:.1f}".format, na_rep="-")


def mean_of(values):
    return f"{values.mean():.1f}" if len(values) else "-"


def median_failures(found, boards, puzzle, solution, names):
    """Of each bucket, the failure with the median number of wrong cells; a wrong digit is followed by the right one."""
    for i, name in enumerate(names):
        rows = np.flatnonzero((found.bucket == i) & found.failed)
        if len(rows):
            row = rows[np.argsort(found.wrong[rows].sum(1), kind="stable")[len(rows) // 2]]
            cells = zip(puzzle[row], boards[-1, row], solution[row])
            marks = [f"{d}   " if clue else f"{d}({s})" if d != s else f"{d}.  " for clue, d, s in cells]
            text = "\n".join(" ".join(marks[9 * r : 9 * r + 9]) for r in range(9))
            rest = f"{found.wrong[row].sum()} wrong, best at iteration {found.best[row]}"
            yield f"\nrated {name}, median failure, {rest}; 5 clue, 5. right, 5(3) wrong, 3 is right\n{text}"
            yield "".join(map(str, puzzle[row])).replace("0", ".")


def plot(found, names, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (progress, best), (change, cells) = figure.subplots(2, 2)
    iterations, failed = np.arange(1, len(found.right) + 1), found.failed
    accuracy = 100 * found.right / np.maximum(1, found.blanks)
    dot = "o" if len(iterations) < 4 else ""  # a single point draws no line
    marker = f"-{dot}"
    if (~failed).any():
        label = "solved, all ratings"
        progress.plot(iterations, accuracy[:, ~failed].mean(1), marker, color="tab:green", lw=2.5, label=label)
    for i, name in enumerate(names):
        here = failed & (found.bucket == i)
        if here.any():
            colour = (0.55 + 0.45 * i / len(names), 0.75 - 0.65 * i / len(names), 0.3)
            progress.plot(iterations, accuracy[:, here].mean(1), marker, color=colour, label=f"failed, rated {name}")
    progress.set(title="progress", xlabel="iteration", ylabel="blanks right, %")
    progress.legend(fontsize=8, frameon=False)
    edges = np.unique(np.linspace(0.5, len(iterations) + 0.5, min(len(iterations), 40) + 1))
    best.hist([found.best[failed & found.once], found.best[failed & ~found.once]], edges, stacked=True,
              color=("tab:orange", "tab:red"), label=("solved then, lost later", "never solved"))  # fmt: skip
    best.set(title="when failing puzzles were best", xlabel="iteration", ylabel="failing puzzles")
    best.legend(fontsize=8, frameon=False)
    best.set_ylim(0, 1.25 * max(1, best.get_ylim()[1]))  # room for the legend
    for which, colour, name in ((failed, "tab:red", "failed"), (~failed, "tab:green", "solved")):
        if which.any() and len(iterations) > 1:
            change.plot(iterations[1:], 100 * found.changes[:, which].mean(1), marker, color=colour, label=name)
        if which.any() and len(iterations) > 2:
            label = f"{name}, back to the board before last"
            change.plot(iterations[2:], 100 * found.swings[:, which].mean(1), f":{dot}", color=colour, label=label)
    change.set(title="boards that change at an iteration", xlabel="iteration", ylabel="puzzles, %", ylim=(0, None))
    if change.has_data():
        change.legend(fontsize=8, frameon=False)
    else:
        change.text(0.5, 0.5, "needs two iterations", ha="center", transform=change.transAxes)
    rate = 100 * found.wrong[failed].mean(0).reshape(9, 9) if failed.any() else np.zeros((9, 9))
    image = cells.imshow(rate, cmap="Reds", vmin=0)
    cells.set(title="how often a cell is wrong, failing puzzles", xticks=[], yticks=[])
    for line in (2.5, 5.5):
        cells.axhline(line, color="black", lw=0.8)
        cells.axvline(line, color="black", lw=0.8)
    figure.colorbar(image, ax=cells, label="%")
    for axis in (progress, best, change):
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=130)


def main(argv=None):
    description = __doc__.replace("\n", "\n ")  # tyro joins lines that are not indented
    asked = tyro.cli(Arguments, args=argv, description=description)
    if asked.batch < 1 or asked.per_bucket < 1 or asked.iterations < 0:
        raise SystemExit("--batch and --per-bucket: expected 1 or more; --iterations: 0 or more")
    picture = lineage.picture_path("--plot", asked.plot) if asked.plot else None
    device, path = pick_device(asked.device), solve.choose_weights(asked.weights, None)
    model = solve.load(path, device, Console(highlight=False, soft_wrap=True))
    config = eval_extreme.config_of(path)
    try:
        puzzles, edges, _ = eval_extreme.test_set(asked.data, config, per_bucket=asked.per_bucket)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    buckets = store.rows_by_bucket(puzzles, edges)
    puzzles = sources.draw(puzzles, buckets, [asked.per_bucket] * len(buckets))
    bucket = np.digitize(puzzles.rating, edges) - 1
    puzzle, solution = puzzles.rows(np.arange(len(puzzles)))
    if not len(puzzle):
        raise SystemExit(f"--data {asked.data}: no puzzle is rated within {edges}")
    boards = boards_of(model, puzzle, asked.iterations or config["iterations"], asked.batch, device)
    found, names = analyse(boards, puzzle, solution, bucket), list(eval_extreme.names(edges, puzzles.rating))
    for line in tell(found, names):
        print(line)
    if asked.show:
        for text in median_failures(found, boards, puzzle, solution, names):
            print(text)
    if picture:
        plot(found, names, picture)
        print(f"wrote {picture}")


if __name__ == "__main__":
    lineage.run_command(main)
