"""Plots: the curves of a run, the seeds of a sweep, exact match over parameters."""

import math
import statistics

import pandas as pd

from plumbing import disk

BLUE, ORANGE, GREY, INK = "#2166ac", "#d6604d", "#b8b8b8", "#333333"
SCORED = 100_000  # pairs of the final score


def save(figure, path):
    disk.replace(path, lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight"))


def axes(width, height, title):
    """A figure without pyplot: no global state, and no display is needed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.add_subplot()
    axis.grid(alpha=0.25, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, loc="left", fontsize=11, color=INK)
    return figure, axis


def steps_axis(axis, rows):
    """Steps along x, with a dotted line where a stage of the curriculum begins."""
    words = rows["stage"] if "digits" not in rows else "up to " + rows["digits"].astype(str) + " digits"
    last, labelled = max(1, rows["step"].max()), -math.inf
    axis.set(xlim=(0, last), xlabel="step")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    for step, now, before in list(zip(rows["step"].shift(), words, words.shift()))[1:]:
        if now != before:
            axis.axvline(step, color="#777777", ls=":", lw=1.2, zorder=1)
            if step - labelled > 0.03 * last:  # else it would cover the label before
                labelled = step
                axis.annotate(now, (step, 0.5), xycoords=("data", "axes fraction"), xytext=(3, 0),
                              textcoords="offset points", va="center", rotation=90, fontsize=8,
                              color="#777777")  # fmt: skip


def percent_axis(axis):
    axis.set(ylim=(0, 101), ylabel="sums that are right, %")
    axis.axhline(99, color=ORANGE, lw=0.9, ls=(0, (5, 3)), zorder=1)


def run_plots(folder, rows):
    """The loss and the exact match of one run, beside its metrics."""
    rows = pd.DataFrame(rows)
    marker = "o" if len(rows) < 3 else None  # a line needs two points
    figure, axis = axes(8, 4.2, "Loss")
    for name, color, label in (("train_loss", BLUE, "training"), ("val_loss", ORANGE, "validation")):
        axis.plot(rows["step"], rows[name], color=color, lw=1.6, marker=marker, label=label)
    axis.set(yscale="log", ylabel="loss")
    axis.yaxis.set_major_formatter("{x:g}")
    steps_axis(axis, rows)
    axis.legend(frameon=False, fontsize=9, loc="upper right")
    save(figure, folder / "train_val_loss_per_step.png")

    exact = 100 * rows["val_exact"]
    figure, axis = axes(8, 4.2, f"Validation exact match, best {max(exact):.2f} %")
    axis.plot(rows["step"], exact, color=BLUE, lw=1.8, marker=marker, clip_on=False)
    percent_axis(axis)
    steps_axis(axis, rows)
    save(figure, folder / "val_accuracy_per_step.png")


def seeds_plot(path, name, members):
    """Validation exact match of all seeds; members {name: (summary, metrics)}."""
    first, _ = next(iter(members.values()))
    good = [m for m, (summary, _) in members.items() if summary["errors_in_100000"] <= SCORED // 100]
    head = f"{name}: {first['parameters']:,} parameters, {first['config']['train_steps']:,} steps"
    figure, axis = axes(8.4, 4.4, f"{head}\n{len(good)} of {len(members)} runs reach 99 %")
    for member, (_, rows) in members.items():
        style = dict(color=BLUE, lw=1.3, alpha=0.8) if member in good else dict(color=GREY, lw=0.9, alpha=0.6)
        axis.plot(rows["step"], 100 * rows["val_exact"], **style)
    percent_axis(axis)
    steps_axis(axis, max((rows for _, rows in members.values()), key=len))
    axis.plot([], [], color=BLUE, label="at 99 % in the end")
    axis.plot([], [], color=GREY, label="below")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    save(figure, path)


def nines(errors):
    """Height of a score in the plot, -log10 of the error rate: 1 for 90 %, 2 for 99 %; 5.6 for no error."""
    return 5.6 if errors == 0 else -math.log10(errors / SCORED)


def accuracy_plot(path, points):
    """Exact match by configuration; points {name: summaries}."""
    order = sorted(points, key=lambda name: (points[name][0]["parameters"], name))
    figure, axis = axes(max(7, 0.75 * len(order)), 5.2, "")
    for x, name in enumerate(order):
        heights = [nines(s["errors_in_100000"]) for s in points[name]]
        color = BLUE if max(heights) >= 2 else ORANGE
        axis.plot([x] * len(heights), heights, "o", color=color, ms=3.5, alpha=0.5, mew=0)
        axis.plot(x, max(heights), "o", color=color, ms=9, mec="white", mew=0.8)
        axis.plot(x, statistics.median(heights), "D", mfc="white", mec=color, ms=4.5, mew=1.3)
    axis.axhline(2, color=ORANGE, lw=1.1, ls=(0, (5, 3)), zorder=1)
    shares = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", f"100 %\n0 errors in {SCORED:,}"]
    axis.set_yticks([0, 1, 2, 3, 4, 5, nines(0)], shares)
    axis.set_xticks(range(len(order)), order, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axis.set(ylabel="sums that are right", ylim=(-0.15, 6))
    for style, text in (
        (dict(marker="o", color=BLUE, ms=9, mec="white"), "best seed"),
        (dict(marker="D", mfc="white", mec=BLUE, ms=4.5, mew=1.3), "median seed"),
        (dict(marker="o", color=BLUE, ms=3.5, alpha=0.5, mew=0), "each seed"),
        (dict(marker="o", color=ORANGE, ms=9, mec="white"), "no seed at 99 %"),
    ):
        axis.plot([], [], ls="", label=text, **style)
    figure.legend(frameon=False, fontsize=9, ncols=4, loc="outside upper center")
    save(figure, path)
