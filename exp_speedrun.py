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

import numba
import numpy as np
import torch
import torch.nn as nn

import common
from data import generate, sources, store

SHARD = 8  # puzzles that one thread works on at a time: what they need stays in its core's cache
CELL, DIGIT = np.arange(81).repeat(9), np.tile(np.arange(9), 81)  # of each of the 729 candidates
GROUP = np.stack(  # the four groups, of 81 a kind, that a candidate is in
    [CELL, CELL // 9 * 9 + DIGIT, CELL % 9 * 9 + DIGIT, (CELL // 27 * 3 + CELL % 9 // 3) * 9 + DIGIT]
)
KINDS = len(GROUP)  # what may stand in a cell; where a row, a column, a box may have a digit


@dataclass
class Config(common.RunConfig):
    device: Literal["cpu"] = "cpu"  # the kernels below are numba's
    width: int = 32  # numbers that describe one candidate; 16 come to 91 % where 32 come to 96
    mlp: int = 96  # hidden units of the one small network that all candidates share
    batch: int = 16  # puzzles under way; small, because many steps matter more than smooth ones
    depth: int = 6  # iterations a step, with gradient; the next step goes on from there
    lifetime: int = 64  # iterations after which an unsolved puzzle makes room for another, on average
    steps: int = 4_000  # the curve is not flat yet
    easy_steps: int = 100  # at first with extra clues, up to 45, so that some puzzles are solved at all
    muon_lr: float = 0.01  # Muon's, for the matrices; 0.005 is slower, 0.02 restless
    lr: float = 0.002  # AdamW's, for the rest
    warmup: int = 50  # steps to the full rate, which then falls to 0 on a straight line
    iterations: int = 64  # in tests; more than training ever sees at once
    train_puzzles: int = 10_000  # nothing is memorised: symmetries of a puzzle look the same to the network
    test_per_bucket: int = 1_000  # never seen in training: 45 clues, then minimal
    evaluate_every: int = 100_000  # only at the end: a test costs as much as many steps


def compiled(function):
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


@compiled
def max_kernel(x, members, first, out, winner):
    width = out.shape[2]
    for kind in range(KINDS):
        for g in range(out.shape[1]):
            out[kind, g], winner[kind, g] = 0, -1
            for at in range(first[kind, g], first[kind, g + 1]):
                i = members[kind, at]
                start = at == first[kind, g]
                for j in range(width):
                    more = start or x[i, kind * width + j] > out[kind, g, j]
                    out[kind, g, j] = x[i, kind * width + j] if more else out[kind, g, j]
                    winner[kind, g, j] = i if more else winner[kind, g, j]


@compiled
def max_gradient_kernel(gradient, winner, members, first, out):
    width = gradient.shape[2]
    for kind in range(KINDS):
        for g in range(gradient.shape[1]):
            for at in range(first[kind, g], first[kind, g + 1]):
                i = members[kind, at]
                for j in range(width):
                    out[i, kind * width + j] = gradient[kind, g, j] if winner[kind, g, j] == i else np.float32(0)


@compiled
def spread_kernel(x, groups, group, out):
    for i in range(len(x)):
        a, b, c, d = group[0, i], group[1, i], group[2, i], group[3, i]
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] + groups[0, a, j] + groups[1, b, j] + groups[2, c, j] + groups[3, d, j]


@compiled
def collect_kernel(x, members, first, out):
    for kind in range(KINDS):
        for g in range(out.shape[1]):
            out[kind, g] = 0
            for at in range(first[kind, g], first[kind, g + 1]):
                i = members[kind, at]
                for j in range(x.shape[1]):
                    out[kind, g, j] += x[i, j]


class GroupMax(torch.autograd.Function):
    """[candidates, 4 x width] -> [4, groups, width]: the largest over each group's members."""

    @staticmethod
    def forward(context, x, board):
        out = x.new_empty(KINDS, board.groups, x.shape[1] // KINDS)
        winner = torch.empty(out.shape, dtype=torch.int32)
        max_kernel(x.numpy(), board.members, board.first, out.numpy(), winner.numpy())
        context.board, context.winner = board, winner
        return out

    @staticmethod
    def backward(context, gradient):
        board, winner = context.board, context.winner.numpy()
        out = torch.empty(len(board.place[0]), KINDS * gradient.shape[2])
        max_gradient_kernel(gradient.contiguous().numpy(), winner, board.members, board.first, out.numpy())
        return out, None


class Spread(torch.autograd.Function):
    """x [candidates, width] plus what each candidate's four groups say [4, groups, width]."""

    @staticmethod
    def forward(context, x, groups, board):
        context.board, out = board, torch.empty_like(x)
        spread_kernel(x.numpy(), groups.numpy(), board.group, out.numpy())
        return out

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.contiguous()
        return gradient, Collect.apply(gradient, context.board), None


class Collect(torch.autograd.Function):
    """[candidates, width] -> [4, groups, width]: the sum over each group's members."""

    @staticmethod
    def forward(context, x, board):
        context.board, out = board, x.new_empty(KINDS, board.groups, x.shape[1])
        collect_kernel(x.numpy(), board.members, board.first, out.numpy())
        return out

    @staticmethod
    def backward(context, gradient):
        board, out = context.board, gradient.new_zeros(len(context.board.place[0]), gradient.shape[2])
        spread_kernel(out.numpy(), gradient.contiguous().numpy(), board.group, out.numpy())
        return out, None


class Board:
    """The candidates of a few puzzles that no clue rules out, and who shares a group with whom."""

    def __init__(self, puzzle):
        clue = (puzzle[:, :, None] == np.arange(1, 10)).reshape(len(puzzle), 729)
        alive = np.ones_like(clue)
        for group in GROUP:
            alive &= ~clue[:, group.argsort(kind="stable").reshape(81, 9)].any(2)[:, group]
        self.place = np.nonzero(alive)  # puzzle, candidate
        keys = self.place[0] * 81 + GROUP[:, self.place[1]]
        found = [np.unique(key, return_inverse=True, return_counts=True) for key in keys]
        self.groups = max(len(key) for key, _, _ in found)  # as many of each kind, unless the clues contradict
        self.group = np.stack([inverse for _, inverse, _ in found])
        self.members = keys.argsort(1, kind="stable")
        self.first = np.full((KINDS, self.groups + 1), len(self.place[0]))
        for first, (_, _, counts) in zip(self.first, found):
            first[0], first[1 : len(counts) + 1] = 0, counts.cumsum()
        sizes = [counts[inverse] for _, inverse, counts in found]
        self.sizes = torch.from_numpy(np.stack(sizes, 1).astype(np.float32) / 9)
        self.index = torch.from_numpy(self.group)

    def logits(self, x, puzzle):
        """[n, 81, 9] from one number a candidate; what is ruled out gets a probability of 0."""
        out = torch.from_numpy(np.where(puzzle[:, CELL] == DIGIT + 1, 0.0, -1e4).astype(np.float32))
        return out.index_put((torch.from_numpy(self.place[0]), torch.from_numpy(self.place[1])), x).view(-1, 81, 9)


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
    return run.finish(model, data, (8, 16, 32, 128, 256) if config.preset == "full" else ())


def main(argv=None):
    return train(common.parse(Config, argv))


workers = ThreadPoolExecutor(torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1))
app = common.modal_app(__file__)
if __name__ == "__main__":
    main()
