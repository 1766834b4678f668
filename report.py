"""Tables and plots of the documentation, made from results/.

python report.py                       write them anew, in place
python report.py --check               change nothing; fail when a document does not match results/
python report.py keep runs/exp_x/mini-seed0 ...   copy a run's evidence (config, metrics, summary) to results/
python report.py ship runs/exp_speedrun/full-seed0   make its weights those that solve.py uses by default

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
from plumbing import disk

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
        if fields(name)["Log"].startswith("not in the log"):
            continue  # it has a table of its own
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
    """Pairs that differ in one ingredient, at several numbers of test iterations where those were run."""
    lines = ["| run | solved after iterations | command |", "|---|---|---|"]
    for name in experiments():
        for run in summaries(name, "mini"):
            if extra(run) or len(run["test"]) > 1:
                counts = sorted((int(n), row) for n, row in run["test"].items())
                solved = ", ".join(f"{n}: {percent(row['share'])}" for n, row in counts)
                lines.append(f"| {name}, {run['name']} | {solved} | `{run['command']}` |")
    return lines


def speedrun():
    """Each kept run of exp_speedrun.py: how many of 1,000 unseen puzzles of each kind it solves."""
    runs = summaries("exp_speedrun")
    counts = sorted({int(n) for run in runs for n in run["test"]})
    lines = ["| run | seed | training | puzzles | " + " | ".join(f"{n}" for n in counts) + " |"]
    lines.append("|---|---|---|---|" + "---|" * len(counts))
    for run in runs:
        for bucket, kind in enumerate(("45 clues", "minimal, 24 clues on average")):
            rows = [run["test"].get(str(n)) for n in counts]
            solved = [percent(row["solved"][bucket] / row["puzzles"][bucket]) if row else "" for row in rows]
            head = f"| {run['name']} | {run['seed']} | {run['seconds']:.0f} s | " if bucket == 0 else "| | | | "
            lines.append(f"{head}{kind} | " + " | ".join(solved) + " |")
    return lines


def speed():
    """What bench.py measured, on each kind of hardware it was run on."""
    lines = []
    for path in sorted((ROOT / "results" / "bench").glob("*.json")):
        lines += [*bench.table(json.loads(path.read_text())).splitlines(), ""]
    return lines


def kill():
    """What tests/kill.py said at the end."""
    paths = sorted((ROOT / "results" / "kill").glob("*.json"))
    said = [json.loads(path.read_text()) for path in paths]
    return [f"- {run['said']} ({run['hardware'].split(';')[0]}; `{run['command']}`)" for run in said] or ["Not run."]


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


TABLES = {"kill": kill, "mini": mini, "contrast": contrast, "speedrun": speedrun, "speed": speed}


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
        full = run["preset"] == "full" and not extra(run)
        table = sorted((int(n), row) for n, row in run["test"].items())
        for bucket, kind in enumerate(("45 clues", "minimal")):
            points = [(n, 100 * row["solved"][bucket] / row["puzzles"][bucket]) for n, row in table]
            style = {"color": ("tab:blue", "tab:orange")[bucket], "ls": "-" if full else ":", "marker": "o", "ms": 4}
            right.plot(*zip(*points), **style, label=f"{kind}, {run['name']}, {run['seconds']:.0f} s of training")
    right.set(
        xscale="log", xlabel="test iterations", ylabel="puzzles solved, %", title="exp_speedrun.py on unseen puzzles"
    )
    right.set_xticks(ticks := [8, 16, 32, 64, 128, 256], [str(t) for t in ticks])
    right.minorticks_off()
    for name in ("sudoku", "train_mixed", "exp_recur_add", "exp_warmup", "exp_cosine", "exp_cosine_no_sam"):
        for run in [run for run in summaries(name, "mini") if not extra(run)][:1]:
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


def ship(folder):
    """The weights without what only a resumed run needs."""
    saved = disk.load_checkpoint(Path(folder) / "checkpoint.pt")
    target = ROOT / "weights" / "speedrun.pt"
    target.parent.mkdir(exist_ok=True)
    disk.save_checkpoint(target, {name: saved[name] for name in ("experiment", "step", "config", "model")})
    print(target.relative_to(ROOT))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a document is out of date")
    parser.add_argument("command", nargs="?", choices=("keep", "ship"), help="what to do with these runs")
    parser.add_argument("folders", nargs="*", help="folders of runs")
    arguments = parser.parse_args(argv)
    if arguments.command:
        if not arguments.folders or (arguments.command == "ship" and len(arguments.folders) > 1):
            parser.error(f"{arguments.command}: which run? give its folder, as in runs/exp_x/mini-seed0")
        return keep(arguments.folders) if arguments.command == "keep" else ship(arguments.folders[0])
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
