"""Tables and plots of this folder's documents, made from results/addition/.

python -m addition.report                              rewrite them in place
python -m addition.report --check                      change nothing; fail when a document does not match
python -m addition.report keep results/runs/NAME ...   copy the evidence of sweeps and runs, without checkpoints

The lines between `<!-- report KIND NAME ... -->` and `<!-- end -->` of a document are generated. Kinds: sweep (one row
a configuration; A+B pools the seeds of both), seeds (one row a seed), command, attention, speed and verified.
"""

import argparse
import itertools
import math
import shlex
import statistics
import textwrap
from pathlib import Path

import pandas as pd

import report
from addition import plots
from addition.data import phases
from addition.plots import configuration
from plumbing import disk

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("addition/README.md", "addition/EXPERIMENTS.md")
GUESSED = 0.25  # a digit with at most this accuracy counts as guessed
GOOD, BETTER = 1_000, 100  # errors in 100,000: 99 % and 99.9 %
# Settings of how and where a run is computed: seeds that differ only in these are of one configuration.
APART = {"seed", "name", "run_name", "runs", "device", "engine", "eval_batch_size", "wandb", "wandb_mode", "resume",
         "save_every"}  # fmt: skip


def results():
    return ROOT / "results" / "addition"


def wilson(successes, total, z=1.959964):
    """The 95 % interval of a success rate."""
    if total == 0:
        return 0.0, 1.0
    rate, scale = successes / total, 1 + z * z / total
    middle = (rate + z * z / (2 * total)) / scale
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def load(folder):
    """The summary of a finished sweep or single run, {"command", "members"}; None if there is none."""
    kept = disk.read_json(folder / "summary.json") or disk.read_json(folder / "sweep.json")  # the older name
    if kept and "members" not in kept:
        kept = {"command": kept["command"], "members": {f"seed{kept['seed']}": kept}}
    return kept


def members(entry):
    """{configuration: {member's path: summary}} of all folders, A+B, of an entry; empty if one is not there."""
    found = {}
    for name in entry.split("+"):
        kept = load(results() / name)
        if kept is None:
            return {}
        for member, summary in kept["members"].items():
            found.setdefault(configuration(member), {})[f"{name}/{member}"] = summary
    for pool in found.values():
        check_pool(pool)
    return found


def check_pool(pool):
    """Only different seeds of one configuration may be counted together."""
    first, one = next(iter(pool.items()))
    seen = {}
    for path, summary in pool.items():
        both = (one["config"].keys() & summary["config"].keys()) - APART
        wrong = sorted(name for name in both if one["config"][name] != summary["config"][name])
        if wrong:
            raise SystemExit(f"{path} and {first} differ in {', '.join(wrong)}; name them apart, without the +")
        if (other := seen.setdefault(summary["seed"], path)) != path:
            raise SystemExit(f"{path} and {other} are the same seed; leave one of them out")


def number(value):
    return "-" if pd.isna(value) else f"{value:,.1f}".removesuffix(".0")


def rate(errors, most):
    """How many seeds make at most so many errors, with the interval."""
    good, total = (errors <= most).sum(), len(errors)
    low, high = wilson(good, total)
    return f"{good} of {total} ({100 * good / total:.0f} %, {100 * low:.0f}-{100 * high:.0f} %)"


def seconds(entry):
    """Of a seed: the time of the sweeps, shared among the models that trained together."""
    sweeps = [load(results() / name)["members"].values() for name in entry.split("+")]
    return sum(max(s["seconds"] for s in sweep) for sweep in sweeps) / sum(len(sweep) for sweep in sweeps)


def title(entry, label, entries):
    return " ".join(part for part in (entry if len(entries) > 1 or not label else "", label) if part)


def sweep(*entries):
    """One row a configuration."""
    rows = []
    for entry in entries:
        found = members(entry)
        if not found:
            rows.append([f"`{entry}`", "not run", *[""] * 7])
        for label, pool in found.items():
            runs = pd.DataFrame(pool.values())
            errors = runs["errors_in_100000"]
            diverged = runs["diverged_at"].count() if "diverged_at" in runs else 0
            rows.append([
                f"`{title(entry, label, entries)}`", number(runs["parameters"][0]),
                number(runs["config"][0]["train_steps"]),
                rate(errors, GOOD) + (f", {diverged} diverged" if diverged else ""), rate(errors, BETTER),
                rate(errors, 0), number(runs["step_at_99"].astype(float).median()),
                f"{number(errors.min())}, {number(errors.median())}", number(seconds(entry)),
            ])  # fmt: skip
    head = ["configuration", "parameters", "steps", "seeds at 99 %", "seeds at 99.9 %", "seeds with 0 errors",
            "median steps to 99 %", "errors in 100,000 (best, median)", "seconds a seed"]  # fmt: skip
    note = (
        "In brackets the share and its 95 % interval (Wilson). Median steps to 99 %: on validation, of the seeds that "
        "got there. Seconds a seed: the whole sweep's time divided by the models that trained together."
    )
    return [*report.table(head, rows), "", note]


def seeds(*entries):
    """One row a seed."""
    rows = []
    for entry in entries:
        found = members(entry)
        if not found:
            rows.append([f"`{entry}`", "not run", *[""] * 3])
        for label, pool in found.items():
            for s in sorted(pool.values(), key=lambda s: s["seed"]):
                errors = number(s["errors_in_100000"])
                if "diverged_at" in s:
                    errors += f" (diverged at step {number(s['diverged_at'])})"
                name = f"`{title(entry, label, entries)}`"
                rows.append([name, s["seed"], number(s["best_step"]), number(s["step_at_99"]), errors])
    head = ["configuration", "seed", "best step", "step at 99 %", "errors in 100,000"]
    return report.table(head, rows)


def command(*entries):
    """The commands of these runs, with hardware and commit."""
    lines = ["```"]
    for name in (name for entry in entries for name in entry.split("+")):
        kept = load(results() / name)
        if kept is None:
            lines.append(f"# {name}: not run")
            continue
        summaries = list(kept["members"].values())
        typed = shlex.join(shlex.split(kept["command"]))
        if not typed.startswith("python -m "):  # an older summary has the flags only
            typed = f"python -m {kept.get('module', 'addition.sweep')} {typed}"
        wrapped = textwrap.wrap(typed, 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        hardware = " and ".join(dict.fromkeys(s["hardware"] for s in summaries))
        commits = ", ".join(dict.fromkeys(s["commit"] for s in summaries))
        lines += [*" \\\n".join(wrapped).splitlines(), f"# {hardware}; commit {commits}"]
    return [*lines, "```"]


def speed(name):
    """Time of a step, from `python -m addition.bench`."""
    kept = disk.read_json(results() / name / "summary.json")
    if kept is None:
        return ["not run"]
    rows = [[f"{m['parameters']:,}", f"{m['plain_ms']:.1f}", f"{m['compiled_ms']:.1f}", f"{m['sweep_ms']:.2f}",
             f"{m['sweep_against_plain']:.1f} x", f"{m['sweep_against_compiled']:.1f} x",
             f"{1000 * m['gflop_a_step']:.0f} MFLOP", f"{100 * m['share_of_matrix_rate']:.0f} %"]
            for m in kept["models"]]  # fmt: skip
    head = ["parameters", "plain autograd", "compiled", "16 in a sweep",
            "sweep against plain", "against compiled", "work a step", "share of the matrix rate"]  # fmt: skip
    note = f"Milliseconds a step of {kept['batch']} sums and a model, median of turns; {kept['hardware']}"
    return [note, "", *report.table(head, rows)]


def attention(name):
    """Attention weights, from `python -m addition.attention`, apart for models at 99 % and below."""
    kept, groups = disk.read_json(results() / name / "summary.json"), {}
    if kept is None:
        return ["not run"]
    for found in kept["checkpoints"]:
        folder, member = Path(found["path"]).parts[-4:-2]
        summary = load(results() / folder)["members"][member]
        groups.setdefault((folder, summary["errors_in_100000"] > GOOD), []).append(found)
    rows = []
    for (folder, failed), models in groups.items():
        own, before = ([m[key] for m in models] for key in ("own", "before"))
        guessed = statistics.median(sum(value < GUESSED for value in m["digits_right"]) for m in models)
        rows.append([
            f"`{folder}`", f"{len(models)} {'below' if failed else 'at'} 99 %", f"{min(own):.2f}-{max(own):.2f}",
            f"{min(before):.3f}-{max(before):.3f}", f"{guessed:g}",
        ])  # fmt: skip
    head = ["sweep", "seeds", "own two digits", "the two before", "digits guessed, median of the eleven"]
    return report.table(head, rows)


def verified(name):
    """The exported files in addition/weights/, from `python -m addition.verify`."""
    paths = sorted((results() / name).glob("*.json"), key=lambda path: int(path.stem.removesuffix("p")))
    if not paths:
        return ["not run"]
    rows = []
    for v in map(disk.read_json, paths):
        passed = v["edge_cases"] - len(v["edge_cases_failed"])
        public, carries = f"{100 * v['public_exact']:.2f} %", f"{v['carry_errors']} errors in {v['carry_pairs']:,}"
        rows.append([f"`{v['path']}`", v["parameters"], f"{passed} of {v['edge_cases']}", public, carries])
    head = ["file", "parameters", "edge cases", "public protocol, 10,010 pairs", "long carries"]
    return report.table(head, rows)


KINDS = {kind.__name__: kind for kind in (sweep, seeds, command, attention, speed, verified)}


def documents():
    return {name: (ROOT / name).read_text() for name in DOCUMENTS if (ROOT / name).exists()}


def points():
    """The points of accuracy.png: the sweeps of the README's tables; of a grid its best combination."""
    shown = documents().get("addition/README.md", "")
    words = [match[2].split() for match in report.BLOCK.finditer(shown)]
    named = itertools.chain.from_iterable(names for kind, *names in words if kind == "sweep")
    found = []
    for entry in dict.fromkeys(named):
        choices = []
        for label, pool in members(entry).items():
            runs = pd.DataFrame(pool.values())
            errors = runs["errors_in_100000"]
            point = {"name": f"{entry} {label}".strip(), "parameters": runs["parameters"][0], "errors": errors}
            choices.append(((errors <= GOOD).mean(), -errors.median(), point))
        if choices:
            found.append(max(choices, key=lambda choice: choice[:2])[2])
    return found


def draw():
    for folder in sorted(results().glob("*")):
        if not (folder / "metrics.csv").exists():  # not of training runs
            continue
        rows, kept = pd.read_csv(folder / "metrics.csv"), load(folder)["members"]
        first = next(iter(kept.values()))
        head = f"{folder.name}: {first['parameters']:,} parameters, {first['config']['train_steps']:,} steps"
        curricula = {s["config"]["curriculum"] for s in kept.values()}
        curriculum = phases(first["config"]["curriculum"]) if len(curricula) == 1 else ()
        both = {name: (summary, rows[rows["member"] == name]) for name, summary in kept.items()}
        plots.seeds_plot(folder / "seeds.png", head, both, curriculum)
    if found := points():
        plots.accuracy_plot(results() / "accuracy.png", found)


def keep(folders):
    for folder in (Path(folder).resolve() for folder in folders):
        kept = load(folder)
        if kept is None:
            raise SystemExit(f"{folder} has no summary.json: has the run finished? (--resume goes on)")
        frames = {}
        for member in kept["members"]:
            source = folder / member / "metrics.csv"
            source = source if source.exists() else folder / "metrics.csv"  # a model alone writes to the run's folder
            if not source.exists():
                raise SystemExit(f"{folder / member} has no metrics.csv; run the sweep again")
            frames[member] = pd.read_csv(source, dtype=str)
        rows = pd.concat(frames, names=["member"]).reset_index("member")
        target = results() / folder.name
        with disk.writing(target, "metrics.csv"):
            disk.replace(target / "metrics.csv", lambda file, rows=rows: rows.to_csv(file, index=False))
            disk.write_json(target / "summary.json", kept)
        print(target.relative_to(ROOT))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a document is out of date")
    parser.add_argument("command", nargs="?", choices=("keep",), help="what to do with these runs")
    parser.add_argument("folders", nargs="*", help="folders of runs")
    arguments = parser.parse_args(argv)
    if arguments.command:
        if not arguments.folders:
            parser.error("keep needs the folder of a run, such as results/runs/NAME")
        return keep(arguments.folders)
    report.write_documents(ROOT, documents(), KINDS, arguments.check, "python -m addition.report")
    if not arguments.check:
        draw()


if __name__ == "__main__":
    main()
