"""A network for a search: how many guesses a supposition will cost, and whether what is supposed can be true.

Parent: none
Change: none, a design of its own: exp_deep_sums' network, trained on the boards that a search meets, with a supposition
    every few iterations; two more heads learn what an exact solver finds out about them.
Hypothesis: A search is short if what it supposes soon leads to the solution or to a contradiction. How soon is hard to
    compute and may be easy to see; and where a contradiction is likely, the soonest is best, not the likeliest.
Log: not in the log.

python exp_guess.py --hard puzzles.csv      an hour on one CPU core; any CSV of hard puzzles
python exp_guess.py                         the same with sudoku-extreme's training puzzles, from Hugging Face
modal run exp_guess.py                      the same on a rented machine
python guess.py puzzles.csv --weights runs/exp_guess/full-seed0      how long its searches are
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import common
from common import candidates, solver

SHARD = 8  # puzzles that one thread works on at a time: what they need stays in its core's cache
REGROUP = 8  # iterations of a test at a time; then the puzzles not yet solved are put together in new shards
KINDS = candidates.KINDS  # kinds of groups: a cell; a digit in a row, in a column, in a box


@dataclass
class Config(common.RunConfig):
    device: Literal["cpu"] = "cpu"  # between two suppositions the rules are applied there
    width: int = 32  # size of the state of one candidate; 16 were clearly too few
    sums: int = 8  # of a message's numbers; the others are maxima. Effort depends on how much follows, so they count
    mlp: int = 96  # hidden units of the one small network that all candidates share
    read: int = 32  # hidden units that read the verdict from a whole puzzle
    batch: int = 32  # puzzles under way
    depth: int = 16  # iterations a step, with gradient; the next step goes on from there
    steps: int = 10_000  # most of an hour on one core
    first: int = 8  # mean iterations before the first supposition, beside three
    between: tuple[int, ...] = (2, 3, 4)  # iterations before the next one, at random
    lies: float = 0.5  # share of the puzzles where a supposition will be false
    denied: float = 0.2  # share of the suppositions that a candidate is false, as when a search goes back
    search_noise: float = 0.5  # of the logarithm of what it should cost: not always the best candidate is supposed
    asked: int = 12  # candidates a puzzle, in the mean, whose effort is measured
    most: int = 100  # guesses at most after the candidate itself, to measure it
    effort: float = 1.0  # weight of that loss
    verdict: float = 0.3  # weight of a loss beside: is all that is supposed true?
    muon_lr: float = 0.01  # Muon's, for the matrices; 0.005 and 0.02 give the same in exp_deep
    lr: float = 0.002  # AdamW's, for the rest
    warmup: int = 50  # steps to the full rate, which then falls to 0 on a straight line
    iterations: int = 64  # in tests without a search
    test_iterations: tuple[int, ...] = (16, 32, 128, 256)
    data: str = "minimal"  # generated minimal puzzles,
    hard: str = "extreme"  # and hard ones: sudoku-extreme's, or those of a .csv file
    apart: str = ""  # a .csv file of puzzles that training must not see, in any symmetric form
    hard_share: float = 0.7  # of the puzzles, after the first third of the steps
    train_puzzles: int = 20_000  # renamed digits and swapped lines look the same to the network, so few suffice
    test_per_bucket: int = 1_000  # never seen in training: 45 clues, minimal, hard
    evaluate_every: int = 100_000  # only at the end: a test costs as much as many steps


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, mlp = config.width, config.mlp
        self.sums = config.sums
        matrix = lambda i, o, scale=1.0: nn.Parameter(torch.randn(i, o) * scale / i**0.5)  # noqa: E731
        self.first = nn.Parameter(torch.randn(width))  # the state of every candidate at the start
        self.message = matrix(width, KINDS * width)  # what it tells each of its groups
        self.state = matrix(width, mlp)
        self.heard = matrix(KINDS * width, mlp)  # the largest message in each group, or the sum
        self.seen = matrix(2 * KINDS, mlp)  # the sizes of its groups, its probability in each
        self.bias = nn.Parameter(torch.zeros(mlp))
        self.out = matrix(mlp, width, 0.5)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        self.effort = nn.Linear(width, 1)  # the logarithm of the guesses that supposing the candidate costs
        self.verdict = nn.Sequential(nn.Linear(2 * width, config.read), nn.ReLU(), nn.Linear(config.read, 1))

    def start(self, puzzle):
        """The state before the first iteration, in shards: puzzles, on the CPU, candidates, what each knows."""
        return [self.start_shard(part.numpy()) for part in puzzle.cpu().split(SHARD)]

    def start_shard(self, puzzle):
        puzzle, board = by_rules(puzzle)
        return puzzle, board, self.first_state().expand(len(board.place[0]), -1)

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
                puzzle, board, x = shard
                states, logits = self.think_on(board, x, count)
                return board.logits(logits, puzzle), (puzzle, board, states[-1])

        logits, state = zip(*workers().map(one, state))
        return torch.cat(logits, 1), state

    def think_on(self, board, x, count):
        """Max-pool messages over each candidate's groups, then an MLP, a residual and a norm: `count` times."""
        given = torch.addmm(self.bias, board.sizes, self.seen[:KINDS])
        weights = self.message, torch.cat([self.state, self.seen[KINDS:]]), self.heard, self.out
        last = self.norm.weight, self.norm.bias, self.head.weight, self.head.bias
        return candidates.think(count, board, x, given, *weights, *last, self.sums)

    def judge(self, board, x):
        """The logarithm of the guesses that each candidate costs; of each puzzle, a logit: is what is supposed true?"""
        state, puzzle = x[:, :-KINDS], torch.from_numpy(board.place[0])
        count = torch.bincount(puzzle, minlength=board.puzzles).clamp(min=1)[:, None]
        mean = state.new_zeros(board.puzzles, state.shape[1]).index_add(0, puzzle, state) / count
        largest = torch.zeros_like(mean).scatter_reduce(
            0, puzzle[:, None].expand_as(state), state, "amax", include_self=False
        )
        return self.effort(state).squeeze(1), self.verdict(torch.cat([largest, mean], 1)).squeeze(1)

    def forward(self, puzzle, iterations):
        """Yield the logits of each iteration; a puzzle whose board obeys the rules is done, and costs nothing more."""
        state, left = self.start(puzzle), torch.arange(len(puzzle))
        found, done = torch.zeros(len(left), 81, 9), torch.zeros_like(left, dtype=torch.bool)
        for begin in range(0, iterations, REGROUP):
            logits, count = (), min(REGROUP, iterations - begin)
            if len(left):
                logits, state = self.think(state, count)
            for step in logits:
                found = found.index_copy(0, left, torch.where(done[left, None, None], found[left], step))
                done[left] |= candidates.obeys_rules(puzzle[left], found[left])
                yield found
            yield from [found] * (count - len(logits))
            solved = done[left]
            if 8 * solved.sum() >= len(left) > 0:  # fewer are not worth the move
                state, left = self.keep(state, ~solved), left[~solved]

    def keep(self, state, wanted):
        """These puzzles of a state, again in full shards."""
        puzzle = np.concatenate([shard[0] for shard in state])[wanted.numpy()]
        memory = torch.cat([shard[1].dense(shard[2]) for shard in state])[wanted]
        shards = []
        for at in range(0, len(puzzle), SHARD):
            part, board = by_rules(puzzle[at : at + SHARD])
            shards.append((part, board, memory[at : at + SHARD][board.place]))
        return shards


def by_rules(puzzle):
    """The puzzles with what the rules alone fill in, and the board of the candidates that they leave."""
    alive, _ = solver.settled(puzzle)
    return filled(alive), candidates.Board.of(alive)


def filled(alive):
    """The digits of the cells that have one candidate left, uint8 [n, 81]; 0 elsewhere."""
    alive = alive.reshape(-1, 81, 9)
    return np.where(alive.sum(2) == 1, alive.argmax(2) + 1, 0).astype(np.uint8)


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
    """The searches in training, with the states that the network has reached on them. Saved like an optimiser."""

    def __init__(self, config):
        n = config.batch
        self.solution = torch.zeros(n, 81, dtype=torch.uint8)
        self.alive = torch.zeros(n, 729, dtype=torch.bool)  # the candidates left, those of filled cells too
        self.memory = torch.zeros(n, 729, config.width + KINDS)
        self.clock = torch.zeros(n, dtype=torch.long)  # iterations so far
        self.first = torch.zeros(n, dtype=torch.long)  # iterations before the first supposition
        self.truths = torch.zeros(n, dtype=torch.long)  # true suppositions before a false one; below 0: all are true
        self.free = torch.ones(n, dtype=torch.bool)

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, saved):
        vars(self).update(saved)

    def refill(self, config, data, step):
        """New puzzles for free slots."""
        random, n = common.random_at(config, step), config.batch
        first_hard = int(np.searchsorted(data.train.rating, 1))  # the rows from there on are hard
        hard = random.random(n) < config.hard_share * min(1, 3 * step / config.steps)  # rising
        low, high = np.where(hard, first_hard, 0), np.where(hard, len(data.train), first_hard)
        puzzle, solution = data.train.rows(random.integers(low, high))
        first = 3 + random.geometric(1 / config.first, n)
        truths = np.where(random.random(n) < config.lies, random.geometric(0.35, n) - 1, -1)
        new = solution, solver.settled(puzzle)[0], 0, first, truths
        for mine, value in zip((self.solution, self.alive, self.clock, self.first, self.truths), new):
            mine[self.free] = torch.as_tensor(value).expand_as(mine)[self.free].to(mine)


def left_by_rules(puzzles):
    """The rows of puzzles in which the rules alone leave something open: a search begins there."""
    parts = [slice(at, at + 10_000) for at in range(0, len(puzzles), 10_000)]  # a part's candidates are some megabytes
    return np.flatnonzero(np.concatenate([solver.settled(puzzles.rows(p)[0])[0].sum(1) > 81 for p in parts]))


def shard_gradients(model, config, slots, blanks, step, part):
    """A step's loss on a few slots and its gradients, the digits of the puzzles that suppose nothing false.

    Every few iterations each puzzle supposes something, and the rules are applied. Where the search has come to then
    goes back to the slots.
    """
    random = np.random.default_rng([config.seed, step, part.start])
    mine = slots.alive, slots.clock, slots.first, slots.truths, slots.free
    alive, clock, first, truths, free = (values[part].numpy() for values in mine)  # shared: writing changes the slots
    right = slots.solution[part].numpy().repeat(9, 1) - 1 == candidates.DIGIT  # [n, 729]
    free[:] = False
    board = candidates.Board.of(alive)
    fresh = torch.from_numpy(clock[board.place[0]] == 0)[:, None]
    x = torch.where(fresh, model.first_state(), slots.memory[part][board.place])
    loss, left, logits = 0.0 * model.first.sum(), config.depth, None
    while left and len(board.place[0]):
        count = min(left, int(random.choice(config.between)))
        left, clock[:] = left - count, clock + count
        states, logits = model.think_on(board, x, count)
        x = states[-1]
        true = (alive | ~right).all(1)  # all that is supposed
        # no loss where something supposed is false
        counted = np.flatnonzero(right[board.place] & true[board.place[0]])
        shares = states.flatten(0, 1)[:, -KINDS].view(count, -1).index_select(1, torch.from_numpy(counted))
        loss = loss - shares.log().sum() / (blanks * config.depth)
        effort, verdict = model.judge(board, x)
        open_ = np.isin(np.arange(len(alive)), board.place[0])
        entropy = F.binary_cross_entropy_with_logits(verdict, torch.from_numpy(true).float(), reduction="none")
        part_of_step = count / (config.batch * config.depth)
        loss = loss + config.verdict * part_of_step * entropy[torch.from_numpy(open_)].sum()
        rows, costs = measured(config, alive, board, random)
        said, costs = effort.index_select(0, torch.from_numpy(rows)), torch.from_numpy(costs)
        # its minimum over constants is at the mean of the costs
        deviance = costs * (-said).exp() + said - 1 - costs.log()
        loss = loss + config.effort * part_of_step * open_.sum() * deviance.mean()
        if not left:
            break
        supposes = open_ & (clock >= first)
        effort, share = (board.dense(v.detach()[:, None]).squeeze(2).numpy() for v in (effort.exp(), x[:, -KINDS]))
        chance = verdict.detach().sigmoid().numpy()
        for i in np.flatnonzero(supposes):
            cost = candidates.first_costs(effort[i], share[i] * chance[i])
            suppose(config, random, alive[i], right[i] if true[i] else None, cost, truths[i])
            truths[i] -= 1
            if not solver.settle(alive[i]) or alive[i].sum() == 81:
                alive[i], free[i] = False, True  # refuted, or solved
        before, board = board, candidates.Board.of(alive)
        at = torch.from_numpy(np.searchsorted(before.flat(), board.flat()))  # where its rows were; it has no others
        x, logits = x.index_select(0, at), logits.detach().index_select(1, at)
    slots.memory[part][board.place] = x.detach()
    target = np.where((alive.reshape(-1, 81, 9).sum(2) > 1) & (alive | ~right).all(1)[:, None], slots.solution[part], 0)
    found = board.logits(logits[-1], filled(alive)) if logits is not None else torch.zeros(len(alive), 81, 9)
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return loss.detach(), gradients, found, torch.from_numpy(target.astype(np.int64))


def measured(config, alive, board, random):
    """Some rows of the board, in the cells with fewest candidates, and what these cost the exact solver."""
    likely = np.stack([candidates.fewest(each) for each in alive])[board.place]
    rows = np.flatnonzero(likely)
    if len(rows) > (limit := config.asked * len(alive)):
        rows = np.sort(random.choice(rows, limit, replace=False))
    puzzle, candidate = (part[rows] for part in board.place)
    return rows, np.concatenate(
        [solver.efforts(alive[i], candidate[puzzle == i], config.most) for i in np.unique(puzzle)]
    ).astype(np.float32)


def suppose(config, random, alive, right, cost, truths):
    """One of the cheapest candidates, or that it is false. `right`: the right ones, where all so far is true."""
    denied = random.random() < config.denied
    allowed = candidates.fewest(alive)
    if right is not None:  # it is decided whether this supposition is true
        allowed &= right == ((truths != 0) != denied)
    score = np.log(np.maximum(cost, 1e-6)) + config.search_noise * random.gumbel(size=729)
    chosen = int(np.where(allowed, score, np.inf).argmin())
    if denied:
        alive[chosen] = False
    else:
        candidates.keep_only(alive, chosen)


def train(config):
    run = common.Run(config, __file__)
    if run.world > 1:
        raise SystemExit(f"{run.experiment}.py runs in one process, on as many threads as OMP_NUM_THREADS says")
    data = common.load(config, run)
    data.train = data.train.subset(left_by_rules(data.train))
    if len(np.unique(data.train.rating)) < 2:  # minimal puzzles and hard ones
        raise SystemExit(
            "the rules alone solve all minimal or all hard training puzzles: more --train-puzzles, another --hard"
        )
    model, slots = Model(config), Slots(config)
    matrices = [p for p in model.parameters() if p.ndim == 2 and min(p.shape) > 1]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = [Muon(matrices, lr=config.muon_lr), torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)]
    for step in range(run.resume(model, [*optimizers, slots]), config.steps):
        share = min((step + 1) / (config.warmup + 1), 1 - step / config.steps)
        for optimizer, rate in zip(optimizers, (config.muon_lr, config.lr)):
            optimizer.param_groups[0]["lr"] = rate * share
        slots.refill(config, data, step)
        blanks = int((slots.alive.view(-1, 81, 9).sum(2) > 1).sum())
        work = functools.partial(shard_gradients, model, config, slots, blanks, step)
        done = workers().map(work, [slice(at, at + SHARD) for at in range(0, config.batch, SHARD)])
        losses, gradients, logits, digits = zip(*done)
        for parameter, *shares in zip(model.parameters(), *gradients):
            parameter.grad = sum(shares)
        for optimizer in optimizers:
            optimizer.step()
        digits = torch.cat(digits)
        target = torch.where(digits > 0, digits - 1, common.IGNORED)
        batch = common.Batch(None, target, None, max(1, int((digits > 0).sum())))
        run.report(step, sum(losses), torch.cat(logits), batch, config.lr * share)
        run.evaluate(step, model, data)
        run.end_step(step, model, [*optimizers, slots])
    return run.finish(model, data)


def main(argv=None):
    return train(common.parse(Config, argv))


app = common.modal_app(__file__)
if __name__ == "__main__":
    main()
