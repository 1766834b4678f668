"""Search with a network: suppose a digit, go on from there, take back what breaks the rules. Every puzzle is solved.

`python solve.py --guess` uses it. The network does not decide that a puzzle is solved or that a supposition is wrong:
the rules do, after every digit is set that has one place left in a cell, row, column or box. The network says what to
suppose: the likeliest digit of the most doubtful of the cells with fewest candidates. Its state goes on with the
candidates that are left, so that each supposition costs it one iteration.
"""

from dataclasses import dataclass, field

import numba
import numpy as np
import torch

from plumbing import candidates

MEMBERS = np.stack([[np.flatnonzero(kind == g) for g in range(81)] for kind in candidates.GROUP])  # [4, 81, 9]
FIRST, MORE = 8, 1  # iterations of the network at the start, and for each supposition; more were not worth it
SHARD = 16  # puzzles that a thread works on at a time


@dataclass
class Search:
    puzzle: np.ndarray  # uint8 [81]
    alive: np.ndarray  # bool [729], the candidates not ruled out under what is supposed
    memory: torch.Tensor | None = None  # [729, width], the network's state on them
    stack: list = field(default_factory=list)  # (alive, memory, the candidate supposed), to go back to
    guesses: int = 0
    iterations: int = 0
    board: np.ndarray | None = None  # the solution
    impossible: bool = False


@numba.njit(cache=True, nogil=True)
def settle(alive, members, group):
    """Set every digit that has one place left, until nothing changes. -> False where the rules are broken"""
    todo = np.ones(4 * 81, np.bool_)
    changed = True
    while changed:
        changed = False
        for kind in range(4):
            for g in range(81):
                if not todo[kind * 81 + g]:
                    continue
                todo[kind * 81 + g] = False
                count, last = 0, -1
                for c in members[kind, g]:
                    if alive[c]:
                        count, last = count + 1, c
                if count == 0:
                    return False
                if count == 1:
                    for other in range(4):  # what shares a group with it is false
                        for c in members[other, group[other, last]]:
                            if alive[c] and c != last:
                                alive[c] = changed = True
                                alive[c] = False
                                for k in range(4):
                                    todo[k * 81 + group[k, c]] = True
    return True


def start(puzzle):
    alive = np.ones((81, 9), bool)
    alive[puzzle > 0] = False
    alive[puzzle > 0, puzzle[puzzle > 0] - 1] = True
    return Search(puzzle, alive.ravel())


def go_on(search):
    """Settle the cells; take suppositions back while the rules are broken. -> whether the network is needed"""
    while not settle(search.alive, MEMBERS, candidates.GROUP):
        if not search.stack:
            search.impossible = True
            return False
        search.alive, search.memory, wrong = search.stack.pop()
        search.alive[wrong] = False
    if search.alive.sum() == 81:
        search.board = (search.alive.reshape(81, 9).argmax(1) + 1).astype(np.uint8)
        return False
    return True


def likeliest_of_most_doubtful(share, alive):
    """The candidate to suppose, from the network's probabilities [729]."""
    p, count = np.where(alive, share, 0).reshape(81, 9), alive.reshape(81, 9).sum(1)
    cell = np.lexsort((np.square(p).sum(1), np.where(count > 1, count, 10)))[0]
    return cell * 9 + p[cell].argmax()


def suppose(search, candidate):
    search.stack.append((search.alive.copy(), search.memory, candidate))
    search.alive[candidate // 9 * 9 : candidate // 9 * 9 + 9] = False
    search.alive[candidate] = True
    search.guesses += 1


def think(model, searches, choose):
    """Some iterations of the network on these searches, and a supposition in each. -> those that are not at an end"""
    alive = np.stack([s.alive for s in searches])
    board = candidates.Board.of(alive)
    shard = model.start_shard(torch.from_numpy(np.stack([s.puzzle for s in searches])), board)
    count = FIRST if searches[0].memory is None else MORE
    if searches[0].memory is not None:
        memory = torch.stack([s.memory for s in searches])[board.place]
        shard = *shard[:2], *memory.split([shard[2].shape[1], candidates.KINDS], 1), *shard[4:]
    for _ in range(count):
        _, shard = model.iterate_shard(shard)
    numbers = torch.cat(shard[2:4], 1)
    memory = numbers.new_zeros(len(searches), 729, numbers.shape[1])
    memory[board.place] = numbers
    for search, mine in zip(searches, memory):
        search.memory, search.iterations = mine, search.iterations + count
        suppose(search, choose(mine[:, -candidates.KINDS].numpy(), search.alive))
    return [search for search in searches if go_on(search)]


def solve(model, puzzles, workers, choose=likeliest_of_most_doubtful):
    """The finished Search of each puzzle, uint8 [n, 81]; one without a solution is `impossible`."""

    def work(part):
        with torch.no_grad():  # a setting of each thread
            return think(model, part, choose)

    searches = [start(puzzle) for puzzle in puzzles]
    todo = [search for search in searches if go_on(search)]
    while todo:
        parts = [todo[i : i + SHARD] for i in range(0, len(todo), SHARD)]
        todo = [search for part in workers.map(work, parts) for search in part]
    return searches
