"""What a training step costs, side by side in one run: the table in addition/README.md.

python -m addition.fast.bench     a minute on a quiet machine; writes results/addition/bench/

The plain loop of train.py, and stacks of 1, 16 and 64 models with the kernels. They are timed in turns, so that a
change of the machine's speed has the same effect on all, and so is code that only computes in registers. A step is a
whole one: data, forward, backward, optimiser, on one thread and in its CPU time, which others on the machine hardly
change. The parts of the largest stack's step are from a profile.

--before FOLDER, a clone in which commit 65d02fe is checked out, also times its single run with kernels, by turns too.
"""

import argparse
import cProfile
import functools
import json
import os
import pstats
import statistics
import subprocess
import sys
import timeit
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np
import torch

from addition import reliable, tiny, train
from addition.fast import kernels
from addition.fast.sweep import Stack
from plumbing import disk

LOW = train.ModelConfig(pos_rank=3, qkv_rank=3, attn_out_rank=2, ffn_rank=3, use_rmsnorm=True, tie_qkv="shareA_tieKV")
CASES = (
    (train, train.Settings(model=LOW, val_size=64, test_size=64)),
    (train, train.Settings(model=train.ModelConfig(d_model=8, d_ff=28), val_size=64, test_size=64)),
    (reliable, reliable.Settings(model=LOW, val_size=64, test_size=64)),
    (tiny, tiny.Settings(model=tiny.TinyConfig(embedding="unit", values="joined", norms="final", query="zeros"),
                         val_size=64, test_size=64)),
)  # fmt: skip
STACKS = (1, 16, 64)
# Where a stack's time goes: the function of each part. What is between the tables and the weights is plain torch.
PARTS = {"batches": ("batches.py", "batch"), "tables": ("engine.py", "stacked"), "kernels": ("kernels.py", "call"),
         "gradients of the tables": ("__init__.py", "grad")}  # fmt: skip


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


def shares(step):
    """The share of each part in the time of a step; what is left is the rest."""
    profile = cProfile.Profile()
    for _ in range(3):
        profile.runcall(step)
    stats = pstats.Stats(profile)
    times = {(Path(file).name, name): entry[3] for (file, _, name), entry in stats.stats.items()}
    found = {part: times[where] / stats.total_tt for part, where in PARTS.items()}
    return found | {"rest": 1 - sum(found.values())}


def operations(stack):
    """Floating-point operations of the kernels in a step of one model, without those of selecting and comparing."""
    named = stack.engine.tables.stacked(stack.named(stack.flat[:1]), torch.ones(1))
    blocks = -(-stack.recipes[0].s.batch_size // kernels.LANES)
    code = kernels.write(True, stack.engine.layout, stack.engine.eps, kernels.shapes_of(named), blocks)
    return kernels.LANES * sum(times * sum(i.opname in ("fadd", "fsub", "fmul", "fdiv") for i in block.instructions)
                               for block, times in code.times.items())  # fmt: skip


def registers(count=100_000):
    """(floating-point operations, a function that does them): products and sums in vector registers, nothing else."""
    code = kernels.Code("registers", 1, 1)
    pointer, number = code.function.args
    x, sums = code.load(pointer, 0), [code.load(pointer, i) for i in range(16)]
    found = code.loop(0, number, lambda _, sums: [y * x + x for y in sums], sums, 1)
    code.store(kernels.total(found), pointer, 0)
    function, data = kernels.assemble(code, 1), np.zeros(64, np.float32)
    return 2 * 16 * kernels.LANES * count, lambda: function(data.ctypes.data, count)


EARLIER = """
import json
from time import process_time
from addition import bench
from plumbing import disk

def cpu_seconds(config, steps):  # it trains twice as many
    begun = process_time()
    bench.seconds(config, 1, "fused", steps)
    return process_time() - begun

found = {}
for config in bench.MODELS:
    cpu_seconds(config, 10)  # compiles
    found[bench.count(config)] = 2 * (cpu_seconds(config, 300) - cpu_seconds(config, 50))
print(json.dumps([disk.commit(), found]))
"""


def single_before(folder):
    """(commit, milliseconds of a step of its single run with kernels, by parameters) of a clone at commit 65d02fe; the
    mean of 500 steps, without what a run needs besides."""
    command, one_thread = [sys.executable, "-c", EARLIER], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=one_thread, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="timings of each way, of which the median counts")
    parser.add_argument("--steps", type=int, default=64, help="models' steps a turn")
    parser.add_argument("--output", default=str(Path(__file__).parents[2] / "results/addition/bench"))
    parser.add_argument("--before", help="a clone at commit 65d02fe")
    options = parser.parse_args(argv)
    if options.turns < 1 or options.steps < 1:
        parser.error(f"--turns {options.turns} --steps {options.steps}: both must be at least 1")
    torch.set_num_threads(1)
    found, rates, (work, in_registers), before = [], [], registers(), []
    for module, settings in CASES:
        ways = {"plain": (1, plain_step(module.Recipe(settings)))}
        for models in STACKS:
            recipes = {str(seed): module.Recipe(replace(settings, seed=seed)) for seed in range(models)}
            stack = Stack(recipes, torch.device("cpu"))
            ways[f"stack_{models}"] = (models, functools.partial(stack.step, 0))
        for _, step in ways.values():  # compiles, and warms up
            step()
        turns = {way: [] for way in ways}
        for _ in range(options.turns):
            for way, (models, step) in ways.items():
                count = max(1, options.steps // models)
                turns[way].append(1000 * timeit.timeit(step, timer=process_time, number=count) / count / models)
            rates.append(work / timeit.timeit(in_registers, timer=process_time, number=1))
            if options.before and module is train:
                before.append(single_before(options.before))
        times = {way: statistics.median(values) for way, values in turns.items()}
        found.append({
            "recipe": module.__name__.rpartition(".")[2], "parameters": train.count(module.Recipe(settings).model()),
            "batch": settings.batch_size, "ms": times, "turns": turns, "operations": operations(stack),
            "shares": shares(ways[f"stack_{STACKS[-1]}"][1]),
        })  # fmt: skip
        shown = ", ".join(f"{way} {ms:.2f} ms" for way, ms in times.items())
        print(found[-1]["recipe"], found[-1]["parameters"], shown, flush=True)
    path = Path(options.output) / "summary.json"
    single = {commit: [ms for _, ms in before] for commit, _ in before}  # one commit, or none
    with disk.writing(path.parent, path.name):
        disk.write_json(path, {
            "hardware": disk.describe(torch.device("cpu")), "commit": disk.commit(), "cases": found, "before": single,
            "operations_a_second": statistics.median(rates),
        })  # fmt: skip


if __name__ == "__main__":
    main()
