"""Search with a network: suppose a digit, go on from there, take back what breaks the rules. Every puzzle is solved.

`python solve.py --guess` uses it, with a network of exp_guess.py. The network does not decide that a puzzle is solved
or that a supposition is wrong: the rules do, as the exact solver of data/solver.py applies them between two guesses.
The network says what to suppose: what should cost the fewest guesses. For each candidate it says how many it will
take until it has led to the solution or is refuted, and how likely it is; for the puzzle, whether what is supposed so
far can be true. Its state goes on with the candidates that are left, so that each supposition costs it two iterations.

python guess.py puzzles.csv                        how long the search takes, and if the network were not asked
python guess.py puzzles.csv --held-out             only the tenth that training with --hard puzzles.csv leaves out
python guess.py puzzles.csv --weights runs/exp_guess/full-seed0 --output results/guess/NAME.json
"""

import sys
import time
from dataclasses import dataclass, field

import numpy as np
import torch
import tyro
from rich.console import Console

import lineage
from data import solver
from plumbing import candidates, disk

FIRST, MORE = 8, 2  # iterations of the network at the start, and for each supposition
SHARD = 16  # puzzles that a thread works on at a time
PEERS = candidates.PEERS.astype(np.float32)
OPEN = 128  # searches under way at a time; each keeps the network's states to which it may go back


@dataclass
class Search:
    alive: np.ndarray  # bool [729], the candidates not ruled out under what is supposed
    memory: torch.Tensor | None = None  # [729, width], the network's state on them
    stack: list = field(default_factory=list)  # (alive, memory, the candidate supposed), to go back to
    guesses: int = 0
    iterations: int = 0
    board: np.ndarray | None = None  # the solution
    impossible: bool = False


def start(puzzle):
    return Search(solver.possible(puzzle[None])[0])


def go_on(search):
    """Settle the cells; take suppositions back while the rules are broken. -> whether the network is needed"""
    while not solver.settle(search.alive):
        if not search.stack:
            search.impossible, search.memory = True, None
            return False
        search.alive, search.memory, wrong = search.stack.pop()
        search.alive[wrong] = False
    if search.alive.sum() == 81:
        search.board = (search.alive.reshape(81, 9).argmax(1) + 1).astype(np.uint8)
        search.memory, search.stack = None, [candidate for *_, candidate in search.stack]  # the states are large
        return False
    return True


def suppose(search, candidate):
    search.stack.append((search.alive.copy(), search.memory, candidate))
    candidates.keep_only(search.alive, candidate)
    search.guesses += 1


# ways to choose what to suppose: from the guesses each candidate [729] will cost, its probability, the probability that
# what is supposed is true, and the candidates


def cheapest(effort, share, chance, alive):
    """The least guesses to expect: the less likely it is, the more count those of the cell's other candidates."""
    costs, open_ = candidates.first_costs(effort, softened(share) * chance), alive.reshape(81, 9).sum(1) > 1
    return int(np.where(alive & open_.repeat(9), costs, np.inf).argmin())


def softened(share):
    """The probabilities as their square roots give them: where puzzles are chosen for being hard, the likely is less
    often true than the network says."""
    root = np.sqrt(share).reshape(81, 9)
    return (root / np.maximum(root.sum(1, keepdims=True), 1e-9)).ravel()


def believing(effort, share, chance, alive):
    """With the probabilities as the network says them."""
    return cheapest(effort, share**2, chance, alive)


def without_verdict(effort, share, chance, alive):
    """As if nothing supposed could be false."""
    return cheapest(effort, share, 1, alive)


def without_effort(effort, share, chance, alive):
    """The likeliest in a cell with fewest candidates."""
    return int(np.where(candidates.fewest(alive), share, -1).argmax())


def without_network(effort, share, chance, alive):
    """The candidate with most peers, above all in cells with few candidates, so that much follows from it."""
    count = alive.reshape(81, 9).sum(1).repeat(9)  # in the cell of each candidate
    follows = PEERS @ (alive / np.maximum(count, 1) ** 2).astype(np.float32)
    return int(np.where(candidates.fewest(alive), follows, -1).argmax())


WAYS = {"network": cheapest, "probabilities believed": believing, "verdict not asked": without_verdict,
        "effort not asked": without_effort, "network not asked": without_network}  # fmt: skip


def think(model, searches, choose):
    """Some iterations of the network on these searches, and a supposition in each. -> those that are not at an end"""
    board = candidates.Board.of(np.stack([s.alive for s in searches]))
    count, x = FIRST, model.first_state().expand(len(board.place[0]), -1)
    if searches[0].memory is not None:
        count, x = MORE, torch.stack([s.memory for s in searches])[board.place]
    x = model.think_on(board, x, count)[0][-1]
    effort, verdict = model.judge(board, x)
    effort, chance = board.dense(effort.exp()[:, None])[:, :, 0].double().numpy(), verdict.sigmoid().tolist()
    for search, mine, costs, true in zip(searches, board.dense(x), effort, chance):
        search.memory, search.iterations = mine, search.iterations + count
        suppose(search, choose(costs, mine[:, -candidates.KINDS].double().numpy(), true, search.alive))
    return [search for search in searches if go_on(search)]


def workers_of(model):
    """The threads of the model's experiment, which must be one for a search."""
    if not hasattr(model, "judge"):
        raise SystemExit("a search needs weights of exp_guess.py: leave out --weights, or name a run of it")
    return sys.modules[type(model).__module__].workers()


def solve(model, puzzles, workers, choose=cheapest):
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
    weights: str = ""  # of exp_guess.py, a checkpoint.pt or a run's folder; empty: the shipped ones
    held_out: bool = False  # only the tenth of the file that `--hard FILE` of an experiment leaves out of its training
    ways: tuple[str, ...] = ()  # to choose what is supposed, as in the table of README.md; empty: all
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
    if unknown := set(asked.ways) - set(WAYS):
        raise SystemExit(f"--ways {' '.join(sorted(unknown))}: expected some of {', '.join(map(repr, WAYS))}")
    console = Console(highlight=False, soft_wrap=True)
    path = program.choose_weights(asked.weights, console, guess=True)
    model = program.load(path, torch.device("cpu"), console)
    try:
        puzzles = read_csv(asked.puzzles)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    puzzles = puzzles.subset(sources.held_out(puzzles)) if asked.held_out else puzzles
    puzzle, solution = puzzles.rows(np.arange(len(puzzles)))
    workers = workers_of(model)
    solve(model, puzzle[:32], workers)  # compiles, and warms the caches
    result = {
        name: measure(model, puzzle, solution, workers, way)
        for name, way in WAYS.items()
        if name in (asked.ways or WAYS)
    }
    solver.solve(puzzle[:1], limit=2)
    begun = time.perf_counter()
    found = solver.solve(puzzle, limit=2)[0]
    seconds = time.perf_counter() - begun
    result["exact solver"] = {"solved": int((found == solution).all(1).sum()), "seconds": seconds}
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
