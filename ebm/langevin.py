"""Langevin dynamics: solves puzzles by descending an energy in z, and chooses among the chains.

    found = solve(model, puzzle, steps=50, chains=8)      boards, energies, logits of every chain
    board = choose(found.boards, found.energy)["energy"]  the chain of lowest energy, as in the log

z starts at N(0, I). Step t of T, with tau = 1 - t/T:  z <- z - lr * dE/dz + noise * tau * N(0, I)
    E(z) = |z_pred - target(p)|^2 + (1 + 2 (1 - tau)) * penalty(p),  p = softmax(decode(z))
With the log's noise this is gradient descent from a random start: Langevin's own noise at this rate is 30 times
larger (`true_noise`). Nothing here ever gets a solution, except choose_by_oracle, which says so.
"""

import contextlib
import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from data.rows import missing
from ebm.train import constraint_penalty

# consistency: from run 4 on. norm: runs 1-3, as if the target stood at 0. penalty: the rules alone, a control.
Kind = Literal["consistency", "norm", "penalty"]


@dataclass
class Trajectory:
    """What `capture` keeps; entry 0 is the start, before any update."""

    z: torch.Tensor  # [steps + 1, n, chains, latent]
    probabilities: torch.Tensor  # [steps + 1, n, chains, 81, 9]
    terms: dict  # of [steps, n, chains]: each term of the energy before each update, and "total"


@dataclass
class Solution:
    boards: torch.Tensor  # int64 [n, chains, 81], 1 to 9, the clues as given
    energy: torch.Tensor  # [n, chains], measured before the last update; the board is read after it, as in the log
    logits: torch.Tensor  # [n, chains, 81, 9]
    z: torch.Tensor  # [n, chains, latent], after the last update
    trajectory: Trajectory | None = None


def energy(model, puzzle, z_context, z, tau, kind="consistency", logits=None):
    """{term: [n]} with their weighted sum as "total"; `logits` are those of this z where they are known already."""
    if kind not in get_args(Kind):
        raise ValueError(f"energy {kind!r}: expected {', '.join(get_args(Kind))}")
    probabilities = (model.decode(z_context, z, puzzle) if logits is None else logits).softmax(-1)
    first = {}
    if kind == "consistency":
        first[kind] = (model.predict(z_context, z) - model.target(probabilities)).square().sum(-1)
    elif kind == "norm":
        first[kind] = model.predict(z_context, z).square().sum(-1)
    penalty = constraint_penalty(probabilities)
    return first | {"penalty": penalty, "total": sum(first.values()) + penalty_weight(tau) * penalty}


def kind_of(run):
    """The energy that the log descended in this run of its own."""
    return "norm" if run <= 3 else "consistency"


def penalty_weight(tau):
    """The rules count 1 at the first step and almost 3 at the last."""
    return 1 + 2 * (1 - tau)


def solve(
    model, puzzle, steps=50, chains=8, lr=0.01, noise=0.005, kind="consistency", seed=0,
    true_noise=False, capture=False, start=None, at_once=1024,
):  # fmt: skip
    """All chains of all puzzles [n, 81]; at most `at_once` chains are computed at a time, only to bound memory.

    The randomness of a chain is a function of (seed, its puzzle, its number): neither the other puzzles nor their
    order nor `at_once` change it. `start` [n, chains, latent] replaces z at the start; `true_noise` replaces
    `noise` by sqrt(2 lr) at every step. The results are on the CPU.
    """
    if not (len(puzzle) and steps >= 1 and chains >= 1 and at_once >= 1):
        counts = f"{len(puzzle)} puzzles, {steps} steps, {chains} chains, {at_once} at once"
        raise ValueError(f"{counts}: expected 1 or more of each")
    results, kept = [], []
    with frozen(model), torch.enable_grad():
        for puzzles, owner, chain in batches(len(puzzle), chains, at_once):
            part = puzzle[puzzles]
            with torch.no_grad():
                z_context = model.context(part)[owner]
            shape = chains, model.config.latent, seed
            z = (normal(part, *shape, step=0) if start is None else start[puzzles])[owner, chain].to(z_context)
            states = []
            for t in range(steps):
                tau = 1 - t / steps
                z.requires_grad_()
                now = model.decode(z_context, z, part[owner])
                terms = energy(model, part[owner], z_context, z, tau, kind, now)
                (gradient,) = torch.autograd.grad(terms["total"].sum(), z)
                if capture:
                    states.append(state(z, now, terms))
                scale = (2 * lr) ** 0.5 if true_noise else noise * tau
                random = normal(part, *shape, step=t + 1)[owner, chain].to(z)
                z = (z - lr * gradient + scale * random).detach()
            with torch.no_grad():
                now = model.decode(z_context, z, part[owner])
            states.append(state(z, now, {}) if capture else {})
            results.append([terms["total"].detach().cpu(), now.cpu(), z.cpu()])
            kept.append(states)
    total, logits, z = (torch.cat(parts).unflatten(0, (-1, chains)) for parts in zip(*results))
    return Solution(logits.argmax(-1) + 1, total, logits, z, trajectory(kept, chains) if capture else None)


def state(z, logits, terms):
    found = {"z": z, "probabilities": logits.softmax(-1)} | terms
    return {name: values.detach().cpu() for name, values in found.items()}


def trajectory(kept, chains):
    """The Trajectory of all batches; of each batch there is a list of its states, the last one without an energy."""
    whole = {}
    for name in kept[0][0]:
        parts = [torch.stack([state[name] for state in states if name in state]) for states in kept]
        whole[name] = torch.cat(parts, 1).unflatten(1, (-1, chains))
    return Trajectory(whole.pop("z"), whole.pop("probabilities"), whole)


@torch.no_grad()
def read(model, puzzle, z, at_once=1024):
    """uint8 [n, k, 81]: the boards that the decoder reads from z [n, k, latent], without any energy; on the CPU."""
    found = []
    with frozen(model):
        for part, z_context, z_part in states_of(model, puzzle, z, at_once):
            found.append((model.decode(z_context, z_part, part).argmax(-1) + 1).to(torch.uint8).cpu())
    return torch.cat(found).unflatten(0, z.shape[:2])


@torch.no_grad()
def measure(model, puzzle, z, tau=0.0, kind="consistency", at_once=1024):
    """{term: [n, k]}: the energy at z [n, k, latent], on the CPU."""
    found = []
    with frozen(model):
        for part, z_context, z_part in states_of(model, puzzle, z, at_once):
            found.append(energy(model, part, z_context, z_part, tau, kind))
    return {name: torch.cat([terms[name].cpu() for terms in found]).unflatten(0, z.shape[:2]) for name in found[0]}


def states_of(model, puzzle, z, at_once):
    """(puzzle, z_context, z), at most at_once rows of each."""
    for puzzles, owner, chain in batches(*z.shape[:2], at_once):
        z_context = model.context(puzzle[puzzles])[owner]
        yield puzzle[puzzles][owner], z_context, z[puzzles][owner, chain].to(z_context)


# ---------------------------------------------------------------- batches, randomness, weights


def batches(n, chains, at_once):
    """(puzzles, owner, chain): a slice of the n puzzles; of at most at_once chains the puzzle in it and the number."""
    for first in range(0, n * chains, at_once):
        rows = torch.arange(first, min(first + at_once, n * chains))
        puzzles = slice(first // chains, int(rows[-1]) // chains + 1)
        yield puzzles, rows // chains - puzzles.start, rows % chains


def normal(puzzle, chains, latent, seed, step):
    """[n, chains, latent] from N(0, I), a function of (seed, puzzle, step); the draws of chain k are row k of any."""
    keys = [zlib.crc32(row.tobytes()) << 32 | step for row in puzzle.cpu().numpy().astype(np.uint8)]
    streams = [np.random.Generator(np.random.Philox(key=np.array([seed, key], np.uint64))) for key in keys]
    return torch.from_numpy(np.stack([s.standard_normal((chains, latent), np.float32) for s in streams]))


@contextlib.contextmanager
def frozen(model):
    """In here the model has no dropout, and its weights need no gradient: only z moves."""
    training, wanted = model.training, [p.requires_grad for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for p, before in zip(model.parameters(), wanted):
            p.requires_grad_(before)


# ---------------------------------------------------------------- choice among chains


def choose(boards, energy=None):
    """{way: boards [n, 81]} out of boards [n, chains, 81], without the answer. Ties go to the first chain.

    one: the first chain. energy: the lowest (one that is not finite never wins). rules: the fewest digits missing in
    rows, columns and boxes. majority: each cell takes the digit that most chains give it.
    """
    boards, every = np.asarray(boards), np.arange(len(boards))
    chosen = {"one": boards[:, 0]}
    if energy is not None:
        energy = np.asarray(energy)
        chosen["energy"] = boards[every, np.where(np.isfinite(energy), energy, np.inf).argmin(1)]
    chosen["rules"] = boards[every, [missing(chains).sum(-1).argmin() for chains in boards]]
    digits = np.arange(1, 10)[:, None]
    votes = [(chains[:, None] == digits).sum(0) + 0.5 * (chains[0] == digits) for chains in boards]
    return chosen | {"majority": np.array(votes).argmax(1).astype(boards.dtype) + 1}


def choose_by_oracle(boards, solution):
    """The chain with most cells right: it sees the answer, so it only tells what a perfect choice would give."""
    boards, solution = np.asarray(boards), np.asarray(solution)
    return boards[np.arange(len(boards)), (boards == solution[:, None]).sum(-1).argmax(1)]
