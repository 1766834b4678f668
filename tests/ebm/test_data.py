"""The one split: nothing of a solution on both sides, the same for every source and size; the batches of a run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data import kaggle_9m, store, sudoku_extreme
from ebm import data
from ebm.train import configured
from tests.data.puzzles import GRID, make, write_extreme


def config(**changes):
    return SimpleNamespace(**{"data": "generated:40-70", "puzzles": 300} | changes)


def canonical(puzzles):
    """Each solution as text, its digits renamed in the order of their first appearance."""
    solution = puzzles.rows(np.arange(len(puzzles)))[1]
    texts = ("".join(map(str, board)) for board in solution.tolist())
    return [text.translate(str.maketrans("".join(dict.fromkeys(text)), "abcdefghi")) for text in texts]


def renamed(puzzles, random):
    """The same puzzles with their digits renamed by chance."""
    names = np.concatenate([[0], random.permutation(9) + 1])
    return store.from_arrays(*(names[board] for board in puzzles.rows(np.arange(len(puzzles)))), puzzles.rating)


def written(path, count=400):
    """A CSV file where each of `count` solutions has four puzzles, two of them with other digits."""
    few, many = make(count, seed=1, clues=30), make(count, seed=1, clues=60)  # the same solutions
    random = np.random.default_rng(0)
    tables = [few.table, many.table, renamed(few, random).table, renamed(many, random).table]
    return write_extreme(path, store.PuzzleSet(np.concatenate(tables)))


def test_no_solution_is_on_two_sides(clean):
    path = written(clean / "x.csv")
    found = data.load(config(data=str(path), puzzles=10_000))
    parts = [found.train, found.validation, found.test]
    assert sum(map(len, parts)) == 1600 and all(len(part) % 4 == 0 for part in parts)
    sides = [set(canonical(part)) for part in parts]
    assert all(sides) and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_sides_are_the_same_for_every_source_and_size(clean):
    """A puzzle that one run tests on is not trained on by another, which takes fewer rows or has them from a file."""
    path = written(clean / "x.csv")
    whole = data.load(config(data=str(path), puzzles=10_000))
    for count in (400, 1000):
        part = data.load(config(data=str(path), puzzles=count))
        assert sum(map(len, (part.train, part.validation, part.test))) == count
        for name in ("train", "validation", "test"):
            assert set(canonical(getattr(part, name))) <= set(canonical(getattr(whole, name)))
    generated = data.load(config())
    everything = store.PuzzleSet(
        np.concatenate([generated.train.table, generated.validation.table, generated.test.table])
    )
    again = data.load(config(data=str(write_extreme(clean / "y.csv", everything))))
    assert np.array_equal(again.test.rows(slice(None))[0], generated.test.rows(slice(None))[0])


def test_the_hash_stays_as_it_is():
    """Checkpoints of yesterday must not meet their training puzzles in a test of tomorrow."""
    grid = np.array([int(digit) for digit in GRID]).reshape(9, 9)
    both = np.stack([grid.ravel(), grid.T.ravel()])
    assert data.places(store.from_arrays(both, both, 0)).tolist() == pytest.approx([0.6914990498524, 0.9505002211913])


def test_shares():
    place = data.places(make(40_000, seed=2))
    assert np.histogram(place, 10, (0, 1))[0] / len(place) == pytest.approx(0.1, abs=0.006)
    assert data.BOUNDS == (0.90, 0.95)
    generated = data.load(config(puzzles=3000))
    assert len(generated.train) / 3000 == pytest.approx(0.90, abs=0.02)
    assert len(generated.validation) / 3000 == pytest.approx(0.05, abs=0.015)


def clues(puzzles):
    return (puzzles.rows(np.arange(len(puzzles)))[0] > 0).sum(1)


def test_generated_clues():
    assert set(clues(data.load(config()).train)) == set(range(40, 71))
    assert set(clues(data.load(config(data="generated:45")).train)) == {45}
    assert clues(data.load(config(data="generated:minimal")).train).mean() < 26
    some = clues(data.load(config(data="generated")).train)
    assert some.min() == 28 and some.max() == 50


def test_sources_on_demand(monkeypatch):
    nine, extreme = make(500, seed=3), {True: make(400, seed=4), False: make(300, seed=5)}
    monkeypatch.setattr(kaggle_9m, "load", lambda: nine)
    monkeypatch.setattr(sudoku_extreme, "load", lambda train: extreme[train])
    found = data.load(config(data="kaggle", puzzles=200))
    head = canonical(nine.subset(np.arange(200)))
    assert sorted(canonical(found.train) + canonical(found.validation) + canonical(found.test)) == sorted(head)
    found = data.load(config(data="extreme"))
    own, test = canonical(extreme[True]), canonical(extreme[False])
    assert set(canonical(found.train)) <= set(own[:300]) and set(canonical(found.validation)) <= set(own[:300])
    assert set(canonical(found.test)) <= set(test) and 0 < len(found.test) < 40


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": "nonsense"}, r"--data nonsense: expected generated, .* kaggle, extreme or the path"),
        ({"data": "generated:x"}, r"--data generated:x: .* generated:31-80"),
        ({"data": "generated:70-40"}, r"--data generated:70-40: expected numbers of clues from 20"),
        ({"data": "generated:19"}, r"--data generated:19: expected numbers of clues from 20"),
        ({"data": "generated:81"}, r"--data generated:81: .* to 80"),
        ({"data": "missing.csv"}, r"missing\.csv: there is no such file"),
        ({"puzzles": 2}, r"none of 2 puzzles falls to the .* side; give a larger --puzzles"),
    ],
)
def test_wrong_sources_are_explained(changes, message, clean):
    with pytest.raises(SystemExit, match=message):
        data.load(config(**changes))


# ---------------------------------------------------------------- batches


def one(rank=0, world=1):
    return SimpleNamespace(rank=rank, world=world, device=torch.device("cpu"))


SMOKE = configured(4, "smoke")


@pytest.fixture(scope="module")
def puzzles():
    return data.load(SMOKE)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))


def test_batches_are_a_function_of_seed_and_step(puzzles):
    batch = data.batch_at(SMOKE, puzzles, one(), 5)
    fresh = data.Data(puzzles.train, puzzles.validation, puzzles.test)
    assert same(batch, data.batch_at(SMOKE, fresh, one(), 5))
    for config, step in ((SMOKE, 6), (configured(4, "smoke"), 5)):
        config.seed = int(step == 5)
        other = data.batch_at(config, puzzles, one(), step)
        assert not any(torch.equal(x, y) for x, y in zip(vars(batch).values(), vars(other).values()))
        config.seed = 0


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batch(world, puzzles):
    whole = data.batch_at(SMOKE, puzzles, one(), 3)
    shares = [data.batch_at(SMOKE, puzzles, one(rank, world), 3) for rank in range(world)]
    assert all(torch.equal(torch.cat(parts), getattr(whole, name)) for name, parts in of_all(shares))


def of_all(batches):
    return [(name, [getattr(batch, name) for batch in batches]) for name in vars(batches[0])]


def test_an_epoch_takes_every_training_puzzle_once(puzzles):
    count = data.steps_per_epoch(SMOKE, puzzles)
    assert count == -(-len(puzzles.train) // 16) and len(puzzles.train) % 16  # so the last batch is filled up
    epochs = []
    for epoch in range(2):
        batches = [data.batch_at(SMOKE, puzzles, one(), epoch * count + i) for i in range(count)]
        rows = torch.cat([torch.cat([batch.puzzle, batch.solution], 1) for batch in batches])
        assert all(len(batch.puzzle) == 16 for batch in batches)
        assert len(torch.unique(rows[: len(puzzles.train)], dim=0)) == len(puzzles.train)
        epochs.append(rows)
    assert not torch.equal(*epochs) and torch.equal(*(torch.unique(rows, dim=0) for rows in epochs))


def test_what_a_batch_holds(puzzles):
    batch = data.batch_at(SMOKE, puzzles, one(), 0)
    clue = batch.puzzle > 0
    assert torch.equal(batch.puzzle[clue], batch.solution[clue]) and not clue.all()
    assert set(batch.solution.unique().tolist()) == set(range(1, 10))
    assert batch.noise.shape == (16, SMOKE.latent) and batch.noise.dtype == torch.float32
    assert batch.noise.std().item() == pytest.approx(SMOKE.z_noise, rel=0.2)
    assert len(batch.seeds.unique()) == 16


def test_the_run_notes_its_puzzles():
    run = one()
    data.load(SMOKE, run)
    first = run.data
    data.load(configured(1, "smoke"), run)
    assert run.data == first
    other = configured(1, "smoke")
    other.puzzles = 299
    data.load(other, run)
    assert run.data != first
