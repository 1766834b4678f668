"""What exp_guess.py is named after: it learns on the boards of a search what a supposition there will cost."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import common
import exp_guess as experiment
from common import candidates, solver
from data import generate, sources, store

PART = slice(0, 8)
FAMOUS = (
    ".......39.....1..5..3.5.8....8.9...6.7...2...1..4.......9.8..5..2....6..4..7.....",
    "1.......2.9.4...5...6...7...5.9.3.......7.......85..4.7.....6...3...9.8...2.....1",
    "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..",
)


@pytest.fixture(scope="module")
def hard():
    """Eight forms of famous puzzles, in which the rules alone leave much open, and their solutions."""
    puzzle = np.array([[int(digit) for digit in text.replace(".", "0")] for text in FAMOUS], np.uint8)
    puzzle = np.resize(puzzle, (8, 81))
    return sources.symmetries(puzzle, solver.solve(puzzle)[0], np.random.default_rng(0))


def small(**changes):
    torch.manual_seed(0)
    config = common.with_preset(experiment.Config(), "smoke")
    for name, value in ({"width": 16, "mlp": 24, "batch": 8, "steps": 90, "hard_share": 0.5} | changes).items():
        setattr(config, name, value)
    return config, experiment.Model(config)


def searching(config, puzzles, wrong=()):
    """Slots with these puzzles; those in `wrong` have lost a right candidate. They suppose nothing more."""
    slots = experiment.Slots(config)
    slots.solution[:] = torch.from_numpy(puzzles[1])
    slots.alive[:] = torch.from_numpy(solver.settled(puzzles[0])[0])
    slots.free[:], slots.first[:] = False, 1_000
    for n in wrong:
        open_ = int(np.flatnonzero(slots.alive[n].view(81, 9).sum(1) > 2)[0])
        slots.alive[n, open_ * 9 + int(puzzles[1][n, open_]) - 1] = False
    return slots


def gradients(config, model, slots, step=0):
    blanks = int((slots.alive.view(-1, 81, 9).sum(2) > 1).sum())
    return experiment.shard_gradients(model, config, slots, blanks, step, PART)


def judged(model, slots):
    """The board of the slots, the states after one iteration, and what the model says of them."""
    board = candidates.Board.of(slots.alive.numpy())
    with torch.no_grad():
        x = model.think_on(board, model.first_state().expand(len(board.place[0]), -1), 1)[0][-1]
        return board, x, *model.judge(board, x)


def test_it_learns_what_a_supposition_costs(hard):
    """Least where exp(effort) is the mean of what the exact solver needs, in the cells with fewest candidates."""
    config, model = small(depth=1, between=(1,), verdict=0.0, asked=1_000, effort=0.0)
    slots = searching(config, hard)
    losses = [gradients(config, model, slots)[0]]
    slots.clock[:], config.effort = 0, 2.0
    losses.append(gradients(config, model, slots)[0])
    board, _, effort, _ = judged(model, slots)
    expected, costs = [], []
    for puzzle, candidate, said in zip(*board.place, effort.tolist()):
        alive = slots.alive[puzzle].numpy().copy()
        if (size := alive.reshape(81, 9).sum(1)[candidate // 9]) == 2 or size == np.unique(alive.reshape(81, 9).sum(1))[
            1
        ]:
            candidates.keep_only(alive, candidate)
            board_ = np.where(alive.reshape(81, 9).sum(1) == 1, alive.reshape(81, 9).argmax(1) + 1, 0)
            cost = 1 + int(solver.solve(board_[None], limit=1)[2][0])  # the same search, from the digits alone
            expected.append(cost * np.exp(-said) + said - 1 - np.log(cost))
            costs.append(cost)
    assert np.ptp(costs) > 2
    assert float(losses[1] - losses[0]) == pytest.approx(2 * np.mean(expected), rel=1e-4)


def test_it_learns_whether_something_supposed_is_false(hard):
    config, model = small(depth=1, between=(1,), effort=0.0, verdict=0.0)
    slots = searching(config, hard, wrong=range(3))
    losses = [gradients(config, model, slots)[0]]
    slots.clock[:], config.verdict = 0, 2.0
    losses.append(gradients(config, model, slots)[0])
    *_, verdict = judged(model, slots)
    chance = verdict.sigmoid()
    expected = -torch.cat([(1 - chance[:3]).log(), chance[3:].log()]).mean()
    assert float(losses[1] - losses[0]) == pytest.approx(2 * float(expected), rel=1e-4)


def test_a_false_supposition_teaches_no_digits(hard):
    config, model = small(depth=2, effort=0.0, verdict=0.0)
    for wrong in (range(8), range(7)):
        loss, found, _, target = gradients(config, model, searching(config, hard, wrong))
        assert (loss == 0) == all((g == 0).all() for g in found) == (len(wrong) == 8)
        assert (target[:7] == 0).all() and (target[7] > 0).any() == (len(wrong) == 7), "nor does it count in a report"


def test_it_supposes_and_applies_the_rules(hard):
    """The boards stay consistent with the solution where every supposition is true, and no longer where one is not."""
    for truths, kept, depth in ((-1, True, 9), (0, False, 7)):
        config, model = small(depth=depth, between=(1,))
        slots = searching(config, hard)
        slots.first[:], slots.truths[:], before = 2, truths, slots.alive.clone()
        *_, target = gradients(config, model, slots)
        right = torch.from_numpy(hard[1].repeat(9, 1) - 1 == candidates.DIGIT)
        going = ~slots.free
        assert (slots.alive[going].sum(1) < before[going].sum(1)).all(), "something follows from each supposition"
        assert all(solver.settle(alive.copy()) for alive in slots.alive.numpy()[going])
        assert ((slots.alive | ~right).all(1)[going] == kept).all()
        assert not slots.alive[slots.free].any() and (target[slots.free] == 0).all()
        assert going.any() and slots.free.any() and (slots.clock[going] == depth).all()


def test_the_state_goes_on_with_the_candidates_left(hard):
    """After a supposition, and in the next step."""
    config, model = small(depth=2, between=(1,))
    slots = searching(config, hard)
    slots.first[:], slots.truths[:] = 1, -1
    before, x, *_ = judged(model, slots)
    gradients(config, model, slots)
    board = candidates.Board.of(slots.alive.numpy())
    at = np.flatnonzero(np.isin(before.flat(), board.flat()))
    assert len(at) == len(board.place[0]) < len(x)
    with torch.no_grad():
        x = model.think_on(board, x[torch.from_numpy(at)], 1)[0][-1]
    assert torch.allclose(slots.memory[board.place], x, atol=1e-5)
    slots.first[:] = 1_000
    gradients(config, model, slots)
    with torch.no_grad():
        x = model.think_on(board, x, config.depth)[0][-1]
    assert torch.allclose(slots.memory[board.place], x, atol=1e-5)


def test_what_is_supposed():
    alive = np.zeros(729, bool)
    alive[[0, 1, 9, 10, 18, 19, 20]] = True  # two cells with two candidates, one with three
    right, cost = np.zeros(729, bool), np.full(729, 5.0)
    right[[1, 9, 20]], cost[[0, 9, 20]] = True, (1, 2, 0.1)
    config, _ = small(search_noise=0.0, denied=0.0)
    random = np.random.default_rng(0)

    def after(right, truths):
        left = alive.copy()
        experiment.suppose(config, random, left, right, cost, truths)
        return set(np.flatnonzero(alive & ~left))

    assert after(None, 3) == {1}, "0 is the cheapest where two are left"
    assert after(right, 3) == {10}, "and 9 of the true ones"
    assert after(right, 0) == {1}, "now something false"
    config.denied = 1.0
    assert after(right, 3) == {0}, "it is true that 0 is false"
    assert after(right, 0) == {9}, "it is false that 9 is false"
    config.denied, config.search_noise = 0.0, 3.0
    assert len({tuple(after(right, 3)) for _ in range(40)}) == 2, "not always the cheapest"


def test_new_puzzles_come_settled_and_get_harder(hard):
    config, _ = small(batch=400)
    easy = generate.generate(40, clues="minimal", seed=9, progress=False).rows(np.arange(40))
    puzzle, solution = (np.concatenate(parts) for parts in zip(easy, hard))
    data, share = SimpleNamespace(train=store.from_arrays(puzzle, solution, np.repeat([0.0, 1.0], (40, 8)))), []
    for step in (0, 15, 80):
        slots = experiment.Slots(config)
        slots.free[:4], slots.clock[:] = False, 7
        slots.refill(config, data, step)
        assert (slots.clock[:4] == 7).all() and (slots.clock[4:] == 0).all() and not slots.alive[:4].any()
        which = (slots.solution[4:].numpy()[:, None] == solution).all(2).argmax(1)
        assert np.array_equal(slots.alive[4:].numpy(), solver.settled(puzzle)[0][which])
        share.append((which >= 40).mean())
        assert 0.3 < (slots.truths[4:] >= 0).float().mean() < 0.7 and slots.first[4:].min() == 4
        assert slots.first[4:].float().mean() == pytest.approx(3 + config.first, rel=0.2)
    assert share == pytest.approx([0, 0.25, 0.5], abs=0.08)


def test_only_what_the_rules_leave_open_is_searched():
    puzzles = generate.generate(60, clues="minimal", seed=4, progress=False)
    rows = experiment.left_by_rules(puzzles)
    guesses = solver.solve(puzzles.rows(slice(None))[0])[2]
    assert np.array_equal(rows, np.flatnonzero(guesses > 0)) and 0 < len(rows) < 60


def test_a_test_in_shards_is_the_plain_loop(hard):
    """The rules come first; solved puzzles leave, the others are regrouped, and nothing changes for them."""
    _, model = small()
    puzzle, solution = (torch.from_numpy(part.astype(np.int64)) for part in hard)
    puzzle = torch.cat([puzzle, puzzle])
    easy = (torch.arange(16)[:, None] % 4 == 0) & (torch.arange(81) > 10)
    puzzle = torch.where(easy, torch.cat([solution, solution]), puzzle)
    with torch.no_grad():
        quick = list(model(puzzle, 20))
        assert all((logits.argmax(-1)[::4] + 1 == torch.cat([solution, solution])[::4]).all() for logits in quick)
        for n in (1, 15):
            state = model.start(puzzle[n : n + 1])
            for got in quick:
                logits, state = model.iterate(state)
                assert torch.allclose(got[n], logits[0], atol=1e-4)


def test_without_hard_puzzles_there_is_an_error(clean):
    with pytest.raises(SystemExit, match="--hard"):
        experiment.main(["--preset", "smoke", "--hard", ""])
