"""Puzzles, their one split into training, validation and test, and the batch of every training step.

    data = load(config)      .train, .validation, .test: each a data.store.PuzzleSet

The side of a puzzle is a function of its solution alone, with the digits renamed in the order in which they first
appear. So two puzzles of one solution never part, nor do their copies with other digits, whichever source or number
of rows they come from: what one run tested on, no other run has trained on.
"""

import math
import re
import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from numba import njit

import common
from data import store

CLUES = (28, 50)  # of generated puzzles: 39 on average, as in the Kaggle set of nine million
SEED = 9  # of the generated puzzles; the split is the same whatever it is
BOUNDS = (0.90, 0.95)  # of the hash: training below the first, test from the second on; the log had 8M, 500K, 500K
KNOWN = "generated, generated:31-80, generated:minimal, kaggle, extreme or the path of a .csv file"


@dataclass
class Data:
    train: store.PuzzleSet
    validation: store.PuzzleSet
    test: store.PuzzleSet
    orders: dict = field(default_factory=dict)  # the last epoch's order of the training puzzles

    def order(self, seed, epoch):
        """The order in which this epoch takes the training puzzles."""
        if (seed, epoch) not in self.orders:
            random = np.random.Generator(np.random.Philox(key=[seed, 2**32 + epoch]))  # no step has such a key
            self.orders = {(seed, epoch): random.permutation(len(self.train))}
        return self.orders[seed, epoch]


def load(config, run=None):
    """The puzzles of config.data, split; the run notes their checksum, for its next --resume."""
    try:
        data = common.fetched_once(run, lambda: split(config)) if run else split(config)
    except ValueError as error:  # a wrong file or number: the message says which, and what to do
        raise SystemExit(str(error)) from None
    if run:
        tables = (np.ascontiguousarray(part.table) for part in (data.train, data.validation))
        run.data = [zlib.crc32(table.view(np.uint8)) for table in tables]
    return data


def split(config):
    whole, test = source(config)
    place, test_place = places(whole), places(test)
    data = Data(
        whole.subset(np.flatnonzero(place < BOUNDS[0])),
        whole.subset(np.flatnonzero((place >= BOUNDS[0]) & (place < BOUNDS[1]))),
        test.subset(np.flatnonzero(test_place >= BOUNDS[1])),
    )
    for name in ("train", "validation", "test"):
        if not len(getattr(data, name)):
            raise ValueError(
                f"--data {config.data}: none of {len(whole):,} puzzles falls to the {name} side; "
                "give a larger --puzzles, or a file with more rows"
            )
    return data


def source(config):
    """(the rows for training and validation, the rows for the test), before the split; mostly the same rows."""
    name, _, clues = config.data.partition(":")
    if name == "generated":
        from data import generate

        low, *high = map(int, re.findall(r"\d+", clues) or CLUES)
        least, high = generate.FEWEST_CLUES, max(high, default=low)
        if not (re.fullmatch(r"|minimal|\d+(-\d+)?", clues) and least <= low <= high < 81):
            raise ValueError(
                f"--data {config.data}: expected numbers of clues from {least} to 80, as in generated:31-80"
            )
        whole = generate.cached(config.puzzles, "minimal" if clues == "minimal" else (low, high), SEED)
        return whole, whole
    if name == "kaggle":
        from data import kaggle_9m

        whole = kaggle_9m.load()
    elif name == "extreme":
        from data import sudoku_extreme

        # Its own test file stays the only source of test puzzles, as everybody else tests on those.
        return first(sudoku_extreme.load(train=True), config), sudoku_extreme.load(train=False)
    elif config.data.endswith(".csv"):
        from data import rows

        whole = rows.read_csv(config.data)
    else:
        raise ValueError(f"--data {config.data}: expected {KNOWN}")
    return (first(whole, config),) * 2


def first(puzzles, config):
    """The file's first rows, as the log took them."""
    return puzzles if len(puzzles) <= config.puzzles else puzzles.subset(np.arange(config.puzzles))


def places(puzzles):
    """float64 [n] from 0 to 1: where the hash of each solution falls."""
    found = np.empty(len(puzzles), np.uint64)
    for start in range(0, len(puzzles), 100_000):
        _hash(np.ascontiguousarray(puzzles.table["solution"][start : start + 100_000]), found[start:])
    return found / 2.0**64


@njit(cache=True, nogil=True)
def _hash(solution, result):
    """FNV-1a of the solution with its digits renamed in the order of their first appearance, then Murmur's finisher."""
    name = np.zeros(10, np.uint64)
    for i in range(len(solution)):
        name[:] = 0
        named, value = np.uint64(0), np.uint64(0xCBF29CE484222325)
        for digit in solution[i]:
            if name[digit] == 0:
                named += np.uint64(1)
                name[digit] = named
            value = (value ^ name[digit]) * np.uint64(0x100000001B3)
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        result[i] = value ^ (value >> np.uint64(33))


# ---------------------------------------------------------------- batches


@dataclass
class Batch:
    puzzle: torch.Tensor  # int64 [n, 81], 0 is a blank; this process's share, like all that follows
    solution: torch.Tensor  # int64 [n, 81]
    noise: torch.Tensor  # float [n, latent], scaled: what is added to z
    seeds: torch.Tensor  # int32 [n], each example's seed for dropout


def steps_per_epoch(config, data):
    return math.ceil(len(data.train) / config.batch)


def batch_at(config, data, run, step):
    """The batch of this step: a pure function of (seed, step), for any number of processes. An epoch takes every
    training puzzle once; its last batch is filled up with the epoch's first ones."""
    random = common.random_at(config, step)
    epoch, number = divmod(step, steps_per_epoch(config, data))
    order = data.order(config.seed, epoch)
    rows = order[np.arange(number * config.batch, (number + 1) * config.batch) % len(order)]
    puzzle, solution = (board.astype(np.int64) for board in data.train.rows(rows))
    noise = np.float32(config.z_noise) * random.standard_normal((config.batch, config.latent), np.float32)
    seeds = random.integers(-(2**31), 2**31, size=config.batch, dtype=np.int32)
    mine = slice(run.rank * config.batch // run.world, (run.rank + 1) * config.batch // run.world)
    return Batch(*(torch.from_numpy(a[mine]).to(run.device) for a in (puzzle, solution, noise, seeds)))
