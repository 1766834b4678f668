"""A learned energy whose minimum is the solved board, reached by nothing but descent.

A candidate is a digit that no clue excludes from a cell; its state s is a vector, random at the start. A small network
F reads the states: each candidate hears from its four groups (a cell, a digit in a row, in a column, in a box), as
often as `rounds` says. The energy of a puzzle's states is

    E = sum over candidates of  1/2 |s - F(s)|^2 + v . F(s) + u . s + c

The first term is 0 where F would change nothing; v and u tell how far a board has come; c is a function of the clues
alone, so that E can be below 0 on solved boards and above it on others, whatever the puzzle. Each step is
s <- s - step * dE/ds, with the same E from the first step to the last, no noise, no momentum, and nothing but s that is
carried on. E is bounded from below, since F has a fixed length. After `patience` steps another descent begins, from
other random numbers; of all descents the one of lowest energy is the answer.

python -m ebm.ours                    minutes on two CPU cores: generates puzzles, trains, tests after up to 256 steps
python -m ebm.ours --preset smoke     a few steps, to see that it runs
python -m ebm.proof runs/ours/full-seed0    is it an energy that is descended?
"""

import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):  # run by its path: this folder's data.py must not hide the package data/
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import common
import exp_iterate
from common import candidates
from exp_iterate import SHARD, Muon, workers

KINDS = candidates.KINDS  # kinds of groups: a cell; a digit in a row, in a column, in a box
TINY = 1e-3  # energies that float32 still tells apart
FIRST = 2**32  # number of a descent in training; those in tests are smaller


@dataclass
class Config(common.RunConfig):
    device: Literal["cpu"] = "cpu"  # its kernels are numba's
    width: int = 32  # size of the state of one candidate
    pool: int = 32  # numbers that a candidate tells each of its groups
    mlp: int = 96  # hidden units of the one small network that all candidates share
    rounds: int = 4  # of messages in one look at the energy; with 1, most minimal puzzles stay unsolved
    descent: float = 0.5  # step of the descent in training
    test_descent: float = 0.35  # and in tests: smaller, since training bends E as far as its own step allows
    spread: float = 1.0  # of the random numbers in the state at the start of a descent
    patience: int = 64  # steps of a descent in tests, then another begins; the lowest energy of all counts
    sharp: float = 4.0  # the probabilities of a cell are softmax(sharp * read . s)
    rise: float = 1.0  # weight of the penalty on steps that lower E by less than `fall` of what the gradient promises
    fall: float = 0.05
    judge: float = 0.02  # weight of what asks for E below 0 on solved boards and above `high` on others
    high: float = 10.0
    batch: int = 16  # puzzles under way; small, because many steps matter more than smooth ones
    depth: int = 4  # steps of descent in a training step, with gradient; the next training step goes on from there
    lifetime: int = 48  # mean steps of descent until an unsolved puzzle is replaced
    solved_lifetime: int = 32  # of a solved one: it has to stay solved
    steps: int = 5_000  # 25 minutes on two cores
    easy_steps: int = 100  # at first with extra clues, up to 45, so that some puzzles are solved at all
    easy: float = 0.2  # share of puzzles with extra clues ever after: E must fall near the minimum of those, too
    muon_lr: float = 0.01  # Muon's, for the matrices
    lr: float = 0.002  # AdamW's, for the rest
    warmup: int = 50  # steps to the full rate, which then falls to 0 on a straight line
    iterations: int = 256  # steps of descent in tests
    test_iterations: tuple[int, ...] = (16, 64)  # ebm.proof goes to 1,024: more of them must do no harm
    data: str = "minimal"  # generated minimal puzzles; the only kind that this trains on, but for extra clues
    train_puzzles: int = 20_000  # renamed digits and swapped lines look the same to the network, so few suffice
    test_per_bucket: int = 300  # never seen in training: 45 clues, then minimal; takes minutes
    evaluate_every: int = 100_000  # only at the end: a test costs as much as many steps


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.descent, self.rounds, self.sharp = config.test_descent, config.rounds, config.sharp
        self.spread, self.patience = config.spread, config.patience
        width, pool, mlp = config.width, config.pool, config.mlp
        matrix = lambda i, o, scale=1.0: nn.Parameter(torch.randn(i, o) * scale / i**0.5)  # noqa: E731
        self.first = nn.Parameter(0.5 * torch.randn(width))  # the mean of the states at the start
        self.read = nn.Parameter(torch.randn(width) / width**0.5)  # its logit
        self.message = matrix(width, KINDS * pool)  # what it tells each of its groups
        self.state = matrix(width, mlp)
        self.heard = matrix(KINDS * pool, mlp)  # what it hears from its groups
        self.seen = matrix(KINDS, mlp)  # the sizes of its groups
        self.bias = nn.Parameter(torch.zeros(mlp))
        self.out = matrix(mlp, width, 0.5)
        self.reached = nn.Parameter(0.3 * torch.randn(width))  # v
        self.tilt = nn.Parameter(torch.zeros(width))  # u
        self.level = nn.Parameter(torch.zeros(2 * KINDS + 1))  # c, from the sizes of the groups and their inverses

    def network(self, h, board):
        """F of the formula: the state that the groups' messages lead to, with a mean square of 1."""
        sizes = board.sizes.to(h) @ self.seen + self.bias
        for _ in range(self.rounds):
            told = candidates.LogSumExp.apply(h @ self.message, board)  # a smooth maximum of the members' messages
            heard = torch.bmm(told, self.heard.view(KINDS, -1, len(self.bias)))
            h = h + F.silu(h @ self.state + sizes + candidates.Gather.apply(heard, board)) @ self.out
            h = h * (h.square().mean(1, keepdim=True) + 1e-4).rsqrt()
        return h

    def energy(self, s, board):
        """[candidates]: what each adds to the energy of its puzzle. The states are s [candidates, width]."""
        h = self.network(s, board)
        sizes = board.sizes.to(h)
        level = torch.cat([torch.ones_like(sizes[:, :1]), sizes, 1 / (9 * sizes)], 1) @ self.level
        return 0.5 * (s - h).square().sum(1) + h @ self.reached + s @ self.tilt + 10 * level

    def gradient(self, s, board, learning=False):
        """(energy [candidates], dE/ds); with `learning`, both can be differentiated once more."""
        with torch.enable_grad():
            s = s if learning else s.detach().requires_grad_()
            energy = self.energy(s, board)
            (gradient,) = torch.autograd.grad(energy.sum(), s, create_graph=learning)
        return (energy, gradient) if learning else (energy.detach(), gradient)

    def start(self, puzzle, number=0):
        """The states before the first step of this descent, in shards: puzzles, their candidates, states."""
        return [self.start_shard(part, number) for part in puzzle.split(SHARD)]

    def start_shard(self, puzzle, number=0):
        """The random numbers are a function of the clues and of the number of the descent alone."""
        board = candidates.Board(puzzle.numpy())
        keys = ([zlib.crc32(clues.tobytes()), number] for clues in puzzle.numpy().astype(np.uint8))
        size = 729, len(self.first)
        random = [np.random.Generator(np.random.Philox(key=key)).standard_normal(size, np.float32) for key in keys]
        random = torch.from_numpy(np.stack(random)[board.place])
        return puzzle, board, self.first + self.spread * random.to(self.first)

    def iterate(self, state):
        """One step of descent of all shards, each in a thread: the logits [batch, 81, 9], the next state."""
        _, logits, state = zip(*workers().map(self.step, state))
        return torch.cat(logits), list(state)

    def iterate_shard(self, shard):
        return self.step(shard)[1:]

    @torch.no_grad()
    def step(self, shard):
        """One step of descent: the energies [puzzles] before it, the logits after it, the next state."""
        puzzle, board, s = shard
        energy, gradient = self.gradient(s, board)
        s = s - self.descent * gradient
        logits = board.logits(self.logit(s).float(), puzzle.numpy())
        return of_puzzles(energy, board, len(puzzle)), logits, (puzzle, board, s)

    def forward(self, puzzle, iterations):
        """Yield the logits after each step."""
        for logits, _ in self.answers(puzzle, iterations):
            yield logits

    def answers(self, puzzle, iterations):
        """Yield the logits after each step and the state: of the descent under way, but the logits are those of an
        earlier descent where that ended lower."""
        lowest, best = torch.full((len(puzzle),), torch.inf), torch.zeros(len(puzzle), 81, 9)
        for done in range(iterations):
            if done % self.patience == 0:
                state = self.start(puzzle, done // self.patience)
            energy, logits, state = zip(*workers().map(self.step, state))
            energy = torch.cat(energy)  # before the step: to know it after would cost another look
            lower = energy < lowest
            logits = torch.where(lower[:, None, None], torch.cat(logits), best)
            yield logits, state
            if (done + 1) % self.patience == 0:
                lowest, best = torch.where(lower, energy, lowest), logits

    def logit(self, s):
        """[candidates]: the softmax over the candidates of a cell gives their probabilities."""
        return 30 * torch.tanh(self.sharp * (s @ self.read) / 30)  # exp() stays finite

    @torch.no_grad()
    def energies(self, state):
        """[puzzles]: the energy of each in this state."""
        return torch.cat([of_puzzles(self.energy(s, board), board, len(puzzle)) for puzzle, board, s in state])


def of_puzzles(values, board, count):
    """[puzzles]: the sums of what is given for each candidate."""
    return values.new_zeros(count).index_add(0, torch.from_numpy(board.place[0]), values)


class Slots(exp_iterate.Slots):
    def ease(self, config, random, step, puzzle, solution):
        """The same for a share of the puzzles ever after."""
        easy = random.random((len(puzzle), 1)) < (config.easy if step >= config.easy_steps else 1)
        extra = random.random(puzzle.shape) < easy * random.uniform(0, 0.37, (len(puzzle), 1))
        puzzle[extra] = solution[extra]


def shard_gradients(model, config, slots, part, blanks, number=0):
    """A step's loss on a few slots, its gradients, the last logits; the states reached go back to the slots."""
    solution, memory = slots.solution[part].numpy(), slots.memory[part]
    puzzle, board, s = model.start_shard(slots.puzzle[part], number)
    fresh = slots.free[part][board.place[0]][:, None]
    s = torch.where(fresh, s, memory[board.place])
    cell, digit = candidates.CELL[board.place[1]], candidates.DIGIT[board.place[1]]
    right = torch.from_numpy(digit + 1 == solution[board.place[0], cell])
    loss, energies, promised = 0.0, [], []
    for _ in range(config.depth):
        energy, gradient = model.gradient(s, board, learning=True)
        energies.append(of_puzzles(energy, board, len(puzzle)))
        promised.append(config.descent * of_puzzles(gradient.square().sum(1), board, len(puzzle)))
        s = s - config.descent * gradient
        logit = model.logit(s)
        total = candidates.Collect.apply(logit.exp()[:, None], board)[0, :, 0]  # of each cell
        loss = loss + (total[board.index[0]][right].log() - logit[right]).sum() / (blanks * config.depth)
    energies.append(of_puzzles(model.energy(s, board), board, len(puzzle)))
    before, after = torch.stack(energies[:-1]), torch.stack(energies[1:])
    lowered = (before - after) / (torch.stack(promised) + TINY)  # as a share of what the gradients promised
    loss = loss + config.rise * (config.fall - lowered).relu().sum() / (config.batch * config.depth)
    logits = board.logits(logit.detach().float(), puzzle.numpy())
    solved = (logits.argmax(-1) + 1 == slots.solution[part]).all(1)
    judged = torch.where(solved, energies[-1], config.high - energies[-1]).relu() / config.high
    loss = loss + config.judge * judged.sum() / config.batch
    memory[board.place] = s.detach()
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters())), logits


class Run(common.Run):
    def sources(self):
        return [*super().sources(), Path(exp_iterate.__file__)]


def train(config):
    run = Run(config, __file__)
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
        number = FIRST * (config.seed + 1) + step  # of these descents
        work = lambda part: shard_gradients(model, config, slots, part, batch.blanks, number)  # noqa: B023, E731
        done = workers().map(work, parts)
        losses, gradients, logits = zip(*done)
        for parameter, *shares in zip(model.parameters(), *gradients):
            parameter.grad = sum(shares)
        for optimizer in optimizers:
            optimizer.step()
        logits = torch.cat(logits)
        solved = ((logits.argmax(-1) == target) | (slots.puzzle != 0)).all(1)
        slots.free = chance < config.depth / torch.where(solved, config.solved_lifetime, config.lifetime)
        run.report(step, sum(losses), logits, batch, config.lr * share)
        run.evaluate(step, model, data)
        run.end_step(step, model, [*optimizers, slots])
    return run.finish(model, data)


def main(argv=None):
    return train(common.parse(Config, argv))


app = common.modal_app(__file__)
if __name__ == "__main__":
    main()
