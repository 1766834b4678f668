"""Plots: the curves of a run, the seeds of a sweep, exact match over parameters."""

import itertools
import math
import re
import statistics
from pathlib import Path

import pandas as pd

from plumbing import disk

BLUE, ORANGE, GREY, INK = "#2166ac", "#d6604d", "#b8b8b8", "#333333"
SCORED = 100_000  # pairs of the final score


def save(figure, path):
    disk.replace(path, lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight"))


def axes(width, height):
    """A figure without pyplot: no global state, and no display is needed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.add_subplot()
    axis.grid(alpha=0.25, lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#888888")
    axis.tick_params(labelsize=9, color="#888888", labelcolor=INK)
    return figure, axis


def steps_axis(axis, curriculum, last):
    """Steps along x, with a dotted line where longer sums begin."""
    from matplotlib.ticker import StrMethodFormatter

    axis.set_xlim(0, last)
    axis.set_xlabel("step", color=INK)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    changes = [(now.until, then) for now, then in itertools.pairwise(curriculum) if now.until < last]
    for i, (step, stage) in enumerate(changes):
        axis.axvline(step, color="#777777", ls=":", lw=1.2, zorder=1)
        if i + 1 < len(changes) and changes[i + 1][0] - step < 0.03 * last:
            continue  # the label would cover the next line
        text = f"up to {stage.digits} digits"  # not 1 to: --lengths full has no shorter ones
        text += f" of {stage.among}" if len(stage.among) < 10 else ""
        axis.annotate(text, (step, 0.5), xycoords=("data", "axes fraction"), xytext=(3, 0), textcoords="offset points",
                      ha="left", va="center", rotation=90, fontsize=8, color="#777777")  # fmt: skip


def run_plots(folder, rows, curriculum):
    """The loss and the exact match of one run, beside its metrics."""
    if not rows:
        return
    rows = pd.DataFrame(rows)
    steps, exact = rows["step"], 100 * rows["val_exact"]
    marker = "o" if len(rows) < 3 else None  # a line needs two points
    figure, axis = axes(8, 4.2)
    axis.plot(steps, rows["train_loss"], color=BLUE, lw=1.6, marker=marker, label="training")
    axis.plot(steps, rows["val_loss"], color=ORANGE, lw=1.6, marker=marker, label="validation")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("loss", color=INK)
    axis.set_title("Loss", loc="left", fontsize=12, color=INK)
    steps_axis(axis, curriculum, steps.max())
    axis.legend(frameon=False, fontsize=9, loc="upper right")
    save(figure, Path(folder) / "train_val_loss_per_step.png")

    figure, axis = axes(8, 4.2)
    axis.plot(steps, exact, color=BLUE, lw=1.8, marker=marker, clip_on=False)
    axis.set_title(f"Validation exact match, best {max(exact):.2f} %", loc="left", fontsize=12, color=INK)
    percent_axis(axis)
    steps_axis(axis, curriculum, steps.max())
    save(figure, Path(folder) / "val_accuracy_per_step.png")


def percent_axis(axis):
    axis.set_ylim(0, 101)
    axis.set_ylabel("sums that are right, %", color=INK)
    axis.axhline(99, color=ORANGE, lw=0.9, ls=(0, (5, 3)), zorder=1)
    axis.annotate("99 %", (1, 99), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                  va="center", fontsize=8, color=ORANGE, annotation_clip=False)  # fmt: skip


def configuration(member):
    """A member's name without its seed: its combination of the grid's values, empty where there is no grid."""
    return re.sub(r"-?seed\d+$", "", member)


def seeds_plot(path, title, members, curriculum):
    """Validation exact match of all seeds; members {name: (summary, metrics)}."""
    import matplotlib

    good = [name for name, (summary, _) in members.items() if summary["errors_in_100000"] <= SCORED // 100]
    good.sort(key=lambda name: members[name][0]["step_at_99"] or math.inf)
    labels = list(dict.fromkeys(map(configuration, members)))
    groups = labels if len(labels) > 1 else [f"seed {members[name][0]['seed']}" for name in good]  # a colour each
    figure, axis = axes(8.4, 4.4)
    palette, lines = matplotlib.colormaps["viridis"], {}
    for name in [*(name for name in members if name not in good), *good]:
        text, style = "never at 99 %", dict(color=GREY, lw=0.9, alpha=0.55)
        if name in good:
            text = configuration(name) if len(labels) > 1 else f"seed {members[name][0]['seed']}"
            style = dict(color=palette(0.88 * groups.index(text) / max(1, len(groups) - 1)), lw=1.5, alpha=0.95)
        rows = members[name][1]
        (lines[text],) = axis.plot(rows["step"], 100 * rows["val_exact"], **style)
    what = "seeds" if len(labels) == 1 else "runs"
    axis.set_title(f"{title}\n{len(good)} of {len(members)} {what} reach 99 %", loc="left", fontsize=11, color=INK)
    percent_axis(axis)
    steps_axis(axis, curriculum, max([rows["step"].max() for _, rows in members.values() if len(rows)], default=1))
    texts = [text for text in (*groups, "never at 99 %") if text in lines]
    if len(lines) <= 18:
        place = dict(loc="center left", bbox_to_anchor=(1.07, 0.5))
        axis.legend([lines[text] for text in texts], texts, frameon=False, fontsize=8, **place)
    save(figure, path)


def spread(wanted, gap):
    """Positions at least `gap` apart, in the same order and as close to the wanted ones as possible."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    groups = []  # [sum, count] of positions that are exactly `gap` apart
    for i, k in enumerate(order):
        groups.append([wanted[k] - i * gap, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += count
    flat = [total / count for total, count in groups for _ in range(count)]
    places = {k: flat[i] + i * gap for i, k in enumerate(order)}
    return [places[k] for k in range(len(wanted))]


def nines(errors):
    """Height of a score in the plot, -log10 of the error rate: 1 for 90 %, 2 for 99 %; 5.6 for no error."""
    return 5.6 if errors == 0 else -math.log10(errors / SCORED)


def accuracy_plot(path, points):
    """Exact match over parameters; points [{"name", "parameters", "errors": [one number a seed]}]."""
    figure, axis = axes(11, 6.2)
    top = 6.0
    wide = [math.log10(p["parameters"]) for p in points] or [2.0]
    middle, width = (min(wide) + max(wide)) / 2, max(0.5, max(wide) - min(wide) + 0.16)
    low, high = middle - width / 2, middle + width / 2
    columns = spread(wide, 0.013 * width)  # configurations of one size stand side by side
    gap = min(0.042, 0.96 / max(1, len(points) - 1)) * width
    names = spread(wide, gap)
    shift = max(0, low + 0.02 * width - min(names)) - max(0, max(names) - (high - 0.02 * width))
    names = [place + shift for place in names]
    axis.set_ylim(-0.12, top)
    axis.set_xlim(low, high)
    for point, x, at in zip(points, columns, names):
        heights = sorted(nines(e) for e in point["errors"])
        middle, best = nines(statistics.median(point["errors"])), heights[-1]
        color = BLUE if best >= 2 else ORANGE
        axis.plot([x, x], [heights[0], best], color=color, lw=0.8, alpha=0.35, zorder=2)
        axis.plot([x] * len(heights), heights, "o", color=color, ms=3.2, alpha=0.45, mew=0, zorder=3)
        axis.plot([x], [best], "o", color=color, ms=9, mec="white", mew=0.8, zorder=4)
        axis.plot([x], [middle], "D", mfc="white", mec=color, ms=4.5, mew=1.3, zorder=5)
        axis.plot([x, x, at], [best + 0.13, top - 0.22, top + 0.04], color="#bbbbbb", lw=0.6, clip_on=False, zorder=1)
        text = f"{point['name']} ({point['parameters']:,})"
        tilted = dict(rotation=45, rotation_mode="anchor", ha="left", va="center")
        axis.text(at, top + 0.1, text, fontsize=8, color=INK, **tilted)
    axis.axhline(2, color=ORANGE, lw=1.1, ls=(0, (5, 3)), zorder=1)
    shares = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", f"100 %\n0 errors in {SCORED:,}"]
    axis.set_yticks([0, 1, 2, 3, 4, 5, nines(0)], shares)
    ticks = [n for n in (10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 5000) if low <= math.log10(n) <= high]
    axis.set_xticks([math.log10(n) for n in ticks], [f"{n:,}" for n in ticks])
    axis.set_xlabel("parameters", color=INK)
    axis.set_ylabel("sums that are right", color=INK)
    for style, text in (
        (dict(marker="o", color=BLUE, ms=9, mec="white"), "best seed"),
        (dict(marker="D", mfc="white", mec=BLUE, ms=4.5, mew=1.3), "median seed"),
        (dict(marker="o", color=BLUE, ms=3.2, alpha=0.45, mew=0), "each seed"),
        (dict(marker="o", color=ORANGE, ms=9, mec="white"), "no seed at 99 %"),
    ):
        axis.plot([], [], ls="", label=text, **style)
    axis.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.11))
    save(figure, path)
