"""The search with a network: the rules decide, so that even a network that is always wrong solves every puzzle."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import exp_guess
import guess
import solve
from data import generate, solver
from plumbing import disk

HARD = (  # puzzles that are known for being hard
    "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..",
    "1....7.9..3..2...8..96..5....53..9...1..8...26....4...3......1..4......7..7...3..",
    "..............3.85..1.2.......5.7.....4...1...9.......5......73..2.1........4...9",
)


def cells(text):
    return np.array([int(c) for c in text.replace(".", "0")], np.uint8)


def load(path):
    saved = disk.load_checkpoint(path)
    model = exp_guess.Model(exp_guess.Config(**saved["config"]))
    model.load_state_dict(saved["model"])
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return load(solve.ROOT / "weights/guess.pt")


@pytest.fixture(scope="module")
def workers():
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def puzzles():
    minimal, solution = generate.generate(20, clues="minimal", seed=5, progress=False).rows(np.arange(20))
    hard = np.stack([cells(text) for text in HARD])
    return np.concatenate([minimal, hard]), np.concatenate([solution, solver.solve(hard, limit=2)[0]])


def test_every_puzzle_is_solved(model, workers, puzzles):
    found = guess.solve(model, puzzles[0], workers)
    assert all((search.board == solution).all() for search, solution in zip(found, puzzles[1]))
    for search in found:
        assert search.iterations == (guess.FIRST + guess.MORE * (search.guesses - 1) if search.guesses else 0)
    assert any(search.guesses > 2 for search in found)


def test_what_the_network_says_is_followed(model, workers, puzzles):
    """Told the solution, no supposition is taken back; told the opposite, the rules refute it."""

    def with_oracle(truth):
        def choose(effort, share, chance, alive):
            right = np.zeros((81, 9), bool)
            right[np.arange(81), solution - 1] = True
            open_ = alive & (alive.reshape(81, 9).sum(1) > 1).repeat(9)
            return int(np.flatnonzero(open_ & (right.ravel() == truth))[0])

        return guess.solve(model, puzzle[None], workers, choose)[0]

    for puzzle, solution in zip(puzzles[0][20:22], puzzles[1][20:22]):  # noqa: B007 (used above)
        helped, misled = with_oracle(True), with_oracle(False)
        assert (helped.board == solution).all() and (misled.board == solution).all()
        assert helped.guesses == len(helped.stack) < misled.guesses


def test_the_network_shortens_the_search(model, workers):
    """What it says of the effort most of all."""
    minimal = generate.generate(400, clues="minimal", seed=5, progress=False)
    hard = minimal.rows(np.argsort(-minimal.rating, kind="stable")[:40])[0]
    guesses = {name: sum(s.guesses for s in guess.solve(model, hard, workers, way)) for name, way in guess.WAYS.items()}
    assert 1.3 * guesses["network"] < min(guesses["effort not asked"], guesses["network not asked"])


def test_what_should_cost_least_is_supposed():
    """In cells 0 and 40 with two candidates, cell 80 with three, and cell 50 with one, which is nothing to suppose."""
    alive, share = np.zeros((81, 9), bool), np.zeros((81, 9))
    alive[[0, 40], :2], alive[80, :3], alive[50, 0] = True, True, True
    share[[0, 40], :2], share[80, :3] = 0.5, 1 / 3
    alive, share = alive.ravel(), share.ravel()
    effort = np.where(alive, 8.0, 0.0)
    effort[450] = 0
    effort[[0, 1, 360, 361]] = 4.4, 4.4, 6, 2
    assert guess.cheapest(effort, share, 1.0, alive) == 361, "2 and, if it is false, 6"
    share[[0, 1]] = 0.01, 0.99
    assert guess.cheapest(effort, share, 1.0, alive) == 1, "4.4, and hardly ever twice"
    assert guess.cheapest(effort, share, 0.1, alive) == 361, "where something is false, both must be refuted"
    assert guess.without_verdict(effort, share, 0.1, alive) == 1
    share[[0, 1]] = 0.1, 0.9
    assert guess.cheapest(effort, share, 1.0, alive) == 361, "but the likely is less often true than that"
    assert guess.believing(effort, share, 1.0, alive) == 1
    effort[[720, 721, 722]] = 0.5, 9, 0.5
    assert guess.cheapest(effort, share, 1.0, alive) == 361, "of the three one is dear"
    effort[721] = 0.5
    assert guess.cheapest(effort, share, 1.0, alive) in (720, 721, 722), "now they cost least"
    assert guess.without_effort(effort, share, 1.0, alive) == 1


def test_a_peer_in_a_cell_with_few_candidates_counts_more():
    """The candidates of cell 0 have a peer in another cell of two, those of cell 40 have three, in cells of five."""
    alive = np.zeros((81, 9), bool)
    alive[[0, 1, 40], :2], alive[[41, 42, 39], :5] = True, True
    assert guess.without_network(None, None, None, alive.ravel()) // 9 in (0, 1)


def test_an_impossible_puzzle_is_called_so(model, workers):
    puzzle = cells(HARD[0])
    wrong = int(solver.solve(puzzle[None], limit=2)[0][0, 1]) % 9 + 1
    broken = np.where(np.arange(81) == 1, wrong, puzzle).astype(np.uint8)
    assert solver.solve(broken[None], limit=2)[1][0] == 0
    assert guess.solve(model, broken[None], workers)[0].impossible


def test_an_untrained_network_searches_too(workers, puzzles):
    torch.manual_seed(0)
    model = exp_guess.Model(exp_guess.Config(width=8, mlp=8, sums=2))
    found = guess.solve(model, puzzles[0][:3], workers)
    assert all((search.board == solution).all() for search, solution in zip(found, puzzles[1]))


def test_the_command(capsys):
    assert solve.main([*HARD, "--guess", "--quiet"]) == 0
    out = capsys.readouterr().out.split()
    assert [list(map(int, line)) for line in out] == solver.solve(np.stack([cells(t) for t in HARD]), limit=2)[
        0
    ].tolist()
    assert solve.main([HARD[0], "--guess"]) == 0
    assert " with " in (said := capsys.readouterr().out) and "guesses" in said
    assert solve.main([HARD[0], "--guess", "--watch"]) == 2
    assert solve.main(["1" * 9 + "." * 72, "--guess"]) == 2
    capsys.readouterr()
    assert solve.main([HARD[0], "--guess", "--weights", str(solve.ROOT / "weights/suppose.pt")]) == 2
    assert "exp_guess" in capsys.readouterr().err


def test_the_measurement(clean, capsys, puzzles):
    lines = [",".join(["".join(map(str, row)) for row in pair] + ["1"]) for pair in zip(*puzzles)]
    (clean / "p.csv").write_text("\n".join(["question,answer,rating", *lines]))
    guess.main(["p.csv", "--output", "out.json"])
    assert "network: 23 of 23" in (said := capsys.readouterr().out) and "exact solver: 23 of 23" in said
    found = disk.read_json(clean / "out.json")
    assert found["ways"]["network"]["solved"] == found["puzzles"] == 23
    assert found["ways"]["network"]["iterations"]["most"] > guess.FIRST
    with pytest.raises(SystemExit, match="nothing"):
        guess.main(["nothing.csv"])
    with pytest.raises(SystemExit, match="exp_guess"):
        guess.main(["p.csv", "--weights", str(solve.ROOT / "weights/suppose.pt")])
    with pytest.raises(SystemExit, match="network not asked"):
        guess.main(["p.csv", "--ways", "oracle"])
