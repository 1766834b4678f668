"""Many seeds at once: the tool for success rates.

python -m addition.sweep --run-name repro_456 --seeds 0-9 --pos-rank 3 --qkv-rank 3 --attn-out-rank 2 --ffn-rank 3 \\
  --use-rmsnorm --tie-qkv shareA_tieKV --train-steps 54000
python -m addition.sweep ... --seeds 0-7 --grid lr=0.01,0.02 init_std=0.02,0.38   every combination, with every seed

All models train together in one process, each on its own data; each result is that of its single run. Any flag of
addition.train may vary in the grid but model sizes and --train-steps, --batch-size and the evaluation's.
"""

import itertools
import re
import sys
from dataclasses import dataclass, fields, replace

from addition.model import count
from addition.train import parse
from addition.training import Run, Settings, check, train

MOST_SEEDS = 10_000  # in one range
NOT_IN_A_GRID = {  # models that train together have all of these in common but the seed
    "model", "train_steps", "batch_size", "val_size", "test_size", "eval_batch_size", "eval_interval", "optimizer",
    "preset", "seed", "name", "device", "engine", "wandb_mode", "save_every", "runs",
}  # fmt: skip


@dataclass(frozen=True)
class Sweep(Settings):
    seeds: tuple[str, ...] = ("0-7",)  # numbers and ranges: 0-7, or 41 100 200-205
    grid: tuple[str, ...] = ()  # NAME=VALUE,VALUE ...


def numbers(words):
    found = []
    for word in words:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not low <= high < low + MOST_SEEDS:
            raise ValueError(f"--seeds: {word!r}; expected a number or a range of at most {MOST_SEEDS:,}, such as 0-7")
        found += range(low, high + 1)
    if not found:
        raise ValueError("--seeds is empty; expected numbers and ranges, such as 0-7 or 41 100")
    return list(dict.fromkeys(found))


def parse_grid(words):
    """'lr=0.01,0.02' -> {"lr": [0.01, 0.02]}; the values of a text such as the curriculum are separated by ;"""
    defaults = {f.name: f.default for f in fields(Settings) if f.name not in NOT_IN_A_GRID and f.type is not bool}
    found = {}
    for word in words:
        name, _, values = word.partition("=")
        name = name.replace("-", "_")
        if name not in defaults or not values:
            known = ", ".join(sorted(defaults))
            raise ValueError(f"--grid: {word!r} must read NAME=VALUE,VALUE with NAME one of {known}")
        if name in found:
            raise ValueError(f"--grid: {name} is given twice; write {name}=VALUE,VALUE")
        kind = type(defaults[name])
        try:
            chosen = [kind(value) for value in values.split(";" if kind is str else ",")]
        except ValueError:
            raise ValueError(f"--grid: {word!r}: {name} needs values of type {kind.__name__}") from None
        found[name] = list(dict.fromkeys(chosen))
    return found


def expand(settings, seeds, grid):
    """Every combination of the grid's values, each with every seed: names and settings."""
    names, found = [], []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values))
        label = "".join(f"{key}{value}-".replace(":", ".").replace(",", "_") for key, value in chosen.items())
        for seed in seeds:
            names.append(f"{label}seed{seed}")
            found.append(replace(settings, seed=seed, **chosen))
    return names, found


def main(argv=None, flags=Sweep, tool="sweep"):
    argv = sys.argv[1:] if argv is None else argv
    options = parse(flags, sys.modules[flags.__module__].__doc__, argv)
    try:
        names, settings = expand(options, numbers(options.seeds), parse_grid(options.grid))
        for s in settings:
            check(s)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    run = Run(options, tool, options.name or f"sweep-{count(options.model)}p", argv)
    results = train(settings, names, run)
    for name, r in results.items():
        found = f"best {r['best_val_exact']:.4f} at {r['best_step']}, 99 % at {r['step_at_99']}"
        print(f"{name:30s} {found}, {r['errors_in_100000']} errors in 100,000")
    good = sum(r["errors_in_100000"] <= 1000 for r in results.values())
    print(f"{good} of {len(names)} at 99 %; results in {run.folder}")
    return results


if __name__ == "__main__":
    main()
