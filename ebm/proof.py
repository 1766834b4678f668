"""Whether ebm/ours.py is an energy that is descended, and not a recurrent network by another name: measurements.

python -m ebm.proof runs/ours/full-seed0                   fresh puzzles that no training and no test has seen: 20 min
python -m ebm.proof runs/ours/full-seed0 --puzzles 100     sooner done

1 update   steps of the descent against -step * dE/ds by finite differences, along random directions
2 falls    the share of steps at which E falls; steps that promise less than CONVERGED are counted apart
3 boards   E of the solution against E of the same board with one cell changed
4 verdict  whether the lowest E of a puzzle's descents tells solved puzzles from unsolved ones (AUROC: the probability
           that a solved one is lower), and whether choosing a descent by E is as good as by the rules
5 more     puzzles solved after up to four times as many steps, so four times as many descents
6 path     the first descent alone: gone on with for four times as many steps, and with half the step for twice as many;
           how long the gradient is at its start and ends

E of a board, in 3, is the E that HELD_STEPS steps of descent reach among the states that read as this board: each
candidate's logit is held, only the rest of its state moves. Everything is computed in float64: in float32 the rounding
near a minimum is as large as the falls. The numbers go to proof.json beside the checkpoint.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track

import solve
from data import generate
from ebm import langevin, ours
from ebm.evaluate import CHOICES, percent, share, start
from exp_iterate import SHARD, workers
from plumbing import candidates, disk

CONVERGED = 1e-9  # a step that promises a smaller fall of E has nothing left to do
SEED = 1_000_003  # of the puzzles; no other seed of data/generate.py is as large
HELD_STEPS = 128  # of descent for the energy of a board
DIRECTIONS = 4  # in which the derivative is checked, per shard and checked step
NUDGE = 1e-5  # of each number of the state, in the finite differences


@dataclass
class Arguments:
    checkpoint: tyro.conf.Positional[str]  # a checkpoint.pt or a run's folder
    puzzles: int = 300  # of each kind: with 45 clues, and minimal
    steps: int = 256  # of descent, a multiple of the model's patience; four times as many for 5
    seed: int = 0  # of the choice of the changed cell
    output: str = ""  # the .json file with every number; empty: proof.json beside the checkpoint


def load(path):
    """(model, saved) of a checkpoint of ebm/ours.py."""
    saved = disk.load_checkpoint(path)
    known = {field.name for field in dataclasses.fields(ours.Config)}
    if saved.get("experiment") != "ours" or not isinstance(saved.get("config"), dict):
        raise SystemExit(f"{path} is not a checkpoint of ebm/ours.py; give the path of one, as in runs/ours/NAME")
    try:
        model = ours.Model(ours.Config(**{k: v for k, v in saved["config"].items() if k in known}))
        model.load_state_dict(saved["model"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} does not fit ebm/ours.py any more ({' '.join(str(error).split())[:200]})") from None
    return model.eval(), saved


# ---------------------------------------------------------------- the five measurements, on a few puzzles each


def descend(model, puzzle, solution, number, longer=1, finer=1):
    """(E, the fall that the gradient promises, solved or not), each [n, steps + 1], on the way of one descent, and its
    last board [n, 81]. `longer`: so many times the model's own steps; `finer`: a step so many times as small."""
    _, board, s = model.start_shard(torch.from_numpy(puzzle.astype(np.int64)), number)
    energies, promised, solved, step = [], [], [], model.descent / finer
    for _ in range(longer * model.patience + 1):
        energy, gradient = model.gradient(s, board)
        energies.append(ours.of_puzzles(energy, board, len(puzzle)))
        promised.append(step * ours.of_puzzles(gradient.square().sum(1), board, len(puzzle)))
        reading = board.logits(model.logit(s).float(), puzzle).argmax(-1).numpy() + 1
        solved.append((reading == solution).all(1))
        s = s - step * gradient
    return torch.stack(energies, 1).numpy(), torch.stack(promised, 1).numpy(), np.stack(solved, 1), reading


def descents(model, puzzle, solution, count):
    """The same of many descents: [n, count, patience + 1], and [n, count, 81]."""
    return [np.stack(parts, 1) for parts in zip(*(descend(model, puzzle, solution, k) for k in range(count)))]


def one_descent(model, puzzle, solution):
    """Of the first descent, [n]: solved at its end, after four times the steps, and with half the step for twice as
    many; the gradient's length at the start, at the end, and after four times the steps."""
    _, promised, right, _ = descend(model, puzzle, solution, 0, longer=4)
    finer = descend(model, puzzle, solution, 0, longer=2, finer=2)[2]
    at, end = model.patience, 4 * model.patience
    length = np.sqrt(promised / model.descent)
    return right[:, at], right[:, end], finer[:, -1], length[:, 0], length[:, at], length[:, end]


def levels(model, puzzle, solution, steps):
    """(of a right candidate, of a wrong one): the median of read . s where the descent has solved a puzzle."""
    found = [[], []]
    for at in range(0, len(puzzle), SHARD):
        part = slice(at, at + SHARD)
        shard = model.start_shard(torch.from_numpy(puzzle[part].astype(np.int64)))
        for _ in range(steps):
            logits, shard = model.iterate_shard(shard)
        _, board, s = shard
        solved = (logits.argmax(-1).numpy() + 1 == solution[part]).all(1)[board.place[0]]
        right = is_right(board, solution[part])
        for values, chosen in zip(found, (solved & right, solved & ~right)):
            values.append((s @ model.read)[torch.from_numpy(chosen)])
    if not len(torch.cat(found[0])):
        raise SystemExit("the descent solves none of the puzzles, so nothing says what a board's logits should be")
    return [torch.cat(values).median().item() for values in found]


def is_right(board, full):
    """bool [candidates]: its digit stands in its cell on these full boards [n, 81]."""
    return candidates.DIGIT[board.place[1]] + 1 == full[board.place[0], candidates.CELL[board.place[1]]]


def held(model, puzzle, full, level, steps=HELD_STEPS):
    """[n]: the energy of full boards, that of the last step of a descent with each candidate's logit held there."""
    _, board, s = model.start_shard(torch.from_numpy(puzzle.astype(np.int64)))
    wanted = torch.where(torch.from_numpy(is_right(board, full)), *torch.tensor(level).to(s))
    length = model.read.norm()
    along = model.read / length
    s = s + (wanted / length - s @ along)[:, None] * along
    for _ in range(steps):
        gradient = model.gradient(s, board)[1]
        s = s - model.descent * (gradient - (gradient @ along)[:, None] * along)
    return model.energies([(puzzle, board, s)]).numpy()


def one_changed(puzzle, solution, random):
    """The solutions with one blank's digit replaced by another that no clue excludes, if there is one."""
    board = candidates.Board(puzzle)
    wrong = np.flatnonzero(~is_right(board, solution))
    changed = solution.copy()
    for row in range(len(puzzle)):
        if len(mine := wrong[board.place[0][wrong] == row]):
            candidate = board.place[1][random.choice(mine)]
            changed[row, candidates.CELL[candidate]] = candidates.DIGIT[candidate] + 1
    return changed


def difference(model, puzzle, steps, random):
    """Steps 1, 2, 4, ... against -descent * dE/ds by finite differences along random directions.

    The error is that of the derivative, over what a step of this length has along a random direction."""
    errors, checked, state = [], [], model.start(torch.from_numpy(puzzle.astype(np.int64)))
    for step in range(1, steps + 1):
        _, moved = model.iterate(state)
        if step & (step - 1) == 0:
            checked.append(step)
            for (shard, board, s), (_, _, after) in zip(state, moved):
                taken = after - s
                for _ in range(DIRECTIONS):
                    way = torch.from_numpy(random.standard_normal(s.shape)).to(s)
                    up, down = (model.energies([(shard, board, s + n * way)]).sum() for n in (NUDGE, -NUDGE))
                    promised = -model.descent * (up - down) / (2 * NUDGE)
                    errors.append((((taken * way).sum() - promised).abs() / taken.norm()).item())
        state = moved
    return {"largest_error": max(errors), "directions": len(errors), "puzzles": len(puzzle), "steps": checked}


def auroc(low, high):
    """The probability that one of `low` is below one of `high`; None where one of them is empty."""
    if not (len(low) and len(high)):
        return None
    return float(np.mean((low[:, None] < high) + 0.5 * (low[:, None] == high)))


# ---------------------------------------------------------------- all of them, on many


def measure(model, asked, bar):
    model, random = model.double(), np.random.default_rng(asked.seed)
    result = {"settings": dataclasses.asdict(asked), "converged": CONVERGED, "held_steps": HELD_STEPS}
    easy, minimal = (generate.cached(asked.puzzles, clues=clues, seed=SEED) for clues in (45, "minimal"))
    tuning = generate.cached(64, clues="minimal", seed=SEED + 1)
    result["level"] = level = levels(model, *tuning.rows(slice(None)), model.patience)
    result["update"] = difference(model, minimal.rows(slice(4 * SHARD))[0], model.patience, random)
    for name, puzzles in (("45 clues", easy), ("minimal", minimal)):
        puzzle, solution = puzzles.rows(slice(asked.puzzles))
        parts = [slice(at, at + SHARD) for at in range(0, len(puzzle), SHARD)]
        changed = one_changed(puzzle, solution, random)

        def one(part, boards=(puzzle, solution, changed)):
            clues, right, other = (board[part] for board in boards)
            both = (held(model, clues, full, level) for full in (right, other))
            return (
                *descents(model, clues, right, 4 * asked.steps // model.patience),
                *both,
                *one_descent(model, clues, right),
            )

        done = list(track(workers().map(one, parts), name, len(parts), **bar))
        columns = [np.concatenate(column) for column in zip(*done)]
        found, way = columns[:6], columns[6:]
        count = asked.steps // model.patience
        result[name] = figures(count, *found[:3], *found[4:], (changed != solution).any(1))
        result[name]["choices"] = choices(found[3][:, :count], found[0][:, :count, -1], solution)
        result[name]["path"] = path_figures(*way)
    return result


def figures(count, energy, promised, solved, of_solution, of_changed, differs):
    """`count` descents are the solver's; the others are those of four times as many steps."""
    every, patience = np.arange(len(energy)), energy.shape[2] - 1
    at_work = promised[:, :count, :-1] > CONVERGED
    fell = np.diff(energy[:, :count]) < 0
    right = {n: solved[:, 0, n] for n in (2**k for k in range(3, 30)) if n < patience}
    for many in sorted({1, *(2**k for k in range(30) if 2**k < count), count, 4 * count}):
        right[many * patience] = solved[every, energy[:, :many, -1].argmin(1), -1]
    lowest, last = energy[:, :count, -1].min(1), right[count * patience]
    return {
        "solved": {str(n): share(solved, np.ones(len(solved))) for n, solved in right.items()},
        "falls": {"right": int((fell & at_work).sum()), "of": int(at_work.sum()),
                  "converged": int((~at_work).sum()), "fell_when_converged": int((fell & ~at_work).sum())},
        "energy": {"start": float(energy[:, 0, 0].mean()), "end": float(lowest.mean())},
        "boards": share((of_solution < of_changed)[differs], np.ones(differs.sum())),
        "auroc": {"value": auroc(lowest[last], lowest[~last]),
                  "solved": int(last.sum()), "unsolved": int((~last).sum())},
    }  # fmt: skip


def choices(boards, energy, solution):
    """Puzzles solved by the board of one descent out of several, by how it is chosen."""
    chosen = langevin.choose(boards.astype(np.uint8), torch.from_numpy(energy))
    chosen["oracle"] = langevin.choose_by_oracle(boards.astype(np.uint8), torch.from_numpy(solution.astype(np.int64)))
    ones = np.ones(len(boards))
    return {choice: share((board == solution).all(1), ones) for choice, board in chosen.items()}


def path_figures(at_end, long, finer, *lengths):
    ones = np.ones(len(at_end))
    return {
        "solved": share(at_end, ones), "four times the steps": share(long, ones), "half the step": share(finer, ones),
        "gained": int((long & ~at_end).sum()), "lost": int((at_end & ~long).sum()),
        "gradient": dict(zip(("start", "end", "four times the steps"), (float(np.median(each)) for each in lengths))),
    }  # fmt: skip


# ---------------------------------------------------------------- what is printed


def lines(result):
    update = result["update"]
    yield (
        f"update: along {update['directions']} random directions, on {update['puzzles']} puzzles at steps up to "
        f"{update['steps'][-1]}, at most {update['largest_error']:.1e} off -step * dE/ds, relative to the step"
    )
    for name in ("45 clues", "minimal"):
        row = result[name]
        yield f"{name}: solved in % [95 % interval] after"
        yield from (f"  {int(n):>5} steps  {percent(figure)}" for n, figure in row["solved"].items())
        falls = row["falls"]
        yield f"  E falls at {100 * falls['right'] / max(1, falls['of']):.2f} % of {falls['of']:,} steps" + (
            f"; {falls['converged']:,} more have converged" if falls["converged"] else ""
        )
        yield f"  E, mean: {row['energy']['start']:.2f} at the start, {row['energy']['end']:.2f} at the end"
        yield f"  E(solution) < E(one cell changed): {percent(row['boards'])} % of {row['boards']['of']:,}"
        found = row["auroc"]
        value = "no data" if found["value"] is None else f"{found['value']:.3f}"
        yield f"  AUROC of E, {found['solved']} solved against {found['unsolved']} unsolved: {value}"
        picked = ", ".join(f"{CHOICES.get(c, 'the best one (sees the answer)')} {percent(f)}"
                           for c, f in row["choices"].items())  # fmt: skip
        yield f"  solved by a descent chosen by: {picked}"
        way, length = row["path"], row["path"]["gradient"]
        yield (
            f"  the first descent alone: {percent(way['solved'])}; gone on with for four times the steps "
            f"{percent(way['four times the steps'])} ({way['gained']} more, {way['lost']} lost); with half the step "
            f"for twice as many {percent(way['half the step'])}"
        )
        yield "  length of the gradient, median: " + ", ".join(f"{value:.2g} {at}" for at, value in length.items())


def report(asked, command):
    for name, least in {"puzzles": 1, "steps": 1, "seed": 0}.items():
        if getattr(asked, name) < least:
            raise SystemExit(f"--{name} {getattr(asked, name)}: expected {least} or more")
    if asked.output and (problem := disk.wrong_json(asked.output)):
        raise SystemExit(problem)
    path = disk.checkpoint_path(asked.checkpoint)
    model, _ = load(path)
    if asked.steps % model.patience:
        raise SystemExit(f"--steps {asked.steps}: expected a multiple of {model.patience}, the steps of one descent")
    bar = {"console": Console(stderr=True), "transient": True, "disable": not sys.stderr.isatty()}
    result = {"command": command, "checkpoint": str(path)} | measure(model, asked, bar)
    result |= {"hardware": disk.describe(torch.device("cpu")), "commit": disk.commit()}
    for line in lines(result):
        print(line)
    output = Path(asked.output or path.with_name("proof.json"))
    with disk.writing(output.parent, output.name):
        disk.write_json(output, result)
    print(f"wrote {output}")


def main(argv=None):
    return start("proof", Arguments, report, __doc__, argv)


if __name__ == "__main__":
    solve.as_program(main)
