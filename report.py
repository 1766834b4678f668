"""Tables and plots of the documentation, made from results/.

python report.py                       write them anew, in place, with results.png, curves.png and tree.png
python report.py --check               change nothing; fail when a document does not match results/
python report.py keep runs/exp_x/mini-seed0 ...   copy a run's evidence (config, metrics, summary) to results/
python report.py ship runs/exp_suppose/full-seed0   make its weights those that solve.py uses by default, or with
                                                    --guess those of exp_guess

A document holds `<!-- report NAME -->` and `<!-- end -->`; what stands between them is written here. Runs whose names
differ only in `-seed0`, `-seed1`, ... are pooled: a table shows their mean, and the lowest and highest in brackets.
"""

import argparse
import functools
import itertools
import json
import re
import shutil
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import bench
import insights
import lineage
from plumbing import disk

ROOT = Path(__file__).parent
CHANCE = 0.15  # of the blank cells right; a guess at random has 1/9
DOCUMENTS = ("README.md", "EXPERIMENTS.md", "pos_embedding/EXPERIMENTS_POS.md")
BLOCK = re.compile(  # an opening line with its words, then what stands between it and its end, if it has one
    r"^(<!-- report ([^\n]+?)(?: -->)?$\n?)((?:(?!<!-- report ).)*?(<!-- end -->))?", re.DOTALL | re.MULTILINE
)

# ---------------------------------------------------------------- runs as rows of a table


def frame(name):
    """The kept runs of an experiment, a row each; a diverged run has no `solved` and no `test`."""
    rows = lineage.runs(name, ROOT)
    for run in rows:
        run["own"] = run.get("test", {}).get(str(run["iterations"]))  # the test at the config's number of iterations
        run.setdefault("cells", run["own"] and run["own"]["cell_accuracy"])  # older summaries have it there only
        run["peak_solved"] = run["peak"]["solved"] if "peak" in run else None
    columns = ["run", "group", "preset", "seed", "puzzles", "seconds", "hardware", "command", "solved", "diverged_at"]
    return pd.DataFrame(rows, columns=[*columns, "cells", "peak_solved", "own", "test"])


def at_preset(name, preset="mini"):
    """Its runs at this preset with nothing else changed."""
    runs = frame(name)
    return runs[runs["group"] == preset]


def tested(runs):
    """The tests of these runs: a row for each run and number of iterations."""
    tests = [(int(count), row) for test in runs["test"].dropna() for count, row in test.items()]
    rows = [(count, row["share"], row["cell_accuracy"], buckets(row)) for count, row in tests]
    return pd.DataFrame(rows, columns=["iterations", "solved", "cells", "buckets"]).sort_values("iterations")


def buckets(row):
    return [solved / max(1, puzzles) for solved, puzzles in zip(row["solved"], row["puzzles"])]


def spread(values):
    """The mean over the seeds, and the lowest and highest in brackets where they differ."""
    values = 100 * pd.to_numeric(values).dropna()
    ends = f" ({values.min():.1f}-{values.max():.1f})" if values.nunique() > 1 else ""
    return f"{values.mean():.1f} %{ends}" if len(values) else "-"


def seeds(runs):
    """How many seeds there are, and which of them failed; those that diverged have no figures."""
    lost, stuck = runs[runs["solved"].isna()], runs[pd.to_numeric(runs["cells"]) < CHANCE]
    notes = [f"seed {run.seed} diverged at step {int(run.diverged_at)}" for run in lost.itertuples()]
    notes += [f"seed {run.seed} no better than chance" for run in stuck.itertuples()]
    return "; ".join([str(len(runs)), *notes])


def link(experiment):
    name = experiment.path.relative_to(ROOT).as_posix()
    return f"[`{name}`]({name})"


def table(head, rows):
    first, *others = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return [first, "|" + "---|" * len(head), *others]


# ---------------------------------------------------------------- the blocks


def all_of_them():
    """The log's experiments, parents before children; those on candidates have tables of their own."""
    return [experiment for _, experiment in lineage.walk(lineage.find(ROOT)) if not experiment.on_candidates]


def mini():
    """The whole line of descent, each run at the mini preset."""
    head = ["experiment", "change", "the log, full size", "solved at mini, mean (min-max)", "above its parent, by seed"]
    rows = []
    for experiment in all_of_them():
        change, log = (" ".join(experiment.fields[name].split()) for name in ("Change", "Log"))
        runs = at_preset(experiment.name)
        figures = ["not run", "", "", "", "", "", ""]
        if len(runs):
            figures = [spread(runs[column]) for column in ("solved", "cells", "peak_solved")]
            figures[1:1] = [
                gain(experiment.name, experiment.parent.stem) if experiment.parent else "-",
                half(experiment.name, runs),
            ]
            figures += [seeds(runs), f"{runs['seconds'].mean():.0f} s"]
        rows.append([link(experiment), change, log.split(";")[0].rstrip("."), *figures])
    return table([*head, "half solved at step", "blank cells right", "best test on the way", "seeds", "time"], rows)


def gain(name, parent):
    """Points of solved puzzles above the parent's run with the same seed, where the test is the same."""
    return ", ".join(f"{points:+.1f}" for points in paired(name, parent)) or "-"


def half(name, runs):
    """By seed, the first step whose test found half of the puzzles solved."""
    metrics = [ROOT / "results" / name / run / "metrics.csv" for run in runs.dropna(subset="solved")["run"]]
    tests = (pd.read_csv(path).reindex(columns=["step", "test_solved"]) for path in metrics)
    steps = [test["step"][test["test_solved"] >= 0.5].min() for test in tests]
    return ", ".join("never" if pd.isna(step) else str(step) for step in steps) or "-"


def contrast():
    """Runs that differ from their experiment by a flag, and runs tested at several numbers of iterations."""
    head = ["experiment", "run", "iterations", "solved, mean (min-max)", "blank cells right", "seeds", "command"]
    rows = []
    for experiment in all_of_them():
        for group, runs in frame(experiment.name).query("preset == 'mini'").groupby("group"):
            tests = list(tested(runs).groupby("iterations"))
            for count, found in tests if group != "mini" or len(tests) > 1 else []:
                figures = [spread(found["solved"]), spread(found["cells"]), seeds(runs)]
                command = f"`{runs['command'].iloc[0]}`" if count == tests[0][0] else ""
                rows.append([link(experiment), group, count, *figures, command])
    return table(head, rows)


def matched(better, worse, preset="mini"):
    """The runs of two experiments at a preset, by seed; both with the same test. One that diverged solved nothing."""
    columns = ["seed", "puzzles", "solved"]
    runs = [at_preset(name, preset)[columns].fillna({"solved": 0.0}) for name in (better, worse)]
    return runs[0].merge(runs[1], on=["seed", "puzzles"])


def paired(better, worse, preset="mini"):
    """Points of solved puzzles between two experiments, by seed."""
    return difference(matched(better, worse, preset))


def difference(pairs):
    return 100 * (pairs["solved_x"] - pairs["solved_y"]).astype(float)


def contrasts(preset="mini"):
    """Every contrast of insights.py: the difference by seed, its mean and interval, and what that says."""
    rows = []
    family = {experiment.name: experiment for experiment in all_of_them()}
    for contrast in insights.CONTRASTS.values():
        points = paired(contrast.better, contrast.worse, preset)
        names = [link(family[name]) for name in (contrast.better, contrast.worse)]
        logged = [family[name].figure for name in (contrast.better, contrast.worse)]
        figures = [", ".join(f"{p:+.1f}" for p in points) or "not run", "", ""]
        if len(points) > 1:
            low, high = insights.interval(points)
            says = "first better" if low > 0 else "second better" if high < 0 else "open"
            figures[1:] = [f"{points.mean():+.1f} ({low:+.1f} to {high:+.1f})", says]
        rows.append([contrast.question, *names, " / ".join(logged), *figures])
    head = ["contrast", "first", "second", "the log", "first above second, by seed", "mean (95 %)", ""]
    count = sum(bool(row[-1]) for row in rows)
    chance = f"{count} intervals. At this level one in twenty excludes zero by chance: about {count / 20:.0f} of these."
    return [*table(head, rows), "", chance]


def verdicts(preset="mini"):
    """The log's insights, each with a mark from the contrasts that test it."""
    pairs = {name: matched(c.better, c.worse, preset) for name, c in insights.CONTRASTS.items()}
    points = {name: difference(runs) for name, runs in pairs.items()}
    intervals = {name: insights.interval(values) for name, values in points.items() if len(values) > 1}
    means = {name: [100 * pairs[name][side].mean() for side in ("solved_x", "solved_y")] for name in intervals}
    rows = []
    for insight in insights.INSIGHTS:
        measured = [name for name in insight.contrasts if name in means]
        narrow = [name for name in measured if insights.no_room(insight.enough, *means[name])]
        mark = insights.judged(insight, intervals, narrow)
        mark = seed_spread(preset) if mark == insights.SPREAD else mark
        if mark == "not run" and any(len(points[name]) for name in insight.contrasts):
            mark = "one seed so far"
        rows.append([insight.log, mark, ", ".join(insight.contrasts), insight.note])
    return table(["the log", f"{preset} says", "contrasts", "note"], rows)


def seed_spread(preset):
    """How far the seeds of an experiment lie apart."""
    found = (at_preset(experiment.name, preset)["solved"].dropna() for experiment in all_of_them())
    ranges = [100 * (solved.max() - solved.min()) for solved in found if len(solved) > 2]
    if not ranges:
        return "not run"
    apart = f"median {pd.Series(ranges).median():.1f}, most {max(ranges):.1f}"
    return f"best and worst of three seeds, {len(ranges)} experiments: {apart} points apart"


def positions():
    """The experiments of pos_embedding/, for its own page."""
    family, rows = lineage.find(ROOT), []
    for experiment in all_of_them():
        if experiment.path.parent.name == "pos_embedding":
            parent = family[experiment.parent]
            figures = ["not run", ""]
            if len(runs := at_preset(experiment.name)):
                figures = [spread(runs["solved"]), gain(experiment.name, parent.name)]
            name = f"[`{experiment.path.name}`]({experiment.path.name})"
            rows.append([name, experiment.title, experiment.figure, parent.figure, *figures])
    head = ["experiment", "positions", "the log", "the log, its parent", "solved at mini", "above its parent, by seed"]
    return table(head, rows)


def trials():
    """Runs of other forms of the mini preset, by which it was chosen."""
    rows = pd.read_csv(ROOT / "results" / "mini-trials.csv", dtype=str, keep_default_na=False)
    return table(rows.columns, rows.values)


def cost():
    """What the gpu preset costs, as cost.py counted it."""
    kept = json.loads((ROOT / "results" / "cost-gpu.json").read_text())
    family = {experiment.name: experiment for experiment in all_of_them()}
    rows = [
        [link(family[row["experiment"]]), f"{row['gflop']:.2f}", row["batch"], row["steps"], f"{row['minutes']:.1f}"]
        for row in kept["rows"]
    ]
    head = ["experiment", "GFLOP a puzzle and step", "batch", "steps", "minutes"]
    minutes = {row["experiment"]: row["minutes"] for row in kept["rows"]}
    needed = {name for contrast in insights.CONTRASTS.values() for name in (contrast.better, contrast.worse)}
    more = 2 * sum(minutes[name] for name in needed)
    said = f"One run of each: {sum(minutes.values()):.0f} minutes, median {pd.Series(minutes).median():.1f}. "
    return [*table(head, rows), "", said + f"Two more seeds of those that contrasts need: {more:.0f} minutes."]


def speedrun(*groups):
    """How many of 1,000 unseen puzzles of each kind these two solve, by test iterations; only these groups of runs."""
    everything = pd.concat([frame(name).assign(name=name) for name in ("exp_speedrun", "exp_iterate")])
    everything = everything[everything["group"].isin(groups or everything["group"])]
    counts = sorted(tested(everything)["iterations"].unique())
    rows = []
    for (name, group), runs in everything.groupby(["name", "group"], sort=False):
        found = tested(runs)
        for bucket, kind in enumerate(("45 clues", "minimal, 24 clues on average")):
            solved = found["buckets"].str[bucket].groupby(found["iterations"]).apply(spread)
            cells = solved.reindex(counts, fill_value="")
            rows.append([name, group, seeds(runs), f"{runs['seconds'].mean():.0f} s", kind, *cells])
    return table(["experiment", "run", "seeds", "training", "puzzles", *counts], rows)


def later(*runs):
    """Puzzles of their own tests that these solve after more iterations than in training; each is experiment:group."""
    rows = {}
    for name, _, group in (run.partition(":") for run in runs):
        everything = frame(name)
        mine = everything[everything["group"] == group]
        found = tested(mine)
        rows[name, group, len(mine)] = found["solved"].groupby(found["iterations"]).apply(spread)
    counts = sorted({count for solved in rows.values() for count in solved.index})
    lines = [[*run, *solved.reindex(counts, fill_value="")] for run, solved in rows.items()]
    return table(["experiment", "run", "seeds", *counts], lines)


def speed():
    """What bench.py measured, on each kind of hardware it was run on."""
    reports = (json.loads(path.read_text()) for path in sorted((ROOT / "results" / "bench").glob("*.json")))
    return [bench.table(report) + "\n" for report in reports]


def faster():
    """The speed of exp_iterate.py's network, before and after a step's iterations became one kernel call."""
    kept, said = json.loads((ROOT / "results" / "iterate-speed.json").read_text()), []
    for what, ages in (("Training", kept), ("Tests with 256 iterations of sudoku-extreme", kept["test"])):
        new, old = (pd.Series(ages[age]["runs"]).explode().median() for age in ("new", "old"))
        commits = f"commits {ages['old']['commit']} and {ages['new']['commit']}"
        said.append(f"{what}: {new:.0f} puzzles a second against {old:.0f}, {new / old:.2f} times as many ({commits}).")
    return [" ".join([*said, "Medians, by turns;", kept["hardware"].split(";")[0]]) + "."]


def thoughts(folder="thinking"):
    """What eval_extreme.py or guess.py wrote to this folder of results/: {(run without its seed, puzzles): [(seed,
    report)]}"""
    groups = {}
    for path in sorted((ROOT / "results" / folder).glob("*.json")):
        report = json.loads(path.read_text())
        run, _, seed = path.stem.partition("-seed")
        data = report["data"] if "data" in report else report["command"].split()[2]
        groups.setdefault((run, Path(data).name), []).append((seed.partition("-")[0], report))
    return groups


def share(row):
    """Of the puzzles of all buckets."""
    return sum(row["solved"]) / sum(row["puzzles"])


def thinking():
    """Puzzles solved after more and more iterations."""
    groups, rows = thoughts(), []
    counts = sorted({int(n) for reports in groups.values() for _, report in reports for n in report["test"]})
    for (run, data), reports in groups.items():
        solved = {
            n: [share(report["test"][str(n)]) for _, report in reports if str(n) in report["test"]] for n in counts
        }
        puzzles = sum(next(iter(reports[0][1]["test"].values()))["puzzles"])
        times = [1e3 * report["test_seconds"] / puzzles for _, report in reports if "test_seconds" in report]
        each = f"{sum(times) / len(times):.3g}" if times else ""
        cells = [spread(pd.Series(values)) if values else "" for values in solved.values()]
        rows.append([run, ", ".join(seed for seed, _ in reports), data, puzzles, *cells, each])
    head = ["weights", "seeds", "puzzles", "how many", *counts, "ms a puzzle"]
    return table(head, rows) if rows else ["Not run."]


def ladder():
    """The rungs past the log at equal training time: how much of sudoku_extreme_sample.csv each solves."""
    found = {}  # {(experiment, group): {seed: its report}}
    for (run, _), reports in thoughts("ladder").items():
        name, _, group = run.rpartition("-")
        found["exp_" + name, group] = dict(reports)
    counts = sorted({int(n) for runs in found.values() for report in runs.values() for n in report["test"]})
    rows = []
    for _, experiment in lineage.walk(lineage.find(ROOT)):
        for group in (group for name, group in found if name == experiment.name):
            mine, trained = found[experiment.name, group], frame(experiment.name)
            parent = experiment.name if group != "ladder" else experiment.parent and experiment.parent.stem
            solved = {
                n: {seed: share(r["test"][str(n)]) for seed, r in mine.items() if str(n) in r["test"]} for n in counts
            }
            above = ""
            if (parent, "ladder") in found:
                theirs = {seed: share(report["test"]["256"]) for seed, report in found[parent, "ladder"].items()}
                points = [100 * (solved[256][seed] - theirs[seed]) for seed in mine if seed in theirs]
                above = f"{sum(points) / len(points):+.1f} ({', '.join(f'{point:+.1f}' for point in points)})"
            cells = [spread(pd.Series(solved[n])) for n in counts]
            steps = next(iter(mine.values()))["step"]
            seconds = trained[trained["group"] == group]["seconds"].mean()
            name = experiment.name + ("" if group == "ladder" else f" {group}")
            rows.append([name, ", ".join(mine), steps, f"{seconds:.0f} s", *cells, above])
    head = ["experiment", "seeds", "steps", "training", *counts, "points above its parent at 256, by seed"]
    return table(head, rows) if rows else ["Not run."]


def guessing():
    """What guess.py wrote to results/guess/: every way to search, on every set of puzzles; means over the seeds."""
    head = ["weights", "seeds", "puzzles", "way", "solved", "guesses, median", "mean", "most", "iterations, median",
            "mean", "most", "ms a puzzle"]  # fmt: skip
    rows = []
    for (run, data), reports in thoughts("guess").items():
        for way in dict.fromkeys(way for _, report in reports for way in report["ways"]):
            tried = [(seed, report) for seed, report in reports if way in report["ways"]]
            total, seeds = sum(report["puzzles"] for _, report in tried), ", ".join(seed for seed, _ in tried)
            found = pd.json_normalize([report["ways"][way] for _, report in tried])
            cells = []
            for what in ("guesses", "iterations"):
                searched = f"{what}.most" in found  # not so with the exact solver
                cells += [plain(found[f"{what}.{kind}"]) if searched else "" for kind in ("median", "mean")]
                cells.append(f"{found[f'{what}.most'].max():.0f}" if searched else "")
            rows.append([run, seeds, data, way, f"{found['solved'].sum()} of {total}", *cells,
                         f"{1e3 * found['seconds'].sum() / total:.3g}"])  # fmt: skip
    return table(head, rows) if rows else ["Not run."]


def plain(values):
    """The mean over the seeds, and the lowest and highest in brackets where they differ."""
    ends = f" ({values.min():.3g}-{values.max():.3g})" if values.nunique() > 1 else ""
    return f"{values.mean():.3g}{ends}"


def easy(experiment, group):
    """Shares of the puzzles with 45 clues that each seed solves, at most iterations."""
    runs = frame(experiment)
    tests = runs.loc[runs["group"] == group, "test"].dropna()
    return [buckets(test[max(test, key=int)])[0] for test in tests]


def extreme(experiment, group, tested=""):
    """Shares of sudoku_extreme_sample.csv that each seed solves, at most iterations; of an earlier test by its name."""
    run = f"{experiment.removeprefix('exp_')}-{tested or group}"
    reports = thoughts().get((run, "sudoku_extreme_sample.csv"), [])
    return [share(report["test"][max(report["test"], key=int)]) for _, report in reports]


doubtful = functools.partial(extreme, tested="doubtful")
RECORDS = (  # track, what is counted, experiment, group of runs, what is new
    ("laptop minute: 97 % of puzzles with 45 clues", easy, "exp_iterate", "minute", "the first: 1,000 steps"),
    ("laptop minute", easy, "exp_iterate", "seconds", "150 steps; a step's iterations in one kernel call"),
    ("laptop hour: sudoku-extreme, no search", doubtful, "exp_suppose", "forum", "it supposes what is most in doubt"),
    ("laptop hour", extreme, "exp_suppose", "forum", "the same weights; what is likely and decides most"),
)


def records():
    """Tracks as in a speedrun: what was reached in how much training, and where the evidence is."""
    rows = []
    for track, count, experiment, group, new in RECORDS:
        runs = frame(experiment)
        runs = runs[runs["group"] == group]
        figures = ["not run"] * 4
        if len(runs):
            hardware, reached = runs["hardware"].iloc[0].split(";")[0], spread(pd.Series(count(experiment, group)))
            figures = [len(runs), f"{runs['seconds'].mean():.0f} s", reached, hardware]
        rows.append([track, new, *figures, f"[results/{experiment}](results/{experiment})"])
    head = ["track", "what is new", "seeds", "training", "reached", "hardware", "evidence"]
    return table(head, rows)


def kill():
    """The last line of each kept run of tests/kill.py."""
    runs = [json.loads(path.read_text()) for path in sorted((ROOT / "results" / "kill").glob("*.json"))]
    return [f"- {run['said']} ({run['hardware'].split(';')[0]}; `{run['command']}`)" for run in runs] or ["Not run."]


def ours(experiment, family):
    """One experiment: what its docstring says, and what we measured."""
    fields = {name: " ".join(text.split()) for name, text in experiment.fields.items()}
    origin = f" (from {link(family[experiment.parent])})" if experiment.parent else ""
    lines = [f"**Change**{origin}: {fields['Change']}  "]
    lines += [f"**{name}**: {fields[name]}  " for name in ("Hypothesis", "Log")]
    for group, runs in frame(experiment.name).groupby("group"):
        parts = []
        if len(own := runs["own"].dropna()):
            shares = pd.DataFrame([buckets(row) for row in own]).mean()
            natural = spread(own.str.get("share_natural"))
            parts.append(f"{spread(runs['solved'])} solved ({', '.join(f'{100 * s:.1f}' for s in shares)} by bucket)")
            parts += [f"{natural} on the natural mix"] if natural != "-" else []
            parts.append(f"{spread(runs['cells'])} of the blank cells right")
            parts += [f"best test on the way {best}"] if (best := spread(runs["peak_solved"])) != "-" else []
        hardware = runs["hardware"].iloc[0].split(";")[0]
        parts += [f"seeds: {seeds(runs)}", f"{runs['seconds'].mean():.0f} s on {hardware}"]
        lines.append(f"**Ours, {group}**: {', '.join(parts)}. `{runs['command'].iloc[0]}`  ")
    if not lines[-1].startswith("**Ours"):
        return [*lines, "**Ours**: not run."]
    points = paired(experiment.name, experiment.parent.stem) if experiment.parent else ()
    if len(points) > 1:
        low, high = insights.interval(points)
        says = "better" if low > 0 else "worse" if high < 0 else "mini cannot tell"
        against = f"{points.mean():+.1f} points ({low:+.1f} to {high:+.1f}) against its parent"
        lines.append(f"**Verdict**: {against}: {says}.")
    elif len(points):
        lines.append(f"**Verdict**: {points.mean():+.1f} points against its parent, one seed: not enough to tell.")
    return lines


TABLES = {"kill": kill, "mini": mini, "contrast": contrast, "contrasts": contrasts, "verdicts": verdicts}
TABLES |= {"cost": cost, "positions": positions, "trials": trials, "speedrun": speedrun, "speed": speed}
TABLES |= {"ladder": ladder, "later": later, "thinking": thinking, "guessing": guessing}
TABLES |= {"records": records, "faster": faster}


def fill(text, tables, document):
    """The document with every block written anew; `<!-- report NAME WORDS -->` calls tables[NAME](*WORDS)."""

    def block(match):
        name, *words = match[2].split()
        if name not in tables or not match[4]:
            opening, known = match[1].strip(), ", ".join(tables)
            raise SystemExit(f"{document}: {opening!r} needs <!-- end --> below it and one of these names: {known}")
        return match[1] + "\n".join(tables[name](*words)).strip("\n") + "\n" + match[4]

    return BLOCK.sub(block, text)


def write_documents(root, names, tables, check, command):
    """Fill the blocks of these documents; with `check`, change nothing and fail where one is out of date."""
    for name in names:
        old = (root / name).read_text()
        new = fill(old, tables, name)
        if check and new != old:
            raise SystemExit(f"{name} does not match results/; run {command} and commit what it writes")
        if new != old:
            disk.replace(root / name, lambda file, new=new: file.write(new.encode()))
            print(name)


# ---------------------------------------------------------------- plots


def contrasts_plot():
    """What the contrasts say at mini."""
    figure = Figure(figsize=(9, 8.6), layout="constrained")
    axis = figure.subplots()
    found = {c.question: paired(c.better, c.worse) for c in insights.CONTRASTS.values()}
    found = sorted(((q, p) for q, p in found.items() if len(p) > 1), key=lambda item: item[1].mean())
    for row, (_, points) in enumerate(found):
        low, high = insights.interval(points)
        colour = "tab:green" if low > 0 else "tab:red" if high < 0 else "0.6"
        axis.plot([low, high], [row, row], color=colour, lw=2)
        axis.plot(points, [row] * len(points), "o", color=colour, ms=3.5)
    axis.set_yticks(range(len(found)), [question for question, _ in found], fontsize=8)
    axis.set(xlim=(-100, 105), ylim=(-1, len(found)), xlabel="points of puzzles solved, the first above the second")
    axis.set_title("the first or the second, --preset mini", fontsize=11)
    axis.axvline(0, color="black", lw=0.8)
    return figure


CURVES = (  # runs of results/curve/, what they are, colour
    ("suppose-curve", "exp_suppose: a network on candidates", "tab:red"),
    ("cosine_no_sam-curve", "exp_cosine_no_sam: the log's transformer", "tab:blue"),
)
PUZZLES = {"fresh_minimal.npy": ("minimal puzzles", "-"), "sudoku_extreme_sample.csv": ("sudoku-extreme", "--")}


def curves_plot():
    """What test iterations and training time give, ours and the log's architecture."""
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    found = thoughts("curve")
    for (run, label, colour), (data, (puzzles, line)) in itertools.product(CURVES, PUZZLES.items()):
        by_seed = {}
        for seed, report in found.get((run, data), []):
            by_seed.setdefault(seed, []).append(report)
        for number, reports in enumerate(by_seed.values()):
            reports.sort(key=lambda report: report["step"])
            last = {int(n): 100 * share(row) for n, row in reports[-1]["test"].items()}
            style = {"color": colour, "ls": line, "marker": ".", "lw": 1.2}
            left.plot(list(last), list(last.values()), label=f"{label}, {puzzles}" if number == 0 else None, **style)
            right.plot(*zip(*((r["seconds"] / 60, 100 * share(r["test"]["256"])) for r in reports)), **style)
    left.set(xscale="log", xlabel="test iterations", ylabel="unseen puzzles solved, %", ylim=(-2, 102))
    left.set_title("after the whole training", fontsize=11)
    left.set_xticks(ticks := [16, 64, 256, 1024], [str(tick) for tick in ticks])
    left.minorticks_off()
    right.set(xlabel="minutes of training on one core")
    right.set_title("after 256 test iterations", fontsize=11)
    if left.has_data():
        figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def plot():
    """results.png and curves.png."""
    for name, figure in (("results.png", contrasts_plot()), ("curves.png", curves_plot())):
        for axis in figure.axes:
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        disk.replace(ROOT / name, lambda file, figure=figure: figure.savefig(file, dpi=120))


# Fields that change no experiment.
FREE = {"name", "seed", "resume", "keep_every", "device", "compile", "wandb", "runs", "test_iterations"}


def altered(folder, config_class=None):
    """The flags by which a run named after its preset differs from that preset; it must not be pooled with it. The
    Config is that of the experiment with the name of the folder above, if no other is given."""
    config = json.loads((folder / "config.json").read_text())
    if folder.name != f"{config['preset']}-seed{config['seed']}":
        return []  # a name of its own
    import common  # imports torch, which only this needs

    config_class = config_class or lineage.module(folder.parent.name).Config
    expected = vars(common.with_preset(config_class(), config["preset"]))
    same = json.loads(json.dumps(expected))  # tuples become lists
    return [name for name, value in config.items() if name not in FREE and value != same.get(name)]


def keep(folders, config_class=None):
    for folder in (Path(folder).resolve() for folder in folders):
        if not (folder / "summary.json").exists():
            raise SystemExit(f"{folder} has no summary.json: is it a run, and did it finish? (--resume goes on)")
        if flags := altered(folder, config_class):
            given = ", ".join(f"--{name.replace('_', '-')}" for name in flags)
            raise SystemExit(
                f"{folder} is not its preset: {given} differ; run it again with --name, as in faster-seed0"
            )
        target = ROOT / "results" / folder.parent.name / folder.name
        target.mkdir(parents=True, exist_ok=True)
        config, summary = (disk.read_json(folder / name) for name in ("config.json", "summary.json"))
        summary["command"] = re.sub(r" --runs \S+", "", summary.get("command", ""))  # where it lay says nothing
        summary["command"] = re.sub(r"(--(?:hard|apart)) \S*/", r"\1 ", summary["command"])
        config |= {name: Path(config[name]).name for name in ("hard", "apart") if name in config}
        disk.write_json(target / "summary.json", summary)
        disk.write_json(target / "config.json", config | {"runs": "runs"} if "runs" in config else config)
        if (folder / "metrics.csv").exists():  # a run that diverged at once has none
            shutil.copy2(folder / "metrics.csv", target)
        print(target.relative_to(ROOT))


def ship(folder, name=""):
    """The weights without what only a resumed run needs."""
    saved = disk.load_checkpoint(Path(folder) / "checkpoint.pt")
    name = name or ("guess.pt" if saved["experiment"] == "exp_guess" else "suppose.pt")
    target = ROOT / "weights" / name
    disk.save_checkpoint(target, {name: saved[name] for name in ("experiment", "step", "config", "model")})
    print(target.relative_to(ROOT))


def command_line(text, example, commands, argv):
    """Do what is asked with the folders of runs, one of `commands`; without one, give back the flags."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a document is out of date")
    parser.add_argument("command", nargs="?", choices=tuple(commands), help="what to do with these runs")
    parser.add_argument("folders", nargs="*", help="folders of runs")
    arguments = parser.parse_args(argv)
    if arguments.command and (not arguments.folders or (arguments.command == "ship" and len(arguments.folders) > 1)):
        parser.error(f"{arguments.command}: which run? give its folder, as in {example}")
    if arguments.command:
        commands[arguments.command](*([arguments.folders] if arguments.command == "keep" else arguments.folders))
    return arguments


def main(argv=None):
    arguments = command_line(__doc__, "runs/exp_x/mini-seed0", {"keep": keep, "ship": ship}, argv)
    if arguments.command:
        return
    family = lineage.find(ROOT)
    experiments = {experiment.name: functools.partial(ours, experiment, family) for experiment in family.values()}
    write_documents(ROOT, DOCUMENTS, TABLES | experiments, arguments.check, "python report.py")
    if not arguments.check:
        plot()
        lineage.plot_tree(ROOT / "tree.png", ROOT)


if __name__ == "__main__":
    lineage.run_command(main)
