"""What a training step costs, side by side in one run: the table in addition/README.md.

python -m addition.bench     about two minutes on a quiet machine; writes results/addition/bench/summary.json

One model on plain autograd, one on the compiled kernels, and 16 models in a sweep, of 456 and of 1,128 parameters. They
are timed in turns, so that a change of the machine's speed has the same effect on all. A turn times whole steps: data,
forward, backward, optimiser.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import timeit
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from addition.model import ModelConfig, count
from addition.training import Run, Settings, train
from plumbing import disk

ROOT = Path(__file__).parent.parent
LOW = ModelConfig(pos_rank=3, qkv_rank=3, attn_out_rank=2, ffn_rank=3, use_rmsnorm=True, tie_qkv="shareA_tieKV")
MODELS = (LOW, ModelConfig(d_model=8, d_ff=28))
WAYS = {"plain": (1, "torch"), "compiled": (1, "fused"), "sweep": (16, "fused")}


def operations(config):
    """Multiply-adds of one example's forward pass. What precedes the attention is looked up, so it counts as 0."""
    d, layout = config.d_model, config.layout
    pairs = sum(range(layout.first + 1, layout.length + 1))
    after = d * d + 2 * d * config.d_ff + config.vocab_size * d
    return 2 * pairs * d + layout.queries * after


def matrix_rate():
    """GFLOP/s of a large product, all threads."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / min(timeit.repeat(lambda: a @ a, number=1, repeat=12)) / 1e9


def seconds(config, models, engine, steps):
    """Of one step, between two validations on a few pairs; the steps before the first one warm up."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        s = Settings(model=config, train_steps=2 * steps, eval_interval=steps, val_size=64, test_size=64,
                     engine=engine, save_every=10**9, runs=folder)  # fmt: skip
        settings = [replace(s, seed=seed) for seed in range(models)]
        train(settings, [str(seed) for seed in range(models)], Run(s, "bench", "bench"))
        first, second = pd.read_csv(next(Path(folder).rglob("metrics.csv")))["seconds"]
    return (second - first) / steps


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="timings of each way, of which the median counts")
    parser.add_argument("--steps", type=int, default=50, help="steps a turn (the sweep: a quarter)")
    parser.add_argument("--output", default=str(ROOT / "results/addition/bench"))
    options = parser.parse_args(argv)
    if options.turns < 1 or options.steps < 1:
        parser.error(f"--turns {options.turns} --steps {options.steps}: both must be at least 1")
    found = []
    for config in MODELS:
        rates, turns = [], {way: [] for way in WAYS}
        for _ in range(options.turns):
            rates.append(matrix_rate())
            for way, (models, engine) in WAYS.items():
                steps = max(2, options.steps // 4) if models > 1 else options.steps
                turns[way].append(1000 * seconds(config, models, engine, steps) / models)
        flop = 2 * 3 * Settings.batch_size * operations(config)
        row = {"parameters": count(config), "gflop_a_step": flop / 1e9, "matrix_gflops": statistics.median(rates)}
        row |= {f"{way}_ms": statistics.median(times) for way, times in turns.items()} | {"turns": turns}
        row["sweep_against_plain"] = row["plain_ms"] / row["sweep_ms"]
        row["sweep_against_compiled"] = row["compiled_ms"] / row["sweep_ms"]
        row["share_of_matrix_rate"] = flop / 1e9 / row["matrix_gflops"] / (row["sweep_ms"] / 1000)
        found.append(row)
        print(", ".join(f"{key} {value:.3g}" for key, value in row.items() if key != "turns"), flush=True)
    path = Path(options.output) / "summary.json"
    result = {"hardware": disk.describe(torch.device("cpu")), "commit": disk.commit(), "batch": Settings.batch_size}
    with disk.writing(path.parent, path.name):
        disk.write_json(path, result | {"models": found})


if __name__ == "__main__":
    main()
