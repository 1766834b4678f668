"""Search with a network: suppose a digit, go on from there, take back what breaks the rules. Every puzzle is solved.

`python solve.py --guess` uses it. The network does not decide that a puzzle is solved or that a supposition is wrong:
the rules do, as the exact solver of data/solver.py applies them between two guesses. The network says what to suppose:
in a cell with fewest candidates, one that is likely and has many peers, above all in cells with few candidates, so that
much follows from it.
Its state goes on with the candidates that are left, so that each supposition costs it one iteration.

python guess.py puzzles.csv                        how long the search takes, and if the network were not asked
python guess.py puzzles.csv --held-out             only the tenth that training with --hard puzzles.csv leaves out
python guess.py puzzles.csv --weights runs/exp_suppose/full-seed0 --output results/guess/NAME.json
"""

import sys
import time
from dataclasses import dataclass, field

import numba
import numpy as np
import torch
import tyro
from rich.console import Console

import lineage
from data import solver
from plumbing import candidates, disk

FIRST, MORE = 8, 1  # iterations of the network at the start, and for each supposition; more were not worth it
SHARD = 16  # puzzles that a thread works on at a time
PEERS = candidates.PEERS.astype(np.float32)
OPEN = 128  # searches under way at a time; each keeps the network's states to which it may go back


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
def settle(alive):
    """Apply the rules as the exact solver does between two guesses. -> False where they are broken"""
    board, open_cells, seen = np.zeros(27, np.int32), np.full(3, solver.FULL, np.int32), np.full(27, -1, np.int32)
    for candidate in range(729):
        if alive[candidate]:
            board[candidate % 9 * 3 + candidate // 243] |= 1 << candidate // 9 % 27
    if not solver.propagate(board, seen, open_cells):
        return False
    for candidate in range(729):
        alive[candidate] = board[candidate % 9 * 3 + candidate // 243] >> candidate // 9 % 27 & 1
    return True


def start(puzzle):
    alive = np.ones((81, 9), bool)
    alive[puzzle > 0] = False
    alive[puzzle > 0, puzzle[puzzle > 0] - 1] = True
    return Search(puzzle, alive.ravel())


def go_on(search):
    """Settle the cells; take suppositions back while the rules are broken. -> whether the network is needed"""
    while not settle(search.alive):
        if not search.stack:
            search.impossible = True
            return False
        search.alive, search.memory, wrong = search.stack.pop()
        search.alive[wrong] = False
    if search.alive.sum() == 81:
        search.board = (search.alive.reshape(81, 9).argmax(1) + 1).astype(np.uint8)
        search.memory, search.stack = None, [candidate for *_, candidate in search.stack]  # the states are large
        return False
    return True


def best_guess(share, alive):
    """The candidate to suppose, from the network's probabilities [729]."""
    count = alive.reshape(81, 9).sum(1).repeat(9)  # in the cell of each candidate
    follows = PEERS @ (alive / np.maximum(count, 1) ** 2).astype(np.float32)
    fewest = alive & (count == count[count > 1].min())
    return int(np.where(fewest, share * follows, -1).argmax())


def without_network(share, alive):
    """As if all candidates were equally likely."""
    return best_guess(1, alive)


def suppose(search, candidate):
    search.stack.append((search.alive.copy(), search.memory, candidate))
    search.alive[candidate // 9 * 9 : candidate // 9 * 9 + 9] = False
    search.alive[candidate] = True
    search.guesses += 1


def think(model, searches, choose):
    """Some iterations of the network on these searches, and a supposition in each. -> those that are not at an end"""
    board = candidates.Board.of(np.stack([s.alive for s in searches]))
    shard = model.start_shard(torch.from_numpy(np.stack([s.puzzle for s in searches])), board)
    count = FIRST if searches[0].memory is None else MORE
    if searches[0].memory is not None:
        shard = *shard[:2], torch.stack([s.memory for s in searches])[board.place], *shard[3:]
    *_, shard = model.think_shard(shard, count)
    for search, mine in zip(searches, board.dense(shard[2])):
        search.memory, search.iterations = mine, search.iterations + count
        suppose(search, choose(mine[:, -candidates.KINDS].numpy(), search.alive))
    return [search for search in searches if go_on(search)]


def workers_of(model):
    """The threads of the model's experiment."""
    return sys.modules[type(model).__module__].workers()


def solve(model, puzzles, workers, choose=best_guess):
    """The finished Search of each puzzle, uint8 [n, 81]; one without a solution is `impossible`."""

    def work(part):
        with torch.no_grad():  # a setting of each thread
            return think(model, part, choose)

    searches = [start(puzzle) for puzzle in puzzles]
    pending, todo = [search for search in searches if go_on(search)], []
    while todo or pending:
        room = OPEN - len(todo)
        fresh, pending = pending[:room], pending[room:]
        parts = [part[i : i + SHARD] for part in (todo, fresh) for i in range(0, len(part), SHARD)]
        todo = [search for part in workers.map(work, parts) for search in part]
    return searches


# ---------------------------------------------------------------- the measurement


@dataclass
class Arguments:
    puzzles: tyro.conf.Positional[str]  # a .csv file of puzzles with their solutions
    weights: str = ""  # a checkpoint.pt or a run's folder; empty: as solve.py chooses
    held_out: bool = False  # only the tenth of the file that `--hard FILE` of an experiment leaves out of its training
    output: str = ""  # also write the figures to this .json file


def measure(model, puzzle, solution, workers, choose):
    begun = time.perf_counter()
    found = solve(model, puzzle, workers, choose)
    seconds = time.perf_counter() - begun
    guesses, iterations = (np.array([getattr(s, name) for s in found]) for name in ("guesses", "iterations"))
    solved = sum(bool((s.board == right).all()) for s, right in zip(found, solution) if s.board is not None)
    spread = lambda x: {"median": float(np.median(x)), "mean": float(x.mean()), "most": int(x.max())}  # noqa: E731
    return {"solved": solved, "guesses": spread(guesses), "iterations": spread(iterations), "seconds": seconds}


def main(argv=None):
    import solve as program
    from data import sources
    from data.rows import read_csv

    asked = tyro.cli(Arguments, args=argv, description=__doc__.replace("\n", "\n "))
    if asked.output and (problem := disk.wrong_json(asked.output)):
        raise SystemExit(problem)
    console = Console(highlight=False, soft_wrap=True)
    path = program.choose_weights(asked.weights, console)
    model = program.load(path, torch.device("cpu"), console)
    try:
        puzzles = read_csv(asked.puzzles)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    puzzles = puzzles.subset(sources.held_out(puzzles)) if asked.held_out else puzzles
    puzzle, solution = puzzles.rows(np.arange(len(puzzles)))
    workers = workers_of(model)
    solve(model, puzzle[:32], workers)  # compiles, and warms the caches
    result = {"network": measure(model, puzzle, solution, workers, best_guess)}
    result["network not asked"] = measure(model, puzzle, solution, workers, without_network)
    solver.solve(puzzle[:1], limit=2)
    begun = time.perf_counter()
    solver.solve(puzzle, limit=2)
    result["exact solver"] = {"solved": len(puzzle), "seconds": time.perf_counter() - begun}
    for name, row in result.items():
        counts = "".join(
            f", {what} median {row[what]['median']:g} mean {row[what]['mean']:.1f} most {row[what]['most']}"
            for what in ("guesses", "iterations") if what in row
        )  # fmt: skip
        print(f"{name}: {row['solved']} of {len(puzzle)}, {1e3 * row['seconds'] / len(puzzle):.3g} ms a puzzle{counts}")
    if asked.output:
        command = " ".join(["python guess.py", *(sys.argv[1:] if argv is None else argv)])
        about = {"weights": str(path), "puzzles": len(puzzle), "command": command}
        disk.write_json(asked.output, about | {"hardware": disk.describe(torch.device("cpu")), "ways": result})


if __name__ == "__main__":
    lineage.run_command(main)
