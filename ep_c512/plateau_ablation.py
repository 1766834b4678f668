"""Rounds A and D: every estimator at one checkpoint, against backpropagation through long relaxations.

python -m ep_c512.plateau_ablation runs/ep_c512/NAME --output results/ep_c512/plateau.json

cos, k: cosine to the reference (BPTT over the middle horizon) and ratio of the lengths, on the same batch. self: cosine
of the same estimator on two batches. |a|: length of a for a token; |z(beta) - z*|: how far the nudged phase moved a
token's state. T2: steps of the state that was chosen. change: of a at that step, relative to its length. Then the
cosine and the ratio by group of parameters. Head clamp: dL/dz held at z*, or not.
"""

import math

import torch
from matplotlib.figure import Figure

from ep_c512 import compare, stability
from ep_c512.block import DAMPING, Force
from ep_c512.gradients import ESTIMATORS, Settings, gradients
from plumbing import disk

RADII = (0.02, 0.05, 0.1, 0.2)
LONG = (1, 8 / 3, 16 / 3)  # horizons over the run's own: 150, 400 and 800 at full size


def arms(config):
    """(name, estimator, settings) of every arm"""
    steps = (config.nudged_steps // 2, 2 * config.nudged_steps, 3 * config.nudged_steps)
    base = Settings(config.radius, 3 * config.nudged_steps, config.step_size, held=True, choice="settled")
    for scale in LONG:
        horizon = round(scale * config.free_steps)
        yield f"BPTT {horizon}", "bptt", base.but(horizon=horizon)
    yield "adjoint at z*", "adjoint", base.but(steps=2_000, tolerance=1e-6)
    for count in (2, 4, 8):
        yield f"plain N={count}", f"plain-{count}", base
        yield f"frozen N={count}", f"frozen-{count}", base
        yield f"tracking N={count}", f"tracking-{count}", base
    yield "frozen, one-sided", "frozen-1", base
    yield "frozen N=2, no head clamp", "frozen-2", base.but(held=False)
    yield "tracking N=2, no head clamp", "tracking-2", base.but(held=False)
    for radius in RADII:
        yield f"frozen N=2, r={radius:g}", "frozen-2", base.but(radius=radius)
    for count in steps:
        yield f"frozen N=2, T2={count} fixed", "frozen-2", base.but(steps=count, choice="last")
    for count in steps:
        yield f"tracking N=2, T2={count} fixed", "tracking-2", base.but(steps=count, choice="last")
    yield "frozen N=2, adaptive", "frozen-2", base.but(choice="adaptive")
    yield "tracking N=2, adaptive", "tracking-2", base.but(choice="adaptive")
    yield "lock-in", "lock-in", base


@torch.no_grad()
def asymmetry(free, seed):
    """|Jv - J^T v| / |Jv| of random v: of J without its damping, and with it."""
    jacobian = free.force.jacobian(free.z)
    random = torch.Generator().manual_seed(seed)
    v = torch.randn(free.z.shape, generator=random, dtype=torch.float64).to(free.z)
    skew, j = jacobian.skew(v).norm(), jacobian.jvp(v)
    return float(skew / j.norm()), float(skew / (j - (1 + DAMPING) * v).norm())


def penalty_row(loaded, free, reference):
    noise = torch.randn(free.z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(free.z)
    value = stability.penalty(loaded.model, free.tokens, free.z, "full", noise, 0.0)
    found = gradients(value, loaded.model)
    return compare.cosine(found, reference), compare.norm(found) / compare.norm(reference)


def main(argv=None):
    parser = compare.parser(__doc__)
    parser.add_argument("--only", default="", help="arms whose name holds this")
    options = parser.parse_args(argv)
    loaded = compare.load(options)
    frees = [loaded.relaxed(number) for number in (0, 1)]
    for free in frees:
        free.force.count.clear()
    horizon = round(LONG[1] * loaded.config.free_steps)
    base = Settings(step_size=loaded.config.step_size, horizon=horizon)
    references = [ESTIMATORS["bptt"](free, base).gradient for free in frees]
    names = compare.groups(references[0])
    head = ["estimator", "cos", "self", "k", "|a|", "|z(beta) - z*|", "T2", "change", *names]
    rows, lengths = [], []
    for name, estimator, settings in arms(loaded.config):
        if options.only not in name:
            continue
        found = [ESTIMATORS[estimator](free, settings) for free in frees]
        first = found[0]
        size = math.sqrt(free.z.numel() / free.z.shape[-1])  # tokens
        a = None if first.a is None else float(first.a.norm()) / size
        rows.append([
            name, compare.cosine(first.gradient, references[0]), compare.cosine(first.gradient, found[1].gradient),
            compare.norm(first.gradient) / compare.norm(references[0]), a,
            first.moved or None, first.steps or None, first.change or None,
            *(compare.cosine(first.gradient, references[0], group) for group in names.values()),
        ])  # fmt: skip
        parts = [compare.norm(first.gradient, g) / compare.norm(references[0], g) for g in names.values()]
        lengths.append([name, *parts])
    free = frees[0]
    bare, damped = asymmetry(free, options.seed)
    real, growth = stability.leading(Force(loaded.model, free.force.x[:1]), free.z[:1], loaded.config.step_size)
    cos, ratio = penalty_row(loaded, free, references[0])
    facts = {
        "residual of a step": free.residual, "|Jv - J'v| / |Jv| without the damping": bare, "with it": damped,
        "largest real part": float(real.max()), "largest growth of a step": float(growth.max()),
        "cosine of the penalty's gradient": cos, "its length over the reference's": ratio,
    }  # fmt: skip

    def draw():
        figure = Figure(figsize=(9, 1 + 0.25 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.barh([row[0] for row in rows][::-1], [row[1] for row in rows][::-1], color="tab:blue", alpha=0.6)
        axes.plot([row[2] for row in rows][::-1], range(len(rows)), "k.", label="cosine of two batches")
        axes.set_xlabel(f"cosine to BPTT over {horizon} steps, same batch")
        axes.legend()
        return figure

    compare.finish(
        options,
        loaded,
        head,
        rows,
        draw,
        facts=facts,
        reference=horizon,
        lengths={"head": ["k of", *names], "rows": lengths},
    )
    disk.say(compare.table(["k of", *names], lengths))
    for name, value in facts.items():
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main()
