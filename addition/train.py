"""Trains one model; the log's commands with its flags and defaults.

python -m addition.train --run-name repro_456_s43 --pos-rank 3 --qkv-rank 3 --attn-out-rank 2 --ffn-rank 3 \\
  --use-rmsnorm --tie-qkv shareA_tieKV --train-steps 54000 --seed 43
"""

import argparse
import sys
from dataclasses import replace

import tyro

from addition.model import count
from addition.training import RELIABLE, Run, Settings, check, train


def parse(flags, description, argv):
    """Flags from the command line; a wrong value is one clear line."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    chosen, _ = first.parse_known_args(argv)
    try:
        default = replace(flags(), **RELIABLE) if chosen.preset == "reliable" else flags()
        description = description.replace("\n", "\n ")  # tyro keeps the line breaks of indented lines
        options = tyro.cli(flags, args=argv, default=default, description=description)
        check(options)
        return options
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    options = parse(Settings, __doc__, argv)
    name = options.name or f"{count(options.model)}p-seed{options.seed}"
    run = Run(options, "train", name, argv)
    summary = train([options], [name], run)[name]
    best = f"best {summary['best_val_exact']:.4f} at step {summary['best_step']}"
    print(f"{best}, {summary['errors_in_100000']} errors in 100,000; results in {run.folder}")
    return summary


if __name__ == "__main__":
    main()
