"""How a trained energy model comes to its boards: the log's five experiments, each with a figure and its numbers.

python -m ebm.interpret runs/ebm/run4-mini-seed0                   held-out puzzles like those of its training
python -m ebm.interpret runs/ebm/run5-full-seed0 --puzzles 1000    a checkpoint of any size; the log took 100 puzzles
python -m ebm.interpret runs/ebm/run4-mini-seed0 --data my.csv --heads 0     any CSV; no head is removed

1 lock_in.png               when each blank commits to its digit, counting apart those that do before any update of z
2 strategy_progression.png  which digits change on the way, and which human strategy explains the change
3 head_specialization.png   whether attention heads keep to rows, columns or boxes, more than untrained ones do
4 ablation_impact.png       what each head is worth: the same puzzles and noise without it
5 forward_vs_langevin.png   what the descent adds to one forward pass that never sees the answer (z = 0)

They go to the folder interpret/ beside the checkpoint, with every number in interpret.json. One chain a puzzle, as in
the log. Intervals are 95 % and over puzzles, since the cells of one board are no independent trials. A statistic of too
few events says "not enough data". A strategy explains a digit by the board it is put on, which may be wrong itself.
"""

import contextlib
import dataclasses
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track

import solve
from data.rows import UNITS
from ebm import evaluate, langevin
from ebm.interpret_plots import FIGURES, number, percent, related
from ebm.strategies import LEVEL, NAMES, UNKNOWN, explain
from ebm.train import Model, load_model
from plumbing import disk
from plumbing.run import pick_device

SURE, KEPT = 0.9, 0.855  # probability of the right digit at lock-in, and ever after
ENOUGH = 30  # events that a statistic needs,
FEW = evaluate.FEW  # from so many puzzles; a correlation also needs so many off the most common level, and step
SPECIAL = 1.2  # a head is named after the group that it attends to most, if that is so many times the average
EVERY = 5  # steps between two looks at the attention
PROFILED = 64  # puzzles of these looks; the log had 16
GROUPS = ("row", "column", "box", "own cell")
RESAMPLED = 1_000  # draws of puzzles for the interval of a correlation


@dataclass
class Arguments:
    checkpoint: tyro.conf.Positional[str]  # a checkpoint.pt or a run's folder
    data: str = "own"  # own: as in its training; or what --data of ebm.train takes, a .csv or an .npy file
    parts: tuple[Literal["validation", "test"], ...] = ("test",)  # of the split by solution; never those of training
    puzzles: int = 400  # at most so many, random ones; 0: all
    steps: int = 50  # Langevin steps
    lr: float = 0.01  # size of a step
    noise: float = 0.005  # its noise, times tau
    true_noise: bool = False  # sqrt(2 lr) instead, at every step: Langevin dynamics at temperature 1
    energy: Literal["auto", "consistency", "norm", "penalty"] = "auto"  # auto: norm for runs 1-3, consistency from 4 on
    heads: int = 10  # decoder heads to remove, one by one: named ones first, in layer order
    seed: int = 0  # of the choice of puzzles and of all noise
    at_once: int = 512  # puzzles computed at a time: bounds memory, changes no result
    output: str = ""  # the folder for figures and numbers; empty: interpret/ beside the checkpoint
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


# ---------------------------------------------------------------- statistics, each with its n


def missing(events, puzzles):
    """Why there is too little data for a statistic; empty if there is enough."""
    if events >= ENOUGH and puzzles >= FEW:
        return ""
    return f"not enough data: {events} events of {puzzles} puzzles; it takes {ENOUGH} of {FEW}"


def share(right, of):
    """The share of `right` among `of`, counts by puzzle, with n and interval; a note instead where n is too small."""
    figure = evaluate.share(right, of)
    if note := missing(figure["of"], figure["puzzles"]):
        figure |= {"share": None, "low": None, "high": None, "note": note}
    return figure


def mean(values):
    """The mean of one value a puzzle, none below 0, with n and interval."""
    values = np.asarray(values, float)
    broken = int((~np.isfinite(values)).sum())
    if broken or len(values) < FEW:
        note = f"not enough data: {len(values)} puzzles; it takes {FEW}"
        note = f"not finite in {broken} of {len(values)} puzzles" if broken else note
        return {"n": len(values), "mean": None, "low": None, "high": None, "note": note}
    z, freedom = evaluate.Z, len(values) - 1
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)  # of t's series
    half = student * values.std(ddof=1) / math.sqrt(len(values))
    return {"n": len(values), "mean": values.mean(), "low": max(0, values.mean() - half), "high": values.mean() + half}


def rank_correlation(table):
    """Spearman's correlation of row and column in counts [rows, columns]; nan where one of them never varies."""
    ranks = [count.cumsum() - (count - 1) / 2 for count in (table.sum(1), table.sum(0))]
    x, y = (rank - np.average(rank, weights=table.sum(1 - axis)) for axis, rank in enumerate(ranks))
    spread = (table.sum(1) @ x**2) * (table.sum(0) @ y**2)
    return x @ table @ y / math.sqrt(spread) if spread > 0 else math.nan


def correlation(codes, steps, puzzles, seed=0):
    """Spearman's correlation between the level of a strategy and the step of its event."""
    found, names = {"n": len(codes), "puzzles": len(np.unique(puzzles))}, np.unique(puzzles)
    nothing = {"correlation": None, "low": None, "high": None}
    if note := missing(found["n"], found["puzzles"]):
        return found | nothing | {"note": note}
    tables = np.zeros((len(names), LEVEL.max() + 1, steps.max() + 1))
    np.add.at(tables, (np.searchsorted(names, puzzles), LEVEL[codes], steps), 1)
    for what, count in (("level", tables.sum((0, 2))), ("step", tables.sum((0, 1)))):
        if (others := int(count.sum() - count.max())) < FEW:
            note = f"not enough data: only {others} of {found['n']} events are off the most common {what}"
            return found | nothing | {"note": note}
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLED)
    samples = [rank_correlation(np.tensordot(weights, tables, 1)) for weights in drawn]
    low, high = np.nanquantile(samples, (0.025, 0.975))
    return found | {"correlation": rank_correlation(tables.sum(0)), "low": low, "high": high}


def tally(codes, right=None):
    """{strategy: events}, or {strategy: {"right", "wrong"}}: how many of its digits are those of the solution."""
    if right is None:
        return dict(zip(NAMES, np.bincount(codes, minlength=len(NAMES)).tolist()))
    counts = zip(tally(codes[right]).values(), tally(codes[~right]).values())
    return {name: {"right": good, "wrong": bad} for name, (good, bad) in zip(NAMES, counts)}


def by_puzzle(puzzles, count):
    return np.bincount(puzzles, minlength=count)


# ---------------------------------------------------------------- what the model does


def descend(model, puzzle, kind, asked, capture=False):
    """One chain for each puzzle, always from the same noise."""
    return langevin.solve(
        model, puzzle, asked.steps, 1, asked.lr, asked.noise, kind, asked.seed,
        true_noise=asked.true_noise, capture=capture, at_once=asked.at_once,
    )  # fmt: skip


@torch.no_grad()
def forward(model, puzzle, z, at_once):
    """float [n, 81, 9]: probabilities of one forward pass with this z [n, latent]."""
    parts = []
    with langevin.frozen(model):
        for board, state in zip(puzzle.split(at_once), z.split(at_once)):
            z_context = model.context(board)
            parts.append(model.decode(z_context, state.to(z_context), board).softmax(-1).cpu())
    return torch.cat(parts).numpy()


@dataclass
class Observed:
    """All that the experiments look at, as numpy arrays; n puzzles."""

    puzzle: np.ndarray  # int [n, 81]
    solution: np.ndarray  # int [n, 81]
    probabilities: np.ndarray  # [steps + 1, n, 81, 9] along the descent; entry 0: before any update of z
    boards: dict  # {column: int [n, 81]}
    at_zero: np.ndarray  # [n, 81, 9]: probabilities at z = 0
    z: np.ndarray  # [steps + 1, n, latent]
    oracle: np.ndarray  # [n, latent]
    energy: np.ndarray  # [steps, n], before each update


def observe(model, puzzle, solution, kind, asked):
    path = descend(model, puzzle, kind, asked, capture=True).trajectory
    probabilities, z = path.probabilities[:, :, 0].numpy(), path.z[:, :, 0].numpy()
    seen = evaluate.z_of(model, solution, asked.at_once)
    with_answer = forward(model, puzzle, seen, asked.at_once)
    at_zero = forward(model, puzzle, torch.zeros_like(seen), asked.at_once)
    last = {"oracle": with_answer, "z = 0": at_zero, "z random": probabilities[0], "Langevin": probabilities[-1]}
    return Observed(
        puzzle.cpu().numpy(), solution.cpu().numpy(), probabilities,
        {column: found.argmax(-1) + 1 for column, found in last.items()}, at_zero, z, seen.cpu().numpy(),
        path.terms["total"][..., 0].numpy(),
    )  # fmt: skip


# ---------------------------------------------------------------- 1: lock-in


def right_digit(probabilities, solution):
    """[..., n, 81]: the probability of the solution's digit."""
    index = np.broadcast_to(solution[..., None] - 1, (*probabilities.shape[:-1], 1))
    return np.take_along_axis(probabilities, index, -1)[..., 0]


def lock_in(probabilities, puzzle, solution):
    """int [n, 81]: the first step at which a blank's right digit is sure and stays so; -1: never, or a clue."""
    right = right_digit(probabilities, solution)
    kept = np.minimum.accumulate(right[::-1])[::-1] >= KEPT
    locked = (right >= SURE) & kept & (puzzle == 0)
    return np.where(locked.any(0), locked.argmax(0), -1)


def lock_in_events(lock, puzzle, solution):
    """(puzzle, step, code) of each lock-in: the strategy that explains it by the clues and what was locked before."""
    puzzles, cells = np.nonzero(lock >= 0)
    steps = lock[puzzles, cells]
    keys, rows = np.unique(np.stack([puzzles, steps]), axis=1, return_inverse=True)
    owner, step = keys
    known = (puzzle[owner] > 0) | ((lock[owner] >= 0) & (lock[owner] < step[:, None]))
    boards = np.where(known, solution[owner], 0)
    return puzzles, steps, explain(boards, rows.ravel(), cells, solution[puzzles, cells])


def experiment_lock_in(seen, asked):
    lock = lock_in(seen.probabilities, seen.puzzle, seen.solution)
    blank, count = seen.puzzle == 0, len(lock)
    puzzles, steps, codes = lock_in_events(lock, seen.puzzle, seen.solution)
    blanks = blank.sum(1)
    alike = (lock == 0) & (right_digit(seen.at_zero, seen.solution) >= SURE)
    found = {
        "blanks": int(blanks.sum()),
        "steps": np.bincount(steps, minlength=asked.steps + 1).tolist(),
        "per_puzzle": mean((lock >= 0).sum(1)),
        "at_step_0": share((lock == 0).sum(1), blanks),
        "later": share((lock > 0).sum(1), blanks),
        "never": share(((lock < 0) & blank).sum(1), blanks),
        "at_step_0_also_sure_at_z_0": share(alike.sum(1), (lock == 0).sum(1)),
        "level_and_step": correlation(codes[steps > 0], steps[steps > 0], puzzles[steps > 0], asked.seed),
    }
    for name, which in (("step_0", steps == 0), ("later", steps > 0)):
        explained = by_puzzle(puzzles[which & (codes != UNKNOWN)], count)
        found[f"strategies_{name}"] = tally(codes[which])
        found[f"explained_{name}"] = share(explained, by_puzzle(puzzles[which], count))
    return found


# ---------------------------------------------------------------- 2: strategy progression


def change_events(boards):
    """(step, puzzle, cell, code) of each digit that a step changes in boards [steps + 1, n, 81].

    The cells that change together are blanked, all others keep their digits, right or wrong.
    """
    changed = boards[1:] != boards[:-1]
    steps, puzzles, cells = np.nonzero(changed)
    (step, puzzle), rows = np.unique(np.stack([steps, puzzles]), axis=1, return_inverse=True)
    before = np.where(changed[step, puzzle], 0, boards[1:][step, puzzle])
    return steps + 1, puzzles, cells, explain(before, rows.ravel(), cells, boards[1:][steps, puzzles, cells])


def experiment_progression(seen, asked):
    boards, count = seen.probabilities.argmax(-1) + 1, len(seen.puzzle)
    steps, puzzles, cells, codes = change_events(boards)
    answer = seen.solution[puzzles, cells]
    was, now = (boards[steps - back, puzzles, cells] == answer for back in (1, 0))
    by_step = np.zeros((asked.steps + 1, LEVEL.max()), int)
    np.add.at(by_step, (steps, LEVEL[codes] - 1), 1)
    total = by_puzzle(puzzles, count)
    blanks = (seen.puzzle == 0).sum(1)
    return {
        "events": len(codes),
        "per_puzzle": mean(total),
        "puzzles_that_change": share((total > 0).astype(int), np.ones(count, int)),
        "blanks_that_end_otherwise": share((boards[0] != boards[-1]).sum(1), blanks),
        "wrong_to_right": int((~was & now).sum()),
        "right_to_wrong": int((was & ~now).sum()),
        "wrong_to_wrong": int((~was & ~now).sum()),
        "now_right": share(by_puzzle(puzzles[now], count), total),
        "strategies": tally(codes, now),
        "explained": share(by_puzzle(puzzles[codes != UNKNOWN], count), total),
        "by_step_and_level": by_step.tolist(),
        "level_and_step": correlation(codes, steps, puzzles, asked.seed),
    }


# ---------------------------------------------------------------- 3: heads


def layers_of(model):
    return {"decoder": model.decoder.cells.layers, "encoder": model.context_encoder.cells.layers}


@contextlib.contextmanager
def watched(layers):
    """Yields a list to which each forward pass adds each layer's scores [n, heads, groups]."""
    found = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: found.append(scores(layer.attention(inputs[0])[0])))
        for layer in layers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def masks():
    """bool [groups, 81, 81]: the cells in one's row, column and box, oneself included; and oneself alone."""
    together = np.zeros((3, 81, 81), bool)
    for kind in range(3):
        for unit in UNITS[9 * kind : 9 * kind + 9]:
            together[kind][np.ix_(unit, unit)] = True
    return np.concatenate([together, np.eye(81, dtype=bool)[None]])


def scores(weights):
    """[n, heads, groups]: mean attention [n, heads, 81, 81] within the group over the overall mean; uniform gives 1."""
    groups = torch.from_numpy(masks()).to(weights).flatten(1)
    inside = weights.flatten(2) @ (groups / groups.sum(1, keepdim=True)).T
    return inside / weights.mean((2, 3))[..., None]


def others_only(score):
    """The scores of row, column and box with the own cell left out on both sides; it is in all three of them."""
    own = score[..., 3:] / 81  # the share of all attention that stays on the own cell
    return (score[..., :3] * 9 / 81 - own) / 8 / (1 - own).clip(1e-6) * 80


def label(score):
    """row, column or box, whichever the head attends to most, or mixed; score [3 or more]."""
    return GROUPS[int(np.argmax(score[:3]))] if max(score[:3]) > SPECIAL else "mixed"


@torch.no_grad()
def profile(model, puzzle, z):
    """{part: [layers, heads, n, groups]} for these puzzles and states z [looks, n, latent], the looks averaged."""
    parts = layers_of(model)
    with langevin.frozen(model):
        with watched(parts["encoder"]) as encoder:
            z_context = model.context(puzzle)
        with watched(parts["decoder"]) as decoder:
            for state in z:
                model.decode(z_context, state.to(z_context), puzzle)
    decoder = torch.stack(decoder).unflatten(0, (len(z), -1)).mean(0)
    found = {"decoder": decoder, "encoder": torch.stack(encoder)}
    return {part: score.transpose(1, 2).cpu().double().numpy() for part, score in found.items()}


def experiment_heads(model, puzzle, seen):
    """Every head's scores, their intervals over puzzles, and its name; also how many untrained heads get one."""
    few = slice(PROFILED)
    z = torch.from_numpy(seen.z[::EVERY, few])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = Model(model.config).to(puzzle.device)
    trained, fresh = (profile(network, puzzle[few], z) for network in (model, untrained))
    found = {"puzzles": len(puzzle[few]), "looks": len(z), "named_above": SPECIAL, "heads": []}
    for part, found_scores in trained.items():
        for layer, head in np.ndindex(*found_scores.shape[:2]):
            score = found_scores[layer, head]
            best = int(score.mean(0)[:3].argmax())
            figure = {name: mean(score[:, group]) for group, name in enumerate(GROUPS)}
            low, high = figure[GROUPS[best]]["low"], figure[GROUPS[best]]["high"]
            found["heads"].append({
                "part": part, "layer": layer, "head": head, "label": label(score.mean(0)),
                "certain": low is not None and not low <= SPECIAL <= high,
                "label_without_own_cell": label(others_only(score.mean(0))), **figure,
            })  # fmt: skip
        means = fresh[part].mean(2).reshape(-1, len(GROUPS))
        names = [label(score) for score in means]
        found[f"untrained_{part}"] = {
            "heads": len(names), "named": sum(name != "mixed" for name in names), "highest": means[:, :3].max(),
        }  # fmt: skip
    return found


# ---------------------------------------------------------------- 4: ablation


@contextlib.contextmanager
def without(model, heads):
    """The decoder with these (layer, head) gone: their columns of the output projection are zero in here."""
    layers = model.decoder.cells.layers
    kept = [layer.out.weight.detach().clone() for layer in layers]
    try:
        for layer, head in heads:
            size = layers[layer].out.weight.shape[1] // layers[layer].heads
            layers[layer].out.weight.data[:, head * size : (head + 1) * size] = 0
        yield
    finally:
        for layer, weight in zip(layers, kept):
            layer.out.weight.data.copy_(weight)


def chosen_heads(heads, limit):
    """(layer, head, label) of at most `limit` decoder heads: the named ones in layer order, then the mixed ones."""
    decoder = [(head["layer"], head["head"], head["label"]) for head in heads if head["part"] == "decoder"]
    return sorted(decoder, key=lambda head: head[2] == "mixed")[:limit]


def experiment_ablation(model, puzzle, seen, heads, kind, asked):
    """The change in blanks right, by Langevin and at z = 0, when a head is gone; last, when all of them are."""
    blank = seen.puzzle == 0
    right = lambda board: ((board == seen.solution) & blank).sum(1)  # noqa: E731
    base = {column: right(seen.boards[column]) for column in ("Langevin", "z = 0")}
    zero, rows = torch.zeros(len(puzzle), model.config.latent), []
    removed = [(head, [head]) for head in chosen_heads(heads, asked.heads)]
    if removed:
        removed.append(((None, None, "all heads"), chosen_heads(heads, None)))
    bar = dict(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    for (layer, head, name), gone in track(removed, "removing heads", **bar):
        with without(model, [(layer, head) for layer, head, _ in gone]):
            found = {
                "Langevin": descend(model, puzzle, kind, asked).boards[:, 0].numpy(),
                "z = 0": forward(model, puzzle, zero, asked.at_once).argmax(-1) + 1,
            }
        change = {column: evaluate.difference(right(found[column]), base[column], blank.sum(1)) for column in found}
        rows.append({"layer": layer, "head": head, "label": name} | change)
    single = [row["Langevin"] for row in rows[:-1]]
    known = [row for row in single if row["low"] is not None]
    return {
        "puzzles": len(puzzle), "blanks": int(blank.sum()), "seed": asked.seed, "heads": rows,
        "intervals": len(known), "worse": len([row for row in known if row["high"] < 0]),
        "better": len([row for row in known if row["low"] > 0]), "by_chance": 0.05 * len(known),
    }  # fmt: skip


# ---------------------------------------------------------------- 5: forward pass against Langevin


def experiment_forward(seen):
    blank = seen.puzzle == 0
    blanks, ones = blank.sum(1), np.ones(len(blank), int)
    right = {column: (board == seen.solution) & blank for column, board in seen.boards.items()}
    cells = {column: found.sum(1) for column, found in right.items()}
    whole = {column: (found == blank).all(1).astype(int) for column, found in right.items()}
    possible = cells["oracle"] > 0
    puzzles, places = np.nonzero(blank)
    needed = np.full(blank.shape, -1)
    needed[blank] = explain(seen.puzzle, puzzles, places, seen.solution[blank])
    columns = {}
    for column, board in seen.boards.items():
        codes = explain(seen.puzzle, puzzles, places, board[blank])
        levels = {}
        for level in range(1, LEVEL.max() + 1):
            here = blank & (LEVEL[needed] == level)
            levels[str(level)] = share((right[column] & here).sum(1), here.sum(1))
        columns[column] = {
            "sees_the_answer": column == "oracle",
            "cells": share(cells[column], blanks),
            "puzzles": share(whole[column], ones),
            "cells_against_zero": evaluate.difference(cells[column], cells["z = 0"], blanks),
            "puzzles_against_zero": evaluate.difference(whole[column], whole["z = 0"], ones),
            "recovery": mean(cells[column][possible] / cells["oracle"][possible]),
            "strategies": tally(codes, right[column][blank]),
            "right_by_level": levels,
        }
    norm = lambda z: mean(np.linalg.norm(z, axis=-1))  # noqa: E731
    return {
        "columns": columns,
        "strategies_of_solution": tally(needed[blank]),
        "norm_of_z": {
            "oracle": norm(seen.oracle), "start": norm(seen.z[0]), "end": norm(seen.z[-1]),
            "moved": norm(seen.z[-1] - seen.z[0]),
        },
        "energy": {"first": mean(seen.energy[0]), "last": mean(seen.energy[-1])},
    }  # fmt: skip


# ---------------------------------------------------------------- command


def study(model, config, asked):
    """All numbers of the five experiments, as they stand in interpret.json."""
    puzzles, left_out = evaluate.held_out(asked, config)
    device = next(model.parameters()).device
    torch.set_float32_matmul_precision("highest")  # no TF32
    puzzle, solution = (torch.from_numpy(board.astype(np.int64)).to(device) for board in puzzles.rows(slice(None)))
    kind = asked.energy if asked.energy != "auto" else langevin.kind_of(config.run)
    seen = observe(model, puzzle, solution, kind, asked)
    heads = experiment_heads(model, puzzle, seen)
    return {
        "run": config.run, "data": config.data if asked.data == "own" else asked.data, "left_out": left_out,
        "puzzles": len(puzzle), "energy": kind, "settings": dataclasses.asdict(asked),
        "lock_in": experiment_lock_in(seen, asked),
        "strategy_progression": experiment_progression(seen, asked),
        "head_specialization": heads,
        "ablation_impact": experiment_ablation(model, puzzle, seen, heads["heads"], kind, asked),
        "forward_vs_langevin": experiment_forward(seen),
        "hardware": disk.describe(device), "commit": disk.commit(),
    }  # fmt: skip


def summary(result):
    """The numbers that answer the log, line by line."""
    lock, change, heads, gone, last = (result[name] for name in FIGURES)
    yield f"1 blanks locked in at step 0, before any update of z: {percent(lock['at_step_0'])}"
    yield f"  later: {percent(lock['later'])}; never: {percent(lock['never'])}"
    yield f"  of those at step 0, as sure at z = 0: {percent(lock['at_step_0_also_sure_at_z_0'])}"
    yield f"  explained by a strategy at step 0: {percent(lock['explained_step_0'])}"
    yield f"  later: {percent(lock['explained_later'])}; its level against the step: {related(lock['level_and_step'])}"
    yield f"2 digits changed: {change['events']:,}; a puzzle: {number(change['per_puzzle'])}"
    moves = ("wrong_to_right", "right_to_wrong", "wrong_to_wrong")
    yield f"  {', '.join(f'{name} {change[name]:,}'.replace('_', ' ') for name in moves)}"
    yield f"  explained by a strategy: {percent(change['explained'])}"
    yield f"  its level against the step: {related(change['level_and_step'])}"
    for part in ("decoder", "encoder"):
        labels = [head["label"] for head in heads["heads"] if head["part"] == part]
        counts = ", ".join(f"{labels.count(name)} {name}" for name in (*GROUPS[:3], "mixed"))
        untrained = heads[f"untrained_{part}"]
        yield f"3 {part} heads: {counts}; of {untrained['heads']} untrained ones {untrained['named']} named"
    found = f"{gone['worse']} worse, {gone['better']} better; {gone['by_chance']:.1f} expected by chance"
    yield f"4 heads removed: {len(gone['heads'][:-1])}; intervals without 0, of {gone['intervals']}: {found}"
    for column, row in last["columns"].items():
        seeing = " (sees the answer)" if row["sees_the_answer"] else ""
        yield f"5 {column}{seeing}: blanks {percent(row['cells'])}; puzzles {percent(row['puzzles'])}"
        yield f"  recovery {number(row['recovery'])}; against z = 0: {evaluate.points(row['cells_against_zero'])}"
    for name, figure in last["norm_of_z"].items():
        yield f"  length of z, {name}: {number(figure)}"


def wrong_value(asked):
    """What is wrong with the value of a flag, or None."""
    for name in ("steps", "at_once"):
        if getattr(asked, name) < 1:
            return f"--{name.replace('_', '-')} {getattr(asked, name)}: expected 1 or more"
    for name in ("puzzles", "heads", "seed", "lr", "noise"):
        if not 0 <= getattr(asked, name) < 2**63:
            return f"--{name} {getattr(asked, name)}: expected a number, 0 or more"
    if not asked.parts:
        return "--parts: expected validation, test or both"
    if os.path.exists(asked.output or ".") and not os.path.isdir(asked.output or "."):
        return f"--output {asked.output}: is a file; expected a folder, which is made where there is none"
    return None


def report(asked, command):
    if problem := wrong_value(asked):
        raise SystemExit(problem)
    device = pick_device(asked.device)
    path = disk.checkpoint_path(asked.checkpoint)
    model, config = load_model(path)
    folder = Path(asked.output) if asked.output else path.parent / "interpret"
    result = {"command": command, "checkpoint": str(path)} | study(model.to(device), config, asked)
    print(f"{path}, run {config.run}; {result['puzzles']:,} puzzles of {result['data']}; energy {result['energy']}")
    for line in summary(result):
        print(line)
    title = f"{path.parent.name}, {result['puzzles']:,} held-out puzzles, {asked.steps} steps, one chain"
    with disk.writing(folder, "the figures"):
        disk.write_json(folder / "interpret.json", result)
        for name, draw in FIGURES.items():
            figure = draw(result[name], title)
            disk.replace(
                folder / f"{name}.png", lambda file, figure=figure: figure.savefig(file, dpi=130, format="png")
            )
    print(f"wrote {folder / 'interpret.json'} and {', '.join(f'{name}.png' for name in FIGURES)}")


def main(argv=None):
    return evaluate.start("interpret", Arguments, report, __doc__, argv)


if __name__ == "__main__":
    solve.as_program(main)
