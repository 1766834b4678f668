"""Is a run slow, or misled? Validation loss of several runs over their steps, and over the sum of their learning rates.

python -m ep_c512.lr_overlay runs/ep_c512/A runs/ep_c512/B --output results/ep_c512/overlay.json

The sum stands for the length of Adam's path. A run that needs more steps but no more path has a rate that is too low;
one that needs more path goes in other directions.
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ep_c512 import compare
from plumbing import disk


def curve(folder):
    """DataFrame of a run: step, the sum of its rates up to there, validation loss."""
    try:
        rows = pd.read_csv(Path(folder) / "metrics.csv")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{Path(folder) / 'metrics.csv'} cannot be read ({error}); give a run's folder") from None
    if not {"step", "lr"} <= set(rows):
        raise SystemExit(f"{Path(folder) / 'metrics.csv'} holds no lr; give a run of ep_c512.train")
    rows = rows.reindex(columns=["step", "lr", "validation"])  # a run that ended early has no validation
    known = rows[["step", "lr"]].dropna()
    steps = known["step"].diff().fillna(known["step"])
    rows = rows.merge(pd.DataFrame({"step": known["step"], "path": (known["lr"] * steps).cumsum()}), "left", "step")
    return rows[["step", "path", "validation"]].dropna()


def needed(curve, column, level):
    """Where a curve first is at this loss, linear between its points; None where it is not."""
    below = curve[curve["validation"] <= level]
    if below.empty:
        return None
    at = curve.index.get_loc(below.index[0])
    if at == 0:
        return float(curve.iloc[0][column])
    one, two = curve.iloc[at - 1], curve.iloc[at]
    share = (one["validation"] - level) / (one["validation"] - two["validation"])
    return float(one[column] + share * (two[column] - one[column]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of runs; the first is what the others are compared with")
    parser.add_argument("--output", required=True, help="a .json file; a plot of the same name is drawn beside it")
    options = parser.parse_args(argv)
    if problem := disk.wrong_json(options.output):
        raise SystemExit(f"error: {problem}")
    curves = {Path(folder).name: curve(folder) for folder in options.runs}
    first = next(iter(curves.values()))
    levels = sorted(first["validation"].unique(), reverse=True)
    head = ["run", "loss", "steps", "path", "steps over the first run's", "path over the first run's"]
    rows = []
    for name, found in curves.items():
        for level in levels:
            there = [needed(found, column, level) for column in ("step", "path")]
            own = [needed(first, column, level) for column in ("step", "path")]
            ratios = [a / b if a is not None and b else None for a, b in zip(there, own)]
            rows.append([name, float(level), *there, *ratios])
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2, sharey=True), ("step", "path")):
        for name, found in curves.items():
            axes.plot(found[column], found["validation"], ".-", label=name)
        axes.set(xlabel="step" if column == "step" else "sum of the learning rates", ylabel="validation cross-entropy")
        axes.legend(fontsize=8)
    disk.say(compare.table(head, rows))
    path = Path(options.output)
    disk.write_json(path, {"runs": list(curves), "head": head, "rows": rows})
    figure.savefig(path.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
