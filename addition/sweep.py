"""Many seeds at once: the tool for success rates.

python -m addition.sweep --run-name repro_456 --seeds 0-9 --pos-rank 3 --qkv-rank 3 --attn-out-rank 2 --ffn-rank 3 \\
  --use-rmsnorm --tie-qkv shareA_tieKV --train-steps 54000
python -m addition.sweep ... --seeds 0-7 --grid lr=0.01,0.02 init_std=0.02,0.38   every combination, with every seed

All models train together in one process, each on its own data; each result is that of its single run. Any flag of
addition.train may vary in the grid but model sizes and --train-steps, --batch-size and the evaluation's.
"""

import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from addition.training import SHARED, Settings, default_name, expand, train
from plumbing import disk


@dataclass(frozen=True)
class Sweep(Settings):
    seeds: tuple[str, ...] = ("0-7",)  # numbers and ranges: 0-7, or 41 100 200-205
    grid: tuple[str, ...] = ()  # NAME=VALUE,VALUE ...


def numbers(words):
    found = []
    for word in words:
        low, _, high = word.partition("-")
        if not low.isdigit() or (high and not high.isdigit()) or (high and int(high) < int(low)):
            raise ValueError(f"seeds: {word!r} is neither a number nor a range such as 0-7")
        found += range(int(low), int(high or low) + 1)
    return list(dict.fromkeys(found))


def parse_grid(words):
    kinds = {
        f.name: type(f.default)
        for f in fields(Settings)
        if f.name not in (*SHARED, "model", "seed", "device", "engine", "run_name")
    }
    found = {}
    for word in words:
        name, _, values = word.partition("=")
        name = name.replace("-", "_")
        if name not in kinds or not values:
            raise ValueError(f"grid: {word!r} must read NAME=VALUE,VALUE with NAME one of {', '.join(sorted(kinds))}")
        separator = ";" if kinds[name] is str else ","  # a curriculum has commas of its own
        try:
            found[name] = [kinds[name](value) for value in values.split(separator)]
        except ValueError:
            raise ValueError(f"grid: {word!r}: {name} needs values of type {kinds[name].__name__}") from None
    return found


def main(argv=None, flags=Sweep, module="addition.sweep"):
    from addition.train import parse

    options = parse(flags, sys.modules[flags.__module__].__doc__, argv)
    try:
        names, settings = expand(options, numbers(options.seeds), parse_grid(options.grid))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    folder = Path(options.runs) / (options.run_name or f"sweep-{default_name(options).rsplit('-', 1)[0]}")
    results = train(settings, names, folder)
    disk.write_json(
        folder / "sweep.json",
        {"module": module, "command": shlex.join(sys.argv[1:] if argv is None else argv), "members": results},
    )
    for name in names:
        r = results[name]
        found = f"best {r['best_val_exact']:.4f} at {r['best_step']}, 99 % at {r['step_at_99']}"
        print(f"{name:30s} {found}, {r['errors_in_100000']} errors in 100,000")
    good = sum(r["errors_in_100000"] <= 1000 for r in results.values())
    print(f"{good} of {len(names)} at 99 %; results in {folder}")
    return results


if __name__ == "__main__":
    main()
