"""Gradients of the equilibrium block: what training uses and what the diagnostics compare.

An estimator is a function from a relaxed batch (`Free`) and `Settings` to an `Estimate`; ESTIMATORS names all, and a
new one is a copy of ten lines. With F(z*) = 0, J = dF/dz and J^T a = dL/dz, the exact gradient of the loss L is
-a^T dF/dtheta. So most estimators only look for a, and `gradient` does the rest.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint

from ep_c512.block import DAMPING, Block, Force, linear, relax, softmax

CHUNK = 10  # steps that BPTT computes again at once, where it has to save memory


@dataclass
class Settings:
    """How an estimator is computed."""

    radius: float = 0.05  # |beta|; L is the sum over tokens, so that each token gets its own gradient in any batch
    steps: int = 12  # of the nudged phase, T2; the most, where fewer will do
    step_size: float = 0.5  # of every phase
    held: bool = True  # dL/dz stays as it was at z*: where that has settled, the same limit and order at less cost
    choice: Literal["last", "settled", "adaptive"] = "last"  # of the nudged phase's states; see `chosen`
    tolerance: float = 1e-3  # relative change of a at which it has settled
    horizon: int = 30  # steps of BPTT
    recompute: bool = False  # BPTT keeps every tenth state only and computes the others again
    period: float = 50.0  # of lock-in, in time: steps x step_size
    periods: int = 4  # of lock-in; the first one settles, the others count

    def but(self, **changes):
        return replace(self, **changes)


@dataclass
class Free:
    """A batch after the free phase."""

    block: Block
    force: Force
    tokens: torch.Tensor
    targets: torch.Tensor
    z: torch.Tensor
    residual: float  # of a step

    def pull(self, z):
        """dL/dz of the summed cross-entropy, for complex z, too"""
        head = self.block.head.detach()
        p = softmax(linear(z, head.T))
        place = self.targets[..., None].expand(*p.shape[:-1], 1)
        return linear(p.scatter_add(-1, place, torch.full_like(p[..., :1], -1)), head)


@dataclass
class Estimate:
    gradient: dict  # parameter's name -> gradient of the mean cross-entropy
    loss: torch.Tensor  # the mean cross-entropy where it was taken
    a: torch.Tensor | None = None  # what was found for J^-T dL/dz
    z: torch.Tensor | None = None  # where the gradient was taken
    change: float = 0.0  # relative change of a at the last step: whether the nudged phase has settled
    steps: int = 0  # of the nudged phase, up to the state that was chosen
    moved: float = 0.0  # |z(beta) - z*| of the branch that is farthest away there, root mean square over tokens
    residual: float = 0.0  # of BPTT's last step


@torch.no_grad()
def free_phase(block, tokens, targets, steps, step_size, z=None):
    """Relaxes this batch from z; where none is given, from the state that there is without attention and MLP."""
    x = block.inputs(tokens)
    force = Force(block, x)
    z, residual = relax(force, x / (1 + DAMPING) if z is None else z, steps, step_size)
    return Free(block, force, tokens, targets, z, residual)


def gradient(free, z, a):
    """(gradient of the mean cross-entropy: of the head at z, of all else as -a^T dF/dtheta at z; that cross-entropy)"""
    with torch.enable_grad():
        force = Force(free.block, free.block.inputs(free.tokens))
        loss = free.block.loss(z, free.targets)
        value = loss - (a * force(z)).sum() / free.targets.numel()
    free.force.count["gradient"] += 1
    return gradients(value, free.block), loss.detach()


def gradients(value, block):
    names, parameters = zip(*block.named_parameters())
    return dict(zip(names, torch.autograd.grad(value, parameters, materialize_grads=True)))


# ---------------------------------------------------------------- references


def bptt(free, s):
    """Backpropagation through a whole relaxation of its own; of the free phase it uses the batch only."""
    block = free.block

    def some(z, force, steps):
        for _ in range(steps):
            moved = s.step_size * force(z)
            z = z + moved
        return z, moved.detach()

    with torch.enable_grad():
        x = block.inputs(free.tokens)
        force = Force(block, x)
        force.count, z = free.force.count, x / (1 + DAMPING)
        for first in range(0, s.horizon, CHUNK):
            steps = min(CHUNK, s.horizon - first)
            if s.recompute:
                z, moved = checkpoint(some, z, force, steps, use_reentrant=False)
            else:
                z, moved = some(z, force, steps)
        loss = block.loss(z, free.targets)
    free.force.count["backward"] += s.horizon
    z = z.detach()
    return Estimate(gradients(loss, block), loss.detach(), z=z, residual=float(moved.norm() / z.norm()))


@torch.no_grad()
def adjoint(free, s):
    """J^T a = dL/dz at z*, solved by the iteration that relaxes z; exact where it converges."""
    jacobian, pull = free.force.jacobian(free.z), free.pull(free.z)
    a, change, step = -pull / (1 + DAMPING), math.inf, 0
    while step < s.steps and change > s.tolerance:
        moved = s.step_size * (jacobian.vjp(a) - (1 + DAMPING) * a - pull)
        a, change, step = a + moved, float(moved.norm() / a.norm()), step + 1
    return Estimate(*gradient(free, free.z, a), a, free.z, change, step)


# ---------------------------------------------------------------- equilibrium propagation


def nudged(free, s, count, correction):
    """The nudged phase for `count` values of beta, evenly on a circle around 0. Yields after every step
    (a, the z where the gradient belongs, the branches).

    correction: "none" is plain nudging, right where the force is conservative. "frozen" takes (J - J^T)(z - z*) from
    the force, with J at the free state. "tracking" does so with the mean of the branches in place of z*, which goes on
    relaxing, and with J there.
    """
    kept = range(count // 2 + 1 if count > 2 else count)  # the others are complex conjugates of these
    phase = torch.exp(2j * math.pi / count * torch.arange(len(kept), dtype=free.z.dtype, device=free.z.device))
    phase = (phase if count > 2 else phase.real).view(-1, 1, 1, 1)
    share = torch.tensor([1 if k in (0, count / 2) else 2 for k in kept], dtype=free.z.dtype, device=free.z.device)

    def mean(branches):
        return torch.einsum("k,k...->...", share, branches.real if branches.is_complex() else branches) / count

    centre, pull = free.z, free.pull(free.z)
    jacobian = free.force.jacobian(centre) if correction == "frozen" else None
    z = torch.stack([free.z.to(phase.dtype)] * len(kept))
    for _ in range(s.steps):
        if correction == "tracking":
            centre = mean(z)
            jacobian = free.force.jacobian(centre)
        force = free.force(z) - s.radius * phase * (pull if s.held else free.pull(z))
        if jacobian and count == 2 and correction == "tracking":  # the branches are at centre + d and centre - d
            force = force - phase * jacobian.skew(z[0] - centre)
        elif jacobian:
            force = force - jacobian.skew(z - centre)
        z = z + s.step_size * force
        a = mean(z * phase.conj()) if count > 1 else z[0] - free.z
        yield a / s.radius, mean(z) if correction == "tracking" else free.z, z


def chosen(free, s, states):
    """The estimate of one state of the nudged phase: the last; the settled one, at which a has moved least, relative
    to its length; or (adaptive) the first at which it moved little enough."""
    before, least, kept = None, math.inf, None
    for step, (a, z, branches) in enumerate(states, 1):
        change = math.inf if before is None else float((a - before).norm() / a.norm())
        if s.choice != "settled" or kept is None or change < least:
            kept, least = (a, z, change, step, branches), change
        if s.choice == "adaptive" and change <= s.tolerance:
            break
        before = a
    a, z, change, step, branches = kept
    moved = (branches - free.z).abs().square().sum(-1).mean((-2, -1)).sqrt().max()
    return Estimate(*gradient(free, z, a), a, z, change, step, float(moved))


def ep(count, correction):
    """The estimator with so many values of beta and this correction."""

    @torch.no_grad()
    def estimator(free, s):
        return chosen(free, s, nudged(free, s, count, correction))

    return estimator


@torch.no_grad()
def lock_in(free, s):
    """One branch with beta(t) = radius cos(w t), slow; a is the part of z that follows it, over whole periods."""
    jacobian, pull = free.force.jacobian(free.z), free.pull(free.z)
    z, total, period = free.z, torch.zeros_like(free.z), round(s.period / s.step_size)
    wave = [math.cos(2 * math.pi * t / period) for t in range(period)]
    for step in range(period * s.periods):
        nudge = s.radius * wave[step % period] * pull
        z = z + s.step_size * (free.force(z) - nudge - jacobian.skew(z - free.z))
        if step >= period:
            total += z * wave[(step + 1) % period]
    a = 2 * total / (s.radius * period * (s.periods - 1))
    return Estimate(*gradient(free, free.z, a), a, free.z, steps=period * s.periods)


ESTIMATORS = {"bptt": bptt, "adjoint": adjoint, "lock-in": lock_in}
ESTIMATORS |= {f"plain-{count}": ep(count, "none") for count in (1, 2, 4, 8)}
ESTIMATORS |= {f"frozen-{count}": ep(count, "frozen") for count in (1, 2, 4, 8)}
ESTIMATORS |= {f"tracking-{count}": ep(count, "tracking") for count in (2, 4, 8)}
