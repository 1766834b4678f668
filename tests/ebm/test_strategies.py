"""The strategy detector on boards whose answer is known, and against a second, slow one made of sets."""

import itertools
import time

import numpy as np
import pytest

from data.rows import UNITS
from ebm.strategies import LEVEL, NAMES, candidates, explain, stages, subsets

# A strategy, a board, the cell and digit that need just this one, and a cell: with that one blank, the board looks
# alike, but the strategy does not apply. All by hand.
BOARDS = """
# row, column and box of r5c5 hold 1 to 8
naked single; ....4.........................6.....12......3...8.7.........................5....; r5c5 9; r6c4
# lines through the middle box leave 5 one place in it; then one place in the row, whose column and box have more
hidden single; ...5.......................5.........................5.......................5...; r5c5 5; r9c6
hidden single; ...5................................123...467................................5...; r5c5 5; r9c6
# 5 is in the first row of box 1, so r1c9 is not 5
pointing pair; ..8......123...78.467...9..........1........2........3........4..................; r1c9 6; r3c1
# row 1 has its 5 in box 1, so r2c1 is not 5
box-line reduction; ...12347....7..............1........2.......53........4........8........9........; r2c1 6; r5c9
# r1c1 and r1c5 are 1 and 2; r1c1 and r2c2 are
naked pair; ...8...9..6...7.....7..6...3.......44.......55.......2....3...6....4...7....5....; r1c9 3; r7c5
naked pair; .6.345...7.....345.....892..9.........4......8........9..........5.......8.......; r3c3 3; r1c4
# row 1 has 1 and 2 in r1c1 and r1c5 only, so r1c1 is not 3 and column 1 has it in r7c1
hidden pair; ..56.7...6.....1..7......2.4........51...............3............3......2....3..; r7c1 3; r5c2
# r1c1, r1c5 and r1c9 hold 1 2, 2 3 and 1 3
naked triple; ..8..9.....................3...4.2.54...5.3.65...6...76...7.5.27...1.6.4......7..; r1c7 4; r5c5
# row 1 has 1, 2 and 3 in r1c1, r1c5 and r1c9 only, so r1c1 is not 4 and box 1 has it in r3c3
hidden triple; ..8....9.........46.........1...2....2...3....3...1....4.1..2.....2..3.....3..1..; r3c3 4; r9c7
# rows 2 and 5 have 5 in columns 3 and 7 only, so r8c3 is not 5
X-wing; .........12.3.4.67...........8......34.8.9.12.............5....7..123.49.........; r8c3 6; r7c5
"""
BOARDS = [line.split("; ") for line in BOARDS.strip().splitlines() if not line.startswith("#")]
# Generated puzzles with one solution, and the solutions; every strategy is needed in one of them.
PUZZLES = [
    (
        "000007400203000000000000865400000500012500000060182000050000900320806000000030007",
        "586917423243658791179324865438769512912543678765182349854271936327896154691435287",
    ),
    (
        "000050020060000307040027506008040000000902000000065040059000418307000000000009000",
        "973658124265194387841327596598741632416932875732865941659273418387416259124589763",
    ),
    (
        "200300040000048900000002067030010000004000000000700429050103000040020500100005300",
        "269371845571648932483592167937214658624859713815736429758163294346927581192485376",
    ),
    (
        "200000600004700000010008000000001500809000001000629007020540036080300000060000090",
        "258914673394765128716238954632871549879453261145629387921547836587396412463182795",
    ),
    (
        "061300000000006500807900000070000002000030050006005741030090004500000100008600000",
        "461358297923746518857912463175469382284137659396285741632591874549873126718624935",
    ),
]


def parse(text):
    return np.array([int(character) for character in text.replace(".", "0")])


def place(name):
    return (int(name[1]) - 1) * 9 + int(name[3]) - 1


def strategy(board, cell, digit):
    return NAMES[explain(board[None], [0], [cell], [digit])[0]]


@pytest.mark.parametrize("expected, text, event, needed", BOARDS)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_board_that_needs_exactly_this_strategy(expected, text, event, needed, transposed):
    turn = np.arange(81).reshape(9, 9).T.ravel() if transposed else np.arange(81)
    board, cell, digit = parse(text), place(event), int(event[-1])
    where = int(np.flatnonzero(turn == cell)[0])
    assert strategy(board[turn], where, digit) == expected
    board[place(needed)] = 0
    assert strategy(board[turn], where, digit) == "unknown"


@pytest.mark.parametrize("expected, text, event, needed", BOARDS)
def test_names_of_digits_do_not_matter(expected, text, event, needed):
    names = np.array([0, 4, 9, 1, 7, 2, 8, 6, 3, 5])
    assert strategy(names[parse(text)], place(event), names[int(event[-1])]) == expected


def test_levels():
    level = dict(zip(NAMES, LEVEL.tolist()))
    assert level == {"naked single": 1, "hidden single": 2, "pointing pair": 3, "box-line reduction": 3,
                     "naked pair": 4, "hidden pair": 4, "naked triple": 4, "hidden triple": 4,
                     "X-wing": 5, "unknown": 6}  # fmt: skip


def test_a_wrong_digit_is_not_a_naked_single():
    _, text, event, _ = BOARDS[0]
    digits = range(1, 10)
    found = [strategy(parse(text), place(event), digit) for digit in digits]
    assert found == ["unknown"] * 8 + ["naked single"]


def test_a_digit_that_clashes_is_unknown_even_in_the_last_cell():
    board = parse(PUZZLES[0][1])
    board[40], right = 0, board[40]
    assert strategy(board, 40, right) == "naked single"
    assert strategy(board, 40, right % 9 + 1) == "unknown"


def boards_on_the_way():
    """The puzzles with none and half of their blanks filled in, and the solutions."""
    random = np.random.default_rng(0)
    for text, answer in PUZZLES:
        puzzle, solution = parse(text), parse(answer)
        for share in (0, 0.5):
            yield np.where(random.random(81) < share, solution, puzzle), solution


def test_right_candidates_are_never_removed():
    boards, solutions = map(np.array, zip(*boards_on_the_way()))
    blank = boards == 0
    for name, possible in stages(candidates(boards)):
        kept = np.take_along_axis(possible.reshape(-1, 81, 9), solutions[..., None] - 1, 2)[..., 0]
        assert kept[blank].all(), name


def test_agrees_with_the_slow_detector():
    """For the right digit of every blank, and for the wrong ones; also where some cells are wrong already."""
    boards, solutions = map(np.array, zip(*boards_on_the_way()))
    random = np.random.default_rng(2)
    broken = np.where((boards > 0) & (random.random(boards.shape) < 0.15), random.integers(1, 10, boards.shape), boards)
    boards, solutions = np.concatenate([boards, broken]), np.concatenate([solutions, solutions])
    rows, cells = np.nonzero(boards == 0)
    slow, seen = [by_sets(board) for board in boards], set()
    for digits in (solutions[rows, cells], *random.integers(1, 10, (2, len(rows)))):
        found = explain(boards, rows, cells, digits)
        expected = [slow[row](cell, digit) for row, cell, digit in zip(rows, cells, digits)]
        assert [NAMES[code] for code in found] == expected
        seen |= set(expected)
    assert seen == set(NAMES)


def test_the_order_and_number_of_boards_do_not_matter():
    boards, solutions = map(np.array, zip(*boards_on_the_way()))
    rows, cells = np.nonzero(boards == 0)
    found = explain(boards, rows, cells, solutions[rows, cells])
    many = np.tile(boards, (50, 1))  # more than one chunk, and boards without an event
    order = np.random.default_rng(1).permutation(len(rows))
    again = explain(many, rows[order] + 49 * len(boards), cells[order], solutions[rows, cells][order])
    assert (again == found[order]).all()


def test_subsets_on_a_matrix():
    """Rows 0 and 1 share two columns; row 2 has one, which makes it a single and no part of a pair."""
    matrix = np.zeros((9, 9), bool)
    matrix[0, :2] = matrix[1, :2] = matrix[2, 2] = matrix[3, :4] = True
    assert subsets(matrix, 2).tolist() == [
        *matrix[:3].tolist(),
        [False] * 2 + [True] * 2 + [False] * 5,
        *[[False] * 9] * 5,
    ]
    assert (subsets(matrix, 3) == matrix).all()
    matrix[2], matrix[4, :4] = matrix[1], True  # three rows with two columns: a contradiction, and no triple
    assert (subsets(matrix, 3) == matrix).all()


def test_no_events():
    assert len(explain(np.zeros((3, 81)), [], [], [])) == len(explain(np.zeros((0, 81)), [], [], [])) == 0


def test_a_thousand_events_on_as_many_boards_take_little_time():
    board = np.array([parse(puzzle) for puzzle, _ in PUZZLES] * 200)
    cell = (board == 0).argmax(1)
    start = time.process_time()
    explain(board, np.arange(1000), cell, np.full(1000, 5))
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "boards, cell, digit, message",
    [
        (np.zeros((1, 9, 9)), 0, 1, r"expected boards as an array \[n, 81\], found \[1, 9, 9\]"),
        (np.full((1, 81), 3), 7, 1, "board 0, cell 7: expected a blank"),
        (np.zeros((1, 81)), 7, 10, "event 0: expected a digit from 1 to 9"),
        (np.zeros((1, 81)), 7, 0, "event 0: expected a digit from 1 to 9"),
    ],
)
def test_bad_input(boards, cell, digit, message):
    with pytest.raises(ValueError, match=message):
        explain(boards, [0], [cell], [digit])


# ---------------------------------------------------------------- the slow detector

SETS = [frozenset(unit.tolist()) for unit in UNITS]
ROWS, COLUMNS, BOXES = SETS[:9], SETS[9:18], SETS[18:]


def by_sets(board):
    """A function (cell, digit) -> strategy for this board; {cell: set of candidates} all the way."""
    peers = {cell: set().union(*(unit for unit in SETS if cell in unit)) for cell in range(81)}
    given = {cell: set(range(1, 10)) - {board[peer] for peer in peers[cell]} for cell in range(81) if not board[cell]}
    spots = lambda at, unit, digit: {cell for cell in unit if digit in at.get(cell, ())}  # noqa: E731

    def without(at, gone):
        return {cell: {digit for digit in at[cell] if (cell, digit) not in gone} for cell in at}

    def locked(at, firsts, seconds):
        gone = set()
        for first, second, digit in itertools.product(firsts, seconds, range(1, 10)):
            if len(held := spots(at, first, digit)) > 1 and held <= second:
                gone |= {(cell, digit) for cell in second - first}
        return without(at, gone)

    def naked(at, size):
        gone = set()
        for unit in SETS:
            for cells in itertools.combinations([cell for cell in unit if len(at.get(cell, ())) > 1], size):
                if len(digits := set().union(*(at[cell] for cell in cells))) == size:
                    gone |= set(itertools.product(unit - set(cells), digits))
        return without(at, gone)

    def hidden(at, size):
        gone = set()
        for unit in SETS:
            known = [digit for digit in range(1, 10) if len(spots(at, unit, digit)) > 1]
            for digits in itertools.combinations(known, size):
                if len(cells := set().union(*(spots(at, unit, digit) for digit in digits))) == size:
                    gone |= set(itertools.product(cells, set(range(1, 10)) - set(digits)))
        return without(at, gone)

    def wings(at):
        gone = set()
        for lines, across in ((ROWS, COLUMNS), (COLUMNS, ROWS)):
            for pair, digit in itertools.product(itertools.combinations(lines, 2), range(1, 10)):
                corners = [spots(at, line, digit) for line in pair]
                crossed = [line for line in across if line & (corners[0] | corners[1])]
                if len(corners[0]) == len(corners[1]) == len(crossed) == 2:
                    gone |= {(cell, digit) for line in crossed for cell in line - corners[0] - corners[1]}
        return without(at, gone)

    pointing = locked(given, BOXES, ROWS + COLUMNS)
    both = locked(pointing, ROWS + COLUMNS, BOXES)
    pairs = hidden(naked(both, 2), 2)
    boxes = locked(given, ROWS + COLUMNS, BOXES)
    tried = [("naked single", given), ("hidden single", given), ("pointing pair", pointing),
             ("box-line reduction", boxes), ("box-line reduction", both), ("naked pair", naked(both, 2)),
             ("hidden pair", hidden(both, 2)), ("hidden pair", pairs), ("naked triple", naked(both, 3)),
             ("hidden triple", hidden(both, 3)), ("X-wing", wings(pairs))]  # fmt: skip

    def strategy(cell, digit):
        for name, at in tried:
            alone = at[cell] == {digit}
            only = any(spots(at, unit, digit) == {cell} for unit in SETS if cell in unit)
            if (alone and name != "hidden single") or (only and name != "naked single"):
                return name
        return "unknown"

    return strategy
