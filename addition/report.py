"""Tables and plots of this folder's documents, made from results/addition/.

python -m addition.report                              rewrite them in place
python -m addition.report --check                      change nothing; fail when a document does not match
python -m addition.report keep results/runs/NAME ...   copy the evidence of sweeps and runs, without checkpoints

Runs whose names differ only in -seed0, -seed1, ... are kept together, as one sweep.

The lines between `<!-- report KIND NAME ... -->` and `<!-- end -->` of a document are generated. Kinds: sweep (one row
a configuration), seeds (one row a seed), command, attention, speed and verified.
"""

import functools
import math
import re
import statistics
import textwrap
from pathlib import Path

import pandas as pd

import report
from addition import plots
from plumbing import disk

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results/addition"
DOCUMENTS = ("addition/README.md", "addition/EXPERIMENTS.md")
GUESSED = 0.25  # a digit with at most this accuracy counts as guessed
GOOD = 1_000  # errors in 100,000: 99 %


def wilson(successes, total, z=1.959964):
    """The 95 % interval of a success rate."""
    rate, scale = successes / total, 1 + z * z / total
    middle = (rate + z * z / (2 * total)) / scale
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(name):
    """What is kept of a sweep, or None."""
    return disk.read_json(RESULTS / name / "summary.json")


def groups(name):
    """{configuration: summaries} of a sweep: its members by their names without the seed."""
    found = {}
    for member, run in summary(name)["members"].items():
        configuration = re.sub(r"[ -]?seed\d+$", "", f"{name} {member}")
        found.setdefault(f"`{configuration}`", []).append(run)
    return found


def table(rows):
    """Of rows {column: cell}; one may lack columns."""
    cells = pd.DataFrame(rows, dtype=object).fillna("")
    return report.table(cells.columns, cells.values)


def number(value):
    return "-" if pd.isna(value) else f"{value:,.1f}".removesuffix(".0")


def span(counts):
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}, {sum(counts)} in all"


def sweep(*names):
    """One row a configuration."""
    rows = []
    for name in names:
        configurations = groups(name)
        together = [s for runs in configurations.values() for s in runs]
        for label, runs in configurations.items():
            errors = pd.Series([s["errors_in_100000"] for s in runs])
            good, diverged = int((errors <= GOOD).sum()), sum("diverged_at" in s for s in runs)
            share, low, high = (f"{100 * x:.0f}" for x in (good / len(runs), *wilson(good, len(runs))))
            sums = sum(s["sums_seen"] for s in runs) / 1e6
            models = sum(s["starts"] for s in together)
            rows.append({
                "configuration": label, "parameters": number(runs[0]["parameters"]),
                "steps": number(runs[0]["config"]["train_steps"]), "starts a run": span([s["starts"] for s in runs]),
                "runs at 99 %": f"{good} of {len(runs)} ({share} %, {low}-{high} %)"
                + (f", {diverged} diverged" if diverged else ""),
                "with 0 errors": int((errors == 0).sum()),
                "million sums a success": number(sums / good) if good else "-",
                "median steps to 99 %": number(pd.Series([s["step_at_99"] for s in runs], dtype=float).median()),
                "errors in 100,000 (best, median)": f"{number(errors.min())}, {number(errors.median())}",
                "seconds a start": number(max(s["seconds"] for s in together) / models),
            })  # fmt: skip
    return table(rows)


def seeds(*names):
    """One row a seed."""
    rows = []
    for label, runs in (item for name in names for item in groups(name).items()):
        for s in sorted(runs, key=lambda s: s["seed"]):
            words = {"diverged_at": "diverged", "pruned_at": "not continued"}
            ended = "".join(f" ({word} at step {number(s[key])})" for key, word in words.items() if key in s)
            rows.append({
                "configuration": label, "seed": s["seed"], "best step": number(s["best_step"]),
                "step at 99 %": number(s["step_at_99"]), "errors in 100,000": number(s["errors_in_100000"]) + ended,
            })  # fmt: skip
    return table(rows)


def command(*names):
    """The commands of these runs, with hardware and commit."""
    lines = ["```"]
    for name in names:
        kept, whole_words = summary(name), dict(break_long_words=False, break_on_hyphens=False)
        wrapped = textwrap.wrap(kept["command"], 110, subsequent_indent="  ", **whole_words)
        hardware, commits = (dict.fromkeys(s[key] for s in kept["members"].values()) for key in ("hardware", "commit"))
        lines += [*" \\\n".join(wrapped).splitlines(), f"# {' and '.join(hardware)}; commit {', '.join(commits)}"]
    return [*lines, "```"]


def speed(name):
    """Time of a step, from `python -m addition.fast.bench`."""
    kept = summary(name)
    rows, before = [], next(iter(kept["before"].values()), [])
    for case in kept["cases"]:
        ms = case["ms"]
        best = min(ms, key=ms.get)
        ideal = 1000 * case["operations"] / kept["operations_a_second"]  # of the kernels, in ms
        now = ms[best] * case["shares"]["kernels"]
        singles = [turn[str(case["parameters"])] for turn in before if case["recipe"] == "train"]
        earlier = statistics.median(singles) if singles else None
        rows.append({
            "recipe": case["recipe"], "parameters": case["parameters"], "batch": case["batch"],
            **{way.replace("stack_", "stack of "): f"{value:.2f}" for way, value in ms.items()},
            "best against plain": f"{ms['plain'] / ms[best]:.1f} x",
            "against a stack of 1": f"{ms['stack_1'] / ms[best]:.1f} x",
            "earlier single run": f"{earlier:.2f} ({min(singles):.2f}-{max(singles):.2f})" if earlier else "",
            "against it": f"{earlier / ms[best]:.1f} x" if earlier else "",
            **{part: f"{100 * share:.0f} %" for part, share in case["shares"].items()},
            "million operations": f"{case['operations'] / 1e6:.1f}",
            "of the machine's rate": f"{100 * ideal / now:.0f} %",
            "at that rate against a stack of 1": f"{1 + (ms['stack_1'] - ms[best]) / (ms[best] - now + ideal):.1f} x",
        })  # fmt: skip
    rate = f"{kept['operations_a_second'] / 1e9:.0f} billion operations a second in registers"
    note = f"Milliseconds a step and a model, median of turns; {kept['hardware']}; {rate}; commit {kept['commit']}"
    note += "".join(f"; the earlier single run is that of commit {commit}" for commit in kept["before"])
    return [note, "", *table(rows)]


def attention(*names):
    """Attention weights, from `python -m addition.evaluate_checkpoints`, apart for models at 99 % and below."""
    found = {}
    for model in (model for name in names for model in summary(name)["checkpoints"]):
        folder, member = re.search(r"([^/]+)[-/](?:checkpoints/)?(seed\d+)", model["path"]).groups()
        failed = summary(folder)["members"][member]["errors_in_100000"] > GOOD
        found.setdefault((folder, failed), []).append(model)
    rows = []
    for (folder, failed), models in found.items():
        own, before = ([m[key] for m in models] for key in ("own", "before"))
        guessed = statistics.median(sum(value < GUESSED for value in m["digits_right"]) for m in models)
        rows.append({
            "sweep": f"`{folder}`", "seeds": f"{len(models)} {'below' if failed else 'at'} 99 %",
            "own two digits": f"{min(own):.2f}-{max(own):.2f}",
            "the two before": f"{min(before):.3f}-{max(before):.3f}",
            "digits guessed, median of the eleven": f"{guessed:g}",
        })  # fmt: skip
    return table(rows)


def verified(name):
    """The exported files in addition/weights/, from `python -m addition.verify`."""
    paths = sorted((RESULTS / name).glob("*.json"), key=lambda path: int(path.stem.removesuffix("p")))
    rows = []
    for v in map(disk.read_json, paths):
        passed = v["edge_cases"] - len(v["edge_cases_failed"])
        rows.append({
            "file": f"`{v['path']}`", "parameters": v["parameters"], "with fixed numbers": v["strictly"],
            "entries without effect": sum(map(len, v["without_effect"].values())),
            "edge cases": f"{passed} of {v['edge_cases']}",
            "public protocol, 10,010 pairs": f"{100 * v['public_exact']:.2f} %",
            "long carries": f"{v['carry_errors']} errors in {v['carry_pairs']:,}",
        })  # fmt: skip
    return table(rows)


def shown(kind, *names):
    """What there is of these, and which are not run."""
    missing = [name for name in names if not any((RESULTS / name).glob("*.json"))]
    there = [name for name in names if name not in missing]
    return (kind(*there) if there else []) + ([f"not run: {', '.join(missing)}"] if missing else [])


KINDS = {kind.__name__: functools.partial(shown, kind) for kind in (sweep, seeds, command, attention, speed, verified)}


def draw():
    """seeds.png of each sweep, and accuracy.png of the sweeps in the README's tables."""
    for metrics in sorted(RESULTS.glob("*/metrics.csv")):
        folder, rows = metrics.parent, pd.read_csv(metrics)
        both = {name: (s, rows[rows["member"] == name]) for name, s in summary(folder.name)["members"].items()}
        plots.seeds_plot(folder / "seeds.png", folder.name, both)
    words = [block[2].split() for block in report.BLOCK.finditer((ROOT / DOCUMENTS[0]).read_text())]
    swept = dict.fromkeys(name for kind, *names in words if kind == "sweep" for name in names)
    points = {name: list(kept["members"].values()) for name in swept if (kept := summary(name))}
    if points:
        plots.accuracy_plot(RESULTS / "accuracy.png", points)


def keep(folders):
    """Copy the evidence of each; runs that differ in the seed become one sweep, so all must be given at once."""
    together = {}
    for folder in (Path(folder).resolve() for folder in folders):
        together.setdefault(re.sub(r"-seed\d+$", "", folder.name), []).append(folder)
    for name, parts in together.items():
        target, rows, members = RESULTS / name, [], {}
        for folder in parts:
            kept = disk.read_json(folder / "summary.json")
            if kept is None:
                raise SystemExit(f"{folder} has no summary.json: has the run finished? (--resume goes on)")
            metrics = pd.read_csv(folder / ("members.csv" if "members" in kept else "metrics.csv"), dtype=str)
            if "members" not in kept:  # a single run
                member = f"seed{kept['seed']}"
                metrics.insert(0, "member", member)
                kept = {"command": kept["command"], "members": {member: kept}}
            rows.append(metrics)
            members |= kept["members"]
        if others := set((summary(name) or {"members": {}})["members"]) - set(members):
            raise SystemExit(
                f"{target} also has {', '.join(sorted(others))}: give their folders, too, or remove it first"
            )
        with disk.writing(target, "metrics.csv"):
            disk.replace(target / "metrics.csv", lambda file, rows=rows: pd.concat(rows).to_csv(file, index=False))
            disk.write_json(target / "summary.json", {**kept, "members": members})
        print(target.relative_to(ROOT))


def main(argv=None):
    arguments = report.command_line(__doc__, "results/runs/NAME", {"keep": keep}, argv)
    if arguments.command:
        return
    report.write_documents(ROOT, DOCUMENTS, KINDS, arguments.check, "python -m addition.report")
    if not arguments.check:
        draw()


if __name__ == "__main__":
    main()
