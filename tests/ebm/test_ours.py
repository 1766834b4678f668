"""Our energy: what it is, that a step is its gradient, and what training asks of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import common
from data import generate, sources
from ebm import data, ours
from plumbing.candidates import KINDS


@pytest.fixture(scope="module")
def puzzles():
    return generate.generate(4, clues=45, seed=5, progress=False).rows(np.arange(4))


@pytest.fixture(scope="module")
def puzzle(puzzles):
    return torch.from_numpy(puzzles[0].astype(np.int64))


def make(**changes):
    config = common.with_preset(ours.Config(), "smoke")
    config.batch, config.rounds, config.depth = 4, 2, 2
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return config, ours.Model(config).double()


def moved(model, puzzle, seed=1):
    """A shard whose states are not alike any more."""
    shard, board, s = model.start_shard(puzzle)
    return shard, board, s + 0.3 * torch.randn(s.shape, generator=torch.Generator().manual_seed(seed)).double()


def test_energy_against_the_formula(puzzle):
    """Written once more, group by group."""
    _, model = make()
    with torch.no_grad():
        model.level.normal_()
    _, board, s = moved(model, puzzle)
    h = s
    for _ in range(2):
        pooled = [torch.full((board.groups, model.message.shape[1] // KINDS), -46.0).double() for _ in range(KINDS)]
        told = (h @ model.message).view(len(h), KINDS, -1)
        for kind in range(KINDS):
            for g in board.index[kind].unique():
                pooled[kind][g] = told[board.index[kind] == g, kind].logsumexp(0)
        heard = torch.cat([pooled[kind][board.index[kind]] for kind in range(KINDS)], 1) @ model.heard
        hidden = h @ model.state + board.sizes.double() @ model.seen + model.bias + heard
        h = h + F.silu(hidden) @ model.out
        h = h / (h.square().mean(1, keepdim=True) + 1e-4).sqrt()
    counts = torch.stack([(index == index[:, None]).sum(1) for index in board.index], 1).double()  # members
    level = model.level[0] + counts / 9 @ model.level[1 : KINDS + 1] + (1 / counts) @ model.level[KINDS + 1 :]
    expected = 0.5 * (s - h).square().sum(1) + h @ model.reached + s @ model.tilt + 10 * level
    assert torch.allclose(model.energy(s, board), expected, atol=1e-9)


def test_what_the_clues_add_does_not_move_a_state(puzzle):
    _, model = make()
    state = [moved(model, puzzle)]
    energies, after = model.energies(state), model.iterate(state)[1][0][2]
    with torch.no_grad():
        model.level.normal_()
    assert not torch.allclose(model.energies(state), energies)
    assert torch.equal(model.iterate(state)[1][0][2], after)


def test_a_step_is_minus_the_gradient_and_nothing_else(puzzle):
    _, model = make()
    state = [moved(model, puzzle)]
    _, [(shard, board, after)] = model.iterate(state)
    s = state[0][2]
    direction = torch.randn(s.shape, generator=torch.Generator().manual_seed(2)).double()
    up, down = (model.energies([(shard, board, s + sign * 1e-5 * direction)]).sum() for sign in (1, -1))
    assert ((after - s) * direction).sum().item() == pytest.approx(
        (-model.descent * (up - down) / 2e-5).item(), rel=1e-5
    )
    again = model.iterate(state)[1][0][2]
    assert torch.equal(after, again), "no noise, no memory"


def test_energies_are_by_puzzle(puzzle):
    _, model = make()
    together = model.energies([moved(model, puzzle)])
    _, board, s = moved(model, puzzle)
    for n in range(len(puzzle)):
        _, alone, _ = model.start_shard(puzzle[n : n + 1])
        mine = s[torch.from_numpy(board.place[0] == n)]
        assert model.energies([(puzzle[n : n + 1], alone, mine)]).item() == pytest.approx(together[n].item())


def test_small_steps_lower_the_energy(puzzle):
    _, model = make(test_descent=0.01)
    state = model.start(puzzle)
    energies = [model.energies(state)]
    for _ in range(10):
        state = model.iterate(state)[1]
        energies.append(model.energies(state))
    assert (torch.stack(energies).diff(dim=0) < 0).all()


def test_the_start_knows_the_clues_and_the_number_of_the_descent_only(puzzle):
    _, model = make()
    for _, board, s in model.start(puzzle):
        assert len(s) == len(board.place[0]) and (s - model.first).std().item() == pytest.approx(1, abs=0.02)
        assert (s - model.first).mean().item() == pytest.approx(0, abs=0.02)
    [(_, board, s)], [(_, _, again)], [(_, _, other)] = (model.start(puzzle, number) for number in (1, 1, 2))
    assert torch.equal(s, again) and not torch.isclose(s, other).any()
    [(_, _, mine)] = model.start(puzzle[2:3], 1)
    assert torch.equal(mine, s[torch.from_numpy(board.place[0] == 2)]), "other puzzles do not matter"
    assert not torch.isclose(s[:50], s[torch.from_numpy(board.place[0] == 1)][:50]).any()
    model.spread = 0.0
    assert (model.start(puzzle)[0][2] == model.first).all()


def test_the_answer_is_that_of_the_lowest_descent(puzzle):
    """As long as the descent under way is not lower than the lowest that ended."""
    _, model = make(patience=3)
    found = [logits for logits, _ in model.answers(puzzle, 9)]
    assert all(torch.equal(logits, other) for logits, other in zip(found, model(puzzle, 9)))
    lowest, best, kept = torch.full((4,), torch.inf), None, 0
    for number in range(3):
        state = model.start(puzzle, number)
        for step in range(3):
            energy = model.energies(state)
            logits, state = model.iterate(state)
            lower = (energy < lowest)[:, None, None]
            expected = torch.where(lower, logits, best) if best is not None else logits
            assert torch.equal(found[3 * number + step], expected)
        kept += (~lower).sum().item()
        lowest, best = torch.minimum(lowest, energy), expected
    assert 0 < kept < 8, "some later descents end lower, others do not"


def test_renamed_digits_and_swapped_lines_give_the_same_answer(puzzle):
    _, model = make(spread=0.0)
    digits = torch.tensor([0, 4, 7, 1, 9, 2, 8, 3, 6, 5])
    lines = torch.tensor([4, 3, 5, 0, 2, 1, 8, 7, 6])
    other = digits[puzzle.view(-1, 9, 9)[:, lines]].view(-1, 81)
    plain, renamed = (list(model(p, 3))[-1] for p in (puzzle, other))
    back = renamed.view(-1, 9, 9, 9)[:, lines.argsort()].view(-1, 81, 9)[..., digits[1:] - 1]
    assert torch.allclose(plain[puzzle == 0], back[puzzle == 0], atol=1e-5)


# ---------------------------------------------------------------- training


def filled(config, puzzles, spread=0.3):
    slots = ours.Slots(config, config.width)
    slots.puzzle[:], slots.solution[:] = (torch.from_numpy(part) for part in puzzles)
    slots.memory = spread * torch.randn(slots.memory.shape, generator=torch.Generator().manual_seed(3)).double()
    slots.free[:] = False
    return slots


def loss_of(config, model, puzzles):
    return ours.shard_gradients(model, config, filled(config, puzzles), slice(0, 4), 100)


def test_gradients_of_a_training_step_against_finite_differences(puzzles):
    """Through the descent, so through second derivatives of the energy."""
    config, model = make(judge=1.0, high=1e6)  # the judge is at work on every board that is not solved
    _, gradients, _ = loss_of(config, model, puzzles)
    for parameter, gradient in zip(model.parameters(), gradients):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)).double()
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-6 * direction
            sides.append(loss_of(config, model, puzzles)[0])
            with torch.no_grad():
                parameter -= sign * 1e-6 * direction
        expected = (sides[0] - sides[1]) / 2e-6
        assert (gradient * direction).sum().item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)


def test_steps_that_raise_the_energy_cost(puzzles):
    """A step far too long raises it, a tiny one lowers it; at the last step of a training step, too."""
    for descent, depth, costs in ((5.0, 2, True), (5.0, 1, True), (1e-3, 2, False)):
        losses = []
        for rise in (0.0, 1.0):
            config, model = make(descent=descent, depth=depth, rise=rise, fall=0.05, judge=0.0)
            losses.append(loss_of(config, model, puzzles)[0])
        assert bool(losses[1] > losses[0] + 1e-6) == costs


def test_a_step_that_keeps_less_than_it_promised_costs(puzzles):
    losses = []
    for fall in (0.05, 1.5):  # a tiny step lowers E by just what its gradient promised
        config, model = make(descent=1e-3, fall=fall, judge=0.0)
        losses.append(loss_of(config, model, puzzles)[0].item())
    assert losses[1] - losses[0] == pytest.approx(0.5, abs=0.05)


def test_energy_is_asked_to_judge_boards(puzzles):
    """A solved board above 0 costs, an unsolved one below `high`; on the right side neither does."""
    puzzle, solution = puzzles
    one_left = np.where(np.cumsum(puzzle == 0, 1) == 1, puzzle, solution)  # one blank with one candidate: always solved
    for boards, level, costs in (
        ((one_left, solution), 100.0, True), ((one_left, solution), -100.0, False),
        (puzzles, 100.0, False), (puzzles, -100.0, True),
    ):  # fmt: skip
        losses = []
        for judge in (0.0, 1.0):
            config, model = make(judge=judge)
            with torch.no_grad():
                model.level[0] = level
            losses.append(loss_of(config, model, boards)[0])
        assert bool(losses[1] > losses[0] + 1e-6) == costs


def test_training_goes_on_from_the_states_that_the_descent_reached(puzzles):
    config, model = make(depth=3, descent=0.2)
    slots = filled(config, puzzles)
    slots.free[:2] = True
    _, board, s = model.start_shard(slots.puzzle)
    s = torch.where(slots.free[board.place[0]][:, None], s, slots.memory[board.place])
    for _ in range(3):
        s = s - 0.2 * model.gradient(s, board)[1]
    ours.shard_gradients(model, config, slots, slice(0, 4), 100)
    assert torch.allclose(slots.memory[board.place], s.detach())


def test_a_share_of_the_puzzles_has_extra_clues(puzzles):
    config, _ = make(easy=0.25, easy_steps=1)
    config.batch = 400
    data = SimpleNamespace(train=generate.generate(4, clues=24, seed=5, progress=False))
    for step, low, high in ((0, 350, 399), (1, 65, 130)):
        slots = ours.Slots(config, 1)
        chance = slots.refill(config, data, step)
        clues = (slots.puzzle > 0).sum(1)
        assert low <= (clues > 24).sum() <= high and clues.max() <= 60 and clues.min() == 24
        assert ((slots.puzzle == slots.solution) | (slots.puzzle == 0)).all() and len(chance) == 400
    slots.free[:] = False
    before = slots.puzzle.clone()
    slots.refill(config, data, 2)
    assert torch.equal(slots.puzzle, before), "only free slots get another"


def test_each_descent_of_training_begins_elsewhere(clean, monkeypatch):
    numbers = []

    def noted(self, puzzle, number=0, real=ours.Model.start_shard):
        numbers.append(number)
        return real(self, puzzle, number)

    monkeypatch.setattr(ours.Model, "start_shard", noted)
    monkeypatch.setattr(common.Run, "finish", lambda *_: None)
    monkeypatch.setattr(common.Run, "evaluate", lambda *_: None)
    for seed in ("0", "1"):
        ours.main(["--preset", "smoke", "--steps", "3", "--batch", "4", "--seed", seed])
    assert len(numbers) == len(set(numbers)) == 6 and min(numbers) >= 2**32, "none of these is seen in a test"


def test_solved_puzzles_stay_for_a_while(clean, monkeypatch):
    """They are replaced at depth / solved_lifetime, the others at depth / lifetime."""
    free = []
    monkeypatch.setattr(ours.Slots, "refill", lambda self, config, data, step: self.fill(data))
    monkeypatch.setattr(common.Run, "end_step", lambda run, step, model, kept: free.append(kept[-1].free.clone()))

    def fill(self, data):
        puzzle, solution = data.train.rows(np.arange(4))
        for mine, new in ((self.puzzle, puzzle), (self.solution, solution)):
            mine[:] = torch.from_numpy(new)
        self.puzzle[:2] = self.solution[:2]  # two full boards: solved
        self.puzzle[:2, 0] = 0
        return torch.tensor([0.2, 0.3, 0.2, 0.05])

    monkeypatch.setattr(ours.Slots, "fill", fill, raising=False)
    flags = ["--preset", "smoke", "--steps", "1", "--batch", "4", "--depth", "2", "--iterations", "1"]
    ours.main([*flags, "--lifetime", "20", "--solved-lifetime", "8"])
    assert free[0].tolist() == [True, False, False, True]


def test_no_solution_of_the_test_is_one_of_training():
    """Whichever names its digits have: the hash by which the log's model splits its puzzles is the same for these."""
    found = sources.load(ours.Config())
    train, test = data.places(found.train), data.places(found.test)
    assert len(set(train.tolist())) > 0.99 * len(train) and not np.isin(test, train).any()
