"""Trains one model; the log's commands with its flags and defaults.

python -m addition.train --run-name repro_456_s43 --pos-rank 3 --qkv-rank 3 --attn-out-rank 2 --ffn-rank 3 \\
  --use-rmsnorm --tie-qkv shareA_tieKV --train-steps 54000 --seed 43
"""

import sys
from dataclasses import replace
from pathlib import Path

import tyro

from addition.training import RELIABLE, Settings, check, default_name, train


def parse(flags, description, argv=None):
    """Flags from the command line; a wrong value is one clear line."""
    try:
        words = " ".join(sys.argv[1:] if argv is None else argv).replace("=", " ").split()
        named = "--preset reliable" in " ".join(words)
        default = replace(flags(), preset="reliable", **RELIABLE) if named else flags()
        description = (description or "").replace("\n", "\n ")  # tyro keeps indented lines apart
        options = tyro.cli(flags, args=argv, default=default, description=description)
        check(options)
        return options
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def main(argv=None):
    options = parse(Settings, __doc__, argv)
    folder = Path(options.runs) / (options.run_name or default_name(options))
    summary = train([options], [folder.name], folder)[folder.name]
    best = f"best {summary['best_val_exact']:.4f} at step {summary['best_step']}"
    print(f"{best}, {summary['errors_in_100000']} errors in 100,000; results in {folder}")
    return summary


if __name__ == "__main__":
    main(sys.argv[1:])
