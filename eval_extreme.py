"""How many puzzles a checkpoint solves: by rating, after any numbers of iterations, counted exactly and in fp32.

python eval_extreme.py runs/exp_cosine/full-seed0                     the test split of sudoku-extreme, all of it
python eval_extreme.py runs/exp_cosine/full-seed0 --per-bucket 5000   at most 5,000 random puzzles of each bucket
python eval_extreme.py runs/exp_cosine/mini-seed0 --data own --iterations 6 16 64 256
python eval_extreme.py weights/suppose.pt --data my.csv               any CSV, or a set made by data/generate.py

A puzzle counts as solved when every blank is right. `balanced` is the mean over the buckets; `natural` weighs them as
they occur in the whole set, where that is known. Ratings of different sources are different scales.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pandas as pd
import tyro
from rich.console import Console
from rich.progress import track

import common
import lineage
import solve
from data import sources, store
from plumbing import disk
from plumbing.run import pick_device

FINE = (0.0, 1.0, 2.0, 3.0, 6.0, 11.0, 21.0, 51.0, float("inf"))  # sudoku-extreme's ratings, finer than in training
CHUNK = 4096  # puzzles between two steps of the progress bar


@dataclass
class Arguments:
    weights: tyro.conf.Positional[str]  # a checkpoint.pt or a run's folder
    data: str = "extreme"  # or own (the run's test set), a .csv or .npy file, or what --data of an experiment takes
    iterations: tuple[int, ...] = ()  # test after these; empty: the number of the training
    per_bucket: int = 0  # at most so many random puzzles of each bucket; 0: all
    edges: tuple[float, ...] = ()  # limits of the buckets; empty: those of the run, or finer ones for extreme
    batch: int = 256  # puzzles that the network gets at once
    output: str = ""  # also write the counts to this .json file
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def config_of(path):
    """The config of a checkpoint; fields that its experiment got later have their defaults."""
    saved = disk.load_checkpoint(path)
    return vars(lineage.module(saved["experiment"]).Config()) | saved["config"]


def test_set(data, config, edges=(), per_bucket=0):
    """(puzzles of --data, limits of their buckets, each bucket's share in the source or None if that is not known)"""
    if data == "extreme" or data.endswith((".csv", ".npy")):
        if data == "extreme":
            from data import sudoku_extreme

            puzzles = sudoku_extreme.load(train=False)
        elif data.endswith(".csv"):
            from data.rows import read_csv

            puzzles = read_csv(data)
        elif Path(data).exists():
            puzzles = store.load(data)
        else:
            raise FileNotFoundError(f"--data {data}: there is no such file")
        edges = edges or (FINE if data == "extreme" else config.get("edges", FINE))
        counts = np.array([len(rows) for rows in store.rows_by_bucket(puzzles, edges)])
        return puzzles, edges, counts / max(1, counts.sum())
    if data == "own":
        found = sources.load(SimpleNamespace(**config))
        return found.test, edges or found.edges, None if edges else found.bucket_shares
    asked = {"data": data, "edges": edges, "test_per_bucket": per_bucket}
    found = sources.load(SimpleNamespace(**config | {name: value for name, value in asked.items() if value}))
    return found.test, found.edges, found.bucket_shares


def count(model, puzzles, edges, iterations, batch, device):
    """{iterations: counts of each bucket}, from the evaluation of the training runs, and puzzles a second."""
    run = SimpleNamespace(rank=0, world=1, device=device)
    total, start = {}, time.perf_counter()
    chunks = range(0, len(puzzles), CHUNK)
    bar = {"console": Console(stderr=True), "transient": True, "disable": not sys.stderr.isatty()}
    for first in track(chunks, "testing", **bar):
        part = sources.Data(None, puzzles.subset(np.arange(first, min(first + CHUNK, len(puzzles)))), edges)
        for n, row in common.evaluate(model, part, run, iterations, batch).items():
            counts = np.array([row[name] for name in ("solved", "puzzles", "cells", "blanks")])
            total[n] = total.get(n, 0) + counts
    return total, len(puzzles) / (time.perf_counter() - start)


def names(edges, ratings):
    """0, 1-2, 3-10, 51+ where limits and ratings are whole numbers; else half-open intervals."""
    numbers = np.append(ratings, edges)
    whole = (numbers[np.isfinite(numbers)] % 1 == 0).all()
    for low, below in zip(edges, edges[1:]):
        if not whole:
            yield f"[{low:g}, {below:g})"
        else:
            yield f"{low:g}+" if below == np.inf else f"{low:g}" if below == low + 1 else f"{low:g}-{below - 1:g}"


def table(total, names, shares):
    """A row for each bucket, then the means; a column for each number of iterations."""
    rows, known = {}, shares is not None
    shares = np.array(shares if known else [0] * len(names))
    for n, (solved, puzzles, cells, blanks) in total.items():
        with np.errstate(invalid="ignore"):
            rate = 100 * solved / puzzles
        held = puzzles > 0
        column = [*rate, rate[held].mean(), (rate * shares)[held].sum(), 100 * cells.sum() / max(1, blanks.sum())]
        rows[f"{n} iterations"] = column
    counts = [f"{n:,}" for n in puzzles] + [f"{puzzles.sum():,}"] * 3
    index = [f"rated {name}" for name in names] + ["balanced", "natural", "blanks right"]
    return pd.DataFrame({"puzzles": counts} | rows, index).drop([] if known else "natural")


def main(argv=None):
    description = __doc__.replace("\n", "\n ")  # tyro joins lines that are not indented
    asked = tyro.cli(Arguments, args=argv, description=description)
    if asked.batch < 1 or asked.per_bucket < 0 or any(n < 1 for n in asked.iterations):
        raise SystemExit("--batch and --iterations: expected 1 or more; --per-bucket: 0 or more")
    if asked.output and (problem := disk.wrong_json(asked.output)):
        raise SystemExit(problem)
    if asked.edges and (len(asked.edges) < 2 or any(np.diff(asked.edges) <= 0)):
        raise SystemExit(f"--edges {' '.join(map(str, asked.edges))}: expected two or more rising numbers")
    device, path = pick_device(asked.device), solve.choose_weights(asked.weights, None)
    model = solve.load(path, device, Console(highlight=False, soft_wrap=True))
    config = config_of(path)
    try:
        puzzles, edges, shares = test_set(asked.data, config, asked.edges, asked.per_bucket)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    buckets = store.rows_by_bucket(puzzles, edges)
    inside = sum(map(len, buckets))
    if not inside:
        raise SystemExit(f"--data {asked.data}: none of its {len(puzzles):,} ratings lies in --edges {edges}")
    drawn = sources.draw(puzzles, buckets, [asked.per_bucket or len(rows) for rows in buckets])
    iterations = sorted(set(asked.iterations)) or [config["iterations"]]
    total, speed = count(model, drawn, edges, iterations, asked.batch, device)
    print(f"{len(drawn):,} of {len(puzzles):,} puzzles of {asked.data}, solved in %, fp32")
    if inside < len(puzzles):
        limits = " ".join(f"{edge:g}" for edge in edges)
        print(f"{len(puzzles) - inside:,} puzzles are rated outside --edges {limits} and left out")
    print(table(total, list(names(edges, drawn.rating)), shares).to_string(float_format="{:.1f}".format, na_rep="-"))
    print(f"{speed:,.0f} puzzles/s at {max(iterations)} iterations, batch {asked.batch}, {disk.describe(device)}")
    if asked.output:
        rows = {n: dict(zip(("solved", "puzzles", "cells", "blanks"), counts.tolist())) for n, counts in total.items()}
        trained = {name: disk.load_checkpoint(path).get(name) for name in ("experiment", "step", "seconds")}
        result = {"weights": str(path), **trained, "data": asked.data, "edges": [str(e) for e in edges]}
        result["shares"] = None if shares is None else list(shares)
        result["test_seconds"] = len(drawn) / speed  # for all iterations together
        command = " ".join(["python eval_extreme.py", *(sys.argv[1:] if argv is None else argv)])
        disk.write_json(asked.output, result | {"command": command, "hardware": disk.describe(device), "test": rows})


if __name__ == "__main__":
    lineage.run_command(main)
