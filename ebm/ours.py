"""A learned energy whose minimum is the solved board, reached by nothing but descent.

A candidate is a digit that no clue excludes from a cell; its state is a vector. The first number of that vector is the
candidate's logit: these numbers are the board. The others are hidden. The energy of a puzzle's states is

    E = sum over candidates c of  a/2 |s_c|^2 + u . s_c + v . softplus(S s_c + sum over its four groups g of H p_g + b)
    p_g = log sum over the members c of g of exp(M s_c)

with a group being a cell, or a digit in a row, in a column or in a box. One look at E sees groups that share a
candidate and nothing further, and nothing in E iterates: whatever takes more than that is done by the descent
s <- s - step * dE/ds, the same from the first step to the last, from a start that is alike for all candidates.
E is bounded from below, since the square outgrows the rest.

python -m ebm.ours                    minutes on two CPU cores: generates puzzles, trains, tests after up to 256 steps
python -m ebm.ours --preset smoke     a few steps, to see that it runs
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

import common
from common import candidates
from exp_speedrun import SHARD, Muon, Slots, workers

KINDS = candidates.KINDS  # kinds of groups: a cell; a digit in a row, in a column, in a box
CAP = 8.0  # bound of what a candidate tells a group: exp() stays finite, E bounded


@dataclass
class Config(common.RunConfig):
    device: Literal["cpu"] = "cpu"  # its kernels are numba's
    width: int = 32  # numbers in the state of one candidate, its logit among them
    pool: int = 32  # numbers that a candidate tells each of its groups
    mlp: int = 96  # hidden units of the one small network that all candidates share
    descent: float = 0.3  # step of the descent, in training and in tests
    confine: float = 1.0  # a of the formula
    sharp: float = 4.0  # the probabilities of a cell are softmax(sharp * first number of the state)
    rise: float = 1.0  # weight of the penalty on steps that lower E by less than `fall` of what the gradient promises
    fall: float = 0.1
    batch: int = 16  # puzzles under way; small, because many steps matter more than smooth ones
    depth: int = 8  # steps of descent in a training step, with gradient; the next training step goes on from there
    lifetime: int = 64  # mean steps of descent until an unsolved puzzle is replaced
    steps: int = 12_000
    easy_steps: int = 100  # at first with extra clues, up to 45, so that some puzzles are solved at all
    muon_lr: float = 0.01  # Muon's, for the matrices
    lr: float = 0.002  # AdamW's, for the rest
    warmup: int = 50  # steps to the full rate, which then falls to 0 on a straight line
    iterations: int = 256  # steps of descent in tests
    test_iterations: tuple[int, ...] = (16, 32, 64, 128, 1024)  # more of them must do no harm
    data: str = "minimal"  # generated minimal puzzles; the only kind that this trains on
    train_puzzles: int = 20_000  # renamed digits and swapped lines look the same to the network, so few suffice
    test_per_bucket: int = 1_000  # never seen in training: 45 clues, then minimal
    evaluate_every: int = 100_000  # only at the end: a test costs as much as many steps


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.descent, self.confine, self.sharp = config.descent, config.confine, config.sharp
        width, pool, mlp = config.width, config.pool, config.mlp
        matrix = lambda i, o: nn.Parameter(torch.randn(i, o) / i**0.5)  # noqa: E731
        self.first = nn.Parameter(0.5 * torch.randn(width))  # the state of every candidate at the start
        self.message = matrix(width, KINDS * pool)  # M
        self.message_bias = nn.Parameter(torch.zeros(KINDS * pool))
        self.own = matrix(width, mlp)  # S
        self.heard = matrix(KINDS * pool, mlp)  # H
        self.seen = matrix(KINDS, mlp)  # the sizes of its groups are part of b
        self.bias = nn.Parameter(torch.zeros(mlp))
        self.out = nn.Parameter(torch.randn(mlp))  # v
        self.tilt = nn.Parameter(torch.zeros(width))  # u

    def energy(self, s, board):
        """[candidates]: what each adds to the energy of its puzzle. The states are s [candidates, width]."""
        told = CAP * torch.tanh((s @ self.message + self.message_bias) / CAP)
        pooled = candidates.Sums.apply(told.exp(), board).clamp(min=1e-6).log()
        heard = torch.bmm(pooled, self.heard.view(KINDS, -1, len(self.bias)))
        hidden = s @ self.own + board.sizes @ self.seen + self.bias + candidates.Gather.apply(heard, board)
        return F.softplus(hidden) @ self.out + 0.5 * self.confine * s.square().sum(1) + s @ self.tilt

    def gradient(self, s, board, learning=False):
        """(energy [candidates], dE/ds); with `learning`, both can be differentiated once more."""
        with torch.enable_grad():
            s = s if learning else s.detach().requires_grad_()
            energy = self.energy(s, board)
            (gradient,) = torch.autograd.grad(energy.sum(), s, create_graph=learning)
        return (energy, gradient) if learning else (energy.detach(), gradient)

    def start(self, puzzle):
        """The state before the first step, in shards: puzzles, their candidates, states."""
        return [self.start_shard(part) for part in puzzle.split(SHARD)]

    def start_shard(self, puzzle):
        board = candidates.Board(puzzle.numpy())
        return puzzle, board, self.first.expand(len(board.place[0]), -1)

    def iterate(self, state):
        """One step of descent of all shards, each in a thread: the logits [batch, 81, 9], the next state."""
        logits, state = zip(*workers().map(self.iterate_shard, state))
        return torch.cat(logits), list(state)

    @torch.no_grad()
    def iterate_shard(self, shard):
        puzzle, board, s = shard
        s = s - self.descent * self.gradient(s, board)[1]
        return board.logits(self.sharp * s[:, 0], puzzle.numpy()), (puzzle, board, s)

    def forward(self, puzzle, iterations):
        """Yield the logits after each step of descent."""
        state = self.start(puzzle)
        for _ in range(iterations):
            logits, state = self.iterate(state)
            yield logits

    def probability(self, s, board):
        """[candidates]: the softmax over the candidates of its cell."""
        logit = 30 * torch.tanh(self.sharp * s[:, :1] / 30)  # exp() stays finite
        total = candidates.Collect.apply(logit.exp(), board)[0]
        return (logit.exp() / total[board.index[0]])[:, 0]


def of_puzzles(values, board, count):
    """[puzzles]: the sums of what is given for each candidate."""
    return values.new_zeros(count).index_add(0, torch.from_numpy(board.place[0]), values)


def shard_gradients(model, config, slots, part, blanks):
    """A step's loss on a few slots, its gradients, the last logits; the states reached go back to the slots."""
    solution, memory = slots.solution[part].numpy(), slots.memory[part]
    puzzle, board, s = model.start_shard(slots.puzzle[part])
    fresh = slots.free[part][board.place[0]][:, None]
    s = torch.where(fresh, s, memory[board.place])
    cell, digit = candidates.CELL[board.place[1]], candidates.DIGIT[board.place[1]]
    right = torch.from_numpy(digit + 1 == solution[board.place[0], cell])
    loss, before, promised = 0.0, None, None
    for _ in range(config.depth):
        energy, gradient = model.gradient(s, board, learning=True)
        energy = of_puzzles(energy, board, len(puzzle))
        if promised is not None:  # by how much the last step has lowered E, as a share of what its gradient promised
            lowered = (before - energy) / (promised + 1e-3)
            loss = loss + config.rise * (config.fall - lowered).relu().sum() / (config.batch * config.depth)
        before, promised = energy, config.descent * of_puzzles(gradient.square().sum(1), board, len(puzzle))
        s = s - config.descent * gradient
        loss = loss - model.probability(s, board)[right].log().sum() / (blanks * config.depth)
    memory[board.place] = s.detach()
    return (
        loss.detach(),
        torch.autograd.grad(loss, list(model.parameters())),
        board.logits(model.sharp * s[:, 0].detach(), puzzle.numpy()),
    )


def train(config):
    run = common.Run(config, __file__)
    if run.world > 1:
        raise SystemExit("ebm.ours runs in one process, on as many threads as OMP_NUM_THREADS says")
    data = common.load(config, run)
    model, slots = Model(config), Slots(config, config.width)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizers = [Muon(matrices, lr=config.muon_lr), torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)]
    for step in range(run.resume(model, [*optimizers, slots]), config.steps):
        share = min((step + 1) / (config.warmup + 1), 1 - step / config.steps)
        for optimizer, rate in zip(optimizers, (config.muon_lr, config.lr)):
            optimizer.param_groups[0]["lr"] = rate * share
        chance = slots.refill(config, data, step)
        target = torch.where(slots.puzzle == 0, slots.solution.long() - 1, common.IGNORED)
        batch = common.Batch(slots.puzzle, target, None, int((slots.puzzle == 0).sum()))
        parts = [slice(at, at + SHARD) for at in range(0, config.batch, SHARD)]
        done = workers().map(lambda part: shard_gradients(model, config, slots, part, batch.blanks), parts)  # noqa: B023
        losses, gradients, logits = zip(*done)
        for parameter, *shares in zip(model.parameters(), *gradients):
            parameter.grad = sum(shares)
        for optimizer in optimizers:
            optimizer.step()
        logits = torch.cat(logits)
        solved = ((logits.argmax(-1) == target) | (slots.puzzle != 0)).all(1)
        slots.free = chance < torch.where(solved, 0.5, config.depth / config.lifetime)
        run.report(step, sum(losses), logits, batch, config.lr * share)
        run.evaluate(step, model, data)
        run.end_step(step, model, [*optimizers, slots])
    return run.finish(model, data)


def main(argv=None):
    return train(common.parse(Config, argv))


if __name__ == "__main__":
    main()
