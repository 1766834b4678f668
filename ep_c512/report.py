"""Tables and plots of this folder's documents, made from results/ep_c512/.

python -m ep_c512.report                            rewrite them in place
python -m ep_c512.report --check                    change nothing; fail when a document does not match
python -m ep_c512.report keep runs/ep_c512/NAME ... copy the evidence of runs: config, metrics, summary
python -m ep_c512.report winner PREFIX              print the flags lr and jr_max of the best cell of a grid

The lines between `<!-- report KIND WORDS -->` and `<!-- end -->` of a document are generated. Kinds: arms, differences,
round, grid. ep_c512/curves.png shows the arms of CURVES by step and by what they cost, ep_c512/rescue.png the grid of
scripts/bptt_rescue.sh.
"""

from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import insights
import report as of_root
from ep_c512 import compare, cost, train
from plumbing import disk

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("ep_c512/README.md", "ep_c512/EXPERIMENTS.md")
RESULTS = ROOT / "results" / "ep_c512"
CURVES = {"bp-lr5e-3": "0.5", "bptt": "tab:blue", "frozen": "tab:orange", "tracking": "tab:red",
          "recipe-bptt": "tab:cyan", "recipe": "tab:green", "two-phase": "tab:purple"}  # fmt: skip


def runs(arm):
    """{seed: (summary, config, folder)} of the kept runs of an arm, which must differ in nothing but their seed."""
    found = {}
    for path in sorted(RESULTS.glob(f"{arm}-seed*/summary.json")):
        folder = path.parent
        config = disk.read_json(folder / "config.json")
        found[int(folder.name.rpartition("-seed")[2])] = disk.read_json(path), config, folder
    settings = {
        seed: {k: v for k, v in each[1].items() if k not in of_root.FREE | {"warm"}} for seed, each in found.items()
    }
    if odd := [seed for seed in settings if settings[seed] != settings[min(settings)]]:
        raise SystemExit(
            f"results/ep_c512: {arm}-seed{odd[0]} has other settings than {arm}-seed{min(settings)}, so they must not "
            "be averaged; run one of them again, or give it another name"
        )
    return found


def step_cost(config):
    """FLOP of a step whose free phase settles at once, as nearly all do at mini."""
    return cost.flop(replace(config_of(config), refine=0))


def rows_of(folder):
    """The metrics of a run; of one that ended before its first row, none."""
    try:
        return pd.read_csv(folder / "metrics.csv")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return pd.DataFrame()


def first_phase(config):
    """(seconds, steps, FLOP) of the kept run that this one starts from; zeros where there is none"""
    folder = RESULTS / Path(config.get("warm") or "none").name
    summary, first = disk.read_json(folder / "summary.json"), disk.read_json(folder / "config.json")
    return (summary["seconds"], first["steps"], first["steps"] * step_cost(first)) if summary and first else (0, 0, 0)


def config_of(saved):
    known = {field.name for field in fields(train.Config)}
    return replace(train.Config(), **{name: value for name, value in saved.items() if name in known})


def validation(arm):
    """The last cross-entropy by seed; none of a run that was aborted or diverged."""
    return pd.Series({seed: each[0].get("validation") for seed, each in runs(arm).items()}, dtype=float)


def spread(values, form="{:.3f}"):
    count, values = len(values), values.dropna()
    if not len(values):
        return "-"
    if len(values) < count:
        form = f"{form} ({len(values)} of {count} seeds)"
        return form.format(values.mean())
    ends = f" ({form.format(values.min())}-{form.format(values.max())})" if values.nunique() > 1 else ""
    return form.format(values.mean()) + ends


def most(values, form):
    return form.format(values.max()) if values.notna().any() else "-"


def ended(summary):
    if summary.get("aborted_at"):
        return f"aborted at step {summary['aborted_at']}"
    return f"diverged at step {summary['diverged_at']}" if summary.get("diverged_at") else ""


def arms(*names):
    """A row for each arm: means of the seeds, extremes of what must not be exceeded."""
    head = ["arm", "seeds", "validation", "below the bigram", "largest residual", "largest change of a",
            "largest real part", "left out", "minutes", "did not end"]  # fmt: skip
    rows = []
    for name in names:
        found = [
            summary | {"seconds": summary["seconds"] + first_phase(config)[0]}
            for _, (summary, config, _) in sorted(runs(name).items())
        ]
        if not found:
            rows.append([f"`{name}`", "not run", *[""] * 8])
            continue
        table = pd.DataFrame(found).reindex(
            columns=["validation", "bigram", "residual_max", "change_max", "leading_max", "skipped", "seconds"]
        )
        table = table.apply(pd.to_numeric)
        lost = [text for summary in found if (text := ended(summary))]
        rows.append([
            f"`{name}`", len(found), spread(table["validation"]),
            spread(table["bigram"] - table["validation"], "{:.2f}"),
            *(most(table[name], form) for name, form in (
                ("residual_max", "{:.1e}"), ("change_max", "{:.1e}"), ("leading_max", "{:+.2f}"),
            )),
            f"{table['skipped'].sum():.0f}", f"{table['seconds'].mean() / 60:.0f}", ", ".join(lost),
        ])  # fmt: skip
    return of_root.table(head, rows)


def differences(*pairs):
    """Each `ONE/OTHER`: the validation loss of an arm minus that of another, by seed, with Student's interval."""
    rows = []
    for pair in pairs:
        one, other = pair.split("/")
        nats = (validation(one) - validation(other)).dropna()
        interval = "-"
        if len(nats) > 1:
            low, high = insights.interval(nats.tolist())
            interval = f"{nats.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
        shown = ", ".join(f"{n:+.3f} ({seed})" for seed, n in nats.items())
        rows.append([f"`{one}` - `{other}`", shown or "not run", interval])
    return of_root.table(["difference", "nats (seed)", "mean [95 %]"], rows)


def round_of(name):
    """The table that one of the rounds wrote."""
    if not (found := disk.read_json(RESULTS / f"{name}.json")):
        return ["not run"]
    lines = [*of_run(found), *table_of(found)]
    if parts := found.get("parts"):
        lines += ["", *table_of({"head": ["operation", "ms", "forces"], "rows": parts})]
    if "lengths" in found:
        lines += ["", *table_of(found["lengths"])]
    facts = [f"{key}: {compare.text(fact)}" for key, fact in found.get("facts", {}).items() if fact is not None]
    return [*lines, "", "; ".join(facts)] if facts else lines


def of_run(found):
    """What a round was computed of, and where."""
    words = [f"`{found['run']}` after {found['step']} steps"] if "run" in found else []
    if found.get("feedback", 1) != 1:
        words.append(f"feedback {found['feedback']:.2g}")
    if config := found.get("config"):
        names = ("step_size", "free_steps", "nudged_steps", "radius")
        words.append(", ".join(f"{name.replace('_', ' ')} {config[name]:g}" for name in names))
    words += [found["hardware"]] if "hardware" in found else []
    return ["; ".join(words), ""] if words else []


def table_of(found):
    return of_root.table(found["head"], [[compare.text(cell) for cell in row] for row in found["rows"]])


def plot():
    """ep_c512/curves.png"""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for arm, colour in CURVES.items():
        for number, (_, config, folder) in enumerate(runs(arm).values()):
            metrics = rows_of(folder).reindex(columns=["step", "loss", "validation"])
            _, steps, spent = first_phase(config)
            of_training = metrics["loss"].rolling(4, min_periods=1).mean()
            tested = metrics["validation"].notna()
            for axes, x in (
                (left, steps + metrics["step"]),
                (right, (spent + metrics["step"] * step_cost(config)) / 1e12),
            ):
                axes.plot(x, of_training, color=colour, alpha=0.35, linewidth=0.8)
                axes.plot(x[tested], metrics["validation"][tested], "o", color=colour, markersize=3.5, alpha=0.8,
                          label=arm if number == 0 else None)  # fmt: skip
    if not left.has_data():
        return
    left.set(xlabel="step", ylabel="cross-entropy: training (lines), validation (dots)", ylim=(0.4, 3))
    right.set(xlabel="TFLOP of matrix products", xscale="log")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    disk.replace(ROOT / "ep_c512/curves.png", lambda file: figure.savefig(file, dpi=120))


def plot_grid(prefix="rescue"):
    """ep_c512/rescue.png: a line for each greatest weight, a dot for each seed"""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    rows = [(*key, value) for key, arm in cells(prefix).items() for value in cell(arm)[0]]
    if not rows:
        return
    table = pd.DataFrame(rows, columns=["lr", "jr_max", "best"])
    for number, (most, part) in enumerate(table.groupby("jr_max")):
        axes.plot(part["lr"], part["best"], ".", color=f"C{number}")
        means = part.groupby("lr")["best"].mean()
        axes.plot(means.index, means, "-", color=f"C{number}", label=f"weight up to {most:g}")
    axes.set(xlabel="learning rate", ylabel="lowest validation cross-entropy", xscale="log")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    disk.replace(ROOT / "ep_c512/rescue.png", lambda file: figure.savefig(file, dpi=120))


def cells(prefix):
    """{(lr, jr_max): the arm's name} of a grid's kept runs, which are called PREFIX-lrX-jrY-seedZ"""
    found = {}
    for path in sorted(RESULTS.glob(f"{prefix}-lr*-jr*-seed*/config.json")):
        config = disk.read_json(path)
        found[config["lr"], config["jr_max"]] = path.parent.name.rpartition("-seed")[0]
    return dict(sorted(found.items()))


def cell(arm):
    """(lowest validation by seed, what ended badly) of a grid's cell"""
    found = [each[0] for _, each in sorted(runs(arm).items())]
    best = [summary["best"]["validation"] for summary in found if summary.get("best")]
    return best, [text for summary in found if (text := ended(summary))]


def grid(prefix):
    rows = []
    for (rate, most), arm in cells(prefix).items():
        best, lost = cell(arm)
        shown = ", ".join(f"{value:.3f}" for value in best) or "-"
        rows.append([f"{rate:g}", f"{most:g}", shown, f"{sum(best) / len(best):.3f}" if best else "-", ", ".join(lost)])
    head = ["learning rate", "greatest weight of the penalty", "lowest validation, by seed", "mean", "did not end"]
    return of_root.table(head, rows) if rows else ["not run"]


def winner(prefix):
    """The flags of the cell whose seeds all came to their end, at the lowest mean of their best validation."""
    ended_well = {key: cell(arm)[0] for key, arm in cells(prefix).items() if not cell(arm)[1]}
    means = {key: sum(best) / len(best) for key, best in ended_well.items() if best}
    if not means:
        raise SystemExit(f"results/ep_c512 has no {prefix}-lr*-jr* of which every seed came to its end")
    rate, most = min(means, key=means.get)
    print(f"--lr {rate:g} --jr-max {most:g}")


KINDS = {"arms": arms, "differences": differences, "round": round_of, "grid": grid}


def main(argv=None):
    arguments = of_root.command_line(__doc__, "runs/ep_c512/NAME", {"keep": of_root.keep, "winner": winner}, argv)
    if not arguments.command:
        of_root.write_documents(ROOT, DOCUMENTS, KINDS, arguments.check, "python -m ep_c512.report")
        if not arguments.check:
            plot()
            plot_grid()


if __name__ == "__main__":
    main()
