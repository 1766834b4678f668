"""The children of exp_cosine.py, exp_cosine_no_sam.py and exp_cosine_50k.py: settings, and the idea of each."""

import math
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import common
import exp_cosine_25k_bs8k
import exp_cosine_140k
import exp_cosine_ema
from data import store
from plumbing import disk, loop
from tests import experiments
from tests.test_experiments import NO_SAM, WARMUP, hard_to_easy, optimizers_of, rated, small
from tests.test_experiments import SETTINGS as KNOWN

SHORT = KNOWN["exp_cosine_50k"]
SETTINGS = {
    "exp_cosine_mixed": WARMUP | {"phases": ((70_000, 0.0, math.inf),)},
    "exp_cosine_regular": WARMUP
    | {"phases": ((14_000, 0.0, 3.0), (28_000, 0.0, 11.0), (42_000, 0.0, 51.0), (70_000, 0.0, math.inf))},
    "exp_cosine_140k": WARMUP | {"steps": 140_000, "phases": hard_to_easy(28_000, 56_000, 84_000, 140_000)},
    "exp_cosine_wd": NO_SAM | {"weight_decay": 1.0},
    "exp_cosine_relu2": NO_SAM,
    "exp_cosine_ema": NO_SAM | {"ema": 0.999},
    "exp_cosine_25k_bs8k": SHORT
    | {"batch": 8192, "micro_batches": 1, "steps": 25_000, "warmup": 700, "evaluate_every": 2_500}
    | {"phases": hard_to_easy(5_000, 10_000, 15_000, 25_000)},
    "exp_cosine_50k_1M": SHORT | {"width": 144, "mlp": 576},
}
SMOKE = ["--preset", "smoke"]


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_log(name):
    module = experiments.load(name)
    config = module.Config()
    assert {field: getattr(config, field) for field in SETTINGS[name]} == SETTINGS[name]
    assert hasattr(config, "rho") == hasattr(module, "perturb") == ("rho" in SETTINGS[name])
    parameters = sum(p.numel() for p in module.Model(config).parameters())
    assert parameters == (1_011_033 if name == "exp_cosine_50k_1M" else 800_393)


def ratings_at(name, *steps):
    """The ratings in the pool of each of these steps, out of 0, 1, 2, 3, 10, 11, 50, 51, 400."""
    config, data = experiments.load(name).Config(), rated(store.EXTREME)
    return [sorted({int(r) for r in data.train.rating[common.pool_at(config, data, step)]}) for step in steps]


def test_mixed_draws_from_all_puzzles_throughout():
    everything = [0, 1, 2, 3, 10, 11, 50, 51, 400]
    assert ratings_at("exp_cosine_mixed", 0, 14_000, 69_999) == [everything] * 3


def test_regular_takes_whole_buckets_from_the_easy_end():
    everything = [0, 1, 2, 3, 10, 11, 50, 51, 400]
    pools = ratings_at("exp_cosine_regular", 0, 13_999, 14_000, 28_000, 42_000)
    assert pools == [everything[:3], everything[:3], everything[:5], everything[:7], everything]


def test_140k_stretches_phases_and_cosine_but_not_the_warm_up():
    assert [pool[0] for pool in ratings_at("exp_cosine_140k", 27_999, 28_000, 56_000, 84_000)] == [51, 11, 1, 0]
    config = exp_cosine_140k.Config()
    for step, rate in {1_999: 1.5e-3, 85_000: 5.25e-4, 90_000: 4.46e-4, 95_000: 3.72e-4, 139_999: 1.5e-5}.items():
        found = common.cosine_rate(step, config.lr, config.warmup, config.steps)
        assert found == pytest.approx(rate, rel=2e-3)


def test_weight_decay_reaches_every_parameter(clean, monkeypatch):
    module = experiments.load("exp_cosine_wd")
    (adamw,) = optimizers_of(module, monkeypatch)
    assert adamw["weight_decay"] == 1.0
    assert len(adamw["params"]) == len(list(module.Model(common.with_preset(module.Config(), "smoke")).parameters()))


def test_relu_is_squared():
    layer, seen = small("exp_cosine_relu2").layers[0], []
    for part in (layer.up, layer.down):
        part.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
    layer(torch.randn(2, 81, layer.up.in_features, generator=torch.Generator().manual_seed(0)))
    (_, before), (after, _) = seen
    assert torch.equal(after, before.clamp(min=0) ** 2) and after.max() > 0


# ---------------------------------------------------------------- EMA


@pytest.fixture
def traced(monkeypatch):
    """The weights after each optimiser step, and each model that is tested with its weights."""
    steps, tested, evaluate = [], [], common.evaluate

    def spy(model, *arguments):
        tested.append((model, {name: p.detach().clone() for name, p in model.named_parameters()}))
        return evaluate(model, *arguments)

    monkeypatch.setattr(common, "evaluate", spy)
    hook = register_optimizer_step_post_hook(
        lambda optimizer, *_: steps.append([p.detach().clone() for p in optimizer.param_groups[0]["params"]])
    )
    yield steps, tested
    hook.remove()


def test_ema_averages_from_the_initial_weights_on_and_is_what_gets_tested(clean, traced, monkeypatch):
    (steps, tested), average = traced, []

    def compiled(run, model):  # as on a GPU
        average.extend(p.detach().clone() for p in model.parameters())
        loop.replace(model, type(model).iterate)
        return model

    monkeypatch.setattr(common.Run, "compiled", compiled)
    summary = exp_cosine_ema.main([*SMOKE, "--test-iterations", "1"])
    for live in steps:
        average = [0.96 * old + 0.04 * new for old, new in zip(average, live)]  # 0.999 looks back 40 times further
    (folder,) = clean.glob("runs/exp_cosine_ema/*")
    saved = disk.load_checkpoint(folder / "checkpoint.pt")
    for (name, mean), expected in zip(saved["model"].items(), average):
        assert torch.allclose(mean, expected, atol=1e-7), name
        assert not torch.allclose(saved["optimizers"][-1][name], expected, atol=1e-7), name
    exp_cosine_ema.main([*SMOKE, "--test-iterations", "3", "--resume"])  # only tests
    *_, last, live, end = (weights for _, weights in tested)
    for name in live:
        assert torch.equal(last[name], saved["model"][name]) and torch.equal(live[name], saved["optimizers"][-1][name])
        assert torch.equal(end[name], last[name])
    assert len(tested) == 4 and all("iterate" in vars(model) for model, _ in tested), "copied after compiling"
    assert summary["live"]["puzzles"] == summary["test"]["2"]["puzzles"]
    assert "live weights: solved" in (folder / "log.txt").read_text()


def test_a_resumed_average_is_the_same_bit_for_bit(clean, monkeypatch):
    def checkpoint(name, *flags):
        exp_cosine_ema.main([*SMOKE, "--name", name, *flags])
        return disk.load_checkpoint(clean / f"runs/exp_cosine_ema/{name}/checkpoint.pt")

    def killed(config, data, run, step):
        if step == 4:
            run.close()
            raise SystemExit("killed")
        return batch_at(config, data, run, step)

    whole, batch_at = checkpoint("whole"), common.batch_at
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="killed"):
        patch.setattr(common, "batch_at", killed)
        checkpoint("killed")
    resumed = checkpoint("killed", "--resume")
    for one, two in ((whole["model"], resumed["model"]), (whole["optimizers"][-1], resumed["optimizers"][-1])):
        assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert whole["notes"]["live"] == resumed["notes"]["live"]


# ---------------------------------------------------------------- batch 8192


def bs8k(name, *flags):
    exp_cosine_25k_bs8k.main([*SMOKE, "--name", name, "--steps", "4", *flags])
    folder = Path("runs/exp_cosine_25k_bs8k") / name
    return disk.load_checkpoint(folder / "checkpoint.pt"), (folder / "log.txt").read_text()


def test_micro_batches_take_the_step_of_the_whole_batch(clean, monkeypatch):
    sizes, forward_loss = [], exp_cosine_25k_bs8k.forward_loss
    monkeypatch.setattr(
        exp_cosine_25k_bs8k,
        "forward_loss",
        lambda m, batch, c: sizes.append(len(batch.puzzle)) or forward_loss(m, batch, c),
    )
    one, _ = bs8k("one")
    three, log = bs8k("three", "--micro-batches", "3")
    assert sizes == [22] * 4 + [8, 8, 6] * 4
    for a, b in zip(one["rows"], three["rows"]):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-5) and a["accuracy"] == b["accuracy"]
    for name, value in one["model"].items():
        if "qkv.bias" not in name:  # the keys' bias has only rounding noise for a gradient
            assert torch.allclose(value, three["model"][name], atol=1e-4), name
    assert log.index("# 7 puzzles at once: the backward pass needs 0.0 GB") < log.index("step ")


def test_too_large_a_batch_ends_with_what_to_do_before_or_in_a_step(clean, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 648.00 MiB.")

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match=r"648\.00 MiB(.|\n)*--micro-batches"):
        patch.setattr(exp_cosine_25k_bs8k, "forward_loss", full)
        bs8k("during")
    monkeypatch.setattr(loop, "free_bytes", lambda device: 1e4)
    with pytest.raises(SystemExit, match=r"needs .* GB, .* are free.*still too much.*--micro-batches"):
        bs8k("before")
    assert not Path("runs/exp_cosine_25k_bs8k/before/metrics.csv").exists()
