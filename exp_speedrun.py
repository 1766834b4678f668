"""The fastest way we know to a good solver: a network on the candidates, trained from the states it reaches itself.

Parent: none
Change: none, a design of its own; what it shares with sudoku.py is the loop: guess, read the guess, guess again.
Hypothesis: Rules built into the wiring need no learning, and a puzzle left half solved is the best next example.
Log: not in the log.

python exp_speedrun.py            minutes on two CPU cores: generates puzzles, trains, tests at 8 to 256 iterations
modal run exp_speedrun.py         the same on a rented machine, which is not faster: it makes no use of a GPU
python solve.py 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79     uses the result
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn as nn

import common
from data import generate, sources, store
from plumbing.candidates import CELL, DIGIT, KINDS, Board, Collect, GroupMax, Spread

SHARD = 8  # puzzles that one thread works on at a time: what they need stays in its core's cache


@dataclass
class Config(common.RunConfig):
    device: Literal["cpu"] = "cpu"  # the kernels in candidates.py are numba's
    width: int = 32  # numbers that describe one candidate; 16 were clearly too few
    mlp: int = 96  # hidden units of the one small network that all candidates share
    batch: int = 16  # puzzles under way; small, because many steps matter more than smooth ones
    depth: int = 6  # iterations a step, with gradient; the next step goes on from there
    lifetime: int = 24  # iterations until an unsolved puzzle makes room, on average; with 64 the stuck ones crowd in
    steps: int = 4_000  # about five minutes on two cores, tests included; 6,000 came no further
    easy_steps: int = 100  # at first with extra clues, up to 45, so that some puzzles are solved at all
    muon_lr: float = 0.01  # Muon's, for the matrices; 0.005 is slower, 0.02 restless
    lr: float = 0.002  # AdamW's, for the rest
    warmup: int = 50  # steps to the full rate, which then falls to 0 on a straight line
    iterations: int = 64  # in tests; more than training ever sees at once
    test_iterations: tuple[int, ...] = (8, 16, 32, 128, 256)  # what longer thinking gives
    train_puzzles: int = 20_000  # renamed digits and swapped lines look the same to the network, so few suffice
    test_per_bucket: int = 1_000  # never seen in training: 45 clues, then minimal
    evaluate_every: int = 100_000  # only at the end: a test costs as much as many steps


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, mlp = config.width, config.mlp
        matrix = lambda i, o, scale=1.0: nn.Parameter(torch.randn(i, o) * scale / i**0.5)  # noqa: E731
        self.first = nn.Parameter(torch.randn(width))  # the state of every candidate at the start
        self.message = matrix(width, KINDS * width)  # what it tells each of its groups
        self.state = matrix(width, mlp)
        self.heard = matrix(KINDS * width, mlp)  # the largest message in each group
        self.seen = matrix(2 * KINDS, mlp)  # the sizes of its groups, its probability in each
        self.bias = nn.Parameter(torch.zeros(mlp))
        self.out = matrix(mlp, width, 0.5)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)

    def start(self, board):
        return self.norm(self.first).expand(len(board.place[0]), -1), torch.zeros(len(board.place[0]), KINDS)

    def iterate(self, board, state, belief):
        """Everyone hears the largest message in each of its groups, thinks, and adds to its state."""
        heard = torch.bmm(GroupMax.apply(state @ self.message, board), self.heard.view(KINDS, -1, len(self.bias)))
        own = torch.cat([state, board.sizes, belief], 1) @ torch.cat([self.state, self.seen]) + self.bias
        state = self.norm(torch.addmm(state, Spread.apply(own, heard, board).relu(), self.out))
        logit = 30 * torch.tanh(self.head(state) / 30)  # exp() below stays finite
        total = Collect.apply(logit.exp(), board).squeeze(2).gather(1, board.index)
        return logit.squeeze(1), state, logit.exp() / total.T  # a softmax over each of its groups

    def forward(self, puzzle, iterations):
        """Yield the logits [batch, 81, 9] of each iteration."""
        gradient = torch.is_grad_enabled()

        def advance(shard):
            puzzle, board, state, belief = shard
            with torch.set_grad_enabled(gradient):  # each thread has a setting of its own
                logit, state, belief = self.iterate(board, state, belief)
                return board.logits(logit, puzzle), (puzzle, board, state, belief)

        puzzles = np.array_split(puzzle.numpy(), -(-len(puzzle) // SHARD))
        shards = [(puzzle, board, *self.start(board)) for puzzle, board in zip(puzzles, map(Board, puzzles))]
        for _ in range(iterations):
            logits, shards = zip(*workers.map(advance, shards))
            yield torch.cat(logits)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal. torch.optim.Muon does the same in bf16, which costs a CPU five times as much."""

    def __init__(self, parameters, lr, momentum=0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(average, group["momentum"])
                x = x.T if len(x) > len(x.T) else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):  # Newton-Schulz: every singular value comes close to 1
                    square = x @ x.T
                    x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
                x = x if x.shape == p.shape else x.T
                p.sub_(x, alpha=group["lr"] * max(1, len(p) / len(p.T)) ** 0.5)


class Slots:
    """The puzzles under way, with the states that the network has reached on them. Saved like an optimiser."""

    def __init__(self, config):
        n = config.batch
        self.puzzle, self.solution = (torch.zeros(n, 81, dtype=torch.uint8) for _ in range(2))
        self.memory = torch.zeros(n, 729, config.width + KINDS)
        self.free = torch.ones(n, dtype=torch.bool)

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, saved):
        vars(self).update(saved)

    def refill(self, config, data, step):
        """New puzzles for free slots. -> what decides at the end of the step which slots it frees"""
        random = np.random.Generator(np.random.Philox(key=[config.seed, step]))
        puzzle, solution = data.train.rows(random.integers(len(data.train), size=config.batch))
        if step < config.easy_steps:
            puzzle = np.where(random.random(puzzle.shape) < random.uniform(0, 0.37, (len(puzzle), 1)), solution, puzzle)
        for mine, new in ((self.puzzle, puzzle), (self.solution, solution)):
            mine[self.free] = torch.from_numpy(new)[self.free]
        return torch.from_numpy(random.random(config.batch))


def shard_gradients(model, config, slots, part, blanks):
    """A step's loss on a few slots, its gradients, the last logits; leaves the states reached in the slots."""
    puzzle, solution, memory = slots.puzzle[part].numpy(), slots.solution[part].numpy(), slots.memory[part]
    board = Board(puzzle)
    state, belief = model.start(board)
    fresh = slots.free[part][board.place[0]][:, None]
    carried = memory[board.place]
    state = torch.where(fresh, state, carried[:, :-KINDS])
    belief = torch.where(fresh, belief, carried[:, -KINDS:])
    right = torch.from_numpy(DIGIT[board.place[1]] + 1 == solution[board.place[0], CELL[board.place[1]]])
    loss = 0.0
    for _ in range(config.depth):
        logit, state, belief = model.iterate(board, state, belief)
        loss = loss - belief[right, 0].log().sum() / (blanks * config.depth)
    memory[board.place] = torch.cat([state, belief], 1).detach()
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters())), board.logits(logit.detach(), puzzle)


def generated(config):
    """Minimal puzzles to learn from; unseen ones in two buckets to test on: 0 has 45 clues, 1 is minimal."""
    n = config.test_per_bucket
    minimal = generate.cached(config.train_puzzles + n, clues="minimal", seed=1)
    parts = [generate.cached(n, clues=45, seed=2).rows(np.arange(n)), minimal.rows(np.arange(n))]
    test = store.from_arrays(*(np.concatenate(part) for part in zip(*parts)), np.repeat([0, 1], n))
    return sources.Data(minimal.subset(np.arange(n, len(minimal))), test, edges=(0, 1, 2))


def train(config):
    run = common.start(config, __file__)
    if run.world > 1:
        raise SystemExit("exp_speedrun.py runs in one process, on as many threads as OMP_NUM_THREADS says")
    data = generated(config)
    model, slots = Model(config), Slots(config)
    matrices = [p for p in model.parameters() if p.ndim == 2 and min(p.shape) > 1]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = [Muon(matrices, lr=config.muon_lr), torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)]
    for step in range(run.resume(model, [*optimizers, slots]), config.steps):
        share = min((step + 1) / (config.warmup + 1), 1 - step / config.steps)
        for optimizer, rate in zip(optimizers, (config.muon_lr, config.lr)):
            optimizer.param_groups[0]["lr"] = rate * share
        chance = slots.refill(config, data, step)
        target = torch.where(slots.puzzle == 0, slots.solution.long() - 1, common.IGNORED)
        batch = common.Batch(slots.puzzle, target, None, int((slots.puzzle == 0).sum()))
        parts = [slice(at, at + SHARD) for at in range(0, config.batch, SHARD)]
        done = workers.map(lambda part: shard_gradients(model, config, slots, part, batch.blanks), parts)  # noqa: B023
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


workers = ThreadPoolExecutor(torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1))
app = common.modal_app(__file__)
if __name__ == "__main__":
    main()
