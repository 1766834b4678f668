"""Which puzzles a config asks for: the training and test set of each source, in buckets of difficulty."""

import math
from dataclasses import dataclass, field

import numpy as np

from data import store

GENERATED = (59, 67)  # clues of generated puzzles in the hardest bucket and in the easiest
DEFAULT_COUNT = 50_000  # generated training puzzles when the config sets no limit
TEST_SEED = 0  # for the choice of random test rows


@dataclass
class Data:
    train: store.PuzzleSet
    test: store.PuzzleSet
    edges: tuple  # bucket i holds the ratings in [edges[i], edges[i + 1])
    bucket_shares: list | None = None  # each bucket's share of all the rows that the test rows were drawn from
    pools: dict = field(default_factory=dict)  # kept here by common: the training rows of a phase of the curriculum

    def rows_by_bucket(self, puzzles):
        return store.rows_by_bucket(puzzles, self.edges)


def load(config):
    """The training and test puzzles of a config: fetched or generated once, then mapped from disk."""
    try:
        return minimal(config) if config.data == "minimal" else split(config)
    except ValueError as error:  # a wrong file or number: the message says which, and what to do
        raise SystemExit(str(error)) from None


def split(config):
    """Training takes rows in file order: up to train_per_bucket of each bucket, up to train_puzzles in all.

    The test has up to test_per_bucket rows of each bucket. For all three, 0 means no limit.
    """
    if not hasattr(config, "edges"):
        raise ValueError(f"--data {config.data}: this experiment has no buckets of difficulty; use --data minimal")
    edges, limit, shares = config.edges, config.test_per_bucket, None
    if len(edges) < 2:
        raise ValueError(f"--edges {' '.join(map(str, edges))}: expected the limits of at least one bucket, as in 0 10")
    if config.data.partition(":")[0] == "generated":
        whole, test = generated(config)
        held_out = []  # rows of `whole` that training may not use
    elif config.data == "kaggle":
        from data import kaggle_3m

        whole, first = kaggle_3m.load(), config.train_per_bucket
        # The rows that follow the training rows of the bucket, or the last ones; rows[-0:] is all rows.
        buckets = store.rows_by_bucket(whole, edges)
        rows = [rows[first:][: limit or None] if first else rows[-limit:] for rows in buckets]
        held_out = np.sort(np.concatenate(rows))
        test = whole.subset(held_out)
    elif config.data in ("extreme", "extreme-test"):
        from data import sudoku_extreme

        test_file = sudoku_extreme.load(train=False)
        if config.data == "extreme":
            whole, first, held_out = sudoku_extreme.load(train=True), 0, []
        else:  # the first rows of the test file are for training, its other rows for the test
            whole, first = test_file, config.train_puzzles or len(test_file)
            held_out = range(first, len(whole))
        buckets = [rows[rows >= first] for rows in store.rows_by_bucket(test_file, edges)]
        shares = [len(rows) / max(1, sum(map(len, buckets))) for rows in buckets]
        test = draw(test_file, buckets, [limit or len(rows) for rows in buckets])
    elif config.data.endswith(".csv"):
        from data.rows import read_csv

        whole = read_csv(config.data)
        buckets = store.rows_by_bucket(whole, edges)
        test = draw(whole, buckets, [min(limit or len(rows), len(rows) // 5) for rows in buckets])  # a fifth at most
        if not len(test):
            raise ValueError(f"{config.data}: no bucket of --edges holds five puzzles, so there is nothing to test on")
        held_out = np.setdiff1d(np.arange(len(whole)), store.exclude(whole, test))
    else:
        known = "generated, generated:50-58, minimal, kaggle, extreme, extreme-test or the path of a .csv file"
        raise ValueError(f"--data {config.data}: expected {known}")
    buckets = [np.setdiff1d(rows, held_out, assume_unique=True) for rows in store.rows_by_bucket(whole, edges)]
    rows = np.sort(np.concatenate([rows[: config.train_per_bucket or None] for rows in buckets]))
    train = whole.subset(rows[: config.train_puzzles or None])
    if not (len(train) and len(test)):
        empty = "the test; give a lower --train-puzzles or --train-per-bucket"
        if not len(train):
            empty = "training; give a lower --test-per-bucket"
        raise ValueError(f"--data {config.data}: no row is left for {empty}, not 0, or other --edges")
    return Data(train, test, edges, shares)


def draw(puzzles, buckets, counts):
    """A set with random rows of each bucket, at most `counts`: always the same ones."""
    random = np.random.default_rng(TEST_SEED)
    rows = [random.permutation(rows)[:count] for rows, count in zip(buckets, counts)]
    return puzzles.subset(np.sort(np.concatenate(rows)))


def minimal(config):
    """Trains on generated minimal puzzles; the test has puzzles of 45 clues (bucket 0) and other minimal ones (1).

    With config.hard, training also has hard puzzles, rated 1 where the minimal ones are rated 0; the test has others
    of them (bucket 2). No training puzzle is equivalent to one of the test or of the file config.apart.
    """
    from data import generate

    n = config.test_per_bucket
    if not n or not config.train_puzzles:
        raise ValueError("--data minimal: expected --train-puzzles and --test-per-bucket above 0: how many to generate")
    puzzles = generate.cached(config.train_puzzles + n, clues="minimal", seed=1)
    test = [generate.cached(n, clues=45, seed=2).table, puzzles.table[:n]]
    train = [puzzles.table[n:]]
    if getattr(config, "hard", ""):
        hard, hard_test = hard_puzzles(config)
        train.append(hard.table)
        test.append(draw(hard_test, [np.arange(len(hard_test))], [n]).table)
    train, test = ([part.copy() for part in parts] for parts in (train, test))
    for parts, first in ((train, 0), (test, 0)):
        for i, part in enumerate(parts):
            part["rating"] = first + i
    train, test = (store.PuzzleSet(np.concatenate(parts)) for parts in (train, test))
    if getattr(config, "hard", ""):
        train = train.subset(store.exclude(train, test))
    return Data(train, test, edges=tuple(range(len(np.unique(test.rating)) + 1)))


def hard_puzzles(config):
    """(for training, for the test): sudoku-extreme's two files, or nine tenths and a tenth of other puzzles."""
    if config.hard == "extreme":
        from data import sudoku_extreme

        train, test = sudoku_extreme.load(train=True), sudoku_extreme.load(train=False)
        train = train.subset(np.flatnonzero(train.rating > 0))
    else:
        if config.hard == "generated":  # the tenth of minimal puzzles that is rated highest, easy beside sudoku-extreme
            from data import generate

            whole = generate.cached(10 * config.train_puzzles, clues="minimal", seed=3)
            whole = whole.subset(np.flatnonzero(whole.rating >= store.EXTREME[2]))
        else:
            from data.rows import read_csv

            whole = read_csv(config.hard)
        test = held_out(whole)
        train, test = whole.subset(np.setdiff1d(np.arange(len(whole)), test)), whole.subset(test)
        if not (len(train) and len(test)):
            raise ValueError(f"--hard {config.hard}: {len(whole)} puzzles are too few to hold out a tenth for the test")
    if config.apart:
        from data.rows import read_csv

        apart = read_csv(config.apart)
        train, test = (part.subset(store.exclude(part, apart)) for part in (train, test))
    return train, test


def held_out(puzzles):
    """The rows of a tenth of these puzzles; equivalent ones are on the same side."""
    return np.flatnonzero(store.fingerprints(puzzles) % np.uint64(10) == 0)


def generated(config):
    """Each bucket has one number of clues; its puzzles carry the bucket's lower edge as their rating."""
    from data import generate

    try:
        low, high = map(int, config.data.split(":")[1].split("-")) if ":" in config.data else GENERATED
    except ValueError:
        raise ValueError(f"--data {config.data}: expected two clue counts, as in generated:50-58") from None
    if low > high:
        raise ValueError(f"--data {config.data}: expected the lower clue count first, as in generated:50-58")
    if not (test_count := config.test_per_bucket):
        raise ValueError(f"--data {config.data}: expected a --test-per-bucket above 0: how many puzzles to generate")
    buckets = len(config.edges) - 1
    clues = [round(high - (high - low) * (i + 0.5 * (buckets == 1)) / max(1, buckets - 1)) for i in range(buckets)]
    limits = [config.train_per_bucket, math.ceil(config.train_puzzles / buckets)]  # 0: no limit
    train_count = min(filter(None, limits), default=math.ceil(DEFAULT_COUNT / buckets))
    tables = np.stack([generate.cached(test_count + train_count, clues=number, seed=8).table for number in clues])
    tables["rating"] = np.array(config.edges[:-1])[:, None]
    return [store.PuzzleSet(part.ravel()) for part in (tables[:, test_count:], tables[:, :test_count])]


def symmetries(puzzle, solution, random):
    """Each row's puzzle and solution under a random symmetry of Sudoku: bands, lines, transposition, digits."""
    n = len(puzzle)
    rows, columns = line_orders(n, random), line_orders(n, random)
    cells = rows[:, :, None] * 9 + columns[:, None, :]
    transposed = random.random(n)[:, None, None] >= 0.5
    cells = np.where(transposed, cells.transpose(0, 2, 1), cells).reshape(n, 81)
    digits = np.concatenate([np.zeros((n, 1), int), random.random((n, 9)).argsort(1) + 1], 1).astype(puzzle.dtype)
    moved = [np.take_along_axis(board, cells, 1).astype(int) for board in (puzzle, solution)]
    return [np.take_along_axis(digits, board, 1) for board in moved]


def line_orders(n, random):
    """[n, 9]: random orders of nine rows or columns that keep the lines of a band together."""
    bands = random.random((n, 3)).argsort(1)
    within = random.random((n, 3, 3)).argsort(2)
    return (3 * bands[:, :, None] + within).reshape(n, 9)
