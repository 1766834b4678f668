"""An exact Sudoku solver: solves, rates, and proves that a puzzle has one solution.

    from data.solver import solve
    solution, count, guesses = solve(puzzles)  # puzzles: uint8 [N, 81], 0 = blank

A board is 27 words of 27 bits: for each digit and each band (three rows), the cells of that band where the
digit is still possible. Bit 9 * row + column of a word is a cell; three neighbouring bits of one row and one
box are a minirow. Each rule then takes a few operations:

- locked candidates: in a band, a digit takes one minirow of every row and of every box. Which of the nine
  minirows are part of such a choice is one lookup among 512. Columns in a stack work the same way.
- hidden singles: a box where a digit has one minirow and one column left has that digit's cell.
- naked singles: bitwise counters over the nine digits find the cells with one candidate.

When no rule applies, the search guesses a candidate and keeps the board without that candidate for later.

A puzzle's rating is the number of guesses made until its solution is found, wrong ones included (0: the
rules above are enough). It is deterministic, but specific to this solver: it is not the scale of sudoku-extreme,
and an equivalent puzzle (rows swapped, digits renamed) may get another number.
"""

import numpy as np
from numba import njit
from numba.cpython.unsafe.numbers import trailing_zeros

FULL = (1 << 27) - 1  # all cells of a band
BOX = 0o007007007  # the first box of a band
COLUMN = 1 | 1 << 9 | 1 << 18  # the first column of a band; times a set of columns, all their cells


def _tables():
    """Lookups by a 9-bit pattern; bit 3 * i + j says that line i can still use place j."""
    shrink = np.zeros(512, np.int32)  # a row's nine cells -> which of its three minirows have one
    keep = np.zeros(512, np.int32)  # a pattern -> its part that some permutation uses (0: there is none)
    rows_keep = np.zeros(512, np.int32)  # the same for minirows, as cells of the band
    rows_alone = np.zeros(512, np.int32)  # the cells of minirows that are alone in their box
    columns_alone = np.zeros(512, np.int32)  # the cells of columns (of nine) that are alone in their box
    spread = np.zeros(512, np.int32)  # nine columns -> three a stack, stacks 9 bits apart
    permutations = [1 << a | 8 << b | 64 << (3 - a - b) for a in range(3) for b in range(3) if a != b]
    for pattern in range(512):
        groups = [pattern >> 3 * i & 7 for i in range(3)]
        shrink[pattern] = sum(1 << i for i in range(3) if groups[i])
        spread[pattern] = sum(groups[i] << 9 * i for i in range(3))
        columns_alone[pattern] = sum(groups[i] << 3 * i for i in range(3) if groups[i] in (1, 2, 4)) * COLUMN
        keep[pattern] = kept = np.bitwise_or.reduce([p for p in permutations if p & pattern == p] or [0])
        rows_keep[pattern] = sum(7 << 3 * i for i in range(9) if kept >> i & 1)
        rows_alone[pattern] = sum(7 << 3 * i for i in range(9) if kept & 0o111 << i % 3 == 1 << i)
    peers = np.zeros(27, np.int32)  # a cell of a band -> its peers in that band, and itself
    for cell in range(27):
        row, column = divmod(cell, 9)
        peers[cell] = 0o777 << 9 * row | BOX << column // 3 * 3 | COLUMN << column
    return shrink, keep, rows_keep, rows_alone, columns_alone, spread, peers


SHRINK, KEEP, ROWS_KEEP, ROWS_ALONE, COLUMNS_ALONE, SPREAD, PEERS = _tables()


@njit(cache=True, nogil=True)
def _minirows(cells):
    return SHRINK[cells & 511] | SHRINK[cells >> 9 & 511] << 3 | SHRINK[cells >> 18 & 511] << 6


@njit(cache=True, nogil=True)
def _columns(cells):
    return (cells | cells >> 9 | cells >> 18) & 511


@njit(cache=True, nogil=True)
def place(board, open_cells, digit, band, bit):
    """Closes the cell `bit` with a digit: removes the other digits from it, and this one from its peers."""
    index = trailing_zeros(bit)
    column = ~(COLUMN << (index % 9))
    for other in range(9):
        board[3 * other + band] &= ~bit
    for other in range(3):
        board[3 * digit + other] &= column
    board[3 * digit + band] = board[3 * digit + band] & ~PEERS[index] | bit
    open_cells[band] &= ~bit


@njit(cache=True, nogil=True)
def propagate(board, seen, open_cells):
    """Applies the rules until nothing changes; False on a contradiction. `seen` is the board of the last pass."""
    while True:
        moved = False
        for digit in range(9):
            base = 3 * digit
            a, b, c = np.int64(board[base]), np.int64(board[base + 1]), np.int64(board[base + 2])
            while a != seen[base] or b != seen[base + 1] or c != seen[base + 2]:
                row_a, row_b, row_c = _minirows(a), _minirows(b), _minirows(c)
                a, b, c = a & ROWS_KEEP[row_a], b & ROWS_KEEP[row_b], c & ROWS_KEEP[row_c]
                if a == 0 or b == 0 or c == 0:
                    return False
                seen[base], seen[base + 1], seen[base + 2] = a, b, c
                stacks = SPREAD[_columns(a)] | SPREAD[_columns(b)] << 3 | SPREAD[_columns(c)] << 6
                left, middle, right = KEEP[stacks & 511], KEEP[stacks >> 9 & 511], KEEP[stacks >> 18 & 511]
                if left == 0 or middle == 0 or right == 0:
                    return False
                kept = left | middle << 9 | right << 18
                if kept != stacks:
                    bands = kept & BOX
                    a &= ((bands | bands >> 6 | bands >> 12) & 511) * COLUMN
                    bands = kept >> 3 & BOX
                    b &= ((bands | bands >> 6 | bands >> 12) & 511) * COLUMN
                    bands = kept >> 6 & BOX
                    c &= ((bands | bands >> 6 | bands >> 12) & 511) * COLUMN
                board[base], board[base + 1], board[base + 2] = a, b, c
                single_a = a & ROWS_ALONE[row_a] & COLUMNS_ALONE[_columns(a)] & open_cells[0]
                single_b = b & ROWS_ALONE[row_b] & COLUMNS_ALONE[_columns(b)] & open_cells[1]
                single_c = c & ROWS_ALONE[row_c] & COLUMNS_ALONE[_columns(c)] & open_cells[2]
                if single_a | single_b | single_c:
                    moved = True
                    for band, single in ((0, single_a), (1, single_b), (2, single_c)):
                        if single:
                            open_cells[band] &= ~single
                            for other in range(9):
                                board[3 * other + band] &= ~single
                    board[base], board[base + 1], board[base + 2] = a, b, c
        for band in range(3):
            once = twice = np.int64(0)
            for digit in range(9):
                cells = board[3 * digit + band]
                twice |= once & cells
                once |= cells
            if once != FULL:
                return False
            naked = once & ~twice & open_cells[band]
            if naked:
                moved = True
                for digit in range(9):
                    cells = naked & board[3 * digit + band]
                    while cells:
                        bit = cells & -cells
                        cells ^= bit
                        place(board, open_cells, digit, band, bit)
        if not moved:
            return True


@njit(cache=True, nogil=True)
def _count_bits(cells):
    count = 0
    while cells:
        cells &= cells - 1
        count += 1
    return count


@njit(cache=True, nogil=True)
def _choose(board, open_cells, pairs):
    """The candidate to guess: (digit, band, bit). `pairs` is room for three numbers."""
    most = crowded = 0
    for band in range(3):
        once = twice = thrice = np.int64(0)
        for digit in range(9):
            cells = np.int64(board[3 * digit + band])
            thrice |= twice & cells
            twice |= once & cells
            once |= cells
        pairs[band] = twice & ~thrice & open_cells[band]
        count = _count_bits(pairs[band])
        if count > most:
            most, crowded = count, band
    # Best is a cell with two candidates and many peers of that kind: a wrong guess then soon fails.
    best, best_count, best_digit = np.int64(0), -1, 0
    left = pairs[crowded]
    while left:
        bit = left & -left
        left ^= bit
        index = trailing_zeros(bit)
        count, first = 0, -1
        for digit in range(9):
            if board[3 * digit + crowded] & bit:
                if first < 0:
                    first = digit
                for band in range(3):
                    sight = PEERS[index] if band == crowded else COLUMN << (index % 9)
                    count += _count_bits(board[3 * digit + band] & pairs[band] & sight)
        if count > best_count:
            best, best_count, best_digit = bit, count, first
    if best:
        return best_digit, crowded, best
    # Next best is a digit with two places in a box, and else any candidate.
    digit_found, band_found, bit_found = 0, 0, np.int64(0)
    for digit in range(9):
        for band in range(3):
            for box in range(3):
                cells = board[3 * digit + band] & open_cells[band] & BOX << 3 * box
                second = cells & (cells - 1)
                if second and not second & (second - 1):
                    return digit, band, second
                if cells:
                    digit_found, band_found, bit_found = digit, band, cells & -cells
    return digit_found, band_found, bit_found


@njit(cache=True, nogil=True)
def write_solution(board, solution):
    for word in range(27):
        cells = np.int64(board[word])
        while cells:
            bit = cells & -cells
            cells ^= bit
            solution[27 * (word % 3) + trailing_zeros(bit)] = word // 3 + 1


@njit(cache=True, nogil=True)
def workspace():
    """Room for a search: state (board and open cells), last board seen, pairs, states put aside, their guesses."""
    state, seen, pairs = np.empty(30, np.int32), np.empty(27, np.int32), np.empty(3, np.int64)
    return state, state[:27], state[27:], seen, pairs, np.empty((81, 30), np.int32), np.empty((81, 3), np.int32)


@njit(cache=True, nogil=True)
def search(puzzle, limit, banned, solutions, work):
    """Returns (solutions found, at most `limit`; guesses until the first was found; guesses in all).

    The solutions go to the rows of `solutions`, those beyond its end to the last row. If `banned` >= 0, cell
    banned // 9 may not hold the digit banned % 9 + 1.
    """
    state, board, open_cells, seen = work[:4]
    state[:] = FULL
    seen[:] = 0
    for cell in range(81):
        if puzzle[cell]:
            digit, band, bit = np.int64(puzzle[cell]) - 1, cell // 27, np.int64(1) << (cell % 27)
            if not board[3 * digit + band] & bit:
                return 0, 0, 0
            place(board, open_cells, digit, band, bit)
    if banned >= 0:
        board[banned % 9 * 3 + banned // 243] &= ~(1 << banned // 9 % 27)
    return _go_on(limit, np.int64(2) ** 62, solutions, work)


@njit(cache=True, nogil=True)
def _go_on(limit, most, solutions, work):
    """The search from the board in `work`, with at most so many guesses."""
    state, board, open_cells, seen, pairs, stack, guessed = work
    found = depth = guesses = until_first = 0
    while guesses < most:
        if propagate(board, seen, open_cells):
            if open_cells[0] | open_cells[1] | open_cells[2]:
                digit, band, bit = _choose(board, open_cells, pairs)
                guesses += 1
                stack[depth] = state
                guessed[depth, 0], guessed[depth, 1], guessed[depth, 2] = digit, band, bit
                depth += 1
                place(board, open_cells, digit, band, bit)
                continue
            found += 1
            write_solution(board, solutions[min(found, len(solutions)) - 1])
            if found == 1:
                until_first = guesses
            if found >= limit:
                break
        if depth == 0:
            break
        depth -= 1
        state[:] = stack[depth]
        seen[:] = board
        board[3 * guessed[depth, 0] + guessed[depth, 1]] &= ~guessed[depth, 2]
    return found, until_first if found else guesses, guesses


@njit(cache=True, nogil=True)
def _read(alive, board, open_cells, seen):
    """The board with these candidates, bool [729]: 9 * cell + digit - 1."""
    board[:], open_cells[:], seen[:] = 0, FULL, -1
    for candidate in range(729):
        if alive[candidate]:
            board[candidate % 9 * 3 + candidate // 243] |= 1 << candidate // 9 % 27


@njit(cache=True, nogil=True)
def settle(alive):
    """Apply the rules to these candidates, bool [729], until nothing changes. -> False where they are broken"""
    board, open_cells, seen = np.empty(27, np.int32), np.empty(3, np.int32), np.empty(27, np.int32)
    _read(alive, board, open_cells, seen)
    if not propagate(board, seen, open_cells):
        return False
    for candidate in range(729):
        alive[candidate] = board[candidate % 9 * 3 + candidate // 243] >> candidate // 9 % 27 & 1
    return True


@njit(cache=True, nogil=True)
def _settle_all(alive, kept):
    for i in range(len(alive)):
        kept[i] = settle(alive[i])


def possible(puzzles):
    """bool [n, 729]: of puzzles [n, 81] every candidate of a blank cell, and the digits of the others."""
    return ((puzzles[:, :, None] == np.arange(1, 10)) | (puzzles == 0)[:, :, None]).reshape(-1, 729)


def settled(puzzles):
    """(bool [n, 729], the candidates that the rules leave of puzzles [n, 81]; bool [n], whether the rules are kept)"""
    alive, kept = possible(puzzles), np.empty(len(puzzles), bool)
    _settle_all(alive, kept)
    return alive, kept


@njit(cache=True, nogil=True)
def efforts(alive, candidates, most):
    """int64 [n]: the guesses, itself and at most `most` after it, until each of these candidates of a board has led to
    a solution or is refuted."""
    work, solution, found = workspace(), np.empty((1, 81), np.uint8), np.empty(len(candidates), np.int64)
    board, open_cells, seen = work[1:4]
    for i, candidate in enumerate(candidates):
        _read(alive, board, open_cells, seen)
        cell = candidate // 9
        place(board, open_cells, np.int64(candidate % 9), cell // 27, np.int64(1) << (cell % 27))
        found[i] = 1 + _go_on(np.int64(1), np.int64(most), solution, work)[2]
    return found


@njit(cache=True, nogil=True)
def _search_all(puzzles, limit, solutions, counts, guesses):
    work = workspace()
    for i in range(len(puzzles)):
        counts[i], guesses[i], _ = search(puzzles[i], limit, np.int64(-1), solutions[i : i + 1], work)


def solve(puzzles, limit=2):
    """Returns a solution of each puzzle (uint8 [N, 81], zeros if there is none), the number of solutions
    (int8 [N], counted up to `limit`) and the guesses made until the first was found (int32 [N])."""
    puzzles = np.asarray(puzzles)
    if puzzles.ndim != 2 or puzzles.shape[1] != 81:
        raise ValueError(f"expected boards as an array [N, 81], found {list(puzzles.shape)}")
    puzzles = np.ascontiguousarray(puzzles, np.uint8)
    if puzzles.max(initial=0) > 9:
        row, cell = np.argwhere(puzzles > 9)[0]
        raise ValueError(f"puzzle {row}, cell {cell}: expected 0 (blank) to 9, found {puzzles[row, cell]}")
    if not 1 <= limit <= 127:
        raise ValueError(f"limit: expected 1 to 127 solutions to look for, found {limit}")
    solutions = np.zeros_like(puzzles)
    counts, guesses = np.zeros(len(puzzles), np.int8), np.zeros(len(puzzles), np.int32)
    _search_all(puzzles, limit, solutions, counts, guesses)
    return solutions, counts, guesses
