"""Tables and plots of this folder's documents, made from results/addition/.

python -m addition.report                              write them anew, in place
python -m addition.report --check                      change nothing; fail when a document does not match
python -m addition.report keep results/runs/NAME ...   copy the evidence of sweeps and runs, without checkpoints

A document holds `<!-- report KIND NAME ... -->` and `<!-- end -->`; what stands between them is written here. Kinds:
sweep (a row a configuration; A+B pools the seeds of both), seeds (a row a seed), command, attention, speed and
verified.
"""

import argparse
import csv
import io
import itertools
import json
import math
import shlex
import statistics
import textwrap
from dataclasses import asdict
from pathlib import Path

import report
from addition import plots
from addition.data import phases
from addition.plots import configuration
from addition.training import Settings
from plumbing import disk

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("addition/README.md", "addition/EXPERIMENTS.md")
GUESSED = 0.25  # a digit that is right this often at most says nothing about the sum
GOOD, BETTER = 1_000, 100  # errors in 100,000: 99 % and 99.9 %
# How and where a run is computed; seeds that differ in these only are of one configuration.
APART = {"seed", "run_name", "runs", "device", "engine", "eval_batch_size", "wandb", "wandb_mode", "resume",
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
    """What a finished sweep or single run left in its folder: {"command", "members"}; None if nothing."""
    if (folder / "sweep.json").exists():
        return json.loads((folder / "sweep.json").read_text())
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text())
        return {"members": {f"seed{summary['seed']}": summary}}
    return None


def split(entry):
    """The folders of an entry: A+B is two."""
    return entry.split("+")


def members(entry):
    """{configuration: {member's path: summary}} of all folders of an entry; empty if one of them is not there."""
    found = {}
    for name in split(entry):
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
    (first, one), *others = pool.items()
    seen = {one["seed"]: first}
    for path, summary in others:
        both = (one["config"].keys() & summary["config"].keys()) - APART
        wrong = sorted(name for name in both if one["config"][name] != summary["config"][name])
        if wrong:
            raise SystemExit(
                f"{path} and {first} differ in {', '.join(wrong)}; give them rows of their own, without the +"
            )
        if summary["seed"] in seen:
            raise SystemExit(f"{path} and {seen[summary['seed']]} are the same seed; leave one of them out")
        seen[summary["seed"]] = path


def number(value):
    return "-" if value is None else f"{value:,.1f}".removesuffix(".0")


def rate(summaries, most):
    """How many seeds make at most so many errors, with the interval."""
    good, total = sum(s["errors_in_100000"] <= most for s in summaries), len(summaries)
    low, high = wilson(good, total)
    return f"{good} of {total} ({100 * good / total:.0f} %, {100 * low:.0f}-{100 * high:.0f} %)"


def seconds(entry):
    """Of a seed: the time of the sweeps, shared among the models that trained together."""
    sweeps = [load(results() / name)["members"].values() for name in split(entry)]
    return sum(max(s["seconds"] for s in sweep) for sweep in sweeps) / sum(len(sweep) for sweep in sweeps)


def title(entry, label, entries):
    return " ".join(part for part in (entry if len(entries) > 1 or not label else "", label) if part)


def sweep(*entries):
    """One row a configuration."""
    lines = [
        "| configuration | parameters | steps | seeds at 99 % | seeds at 99.9 % | seeds with 0 errors "
        "| median steps to 99 % | errors in 100,000 (best, median) | seconds a seed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        found = members(entry)
        if not found:
            lines.append(f"| `{entry}` | not run |" + " |" * 7)
        for label, pool in found.items():
            runs = list(pool.values())
            errors = [s["errors_in_100000"] for s in runs]
            arrivals = [s["step_at_99"] for s in runs if s["step_at_99"] is not None]
            cells = [
                f"`{title(entry, label, entries)}`",
                number(runs[0]["parameters"]),
                number(runs[0]["config"]["train_steps"]),
                rate(runs, GOOD),
                rate(runs, BETTER),
                rate(runs, 0),
                number(statistics.median(arrivals) if arrivals else None),
                f"{number(min(errors))}, {number(statistics.median(errors))}",
                number(seconds(entry)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    note = (
        "In brackets the share and its 95 % interval (Wilson). Median steps to 99 %: on validation, of the seeds that "
        "got there. Seconds a seed: the whole sweep's time divided by the models that trained together."
    )
    return [*lines, "", note]


def seeds(*entries):
    """One row a seed."""
    lines = ["| configuration | seed | best step | step at 99 % | errors in 100,000 |", "|---|---|---|---|---|"]
    for entry in entries:
        found = members(entry)
        if not found:
            lines.append(f"| `{entry}` | not run |" + " |" * 3)
        for label, pool in found.items():
            for s in sorted(pool.values(), key=lambda s: s["seed"]):
                cells = [s["best_step"], s["step_at_99"], s["errors_in_100000"]]
                lines.append(f"| `{title(entry, label, entries)}` | {s['seed']} | {' | '.join(map(number, cells))} |")
    return lines


def single(summary):
    """The command of a single run, from its config: what differs from the defaults."""
    given, usual = (
        {**config.pop("model"), **config} for config in (json.loads(json.dumps(summary["config"])), asdict(Settings()))
    )
    words = []
    for name, value in given.items():
        if value == usual.get(name) or name in ("resume", "runs"):
            continue
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return "addition.train", words


def command(*entries):
    """What was typed, on what and at which commit."""
    lines = ["```"]
    for name in (name for entry in entries for name in split(entry)):
        kept = load(results() / name)
        if kept is None:
            lines.append(f"# {name}: not run")
            continue
        summaries = list(kept["members"].values())
        if "command" in kept:
            module, words = kept.get("module", "addition.sweep"), shlex.split(kept["command"])
        else:
            module, words = single(summaries[0])
        typed = f"python -m {module} {shlex.join(words)}"
        wrapped = textwrap.wrap(typed, 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        hardware = " and ".join(dict.fromkeys(s["hardware"] for s in summaries))
        commits = ", ".join(dict.fromkeys(s["commit"] for s in summaries))
        lines += [*" \\\n".join(wrapped).splitlines(), f"# {hardware}; commit {commits}"]
    return [*lines, "```"]


def speed(name):
    """What a step costs, from `python -m addition.bench`."""
    path = results() / name / "summary.json"
    if not path.exists():
        return ["not run"]
    kept = json.loads(path.read_text())
    lines = [
        f"Milliseconds a step of {kept['batch']} sums and a model, median of turns; {kept['hardware']}",
        "",
        "| parameters | plain autograd | compiled | 16 in a sweep | sweep against plain | against compiled "
        "| work a step | share of the matrix rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for m in kept["models"]:
        lines.append(
            f"| {m['parameters']:,} | {m['plain_ms']:.1f} | {m['compiled_ms']:.1f} | {m['sweep_ms']:.2f} "
            f"| {m['sweep_against_plain']:.1f} x | {m['sweep_against_compiled']:.1f} x "
            f"| {1000 * m['gflop_a_step']:.0f} MFLOP | {100 * m['share_of_matrix_rate']:.0f} % |"
        )
    return lines


def attention(name):
    """Where models look, from `python -m addition.attention`: those that reach 99 %, then the others."""
    path = results() / name / "summary.json"
    if not path.exists():
        return ["not run"]
    groups = {}
    for found in json.loads(path.read_text())["checkpoints"]:
        folder, member = Path(found["path"]).parts[-4:-2]
        summary = load(results() / folder)["members"][member]
        groups.setdefault((folder, summary["errors_in_100000"] > GOOD), []).append(found)
    lines = [
        "| sweep | seeds | own two digits | the two before | digits guessed, median of the eleven |",
        "|---|---|---|---|---|",
    ]
    for (folder, failed), models in groups.items():
        own, before = ([m[key] for m in models] for key in ("own", "before"))
        guessed = statistics.median(sum(value < GUESSED for value in m["digits_right"]) for m in models)
        lines.append(
            f"| `{folder}` | {len(models)} {'below' if failed else 'at'} 99 % | {min(own):.2f}-{max(own):.2f} "
            f"| {min(before):.3f}-{max(before):.3f} | {guessed:g} |"
        )
    return lines


def verified(name):
    """The exported files that are shipped, as `python -m addition.verify` found them."""
    paths = sorted((results() / name).glob("*.json"), key=lambda path: int(path.stem.removesuffix("p")))
    if not paths:
        return ["not run"]
    lines = [
        "| file | parameters | edge cases | public protocol, 10,010 pairs | long carries |",
        "|---|---|---|---|---|",
    ]
    for path in paths:
        v = json.loads(path.read_text())
        failed = v["edge_cases"] - len(v["edge_cases_failed"])
        lines.append(
            f"| `{v['path']}` | {v['parameters']} | {failed} of {v['edge_cases']} | {100 * v['public_exact']:.2f} % "
            f"| {v['carry_errors']} errors in {v['carry_pairs']:,} |"
        )
    return lines


KINDS = {kind.__name__: kind for kind in (sweep, seeds, command, attention, speed, verified)}


def documents():
    return {name: (ROOT / name).read_text() for name in DOCUMENTS if (ROOT / name).exists()}


def points():
    """What accuracy.png shows: the sweeps of the README's tables; of a grid its best combination."""
    shown = documents().get("addition/README.md", "")
    words = [match[2].split() for match in report.BLOCK.finditer(shown)]
    named = itertools.chain.from_iterable(names for kind, *names in words if kind == "sweep")
    entries = [entry for entry in dict.fromkeys(named) if members(entry)]
    found = []
    for entry in entries:
        choices = {}
        for label, pool in members(entry).items():
            errors = [s["errors_in_100000"] for s in pool.values()]
            size = next(iter(pool.values()))["parameters"]
            choices[label] = {"name": f"{entry} {label}".strip(), "parameters": size, "errors": errors}
        found.append(min(choices.values(), key=lambda p: (-sum(e <= GOOD for e in p["errors"]) / len(p["errors"]),
                                                          statistics.median(p["errors"]))))  # fmt: skip
    return found


def draw():
    for folder in sorted(results().glob("*")):
        if not (folder / "sweep.json").exists():
            continue
        rows, kept = {}, load(folder)["members"]
        for row in disk.read_rows(folder / "metrics.csv"):
            rows.setdefault(row["member"], []).append(row)
        first = next(iter(kept.values()))
        head = f"{folder.name}: {first['parameters']:,} parameters, {first['config']['train_steps']:,} steps"
        curricula = {s["config"]["curriculum"] for s in kept.values()}
        curriculum = phases(first["config"]["curriculum"]) if len(curricula) == 1 else ()
        both = {name: (summary, rows.get(name, [])) for name, summary in kept.items()}
        plots.seeds_plot(folder / "seeds.png", head, both, curriculum)
    if found := points():
        plots.accuracy_plot(results() / "accuracy.png", found)


def keep(folders):
    for folder in (Path(folder).resolve() for folder in folders):
        kept = load(folder)
        if kept is None:
            raise SystemExit(f"{folder} has neither sweep.json nor summary.json: did it finish? (--resume goes on)")
        rows = []
        for member in kept["members"]:
            source = folder / member / "metrics.csv"
            source = source if source.exists() else folder / "metrics.csv"  # a model alone writes to the run's folder
            if not source.exists():
                raise SystemExit(f"{folder / member} has no metrics.csv; run the sweep again")
            rows += [{"member": member} | row for row in disk.read_rows(source)]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")  # a curriculum in a member's name has commas
        writer.writeheader()
        writer.writerows(rows)
        target = results() / folder.name
        target.mkdir(parents=True, exist_ok=True)
        name = "sweep.json" if (folder / "sweep.json").exists() else "summary.json"
        disk.replace(target / "metrics.csv", lambda file, text=text: file.write(text.getvalue().encode()))
        disk.write_json(target / name, json.loads((folder / name).read_text()))
        print(target.relative_to(ROOT))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a document is out of date")
    parser.add_argument("command", nargs="?", choices=("keep",), help="what to do with these runs")
    parser.add_argument("folders", nargs="*", help="folders of runs")
    arguments = parser.parse_args(argv)
    if arguments.command:
        if not arguments.folders:
            parser.error("keep: which run? give its folder, as in results/runs/NAME")
        return keep(arguments.folders)
    report.write_documents(ROOT, documents(), KINDS, arguments.check, "python -m addition.report")
    if not arguments.check:
        draw()


if __name__ == "__main__":
    main()
