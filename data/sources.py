"""Which puzzles a config means: the training and test set of each source, cut into buckets of difficulty."""

import math
from dataclasses import dataclass, field

import numpy as np

from data import store

EASIEST = (0.0, 0.1)
KAGGLE = (0.0, 1.0, 2.0, 3.0, 4.0, 10.0)  # edges of the Kaggle set's difficulty buckets
EXTREME = (0.0, 1.0, 3.0, 11.0, 51.0, math.inf)  # edges of the buckets 0, 1-2, 3-10, 11-50, 51+
GENERATED = (59, 67)  # clues of generated puzzles, the hardest bucket and the easiest; generated:50-58 asks for others


EVERYTHING = 50_000  # how many generated puzzles stand for all of a real set


@dataclass
class Data:
    train: store.PuzzleSet
    test: store.PuzzleSet
    edges: tuple  # bucket i holds the ratings in [edges[i], edges[i + 1])
    bucket_shares: list | None = None  # each bucket's share of the source's whole test file

    pools: dict = field(default_factory=dict)

    def rows_by_bucket(self, puzzles):
        return rows_by_bucket(puzzles, self.edges)


def rows_by_bucket(puzzles, edges):
    ratings = np.asarray(puzzles.rating)
    return [np.flatnonzero((ratings >= low) & (ratings < below)) for low, below in zip(edges, edges[1:])]


def draw(rows, count, seed):
    """`count` of these rows in a fixed random order of their own; all of them when count is 0 or larger."""
    return rows if not 0 < count < len(rows) else np.sort(np.random.default_rng(seed).permutation(rows)[:count])


def load(config):
    """The training and test puzzles that a config asks for: fetched or generated once, then mapped from disk."""
    try:
        return minimal(config) if config.data == "minimal" else load_source(config, config.edges)
    except ValueError as error:  # a file that is not what it should be: the message says which, and what to do
        raise SystemExit(str(error)) from None


def load_source(config, edges):
    natural = None
    if config.data.split(":")[0] == "generated":
        train, test = generated(config)
    elif config.data == "kaggle":
        from data import kaggle_3m

        whole = kaggle_3m.load()
        buckets = rows_by_bucket(whole, edges)
        tails = np.concatenate([rows[max(0, len(rows) - config.test_per_bucket) :] for rows in buckets])
        test = whole.subset(tails)  # the log's split: the last of each bucket
        train = whole.subset(np.setdiff1d(np.concatenate(buckets), tails))
    elif config.data == "extreme":
        from data import sudoku_extreme

        train, whole = sudoku_extreme.load(train=True), sudoku_extreme.load(train=False)
        buckets = rows_by_bucket(whole, edges)
        natural = [len(rows) / len(whole) for rows in buckets]
        test = whole.subset(store.balanced_test(whole, config.test_per_bucket, seed=sudoku_extreme.SEED))
    elif config.data.endswith(".csv"):
        whole = store.read_csv(config.data)
        buckets = rows_by_bucket(whole, edges)
        count = [min(config.test_per_bucket, len(rows) // 5) for rows in buckets]  # a fifth at most
        rows = [draw(rows, n, seed=0) if n else rows[:0] for rows, n in zip(buckets, count)]
        if not sum(map(len, rows)):
            raise ValueError(f"{config.data}: no bucket of --edges holds five puzzles, so there is nothing to test on")
        test = whole.subset(np.concatenate(rows))
        train = whole.subset(store.exclude(whole, test))
    else:
        raise SystemExit(
            f"--data {config.data}: expected generated, generated:50-58, kaggle, extreme or the path of a .csv file"
        )
    buckets = [draw(rows, config.train_per_bucket, seed=1) for rows in rows_by_bucket(train, edges)]
    return Data(train.subset(draw(np.concatenate(buckets), config.train_puzzles, seed=2)), test, edges, natural)


def minimal(config):
    """Minimal puzzles to learn from; unseen ones in two buckets to test on: 0 has 45 clues, 1 is minimal."""
    from data import generate

    n = config.test_per_bucket
    puzzles = generate.cached(config.train_puzzles + n, clues="minimal", seed=1)
    parts = [generate.cached(n, clues=45, seed=2).rows(np.arange(n)), puzzles.rows(np.arange(n))]
    test = store.from_arrays(*(np.concatenate(part) for part in zip(*parts)), np.repeat([0, 1], n))
    return Data(puzzles.subset(np.arange(n, len(puzzles))), test, edges=(0, 1, 2))


def generated(config):
    """One clue count stands for each bucket; its puzzles carry the bucket's lower edge as their rating."""
    from data import generate

    try:
        low, high = map(int, config.data.split(":")[1].split("-")) if ":" in config.data else GENERATED
    except ValueError:
        raise SystemExit(f"--data {config.data}: expected two clue counts, as in generated:50-58") from None
    buckets = len(config.edges) - 1
    clues = [round(high - (high - low) * (i + 0.5 * (buckets == 1)) / max(1, buckets - 1)) for i in range(buckets)]
    wanted = config.train_per_bucket or math.ceil((config.train_puzzles or EVERYTHING) / len(clues))
    train, test = [], []
    for count, rating in zip(clues, config.edges):
        puzzles = generate.cached(wanted + config.test_per_bucket, clues=count, seed=1)
        for part, rows in (
            (test, slice(config.test_per_bucket)),
            (train, slice(config.test_per_bucket, None)),
        ):
            puzzle, solution = puzzles.rows(np.arange(len(puzzles))[rows])
            part.append((puzzle, solution, np.full(len(puzzle), rating, np.float32)))
    return [store.from_arrays(*(np.concatenate(column) for column in zip(*part))) for part in (train, test)]


def symmetries(puzzle, solution, random):
    """Each row's puzzle and solution under a random symmetry of Sudoku: digits, bands, lines, transposition."""
    n = len(puzzle)
    lines = [random.random((n, 3)).argsort(1)[:, :, None] * 3 + random.random((n, 3, 3)).argsort(2) for _ in "rc"]
    rows, columns = (line.reshape(n, 9) for line in lines)
    cells = rows[:, :, None] * 9 + columns[:, None, :]
    cells = np.where(random.random(n)[:, None, None] < 0.5, cells, cells.transpose(0, 2, 1)).reshape(n, 81)
    digits = np.concatenate([np.zeros((n, 1), int), random.random((n, 9)).argsort(1) + 1], 1).astype(puzzle.dtype)
    move = lambda board: np.take_along_axis(digits, np.take_along_axis(board, cells, 1).astype(int), 1)  # noqa: E731
    return move(puzzle), move(solution)
