"""What is generated: right, as asked for, the same again, and kept."""

import json
import re
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

from data import generate, store
from data.solver import solve
from tests.data.puzzles import is_valid_solution
from tests.experiments import ROOT


def everything(puzzles):
    return puzzles.rows(np.arange(len(puzzles)))


def bucket_sizes(puzzles):
    return [len(rows) for rows in store.rows_by_bucket(puzzles, store.EXTREME)]


@pytest.mark.parametrize("clues, low, high", [(45, 45, 45), (81, 81, 81), (24, 24, 24), ((28, 33), 28, 33)])
def test_clue_counts_and_one_solution(clues, low, high):
    puzzles = generate.generate(60, clues=clues, seed=1)
    puzzle, solution = everything(puzzles)
    solved, count, guesses = solve(puzzle)
    assert (count == 1).all() and (solved == solution).all() and is_valid_solution(puzzle, solution).all()
    assert (guesses == puzzles.rating).all()
    number = (puzzle > 0).sum(1)
    assert number.min() >= low and number.max() <= high and (low == high or len(set(number)) == 6)


def test_minimal_puzzles_lose_their_solution_with_any_clue():
    puzzles, _ = everything(generate.generate(50, clues="minimal", seed=3))
    assert 23 < (puzzles > 0).sum(1).mean() < 26
    for puzzle in puzzles:
        clues = np.flatnonzero(puzzle)
        without = np.repeat(puzzle[None], len(clues), axis=0)
        without[np.arange(len(clues)), clues] = 0
        assert (solve(without)[1] == 2).all()


def test_workers_change_nothing_and_seeds_do():
    one, three = (generate.generate(700, clues=35, seed=4, workers=workers) for workers in (1, 3))
    assert one.table.tobytes() == three.table.tobytes()
    assert one.table.tobytes() != generate.generate(700, clues=35, seed=5).table.tobytes()
    assert len(np.unique(everything(one)[0], axis=0)) == 700


def test_repeated_puzzles_are_replaced():
    def kernel(stop, seed, puzzles, solutions, guesses):
        puzzles[:] = np.random.default_rng(seed).integers(5, size=(len(puzzles), 1))

    puzzles, _, _ = generate._make(5, (0,), 4, kernel, 2, lambda _: None)
    assert sorted(puzzles[:, 0]) == [0, 1, 2, 3, 4]


def test_dug_buckets():
    puzzles = generate.generate(40, buckets={0: 10, 1: 25, 2: 5}, seed=1)
    assert bucket_sizes(puzzles) == [10, 25, 5, 0, 0]
    puzzle, solution = everything(puzzles)
    solved, count, guesses = solve(puzzle)
    assert (count == 1).all() and (solved == solution).all() and (guesses == puzzles.rating).all()
    assert bucket_sizes(generate.generate(2, buckets=[0, 1, 2], seed=1)) == [1, 1, 0, 0, 0]


def test_climbed_bucket_is_right_and_varied(monkeypatch):
    monkeypatch.setattr(generate, "HARD_CHUNK", 12)  # a pool for twelve takes a second
    puzzles = generate.generate(12, buckets=[3], seed=1)
    puzzle, solution = everything(puzzles)
    solved, count, _ = solve(puzzle)
    assert bucket_sizes(puzzles) == [0, 0, 0, 12, 0] and (count == 1).all() and (solved == solution).all()
    assert len(np.unique(store.fingerprints(puzzles))) == 12  # no two are equivalent


@pytest.mark.parametrize(
    "arguments, checksum",
    [
        ({"count": 300, "clues": 45, "seed": 0}, 155407005),
        ({"count": 100, "clues": (22, 30), "seed": 3}, 2882199386),
        ({"count": 100, "clues": "minimal", "seed": 2}, 2794952880),
        ({"count": 50, "buckets": [0, 1, 2], "seed": 1}, 3885575262),
    ],
)
def test_the_puzzles_of_version_1(arguments, checksum):
    """Raise VERSION and change the checksums together: caches and kept results depend on these puzzles."""
    assert generate.VERSION == 1 and zlib.crc32(generate.generate(**arguments).table.view(np.uint8)) == checksum


@pytest.mark.parametrize(
    "arguments",
    [
        {"clues": 12},
        {"clues": (40, 30)},
        {"clues": 82},
        {"buckets": [7]},
        {"buckets": []},
        {"buckets": {0: 3}},
        {"count": 0},
        {"count": -5},
        {"seed": -1},
        {"workers": -1},
    ],
)
def test_bad_requests_are_refused(arguments):
    with pytest.raises(ValueError, match=r"expected .* found"):
        generate.generate(**({"count": 10} | arguments))


def test_cache_notices_damage_and_other_versions(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SUDOKU_DATA", str(tmp_path))
    first = generate.cached(50, 40, 1).table.tobytes()
    (path,) = tmp_path.glob("*.npy")
    made = path.stat().st_mtime_ns
    assert generate.cached(50, 40, 1).table.tobytes() == first and path.stat().st_mtime_ns == made
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert generate.cached(50, 40, 1).table.tobytes() == first
    assert "checksum" in capsys.readouterr().err
    monkeypatch.setattr(generate, "VERSION", generate.VERSION + 1)
    assert generate.cached(50, 40, 1).table.tobytes() == first
    assert "another version" in capsys.readouterr().err
    assert json.loads(path.with_suffix(".json").read_text())["made_by"]["generator"] == generate.VERSION
    assert not list(tmp_path.glob("*.tmp"))


def test_a_range_of_clues_is_made_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SUDOKU_DATA", str(tmp_path))
    first = generate.cached(20, (50, 52), 1)
    monkeypatch.setattr(generate, "generate", None)
    assert np.array_equal(generate.cached(20, (50, 52), 1).table, first.table)
    assert capsys.readouterr().err == ""


def test_script(tmp_path, capsys):
    path = tmp_path / "x.npy"
    generate.main(["--count", "30", "--clues", "30-32", "--seed", "1", "--output", str(path)])
    assert len(store.load(path)) == 30 and "30 puzzles" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, code, expected",
    [
        (["--count", "0"], 2, "count: expected 1 or more, found 0"),
        (["--count", "-5"], 2, "count: expected 1 or more, found -5"),
        (["--clues", "90"], 2, "clues: expected 20 to 81"),
        (["--clues", "few"], 2, "--clues few: expected a number, a range such as 30-40, or minimal"),
        (["--clues", "30-40-50"], 2, "--clues 30-40-50: expected a number"),
        (["--buckets", "9"], 2, "buckets: expected indices 0 to 4"),
        (["--buckets", ""], 2, "--buckets : expected bucket numbers from 0 to 4"),
        (["--buckets", "1,,2"], 2, "--buckets 1,,2: expected bucket numbers from 0 to 4"),
        (["--seed", "-1"], 2, "seed: expected 0 or more, found -1"),
        (["--workers", "-1"], 2, "workers: expected 1 or more, found -1"),
        (["--output", "folder.npy"], 1, "--output folder.npy: cannot be written .it is not the path of an .npy file"),
        (["--output", "x.json"], 1, "--output x.json: cannot be written .it is not the path of an .npy file"),
        (["--output", "file/x.npy"], 1, "--output file/x.npy: cannot be written"),
    ],
)
def test_bad_flags_end_with_one_line_before_any_work(clean, capsys, monkeypatch, flags, code, expected):
    (clean / "folder.npy").mkdir()
    (clean / "file").write_text("")
    monkeypatch.setattr(generate, "_make", None)
    with pytest.raises(SystemExit) as caught:
        generate.main([*([] if "--output" in flags else ["--output", "x.npy"]), *flags])
    message = capsys.readouterr().err if code == 2 else caught.value.code
    assert re.search(expected, message) and (code == 1 or caught.value.code == 2)
    assert not list(clean.glob("x*"))


GENERATE = """
import os
import signal
import sys
from data import generate

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in background jobs
climb, compiles = generate._climbed_chunk, sys.argv[2] == "compiling"


def announce(*arguments):
    if compiles or len(arguments[-1]):  # the call for no puzzles only compiles
        os.write(1, b"started\\n")  # by several threads at once
    climb(*arguments)


generate._climbed_chunk = announce
generate.main(["--count", "2000", "--buckets", "4", "--workers", "2", "--output", sys.argv[1]])
"""


def interrupt(tmp_path, number, phase="generating"):
    """Sends a signal to the generator; its exit status and errors, after it ended soon and left no file."""
    command = [sys.executable, "-c", GENERATE, tmp_path / "hard.npy", phase]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    time.sleep(0.2)
    process.send_signal(number)
    sent = time.perf_counter()
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.perf_counter() - sent < 5  # on a busy machine: here chunks and compiling take 10 to 20 s
    assert not list(tmp_path.glob("hard*"))
    return process.returncode, error


def test_ctrl_c_ends_generation_at_once(tmp_path):
    assert interrupt(tmp_path, signal.SIGINT) == (130, "interrupted; nothing was written\n")


def test_sigterm_ends_generation_at_once(tmp_path):
    assert interrupt(tmp_path, signal.SIGTERM) == (-signal.SIGTERM, "")


def test_ctrl_c_ends_compiling_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    assert interrupt(tmp_path, signal.SIGINT, "compiling") == (-signal.SIGINT, "")


@pytest.mark.parametrize("kernel, arguments", [("_climbed_chunk", {"buckets": [3]}), ("_dug_chunk", {"clues": 20})])
def test_an_exception_from_a_signal_handler_ends_generation(monkeypatch, kernel, arguments):
    """A caller's handler for SIGTERM may raise: the chunks that are running must end then too."""
    run, started = getattr(generate, kernel), []

    def stop(*_):
        raise SystemExit(143)

    def announce(*arguments):
        if len(arguments[-1]) and not started:
            started.append(time.perf_counter())
            signal.setitimer(signal.ITIMER_REAL, 1)  # by then the pool of the hard puzzles is complete
        run(*arguments)

    monkeypatch.setattr(generate, kernel, announce)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(SystemExit, match="143"):
            generate.generate(500, **arguments, seed=1)
        assert time.perf_counter() - started[0] < 3
    finally:
        signal.signal(signal.SIGALRM, before)


def test_no_progress_on_a_pipe(capsys):
    generate.generate(20, clues=60, seed=1)
    assert capsys.readouterr() == ("", "")
