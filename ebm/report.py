"""Tables and plots of this folder's documents, made from results/ebm/ and results/ours/.

python -m ebm.report                          rewrite them in place
python -m ebm.report --check                  change nothing; fail when a document does not match
python -m ebm.report keep runs/ebm/NAME ...   copy the evidence of runs: config, metrics, summary, evaluations, study
python -m ebm.report ship runs/ours/NAME      make its weights those that ebm.solve uses by default

The lines between `<!-- report KIND WORDS -->` and `<!-- end -->` of a document are generated. Kinds: arms, carried,
energies, questions, choices, collapse, study, solver, proof, descents, compute. A run that diverged counts in none but
collapse. ebm/compute.png is drawn from results/ebm/compute.json.
"""

import shutil
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import insights
import report as of_root
from ebm import interpret
from ebm import ours as energy
from ebm.evaluate import CHOICES, METRICS, percent, share
from ebm.run import COLLAPSED
from plumbing import disk

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("ebm/README.md", "ebm/EXPERIMENTS.md")
FORWARD = "evaluation-forward.json"  # without Langevin, on more puzzles
ENERGIES = {  # of Langevin: the evaluation that has it
    "consistency (run 4)": "evaluation.json", "norm (runs 1-3)": "evaluation-norm.json",
    "penalty (the rules alone)": "evaluation-penalty.json",
}  # fmt: skip
EVALUATIONS = (*ENERGIES.values(), "evaluation-true-noise.json", FORWARD, "proof.json")
NETWORKS = {  # of the picture: label, colour
    "ours": ("ebm/ours.py", "tab:red"), "exp_iterate": ("exp_iterate.py", "tab:blue"),
    "exp_speedrun": ("exp_iterate.py", "tab:blue"),  # its name when this was measured
    "exp_cosine_no_sam": ("exp_cosine_no_sam.py", "tab:green"), "ebm": ("the log's energy model", "0.4"),
}  # fmt: skip


def results(family="ebm"):
    return ROOT / "results" / family


def runs(arm, family="ebm", diverged=False):
    """{seed: folder} of the kept runs of an arm: those that came to their end, or those that diverged."""
    found, configs = {}, {}
    for path in sorted(results(family).glob(f"{arm}-seed*/summary.json")):
        seed = int(path.parent.name.rpartition("-seed")[2])
        if bool(disk.read_json(path).get("diverged_at")) == diverged:
            found[seed] = path.parent
        config = disk.read_json(path.with_name("config.json")) or {}
        configs[seed] = {name: value for name, value in config.items() if name not in of_root.FREE}
    if odd := [seed for seed in configs if configs[seed] != configs[min(configs)]]:
        raise SystemExit(
            f"results/{family}: {arm}-seed{odd[0]} has other settings than {arm}-seed{min(configs)}, so they must not "
            "be averaged; run one of them again, or give it another name"
        )
    return found


def evaluations(arm, name="evaluation.json"):
    """{seed: evaluation}"""
    found = {seed: disk.read_json(folder / name) for seed, folder in runs(arm).items()}
    return {seed: evaluation for seed, evaluation in found.items() if evaluation}


def shares(arm, column, metric="cells", name="evaluation.json"):
    """A share by seed; column and metric as ebm.evaluate calls them."""
    found = evaluations(arm, name).items()
    return pd.Series({seed: each["columns"][column]["all"][metric]["share"] for seed, each in found}, dtype=float)


# ---------------------------------------------------------------- the blocks


def arms(*names):
    """A row for each arm: every column, the mean of its seeds."""
    columns = ("z = 0", "z random", "Langevin", "oracle")
    head = ["arm", "seeds", *(f"{c}{' (sees the answer)' * (c == 'oracle')}" for c in columns)]
    head += [f"{METRICS['groups']}: z = 0", "Langevin", f"{METRICS['puzzles']}: z = 0", "Langevin"]
    rows = []
    for name in names:
        found = [shares(name, column) for column in columns]
        lost = runs(name, diverged=True)
        if not has_z(name):
            found[-1] = pd.Series(dtype=float)  # its z is noise, so nothing sees the answer
        found += [shares(name, column, metric) for metric in ("groups", "puzzles") for column in ("z = 0", "Langevin")]
        figures = [of_root.spread(values) for values in found] if len(found[0]) else ["not run", *[""] * 7]
        rows.append([f"`{name}`", f"{len(found[0])}{f', {len(lost)} diverged' * bool(lost)}", *figures])
    return of_root.table(head, rows)


def has_z(arm):
    """Whether this arm computes z from the solution."""
    return all((disk.read_json(folder / "config.json") or {}).get("z_encoder", True) for folder in runs(arm).values())


def carried(*names):
    """What z carries: blanks right with the z of the puzzle's own solution, and with another's."""
    rows = []
    for name in filter(has_z, names):
        own, other, none = (shares(name, c, name=FORWARD) for c in ("oracle", "z of another", "z = 0"))
        spreads = pd.Series({seed: each["spread"]["trained"]["z"] for seed, each in evaluations(name, FORWARD).items()})
        rows.append([
            f"`{name}`", len(own) or "not run", *(of_root.spread(values) for values in (none, other, own)),
            *contrast(own, other)[:2], ", ".join(f"{value:.2g}" for value in spreads),
        ])  # fmt: skip
    head = ["arm", "seeds", "z = 0", "z of another puzzle", "z of the solution",
            "the last less that of another, by seed", "mean [95 %]", "z varies by"]  # fmt: skip
    return of_root.table(head, rows)


def energies(arm):
    """Langevin along each of the log's energies, against z = 0."""
    rows = []
    for label, name in ENERGIES.items():
        langevin, zero = (shares(arm, column, name=name) for column in ("Langevin", "z = 0"))
        lengths = pd.Series(
            {seed: each["states"]["Langevin"]["norm of z"] for seed, each in evaluations(arm, name).items()}
        )
        moved = lengths.mean() if len(lengths) else float("nan")
        rows.append([label, len(langevin) or "not run", of_root.spread(langevin), *contrast(langevin, zero)[:2],
                     f"{moved:.2f}" if moved == moved else "-"])  # fmt: skip
    head = ["energy", "seeds", "Langevin: blanks right", "less z = 0, by seed", "mean [95 %]", "length of z at the end"]
    return of_root.table(head, rows)


def contrast(better, worse, chance=of_root.CHANCE):
    """The difference in points by seed, its mean and Student's 95 % interval. Where both are below `chance`, neither
    knows anything and the difference says nothing."""
    points = 100 * (better - worse).dropna()
    if len(points) < 2:
        return [", ".join(f"{p:+.1f}" for p in points) or "not run", "-", "-"]
    low, high = insights.interval(points.tolist())
    verdict = "yes" if low > 0 else "no, it harms" if high < 0 else "not shown"
    if max(better.mean(), worse.mean()) < chance:
        verdict = "not shown: both are at chance"
    by_seed = ", ".join(f"{p:+.1f}" for p in points)
    return [by_seed, f"{points.mean():+.1f} [{low:+.1f}, {high:+.1f}]", verdict]


def questions():
    """The log's claims, each as a difference of two arms with the same seeds on the same puzzles."""
    loud = {"name": "evaluation-true-noise.json"}
    groups = lambda arm, column: shares(arm, column, "groups")  # noqa: E731
    asked = [
        ("Does Langevin beat z = 0?", shares("base", "Langevin"), shares("base", "z = 0")),
        ("... in rows, columns and boxes right?", groups("base", "Langevin"), groups("base", "z = 0"), 0.0),
        ("... and without unit norm?", shares("no-unit-norm", "Langevin"), shares("no-unit-norm", "z = 0")),
        ("Is true Langevin noise better?", shares("base", "Langevin", **loud), shares("base", "Langevin")),
        ("Does the constraint loss help z = 0?", shares("base", "z = 0"), shares("no-constraint", "z = 0")),
        ("... in rows, columns and boxes right?", groups("base", "z = 0"), groups("no-constraint", "z = 0"), 0.0),
        ("Does the unit norm of z help z = 0?", shares("base", "z = 0"), shares("no-unit-norm", "z = 0")),
        ("... and Langevin?", shares("base", "Langevin"), shares("no-unit-norm", "Langevin")),
        ("Does a trained input weight of the target help?", shares("target-trained", "z = 0"), shares("base", "z = 0")),
        (
            "Does VICReg on the context, not on the prediction, help?",
            shares("base", "z = 0"),
            shares("wrong-tensor", "z = 0"),
        ),
        ("Does the z of the solution help, where it is known?", shares("base", "oracle"), shares("base", "z = 0")),
    ]
    rows = [(question, *contrast(*compared)) for question, *compared in asked]
    return of_root.table(["question", "points, by seed", "mean [95 %]", "answer"], rows)


def choices(arm):
    """How to choose among the chains of Langevin, and among as many random z as cost the same: means of the seeds."""
    rows = []
    for way, label in {"Langevin": "chains of Langevin", "decodes": "random z, no energy"}.items():
        for choice in (*CHOICES, "oracle"):
            column = f"{way}, {choice}"
            if any(column in evaluation["columns"] for evaluation in evaluations(arm).values()):
                named = CHOICES.get(choice, "the best one (sees the answer)")
                figures = [of_root.spread(shares(arm, column, metric)) for metric in METRICS]
                rows.append([label, named, *figures])
    return of_root.table(["among", "choice", *METRICS.values()], rows) if rows else ["not run"]


def collapse(*names):
    """How far the encoders' vectors differ between puzzles, at the validation where least and at the end."""
    spreads = {"std_context": "z_context", "std_target": "z_target"}
    whens = ("untrained", "least", "end")
    head = ["arm", "seed", *(f"{z}: {when}" for z in spreads.values() for when in whens), "energy", "note"]
    rows = []
    for name in names:
        every = runs(name) | runs(name, diverged=True)
        for seed, folder in sorted(every.items()):
            summary, path = disk.read_json(folder / "summary.json"), folder / "metrics.csv"
            metrics = pd.read_csv(path) if path.exists() else pd.DataFrame(index=[0])  # it may diverge before a row
            metrics = metrics.reindex(columns=[*spreads, "energy"]).ffill()
            least, end = ([f"{v:.2g}" if v == v else "-" for v in row] for row in (metrics.min(), metrics.iloc[-1]))
            start = (disk.read_json(folder / FORWARD) or {}).get("spread", {}).get("untrained", {})
            start = [f"{start[key]:.2g}" if key in start else "-" for key in ("context", "target")]
            low = [name for column, name in spreads.items() if (metrics[column] < COLLAPSED).any()]
            note = f"diverged at step {summary['diverged_at']}" if summary.get("diverged_at") else ""
            note = note or (f"{' and '.join(low)} below {COLLAPSED:g}" if low else "no collapse")
            rows.append([f"`{name}`", seed, start[0], least[0], end[0], start[1], least[1], *end[1:], note])
        if not every:
            rows.append([f"`{name}`", "not run", *[""] * 8])
    return of_root.table(head, rows)


def study(name):
    """What ebm.interpret printed of a run."""
    found = disk.read_json(results() / name / "interpret.json")
    return ["```", *interpret.summary(found), "```"] if found else ["not run"]


def solver(name):
    """Puzzles solved by each seed of ours in its own test, after so many steps of descent."""
    found = {seed: disk.read_json(folder / "summary.json") for seed, folder in runs(name, "ours").items()}
    if not found:
        return ["not run"]
    counts = sorted({int(n) for summary in found.values() for n in summary["test"]})
    rows = []
    for seed, summary in found.items():
        for bucket, label in enumerate(("45 clues", "minimal")):
            tests = [summary["test"].get(str(n)) for n in counts]
            figures = [solved(test["solved"][bucket], test["puzzles"][bucket]) if test else "-" for test in tests]
            many = max(test["puzzles"][bucket] for test in tests if test)
            rows.append([seed, f"{many} {label}", *figures, f"{summary['seconds'] / 60:.0f}",
                         summary["hardware"].split(";")[0]])  # fmt: skip
    head = ["seed", "puzzles", *(f"{n} steps" for n in counts), "minutes of training", "hardware"]
    return of_root.table(head, rows)


def solved(right, of):
    """In % with Wilson's 95 % interval."""
    return percent(share([1] * right + [0] * (of - right), [1] * of))


def proofs(name):
    """{seed: what ebm.proof measured}"""
    found = {seed: disk.read_json(folder / "proof.json") for seed, folder in runs(name, "ours").items()}
    return {seed: each for seed, each in found.items() if each}


def pooled(figures):
    """The share of all seeds together, each puzzle of each seed a trial."""
    right, of = (sum(figure[key] for figure in figures) for key in ("right", "of"))
    return share([1] * right + [0] * (of - right), [1] * of)


def proof(name):
    """The five measurements of ebm.proof, by seed, then of all seeds together."""
    if not (found := proofs(name)):
        return ["not run"]
    rows = []
    for label in ("45 clues", "minimal"):
        for seed, each in found.items():
            rows.append([seed, label, f"{each['update']['largest_error']:.0e}", *measured([each[label]])])
        if len(found) > 1:
            rows.append(["all", label, "", *measured([each[label] for each in found.values()])])
    counts = list(next(iter(found.values()))["minimal"]["solved"])[-2:]
    head = ["seed", "puzzles", "update: largest error", "E falls at", "steps after convergence",
            "E(solution) < E(one cell changed), %", "AUROC of E", "solved / unsolved",
            *(f"solved after {n} steps, %" for n in counts)]  # fmt: skip
    return of_root.table(head, rows)


def measured(rows):
    """The cells of one row of that table, for the measurements of one seed or of several."""
    falls = {key: sum(row["falls"][key] for row in rows) for key in ("right", "of", "converged")}
    values = [row["auroc"]["value"] for row in rows if row["auroc"]["value"] is not None]
    values = [f"{value:.3f}" for value in sorted({min(values), max(values)})] if values else ["no data"]
    solved, unsolved = (sum(row["auroc"][key] for row in rows) for key in ("solved", "unsolved"))
    last = [[row["solved"][key] for row in rows] for key in list(rows[0]["solved"])[-2:]]
    return [
        f"{100 * falls['right'] / max(1, falls['of']):.2f} % of {falls['of']:,}", f"{falls['converged']:,}",
        percent(pooled([row["boards"] for row in rows])), "-".join(values), f"{solved} / {unsolved}",
        *(percent(pooled(figures)) for figures in last),
    ]  # fmt: skip


def descents(name):
    """How a descent is chosen out of several, and what one descent alone does: all seeds together."""
    found = proofs(name)
    if not found or not all("path" in each["minimal"] for each in found.values()):
        return ["not run"]
    rows = []
    for choice, label in (CHOICES | {"oracle": "the best one (sees the answer)"}).items():
        label = label.replace("chain", "descent")
        rows.append([label, *(percent(pooled([each[kind]["choices"][choice] for each in found.values()]))
                              for kind in ("45 clues", "minimal"))])  # fmt: skip
    for key, label in (("four times the steps", "one descent, gone on with for four times the steps"),
                       ("half the step", "one descent with half the step, twice as many steps")):  # fmt: skip
        rows.append([label, *(percent(pooled([each[kind]["path"][key] for each in found.values()]))
                              for kind in ("45 clues", "minimal"))])  # fmt: skip
    for at, label in (
        ("start", "at the start"),
        ("end", "at the end"),
        ("four times the steps", "after four times the steps"),
    ):
        lengths = [[each[kind]["path"]["gradient"][at] for each in found.values()] for kind in ("45 clues", "minimal")]
        rows.append([f"length of the gradient {label}", *(f"{sum(each) / len(each):.2g}" for each in lengths)])
    return of_root.table(
        ["solved, % [95 %]; the last three: median over puzzles, mean over seeds", "45 clues", "minimal"], rows
    )


def compute():
    """What ebm.compute measured: each network's cost of a step, and what it solves after so many."""
    if not (measured := disk.read_json(results() / "compute.json")):
        return ["not run"]
    kinds = list(measured["networks"][0]["kinds"])
    head = ["network", "minutes of training", "parameters", "steps", "MFLOP a minimal puzzle", "ms",
            *(f"{kind}: solved, %" for kind in kinds)]  # fmt: skip
    rows = []
    for network in measured["networks"]:
        last = max(network["kinds"][kinds[0]], key=int)
        ends = [network["kinds"][kind][last] for kind in kinds]
        seconds, parameters = network["seconds"], network["parameters"]
        rows.append([
            NETWORKS.get(network["experiment"], (network["experiment"],))[0],
            f"{seconds / 60:.0f}" if seconds else "-", f"{parameters:,}" if parameters else "-", last,
            f"{ends[-1]['flops'] / 1e6:,.0f}", f"{ends[-1]['milliseconds']:,.0f}",
            *(percent(end["solved"]) for end in ends),
        ])  # fmt: skip
    return of_root.table(head, rows)


def plot():
    """ebm/compute.png: puzzles solved over the matrix products spent on each."""
    if not (found := disk.read_json(results() / "compute.json")):
        return
    kinds = list(found["networks"][0]["kinds"])
    figure = Figure(figsize=(11.5, 4.2), layout="constrained")
    for axis, kind in zip(figure.subplots(1, len(kinds), sharey=True), kinds):
        for network in found["networks"]:
            label, colour = NETWORKS.get(network["experiment"], (network["experiment"], "tab:purple"))
            points = [network["kinds"][kind][n] for n in sorted(network["kinds"][kind], key=int)]
            flops = [point["flops"] / 1e6 for point in points]
            low, middle, high = ([100 * p["solved"][key] for p in points] for key in ("low", "share", "high"))
            axis.fill_between(flops, low, high, color=colour, alpha=0.15, lw=0)
            axis.plot(flops, middle, marker="o", ms=3.5, color=colour, label=label)
        axis.set(xscale="log", xlabel="MFLOP a puzzle", ylim=(-3, 103), title=kind)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("puzzles solved, %")
    figure.axes[0].legend(fontsize=8, frameon=False, loc="best")
    disk.replace(ROOT / "ebm/compute.png", lambda file: figure.savefig(file, dpi=120))


KINDS = {"arms": arms, "questions": questions, "collapse": collapse, "study": study, "solver": solver, "proof": proof}
KINDS |= {"compute": compute, "choices": choices, "carried": carried, "energies": energies, "descents": descents}

# ---------------------------------------------------------------- evidence and weights


def keep(folders):
    for folder in (Path(folder).resolve() for folder in folders):
        of_root.keep([folder], energy.Config if folder.parent.name == "ours" else None)
        target = results(folder.parent.name) / folder.name
        for path in [*(folder / name for name in EVALUATIONS), folder / "interpret" / "interpret.json"]:
            if path.exists():
                shutil.copy2(path, target)


def ship(folder):
    of_root.ship(folder, "ebm.pt")


def main(argv=None):
    arguments = of_root.command_line(__doc__, "runs/ours/full-seed0", {"keep": keep, "ship": ship}, argv)
    if not arguments.command:
        of_root.write_documents(ROOT, DOCUMENTS, KINDS, arguments.check, "python -m ebm.report")
        if not arguments.check:
            plot()


if __name__ == "__main__":
    main()
