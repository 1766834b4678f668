"""The five figures of ebm/interpret.py, drawn from its numbers alone: FIGURES[name](result[name], title)."""

import math
import textwrap

import numpy as np
from matplotlib.figure import Figure

from ebm.strategies import LEVEL, NAMES

LEVELS = ("naked single", "hidden single", "pointing pair, box-line", "pairs, triples", "X-wing", "unknown")
COLOURS = ("#2166ac", "#67a9cf", "#7fbf7b", "#fdae61", "#d6604d", "#b8b8b8")  # of levels 1 to 6
BLUE, LIGHT, GREEN, RED, ORANGE, GREY, INK = "#2166ac", "#67a9cf", "#7fbf7b", "#d6604d", "#fdae61", "#b8b8b8", "#333333"
SHADES = {"oracle": GREY, "z = 0": RED, "z random": ORANGE, "Langevin": BLUE}


# ---------------------------------------------------------------- numbers as text: value, interval and n, or why none


def percent(figure):
    if figure["share"] is None:
        return figure["note"]
    return "{:.1f} % [{:.1f}, {:.1f}] of {:,}".format(*scaled(figure, "share"), figure["of"])


def number(figure):
    if figure["mean"] is None:
        return figure["note"]
    return "{mean:.3g} [{low:.3g}, {high:.3g}], n = {n:,}".format(**figure)


def related(figure):
    if figure["correlation"] is None:
        return figure["note"]
    return "{correlation:+.2f} [{low:+.2f}, {high:+.2f}], n = {n:,} of {puzzles:,} puzzles".format(**figure)


def scaled(figure, name):
    """Value, low and high in percent or points; None as it is."""
    return [None if figure[key] is None else 100 * figure[key] for key in (name, "low", "high")]


# ---------------------------------------------------------------- parts of figures


def canvas(width, height, title, rows=1, columns=1, **options):
    """A figure without pyplot: no global state, and no display is needed."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    return figure, axes


def whole_numbers(axis):
    axis.get_major_locator().set_params(integer=True)


def heading(axis, *lines):
    axis.set_title("\n".join(lines), fontsize=9, loc="left", color=INK)


def legend(axis, where, **options):
    axis.legend(fontsize=8, frameon=False, loc=where, **options)


def strategy_bars(axis, groups, what):
    """A bar for each strategy, stacked of groups {label: (counts by strategy, colour)}."""
    left = np.zeros(len(NAMES))
    for label, (counts, colour) in groups.items():
        axis.barh(range(len(NAMES)), counts, left=left, color=colour, label=label, edgecolor="white", lw=0.6)
        left += counts
    for y, total in enumerate(left):
        axis.text(total, y, f" {int(total):,}", va="center", fontsize=8, color=INK)
    axis.set_yticks(range(len(NAMES)), [f"{name}  {level}" for name, level in zip(NAMES, LEVEL)])
    axis.set(ylim=(len(NAMES) + 1.9, -0.6), xlim=(0, max(4, left.max()) * 1.15), xlabel=what)  # below: the legend
    whole_numbers(axis.xaxis)
    axis.grid(axis="x", alpha=0.25)
    legend(axis, "lower left")


def right_and_wrong(strategies, prefix):
    colours = {"right": GREEN, "wrong": RED}
    return {f"{prefix} {name}": ([row[name] for row in strategies.values()], colours[name]) for name in colours}


# ---------------------------------------------------------------- the figures


def lock_in(found, title):
    figure, (shares, later, strategies) = canvas(16, 5, f"1  Lock-in: {title}", columns=3, width_ratios=(4, 4, 5))
    counts, blanks = np.array(found["steps"]), max(1, found["blanks"])
    curve = 100 * counts.cumsum() / blanks
    shares.fill_between(range(len(counts)), curve, step="post", color=LIGHT, lw=0, label="after it")
    shares.fill_between((0, len(counts) - 1), curve[0], color=BLUE, lw=0, label="at step 0, before any update of z")
    shares.set(xlim=(0, len(counts) - 1), ylim=(0, 100), xlabel="step", ylabel="blanks locked in, %")
    heading(shares, *(f"{name}: {percent(found[key])}" for name, key in
                      (("step 0", "at_step_0"), ("later", "later"), ("never", "never"))))  # fmt: skip
    shares.legend(fontsize=8, loc="upper right" if curve[-1] < 70 else "lower right", framealpha=0.9)
    later.bar(range(1, len(counts)), counts[1:], width=1.0, color=LIGHT, edgecolor="white", lw=0.4)
    later.set(xlim=(0.5, len(counts) - 0.5), ylim=(0, max(4, 1.05 * counts[1:].max())))
    later.set(xlabel="step", ylabel="lock-ins after step 0")
    whole_numbers(later.yaxis)
    heading(
        later, "level of the strategy against step, Spearman:", *textwrap.wrap(related(found["level_and_step"]), 56)
    )
    groups = {"at step 0": ("strategies_step_0", BLUE), "later": ("strategies_later", LIGHT)}
    groups = {name: (list(found[key].values()), colour) for name, (key, colour) in groups.items()}
    strategy_bars(strategies, groups, "lock-ins")
    explained = {"step 0": found["explained_step_0"], "later": found["explained_later"]}
    heading(strategies, "by the clues and what was locked in before; explained:",
            *(f"{name}: {percent(figure_)}" for name, figure_ in explained.items()))  # fmt: skip
    return figure


def strategy_progression(found, title):
    figure, (steps, strategies) = canvas(13, 5, f"2  Digits that change on the way: {title}", columns=2)
    counts = np.array(found["by_step_and_level"])
    bottom = np.zeros(len(counts))
    for level, name in enumerate(LEVELS):
        style = dict(color=COLOURS[level], edgecolor="white", lw=0.4, label=f"{level + 1} {name}")
        steps.bar(range(len(counts)), counts[:, level], bottom=bottom, width=1.0, **style)
        bottom += counts[:, level]
    steps.set(xlim=(0.5, len(counts) - 0.5), ylim=(0, max(4, 1.3 * bottom.max())), xlabel="step", ylabel="changes")
    legend(steps, "upper right", ncols=2)
    heading(
        steps, "level of the strategy against step, Spearman:", *textwrap.wrap(related(found["level_and_step"]), 70)
    )
    strategy_bars(strategies, right_and_wrong(found["strategies"], "now"), "changes")
    moves = [f"{name.replace('_', ' ')} {found[name]:,}" for name in
             ("wrong_to_right", "right_to_wrong", "wrong_to_wrong")]  # fmt: skip
    heading(strategies, f"{found['events']:,} changes; a puzzle: {number(found['per_puzzle'])}", ", ".join(moves),
            f"explained: {percent(found['explained'])}")  # fmt: skip
    return figure


def head_specialization(found, title):
    parts = {part: [head for head in found["heads"] if head["part"] == part] for part in ("decoder", "encoder")}
    most = max(map(len, parts.values()))
    size = max(9, 4 + 0.24 * most), 8.5
    figure, axes = canvas(*size, f"3  Attention heads: {title}", rows=2)
    for axis, (part, heads) in zip(axes, parts.items()):
        for group, colour, marker in (("row", BLUE, "o"), ("column", RED, "s"), ("box", "#4d9221", "^")):
            values = [math.nan if head[group]["mean"] is None else head[group]["mean"] for head in heads]
            axis.plot(range(len(heads)), values, marker, color=colour, ms=6, alpha=0.85, label=f"same {group}")
        untrained = found[f"untrained_{part}"]
        axis.axhline(found["named_above"], color="0.3", lw=0.9, ls="--", label=f"{found['named_above']}: named above")
        axis.axhline(1, color="0.75", lw=0.9, label="1: uniform attention")
        axis.axhline(untrained["highest"], color="0.3", lw=0.9, ls=":", label="highest, untrained")
        for x, head in enumerate(heads[1:], 1):
            if head["layer"] != heads[x - 1]["layer"]:
                axis.axvline(x - 0.5, color="0.85", lw=0.8)
        marks = [
            "*" * (head["label"] != head["label_without_own_cell"]) + "?" * (not head["certain"]) for head in heads
        ]
        names = [f"{head['layer']}.{head['head']} {head['label']}{mark}" for head, mark in zip(heads, marks)]
        axis.set_xticks(range(len(heads)), names, rotation=90, fontsize=8)
        axis.set(xlim=(-0.6, len(heads) - 0.4), ylabel="attention, times the average")
        named = sum(head["label"] != "mixed" for head in heads)
        names = f"{named} of {len(heads)} heads named, of {untrained['heads']} untrained ones {untrained['named']}"
        key = "* another name without the own cell; ? the interval holds the threshold, or there is none"
        heading(axis, f"{part}: {names}; {found['puzzles']} puzzles", f"layer.head; {key}")
        axis.grid(axis="y", alpha=0.25)
        legend(axis, "center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def ablation_impact(found, title):
    rows = found["heads"]
    size = 12, 2.6 + 0.34 * max(3, len(rows))
    figure, axes = canvas(*size, f"4  Decoder heads removed: {title}", columns=2, sharey=True)
    names = ["all of them" if row["layer"] is None else f"{row['layer']}.{row['head']} {row['label']}" for row in rows]
    for axis, column in zip(axes, ("Langevin", "z = 0")):
        for y, change in enumerate(row[column] for row in rows):
            points, low, high = scaled(change, "points")
            if points is None:
                continue
            if low is not None:
                axis.plot([low, high], [y, y], color=SHADES[column], lw=3, alpha=0.45, solid_capstyle="round")
            axis.plot(points, y, "o", color=SHADES[column], ms=6, mfc="white" if low is None else SHADES[column])
            text = f"{points:+.2f}  {change['better']} better, {change['worse']} worse"
            axis.text(1.01, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8, color="0.35")
        axis.axvline(0, color="0.3", lw=0.9)
        axis.set_xscale("symlog", linthresh=1)
        axis.xaxis.set_major_formatter("{x:g}")
        low, high = axis.get_xlim()
        axis.set(xlim=(min(low, -1.5), max(high, 1.5)), xlabel="blanks right, change in points")
        axis.grid(axis="x", alpha=0.25)
    axes[0].set_yticks(range(len(rows)), names)
    axes[0].set_ylim(max(1, len(rows)) - 0.4, -0.6)
    chance = f"{found['by_chance']:.1f} expected by chance"
    heading(axes[0], f"Langevin, {found['puzzles']:,} puzzles, the same noise; hollow: too few puzzles differ",
            f"intervals below 0: {found['worse']}, above: {found['better']}, of {found['intervals']}; {chance}"
            if rows else "not enough data: no head was removed")  # fmt: skip
    heading(axes[1], "one forward pass, z = 0")
    return figure


def forward_vs_langevin(found, title):
    size = 17, 5.2
    figure, (bars, levels, strategies) = canvas(*size, f"5  Forward pass and Langevin: {title}", columns=3,
                                                width_ratios=(4, 5, 5))  # fmt: skip
    for place, (column, row) in zip((-1.5, -0.5, 0.5, 1.5), found["columns"].items()):
        style = {"color": SHADES[column], "hatch": "//" if row["sees_the_answer"] else "", "edgecolor": "white"}
        label = f"{column}, sees the answer" if row["sees_the_answer"] else column
        for x, metric in enumerate(("cells", "puzzles")):
            share, low, high = scaled(row[metric], "share")
            x += 0.21 * place
            if share is None:
                bars.text(x, 1, row[metric]["note"].split(":")[0], rotation=90, ha="center", fontsize=8, color=INK)
                continue
            ends = [[max(0, share - low)], [max(0, high - share)]]
            bars.bar(x, share, 0.2, yerr=ends, capsize=3, error_kw={"lw": 1}, **style)
            bars.text(x, high + 1, f"{share:.1f}", ha="center", fontsize=8, color=INK)
        bars.bar(0, 0, label=label, **style)
        for level, figure_ in row["right_by_level"].items():
            share, low, high = scaled(figure_, "share")
            if share is None:
                text = figure_["note"].split(":")[0]
                levels.text(int(level), 2, text, rotation=90, ha="center", fontsize=8, color=INK)
            else:
                ends = [[max(0, share - low)], [max(0, high - share)]]
                levels.errorbar(int(level) + 0.14 * place, share, ends, fmt="o", ms=5, capsize=2, color=SHADES[column])
    bars.set(xlim=(-0.5, 1.5), ylim=(0, 130), ylabel="%")
    bars.set_xticks((0, 1), ("blanks right", "puzzles solved"))
    bars.set_yticks(range(0, 101, 20))
    legend(bars, "upper right", ncols=2)
    recovered = {column: number(found["columns"][column]["recovery"]) for column in ("z = 0", "Langevin")}
    heading(bars, "of the oracle's cells, by puzzle:", *(f"{column}: {text}" for column, text in recovered.items()))
    counts = [figure_["of"] for figure_ in found["columns"]["oracle"]["right_by_level"].values()]
    names = [f"{textwrap.fill(name, 13)}\nn = {count:,}" for name, count in zip(LEVELS, counts)]
    levels.set_xticks(range(1, len(LEVELS) + 1), names, fontsize=8)
    levels.set(xlim=(0.5, len(LEVELS) + 0.5), ylim=(0, 103), ylabel="blanks right, %")
    levels.grid(axis="y", alpha=0.25)
    heading(levels, "by the strategy that the clues ask for; colours as on the left")
    strategy_bars(strategies, right_and_wrong(found["columns"]["Langevin"]["strategies"], "Langevin,"), "blanks")
    asked = list(found["strategies_of_solution"].values())
    strategies.plot(asked, range(len(NAMES)), "|", color="black", ms=14, mew=1.6, label="what the solution asks for")
    strategies.set_xlim(0, 1.15 * max(1, strategies.get_xlim()[1] / 1.15, *asked))
    legend(strategies, "lower left")
    heading(strategies, "from the clues to the final board at once")
    return figure


FIGURES = {
    draw.__name__: draw
    for draw in (lock_in, strategy_progression, head_specialization, ablation_impact, forward_vs_langevin)
}
