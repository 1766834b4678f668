"""Solved puzzles for these tests, quickly: random equivalents of one grid, with random clues."""

import numpy as np

from data import sources, store

GRID = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def make(count, seed=0, clues=45, ratings=(0,)):
    """`count` puzzles as a PuzzleSet, the ratings taken in turn."""
    random = np.random.default_rng(seed)
    solution = np.tile(np.array([int(digit) for digit in GRID], np.uint8), (count, 1))
    given = random.random((count, 81)).argsort(1) < clues
    puzzle, solution = sources.symmetries(solution * given, solution, random)
    return store.from_arrays(puzzle, solution, np.resize(np.array(ratings, np.float32), count))


def is_valid_solution(puzzle, solution):
    """Bool [n]: does each full grid obey the rules and agree with the clues of its puzzle?"""
    grid = solution.reshape(-1, 9, 9)
    boxes = grid.reshape(-1, 3, 3, 3, 3).swapaxes(2, 3).reshape(-1, 9, 9)
    units = np.concatenate([grid, grid.swapaxes(1, 2), boxes], axis=1)
    return (np.sort(units) == np.arange(1, 10)).all((1, 2)) & ((puzzle == 0) | (puzzle == solution)).all(1)


def lines(puzzles, blank="."):
    """Each row as (puzzle, solution, rating), all text."""
    boards, solutions = puzzles.rows(np.arange(len(puzzles)))
    text = lambda board: "".join(map(str, board.tolist()))  # noqa: E731
    return [(text(b).replace("0", blank), text(s), f"{r:g}") for b, s, r in zip(boards, solutions, puzzles.rating)]


def write_extreme(path, puzzles):
    """A CSV file in sudoku-extreme's form."""
    body = [f"test,{','.join(line)}" for line in lines(puzzles)]
    path.write_text("\n".join(["source,question,answer,rating", *body]) + "\n")
    return path


def write_kaggle(path, puzzles):
    """A CSV file in the form of the Kaggle set of 3 million."""
    body = [f"{i},{puzzle},{solution},45,{rating}" for i, (puzzle, solution, rating) in enumerate(lines(puzzles), 1)]
    path.write_text("\n".join(["id,puzzle,solution,clues,difficulty", *body]) + "\n")
    return path
