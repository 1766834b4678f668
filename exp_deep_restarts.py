"""The network that starts from noise, and starts anew where it fails.

Parent: exp_deep_noise
Change: in tests a puzzle unsolved after 64 iterations starts anew from other noise, and so on (forward).
Hypothesis: Where the noise decides what is tried first, another try may succeed where the first got stuck;
    the rules say which did.
Log: not in the log.

python exp_deep_restarts.py --hard puzzles.csv      minutes on two CPU cores; any CSV of hard puzzles
python exp_deep_restarts.py                         the same with sudoku-extreme's training puzzles, from Hugging Face
modal run exp_deep_restarts.py                      the same on a rented machine
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np  # used below (exp_hard)
import torch
import torch.nn as nn
import torch.nn.functional as F

import common
from common import candidates

SHARD = 8  # puzzles that one thread works on at a time: what they need stays in its core's cache; a GPU takes them all
REGROUP = 8  # iterations of a test at a time; then the puzzles not yet solved are put together in new shards
KINDS = candidates.KINDS  # kinds of groups: a cell; a digit in a row, in a column, in a box


@dataclass
class Config(common.RunConfig):
    device: Literal["auto", "cpu", "cuda"] = "cpu"  # plain PyTorch on a GPU; not tried on one yet
    width: int = 32  # size of the state of one candidate; 16 were clearly too few
    mlp: int = 96  # hidden units of the one small network that all candidates share
    batch: int = 16  # puzzles under way; small, because many steps matter more than smooth ones
    depth: int = 16  # iterations a step, with gradient; the next step goes on from there (exp_deep)
    restart: int = 64  # changed: iterations of a test until an unsolved puzzle starts anew; a multiple of REGROUP
    noise: float = 0.5  # standard deviation; the first state itself has one of about 1 (exp_deep_noise)
    lifetime: int = 96  # mean iterations until an unsolved puzzle is replaced (exp_deep)
    steps: int = 4_000  # two minutes on two cores; 34,000 solve more, see README.md
    easy_steps: int = 100  # at first with extra clues, up to 45, so that some puzzles are solved at all
    muon_lr: float = 0.01  # Muon's, for the matrices; 0.005 and 0.02 give the same in exp_deep
    lr: float = 0.002  # AdamW's, for the rest
    warmup: int = 50  # steps to the full rate, which then falls to 0 on a straight line
    iterations: int = 64  # in tests; more than training ever sees at once
    test_iterations: tuple[int, ...] = (16, 32, 128, 256, 512, 1024)  # hard puzzles take longer (exp_hard)
    data: str = "minimal"  # generated minimal puzzles, (exp_hard)
    hard: str = "extreme"  # and hard ones: sudoku-extreme's, or those of a .csv file (exp_hard)
    apart: str = ""  # a .csv file of puzzles that training must not see, in any symmetric form (exp_hard)
    hard_share: float = 0.7  # of the puzzles, after the first third of the steps (exp_hard)
    train_puzzles: int = 20_000  # renamed digits and swapped lines look the same to the network, so few suffice
    test_per_bucket: int = 1_000  # never seen in training: 45 clues, minimal, hard (exp_hard)
    evaluate_every: int = 100_000  # only at the end: a test costs as much as many steps


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, mlp = config.width, config.mlp
        matrix = lambda i, o, scale=1.0: nn.Parameter(torch.randn(i, o) * scale / i**0.5)  # noqa: E731
        self.first = nn.Parameter(torch.randn(width))  # the state of every candidate at the start
        self.width, self.spread, self.restart = width, config.noise, config.restart  # changed: for each start
        self.message = matrix(width, KINDS * width)  # what it tells each of its groups
        self.state = matrix(width, mlp)
        self.heard = matrix(KINDS * width, mlp)  # the largest message in each group
        self.seen = matrix(2 * KINDS, mlp)  # the sizes of its groups, its probability in each
        self.bias = nn.Parameter(torch.zeros(mlp))
        self.out = matrix(mlp, width, 0.5)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)

    def start(self, puzzle, attempt=0):  # changed: each with noise of its own
        """The state before the first iteration, in shards: puzzles, on the CPU, candidates, what each knows."""
        parts = puzzle.cpu().split(candidates.shard(SHARD, self.first.device))  # changed: for the next line
        return [self.start_shard(part, attempt=attempt) for part in parts]  # changed: with it

    def start_shard(self, puzzle, board=None, attempt=0):  # changed: with noise of its own
        board = board or candidates.Board(puzzle.numpy(), self.first.device)
        fixed = torch.Generator().manual_seed(attempt)  # changed: every puzzle gets the same numbers
        noise = self.spread * torch.randn(729, self.width, generator=fixed)  # changed: of each candidate
        noise = F.pad(noise[board.place[1]], (0, KINDS)).to(self.first.device)  # changed: by place and digit
        return puzzle, board, self.first_state() + noise  # not all alike (exp_deep_noise)

    def first_state(self):
        return F.pad(self.norm(self.first), (0, KINDS))  # it gives no candidate a probability

    def iterate(self, state):
        """One iteration of all shards: the logits [batch, 81, 9], the next state."""
        logits, state = self.think(state, 1)
        return logits[0], state

    def think(self, state, count):
        """Iterations of all shards, each in a thread: the logits [count, batch, 81, 9], the next state."""
        gradient = torch.is_grad_enabled()

        def one(shard):
            with torch.set_grad_enabled(gradient):  # each thread has a setting of its own
                _, logits, shard = self.think_shard(shard, count)
                return shard[1].logits(logits, shard[0].numpy()), shard

        logits, state = zip(*workers().map(one, state))
        return torch.cat(logits, 1), state

    def think_shard(self, shard, count):
        """Max-pool messages over each candidate's groups, then an MLP, a residual and a norm: `count` times."""
        puzzle, board, x = shard
        given = torch.addmm(self.bias, board.sizes.to(self.bias), self.seen[:KINDS])
        weights = self.message, torch.cat([self.state, self.seen[KINDS:]]), self.heard, self.out
        last = self.norm.weight, self.norm.bias, self.head.weight, self.head.bias
        states, logits = candidates.think(count, board, x, given, *weights, *last)
        return states, logits, (puzzle, board, states[-1])

    def forward(self, puzzle, iterations):
        """Yield the logits of each iteration; a puzzle whose board obeys the rules is done, and costs nothing more."""
        state, left = self.start(puzzle), torch.arange(len(puzzle), device=puzzle.device)
        found, done = left.new_zeros(len(left), 81, 9, dtype=torch.float), torch.zeros_like(left, dtype=torch.bool)
        for begin in range(0, iterations, REGROUP):
            if begin and begin % self.restart == 0 and not done.all():  # changed: unsolved from the last noise
                left = left[~done[left]]
                state = self.start(puzzle[left], begin // self.restart)
            logits, count = (), min(REGROUP, iterations - begin)
            if len(left):
                logits, state = self.think(state, count)
            for step in logits:
                found = found.index_copy(0, left, torch.where(done[left, None, None], found[left], step))
                done[left] |= candidates.obeys_rules(puzzle[left], found[left])
                yield found
            yield from [found] * (count - len(logits))
            solved = done[left].cpu()  # nothing waits for a GPU before
            if 8 * solved.sum() >= len(left) > 0:  # fewer are not worth the move
                state, left = self.keep(state, ~solved), left[~solved]

    def keep(self, state, wanted):
        """These puzzles of a state, again in full shards."""
        puzzle = torch.cat([shard[0] for shard in state])[wanted]
        memory = torch.cat([shard[1].dense(shard[2]) for shard in state])[wanted]
        size = candidates.shard(SHARD, memory.device)
        return [self.resume_shard(*part) for part in zip(puzzle.split(size), memory.split(size))]

    def resume_shard(self, puzzle, memory):
        """The shard of puzzles that had this state [n, 729, numbers of a candidate]."""
        board = candidates.Board(puzzle.numpy(), memory.device)
        return puzzle, board, memory[board.place]


@functools.cache
def workers():
    """The threads that iterate shards, started when first needed; each computes on one core."""

    def one_core():
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)  # a setting of each thread; products with denormal numbers are many times slower

    return ThreadPoolExecutor(torch.get_num_threads(), initializer=one_core)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by quintic Newton-Schulz steps, in fp32: torch.optim.Muon's bf16 is slow on a CPU."""

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
    """The puzzles in training, with the states that the network has reached on them. Saved like an optimiser."""

    def __init__(self, config, width, device="cpu"):
        n = config.batch
        self.puzzle, self.solution = (torch.zeros(n, 81, dtype=torch.uint8) for _ in range(2))
        self.memory = torch.zeros(n, 729, width, device=device)  # the rest stays on the CPU, where boards are made
        self.free = torch.ones(n, dtype=torch.bool)

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, saved):
        vars(self).update({name: value.to(vars(self)[name].device) for name, value in saved.items()})

    def refill(self, config, data, step):
        """New puzzles for free slots. -> random numbers that decide after the step which unsolved slots are freed"""
        random = common.random_at(config, step)
        first_hard = int(np.searchsorted(data.train.rating, 1))  # the rows from there on are hard (exp_hard)
        rows = random.integers(first_hard, size=config.batch)  # minimal ones (exp_hard)
        share = config.hard_share * min(1, 3 * step / config.steps)  # rising (exp_hard)
        hard = random.random(config.batch) < share  # which of the new puzzles are (exp_hard)
        rows[hard] = random.integers(first_hard, len(data.train), size=hard.sum())  # the others (exp_hard)
        puzzle, solution = data.train.rows(rows)  # both kinds (exp_hard)
        self.ease(config, random, step, puzzle, solution, hard)  # which are hard (exp_hard)
        for mine, new in ((self.puzzle, puzzle), (self.solution, solution)):
            mine[self.free] = torch.from_numpy(new)[self.free]
        chance = torch.from_numpy(random.random(config.batch))  # returned below (exp_deep_noise)
        new = int(self.free.sum()), 729, config.width  # who gets random numbers (exp_deep_noise)
        noise = torch.from_numpy(random.standard_normal(new, np.float32))  # by seed and step (exp_deep_noise)
        noise = F.pad(config.noise * noise, (0, KINDS))  # none in the shares (exp_deep_noise)
        self.memory[self.free] = noise.to(self.memory.device)  # added to the first state (exp_deep_noise)
        return chance  # drawn before the noise, as in the parent (exp_deep_noise)

    def ease(self, config, random, step, puzzle, solution, hard):  # which are hard (exp_hard)
        """Give some blanks, up to 45 clues, in the first steps."""
        if step < config.easy_steps:
            extra = random.random(puzzle.shape) < random.uniform(0, 0.37, (len(puzzle), 1))
            puzzle[extra] = solution[extra]
        # with up to eight blanks given a hard puzzle is of medium difficulty (exp_hard)
        order = np.where(puzzle == 0, random.random(puzzle.shape), 2).argsort(1).argsort(1)  # of the blanks (exp_hard)
        eased = hard & (random.random(len(hard)) < 0.5)  # half of them (exp_hard)
        count = np.where(eased, random.integers(1, 9, len(hard)), 0)  # blanks to give (exp_hard)
        extra = order < count[:, None]  # those that come first (exp_hard)
        puzzle[extra] = solution[extra]  # given (exp_hard)


def shard_gradients(model, config, slots, part, blanks):
    """A step's loss on a few slots, its gradients, the last logits; the states reached go back to the slots."""
    solution, memory = slots.solution[part].numpy(), slots.memory[part]
    puzzle, board, x = model.resume_shard(slots.puzzle[part], memory)
    fresh = slots.free[part][board.place[0]][:, None].to(x.device)
    shard = puzzle, board, torch.where(fresh, model.first_state() + x, x)  # x is noise there (exp_deep_noise)
    cell, digit = candidates.CELL[board.place[1]], candidates.DIGIT[board.place[1]]
    right = torch.from_numpy(digit + 1 == solution[board.place[0], cell])
    states, logits, _ = model.think_shard(shard, config.depth)
    probability = states[:, :, -KINDS][:, right]  # of the right digit in each cell
    loss = -probability.log().sum() / (blanks * config.depth)
    memory[board.place] = states[-1].detach()
    return (
        loss.detach(),
        torch.autograd.grad(loss, list(model.parameters())),
        board.logits(logits[-1].detach(), puzzle.numpy()),
    )


def train(config):
    run = common.Run(config, __file__)
    if run.world > 1:
        raise SystemExit(f"{run.experiment}.py runs in one process, on as many threads as OMP_NUM_THREADS says")
    data = common.load(config, run)
    model, slots = Model(config).to(run.device), Slots(config, config.width + KINDS, run.device)
    matrices = [p for p in model.parameters() if p.ndim == 2 and min(p.shape) > 1]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = [Muon(matrices, lr=config.muon_lr), torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)]
    for step in range(run.resume(model, [*optimizers, slots]), config.steps):
        share = min((step + 1) / (config.warmup + 1), 1 - step / config.steps)
        for optimizer, rate in zip(optimizers, (config.muon_lr, config.lr)):
            optimizer.param_groups[0]["lr"] = rate * share
        chance = slots.refill(config, data, step)
        target = torch.where(slots.puzzle == 0, slots.solution.long() - 1, common.IGNORED).to(run.device)
        batch = common.Batch(slots.puzzle, target, None, int((slots.puzzle == 0).sum()))
        size = candidates.shard(SHARD, run.device)
        parts = [slice(at, at + size) for at in range(0, config.batch, size)]
        done = workers().map(lambda part: shard_gradients(model, config, slots, part, batch.blanks), parts)  # noqa: B023
        losses, gradients, logits = zip(*done)
        for parameter, *shares in zip(model.parameters(), *gradients):
            parameter.grad = sum(shares)
        for optimizer in optimizers:
            optimizer.step()
        logits = torch.cat(logits)
        solved = ((logits.argmax(-1) == target) | (target == common.IGNORED)).all(1).cpu()
        slots.free = chance < torch.where(solved, 0.5, config.depth / config.lifetime)
        run.report(step, sum(losses), logits, batch, config.lr * share)
        run.evaluate(step, model, data)
        run.end_step(step, model, [*optimizers, slots])
    return run.finish(model, data)


def main(argv=None):
    return train(common.parse(Config, argv))


app = common.modal_app(__file__)
if __name__ == "__main__":
    main()
