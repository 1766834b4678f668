"""The picture of a family of experiments: what each one changed in the figure of its parent, the log's and ours."""

from dataclasses import dataclass

from matplotlib.figure import Figure

import insights

NOISE = {"Kaggle, easiest only": 10.0}  # points between two runs of the same experiment in the log; the others: 1
COLOURS = {
    "sudoku-extreme, natural mix": "tab:cyan",
    "sudoku-extreme, five buckets": "tab:blue",
    "Kaggle, five buckets": "tab:orange",
    "Kaggle, easiest only": "tab:olive",
    "other puzzles": "tab:gray",
}


@dataclass
class Row:
    name: str  # with its branch of the tree
    test: str  # one of COLOURS
    said: str  # what the log says: a figure, or what became of the run
    log: float | None  # per cent solved in the log
    parent: float | None  # of its parent there, on the same test
    mini: list  # points above its parent's mini run with the same seed


def draw(rows, file, kind):
    """A row for each experiment: name, the log's figure with an arrow from its parent's, ours by seed."""
    figure = Figure(figsize=(12, 1.8 + 0.23 * len(rows)), layout="constrained")  # legible at the width of a page
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(5, 4))
    width = max(len(row.name) for row in rows) + 1
    left.set_yticks(range(len(rows)), [f"{row.name:<{width}}" for row in rows], family="monospace", fontsize=9)
    marks = {}
    for y, row in enumerate(rows):
        if row.log is not None:
            if row.parent is not None:
                step = row.log - row.parent
                colour = "0.6" if abs(step) <= NOISE.get(row.test, 1.0) else "tab:green" if step > 0 else "tab:red"
                arrow = {"arrowstyle": "->", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 3}
                left.annotate("", (row.log, y), (row.parent, y), arrowprops=arrow)
            marks[row.test] = left.plot(row.log, y, "o", color=COLOURS[row.test], ms=6, zorder=3)[0]
            side = -1 if row.parent is not None and row.parent > row.log else 1
            where = {"ha": "left" if side > 0 else "right", "va": "center", "fontsize": 8.5, "color": "0.3"}
            left.text(row.log + 2 * side, y, f"{row.log:.1f}", **where)
        else:
            left.text(0, y, row.said, va="center", fontsize=8.5, color="0.5", style="italic")
        if row.mini:
            mean = sum(row.mini) / len(row.mini)
            low, high = insights.interval(row.mini) if len(row.mini) > 1 else (-1, 1)
            colour = "tab:green" if low > 0 else "tab:red" if high < 0 else "0.6"
            right.barh(y, mean, height=0.6, color=colour, alpha=0.45)
            right.plot(row.mini, [y] * len(row.mini), ".", color="0.15", ms=5)
    left.set(xlim=(-6, 106), ylim=(len(rows) - 0.4, -0.6), axisbelow=True)
    left.set_xlabel(
        "the log: puzzles solved, %\narrow: from its parent's figure; grey: within noise (1 point; the easiest 10)"
    )
    right.set_xlabel("ours, --preset mini: points above its parent\na dot a seed; grey: the seeds cannot tell")
    right.axvline(0, color="0.3", lw=0.8)
    for axis in (left, right):
        axis.set_facecolor("none")
        axis.grid(axis="y", color="0.93")
        axis.tick_params(left=False)
        axis.spines[["top", "left", "right"]].set_visible(False)
    marks = {name: marks[name] for name in COLOURS if name in marks}
    figure.legend(marks.values(), marks.keys(), loc="outside upper right", ncols=3, fontsize=9, frameon=False,
                  title="the log's test set", title_fontsize=9)  # fmt: skip
    figure.savefig(file, dpi=110, format=kind)
