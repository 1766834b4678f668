"""The solver against famous puzzles, boards that are wrong, and a reference that is too simple to be wrong."""

import numpy as np
import pytest

from data.generate import generate
from data.solver import efforts, settled, solve
from tests.data.puzzles import is_valid_solution

FAMOUS = {
    "Golden Nugget": ".......39.....1..5..3.5.8....8.9...6.7...2...1..4.......9.8..5..2....6..4..7.....",
    "Easter Monster": "1.......2.9.4...5...6...7...5.9.3.......7.......85..4.7.....6...3...9.8...2.....1",
    "Inkala 2012": "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..",
    "17 clues": ".......1.4.........2...........5.4.7..8...3....1.9....3..4..2...5.1........8.6...",
}
PEERS = [
    {j for j in range(81) if i != j and (i // 9 == j // 9 or i % 9 == j % 9 or box(i) == box(j))}
    for box in [lambda cell: (cell // 27, cell % 9 // 3)]
    for i in range(81)
]


def boards(*texts):
    return np.array([[0 if c == "." else int(c) for c in text] for text in texts], np.uint8)


def reference(board, limit):
    """Up to `limit` solutions, by trying the cell with the fewest candidates."""
    board = list(map(int, board))
    blanks = [i for i in range(81) if not board[i]]
    if not blanks:
        return [board]
    options = {i: set(range(1, 10)) - {board[j] for j in PEERS[i]} for i in blanks}
    cell = min(blanks, key=lambda i: len(options[i]))
    found = []
    for digit in sorted(options[cell]):
        found += reference([*board[:cell], digit, *board[cell + 1 :]], limit - len(found))
        if len(found) == limit:
            break
    return found


def test_famous_puzzles_have_one_solution_and_it_is_right():
    puzzles = boards(*FAMOUS.values())
    solutions, counts, guesses = solve(puzzles)
    assert (counts == 1).all()
    assert is_valid_solution(puzzles, solutions).all()
    assert (guesses[:3] > 0).all()


def test_agrees_with_the_reference_on_any_number_of_solutions():
    puzzles, _ = generate(40, clues=(24, 40), seed=5).rows(np.arange(40))
    random = np.random.default_rng(0)
    for puzzle in puzzles[::2]:  # half of them lose clues, and then have several solutions
        puzzle[random.choice(np.flatnonzero(puzzle), 3, replace=False)] = 0
    solutions, counts, _ = solve(puzzles)
    for puzzle, solution, count in zip(puzzles, solutions, counts):
        expected = reference(puzzle, 2)
        assert len(expected) == count
        assert len(expected) == 2 or expected[0] == solution.tolist()
    assert set(counts) == {1, 2}
    assert is_valid_solution(puzzles, solutions).all()


def test_contradictions_have_no_solution():
    twice = np.zeros(81, np.uint8)
    twice[[0, 8]] = 7
    no_candidate = np.zeros(81, np.uint8)
    no_candidate[:8], no_candidate[17] = np.arange(1, 9), 9  # the ninth cell of the row can hold nothing
    solution = solve(boards(FAMOUS["Golden Nugget"]))[0][0]
    wrong = boards(FAMOUS["Golden Nugget"])[0]
    cell = np.flatnonzero(wrong == 0)[0]
    fits = next(d for d in range(1, 10) if d != solution[cell] and not any(wrong[peer] == d for peer in PEERS[cell]))
    wrong[cell] = fits  # breaks no rule by itself, and yet nothing fits
    full = solution.copy()
    full[:2] = full[1::-1]
    solutions, counts, _ = solve(np.stack([twice, no_candidate, wrong, full]))
    assert counts.tolist() == [0, 0, 0, 0]
    assert not solutions.any()


def test_limit_blank_and_full_boards():
    blank = np.zeros((1, 81), np.uint8)
    for limit in (1, 2):
        solution, count, _ = solve(blank, limit=limit)
        assert count[0] == limit and is_valid_solution(blank, solution).all()
    again, count, guesses = solve(solution)
    assert (again == solution).all() and count[0] == 1 and guesses[0] == 0


def test_order_changes_nothing():
    puzzles, _ = generate(2_500, clues="minimal", seed=2).rows(np.arange(2_500))
    for one, backwards in zip(solve(puzzles), solve(puzzles[::-1])):
        assert (one == backwards[::-1]).all()


def test_rules_are_checked_cell_by_cell():
    puzzle = boards(FAMOUS["Inkala 2012"])
    solution = solve(puzzle)[0]
    other_clue, swapped, blank, ten = solution.copy(), solution.copy(), solution.copy(), solution.copy()
    other_clue = other_clue % 9 + 1  # a valid grid that disagrees with the clues
    swapped[0, [1, 2]] = swapped[0, [2, 1]]
    blank[0, 1], ten[0, 1] = 0, 10
    answers = np.concatenate([solution, other_clue, swapped, blank, ten])
    assert is_valid_solution(puzzle.repeat(5, axis=0), answers).tolist() == [True, False, False, False, False]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"puzzle 1, cell 80.*found 12"):
        solve(np.array([[0] * 81, [0] * 80 + [12]], np.uint8))
    with pytest.raises(ValueError, match=r"\[N, 81\], found \[9, 9\]"):
        solve(np.zeros((9, 9), np.uint8))


def test_settling_sets_what_has_one_place_left():
    """And more, but nothing that the solution has; the rules are written in another way here."""
    puzzle, solution = generate(20, clues="minimal", seed=5, progress=False).rows(np.arange(20))
    hard = boards(*FAMOUS.values())
    puzzle, solution = np.concatenate([puzzle, hard]), np.concatenate([solution, solve(hard)[0]])
    cell, digit = np.arange(81).repeat(9), np.tile(np.arange(9), 81)
    unit = np.stack([cell // 9, cell % 9, cell // 27 * 3 + cell % 9 // 3]) * 9 + digit + 81 * np.arange(1, 4)[:, None]
    groups = (np.concatenate([cell[None], unit])[:, None] == np.arange(324)[:, None]).any(0)  # [324, 729]
    excludes = (groups.T.astype(int) @ groups > 0) & ~np.eye(729, dtype=bool)
    for given, right, alive in zip(puzzle, solution, settled(puzzle)[0]):
        expected, before = (given[cell] == digit + 1) | (given[cell] == 0), None
        while not np.array_equal(expected, before):
            before = expected.copy()
            alone = (groups[groups @ expected.astype(int) == 1] & expected).any(0)
            expected &= ~excludes[alone].any(0)
        assert not (alive & ~expected).any() and alive[np.arange(81) * 9 + right - 1].all()
    broken = np.where(np.arange(81) == 1, solution[0, 0], solution[0])
    assert settled(solution)[1].all() and not settled(broken[None])[1].any()


def test_efforts_are_the_guesses_until_a_candidate_is_decided():
    """As many as the whole solver makes where the candidate is given, and one."""
    for puzzle in boards(*FAMOUS.values())[:3]:  # the rules alone solve the fourth
        alive = settled(puzzle[None])[0][0]
        asked = np.flatnonzero(alive & (alive.reshape(81, 9).sum(1) > 1).repeat(9))[::7]
        given = np.tile(puzzle, (len(asked), 1))
        given[np.arange(len(asked)), asked // 9] = asked % 9 + 1
        found = efforts(alive, asked, 10_000)
        assert np.array_equal(found, 1 + solve(given, limit=1)[2])
        assert np.array_equal(efforts(alive, asked, 4), np.minimum(found, 5))
        assert found.min() < 9 and found.max() > 30
