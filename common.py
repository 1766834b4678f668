"""What must never differ between experiments: configs, presets, data, batches, exact evaluation, schedules.

What experiments vary (model, loss, loop, optimiser) stands in each experiment's own file, on purpose. What stands
behind a run (its folder, checkpoints, signals, devices) is in plumbing/run.py.
"""

import contextlib
import math
import re
import signal
import sys
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import tyro

import plumbing.run
from data import solver, sources  # noqa: F401 (passed on)
from data.store import EASIEST, EXTREME, KAGGLE, PuzzleSet, from_arrays  # noqa: F401 (passed on)
from plumbing import candidates, loop  # noqa: F401 (passed on)
from plumbing.dropout import Dropout, seed_dropout  # noqa: F401 (passed on)
from plumbing.presets import PRESETS, with_preset
from plumbing.run import sum_gradients  # noqa: F401 (passed on)

IGNORED = -100  # the target of a clue: no loss there
Precision = Literal["fp32", "bf16"]
Phases = tuple[tuple[int, float, float], ...]  # (until step, lowest rating, below this rating), ...

# ---------------------------------------------------------------- configs


@dataclass
class RunConfig(plumbing.run.RunConfig):
    """Flags that every experiment has."""

    preset: Literal["full", "gpu", "mini", "smoke"] = "full"  # the log's; minutes on a GPU; on 2 cores; for tests
    evaluate_every: int = 5_000  # steps between two passes over the test set
    test_iterations: tuple[int, ...] = ()  # further counts of iterations to test at the end; --resume adds them later


MAY_BE_ZERO = {"keep_every", "seed", "warmup", "easy_steps", "train_puzzles", "train_per_bucket", "test_per_bucket"}


def parse(config_class, argv=None):
    """The experiment's config from the command line: its preset first, then the flags on top of that."""
    argv = sys.argv[1:] if argv is None else list(argv)
    words = " ".join(argv).replace("=", " ").split()
    preset = words[words.index("--preset") + 1] if "--preset" in words[:-1] else "full"
    default = with_preset(config_class(), preset if preset in PRESETS else "full")
    return from_flags(config_class, argv, default, wrong_value)


@contextlib.contextmanager
def piped():
    """`--help | head` ends in silence inside. However that is left, a closed pipe does afterwards what it did before:
    a later write to a process that has ended must raise an error, not end this one."""
    try:
        before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    except (ValueError, AttributeError):  # not the main thread; Windows
        yield
        return
    try:
        yield
    finally:
        sys.stdout.flush()
        signal.signal(signal.SIGPIPE, before)


def from_flags(config_class, argv, default, wrong_value):
    """The config that the flags make of `default`; a flag with a wrong value ends the program."""
    text = (sys.modules[config_class.__module__].__doc__ or "").replace("\n", "\n ")  # tyro keeps indented lines apart
    with piped():
        config = tyro.cli(config_class, args=argv, default=default, description=text)
    if problem := wrong_value(config):
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2)
    return config


def wrong_value(config):
    """What is wrong with the value of a flag, or None."""
    if not re.fullmatch(r"(?!\.)[\w.+=-]*", config.name):
        return f"--name {config.name}: expected letters, digits and _ . + = - (it names a folder)"
    for name, value in vars(config).items():
        flag, least = f"--{name.replace('_', '-')}", 0 if name in MAY_BE_ZERO else 1
        if name == "test_iterations" and any(n < 1 for n in value):
            return f"{flag} {' '.join(map(str, value))}: expected numbers of 1 or more"
        if type(value) is int and value < least:
            return f"{flag} {value}: expected {least} or more"
        if type(value) is float and not 0 <= value < math.inf:
            return f"{flag} {value}: expected a finite number, 0 or more"
        if name == "dropout" and value >= 1:
            return f"{flag} {value}: expected a share below 1"
        if name == "edges" and (len(value) < 2 or any(not low < high for low, high in zip(value, value[1:]))):
            return f"{flag} {' '.join(map(str, value))}: expected two or more rising numbers"
        if name == "phases" and (not value or any(not low < below for _, low, below in value)):
            return f"{flag}: expected steps, each with a lowest rating and a larger rating to stay below"
    if hasattr(config, "heads") and config.width % config.heads:
        return f"--heads {config.heads}: expected a divisor of --width {config.width}"
    return None


# ---------------------------------------------------------------- data


@dataclass
class Batch:
    puzzle: torch.Tensor  # int64 [n, 81], 0 is a blank; this process's share
    target: torch.Tensor  # int64 [n, 81], digit - 1 on blanks, IGNORED on clues
    seeds: torch.Tensor  # int32 [n], each example's seed for dropout
    blanks: int  # blank cells in the batch of all processes together


def fetched_once(run, fetch):
    """What `fetch` returns: the first process fetches or generates, the others then find it in the cache."""
    try:
        if run.rank > 0:
            dist.barrier()
        data = fetch()
        if run.rank == 0 and run.world > 1:
            dist.barrier()
    except KeyboardInterrupt:
        raise SystemExit("interrupted: nothing was trained yet, the same command starts again") from None
    return data


def load(config, run):
    """The training and test puzzles of this config; the run notes their checksum, for its next --resume."""
    data = fetched_once(run, lambda: sources.load(config))
    run.data = [zlib.crc32(np.ascontiguousarray(part.table).view(np.uint8)) for part in (data.train, data.test)]
    return data


def places():
    """int64 [3, 81]: the row, the column and the box of each cell."""
    cell = torch.arange(81)
    return torch.stack([cell // 9, cell % 9, cell // 27 * 3 + cell % 9 // 3])


def random_at(config, step):
    """The generator of this step: a pure function of (seed, step)."""
    return np.random.Generator(np.random.Philox(key=[config.seed, step]))


def batch_at(config, data, run, step, rows=None):
    """The batch of this step, drawn from its pool or of these rows; a function of (seed, step), for any run.world."""
    random = random_at(config, step)
    if rows is None:
        pool = pool_at(config, data, step)
        rows = pool[random.integers(len(pool), size=config.batch)]
    puzzle, solution = data.train.rows(rows)
    seeds = random.integers(-(2**31), 2**31, size=config.batch, dtype=np.int32)
    blanks = int((puzzle == 0).sum())
    mine = slice(run.rank * config.batch // run.world, (run.rank + 1) * config.batch // run.world)
    puzzle, solution = puzzle[mine].astype(np.int64), solution[mine].astype(np.int64)
    target = np.where(puzzle == 0, solution - 1, IGNORED)
    return Batch(*(torch.from_numpy(a).to(run.device) for a in (puzzle, target, seeds[mine])), blanks)


def pool_at(config, data, step):
    """The rows of the training set that this step's phase draws from."""
    phase = next((phase for phase in config.phases if step < phase[0]), config.phases[-1])[1:]
    if phase not in data.pools:
        data.pools[phase] = np.flatnonzero((data.train.rating >= phase[0]) & (data.train.rating < phase[1]))
        if not len(data.pools[phase]):
            low, below = phase
            raise SystemExit(f"step {step}: no training puzzle is rated in [{low}, {below}); change --phases")
    return data.pools[phase]


# ---------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate(model, data, run, iterations, batch=256):
    """Exact counts in fp32 for every bucket after each of these numbers of iterations. A puzzle counts as
    solved when every blank is right. -> {iterations: {"solved": [...], "puzzles": [...], "cells", "blanks"}}"""
    training, precision = model.training, torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")  # no TF32
    buckets = data.rows_by_bucket(data.test)
    counts = torch.zeros(len(iterations), len(buckets), 4, dtype=torch.float64, device=run.device)
    for bucket, rows in enumerate(buckets):
        parts = np.array_split(rows, math.ceil(len(rows) / batch)) if len(rows) else []
        for part in parts[run.rank :: run.world]:
            puzzle, solution = (torch.from_numpy(a.astype(np.int64)).to(run.device) for a in data.test.rows(part))
            blank = puzzle == 0
            for i, logits in enumerate(model(puzzle, max(iterations)), 1):
                if i in iterations:
                    right = (logits.argmax(-1) + 1 == solution) & blank
                    solved = (right == blank).all(1).sum()
                    numbers = [solved, puzzle.new_tensor(len(part)), right.sum(), blank.sum()]
                    counts[iterations.index(i), bucket] += torch.stack(numbers)
    if run.world > 1:
        dist.all_reduce(counts)
    model.train(training)
    torch.set_float32_matmul_precision(precision)
    names = ("solved", "puzzles", "cells", "blanks")
    table = {n: dict(zip(names, c.long().T.tolist())) for n, c in zip(iterations, counts.cpu())}
    for row in table.values():
        row["share"] = sum(row["solved"]) / max(1, sum(row["puzzles"]))
        row["cell_accuracy"] = sum(row["cells"]) / max(1, sum(row["blanks"]))
        if data.bucket_shares:  # the buckets weighted as they occur in the source's whole test file
            shares = [s / max(1, n) for s, n in zip(row["solved"], row["puzzles"])]
            row["share_natural"] = sum(w * s for w, s in zip(data.bucket_shares, shares))
    return table


def solved_line(row):
    """solved 83.6% (836/1000) of all, then of every bucket."""
    parts = " ".join(f"{100 * s / max(1, n):.1f}" for s, n in zip(row["solved"], row["puzzles"]))
    natural = f"  natural mix {100 * row['share_natural']:.1f}%" if "share_natural" in row else ""
    counts = f"{100 * row['share']:.1f}% ({sum(row['solved'])}/{sum(row['puzzles'])})"
    return f"solved {counts}  by bucket {parts}  blanks right {100 * row['cell_accuracy']:.1f}%{natural}"


# ---------------------------------------------------------------- schedules


def warmup_rate(step, peak, warmup):
    return peak * min(1.0, (step + 1) / max(1, warmup))


def cosine_rate(step, peak, warmup, steps, floor=0.01):
    """Linear warm-up, then a cosine from the peak to `floor` of it at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


# ---------------------------------------------------------------- a run that learns Sudoku


class Run(plumbing.run.Run):
    def __init__(self, config, file):
        self.tested = -1, {}  # the last test: after which step, and its result
        super().__init__(config, file, plumbing.run.command(config, with_preset(type(config)(), config.preset), file))

    def compiled(self, model, kept=None):
        """One iteration, compiled on CUDA, and recomputed in the backward pass where memory would not suffice.
        `kept`: how many iterations a training step goes back through; all, where nothing is said."""
        super().compiled(model)
        share = max(1, self.config.batch // self.world // getattr(self.config, "micro_batches", 1))
        puzzles, count = torch.zeros(8, 81, dtype=torch.int64), kept or self.config.iterations
        needed = share * loop.kept_bytes(model, puzzles, count, self.precision()) / 8
        self.log(f"# {share} puzzles at once: {loop.fit(model, needed, count, loop.free_bytes(self.device))}")
        return model

    def report(self, step, loss, logits, batch, rate):
        """One line every report_every steps: loss and accuracy of this very batch, speed since the last line."""
        self.watch(step, loss)
        if not self.due(step, self.config.report_every):
            return
        right = (logits.argmax(-1) == batch.target).sum() / batch.blanks
        numbers = torch.stack([loss.detach().float(), right])
        if self.world > 1:  # each process holds its share of the sums
            dist.all_reduce(numbers)
        loss, accuracy = numbers.tolist()
        speed, left = self.pace(step, self.config.batch)
        self.row |= {"loss": round(loss, 6), "accuracy": round(accuracy, 6), "lr": rate}
        self.row |= {"puzzles_per_second": round(speed, 1), "seconds": round(self.elapsed(), 1)}
        share = f"{100 * (step + 1) / self.config.steps:5.1f}%"
        blanks = f"blanks right {100 * accuracy:5.1f}%"
        self.log(f"step {step + 1:>6} {share}  loss {loss:.4f}  {blanks}  {speed:,.0f} puzzles/s  left {left}")

    def evaluate(self, step, model, data):
        """Test every evaluate_every steps and after the last."""
        if self.due(step, self.config.evaluate_every):
            last = step + 1 == self.config.steps
            with self.untimed():
                self.tested = step, evaluate(model, data, self, self.counts() if last else [self.config.iterations])
            row = self.tested[1][self.config.iterations]
            self.row |= {"test_solved": round(row["share"], 6), "test_cells": round(row["cell_accuracy"], 6)}
            self.log(f"step {step + 1:>6} test: {solved_line(row)}")

    def counts(self):
        """The numbers of iterations after which the last test counts."""
        return sorted({self.config.iterations, *self.config.test_iterations})

    def finish(self, model, data):
        """The last test, summary.json, and lines that grep can read."""
        self.default_signals()  # all is saved: Ctrl-C ends the test at once
        counts = self.counts()
        if (ended := self.finished()) and all(str(n) in ended["test"] for n in counts):
            self.log(f"# finished already: solved {100 * ended['solved']:.1f}%")
            self.close()
            return ended
        step, table = self.tested
        if step + 1 < self.config.steps or list(table) != counts:
            with self.untimed():
                table = evaluate(model, data, self, counts)
        tests = [(row["test_solved"], row["step"]) for row in self.rows if "test_solved" in row]
        peak, step = max(tests, key=lambda test: test[0], default=(None, None))
        for n, row in table.items():
            self.log(f"summary: iterations={n} {solved_line(row)}")
        last = table[self.config.iterations]
        return self.end({"preset": self.config.preset, "solved": last["share"], "cells": last["cell_accuracy"],
                               "peak": {"solved": peak, "step": step},
                               "test": {str(n): row for n, row in table.items()}})  # fmt: skip


def modal_app(file):
    """The Modal app of this experiment when `modal run` imports the file; nothing is loaded otherwise."""
    if "modal" not in sys.modules:
        return None
    from plumbing import remote

    return remote.entry(file, parse)
