"""What a training step costs: matrix products in FLOP and memory, counted from the config, nothing run.

python -m ep_c512.cost                       the log's size, every estimator
python -m ep_c512.cost --preset mini         that of the mini runs

The time is an estimate: FLOP over the rate that --tflops gives. Training is in full fp32, as EP takes small differences
of states: an H200's peak is then 67 TFLOP/s, and 50 are assumed. EP's free phase stops as soon as it has settled, so it
takes from free_steps to `refine` steps; both are shown. Memory: weights with gradient, Adam's moments and average;
logits; what BPTT keeps of each step, or EP of one force and of a Jacobian.
"""

import argparse
import sys
from dataclasses import replace

import torch

from ep_c512 import compare
from ep_c512.block import Block, Force
from ep_c512.run import PRESETS, configured
from ep_c512.train import Config
from plumbing import disk

PICARD = dict(step_size=0.5, free_steps=30, refine=0, nudged_steps=12, held=True)  # the same time in fewer steps


def per_token(config):
    """FLOP a token of every operation; 2 for each multiplication with its addition, attention over all pairs."""
    c, t, v = config.width, config.length, config.vocabulary
    return {
        "force": 24 * c * c + 4 * t * c,
        "jacobian": 14 * c * c + 2 * t * c,
        "jvp": 24 * c * c + 8 * t * c,
        "vjp": 24 * c * c + 8 * t * c,
        "pull": 4 * c * v,  # dL/dz
        "gradient": 3 * (24 * c * c + 4 * t * c) + 6 * c * v,  # forward and backward, weights included
    }


def operations(config):
    """{operation: how many of each a training step takes}, for the whole batch"""
    name, _, count = config.estimator.partition("-")
    free, steps = max(config.free_steps, config.refine), config.nudged_steps
    if config.estimator == "bp":
        return {}
    penalty = {"penalty": 1} if config.jacreg else {}
    if name == "bptt":
        return {"force": config.free_steps, "backward": config.free_steps, "head": 1} | penalty
    branches = int(count) // 2 + 1 if int(count) > 2 else int(count)
    real = branches * (2 if int(count) > 2 else 1)  # a complex state is two real ones
    found = {"force": free + steps * real, "pull": 1 if config.held else 1 + steps * real, "gradient": 1}
    if name == "frozen":
        found |= {"jacobian": 1, "jvp": steps * real, "vjp": steps * real}
    if name == "tracking":
        found |= {"jacobian": steps, "jvp": steps * (1 if int(count) == 2 else real)}
        found["vjp"] = found["jvp"]
    return found | penalty


def flop(config):
    """FLOP of a training step"""
    each, tokens = per_token(config), config.batch * config.length
    c, v = config.width, config.vocabulary
    tokens *= config.navg
    if config.estimator == "bp":
        return 3 * tokens * (each["force"] + 2 * c * v)
    each |= {"backward": 2 * each["force"], "head": 6 * c * v}
    t = config.length
    each["penalty"] = 86 * c * c + (30 if config.penalty == "full" else 18) * t * c  # nothing goes back to z
    if config.penalty == "spectral":
        each["penalty"] += 4 * (24 * c * c + 4 * t * c)
    return tokens * sum(number * each[name] for name, number in operations(config).items())


def kept_bytes(config):
    """What one force keeps for its backward pass, for the whole batch: counted on one sequence."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t):
        block = Block(config)
        force = Force(block, torch.randn(1, config.length, config.width))
        weights = {p.data_ptr() for p in (*block.parameters(), force.into, force.bias, force.x)}
        before = set(kept)
        z = torch.randn(1, config.length, config.width, requires_grad=True)
        keep = force(z)
    assert keep.requires_grad
    return config.batch * sum(size for pointer, size in kept.items() if pointer not in before | weights)


def memory(config):
    """Bytes that a training step needs at least"""
    tokens, c = config.batch * config.length, config.width
    model = Block(config)
    fixed = 4 * (5 * sum(p.numel() for p in model.parameters()) + 3 * tokens * config.vocabulary)
    if config.estimator in ("bp", "bptt"):
        return fixed + (config.free_steps if config.estimator == "bptt" else 1) * kept_bytes(config)
    scores = config.heads * config.length
    jacobian = 4 * tokens * (15 * c + 2 * scores)  # n, what it is read as, slopes; attention
    states = operations(replace(config, free_steps=0, refine=0, nudged_steps=1))["force"]  # of branches, as real ones
    branch = 3 * c + 12 * c  # state, force, correction; what a force reads and writes
    if not config.estimator.endswith(("-1", "-2")):
        branch += scores  # fused attention is for real numbers
    if not config.held:
        branch += 2 * config.vocabulary
    return fixed + kept_bytes(config) + jacobian + 4 * tokens * states * branch


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="full")
    parser.add_argument("--tflops", type=float, default=50.0, help="rate for the time")
    parser.add_argument("--output", help="a .json file")
    options = parser.parse_args(argv)
    if options.output and (problem := disk.wrong_json(options.output)):
        raise SystemExit(f"error: {problem}")
    config = replace(configured(Config, options.preset), refine=0)
    head = ["estimator", "forces", "Jacobians", "JVP", "VJP", "dL/dz", "TFLOP a step", "GB", "ms a step"]
    rows = []
    for label, estimator, changes in (
        ("bp", "bp", {}), ("BPTT", "bptt", {}), ("frozen N=2", "frozen-2", {}),
        ("frozen N=2, refined", "frozen-2", dict(refine=300)), ("tracking N=2", "tracking-2", {}),
        ("frozen N=4", "frozen-4", {}), ("BPTT, Picard", "bptt", PICARD), ("frozen N=2, Picard", "frozen-2", PICARD),
        ("tracking N=2, Picard", "tracking-2", PICARD),
    ):  # fmt: skip
        now = replace(config, estimator=estimator, **changes)
        done, total = operations(now), flop(now)
        rows.append([
            label, done.get("force"), done.get("jacobian"), done.get("jvp"), done.get("vjp"), done.get("pull"),
            total / 1e12, memory(now) / 1e9, 1e3 * total / (options.tflops * 1e12),
        ])  # fmt: skip
    disk.say(compare.table(head, rows))
    if options.output:
        disk.write_json(
            options.output, {"preset": options.preset, "tflops": options.tflops, "head": head, "rows": rows}
        )


if __name__ == "__main__":
    sys.exit(main())
