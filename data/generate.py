"""Makes Sudoku puzzles with one solution: any number of clues, minimal ones, or by rating.

    python data/generate.py --count 10000 --clues minimal --seed 1 --output puzzles.npy
    python data/generate.py --count 2000 --clues 30-40 --output mixed.npy
    python data/generate.py --count 500 --buckets 3,4 --output hard.npy

The puzzles depend on the arguments and VERSION alone, not on the machine or the number of workers: the work is
cut into chunks, each with its own seed.
"""

import argparse
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numba import config, njit
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import store
from data.solver import place, propagate, search, workspace, write_solution
from plumbing import disk

VERSION = 1  # raise it when the same arguments give other puzzles, so that caches are made again
EASY_CHUNK, HARD_CHUNK = 256, 64  # puzzles in a chunk, the work of one thread; a hard one has one pool for its climb
ANY_RATING = 1_000_000  # more guesses than any puzzle needs
IDLE = 8000  # moves without a new puzzle after which a new pool is made
FEWEST_CLUES = 20  # fewer would take minutes a puzzle


@njit(cache=True, nogil=True)
def _rate(puzzle, solution, work):
    """(the rating, all guesses including those of the search for a second solution)."""
    return search(puzzle, np.int64(2), np.int64(-1), solution, work)[1:]  # int64: search compiles for one type only


@njit(cache=True, nogil=True)
def _random_grid(solution, work):
    """Fills `solution` with a random full grid: random candidates for random cells; a contradiction undoes the last."""
    state, board, open_cells, seen, _, stack, _ = work
    while True:
        state[:] = (1 << 27) - 1
        seen[:] = 0
        alive = True
        while alive and (open_cells[0] | open_cells[1] | open_cells[2]):
            cell = np.random.randint(81)
            band, bit = cell // 27, 1 << cell % 27
            if not open_cells[band] & bit:
                continue
            digit = np.random.randint(9)
            if not board[3 * digit + band] & bit:
                continue
            stack[0] = state
            place(board, open_cells, digit, band, bit)
            if not propagate(board, seen, open_cells):
                state[:] = stack[0]
                seen[:] = board
                board[3 * digit + band] &= ~bit
                alive = propagate(board, seen, open_cells)
        if alive:
            write_solution(board, solution)
            return


@njit(cache=True, nogil=True)
def _dig(puzzle, target, scratch, work):
    """Takes clues out in random order, keeping one solution, until `target` are left; returns how many are."""
    left = np.count_nonzero(puzzle)
    for cell in np.random.permutation(81):
        if left <= target:
            break
        if puzzle[cell]:
            digit, puzzle[cell] = puzzle[cell], 0
            # Still one solution if there is none with another digit here.
            if search(puzzle, np.int64(1), cell * 9 + digit - 1, scratch, work)[0]:
                puzzle[cell] = digit
            else:
                left -= 1
    return left


@njit(cache=True, nogil=True)
def _dug_chunk(low, high, easiest, hardest, stop, seed, puzzles, solutions, guesses):
    """Puzzles with `low` to `high` clues, the number drawn for each (0, 0: minimal ones), rated in a range.

    It ends early when stop[0] is set.
    """
    np.random.seed(seed)
    work, scratch = workspace(), np.zeros((1, 81), np.uint8)
    for i in range(len(puzzles)):
        target = np.random.randint(low, high + 1)
        while not stop[0]:
            _random_grid(solutions[i], work)
            puzzles[i] = solutions[i]
            if _dig(puzzles[i], target, scratch, work) > target > 0:
                continue
            guesses[i] = _rate(puzzles[i], scratch, work)[0]
            if easiest <= guesses[i] <= hardest:
                break


@njit(cache=True, nogil=True)
def _line_order():
    """A random order of nine lines that keeps bands together."""
    order = np.repeat(3 * np.random.permutation(3), 3)
    for band in range(3):
        order[3 * band : 3 * band + 3] += np.random.permutation(3)
    return order


@njit(cache=True, nogil=True)
def _scramble(puzzle, scrambled):
    """Writes a random equivalent of `puzzle`: lines in another order, digits renamed, perhaps transposed."""
    rows, columns, flip = _line_order().reshape(9, 1), _line_order(), np.random.randint(2)
    names = np.zeros(10, np.uint8)
    names[1:] = np.random.permutation(9) + 1
    cells = 9 * columns + rows if flip else 9 * rows + columns
    scrambled[:] = names[puzzle[cells.ravel()]]


@njit(cache=True, nogil=True)
def _neighbour(puzzle, wanted, found, work):
    """Changes a minimal puzzle into a similar one, and found[0] into its solution; returns all guesses that the
    new puzzle needs, or -1 if none was found.

    One clue is taken out, and all solutions of the rest are listed. A digit that just one of them has in a cell
    is a clue that makes it the only solution. Up to twelve such clues are tried, until `wanted` guesses are needed.
    """
    before, only = puzzle.copy(), found[:1]
    clues = np.flatnonzero(puzzle)
    puzzle[clues[np.random.randint(len(clues))]] = 0
    while True:
        count = search(puzzle, len(found), np.int64(-1), found, work)[0]
        if count < len(found):
            break
        cell = np.random.randint(81)  # too many to list: add one more clue, from one of them
        puzzle[cell] = found[np.random.randint(count), cell]
    offsets = 10 * np.arange(81)
    times = np.bincount((offsets + found[:count]).ravel(), minlength=810)  # place 10 * cell + digit
    times[offsets + before] = 0  # not the clue that was there
    options = np.flatnonzero(times == 1)
    for left in range(len(options), max(len(options) - 12, 0), -1):
        choice = np.random.randint(left)
        cell, digit = divmod(options[choice], 10)
        options[choice] = options[left - 1]
        replaced, puzzle[cell] = puzzle[cell], digit
        if _rate(puzzle, only, work)[1] >= wanted:
            _dig(puzzle, np.int64(0), only, work)
            return _rate(puzzle, only, work)[1]
        puzzle[cell] = replaced
    return -1


@njit(cache=True, nogil=True)
def _climbed_chunk(easiest, hardest, stop, seed, puzzles, solutions, guesses):
    """Hard puzzles, rated in a range: a pool of random minimal puzzles is improved by moves to similar puzzles.

    The moves are judged by all guesses (to find the solution and prove it the only one), which vary less than the
    rating. A puzzle with enough of them is taken if its solution differs in a third of the cells from all those
    taken here: a random equivalent of it whose own rating is in the range. It ends early when stop[0] is set.
    """
    np.random.seed(seed)
    work, found, enough = workspace(), np.zeros((200, 81), np.uint8), 1.2 * easiest
    pool, totals, taken = np.zeros((64, 81), np.uint8), np.zeros(64, np.int64), np.zeros_like(puzzles)
    puzzle, made, idle = np.zeros(81, np.uint8), 0, IDLE
    while made < len(puzzles):
        if idle == IDLE:  # at the start, or stuck: a new pool
            idle = 0
            for i in range(len(pool)):
                totals[i] = 0
                while totals[i] < 4 and not stop[0]:
                    _random_grid(pool[i], work)
                    _dig(pool[i], np.int64(0), found, work)
                    totals[i] = _rate(pool[i], found[:1], work)[1]
        if stop[0]:
            return
        idle += 1
        first, second = np.random.randint(len(pool)), np.random.randint(len(pool))
        better = min(max(totals[first], totals[second]), enough)
        puzzle[:] = pool[first if totals[first] >= better else second]
        total = _neighbour(puzzle, 0.85 * better, found, work)
        if total < 0.85 * better:
            continue
        first, second = np.random.randint(len(pool)), np.random.randint(len(pool))
        worse = first if totals[first] < totals[second] else second
        if total >= min(totals[worse], enough):
            pool[worse], totals[worse] = puzzle, total
        if total < enough or np.any((taken[:made] != found[0]).sum(axis=1) < 27):
            continue
        taken[made] = found[0]
        for _ in range(8):
            _scramble(puzzle, puzzles[made])
            guesses[made] = _rate(puzzles[made], solutions[made : made + 1], work)[0]
            if easiest <= guesses[made] <= hardest:
                made, idle = made + 1, 0
                break


def _targets(clues):
    """(low, high) clues of a puzzle; (0, 0) for minimal ones."""
    if clues == "minimal":
        return 0, 0
    low, high = (clues, clues) if isinstance(clues, int | np.integer) else clues
    if not FEWEST_CLUES <= low <= high <= 81:
        raise ValueError(f'clues: expected {FEWEST_CLUES} to 81, a (low, high) range or "minimal", found {clues}')
    return int(low), int(high)


def _compile(run):
    """Calls `run`, which compiles a kernel; meanwhile Ctrl-C kills the process: numba can lose a KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is not signal.default_int_handler:
        return run()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return run()
    finally:
        signal.signal(signal.SIGINT, handler)


def _make(count, seed, chunk_size, kernel, workers, advance):
    """(puzzles, solutions, guesses): the first `count` different puzzles of as many chunks as that takes."""
    stop = np.zeros(1, np.uint8)

    def chunk(index, size=chunk_size):
        puzzles, solutions = np.zeros((2, size, 81), np.uint8)
        guesses = np.zeros(size, np.int32)
        kernel(stop, np.random.SeedSequence((*seed, index)).generate_state(1)[0], puzzles, solutions, guesses)
        return puzzles, solutions, guesses

    columns, parts, rows = _compile(lambda: chunk(0, size=0)), [], []  # empty, for a count of 0
    with ThreadPoolExecutor(workers or config.NUMBA_NUM_THREADS) as pool:  # numba knows which cores we may use
        try:
            while len(rows) < count:
                chunks = -(-(count - len(rows)) // chunk_size)
                for part in pool.map(chunk, range(len(parts), len(parts) + chunks)):
                    advance(np.clip(count - chunk_size * len(parts), 0, chunk_size))  # not what is beyond `count`
                    parts.append(part)
                columns = [np.concatenate(column) for column in zip(*parts)]
                rows = np.sort(np.unique(columns[0].view("V81"), return_index=True)[1])[:count]
        except BaseException:  # Ctrl-C, or a signal handler that raises: end the chunks that are running
            stop[0] = 1
            raise
    return [column[rows] for column in columns]


def generate(count, clues=45, seed=0, buckets=None, workers=None, progress=True):
    """`count` different puzzles with one solution each, as a PuzzleSet rated by data.solver's guesses.

    clues: a number, a (low, high) range drawn from uniformly, or "minimal" (no clue can go; about 24 on average).
    buckets: puzzles by rating instead, with any number of clues: a list of indices of buckets of store.EXTREME,
    in equal shares, or a dict index -> count. They come shuffled.
    """
    for name, value, lowest in (("count", count, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value is not None and value < lowest:
            raise ValueError(f"{name}: expected {lowest} or more, found {value}")
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not (progress and sys.stderr.isatty())) as bar:
        bar.console.show_cursor()  # a signal that ends the process must not leave the cursor hidden
        advance = partial(bar.advance, bar.add_task("puzzles", total=count))
        if buckets is None:
            low, high = _targets(clues)
            size = EASY_CHUNK if low == 0 or low > 22 else HARD_CHUNK
            kernel = partial(_dug_chunk, low, high, 0, ANY_RATING)
            parts = [_make(count, (seed, low, high), size, kernel, workers, advance)]
        else:
            if not isinstance(buckets, dict):
                buckets = {b: count // len(buckets) + (i < count % len(buckets)) for i, b in enumerate(buckets)}
            if set(buckets) - set(range(len(store.EXTREME_NAMES))) or sum(buckets.values()) != count:
                raise ValueError(f"buckets: expected indices 0 to 4 whose counts add up to {count}, found {buckets}")
            parts = []
            for bucket, share in sorted(buckets.items()):
                easiest, above = store.EXTREME[bucket : bucket + 2]
                easiest, hardest = int(easiest), int(min(above - 1, ANY_RATING))
                kernel = partial(_climbed_chunk if easiest > 10 else partial(_dug_chunk, 0, 0), easiest, hardest)
                parts.append(_make(share, (seed, 100, bucket), HARD_CHUNK, kernel, workers, advance))
    puzzles = store.from_arrays(*(np.concatenate(column) for column in zip(*parts)))
    return puzzles if buckets is None else puzzles.subset(np.random.default_rng(seed).permutation(count))


def cached(count, clues, seed, progress=True):
    """The puzzles of generate(count, clues, seed), kept in the cache folder (SUDOKU_DATA, or data/cache)."""
    made_by = {"generator": VERSION, "count": count, "clues": clues, "seed": seed}
    name = clues if clues == "minimal" else "-".join(map(str, dict.fromkeys(_targets(clues))))
    path = store.cache_folder() / f"generated-clues-{name}-count-{count}-seed-{seed}.npy"
    return store.load_or_make(path, made_by, lambda: generate(count, clues, seed, progress=progress))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="puzzles to make (default: %(default)s)")
    parser.add_argument("--clues", default="45", help="a number, a range (30-40) or minimal (default: %(default)s)")
    parser.add_argument("--buckets", help="rating buckets instead of clues, in equal shares: 0,1,2,3,4")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same puzzles (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="threads (default: all cores we may use)")
    parser.add_argument("--output", required=True, help="the .npy file to write")
    options = parser.parse_args(argv)
    if not re.fullmatch(r"minimal|\d+(-\d+)?", options.clues):
        parser.error(f"--clues {options.clues}: expected a number, a range such as 30-40, or minimal")
    low, _, high = options.clues.partition("-")
    clues = low if low == "minimal" else (int(low), int(high or low))
    buckets = options.buckets
    if buckets is not None:
        if not re.fullmatch(r"\d+(,\d+)*", buckets):
            parser.error(f"--buckets {buckets}: expected bucket numbers from 0 to 4, such as 3,4")
        buckets = [int(bucket) for bucket in buckets.split(",")]
    path = Path(options.output)
    try:
        if path.suffix != ".npy" or path.is_dir():
            raise OSError("it is not the path of an .npy file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise OSError("no permission to write in its folder")
        start = time.perf_counter()
        puzzles = generate(options.count, clues, options.seed, buckets, options.workers)
        seconds = time.perf_counter() - start
        store.save(path, puzzles, made_by={"generator": VERSION, "command": " ".join(argv or sys.argv[1:])})
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        raise SystemExit(f"--output {path}: cannot be written ({error.strerror or error}); give another path") from None
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
    lines = [f"{path}: {len(puzzles):,} puzzles in {seconds:.1f} s, {len(puzzles) / seconds:,.0f} a second"]
    buckets = store.rows_by_bucket(puzzles, store.EXTREME)
    lines += [f"rating {name:>5}: {len(rows):,}" for name, rows in zip(store.EXTREME_NAMES, buckets)]
    disk.say("\n".join(lines))


if __name__ == "__main__":
    main()
