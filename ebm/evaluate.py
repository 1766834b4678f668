"""What a trained energy model solves without the answer, and beside it what it "solves" when it sees the answer.

python -m ebm.evaluate runs/ebm/run4-mini-seed0                    held-out puzzles like those of its training
python -m ebm.evaluate runs/ebm/run4-mini-seed0 --data my.csv      any CSV; rows that training may know are left out
python -m ebm.evaluate runs/ebm/run4-mini-seed0 --steps 100 --chains 4 --energy norm --true-noise
python -m ebm.evaluate runs/ebm/run4-mini-seed0 --no-langevin      all columns but the last: seconds

Always the same five columns on the same puzzles. `oracle`: z from the true solution, without noise: it sees the answer
and is no result. `z of another`: z from another puzzle's solution; where the oracle is no better than this, z carries
nothing. `z = 0` and `z random`: one forward pass without the answer. `Langevin`: the chain of lowest energy. `honest`,
which makes the last three, is never given a solution; scoring begins when its boards stand.
Intervals are 95 % (Wilson; cells of one board are no independent trials, so the spread between puzzles counts).
The baseline without energy decodes as many random z as cost the FLOPs of all chains; the rules or a vote choose.
"""

import contextlib
import dataclasses
import itertools
import math
import sys
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import solve
from data import store
from data.rows import read_csv
from ebm import data, langevin
from ebm.train import Model, load_model
from eval_extreme import names
from plumbing import disk
from plumbing.run import pick_device

COLUMNS = ("oracle", "z of another", "z = 0", "z random", "Langevin")
SEES_THE_ANSWER = {"oracle", "Langevin, oracle", "decodes, oracle"}
CHOICES = {"one": "one chain", "energy": "lowest energy", "rules": "fewest violations", "majority": "vote on each cell"}
METRICS = {"cells": "blanks right", "puzzles": "puzzles solved", "groups": "rows, columns, boxes right"}
BLANKS = (0, 11, 31, 46, 82)  # limits of the buckets by number of blanks
Z = 1.959964  # of the normal distribution, for 95 %
FEW = 10  # with fewer puzzles their spread is not trusted; with fewer that differ, a difference has no interval
CANDIDATES = 2**28  # bytes of boards that are kept at once


@dataclass
class Arguments:
    checkpoint: tyro.conf.Positional[str]  # a checkpoint.pt or a run's folder
    data: str = "own"  # own: as in its training; or what --data of ebm.train takes, a .csv or an .npy file
    parts: tuple[Literal["validation", "test"], ...] = ("test",)  # of the split by solution; never those of training
    puzzles: int = 1_000  # at most so many, random ones; 0: all
    steps: int = 50  # Langevin steps; the log has 50 to 100
    chains: int = 8  # Langevin chains of each puzzle; the log has 4 to 16
    langevin: bool = True  # off: the columns of one forward pass only
    lr: float = 0.01  # size of a step
    noise: float = 0.005  # its noise, times tau
    true_noise: bool = False  # sqrt(2 lr) instead, at every step: Langevin dynamics at temperature 1
    energy: Literal["auto", "consistency", "norm", "penalty"] = "auto"  # auto: norm for runs 1-3, consistency from 4 on
    decodes: int = 0  # random z of the baseline without energy; 0: as many as cost what Langevin costs
    edges: tuple[float, ...] = store.EXTREME  # limits of the buckets by rating
    seed: int = 0  # of the choice of puzzles and of all noise
    at_once: int = 1024  # chains computed at a time: bounds memory, changes no result
    output: str = ""  # the .json file with every figure; empty: evaluation.json beside the checkpoint
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


# ---------------------------------------------------------------- boards


def honest(model, puzzle, asked, kind, decodes):
    """All that is done without the answer: boards {column: [n, 81]}, candidates {way: [n, chains, 81]}, the first
    chain's z {column: [n, 1, latent]}, and the seconds that each column took."""
    boards, candidates, seconds = {}, {}, defaultdict(float)
    draw = lambda part, chains: langevin.normal(part, chains, model.config.latent, asked.seed, step=0)  # noqa: E731
    z = {"z = 0": torch.zeros(len(puzzle), 1, model.config.latent), "z random": draw(puzzle, 1)}
    for column in list(z):
        with clock(seconds, column):
            boards[column] = langevin.read(model, puzzle, z[column], asked.at_once)[:, 0].numpy()
    if not asked.langevin:
        return boards, candidates, z, seconds
    with clock(seconds, "Langevin"):
        found = langevin.solve(
            model, puzzle, asked.steps, asked.chains, asked.lr, asked.noise, kind, asked.seed,
            true_noise=asked.true_noise, at_once=asked.at_once,
        )  # fmt: skip
        z["Langevin"], candidates["Langevin"] = found.z[:, :1], found.boards.to(torch.uint8).numpy()
        chosen = {"Langevin": langevin.choose(candidates["Langevin"], found.energy)}
    with clock(seconds, "decodes"):
        few = puzzle.split(max(1, asked.at_once // decodes))  # their z would fill the memory otherwise
        read = [langevin.read(model, part, draw(part, decodes), asked.at_once).numpy() for part in few]
        candidates["decodes"] = np.concatenate(read)
        chosen["decodes"] = langevin.choose(candidates["decodes"])
    boards["Langevin"] = chosen["Langevin"]["energy"]
    boards |= {f"{way}, {choice}": board for way in chosen for choice, board in chosen[way].items()}
    return boards, candidates, z, seconds


def oracle(model, puzzle, solution, other, candidates, asked):
    """What is given solutions: the board at the solution's own z, that at the z of another puzzle's, and the best of
    all candidates; also z and the seconds."""
    boards, z, seconds = {}, {}, defaultdict(float)
    for column, source in (("oracle", solution), ("z of another", other)):
        with clock(seconds, column):
            z[column] = z_of(model, source, asked.at_once)[:, None]
            boards[column] = langevin.read(model, puzzle, z[column], asked.at_once)[:, 0].numpy()
    for way, found in candidates.items():
        boards[f"{way}, oracle"] = langevin.choose_by_oracle(found, solution.cpu())
    return boards, z, seconds


@torch.no_grad()
def z_of(model, solution, at_once):
    """[n, latent]: z of these solutions, without noise."""
    with langevin.frozen(model):
        none = torch.zeros(1, model.config.latent, device=solution.device)
        parts = F.one_hot(solution - 1, 9).to(none).split(at_once)
        return torch.cat([model.latent(model.target(board), none.expand(len(board), -1)) for board in parts])


@torch.no_grad()
def spread(model, puzzle, solution, at_once):
    """How far the vectors differ between puzzles: the standard deviation, mean over dimensions, of the two encoders'
    and of z."""
    with langevin.frozen(model):
        boards = F.one_hot(solution - 1, 9).to(model.decoder.head.weight).split(at_once)
        target = torch.cat([model.target(board) for board in boards])
        found = {
            "context": torch.cat([model.context(part) for part in puzzle.split(at_once)]),
            "target": target,
            "z": model.latent(target, target.new_zeros(len(target), model.config.latent)),
        }
    return {name: vectors.std(0).mean().item() if len(vectors) > 1 else None for name, vectors in found.items()}


def untrained(config, device):
    """The model that this training run began with."""
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        return Model(config).to(device).eval()


@contextlib.contextmanager
def clock(seconds, name):
    start = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start


def compare(model, puzzle, solution, asked, kind, decodes):
    """Every column's boards [n, 81]; means of |z| and of the energy's terms where each column reads its board;
    seconds. `solution` goes to `oracle` only, and not before the honest boards of the same puzzles stand."""
    at_once = max(1, min(asked.at_once // asked.chains, CANDIDATES // (81 * decodes)))
    boards, states, seconds = defaultdict(list), defaultdict(lambda: defaultdict(float)), defaultdict(float)
    bar = {"console": Console(stderr=True), "transient": True, "disable": not sys.stderr.isatty()}
    for first in track(range(0, len(puzzle), at_once), "solving", **bar):
        part = puzzle[first : first + at_once]
        found, candidates, z, took = honest(model, part, asked, kind, decodes)
        answer = solution[first : first + at_once]
        other = solution[first - 1 : first + len(part) - 1] if first else answer.roll(1, 0)
        seeing, its_z, took_oracle = oracle(model, part, answer, other, candidates, asked)
        z |= its_z
        for column, board in (found | seeing).items():
            boards[column].append(board)
        for column, spent in (took | took_oracle).items():
            seconds[column] += spent
        for column, state in z.items():
            terms = langevin.measure(model, part, state, kind=kind, at_once=asked.at_once)
            for name, values in {"norm of z": state.norm(dim=-1).cpu(), **terms}.items():
                states[column][name] += values.double().sum().item() / len(puzzle)
    return {column: np.concatenate(parts) for column, parts in boards.items()}, states, seconds


def cost(model, puzzle, kind):
    """FLOPs of (one decode, one step of one chain), as torch counts them; the same for every puzzle."""
    one, found = puzzle[:1], []
    with langevin.frozen(model), torch.enable_grad():
        z_context = model.context(one).detach()
        z = torch.zeros_like(z_context[:, :1]).expand(-1, model.config.latent)
        z = 1 * z.requires_grad_()  # torch's counter fails at a gradient with respect to a leaf
        energy = lambda: langevin.energy(model, one, z_context, z, 1.0, kind)["total"].sum()  # noqa: E731
        for work in (lambda: model.decode(z_context, z, one), lambda: torch.autograd.grad(energy(), z)):
            with FlopCounterMode(display=False) as counter:
                work()
            found.append(counter.get_total_flops())
    return found


# ---------------------------------------------------------------- figures


def share(right, of):
    """The share of `right` among `of`, both counts by puzzle, with its 95 % interval; None where there is nothing.

    Wilson's interval, with as many independent trials as would spread as much as the puzzles do.
    """
    right, of = (np.asarray(counts, float) for counts in (right, of))
    figure = {"right": int(right.sum()), "of": int(of.sum()), "puzzles": int((of > 0).sum())}
    if not figure["of"]:
        return figure | {"share": None, "low": None, "high": None}
    p, trials = right.sum() / of.sum(), figure["puzzles"]
    spread = ((right - p * of) ** 2).sum() / of.sum() ** 2
    if spread > 0 and trials >= FEW:
        trials = min(p * (1 - p) / spread, of.sum())
    middle, half = p + Z**2 / (2 * trials), Z * math.sqrt(p * (1 - p) / trials + Z**2 / (4 * trials**2))
    scale = 1 + Z**2 / trials
    return figure | {"share": p, "low": max(0.0, (middle - half) / scale), "high": min(1.0, (middle + half) / scale)}


def difference(right, base, of):
    """The share of `right` less that of `base` on the same puzzles; an interval only where enough puzzles differ."""
    change, total = np.asarray(right, float) - base, np.sum(of)
    figure = {"better": int((change > 0).sum()), "worse": int((change < 0).sum()), "low": None, "high": None}
    figure["points"] = change.sum() / total if total else None
    if figure["better"] + figure["worse"] >= FEW:
        half = Z * math.sqrt(((change - figure["points"] * of) ** 2).sum()) / total
        figure |= {"low": figure["points"] - half, "high": figure["points"] + half}
    return figure


def counts(board, puzzle, solution):
    """{metric: (right, of)}, counts by puzzle. Rows, columns and boxes are judged by the rules alone."""
    blank, right = puzzle == 0, (board == solution)
    ones = np.ones(len(puzzle), int)
    return {
        "cells": ((right & blank).sum(1), blank.sum(1)),
        "puzzles": (right.all(1).astype(int), ones),
        "groups": ((langevin.missing(board) == 0).sum(1), 27 * ones),
    }


def score(boards, puzzle, solution, rating, edges):
    """{column: its figures}: of all puzzles, by number of blanks, by rating, and against z = 0."""
    blanks = (puzzle == 0).sum(1)
    buckets = {"blanks": (blanks, BLANKS), "rating": (rating, edges)}
    base, figures = counts(boards["z = 0"], puzzle, solution), {}
    for column, board in boards.items():
        found = counts(board, puzzle, solution)
        row = {"sees_the_answer": column in SEES_THE_ANSWER, "checksum": zlib.crc32(board.astype(np.uint8).tobytes())}
        row["differs"] = share(((board != boards["z = 0"]) & (puzzle == 0)).sum(1), blanks)
        row["all"] = {metric: share(*count) for metric, count in found.items()}
        row["against_zero"] = {m: difference(found[m][0], base[m][0], found[m][1]) for m in METRICS}
        for kind, (values, limits) in buckets.items():
            row[kind] = {}
            for name, low, below in zip(names(limits, values), limits, limits[1:]):
                inside = (values >= low) & (values < below)
                row[kind][name] = {m: share(right[inside], of[inside]) for m, (right, of) in found.items()}
        figures[column] = row
    return figures


# ---------------------------------------------------------------- what is printed


def percent(figure):
    if figure["share"] is None:
        return "no data"
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * figure[key] for key in ("share", "low", "high")))


def points(figure):
    if figure["points"] is None:
        return "no data"
    low, high = figure["low"], figure["high"]
    interval = "too few differ" if low is None else f"[{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * figure['points']:+.1f} {interval} ({figure['better']} better, {figure['worse']} worse)"


def marked(column):
    return f"{column} (sees the answer)" if column in SEES_THE_ANSWER else column


def table(title, header, rows):
    found = Table(*header, title=title, title_justify="left")
    for column in found.columns[1:]:
        column.justify = "right"
    for row in rows:
        found.add_row(*row)
    return found


def tables(result):
    """The tables of a result, as it stands in the JSON file."""
    figures, kind = result["columns"], result["energy"]
    columns = [column for column in COLUMNS if column in figures]

    def shares(column):
        return [percent(figures[column]["all"][metric]) for metric in METRICS]

    rows = [(marked(c), *shares(c), f"{figures[c]['milliseconds']:.2f}") for c in columns]
    title = f"{result['puzzles']:,} puzzles, in % [95 % interval]"
    yield table(title, ("", *METRICS.values(), "ms a puzzle"), rows)

    changes = {c: [points(figures[c]["against_zero"][m]) for m in ("cells", "puzzles")] for c in columns}
    rows = [(marked(c), *change) for c, change in changes.items() if c != "z = 0"]
    yield table("Against z = 0 on the same puzzles, in points", ("", *list(METRICS.values())[:2]), rows)

    for metric, group in itertools.product(("cells", "puzzles"), ("blanks", "rating")):
        rows = []
        for name, bucket in figures["z = 0"][group].items():
            if count := bucket["puzzles"]["of"]:
                rows.append((name, f"{count:,}", *(percent(figures[c][group][name][metric]) for c in columns)))
        yield table(f"{METRICS[metric]} by {group}, in %", (group, "puzzles", *map(marked, columns)), rows)

    ways = {"Langevin": f"{result['settings']['chains']} chains", "decodes": f"{result['decodes']:,} random z"}
    for way, many in ways.items():
        if way not in figures:
            continue
        rows = [(label, *shares(f"{way}, {c}")) for c, label in CHOICES.items() if f"{way}, {c}" in figures]
        rows.append(("the best (sees the answer)", *shares(f"{way}, oracle")))
        title = f"{way}: choice among {many}; {figures[way]['milliseconds']:.2f} ms a puzzle"
        yield table(title, ("", *METRICS.values()), rows)

    terms = ("norm of z", *([kind] if kind != "penalty" else []), "penalty", "total")
    rows = []
    for column in columns:
        read = "Langevin, one" if column == "Langevin" else column
        means = [result["states"][column][term] for term in terms]
        means = ["not finite" if mean is None else f"{mean:.4g}" for mean in means]
        rows.append((marked(column), *means, percent(figures[read]["differs"])))
    title = "Does z matter? First chain; means over the puzzles; energy at tau = 0"
    yield table(title, ("", *terms, "blanks unlike z = 0"), rows)

    names = {"context": "z_context", "target": "z_target", "z": "z of the solution"}
    rows = [(names[name], *("-" if each[name] is None else f"{each[name]:.2g}" for each in result["spread"].values()))
            for name in names]  # fmt: skip
    yield table("Standard deviation over the puzzles, mean of the dimensions", ("", *result["spread"]), rows)


# ---------------------------------------------------------------- command


def held_out(asked, config):
    """(the puzzles to test on, {part of the split: rows left out}): only rows of the parts asked for, by the hash."""
    try:
        if asked.data.endswith(".csv"):
            whole = read_csv(asked.data)
        elif asked.data.endswith(".npy"):
            whole = store.load(asked.data)
        else:
            if asked.data not in ("own", config.data):  # the test part has a twentieth of what is generated or read
                few = 40 * asked.puzzles if asked.data.startswith("generated") else 0
                config = dataclasses.replace(config, data=asked.data, puzzles=few or config.puzzles)
            whole = data.source(config)[1]
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    part = np.array(("train", "validation", "test"))[np.searchsorted(data.BOUNDS, data.places(whole), side="right")]
    rows = np.flatnonzero(np.isin(part, asked.parts))
    left_out = {name: int((part == name).sum()) for name in ("train", "validation", "test") if name not in asked.parts}
    if not len(rows):
        raise SystemExit(
            f"--data {asked.data}: all of its {len(whole):,} puzzles belong to other parts of the split than "
            f"{' and '.join(asked.parts)}, so nothing is left to test on; give more puzzles or --parts validation test"
        )
    random = np.random.default_rng(asked.seed)
    return whole.subset(np.sort(random.permutation(rows)[: asked.puzzles or None])), left_out


def wrong_value(asked):
    """What is wrong with the value of a flag, or None."""
    for name in ("steps", "chains", "at_once"):
        if getattr(asked, name) < 1:
            return f"--{name.replace('_', '-')} {getattr(asked, name)}: expected 1 or more"
    for name in ("puzzles", "decodes", "seed", "lr", "noise"):
        value = getattr(asked, name)
        if not 0 <= value < (2**63 if isinstance(value, int) else math.inf):
            return f"--{name} {value}: expected a number, 0 or more"
    if len(asked.edges) < 2 or any(not low < high for low, high in zip(asked.edges, asked.edges[1:])):
        return f"--edges {' '.join(map(str, asked.edges))}: expected two or more rising numbers"
    if not asked.parts:
        return "--parts: expected validation, test or both"
    return disk.wrong_json(asked.output) if asked.output else None


def evaluate(model, config, asked):
    """The result, as it stands in the JSON file."""
    puzzles, left_out = held_out(asked, config)
    device = next(model.parameters()).device
    puzzle, solution = (torch.from_numpy(board.astype(np.int64)).to(device) for board in puzzles.rows(slice(None)))
    kind = asked.energy if asked.energy != "auto" else langevin.kind_of(config.run)
    torch.set_float32_matmul_precision("highest")  # no TF32
    one_decode, one_step = cost(model, puzzle, kind)
    decodes = asked.decodes or round(asked.chains * (asked.steps * one_step / one_decode + 1))
    compare(model, puzzle[:1], solution[:1], dataclasses.replace(asked, steps=1), kind, 1)  # warms up, for the clock
    spreads = {name: spread(each, puzzle, solution, asked.at_once)
               for name, each in (("untrained", untrained(config, device)), ("trained", model))}  # fmt: skip
    boards, states, seconds = compare(model, puzzle, solution, asked, kind, decodes)
    for means in states.values():  # JSON knows no NaN
        means.update({name: mean if math.isfinite(mean) else None for name, mean in means.items()})
    columns = score(boards, puzzle.cpu().numpy(), solution.cpu().numpy(), puzzles.rating, asked.edges)
    for column, spent in seconds.items():
        columns.setdefault(column, {})["milliseconds"] = 1000 * spent / len(puzzle)
    return {
        "settings": dataclasses.asdict(asked) | {"edges": [str(edge) for edge in asked.edges]},
        "data": config.data if asked.data == "own" else asked.data, "puzzles": len(puzzle), "left_out": left_out,
        "energy": kind, "decodes": decodes, "flops": {"decode": one_decode, "step": one_step},
        "spread": spreads, "states": states, "columns": columns, "hardware": disk.describe(device),
        "commit": disk.commit(),
    }  # fmt: skip


def report(asked, command):
    if problem := wrong_value(asked):
        raise SystemExit(problem)
    device = pick_device(asked.device)
    path = disk.checkpoint_path(asked.checkpoint)
    model, config = load_model(path)
    if not all(p.isfinite().all() for p in model.parameters()):
        raise SystemExit(f"{path}: its weights are not finite; give an earlier checkpoint, or train again")
    origin = {"command": command, "checkpoint": str(path), "run": config.run}
    result = origin | evaluate(model.to(device), config, asked)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    left = ", ".join(f"{count:,} of {part}" for part, count in result["left_out"].items())
    print(f"{path}, run {config.run}; {result['data']}; left out by the split: {left}")
    noise = "sqrt(2 lr)" if asked.true_noise else f"{asked.noise:g} tau"
    print(f"energy {result['energy']}, {asked.steps} steps, {asked.chains} chains, lr {asked.lr:g}, noise {noise}")
    for found in tables(result):
        console.print(found)
    named = "evaluation.json" if path.name == "checkpoint.pt" else f"{path.stem}-evaluation.json"
    output = Path(asked.output or path.with_name(named))
    with disk.writing(output.parent, output.name):
        disk.write_json(output, result)
    print(f"wrote {output}; {result['hardware']}")


def start(name, arguments, report, text, argv=None):
    """What `python -m ebm.NAME` does: flags, then the report; an error is one line. -> exit status"""
    asked = tyro.cli(arguments, args=argv, description=text.replace("\n", "\n "))  # tyro joins lines not indented
    words = sys.argv[1:] if argv is None else argv
    try:
        return report(asked, " ".join([f"python -m ebm.{name}", *words]))
    except (OSError, SystemExit) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def main(argv=None):
    return start("evaluate", Arguments, report, __doc__, argv)


if __name__ == "__main__":
    solve.as_program(main)
