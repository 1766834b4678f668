"""What each experiment costs at a preset, from the matrix products of a step; nothing is trained.

python cost.py gpu                                the table
python cost.py gpu --output results/cost-gpu.json keep it, for report.py

The minutes are those of a GPU at --rate in bf16, and FP32 times as many for an experiment in fp32. The default rate
comes from a later run of the log's project, whose time was not withdrawn: 2 h 40 min on an H200 for 50,000 steps at
batch 2048, with RoPE and without SAM.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

import common
import lineage
from plumbing import disk

PUZZLES = 2  # of the pass that is counted
FP32 = 5.6 / 2.3  # the log's hours for one experiment in fp32 and in bf16


@dataclass
class Arguments:
    preset: tyro.conf.Positional[Literal["full", "gpu", "mini", "smoke"]] = "gpu"
    rate: float = 72.0  # TFLOP/s in bf16
    output: str = ""  # also write the table to this .json file


def pass_flops(module, config):
    """FLOPs of one puzzle, forward and backward through all iterations."""
    model = module.Model(config)
    common.seed_dropout(model, torch.zeros(PUZZLES, dtype=torch.int32))
    with FlopCounterMode(display=False) as counter:
        sum(logits.logsumexp(-1).sum() for logits in model(torch.zeros(PUZZLES, 81, dtype=torch.int64), 1)).backward()
        once = counter.get_total_flops()
    return once * config.iterations / PUZZLES


def costs(preset):
    """A row for each experiment: GFLOP a puzzle, batch, steps, PFLOP of the whole run, times slower than in bf16."""
    for _, experiment in lineage.walk(lineage.find()):
        if experiment.on_candidates:  # made for a CPU, and not of matrix products alone
            continue
        module = lineage.module(experiment.name)
        config = common.with_preset(module.Config(), preset)
        passes = 2 if hasattr(module, "perturb") else 1
        a_puzzle = pass_flops(module, config) * passes
        if experiment.name == "exp_trm_carry":  # a step is one of the passes that its `iterations` counts
            a_puzzle /= config.iterations
        total = a_puzzle * config.batch * config.steps
        slower = 1 if getattr(config, "precision", "fp32") == "bf16" else FP32
        yield {"experiment": experiment.name, "gflop": a_puzzle / 1e9, "batch": config.batch, "steps": config.steps,
               "pflop": total / 1e15, "slower": slower}  # fmt: skip


def main(argv=None):
    asked = tyro.cli(Arguments, args=argv, description=__doc__.replace("\n", "\n "))
    rows = []
    for row in costs(asked.preset):
        rows.append(row | {"minutes": row["slower"] * row["pflop"] * 1e15 / asked.rate / 1e12 / 60})
        print("{experiment:28} {gflop:8.2f} GFLOP a puzzle x {batch:5} x {steps:6} = {pflop:10.3f} PFLOP "
              "{minutes:8.1f} min".format(**rows[-1]), flush=True)  # fmt: skip
    total = sum(row["minutes"] for row in rows)
    print(f"{len(rows)} runs, {total:.0f} minutes at {asked.rate:g} TFLOP/s")
    if asked.output:
        disk.write_json(asked.output, {"preset": asked.preset, "rate": asked.rate, "rows": rows})


if __name__ == "__main__":
    lineage.run_command(main)
