"""Experiments on sudoku-extreme: sizes, phases, mixer, TRM, carried states, a fixed start, averaged weights."""

import contextlib
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import common
import exp_carry
import exp_ema
import exp_mlp_mixer
import exp_scale_up
import exp_trm_carry
import exp_trm_exact
import exp_trm_nested
import plumbing.run
from data import generate, sources, store
from plumbing import disk
from tests import experiments
from tests.test_experiments import BASELINE, BATCH_4096, WARMUP, hard_to_easy, moved_by, optimizers_of, rated, small

QUICK = ["--preset", "smoke", "--test-per-bucket", "1", "--evaluate-every", "99"]
LARGE = {"width": 256, "layers": 8, "heads": 8, "mlp": 1024}
SHORT = BATCH_4096 | {"steps": 10_000, "evaluate_every": 1_000}
NESTED = {name: value for name, value in BATCH_4096.items() if name not in ("heads", "dropout", "rho")}
NESTED |= {"width": 512, "layers": 2, "mlp": 1408, "iterations": 1, "cycles": 3, "low_cycles": 6, "clip": 1.0}
NESTED |= {"lr": 1e-4, "weight_decay": 1.0}
EXACT = {name: value for name, value in NESTED.items() if name != "phases"}
EXACT |= {"batch": 768, "steps": 100_000, "ema": 0.999, "puzzles": 1_000, "copies": 1_000}
SETTINGS = {
    "exp_mlp_mixer": {name: value for name, value in BASELINE.items() if name not in ("heads", "dropout")},
    "exp_scale_down": BASELINE | {"width": 64, "layers": 2, "heads": 2, "mlp": 256},
    "exp_scale_up": BASELINE | LARGE | {"micro_batches": 4},
    "exp_scale_up_big_gpu": BASELINE | LARGE,
    "exp_scale_batch": BASELINE | {"batch": 2048},
    "exp_scale_batch_4k_v2": SHORT | {"phases": hard_to_easy(2_000, 4_000, 6_000, 10_000)},
    "exp_scale_batch_4k_curriculum": SHORT
    | {"phases": ((2_000, 0, 3), (4_000, 0, 11), (6_000, 0, 51), (10_000, 0, float("inf")))},
    "exp_trm_nested": NESTED,
    "exp_trm_exact": EXACT,
    "exp_trm_carry": EXACT | {"iterations": 16, "warmup": 2_000, "weight_decay": 0.01},
    "exp_fixed_init": WARMUP,
    "exp_carry": WARMUP,
    "exp_ema": WARMUP | {"ema": 0.999},
}
SIZES = {"exp_mlp_mixer": 870_349, "exp_scale_down": 103_625, "exp_scale_up": 6_332_681}  # the others: 800,393
SIZES |= {"exp_scale_up_big_gpu": 6_332_681, "exp_trm_nested": 4_460_544, "exp_trm_exact": 4_460_544}
SIZES |= {"exp_trm_carry": 4_460_544 - 2 * 512}  # its two first states are no parameters


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_log(name):
    """Every field, so that one which an experiment dropped is noticed too."""
    config = experiments.load(name).Config()
    assert {field: value for field, value in vars(config).items() if field not in vars(common.RunConfig())} == {
        field: value for field, value in SETTINGS[name].items() if field != "evaluate_every"
    }
    assert config.evaluate_every == SETTINGS[name]["evaluate_every"]


@pytest.mark.parametrize("name", SETTINGS)
def test_parameters(name):
    module = experiments.load(name)
    assert sum(p.numel() for p in module.Model(module.Config()).parameters()) == SIZES.get(name, 800_393)


def test_presets_keep_the_change():
    pairs = [("exp_extreme_baseline", name, "width") for name in ("exp_scale_down", "exp_scale_up")]
    pairs += [("exp_extreme_baseline", "exp_scale_batch", "batch"), ("exp_scale_batch", "exp_scale_batch_4k", "batch")]
    pairs += [("exp_scale_batch_4k", "exp_scale_batch_4k_v2", "steps")]
    pairs += [("exp_scale_batch_4k_v2", "exp_scale_batch_4k_curriculum", "phases")]
    pairs += [("exp_trm_exact", "exp_trm_carry", "iterations")]
    for one, other, field in pairs:
        values = [getattr(common.with_preset(experiments.load(n).Config(), "mini"), field) for n in (one, other)]
        assert values[0] != values[1], (one, other, field)


def test_an_average_spans_the_same_share_of_a_mini_run():
    full, mini = exp_ema.Config(), common.with_preset(exp_ema.Config(), "mini")
    assert (1 - mini.ema) * mini.steps == pytest.approx((1 - full.ema) * full.steps)


def few(count=8):
    """Puzzles as tensors: (puzzle, solution), some with more blanks than others."""
    arrays = generate.cached(16, clues=45, seed=5, progress=False).rows(np.arange(count))
    puzzle, solution = (torch.from_numpy(array.astype(np.int64)) for array in arrays)
    puzzle[::3, :40] = solution[::3, :40]
    return puzzle, solution


def batch_of(puzzle, solution):
    target = torch.where(puzzle == 0, solution - 1, common.IGNORED)
    return common.Batch(puzzle, target, torch.arange(len(puzzle), dtype=torch.int32), (puzzle == 0).sum())


def alone(**others):
    """Stands in for a run of one process."""
    same = lambda tensor, *_: tensor  # noqa: E731
    methods = {"agreed": same, "gathered": same, "share": torch.clone, "precision": contextlib.nullcontext}
    return SimpleNamespace(rank=0, world=1, device=torch.device("cpu"), **(methods | others))


# ---------------------------------------------------------------- phases


def test_phases_of_the_short_runs():
    data = rated(store.EXTREME)
    reverse, regular = (experiments.load(f"exp_scale_batch_4k_{n}").Config() for n in ("v2", "curriculum"))
    for step, low in {0: 51, 1_999: 51, 2_000: 11, 4_000: 1, 5_999: 1, 6_000: 0, 9_999: 0}.items():
        assert data.train.rating[common.pool_at(reverse, data, step)].min() == low
        assert data.train.rating[common.pool_at(reverse, data, step)].max() == 400
    for step, high in {0: 2, 1_999: 2, 2_000: 10, 4_000: 50, 5_999: 50, 6_000: 400}.items():
        assert data.train.rating[common.pool_at(regular, data, step)].min() == 0
        assert data.train.rating[common.pool_at(regular, data, step)].max() == high


# ---------------------------------------------------------------- mixer


def test_the_mixer_mixes_cells_then_channels():
    model = exp_mlp_mixer.Model(common.with_preset(exp_mlp_mixer.Config(layers=8), "smoke"))
    layer, other = model.layers
    assert not torch.equal(layer.cells[0].weight, other.cells[0].weight), "drawn independently"
    assert not [module for module in model.modules() if isinstance(module, common.Dropout)]
    h = torch.randn(2, 81, 16)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
        one, two = layer.cells[0], layer.cells[2]
        x = F.layer_norm(h, (16,), layer.norm_cells.weight, layer.norm_cells.bias)
        x = F.gelu(torch.einsum("bcw,mc->bmw", x, one.weight) + one.bias[:, None])
        x = h + torch.einsum("bmw,cm->bcw", x, two.weight) + two.bias[:, None]
        one, two = layer.channels[0], layer.channels[2]
        y = F.layer_norm(x, (16,), layer.norm_channels.weight, layer.norm_channels.bias)
        y = x + F.gelu(y @ one.weight.T + one.bias) @ two.weight.T + two.bias
        assert torch.allclose(layer(h), y, rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------- micro-batches


def test_micro_batches_add_up_to_the_mean_of_their_own_means():
    """For any number of processes: the gradients of two, half of the batch each, add up to those of one."""
    config = common.with_preset(exp_scale_up.Config(), "smoke")
    torch.manual_seed(0)
    model, batch = exp_scale_up.Model(config), batch_of(*few())
    parts = [batch_of(batch.puzzle[i::4], (batch.target + 1)[i::4]) for i in range(4)]
    assert len({int(part.blanks) for part in parts}) > 1
    losses, expected = [], torch.empty(8, 81, 9)
    for i, part in enumerate(parts):
        common.seed_dropout(model, batch.seeds[i::4])
        loss, expected[i::4] = exp_scale_up.forward_loss(model, part, config)
        losses.append(loss)
    mean = sum(losses) / 4
    gradients = torch.autograd.grad(mean, list(model.parameters()))
    loss, logits = exp_scale_up.backward_pass(model, batch, batch.seeds, alone(), config)
    assert torch.equal(logits, expected) and loss.item() == pytest.approx(mean.item(), rel=1e-6)
    for p, gradient in zip(model.parameters(), gradients):
        assert torch.allclose(p.grad, gradient, atol=1e-6)
    model.zero_grad()
    for half in (slice(0, 4), slice(4, 8)):
        share = common.Batch(batch.puzzle[half], batch.target[half], None, None)
        blanks = iter(part.blanks for part in parts)
        run = alone(agreed=lambda mine, sum_of, blanks=blanks: next(blanks))
        exp_scale_up.backward_pass(model, share, batch.seeds[half], run, config)
    for p, gradient in zip(model.parameters(), gradients):
        assert torch.allclose(p.grad, gradient, atol=1e-6)


# ---------------------------------------------------------------- TRM


def trm(module=exp_trm_nested, **changes):
    torch.manual_seed(0)
    return module.Model(module.Config(width=16, mlp=24, **changes))


def test_a_block_norms_after_each_of_its_two_parts():
    block = trm().layers[0]
    before = h = torch.randn(2, 81, 16)
    with torch.no_grad():
        for mixer, turned in ((block.cells, True), (block.channels, False)):
            x = h.transpose(1, 2) if turned else h
            gate, value = (x @ mixer.up.weight.T).split(mixer.down.in_features, -1)
            x = (gate * gate.sigmoid() * value) @ mixer.down.weight.T
            h = h + (x.transpose(1, 2) if turned else x)
            h = h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(block(before), h, atol=1e-5)
    assert block.cells.down.in_features == 256 and block.channels.down.in_features == 24


def test_only_the_last_cycle_has_a_gradient():
    model, puzzle = trm(), few()[0]
    assert not any("bias" in name for name, _ in model.named_parameters())
    update, calls = model.update, []
    model.update = lambda h: calls.append(torch.is_grad_enabled()) or update(h)
    (logits,) = model(puzzle, 1)
    logits.square().sum().backward()
    assert calls == [False] * 14 + [True] * 7
    found = {name: p.grad for name, p in model.named_parameters()}
    assert found.pop("first") is None, "the first states never train"
    model.zero_grad()
    x, high, low = model.start(puzzle)
    assert torch.equal(high[0, 0], high[3, 80]) and not torch.equal(high, low)
    for last in (False, False, True):
        with torch.set_grad_enabled(last):
            for _ in range(6):
                low = update(low + high + x)
            high = update(high + low)
    assert torch.allclose(high.square().mean(-1), torch.ones(8, 81), atol=1e-3)
    model.head(high).square().sum().backward()
    for name, gradient in found.items():
        assert torch.equal(gradient, model.get_parameter(name).grad), name


def test_the_cycles_without_gradient_leave_no_cast_weights_behind():
    """Autocast keeps the weights that it has cast; those cast without gradient must not serve the last cycle."""
    model = trm()
    with torch.autocast("cpu", torch.bfloat16):
        (logits,) = model(few()[0], 1)
    logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.layers.parameters())


def test_trm_steps_are_clipped_adamw(clean, monkeypatch):
    norms = []

    def note(optimizer, *_):
        gradients = [p.grad.flatten() for p in optimizer.param_groups[0]["params"] if p.grad is not None]
        norms.append(torch.cat(gradients).norm().item())

    hook = register_optimizer_step_pre_hook(note)
    (adamw,) = optimizers_of(exp_trm_nested, monkeypatch, "--clip", "0.001", "--test-per-bucket", "1", "--steps", "4")
    hook.remove()
    assert norms == pytest.approx([0.001] * 4, rel=1e-2)
    assert adamw["betas"] == (0.9, 0.95) and adamw["weight_decay"] == 1.0
    assert adamw["lr"] == common.with_preset(exp_trm_nested.Config(), "smoke").lr


def table(seed=0):
    config = exp_trm_exact.Config(seed=seed, puzzles=4, copies=3, batch=6)
    puzzles = generate.cached(16, clues=45, seed=5, progress=False)
    return config, puzzles, sources.Data(exp_trm_exact.augmented(puzzles, config), puzzles, store.EXTREME)


def test_the_table_holds_each_puzzle_and_its_copies():
    _, puzzles, data = table()
    prints = store.fingerprints(data.train).reshape(4, 4)  # no symmetry changes them
    assert (prints == prints[0]).all() and len(np.unique(prints)) == 4
    assert np.isin(data.train.table["solution"][:4], puzzles.table["solution"]).all()
    assert len(np.unique(data.train.table["solution"], axis=0)) == 16
    assert (table()[2].train.table == data.train.table).all(), "a function of the seed"
    assert (table(seed=1)[2].train.table != data.train.table).any()


def test_every_epoch_takes_each_row_once():
    config, _, data = table()
    rows = np.concatenate([exp_trm_exact.rows_at(config, data, step) for step in range(8)]).reshape(3, 16)
    assert (np.sort(rows, 1) == np.arange(16)).all() and not (rows[0] == rows[1]).all()
    again = table()[2]
    assert (exp_trm_exact.rows_at(config, again, 5) == rows.ravel()[30:36]).all(), "a function of (seed, step)"
    batch = common.batch_at(config, again, alone(), 5, rows.ravel()[30:36])
    assert (batch.puzzle.numpy() == again.train.rows(rows.ravel()[30:36])[0]).all()


def test_trm_exact_trains_on_the_table(clean, monkeypatch):
    seen, real = [], common.batch_at

    def note(config, data, run, step, rows):
        seen.extend(rows)
        assert len(data.train) == (config.copies + 1) * config.puzzles
        return real(config, data, run, step, rows)

    monkeypatch.setattr(common, "batch_at", note)
    exp_trm_exact.main([*QUICK, "--puzzles", "3", "--copies", "3"])
    assert sorted(seen[:12]) == sorted(seen[12:24]) == list(range(12))


def test_no_puzzle_comes_twice_in_the_rows_of_a_step():
    config, _, data = table()
    config.batch = 4
    rows = [exp_trm_carry.rows_at(config, data, step) for step in range(30)]
    assert all(len(set(some % 4)) == 4 for some in rows)
    assert {*np.concatenate(rows)} == {*range(16)}
    assert (exp_trm_carry.rows_at(config, data, 7) == rows[7]).all()


def test_stablemax():
    logits = torch.tensor([[[-3.0, -0.5, 0.0, 0.5, 1.0, 2.0, 7.0, -20.0, 4.0]]], requires_grad=True)
    shares = [1 / (1 - x) if x < 0 else x + 1 for x in logits.flatten().tolist()]
    for digit in range(9):
        batch = common.Batch(None, torch.tensor([[digit]]), None, 1)
        loss = exp_trm_carry.blank_loss(logits, batch)
        assert loss.item() == pytest.approx(-np.log(shares[digit] / sum(shares)), rel=1e-5)
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    assert exp_trm_carry.blank_loss(logits, common.Batch(None, torch.tensor([[common.IGNORED]]), None, 1)) == 0


def test_trm_starts_from_fixed_states_of_standard_deviation_1():
    model = exp_trm_carry.Model(exp_trm_carry.Config(mlp=8))
    assert "first" in model.state_dict() and "first" not in dict(model.named_parameters())
    assert model.first.std().item() == pytest.approx(1, abs=0.1)
    _, high, low = model.start(few()[0])
    assert torch.equal(high[2, 5], model.first[0]) and torch.equal(low[2, 5], model.first[1])


def right(batch):
    """Logits that solve these puzzles."""
    return F.one_hot(batch.target.clamp(min=0), 9).float()


def test_a_slot_of_trm_keeps_its_states_until_it_is_solved_or_had_its_passes():
    model, slots, new = trm(exp_trm_carry), exp_trm_carry.Slots(alone()), batch_of(*few(3))
    other = batch_of(*(part[3:6] for part in few()))
    batch, states = slots.refill(model, new)
    assert torch.equal(batch.puzzle, new.puzzle) and batch.blanks == new.blanks
    assert torch.equal(states[0], model.start(new.puzzle)[1])
    for passes in (1, 2, 3):
        _, logits, states = exp_trm_carry.forward_loss(model, batch, states)
        if passes == 1:
            logits = logits.detach().clone()
            logits[1] = right(new)[1]
        slots.keep(logits, states, limit=3)
        batch, given = slots.refill(model, other)
        if passes < 3:
            assert [torch.equal(*pair) for pair in zip(batch.puzzle, new.puzzle)] == [True, False, True]
            assert torch.equal(given[0][::2], states[0][::2]) and torch.equal(given[1][::2], states[1][::2])
            assert passes == 2 or torch.equal(given[0][1], model.first[0].expand(81, -1))
        else:
            assert torch.equal(batch.puzzle, other.puzzle)
            assert torch.equal(given[0][::2], model.start(new.puzzle)[1][::2])
        assert not given[0].requires_grad
        states = given


# ---------------------------------------------------------------- a fixed first state


def test_the_first_state_is_fixed_and_the_puzzle_comes_at_every_iteration():
    model = small("exp_fixed_init")
    state = model.start(few()[0])
    assert torch.equal(state[1][0], state[1][1]) and torch.equal(state[1][0], model.first)
    assert "first" in model.state_dict() and "first" not in dict(model.named_parameters())
    assert model.first.std().item() == pytest.approx(1, abs=0.1)
    with torch.no_grad():
        for _ in range(2):
            assert all(moved_by(model, state, part) for part in range(3))
            state = model.iterate(state)[1]


# ---------------------------------------------------------------- carried states


def test_a_slot_keeps_its_puzzle_and_state_until_it_is_solved():
    model, slots, new = small("exp_carry"), exp_carry.Slots(alone()), batch_of(*few(3))
    other = batch_of(*(part[3:6] for part in few()))
    batch = slots.refill(model, batch_of(*few(3)), True)
    assert slots.state is None and torch.equal(batch.puzzle, new.puzzle) and batch.blanks == new.blanks
    config = exp_carry.Config(iterations=2)
    _, logits, state = exp_carry.forward_loss(model, batch, None, config)
    assert torch.equal(list(model(new.puzzle, 2))[-1], logits)
    logits = logits.detach().clone()
    logits[1] = right(new)[1]
    slots.keep(logits, [part.clone() for part in state])
    batch = slots.refill(model, other, False)
    h, predictions = slots.state
    assert [torch.equal(*pair) for pair in zip(batch.puzzle, new.puzzle)] == [True, False, True]
    assert torch.equal(batch.puzzle[1], other.puzzle[1]) and torch.equal(batch.target[1], other.target[1])
    assert torch.equal(h[::2], state[0][::2]) and torch.equal(predictions[::2], state[1][::2])
    assert torch.equal(h[1], model.start(other.puzzle)[0][1]) and not predictions[1].any()
    assert not h.requires_grad and batch.blanks == (batch.puzzle == 0).sum()
    last = exp_carry.forward_loss(model, new, state, config)[1]
    assert torch.equal(last, list(model(new.puzzle, 4))[-1]), "goes on where the last step ended"


def test_steps_carry_the_state_of_the_second_pass_and_phases_begin_anew(clean, monkeypatch):
    calls, encoder, real = [], [], exp_carry.forward_loss

    def note(model, batch, state, config):
        given = state and [part.clone() for part in state]
        result = real(model, batch, state, config)
        calls.append((given, [part.detach().clone() for part in result[2]], batch.puzzle.clone()))
        return result

    monkeypatch.setattr(exp_carry, "forward_loss", note)
    hook = register_optimizer_step_pre_hook(lambda o, *_: encoder.append(o.param_groups[0]["params"][0].grad is None))
    exp_carry.main(QUICK)  # phases of smoke begin at steps 0, 1, 2 and 4
    hook.remove()
    assert encoder == [False, False, False, True, False, True, True]
    passes = [(calls[i], calls[i + 1]) for i in range(0, 14, 2)]
    assert [first[0] is None for first, _ in passes] == [True, True, True, False, True, False, False]
    for step in (3, 5, 6):
        (given, reached, puzzle), (again, *_) = passes[step]
        for one, other, before in zip(given, again, passes[step - 1][1][1]):
            assert torch.equal(one, other) and torch.equal(one, before)
        assert not torch.equal(reached[0], passes[step][1][1][0]), "the second pass has other weights and masks"
        assert torch.equal(puzzle, passes[step - 1][0][2]), "nothing is solved in a smoke run"
    assert not torch.equal(passes[4][0][2], passes[3][0][2])


def test_all_processes_keep_their_shares_in_one_checkpoint(clean, monkeypatch):
    whole = torch.arange(8).view(4, 2)
    run = SimpleNamespace(rank=1, world=2)
    share = plumbing.run.Run.share(run, whole)
    assert torch.equal(share, whole[2:])
    monkeypatch.setattr(dist, "all_gather", lambda all_shares, mine: [a.copy_(b) for a, b in
                                                                     zip(all_shares, (whole[:2], mine))])  # fmt: skip
    assert torch.equal(plumbing.run.Run.gathered(run, share), whole)
    asked, model = [], torch.nn.Linear(1, 1)
    run = common.Run(common.with_preset(exp_carry.Config(), "smoke"), exp_carry.__file__)
    run.rank = 1
    run.end_step(1, model, [SimpleNamespace(state_dict=lambda: asked.append(1))])
    assert asked and not run.checkpoint.exists(), "a process that does not write takes part in gathering"
    run.close()


# ---------------------------------------------------------------- averaged weights


@pytest.mark.parametrize("name", ["exp_ema", "exp_trm_exact", "exp_trm_carry"])
def test_the_average_of_the_weights_is_tested_and_saved(name, clean, monkeypatch):
    module, tested, live, average = experiments.load(name), [], [], []
    real = common.evaluate

    def before(optimizer, *_):
        if not average:
            average.extend(p.detach().clone() for p in optimizer.param_groups[0]["params"])

    def after(optimizer, *_):
        live[:] = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
        for mean, p in zip(average, live):
            mean.copy_(0.96 * mean + 0.04 * p)  # 40 times fewer steps: 0.001 becomes 0.04

    note = lambda model, *rest: tested.append(copy.deepcopy(model)) or real(model, *rest)  # noqa: E731
    monkeypatch.setattr(common, "evaluate", note)
    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    module.main([*QUICK, "--test-iterations", "1", "2"])  # which also tests at the end
    for hook in hooks:
        hook.remove()
    saved = disk.load_checkpoint(clean / f"runs/{name}/smoke-seed0/checkpoint.pt")
    for key, mean, p in zip(dict(tested[-1].named_parameters()), average, live):
        assert torch.allclose(saved["model"][key], mean, atol=1e-6), key
        assert torch.equal(saved["model"][key], tested[-1].state_dict()[key])
        assert torch.equal(saved["optimizers"][1][key], p), "the weights in training, for a resumed run"
    assert any(not torch.allclose(mean, p, atol=1e-4) for mean, p in zip(average, live))


# ---------------------------------------------------------------- resuming


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return all(map(same, one, other)) if isinstance(one, list) else one == other


@pytest.mark.parametrize("name", ["exp_ema", "exp_carry", "exp_trm_exact", "exp_trm_carry"])
def test_a_resumed_run_is_the_same_run(name, clean, monkeypatch):
    module, opened = experiments.load(name), []
    flags = [*QUICK, "--iterations", "4"] if "carry" in name else QUICK  # no pass is the last one before the interrupt
    real, open_folder = common.batch_at, common.Run.open_folder

    def interrupted(config, data, run, step, *rows):
        if step == 6:  # saved after 4 steps, and once more after 6
            raise KeyboardInterrupt
        return real(config, data, run, step, *rows)

    module.main([*flags, "--name", "whole"])
    with monkeypatch.context() as patch:
        patch.setattr(common, "batch_at", interrupted)
        patch.setattr(common.Run, "open_folder", lambda run: opened.append(run) or open_folder(run))
        with pytest.raises(KeyboardInterrupt):
            module.main([*flags, "--name", "half"])
        opened[0].close()
    module.main([*flags, "--name", "half", "--resume"])
    whole, half = (disk.load_checkpoint(clean / f"runs/{name}/{n}/checkpoint.pt") for n in ("whole", "half"))
    assert half["step"] > 6 and same(whole["model"], half["model"]) and same(whole["optimizers"], half["optimizers"])
