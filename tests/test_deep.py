"""What the experiments on top of exp_deep.py are named after: each test fails without its change."""

import dataclasses

import numpy as np
import pytest
import torch

import common
import exp_deep
import exp_deep_attention
import exp_deep_bf16
import exp_deep_ema
import exp_deep_failures
import exp_deep_fresh
import exp_deep_identity
import exp_deep_last
import exp_deep_noise
import exp_deep_random
import exp_deep_refuted
import exp_deep_restarts
import exp_deep_sums
import exp_deep_two
from data import generate, store
from data.rows import missing
from plumbing import candidates, disk
from plumbing.candidates import KINDS

PART = slice(0, 4)


@pytest.fixture(scope="module")
def puzzles():
    return [
        torch.from_numpy(part) for part in generate.cached(12, clues="minimal", seed=4, progress=False).rows(range(12))
    ]


@pytest.fixture(scope="module")
def data():
    return common.load(small(exp_deep)[0], type("Run", (), {"rank": 0, "world": 1})())


def small(experiment, **changes):
    torch.manual_seed(0)
    config = common.with_preset(experiment.Config(), "smoke")
    config = dataclasses.replace(config, **({"width": 8, "mlp": 12, "batch": 4} | changes))
    return config, experiment.Model(config)


def slots_with(experiment, config, puzzles):
    """These puzzles, all new."""
    width = () if experiment is exp_deep_fresh else (config.width + KINDS,)
    slots = experiment.Slots(config, *width)
    slots.puzzle[:], slots.solution[:] = (part[: config.batch] for part in puzzles)
    return slots


def refilled(experiment, data, step, **changes):
    """What a refill of all slots leaves in them, and what it returns."""
    config, _ = small(experiment, **({"batch": 8} | changes))
    slots = experiment.Slots(config, config.width + KINDS)
    return slots, slots.refill(config, data, step)


def mean_loss(model, puzzles, states):
    """The mean of -log p of the right digits over these states of the first four puzzles."""
    _, board, _ = model.start_shard(puzzles[0][PART])
    digit = puzzles[1][board.place[0], candidates.CELL[board.place[1]]].numpy() - 1
    right = torch.from_numpy(digit == candidates.DIGIT[board.place[1]])
    return -states[:, right, -KINDS].log().sum() / len(states)


# ---------------------------------------------------------------- fresh


def test_every_step_starts_from_the_first_state(puzzles):
    losses = {}
    for experiment in (exp_deep, exp_deep_fresh):
        config, model = small(experiment)
        slots = slots_with(experiment, config, puzzles)
        losses[experiment] = []
        for free in (True, False):
            slots.free[:] = free
            losses[experiment].append(experiment.shard_gradients(model, config, slots, PART, 100)[0].item())
    before, late = losses[exp_deep]
    assert before != late and losses[exp_deep_fresh] == [before, before]
    assert set(slots.state_dict()) == {"puzzle", "solution", "free"}, "there is nothing to go on from"


# ---------------------------------------------------------------- noise


def test_every_candidate_starts_with_numbers_of_its_own_the_same_in_each_test(puzzles):
    _, model = small(exp_deep_noise)
    torch.manual_seed(1)
    other = exp_deep_noise.Model(small(exp_deep_noise)[0])
    _, board, x = model.start_shard(puzzles[0])
    added = x - model.first_state()
    assert torch.equal(other.noise, model.noise) and "noise" not in model.state_dict()
    assert torch.allclose(added[:, :-KINDS], model.noise[board.place[1]], atol=1e-6) and (added[:, -KINDS:] == 0).all()
    assert added[:, :-KINDS].std().item() == pytest.approx(exp_deep_noise.Config().noise, rel=0.1)
    assert len(added.unique(dim=0)) == len(np.unique(board.place[1]))


def test_regrouped_puzzles_keep_their_noise(puzzles):
    """A puzzle gets the same answer alone as beside others, one of which is solved and leaves."""
    _, model = small(exp_deep_noise)
    puzzle, solution = (part.clone() for part in puzzles)
    puzzle[3] = torch.where(torch.arange(81) == int((puzzle[3] == 0).nonzero()[0]), puzzle[3], solution[3])
    with torch.no_grad():
        together = list(model(puzzle, 20))
        for n in (0, 11):
            for got, alone in zip(together, model(puzzle[n : n + 1], 20), strict=True):
                assert torch.allclose(got[n], alone[0], atol=1e-4)


def test_noise_in_training_is_new_for_each_puzzle_and_a_function_of_seed_and_step(puzzles, data):
    slots, chance = refilled(exp_deep_noise, data, 5)
    plain, same_chance = refilled(exp_deep, data, 5)
    assert torch.equal(slots.puzzle, plain.puzzle) and torch.equal(chance, same_chance), "the puzzles are exp_deep's"
    again, other = (refilled(exp_deep_noise, data, step)[0].memory for step in (5, 6))
    assert torch.equal(slots.memory, again) and not torch.equal(slots.memory, other)
    assert (slots.memory[:, :, -KINDS:] == 0).all() and len(slots.memory[:, 0].unique(dim=0)) == 8
    kept = slots.memory.clone()
    slots.free = torch.arange(8) == 2
    slots.refill(small(exp_deep_noise, batch=8)[0], data, 7)
    assert (slots.memory != kept).flatten(1).any(1).tolist() == slots.free.tolist(), "states reached stay"

    config, model = small(exp_deep_noise)
    slots = slots_with(exp_deep_noise, config, puzzles)
    slots.memory[:, :, :-KINDS] = model.noise
    loss = exp_deep_noise.shard_gradients(model, config, slots, PART, 1)[0]
    states = model.think_shard(model.start_shard(slots.puzzle), config.depth)[0]
    assert torch.allclose(loss, mean_loss(model, puzzles, states)), "it is added to the first state"


# ---------------------------------------------------------------- ema


def test_the_average_of_the_weights_is_tested_and_saved(clean, monkeypatch):
    begun, live, tested = [], [], []
    copied = lambda module: {name: value.clone() for name, value in module.state_dict().items()}  # noqa: E731

    def resume(run, model, optimizers, real=common.Run.resume):
        begun.append(copied(model))
        return real(run, model, optimizers)

    def end_step(run, step, model, optimizers, real=common.Run.end_step):
        live.append(copied(optimizers[-1]))
        real(run, step, model, optimizers)

    def evaluate(run, step, model, data, real=common.Run.evaluate):
        tested.append(copied(model))

    for function in (resume, end_step, evaluate):
        monkeypatch.setattr(common.Run, function.__name__, function)
    exp_deep_ema.main(["--preset", "smoke", "--ema", "0.6", "--device", "cpu"])
    saved = disk.load_checkpoint(clean / "runs/exp_deep_ema/smoke-seed0/checkpoint.pt")
    for name, average in begun[0].items():
        assert torch.equal(live[-1][name], saved["optimizers"][-1][name])
        for weights in live:
            average = 0.6 * average + 0.4 * weights[name]
        assert torch.allclose(saved["model"][name], average, atol=1e-6), name
        assert torch.equal(saved["model"][name], tested[-1][name])
    assert any(not torch.equal(live[-1][name], saved["model"][name]) for name in begun[0])


# ---------------------------------------------------------------- two


def test_two_layers_take_turns(puzzles):
    config, model = small(exp_deep_two)
    _, board, x = shard = model.start_shard(puzzles[0])
    states, logits, (_, _, last) = model.think_shard(shard, 3)
    for i in range(3):
        for layer in model.layers:
            own = layer.message, torch.cat([layer.state, layer.seen[KINDS:]]), layer.heard, layer.out
            ends = layer.norm.weight, layer.norm.bias, model.head.weight, model.head.bias
            given = layer.bias + board.sizes @ layer.seen[:KINDS]
            (x,), (logit,) = candidates.think_anywhere(1, board, x, given, *own, *ends)
        assert torch.allclose(states[i], x, atol=1e-4) and torch.allclose(logits[i], logit, atol=1e-4)
    assert len(states) == len(logits) == 3 and torch.equal(last, states[-1])
    a, b = (layer.state_dict() for layer in model.layers)
    assert not torch.equal(a["message"], b["message"])
    slots = slots_with(exp_deep_two, config, puzzles)
    gradients = exp_deep_two.shard_gradients(model, config, slots, PART, 100)[1]
    assert all(gradient.any() for gradient in gradients)


def test_two_layers_make_as_many_in_all():
    for preset in ("full", "mini"):
        one, two = (common.with_preset(e.Config(), preset) for e in (exp_deep, exp_deep_two))
        for name in ("depth", "lifetime", "iterations"):
            assert getattr(one, name) == 2 * getattr(two, name)
        assert one.test_iterations == tuple(2 * n for n in two.test_iterations)
        assert one.depth / one.lifetime == two.depth / two.lifetime, "unsolved puzzles stay as many steps"


# ---------------------------------------------------------------- random


def test_a_random_number_of_iterations_is_trained(clean, monkeypatch, data):
    counts = [refilled(exp_deep_random, data, step)[1][1] for step in range(300)]
    assert min(counts) == 1 and max(counts) == 31 and np.mean(counts) == pytest.approx(16, abs=1.5)
    (plain, chance), (slots, (same_chance, _)) = (refilled(e, data, 5) for e in (exp_deep, exp_deep_random))
    assert torch.equal(slots.puzzle, plain.puzzle) and torch.equal(chance, same_chance)

    trained = []

    def think_shard(model, shard, count, real=exp_deep_random.Model.think_shard):
        trained.extend([count] * torch.is_grad_enabled())
        return real(model, shard, count)

    drawn, freed = [], []

    def refill(slots, *arguments, real=exp_deep_random.Slots.refill):
        drawn.append(real(slots, *arguments))
        return drawn[-1]

    def end_step(run, step, model, optimizers):
        freed.append(optimizers[-1].free.tolist())

    monkeypatch.setattr(exp_deep_random.Model, "think_shard", think_shard)
    monkeypatch.setattr(exp_deep_random.Slots, "refill", refill)
    monkeypatch.setattr(common.Run, "end_step", end_step)
    exp_deep_random.main(["--preset", "smoke", "--steps", "9", "--evaluate-every", "99", "--lifetime", "32"])
    assert trained == [count for _, count in drawn] and len(set(trained)) > 2
    assert freed == [(chance < count / 32).tolist() for chance, count in drawn], "nothing is solved yet"


def test_the_loss_of_a_random_number_of_iterations_is_their_mean(puzzles):
    for count in (1, 5):
        config, model = small(exp_deep_random)
        slots = slots_with(exp_deep_random, config, puzzles)
        loss = exp_deep_random.shard_gradients(model, slots, 1, count, PART)[0]
        states = model.think_shard(model.start_shard(slots.puzzle), count)[0]
        assert torch.allclose(loss, mean_loss(model, puzzles, states))


# ---------------------------------------------------------------- identity


def test_a_candidate_sees_its_row_column_box_and_digit(puzzles):
    row, column, box = common.places()
    for candidate, hot in enumerate(exp_deep_identity.WHERE):
        cell, digit = divmod(candidate, 9)
        assert hot.view(4, 9).argmax(1).tolist() == [row[cell], column[cell], box[cell], digit] and hot.sum() == 4

    puzzle = puzzles[0].long()
    digits, lines = torch.tensor([0, 4, 7, 1, 9, 2, 8, 3, 6, 5]), torch.tensor([4, 3, 5, 0, 2, 1, 8, 7, 6])
    for moved, back in (
        (digits[puzzle], lambda found: found[..., digits[1:] - 1]),
        (
            puzzle.view(-1, 9, 9)[:, lines].flatten(1),
            lambda found: found.view(-1, 9, 9, 9)[:, lines.argsort()].flatten(1, 2),
        ),
        (
            puzzle.view(-1, 9, 9)[:, :, lines].flatten(1),
            lambda found: found.view(-1, 9, 9, 9)[:, :, lines.argsort()].flatten(1, 2),
        ),
    ):
        for identity in (True, False):
            _, model = small(exp_deep_identity)
            model.identity.data *= identity
            with torch.no_grad():
                plain, other = (list(model(p, 3))[-1] for p in (puzzle, moved))
            blank = puzzle == 0
            assert torch.allclose(plain[blank], back(other)[blank], atol=1e-4) == (not identity)


def test_training_puzzles_are_moved_by_random_symmetries(data):
    (slots, _), (plain, _) = (refilled(e, data, 50, easy_steps=1) for e in (exp_deep_identity, exp_deep))
    assert not (slots.puzzle == plain.puzzle).all(1).any()
    assert (missing(slots.solution.numpy()).sum(-1) == 0).all()
    assert ((slots.puzzle == slots.solution) | (slots.puzzle == 0)).all()
    rating = np.zeros(8, np.float32)
    same = (store.fingerprints(store.from_arrays(s.puzzle.numpy(), s.solution.numpy(), rating)) for s in (slots, plain))
    assert np.array_equal(*same), "they are other forms of exp_deep's"


# ---------------------------------------------------------------- last


def test_the_first_half_of_a_step_has_no_loss(puzzles):
    losses = []
    for depth in (5, 6):
        config, model = small(exp_deep_last, depth=depth)
        slots = slots_with(exp_deep_last, config, puzzles)
        loss, gradients, _ = exp_deep_last.shard_gradients(model, config, slots, PART, 1)
        states = model.think_shard(model.start_shard(slots.puzzle), depth)[0]
        expected = mean_loss(model, puzzles, states[depth // 2 :])
        assert torch.allclose(loss, expected)
        for got, gradient in zip(gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True):
            assert torch.allclose(got, gradient, rtol=1e-3, atol=1e-3)
        losses.append(loss)
    assert losses[0] != losses[1]


# ---------------------------------------------------------------- sums


def test_some_messages_are_summed_over_a_group(puzzles):
    config, model = small(exp_deep_sums, sums=3)
    _, board, x = model.start_shard(puzzles[0])
    x = x + torch.randn_like(x)
    states, _, _ = model.think_shard((puzzles[0], board, x), 1)
    width, said = config.width, (x[:, : config.width] @ model.message).view(len(x), KINDS, -1)
    heard = torch.zeros(len(x), KINDS, width)
    for kind, index in enumerate(board.group):
        for group in np.unique(index):
            mine = torch.from_numpy(index == group)
            told = said[mine, kind]
            heard[mine, kind] = torch.cat([told.amax(0)[:-3], told.sum(0)[-3:]])
    hidden = model.bias + board.sizes @ model.seen[:KINDS] + x @ torch.cat([model.state, model.seen[KINDS:]])
    h = model.norm(x[:, :width] + (hidden + heard.flatten(1) @ model.heard).relu() @ model.out)
    assert torch.allclose(states[0, :, :width], h, atol=1e-4)
    slots = slots_with(exp_deep_sums, config, puzzles)
    assert all(g.any() for g in exp_deep_sums.shard_gradients(model, config, slots, PART, 100)[1])


# ---------------------------------------------------------------- attention


def test_a_candidate_attends_to_its_whole_puzzle_and_to_no_other(puzzles):
    config, model = small(exp_deep_attention, heads=2)
    _, board, x = model.start_shard(puzzles[0])
    x = x + torch.randn_like(x)
    attended = model.attend(board, x)
    assert torch.equal(attended[:, -KINDS:], x[:, -KINDS:]), "the shares stay"
    for n in (0, 7):
        h = x[board.place[0] == n][:, :-KINDS]
        q, k, v = ((h @ model.ask).view(len(h), 3, config.heads, -1)).permute(1, 2, 0, 3)
        heard = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        expected = model.mixed(h + heard.transpose(0, 1).flatten(1) @ model.told)
        assert torch.allclose(attended[board.place[0] == n][:, :-KINDS], expected, atol=1e-5)


def test_attention_comes_before_every_iteration(puzzles):
    config, model = small(exp_deep_attention)
    _, board, x = shard = model.start_shard(puzzles[0])
    states, logits, _ = model.think_shard(shard, 3)
    for state, logit in zip(states, logits):
        (expected,), (number,), _ = exp_deep.Model.think_shard(
            attentionless(model), (0, board, model.attend(board, x)), 1
        )
        assert torch.allclose(state, expected, atol=1e-4) and torch.allclose(logit, number, atol=1e-4)
        x = state
    slots = slots_with(exp_deep_attention, config, puzzles)
    assert all(g.any() for g in exp_deep_attention.shard_gradients(model, config, slots, PART, 100)[1])


def attentionless(model):
    plain = small(exp_deep)[1]
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in plain.state_dict()})
    return plain


# ---------------------------------------------------------------- failures


def test_puzzles_that_failed_come_back(clean, monkeypatch, data):
    config, _ = small(exp_deep_failures, batch=400)
    slots = exp_deep_failures.Slots(config, config.width + KINDS)
    slots.refill(config, data, 50)
    assert [data.train.rows(slots.row.numpy())[1].tolist()] == [slots.solution.tolist()], "row says which puzzle it is"
    lost = torch.arange(400) < 2
    failed = slots.row[lost].tolist()
    slots.remember(lost)
    slots.free[:] = True
    slots.refill(config, data, 51)
    back = np.isin(slots.row.numpy(), failed).mean()
    assert back == pytest.approx(config.again, abs=0.1)
    assert [data.train.rows(slots.row.numpy())[1].tolist()] == [slots.solution.tolist()]
    slots.free[:] = torch.arange(400) < 9
    before = slots.row.clone()
    slots.refill(config, data, 52)
    assert torch.equal(slots.row[9:], before[9:]), "the rows of puzzles that stay"

    remembered, ended = [], []
    monkeypatch.setattr(exp_deep_failures.Slots, "remember", lambda slots, lost: remembered.append(lost.clone()))
    monkeypatch.setattr(common.Run, "end_step", lambda run, step, model, saved: ended.append(saved[-1].free.clone()))
    exp_deep_failures.main(["--preset", "smoke", "--steps", "6", "--evaluate-every", "99", "--lifetime", "20"])
    assert any(lost.any() for lost in remembered), "nothing is solved yet"
    assert all(torch.equal(lost, free) for lost, free in zip(remembered, ended, strict=True))


def test_only_the_last_failures_are_kept():
    config, _ = small(exp_deep_failures, batch=4)
    slots = exp_deep_failures.Slots(config, config.width + KINDS)
    for first in range(0, 2_000, 4):
        slots.row[:] = torch.arange(first, first + 4)
        slots.remember(torch.tensor([True, True, True, False]))
    assert slots.failures == 1_500
    kept = set(slots.failed.tolist())
    assert len(kept) == 1_024 and max(kept) == 1_998 and 3 not in kept and 0 not in kept


# ---------------------------------------------------------------- refuted


def test_the_round_in_which_singles_refute_a_candidate(puzzles):
    """The same by a loop over cells and groups, on puzzles that singles solve and on one that they do not."""
    puzzle, solution = (part.clone() for part in puzzles)
    given = torch.rand(len(puzzle), 81, generator=torch.Generator().manual_seed(1)) < 0.1
    puzzle[1:] = torch.where(given[1:], solution[1:], puzzle[1:])
    board = candidates.Board(puzzle.numpy())
    found = exp_deep_refuted.rounds(board)
    for n in range(len(puzzle)):
        alive = {c for p, c in zip(*board.place) if p == n}
        expected = dict.fromkeys(alive, 0)
        for number in range(1, 20):
            groups = {}
            for c in alive:
                for kind, index in enumerate(candidates.GROUP):
                    groups.setdefault((kind, index[c]), []).append(c)
            single = {members[0] for members in groups.values() if len(members) == 1}
            taken = {(kind, index[c]) for c in single for kind, index in enumerate(candidates.GROUP)}
            fallen = {c for where in taken for c in groups[where]} - single
            expected.update(dict.fromkeys(fallen, number))
            alive -= fallen
        assert expected == dict(zip(board.place[1][board.place[0] == n], found[board.place[0] == n].tolist()))
    right = candidates.DIGIT[board.place[1]] + 1 == solution.numpy()[board.place[0], candidates.CELL[board.place[1]]]
    assert (found[torch.from_numpy(right)] == 0).all() and found.max() > 3


def test_how_soon_candidates_are_refuted_is_learned_too(puzzles):
    losses = {}
    for weight in (0.0, 0.1, 0.2):
        config, model = small(exp_deep_refuted, refuted=weight)
        slots = slots_with(exp_deep_refuted, config, puzzles)
        losses[weight], gradients, _ = exp_deep_refuted.shard_gradients(model, config, slots, PART, 7)
        for name, gradient in zip(dict(model.named_parameters()), gradients):
            assert gradient.any() == (weight > 0 or not name.startswith("soon")), name
    states = model.think_shard(model.start_shard(slots.puzzle), config.depth)[0]
    number = exp_deep_refuted.rounds(candidates.Board(slots.puzzle.numpy()))
    p, wanted = model.soon(states[:, :, :-KINDS])[..., 0].sigmoid(), ((number > 0) / (1 + number)).float()
    entropy = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).sum() / (7 * config.depth)
    assert torch.allclose(losses[0.0] + 0.1 * entropy, losses[0.1], rtol=1e-4)
    assert torch.allclose(losses[0.0] + 0.2 * entropy, losses[0.2], rtol=1e-4)
    assert torch.allclose(losses[0.0] * 7 * config.depth, mean_loss(model, puzzles, states) * config.depth, rtol=1e-4)


# ---------------------------------------------------------------- bf16


def test_muon_rounds_to_bfloat16():
    torch.manual_seed(0)
    gradient, steps = torch.randn(6, 20), []
    for experiment in (exp_deep, exp_deep_bf16):
        parameter = torch.nn.Parameter(torch.zeros(6, 20))
        parameter.grad = gradient.clone()
        experiment.Muon([parameter], lr=1.0).step()
        steps.append(-parameter.detach())
    exact, rounded = steps
    assert torch.equal(rounded, rounded.bfloat16().float()) and not torch.equal(exact, exact.bfloat16().float())
    assert (exact - rounded).norm() < 0.08 * exact.norm()


# ---------------------------------------------------------------- restarts


def test_unsolved_puzzles_start_anew_from_other_noise(puzzles):
    _, model = small(exp_deep_restarts, restart=8)
    puzzle, solution = (part.clone() for part in puzzles)
    puzzle[3] = torch.where(torch.arange(81) == int((puzzle[3] == 0).nonzero()[0]), puzzle[3], solution[3])
    with torch.no_grad():
        whole = list(model(puzzle, 20))
        wanted = torch.arange(len(puzzle)) != 3
        for attempt, length in ((0, 8), (1, 8), (2, 4)):
            logits, _ = model.think(model.start(puzzle[wanted], attempt), length)
            for step in range(length):
                assert torch.allclose(whole[8 * attempt + step][wanted], logits[step], atol=1e-3)
        assert all(candidates.obeys_rules(puzzle[3:4], step[3:4]).all() for step in whole[-4:]), "what is solved stays"
        solved = torch.from_numpy(solution.numpy())
        assert len(list(model(solved, 20))) == 20, "nothing is left to start anew"
    first, second = (model.start_shard(puzzle, attempt=n)[2] for n in (0, 1))
    assert not torch.equal(first, second)
    noise = small(exp_deep_noise)[1]
    assert torch.allclose(first, noise.start_shard(puzzle)[2]), "the first start is exp_deep_noise's"
