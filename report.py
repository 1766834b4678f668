"""Tables and plots of the documentation, made from results/.

python report.py                       write them anew, in place
python report.py --check               change nothing; fail when a document does not match results/
python report.py keep runs/exp_x/mini-seed0 ...   copy a run's evidence (config, metrics, summary) to results/

A document holds `<!-- report NAME -->` and `<!-- end -->`; what stands between them is written here.
"""

import argparse
import ast
import json
import re
import shutil
import statistics
import sys
from pathlib import Path

import bench
import disk

ROOT = Path(__file__).parent
DOCUMENTS = ("README.md", "EXPERIMENTS.md")
BLOCK = re.compile(r"(<!-- report (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def summaries(experiment, preset=None):
    """The kept runs of an experiment, each with its folder's name."""
    found = []
    for path in sorted((ROOT / "results" / experiment).glob("*/summary.json")):
        summary = json.loads(path.read_text()) | {"name": path.parent.name}
        if preset in (None, summary["preset"]):
            found.append(summary)
    return found


def fields(experiment):
    """Parent, Change, Hypothesis and Log of an experiment's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / f"{experiment}.py").read_text()))
    parts = re.split(r"^(Parent|Change|Hypothesis|Log): ", text.split("\n\npython ")[0], flags=re.MULTILINE)
    return {name: " ".join(value.split()) for name, value in zip(parts[1::2], parts[2::2])}


def experiments():
    """Every experiment, a parent before its children."""
    parents = {}
    for path in sorted(ROOT.glob("*.py")):
        if "\nParent: " in path.read_text():
            parents[path.stem] = fields(path.stem)["Parent"].removesuffix(".py")
    ordered = []

    def visit(name):
        ordered.append(name)
        for child in sorted(child for child, parent in parents.items() if parent == name):
            visit(child)

    for root in sorted(name for name, parent in parents.items() if parent not in parents):
        visit(root)
    return ordered


def extra(run):
    """A run under a name of its own differs from its experiment by a flag."""
    return run["name"] != f"{run['preset']}-seed{run['seed']}"


def percent(value):
    return f"{100 * value:.1f} %"


def mini():
    """The whole line of descent, each run at the mini preset."""
    lines = ["| experiment | change | the log, full size | ours, mini | seeds | time |", "|---|---|---|---|---|---|"]
    for name in experiments():
        runs, text = [run for run in summaries(name, "mini") if not extra(run)], fields(name)
        log = text["Log"].split(";")[0].rstrip(".")
        if runs:
            solved = percent(statistics.mean(run["solved"] for run in runs))
            seconds = f"{statistics.mean(run['seconds'] for run in runs):.0f} s"
            seeds = ", ".join(str(run["seed"]) for run in runs)
        else:
            solved, seconds, seeds = "not run", "", ""
        lines.append(f"| `{name}` | {text['Change']} | {log} | {solved} | {seeds} | {seconds} |")
    return lines


def contrast():
    """Runs that differ from an experiment's mini by a flag, kept under a name of their own."""
    lines = ["| run | solved | cells | command |", "|---|---|---|---|"]
    for name in experiments():
        for run in summaries(name, "mini"):
            if extra(run):
                row = run["test"][max(run["test"], key=int)]
                cells = percent(row["cell_accuracy"])
                lines.append(f"| {name}, {run['name']} | {percent(run['solved'])} | {cells} | `{run['command']}` |")
    return lines


def speedrun():
    """Each kept run of exp_speedrun.py: what it solves after how many iterations."""
    runs = summaries("exp_speedrun")
    counts = sorted({int(n) for run in runs for n in run["test"]})
    lines = ["| run | seed | training | " + " | ".join(f"{n} iterations" for n in counts) + " |"]
    lines.append("|---|---|---|" + "---|" * len(counts))
    for run in runs:
        solved = [percent(run["test"][str(n)]["share"]) if str(n) in run["test"] else "" for n in counts]
        lines.append(f"| {run['name']} | {run['seed']} | {run['seconds']:.0f} s | " + " | ".join(solved) + " |")
    return lines


def speed():
    """What bench.py measured, on each kind of hardware it was run on."""
    lines = []
    for path in sorted((ROOT / "results" / "bench").glob("*.json")):
        lines += [*bench.table(json.loads(path.read_text())).splitlines(), ""]
    return lines


def ours(name):
    """One experiment: what its docstring says, and what we measured."""
    text, runs = fields(name), summaries(name)
    lines = [f"**Change** (from `{text['Parent']}`): {text['Change']}  "] if text["Parent"] != "none" else []
    lines += [f"**Hypothesis**: {text['Hypothesis']}  ", f"**Log**: {text['Log']}  "]
    if not runs:
        return [*lines, "**Ours**: not run."]
    for run in runs:
        row = run["test"][max(run["test"], key=int)]
        buckets = ", ".join(f"{100 * s / max(1, n):.1f}" for s, n in zip(row["solved"], row["puzzles"]))
        lines.append(
            f"**Ours, {run['name']}**: {percent(run['solved'])} solved ({buckets} by bucket), seed {run['seed']}, "
            f"{run['seconds']:.0f} s on {run['hardware'].split(';')[0]}. `{run['command']}`  "
        )
    return lines


TABLES = {"mini": mini, "contrast": contrast, "speedrun": speedrun, "speed": speed}


def fill(text):
    """The document with every block written anew."""

    def block(match):
        name = match.group(2)
        lines = TABLES[name]() if name in TABLES else ours(name)
        return match.group(1) + "\n".join(lines).strip("\n") + "\n" + match.group(3)

    return BLOCK.sub(block, text)


def plot():
    """results.png: learning curves of the mini line, and what more test iterations give the speedrun's network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for run in summaries("exp_speedrun"):
        points = sorted((int(n), 100 * row["share"]) for n, row in run["test"].items())
        right.plot(*zip(*points), marker="o", label=f"{run['name']}")
    right.set(
        xscale="log", xlabel="test iterations", ylabel="puzzles solved, %", title="exp_speedrun.py on unseen puzzles"
    )
    right.set_xticks(ticks := [8, 16, 32, 64, 128, 256], [str(t) for t in ticks])
    right.minorticks_off()
    for name in ("sudoku", "train_mixed", "exp_recur_add", "exp_warmup", "exp_cosine", "exp_cosine_no_sam"):
        for run in summaries(name, "mini")[:1]:
            rows = disk.read_rows(ROOT / "results" / name / run["name"] / "metrics.csv")
            points = [(100 * int(r["step"]) / run["steps"], 100 * float(r["accuracy"])) for r in rows]
            left.plot(*zip(*points), label=name)
    left.set(
        xlabel="share of the run, %",
        ylabel="blank cells right in training, %",
        title="the line of descent, --preset mini",
    )
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.has_data():
            axis.legend(fontsize=8, frameon=False)
    figure.savefig(ROOT / "results.png", dpi=120)


def keep(folders):
    for folder in map(Path, folders):
        if not (folder / "summary.json").exists():
            raise SystemExit(f"{folder} has no summary.json: is it a run, and did it finish? (--resume goes on)")
        target = ROOT / "results" / folder.parent.name / folder.name
        target.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "metrics.csv", "summary.json"):
            shutil.copy2(folder / name, target / name)
        print(target.relative_to(ROOT))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a document is out of date")
    parser.add_argument("keep", nargs="*", help="keep FOLDER...: copy the evidence of these runs to results/")
    arguments = parser.parse_args(argv)
    if arguments.keep:
        if arguments.keep[0] != "keep":
            parser.error(f"unknown command {arguments.keep[0]}; there is only: keep")
        return keep(arguments.keep[1:])
    for document in DOCUMENTS:
        path = ROOT / document
        old = path.read_text()
        new = fill(old)
        if arguments.check and new != old:
            sys.exit(f"{document} does not match results/; run python report.py and commit what it writes")
        if new != old:
            disk.replace(path, lambda file, new=new: file.write(new.encode()))
            print(document)
    if not arguments.check:
        plot()


if __name__ == "__main__":
    main()
