"""How long does a training step take, and what of? Estimators side by side, and the operations they are made of.

python -m ep_c512.bench --output results/ep_c512/speed.json       the mini preset: a minute, with nothing else running
python -m ep_c512.bench --preset full --device cuda

Steps alternate, so that whatever else the machine does hits all alike; the median counts, and the rate of a large
matrix product is measured between them. `forces` is what the step's matrix products are worth in evaluations of the
force; `least` is their time at that rate. `overhead` is the same step with one sequence of two tokens, on which the
matrix products take next to no time: what Python and the dispatch of operations cost.
"""

import argparse
import statistics
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import bench
from ep_c512 import compare, cost, stability
from ep_c512.block import Block, Kernels
from ep_c512.gradients import free_phase, gradient, gradients
from ep_c512.one_layer import OneLayer
from ep_c512.run import PRESETS, configured
from ep_c512.train import Config, added, estimated
from plumbing import disk
from plumbing.run import pick_device

STEPS = (  # (name, what a step changes in the config)
    ("BP, one ordinary layer", dict(estimator="bp", jacreg=0.0)),
    ("BPTT", dict(estimator="bptt", jacreg=0.0)),
    ("EP, frozen", dict(estimator="frozen-2", jacreg=0.0)),
    ("EP, tracking", dict(estimator="tracking-2", jacreg=0.0)),
    ("EP, tracking, spectral penalty", dict(estimator="tracking-2", penalty="spectral", jacreg=1.0)),
)


def tokens_of(config, device, batch, length):
    both = torch.randint(config.vocabulary, (batch, length + 1), device=device)
    return both[:, :-1], both[:, 1:]


def step(model, config, tokens, targets, optimizer, noise):
    """A training step without what is the same for all: data, reports, validation."""
    if config.estimator == "bp":
        found = gradients(model.loss(tokens, targets), model)
    else:
        free, estimate = estimated(model, tokens, targets, config)
        found = estimate.gradient
        if config.jacreg:
            value = stability.penalty(model, tokens, free.z, config.penalty, noise, config.cap)
            found = added(found, gradients(config.jacreg * value, model), 0.0)
    for name, p in model.named_parameters():
        p.grad = found[name]
    optimizer.step()


def stepper(config, device, batch, length, compiled):
    torch.manual_seed(0)
    model = (OneLayer if config.estimator == "bp" else Block)(config).to(device)
    if compiled and config.estimator != "bp":
        model.kernels = Kernels(torch.compile)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)  # the block must stay as it is
    tokens, targets = tokens_of(config, device, batch, length)
    noise = torch.randn(batch, length, config.width, device=device)
    return lambda: step(model, config, tokens, targets, optimizer, noise)


def operations(config, device, compiled):
    """{name: a function that does it once} on one relaxed batch"""
    torch.manual_seed(0)
    model = Block(config).to(device)
    if compiled:
        model.kernels = Kernels(torch.compile)
    tokens, targets = tokens_of(config, device, config.batch, config.length)
    free = free_phase(model, tokens, targets, config.free_steps, config.step_size)
    jacobian, v = free.force.jacobian(free.z), torch.randn_like(free.z)
    both = torch.stack([free.z + 0.01 * v, free.z - 0.01 * v])
    work = {
        "force": lambda: free.force(free.z),
        "forces of two branches": lambda: free.force(both),
        "Jacobian at a state": lambda: free.force.jacobian(free.z),
        "J v": lambda: jacobian.jvp(v),
        "J v by torch.func.jvp": lambda: forward_mode(free.force, free.z, v),
        "J^T v": lambda: jacobian.vjp(v),
        "J v - J^T v": lambda: jacobian.skew(v),
        "dL/dz": lambda: free.pull(free.z),
        "gradient of the weights": lambda: gradient(free, free.z, v),
        "penalty, spectral": lambda: gradients(
            stability.penalty(model, tokens, free.z, "spectral", v, config.cap), model
        ),
    }
    return {name: torch.no_grad()(function) for name, function in work.items()}


def forward_mode(force, z, v):
    """J v by PyTorch's forward mode, which fused attention does not have"""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(force, (z,), (v,))


def medians(work, device, repeats):
    """Seconds of each function, alternating, after two calls that do not count."""
    seconds = {name: [] for name in work}
    for number in range(repeats + 2):
        for name, function in work.items():
            took = bench.timed(function, device)
            if number > 1:
                seconds[name].append(took)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="mini")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", help="a .json file")
    options = parser.parse_args(argv)
    if options.output and (problem := disk.wrong_json(options.output)):
        raise SystemExit(f"error: {problem}")
    torch.set_flush_denormal(True)  # as in training
    device = pick_device(options.device)
    torch.set_float32_matmul_precision("highest")  # as in training
    compiled = device.type == "cuda"
    config = replace(configured(Config, options.preset), refine=0)
    each = cost.per_token(config)
    rates = [bench.matrix_rate(device, kind=torch.float32)]
    single = medians(operations(config, device, compiled), device, 2 * options.repeats)
    rates.append(bench.matrix_rate(device, kind=torch.float32))
    configs = {name: replace(config, **changes) for name, changes in STEPS}
    whole = {name: stepper(c, device, config.batch, config.length, compiled) for name, c in configs.items()}
    took = medians(whole, device, options.repeats)
    rates.append(bench.matrix_rate(device, kind=torch.float32))
    empty = medians({name: stepper(c, device, 1, 2, compiled) for name, c in configs.items()}, device, options.repeats)
    rate = statistics.median(rates)
    tokens = config.batch * config.length
    rows = []
    for name, now in configs.items():
        flop = cost.flop(now)
        rows.append([
            name, 1e3 * took[name], took[name] / took["BPTT"], flop / tokens / each["force"], flop / 1e9,
            1e3 * flop / rate, flop / rate / took[name], 1e3 * empty[name], empty[name] / took[name],
        ])  # fmt: skip
    head = [
        "step",
        "ms",
        "against BPTT",
        "forces",
        "GFLOP",
        "least ms",
        "share of the rate",
        "overhead ms",
        "of the step",
    ]
    parts = [[name, 1e3 * seconds, seconds / single["force"]] for name, seconds in single.items()]
    disk.say(compare.table(head, rows))
    disk.say(compare.table(["operation", "ms", "forces"], parts))
    named = {"median": rate, "lowest": min(rates), "highest": max(rates)}
    facts = {f"GFLOP/s of a large product, {name}": found / 1e9 for name, found in named.items()}
    disk.say("; ".join(f"{name}: {found:.0f}" for name, found in facts.items()))
    if options.output:
        disk.write_json(options.output, {
            "preset": options.preset, "hardware": disk.describe(device), "commit": disk.commit(), "head": head,
            "rows": rows, "parts": parts, "facts": facts,
        })  # fmt: skip


if __name__ == "__main__":
    main()
