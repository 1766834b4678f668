"""Which human strategy explains a digit: the cheapest one after which it is the only choice for its cell.

    from ebm.strategies import LEVEL, NAMES, explain
    codes = explain(boards, rows, cells, digits)     # NAMES[code] is the strategy, LEVEL[code] its level, 1 to 6

`boards` is int [n, 81] with 0 for a blank; event i puts digits[i] into the blank cells[i] of boards[rows[i]].

A digit is a candidate of a blank as long as no other cell of its row, column or box holds it. A strategy above level 2
removes candidates in one pass over the whole board; it explains the digit if that leaves a naked or a hidden single.
Level 3 starts from all candidates, level 4 from what both strategies of level 3 leave, and the X-wing from what both
kinds of pairs leave after that. So "unknown" says that one pass of each was not enough, or that the digit clashes with
another; a digit that is explained follows from the board, but is right only if the board is.

Candidates are bool [n, 9 rows, 9 columns, 9 digits].
"""

import itertools

import numpy as np

LEVELS = {
    "naked single": 1,
    "hidden single": 2,
    "pointing pair": 3,
    "box-line reduction": 3,
    "naked pair": 4,
    "hidden pair": 4,
    "naked triple": 4,
    "hidden triple": 4,
    "X-wing": 5,
    "unknown": 6,
}
NAMES = tuple(LEVELS)
LEVEL = np.array(list(LEVELS.values()))
UNKNOWN = NAMES.index("unknown")
BITS = 1 << np.arange(9, dtype=np.int16)
AT_ONCE = 256  # boards; bounds memory


def candidates(boards):
    """The digits that no peer of a blank holds; none where the cell is filled."""
    grid = np.asarray(boards).reshape(-1, 9, 9)
    holds = grid[..., None] == np.arange(1, 10)
    boxes = holds.reshape(-1, 3, 3, 3, 3, 9).any((2, 4)).repeat(3, 1).repeat(3, 2)
    return ~(holds.any(2, keepdims=True) | holds.any(1, keepdims=True) | boxes) & (grid == 0)[..., None]


def in_boxes(possible):
    """The same cells as nine boxes of nine; done twice, the same as before."""
    return possible.reshape(-1, 3, 3, 3, 3, 9).swapaxes(2, 3).reshape(-1, 9, 9, 9)


def locked(possible, inside):
    """Digits whose places in one unit all lie in another one too are removed from the rest of that other unit.

    `inside` is the first unit: "box" is a pointing pair (or triple), "line" a box-line reduction.
    """
    left = possible.copy()
    others, rest = (2, 3) if inside == "box" else (3, 2)  # axes: places of the first unit, of the second
    for turn in (lambda board: board, lambda board: board.swapaxes(1, 2)):  # rows, then columns
        counts = turn(possible).reshape(-1, 3, 3, 3, 3, 9).sum(4)  # [n, band, line, stack, digit]
        alone = (counts > 1) & ((counts > 0).sum(others, keepdims=True) == 1)  # one place would be a hidden single
        gone = alone.sum(rest, keepdims=True) > alone  # alone in another place
        left &= ~turn(gone.repeat(3, 3).reshape(-1, 9, 9, 9))
    return left


def subsets(matrix, size):
    """Rows of bool [..., 9, 9] that share `size` columns, as many as they are, take these from all other rows.

    Naked pairs and triples, hidden ones and X-wings are this one rule on other axes. Each row has two or more columns:
    a row of one is a single, and what follows from it is no pair.
    """
    sets = np.array(list(itertools.combinations(range(9), size)))
    columns = (matrix * BITS).sum(-1, dtype=np.int16)  # of each row, as bits
    union = np.bitwise_or.reduce(columns[..., sets], -1)  # [..., set]
    found = (matrix.sum(-1) > 1)[..., sets].all(-1) & (np.bitwise_count(union) == size)
    union *= found
    gone = [np.bitwise_or.reduce(union[..., (sets != row).all(1)], -1) for row in range(9)]
    return matrix & (np.stack(gone, -1)[..., None] & BITS == 0)


def over_units(possible, size, hidden):
    """Naked or hidden pairs (size 2) or triples (size 3), in rows, columns and boxes."""
    left = possible.copy()
    for turn in (lambda board: board, lambda board: board.swapaxes(1, 2), in_boxes):
        units = turn(possible)  # [n, unit, cell, digit]
        units = subsets(units.swapaxes(2, 3), size).swapaxes(2, 3) if hidden else subsets(units, size)
        left &= turn(units)
    return left


def x_wings(possible):
    """A digit with the same two columns in two rows leaves these columns' other rows, and the other way round."""
    digits = np.moveaxis(possible, 3, 1)  # [n, digit, row, column]
    left = subsets(digits, 2) & subsets(digits.swapaxes(2, 3), 2).swapaxes(2, 3)
    return np.moveaxis(left, 1, 3)


def stages(possible):
    """Yield (strategy, what is possible after it), the cheapest first."""
    pointing = locked(possible, "box")
    yield "pointing pair", pointing
    yield "box-line reduction", locked(possible, "line")
    both = locked(pointing, "line")
    yield "box-line reduction", both
    naked = over_units(both, 2, hidden=False)
    yield "naked pair", naked
    yield "hidden pair", over_units(both, 2, hidden=True)
    pairs = over_units(naked, 2, hidden=True)
    yield "hidden pair", pairs
    yield "naked triple", over_units(both, 3, hidden=False)
    yield "hidden triple", over_units(both, 3, hidden=True)
    yield "X-wing", x_wings(pairs)


def naked_single(possible, board, cell, digit):
    """Bool [events]: the digit is the only candidate of the cell."""
    row, column = np.divmod(cell, 9)
    return possible[board, row, column, digit - 1] & (possible[board, row, column].sum(1) == 1)


def hidden_single(possible, board, cell, digit):
    """Bool [events]: no other cell of the row, of the column or of the box has the digit as a candidate."""
    row, column = np.divmod(cell, 9)
    in_row = possible[board, row, :, digit - 1].sum(1)
    in_column = possible[board, :, column, digit - 1].sum(1)
    in_box = in_boxes(possible)[board, row // 3 * 3 + column // 3, :, digit - 1].sum(1)
    alone = (in_row == 1) | (in_column == 1) | (in_box == 1)
    return possible[board, row, column, digit - 1] & alone


def explain(boards, rows, cells, digits):
    """int [events]: the index in NAMES of the cheapest strategy that explains each event."""
    boards, rows, cells, digits = (np.asarray(values, int) for values in (boards, rows, cells, digits))
    if boards.ndim != 2 or boards.shape[1] != 81:
        raise ValueError(f"expected boards as an array [n, 81], found {list(boards.shape)}")
    if len(rows) and (filled := np.flatnonzero(boards[rows, cells])).size:
        row, cell = rows[filled[0]], cells[filled[0]]
        raise ValueError(f"board {row}, cell {cell}: expected a blank (0), found {boards[row, cell]}; blank it first")
    if ((digits < 1) | (digits > 9)).any():
        raise ValueError(f"event {np.flatnonzero((digits < 1) | (digits > 9))[0]}: expected a digit from 1 to 9")
    codes = np.full(len(rows), UNKNOWN)
    for first in range(0, len(boards), AT_ONCE):
        here = np.flatnonzero((rows >= first) & (rows < first + AT_ONCE))
        used, board = np.unique(rows[here], return_inverse=True)
        event = board, cells[here], digits[here]
        possible = candidates(boards[used])
        codes[here] = np.where(hidden_single(possible, *event), NAMES.index("hidden single"), UNKNOWN)
        codes[here[naked_single(possible, *event)]] = NAMES.index("naked single")
        for name, after in stages(possible):
            explained = naked_single(after, *event) | hidden_single(after, *event)
            codes[here[explained & (codes[here] == UNKNOWN)]] = NAMES.index(name)
    return codes
