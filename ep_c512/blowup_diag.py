"""What drives a run that is about to leave its optimum: its loss, its penalty, or a state that does not settle?

python -m ep_c512.blowup_diag runs/ep_c512/NAME --output results/ep_c512/blowup.json

By group of parameters: cosine of the gradients of the cross-entropy and of the penalty, their ratio at several weights,
and the cosine of the loss's gradient to the sum that would be followed. Then the stability of the block: the leading
eigenvalue of every token, the same without attention's output (W_O knocked out), and the residual of the force after
relaxations of equal time with other steps.
"""

import torch
from matplotlib.figure import Figure

from ep_c512 import compare, stability
from ep_c512.block import DAMPING, GROUPS, Force, relax
from ep_c512.gradients import ESTIMATORS, Settings, gradients

WEIGHTS = (0.1, 1.0, 8.0, 16.0, 32.0)
STEP_SIZES = (0.05, 0.1, 0.2, 0.5, 1.0)


def total(ce, penalty, weight):
    return {name: g + weight * penalty[name] for name, g in ce.items()}


@torch.no_grad()
def by_step_size(free, time):
    """(step, number of steps, residual of the force |F| / |z|) of relaxations over the same time"""
    for step_size in STEP_SIZES:
        steps = round(time / step_size)
        z, _ = relax(free.force, free.force.x / (1 + DAMPING), steps, step_size)
        yield step_size, steps, float(free.force(z).norm() / z.norm())


@torch.no_grad()
def knocked_out(loaded, free):
    """The leading eigenvalues where attention adds nothing; z relaxes anew."""
    if loaded.config.attn_mode != "softmax":  # there is no W_O
        return None
    wo = loaded.model.wo.clone()
    loaded.model.wo.zero_()
    force = Force(loaded.model, free.force.x[:1])
    z, _ = relax(force, force.x / (1 + DAMPING), loaded.config.free_steps, loaded.config.step_size)
    real, _ = stability.leading(force, z, loaded.config.step_size)
    loaded.model.wo.copy_(wo)
    return float(real.max())


def main(argv=None):
    parser = compare.parser(__doc__)
    options = parser.parse_args(argv)
    loaded = compare.load(options)
    config, free = loaded.config, loaded.relaxed(0)
    ce = ESTIMATORS["bptt"](free, Settings(step_size=config.step_size, horizon=config.free_steps)).gradient
    noise = torch.randn(free.z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(free.z)
    kind = config.penalty
    penalty = gradients(stability.penalty(loaded.model, free.tokens, free.z, kind, noise, config.cap), loaded.model)
    names = {group: [name for name in members if name in ce] for group, members in GROUPS.items()}
    head = ["parameters", "cos(CE, penalty)", "|penalty| / |CE|"]
    head += [f"cos(CE, sum) at {weight:g}" for weight in WEIGHTS] + [f"|w penalty| / |CE| at {WEIGHTS[-1]:g}"]
    rows = []
    for group, members in {"all": list(ce), **names}.items():
        ratio = compare.norm(penalty, members) / compare.norm(ce, members)
        sums = [compare.cosine(ce, total(ce, penalty, weight), members) for weight in WEIGHTS]
        rows.append([group, compare.cosine(ce, penalty, members), ratio, *sums, WEIGHTS[-1] * ratio])
    force = Force(loaded.model, free.force.x[:1].detach())
    real, growth = stability.leading(force, free.z[:1], config.step_size)
    sweep = list(by_step_size(free, config.free_steps * config.step_size))
    facts = {
        "penalty": kind, "residual of a step": free.residual, "largest real part": float(real.max()),
        "largest real part without W_O": knocked_out(loaded, free), "largest growth of a step": float(growth.max()),
    }  # fmt: skip

    def draw():
        figure = Figure(figsize=(12, 3.5), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        left.bar([row[0] for row in rows], [row[2] for row in rows])
        left.set(ylabel="|penalty| / |CE| at weight 1", yscale="log")
        left.tick_params(axis="x", rotation=30)
        middle.plot(real[0].cpu(), ".-")
        middle.axhline(0, color="0.5")
        middle.set(xlabel="token", ylabel="largest real part")
        right.plot([row[0] for row in sweep], [row[2] for row in sweep], "o-")
        right.set(xlabel="step size, same time", ylabel="residual of the force", xscale="log", yscale="log")
        return figure

    compare.finish(options, loaded, head, rows, draw, facts=facts, sweep=sweep, by_token=real[0].tolist())
    print(compare.table(["step size", "steps", "residual of the force"], sweep))
    for name, value in facts.items():
        if value is not None:
            print(f"{name}: {compare.text(value)}")


if __name__ == "__main__":
    main()
