"""What a training step costs, side by side in one run: the table in addition/README.md.

python -m addition.fast.bench     about two minutes on a quiet machine; writes results/addition/bench/summary.json

The plain loop of train.py, and stacks of 1, 16 and 64 models with the kernels. They are timed in turns, so that a
change of the machine's speed has the same effect on all. A step is a whole one: data, forward, backward, optimiser.
"""

import argparse
import statistics
import timeit
from dataclasses import replace
from pathlib import Path

import torch

import bench
from addition import reliable, tiny, train
from addition.fast.sweep import Stack
from plumbing import disk

ROOT = Path(__file__).parents[2]
LOW = train.ModelConfig(pos_rank=3, qkv_rank=3, attn_out_rank=2, ffn_rank=3, use_rmsnorm=True, tie_qkv="shareA_tieKV")
CASES = (
    (train, train.Settings(model=LOW, val_size=64, test_size=64)),
    (train, train.Settings(model=train.ModelConfig(d_model=8, d_ff=28), val_size=64, test_size=64)),
    (reliable, reliable.Settings(model=LOW, val_size=64, test_size=64)),
    (tiny, tiny.Settings(model=tiny.TinyConfig(embedding="unit", values="joined", norms="final", query="zeros"),
                         val_size=64, test_size=64)),
)  # fmt: skip
STACKS = (1, 16, 64)


def operations(config):
    """Multiply-adds of one example's forward pass. What precedes the attention is looked up, so it counts as 0."""
    d, layout = config.d_model, config.layout
    head = getattr(config, "head_dim", d)
    queries = layout.length - layout.first
    pairs = sum(range(layout.first + 1, layout.length + 1))
    after = head * d + (2 + getattr(config, "gated", False)) * d * config.d_ff + layout.vocabulary * d
    return 2 * pairs * head + queries * after


def plain_step(recipe):
    """A step of train.py's loop, as a function without arguments."""
    model = recipe.model()
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        loss = train.mean_loss(model, recipe.batch(0), recipe.sharpness(0))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recipe.note(loss.item())

    return step


def stack_step(recipes):
    stack = Stack({str(i): recipe for i, recipe in enumerate(recipes)}, torch.device("cpu"), "compiled")
    return lambda: stack.step(0)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="timings of each way, of which the median counts")
    parser.add_argument("--steps", type=int, default=64, help="models' steps a turn")
    parser.add_argument("--output", default=str(ROOT / "results/addition/bench"))
    options = parser.parse_args(argv)
    if options.turns < 1 or options.steps < 1:
        parser.error(f"--turns {options.turns} --steps {options.steps}: both must be at least 1")
    found = []
    for module, settings in CASES:
        ways = {"plain": (1, plain_step(module.Recipe(settings)))}
        for models in STACKS:
            recipes = [module.Recipe(replace(settings, seed=seed)) for seed in range(models)]
            ways[f"stack_{models}"] = (models, stack_step(recipes))
        for _, step in ways.values():  # compiles, and warms up
            step()
        rates, turns = [], {way: [] for way in ways}
        for _ in range(options.turns):
            rates.append(bench.matrix_rate(torch.device("cpu")) / 1e9)
            for way, (models, step) in ways.items():
                count = max(1, options.steps // models)
                turns[way].append(1000 * timeit.timeit(step, number=count) / count / models)
        times = {way: statistics.median(values) for way, values in turns.items()}
        flop = 2 * 3 * settings.batch_size * operations(settings.model)
        rate = statistics.median(rates)
        found.append({
            "recipe": module.__name__.rpartition(".")[2], "parameters": train.count(module.Recipe(settings).model()),
            "batch": settings.batch_size, "ms": times, "mflop_a_step": flop / 1e6, "matrix_gflops": rate,
            "share_of_matrix_rate": {way: flop / 1e6 / rate / ms for way, ms in times.items()}, "turns": turns,
        })  # fmt: skip
        shown = ", ".join(f"{way} {ms:.2f} ms, {flop / 1e6 / rate / ms:.0%}" for way, ms in times.items())
        print(found[-1]["recipe"], found[-1]["parameters"], shown, flush=True)
    path = Path(options.output) / "summary.json"
    with disk.writing(path.parent, path.name):
        disk.write_json(path, {"hardware": disk.describe(torch.device("cpu")), "commit": disk.commit(), "cases": found})


if __name__ == "__main__":
    main()
