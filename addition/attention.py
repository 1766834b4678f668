"""Attention weights of trained models: the evidence for "Why it works" in README.md.

python -m addition.attention CKPT ... --output results/addition/attention/summary.json

Measured on 2,000 uniform pairs, at the positions that predict the digits of 10^1 to 10^9 of the sum: the mean attention
weight on the two digits of the same power of ten ("own") and on the two of the next lower power ("before"). Also the
accuracy of every digit of the sum.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from addition.evaluate_checkpoints import load
from addition.train import DIGITS, answers, count, encode_pairs, uniform_pairs
from plumbing import disk

PAIRS = 2_000


@torch.no_grad()
def measure(model):
    """Mean attention weights, and the accuracy of each digit, given the right digits before it."""
    layout = model.config.layout
    rows = encode_pairs(uniform_pairs(2026, PAIRS), layout)
    _, q, k, _ = model.inputs(rows[:, : layout.length].long(), torch.arange(layout.length))
    ahead = torch.ones(layout.length, layout.length, dtype=torch.bool).triu(1)
    weights = (q @ k.mT).masked_fill(ahead, -torch.inf).softmax(-1).mean(0)[layout.first :]  # [queries, length]
    own = [(weights[i, layout.a[i]] + weights[i, layout.b[i]]).item() for i in range(1, DIGITS)]
    before = [(weights[i, layout.a[i - 1]] + weights[i, layout.b[i - 1]]).item() for i in range(1, DIGITS)]
    predicted, target = answers(model, rows)
    right = (predicted.argmax(-1) == target).float().mean(0)[: len(layout.sum)].tolist()
    return {
        "own": sum(own) / len(own), "before": sum(before) / len(before), "before_least": min(before),
        "before_most": max(before), "digits_right": [round(value, 4) for value in right],
    }  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT")
    parser.add_argument("--output", help="a JSON file")
    options = parser.parse_args(argv)
    found = []
    for path in options.checkpoints:
        model = load(path)
        found.append({"path": path, "parameters": count(model), "pairs": PAIRS} | measure(model))
        weights = f"own {found[-1]['own']:.3f}, before {found[-1]['before']:.3f}"
        digits = " ".join(f"{100 * value:3.0f}" for value in found[-1]["digits_right"])
        print(f"{path}: {weights}; digits right, %, least significant first: {digits}")
    if options.output:
        path, command = Path(options.output), ["python", "-m", "addition.attention", *(argv or sys.argv[1:])]
        with disk.writing(path.parent, path.name):
            disk.write_json(path, {"command": shlex.join(command), "checkpoints": found})


if __name__ == "__main__":
    main()
