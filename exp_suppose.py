"""A network that supposes: it follows a doubtful candidate as if it were true, goes back, and keeps what it saw.

Parent: none
Change: none, a design of its own: exp_deep's network, which after 64 iterations marks a candidate and explores; then it
    takes up its state from before and reads where that led.
Hypothesis: A puzzle that no chain of sound steps solves needs a trial; a network can learn to make use of one.
Log: not in the log.

python exp_suppose.py --hard puzzles.csv      an hour or two on two CPU cores; any CSV of hard puzzles
python exp_suppose.py                         the same with sudoku-extreme's training puzzles, from Hugging Face
modal run exp_suppose.py                      the same on a rented machine
python eval_extreme.py runs/exp_suppose/full-seed0 --data test.csv --iterations 16 64 256 1024 4096
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
from common import candidates

SHARD = 16  # puzzles that one thread works on at a time; a GPU takes them all
REGROUP = 8  # iterations of a test at a time; then the puzzles not yet solved are put together in new shards
KINDS = candidates.KINDS  # kinds of groups: a cell; a digit in a row, in a column, in a box
BITS = 4  # it is supposed; it would then be false; exploring; merging
PLAIN, EXPLORE, MERGE = range(3)  # phases of the iterations
PEERS = torch.from_numpy(candidates.PEERS)  # [729, 729], whether two candidates exclude each other


@dataclass
class Config(common.RunConfig):
    device: Literal["auto", "cpu", "cuda"] = "cpu"  # plain PyTorch on a GPU; not tried on one yet
    width: int = 32  # size of the state of one candidate; 16 were clearly too few
    mlp: int = 96  # hidden units of the one small network that all candidates share
    batch: int = 32  # puzzles under way
    depth: int = 16  # iterations a step, with gradient; the next step goes on from there
    lifetime: int = 96  # mean iterations until an unsolved puzzle is replaced
    steps: int = 16_000  # most of an hour on two cores
    plain: int = 64  # iterations before the first supposition
    explore: int = 48  # iterations under a supposition
    merge: int = 16  # iterations after it, from the state before it, with what it led to in view
    plain_steps: int = 5_000  # at first training supposes nothing
    supposing_lifetime: int = 400  # the lifetime after that: some six suppositions
    supposed_true: float = 0.5  # share of the suppositions in training that are drawn among true candidates
    verdict: float = 0.3  # weight of a loss beside: is the supposition true?
    easy_steps: int = 100  # at first with extra clues, up to 45, so that some puzzles are solved at all
    muon_lr: float = 0.01  # Muon's, for the matrices; 0.005 and 0.02 give the same in exp_deep
    lr: float = 0.002  # AdamW's, for the rest
    warmup: int = 50  # steps to the full rate, which then falls to 0 on a straight line
    iterations: int = 64  # in tests; more than training ever sees at once
    test_iterations: tuple[int, ...] = (16, 32, 128, 256, 512, 1024)  # hard puzzles take longer
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
        matrix = lambda i, o, scale=1.0: nn.Parameter(torch.randn(i, o) * scale / i**0.5)  # noqa: E731
        self.first = nn.Parameter(torch.randn(width))  # the state of every candidate at the start
        self.message = matrix(width, KINDS * width)  # what it tells each of its groups
        self.state = matrix(width, mlp)
        self.heard = matrix(KINDS * width, mlp)  # the largest message in each group
        self.seen = matrix(2 * KINDS, mlp)  # the sizes of its groups, its probability in each
        self.supposed = nn.Parameter(torch.zeros(BITS + width, mlp))  # what is supposed, and the other state
        self.verdict = nn.Linear(width, 1)  # of the supposed candidate, in training
        self.plain, self.explore, self.merge = config.plain, config.explore, config.merge  # iterations
        self.bias = nn.Parameter(torch.zeros(mlp))
        self.out = matrix(mlp, width, 0.5)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)

    def start(self, puzzle):
        """The state before the first iteration, in shards: puzzles, on the CPU, candidates, what each knows."""
        return [self.start_shard(part) for part in puzzle.cpu().split(candidates.shard(SHARD, self.first.device))]

    def start_shard(self, puzzle, board=None):
        memory = self.first.new_zeros(len(puzzle), 729, numbers(len(self.first)))  # more to start with
        memory[:, :, : len(self.first) + KINDS] = self.first_state().detach()
        return self.resume_shard(puzzle, memory, torch.zeros(len(puzzle), 2, dtype=torch.long), board)

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
                parts = []
                while (left := count - sum(map(len, parts))) > 0:  # a supposition may begin on the way
                    _, logits, shard = self.think_shard(shard, left)
                    parts.append(logits)
                return shard[1].logits(torch.cat(parts), shard[0].numpy()), shard

        logits, state = zip(*workers().map(one, state))
        return torch.cat(logits, 1), state

    def think_shard(self, shard, count, choose=None):  # who chooses what to suppose, in training
        """Max-pool messages over each candidate's groups, then an MLP, a residual and a norm: `count` times.

        Fewer times where a puzzle begins or ends a supposition before.
        """
        puzzle, board, x, mind, clock = self.turn(shard, choose or most_promising)
        count = min(count, self.until_turn(clock[:, 0]))
        seen = torch.cat([board.sizes, mind[:, : BITS + len(self.first)]], 1).to(self.bias)  # sees more
        given = torch.addmm(self.bias, seen, torch.cat([self.seen[:KINDS], self.supposed]))
        weights = self.message, torch.cat([self.state, self.seen[KINDS:]]), self.heard, self.out
        last = self.norm.weight, self.norm.bias, self.head.weight, self.head.bias
        states, logits = candidates.think(count, board, x, given, *weights, *last)
        return states, logits, (puzzle, board, states[-1], mind, clock + torch.tensor([count, 0]))

    # what the network supposes, and what it remembers meanwhile
    def phases(self, clock):
        """Of each puzzle, by its iterations so far: which phase it is in, and whether that begins now."""
        at = (clock - self.plain) % (self.explore + self.merge)
        phase = torch.where(at < self.explore, EXPLORE, MERGE)
        return torch.where(clock < self.plain, PLAIN, phase), (clock >= self.plain) & ((at == 0) | (at == self.explore))

    def until_turn(self, clock):
        """The iterations until the first of these puzzles begins another phase."""
        cycle = self.explore + self.merge
        at = (clock - self.plain) % cycle
        left = torch.where(at < self.explore, self.explore, cycle) - at
        return int(torch.where(clock < self.plain, self.plain - clock, left).min())

    def turn(self, shard, choose):
        """Where a phase begins: choose a supposition, or go back to the state before it. No gradient goes through."""
        puzzle, board, x, mind, clock = shard
        phase, begins = self.phases(clock[:, 0])
        if not begins.any():
            return shard
        width, mine = len(self.first), torch.from_numpy(board.place[0])
        bits, other, saved, tried = mind.split([BITS, width, width + KINDS, 1], 1)
        now, clock = x.detach(), clock.clone()  # the clock is on the CPU, where suppositions are chosen
        share, times = now[:, -KINDS].cpu().numpy(), tried[:, 0].cpu().numpy().copy()  # share: in its cell
        for i in (begins & (phase == EXPLORE)).nonzero().ravel().tolist():
            rows = slice(*np.searchsorted(board.place[0], [i, i + 1]))
            if rows.start == rows.stop:
                continue  # no blanks, nothing to suppose
            row = rows.start + choose(share[rows], times[rows], board.place[1][rows], i)
            times[row] += 1
            clock[i, 1] = int(board.place[1][row])
        chosen, number = clock[mine, 1], torch.from_numpy(board.place[1])
        bits = torch.stack([chosen == number, PEERS[chosen, number], phase[mine] == EXPLORE, phase[mine] == MERGE], 1)
        explores, merges = ((begins & (phase == which))[mine, None].to(x.device) for which in (EXPLORE, MERGE))
        other = torch.where(explores | merges, now[:, :width], other)
        x = torch.where(merges, saved, x)
        saved = torch.where(explores, now, saved)
        bits, tried = bits.float() * (phase != PLAIN)[mine, None], torch.from_numpy(times)[:, None]
        return puzzle, board, x, torch.cat([bits.to(x.device), other, saved, tried.to(x.device)], 1), clock

    def forward(self, puzzle, iterations):
        """Yield the logits of each iteration; a puzzle whose board obeys the rules is done, and costs nothing more."""
        state, left = self.start(puzzle), torch.arange(len(puzzle), device=puzzle.device)
        found, done = left.new_zeros(len(left), 81, 9, dtype=torch.float), torch.zeros_like(left, dtype=torch.bool)
        for begin in range(0, iterations, REGROUP):
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
        puzzle, clock = (torch.cat([shard[i] for shard in state])[wanted] for i in (0, -1))  # with the clock
        memory = torch.cat([shard[1].dense(torch.cat(shard[2:-1], 1)) for shard in state])[wanted]
        size = candidates.shard(SHARD, memory.device)
        return [self.resume_shard(*part) for part in zip(*(whole.split(size) for whole in (puzzle, memory, clock)))]

    def resume_shard(self, puzzle, memory, clock, board=None):
        """The shard of puzzles that had this state: [n, 729, numbers of a candidate], [n, 2] clock and supposition."""
        board, width = board or candidates.Board(puzzle.numpy(), memory.device), len(self.first)
        x, mind = memory[board.place].split([width + KINDS, numbers(width) - width - KINDS], 1)
        return puzzle, board, x, mind, clock


# what a candidate's state consists of
def numbers(width):
    """State and share; what is supposed, the other state, the state and share from before, how often supposed."""
    return (width + KINDS) + BITS + width + (width + KINDS) + 1


def most_promising(share, tried, number, puzzle):
    """The candidate to suppose next: likely, but in doubt, and with peers in doubt, which it would decide."""
    doubt = share * (1 - share)
    decides = candidates.PEERS.take(number, 0).take(number, 1).astype(np.float32) @ doubt**2
    return int((share * doubt * decides * 0.25**tried).argmax())  # tried before: less often


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
        self.clock = torch.zeros(n, 2, dtype=torch.long)  # iterations, the supposed candidate
        self.free = torch.ones(n, dtype=torch.bool)

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, saved):
        vars(self).update({name: value.to(vars(self)[name].device) for name, value in saved.items()})

    def refill(self, config, data, step):
        """New puzzles for free slots. -> random numbers that decide after the step which unsolved slots are freed"""
        random = common.random_at(config, step)
        first_hard = int(np.searchsorted(data.train.rating, 1))  # the rows from there on are hard
        rows = random.integers(first_hard, size=config.batch)  # minimal ones
        share = config.hard_share * min(1, 3 * step / config.steps)  # rising
        hard = random.random(config.batch) < share  # which of the new puzzles are
        rows[hard] = random.integers(first_hard, len(data.train), size=hard.sum())  # the others
        puzzle, solution = data.train.rows(rows)  # both kinds
        self.ease(config, random, step, puzzle, solution, hard)  # which are hard
        for mine, new in ((self.puzzle, puzzle), (self.solution, solution)):
            mine[self.free] = torch.from_numpy(new)[self.free]
        return torch.from_numpy(random.random(config.batch))

    def ease(self, config, random, step, puzzle, solution, hard):  # which are hard
        """Give some blanks, up to 45 clues, in the first steps."""
        if step < config.easy_steps:
            extra = random.random(puzzle.shape) < random.uniform(0, 0.37, (len(puzzle), 1))
            puzzle[extra] = solution[extra]
        # with up to eight blanks given a hard puzzle is of medium difficulty
        order = np.where(puzzle == 0, random.random(puzzle.shape), 2).argsort(1).argsort(1)  # of the blanks
        eased = hard & (random.random(len(hard)) < 0.5)  # half of them
        count = np.where(eased, random.integers(1, 9, len(hard)), 0)  # blanks to give
        extra = order < count[:, None]  # those that come first
        puzzle[extra] = solution[extra]  # given


def shard_gradients(model, config, slots, blanks, step, part):  # suppositions, drawn for this step
    """A step's loss on a few slots, its gradients, the last logits; the states reached go back to the slots."""
    solution, memory, clock = slots.solution[part].numpy(), slots.memory[part], slots.clock[part]
    puzzle, board, x, mind, clock = model.resume_shard(slots.puzzle[part], memory, clock)
    fresh = slots.free[part]
    mine, fresh_row = board.place[0], fresh[board.place[0]][:, None].to(x.device)
    clock = clock.masked_fill(fresh[:, None], 0)
    shard = puzzle, board, torch.where(fresh_row, model.first_state(), x), mind.masked_fill(fresh_row, 0), clock
    cell, digit = candidates.CELL[board.place[1]], candidates.DIGIT[board.place[1]]
    right = torch.from_numpy(digit + 1 == solution[mine, cell])
    # a generator for each SHARD puzzles, because threads have no order
    generators = [np.random.default_rng([config.seed, step, at]) for at in range(0, config.batch, SHARD)]

    def choose(share, tried, number, puzzle):
        """A supposition for training, at random; half of them are true, so that it learns where these lead."""
        random, weight = generators[(part.start + puzzle) // SHARD], share.astype(float) * (1 - share) + 1e-6
        weight = weight * right[mine == puzzle].numpy() if random.random() < config.supposed_true else weight
        return int(random.choice(len(weight), p=weight / weight.sum()))

    loss, left = 0.0, config.depth
    while left:
        states, logits, shard = model.think_shard(shard, left, choose)
        left -= len(states)
        # which puzzles explore, and whether what they suppose is true
        phase, chosen = model.phases(shard[-1][:, 0] - 1)[0], shard[-1][:, 1]
        supposes = phase == EXPLORE
        row = np.searchsorted(mine * 729 + board.place[1], (torch.arange(len(fresh)) * 729 + chosen).numpy()[supposes])
        true = right[row]
        wrong = supposes.clone()
        wrong[supposes] = ~true
        counted = right & ~wrong[mine]  # no loss where what is supposed is false
        loss = loss - states[:, :, -KINDS][:, counted].log().sum() / (blanks * config.depth)
        if len(row):  # but there, too, it says whether to believe in it
            verdict = model.verdict(states[:, row, :-KINDS]).squeeze(2)
            true = true.to(verdict).expand_as(verdict)
            entropy = F.binary_cross_entropy_with_logits(verdict, true, reduction="sum")
            loss = loss + config.verdict * entropy / (config.batch * config.depth)
    memory[board.place] = torch.cat(shard[2:-1], 1).detach()
    slots.clock[part] = shard[-1]
    return (
        loss.detach(),
        torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True),  # at first there is no supposition
        board.logits(logits[-1].detach(), puzzle.numpy()),
    )


def train(config):
    run = common.Run(config, __file__)
    if run.world > 1:
        raise SystemExit(f"{run.experiment}.py runs in one process, on as many threads as OMP_NUM_THREADS says")
    data = common.load(config, run)
    model, slots = Model(config).to(run.device), Slots(config, numbers(config.width), run.device)  # width
    matrices = [p for p in model.parameters() if p.ndim == 2 and min(p.shape) > 1]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = [Muon(matrices, lr=config.muon_lr), torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)]
    for step in range(run.resume(model, [*optimizers, slots]), config.steps):
        share = min((step + 1) / (config.warmup + 1), 1 - step / config.steps)
        for optimizer, rate in zip(optimizers, (config.muon_lr, config.lr)):
            optimizer.param_groups[0]["lr"] = rate * share
        supposing = step >= config.plain_steps  # before, the clock stands still
        lifetime = config.supposing_lifetime if supposing else config.lifetime
        slots.clock *= supposing
        chance = slots.refill(config, data, step)
        target = torch.where(slots.puzzle == 0, slots.solution.long() - 1, common.IGNORED).to(run.device)
        batch = common.Batch(slots.puzzle, target, None, int((slots.puzzle == 0).sum()))
        # the step, for the suppositions' random numbers
        work = functools.partial(shard_gradients, model, config, slots, batch.blanks, step)
        size = candidates.shard(SHARD, run.device)
        done = workers().map(work, [slice(at, at + size) for at in range(0, config.batch, size)])
        losses, gradients, logits = zip(*done)
        for parameter, *shares in zip(model.parameters(), *gradients):
            parameter.grad = sum(shares)
        for optimizer in optimizers:
            optimizer.step()
        logits = torch.cat(logits)
        solved = ((logits.argmax(-1) == target) | (target == common.IGNORED)).all(1).cpu()
        slots.free = chance < torch.where(solved, 0.5, config.depth / lifetime)
        run.report(step, sum(losses), logits, batch, config.lr * share)
        run.evaluate(step, model, data)
        run.end_step(step, model, [*optimizers, slots])
    return run.finish(model, data)


def main(argv=None):
    return train(common.parse(Config, argv))


app = common.modal_app(__file__)
if __name__ == "__main__":
    main()
