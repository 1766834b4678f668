"""The plain loop: sums as tokens, the log's model, recipes, a run with its outputs, stopped and resumed."""

import importlib.util
import json
import os
import re
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import plumbing.run
from addition import evaluate_checkpoints, plots, reliable, run, smallest, tiny, train
from addition.fast.batches import batches
from addition.train import EOS, EQUALS, LIMIT, PLUS, STANDARD, ModelConfig, Recipe, Settings, TinyDecoderLM
from plumbing import disk

LOW = ["--pos-rank", "3", "--qkv-rank", "3", "--attn-out-rank", "2", "--ffn-rank", "3"]
FULL = ["--pos-rank", "0", "--qkv-rank", "0", "--attn-out-rank", "0", "--ffn-rank", "0"]
SMALL = ["--train-steps", "4", "--eval-interval", "2", "--batch-size", "8", "--val-size", "16", "--test-size", "16"]
QUICK = dict(train_steps=40, batch_size=16, val_size=32, test_size=16, eval_interval=10, warmup=5, init_std=0.4,
             save_every=10)  # fmt: skip
SIZES = {
    456: dict(pos_rank=3, qkv_rank=3, attn_out_rank=2, ffn_rank=3, use_rmsnorm=True, tie_qkv="shareA_tieKV"),
    498: dict(pos_rank=3, qkv_rank=3, attn_out_rank=2, ffn_rank=3),
    512: dict(pos_rank=3, qkv_rank=3, attn_out_rank=3, ffn_rank=3),
    763: dict(),
    959: dict(d_ff=28),
    1128: dict(d_model=8, d_ff=28),
}
COMMANDS = {  # the log's, less steps, and the parameters they train
    "E1": ([*LOW, "--use-rmsnorm", "--tie-qkv", "shareA_tieKV", "--seed", "43"], 456),
    "E5": (["--pos-rank", "3", "--qkv-rank", "3", "--attn-out-rank", "3", "--ffn-rank", "3", "--seed", "42"], 512),
    "E8": (["--d-model", "7", "--d-ff", "14", *FULL, "--lr", "0.02", "--weight-decay", "0.01", "--seed", "42"], 763),
    "E9": (["--d-model", "7", "--d-ff", "28", *FULL, "--lr", "0.01", "--seed", "42"], 959),
    "E10": (["--d-model", "8", "--d-ff", "28", *FULL, "--lr", "0.01", "--seed", "42"], 1128),
    "E11": (["--wandb", "--wandb-mode", "disabled", "--eval-batch-size", "16", *LOW], 498),
}


def number(digits):
    return digits.astype(np.int64) @ 10 ** np.arange(digits.shape[1])


def build(size, seed=0, std=0.4):
    torch.manual_seed(seed)
    return TinyDecoderLM(ModelConfig(**SIZES[size]), std)


# ---------------------------------------------------------------- data


def test_one_row_by_hand():
    row = train.encode_pairs([(12, 9999999999)])[0].tolist()
    assert row == [0] * 8 + [1, 2, PLUS] + [9] * 10 + [EQUALS] + [1, 1] + [0] * 8 + [1, EOS]
    assert (STANDARD.length, STANDARD.first) == (33, 21)
    row = train.encode_pairs([(12, 30)], tiny.REVERSED)[0].tolist()
    assert row == [0, 2, 1] + [0] * 10 + [0, 3] + [0] * 9 + [2, 4] + [0] * 9


@pytest.mark.parametrize("layout", [STANDARD, tiny.REVERSED])
def test_rows_hold_the_pairs_and_their_sums(layout):
    pairs = np.concatenate([train.uniform_pairs(3, 200), train.carry_pairs(4, 200), [[0, 0], [LIMIT - 1, LIMIT - 1]]])
    rows = train.encode_pairs(pairs, layout).numpy()
    assert (number(rows[:, layout.a]) == pairs[:, 0]).all() and (number(rows[:, layout.b]) == pairs[:, 1]).all()
    assert (number(rows[:, layout.sum]) == pairs.sum(1)).all()
    assert rows.max() < layout.vocabulary


def test_numbers_out_of_range_are_named():
    with pytest.raises(ValueError, match="pair 1"):
        train.encode_pairs([(1, 2), (3, LIMIT)])


def operands(recipe, step=0):
    a, b = recipe.operands(step)
    return number(a), number(b)


def test_the_curriculum_bounds_the_digits_which_both_numbers_share():
    recipe = Recipe(Settings(batch_size=30_000, val_size=1, test_size=1))
    a, b = operands(recipe, 1_999)
    assert 100 < a.max() < 1000 and b.max() < 1000
    # count n has probability 1/3; a < 10 then has 1, 1/10, 1/100; both at once show that the count is shared
    assert (a < 10).mean() == pytest.approx((1 + 0.1 + 0.01) / 3, abs=0.01)
    assert ((a < 10) & (b < 10)).mean() == pytest.approx((1 + 0.01 + 0.0001) / 3, abs=0.01)
    last = np.bincount(a[a >= 100] % 10, minlength=10) / (a >= 100).sum()
    assert np.abs(last - 0.1).max() < 0.015
    for step, limit in ((2_000, 10**6), (6_999, 10**6), (7_000, 10**10)):
        assert limit / 10 < operands(recipe, step)[0].max() < limit


def test_batches_follow_from_the_seed():
    def batch(seed):
        return Recipe(Settings(seed=seed, batch_size=64)).batch(0)

    assert torch.equal(batch(1), batch(1)) and not torch.equal(batch(1), batch(2))


@pytest.mark.parametrize("make", [lambda recipe: recipe.batch, batches])
def test_held_out_pairs_never_come(make, monkeypatch):
    recipe = Recipe(Settings(batch_size=2, val_size=50, test_size=50))
    assert len(recipe.validation) == len(recipe.test) == 50 and len(recipe.held_out) == 100
    rows, free = torch.cat([recipe.validation, recipe.test]).numpy(), (5, 7)
    held = zip(number(rows[:, STANDARD.a]).tolist(), number(rows[:, STANDARD.b]).tolist())
    refused = [pairs for pair in held for pairs in ([pair, free], [free, pair])]
    offers = iter([*refused, [free, free]])
    monkeypatch.setattr(
        recipe, "operands", lambda step: train.digits(np.array(next(offers)).T.ravel()).reshape(2, 2, 10)
    )
    assert torch.equal(make(recipe)(0), train.encode_pairs([free, free]))
    assert not list(offers)


def chains(a, b):
    """The share of digit pairs that sum to nine, the stuff of long carries."""
    return np.mean([(a // 10**i % 10 + b // 10**i % 10 == 9).mean() for i in range(10)])


def test_carry_pairs_have_long_carries():
    assert chains(*train.uniform_pairs(1, 4000).T) == pytest.approx(0.1, abs=0.01)
    assert chains(*train.carry_pairs(1, 4000).T) == pytest.approx(0.55, abs=0.02)


# ---------------------------------------------------------------- model


@pytest.mark.parametrize("size", SIZES)
def test_the_log_s_sizes(size):
    assert train.count(build(size)) == size


def test_starting_values():
    full, low = build(763, std=0.02), build(498, std=0.02)
    assert full.pos_emb().std().item() == pytest.approx(0.02, rel=0.15)
    assert full.qkv().std().item() == pytest.approx(0.02, rel=0.15)
    assert low.pos_emb.a.std().item() == pytest.approx(0.02, rel=0.25)
    assert low.up.a.std().item() == pytest.approx((2 / 10) ** 0.5, rel=0.4)
    assert torch.equal(full.final.weight, torch.ones(7)) and not full.norm1.bias.any()
    assert (full.norm1.eps, build(456).norm1.eps) == (1e-5, 1e-8)


def test_tying_survives_a_save(tmp_path):
    first = build(498)
    torch.save({"model_config": asdict(first.config), "model_state": first.state_dict()}, tmp_path / "best.pt")
    saved = torch.load(tmp_path / "best.pt", weights_only=True)
    again = TinyDecoderLM(ModelConfig(**saved["model_config"]), 0.02)
    again.load_state_dict(saved["model_state"])
    assert first.lm_head.weight is first.token_emb.weight and again.lm_head.weight is again.token_emb.weight
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))


def test_from_dict_drops_what_it_does_not_know():
    old = dict(SIZES[498], n_layer=1, n_head=1, max_seq_len=33, vocab_size=14, dropout=0.0, use_rmsnorm=False)
    assert ModelConfig.from_dict(old) == ModelConfig(**SIZES[498])


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        *((ModelConfig, wrong) for wrong in (
            dict(pos_rank=8), dict(ffn_rank=-1), dict(attn_out_rank=9), dict(tie_qkv="shareB"),
            dict(tie_qkv="shareA_tieKV"), dict(n_layer=2), dict(d_model=0))),
        *((tiny.TinyConfig, wrong) for wrong in (
            dict(head_dim=3), dict(d_ff=0), dict(embedding="arc", d_model=1), dict(query="zeros"),
            dict(values="query", query="zeros", embedding="unit"), dict(values="joined", head_dim=2))),
        *((smallest.SmallestConfig, wrong) for wrong in (
            dict(joined="___"), dict(up="11/__/_"), dict(gate="__/__/_"), dict(down="_x0/_?0"), dict(final="aA"),
            dict(period=0), dict(radius=-1))),
    ],
)  # fmt: skip
def test_a_wrong_config_names_its_field(config, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        config(**wrong)


def test_no_token_sees_what_follows():
    model = build(456)
    rows = train.encode_pairs(train.uniform_pairs(1, 20)).long()
    changed = rows.clone()
    changed[:, 25] = (changed[:, 25] + 1) % 10
    before, after = model(rows[:, :33]), model(changed[:, :33])
    assert torch.equal(before[:, :25], after[:, :25]) and not torch.equal(before[:, 25:], after[:, 25:])


def greedy(model, rows):
    """The answers that the model generates, token by token."""
    layout, tokens = model.config.layout, rows[:, : model.config.layout.first + 1].long()
    for _ in layout.sum:
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens[:, layout.first + 1 :]


def test_one_pass_counts_what_greedy_decoding_gets_right():
    """The shipped weights with noise: some sums are right, and many answers are wrong from some digit on."""
    model = evaluate_checkpoints.load(Path(__file__).parents[2] / "addition/weights/456p.pt")
    rows = train.encode_pairs(train.uniform_pairs(2, 300))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * p.abs() * torch.randn_like(p))
        expected = (greedy(model, rows) == rows[:, list(STANDARD.sum)]).all(1).sum()
    assert 20 < expected < 280 and train.test(model, rows)[1] == train.test(model, rows, at_once=77)[1] == expected


def test_the_loss_is_that_of_the_answer_s_tokens():
    model, rows = build(763), train.encode_pairs(train.uniform_pairs(1, 5))
    logits = model(rows[:, :33].long()).log_softmax(-1)
    picked = [logits[i, place - 1, int(rows[i, place])] for i in range(5) for place in range(22, 34)]
    assert train.mean_loss(model, rows).item() == pytest.approx(-torch.stack(picked).mean().item(), rel=1e-5)


# ---------------------------------------------------------------- recipes


def test_the_log_s_schedule():
    recipe = Recipe(Settings(val_size=1, test_size=1))
    assert recipe.learning_rate(0) == pytest.approx(0.02 / 1350)
    assert recipe.learning_rate(1349) == pytest.approx(0.02)
    assert recipe.learning_rate((1350 + 27_000) // 2) == pytest.approx(0.02 * 0.55, rel=1e-3)
    assert recipe.learning_rate(27_000) == pytest.approx(0.002)
    assert recipe.weight_decay(9_999) == 0.01 and recipe.sharpness(0) == 1


def test_a_stage_without_mastery_ends_with_its_steps():
    recipe = reliable_recipe(first_stage=10, mastery=0.0)
    recipe.note(9.0)
    recipe.operands(9)
    assert recipe.stage(9) == "zeros and nines"
    recipe.operands(10)
    assert recipe.stage(10) == "all digits"


def test_tiny_models_start_as_said():
    """Matrices N(0, init_std), an arc of about a quarter circle, attention of about 5."""
    config = tiny.TinyConfig(embedding="arc", norms="none")
    starts = [
        tiny.Recipe(tiny.Settings(model=config, seed=s, init_std=0.5, val_size=1, test_size=1)).model()
        for s in range(60)
    ]
    arcs = torch.stack([model.arc.detach() for model in starts])
    torch.testing.assert_close(arcs.mean(0), torch.tensor([10.0, 0.0, 1.5]), atol=0.5, rtol=0)
    assert torch.stack([model.query for model in starts]).std().item() == pytest.approx(0.5, rel=0.1)
    assert torch.stack([model.scale for model in starts]).mean().item() == pytest.approx(5, abs=0.3)


def reliable_recipe(**settings):
    return reliable.Recipe(reliable.Settings(batch_size=4_000, val_size=1, test_size=1, **settings))


def test_the_first_stage_is_of_zeros_and_nines_until_it_is_mastered():
    recipe = reliable_recipe(first_stage=10, mastery=0.2, rehearse=0.0)

    def simple(step):
        digits = np.concatenate(recipe.operands(step))
        return np.isin(digits, (0, 9)).all(1).mean()

    recipe.note(1.0)
    assert simple(9) == 1 and simple(10) == 1 and recipe.stage(10) == "zeros and nines"  # its loss is not below 0.2
    for _ in range(200):
        recipe.note(0.1)
    assert simple(9) == 1 and simple(10) < 0.1 and recipe.stage(11) == "all digits"
    recipe.note(1.0)
    assert simple(11) < 0.1  # there is no way back
    recipe.s = replace(recipe.s, rehearse=0.3)
    assert simple(12) == pytest.approx(0.3 + 0.7 * 0.03, abs=0.03)


@pytest.mark.parametrize("carry", [0.0, 0.4, 1.0])
def test_a_share_of_the_batch_has_long_carries(carry):
    recipe = reliable_recipe(first_stage=0, rehearse=0.0, carry=carry)
    recipe.counts = lambda step: np.full((4_000, 1), 10)
    assert chains(*operands(recipe)) == pytest.approx(0.1 + 0.45 * carry, abs=0.02)


def test_decay_fades_and_attention_sharpens():
    recipe = reliable_recipe(weight_decay=0.4, decay_until=100, soften=0.2, soften_until=50)
    assert [recipe.weight_decay(step) for step in (0, 50, 100, 200)] == pytest.approx([0.4, 0.2, 0, 0])
    assert [recipe.sharpness(step) for step in (0, 25, 50, 200)] == pytest.approx([0.2, 0.6, 1, 1])
    assert reliable_recipe(weight_decay=0.4, decay_until=0).weight_decay(10**6) == 0.4
    model, rows = build(763), train.encode_pairs(train.uniform_pairs(1, 5))
    before = model(rows[:, :33].long(), 0.5)
    with torch.no_grad():
        model.qkv.weight[:, :7] *= 0.5  # the queries
    torch.testing.assert_close(model(rows[:, :33].long()), before)


def test_a_stuck_start_is_given_up():
    """In the first stage when it should have been left, with few right sums later, or below 99 % at its end; unless the
    budget is too small for another one."""
    recipe = reliable_recipe(train_steps=300, leave=100, judge=200, promising=0.3, budget=600)
    assert recipe.s.steps == 600 and reliable_recipe(budget=0).s.steps == 24_000
    weights, told = list(recipe.model().parameters()), recipe.verdict
    recipe.first = True
    assert (told(98, 0), told(99, 0), told(199, 0.5)) == ("", "stuck", "")
    recipe.first = False
    assert (told(150, 0), told(199, 0.29), told(199, 0.3), told(250, 0.2)) == ("", "stuck", "", "stuck")
    assert (told(299, 0.98), told(299, 0.99)) == ("stuck", "over")
    recipe.note(0.1)
    assert not torch.equal(weights[0], next(recipe.again(120).parameters()))
    assert (recipe.begun, recipe.given_up, recipe.first, recipe.smooth) == (120, 1, True, None)
    assert (told(179, 0), told(180, 0)) == ("stuck", "")  # 120 + 180 + 300 is within the budget of 600
    assert (told(250, 0), told(299, 0)) == ("", "over")


def test_tiny_runs_may_end_on_full_lengths():
    recipe = tiny.Recipe(tiny.Settings(batch_size=1_000, val_size=1, test_size=1, full=5))
    assert set(recipe.counts(4)[:, 0]) == set(range(1, 11)) and set(recipe.counts(5)[:, 0]) == {10}


# ---------------------------------------------------------------- runs


RUN_PLOTS = plots.run_plots  # before the fixture of conftest.py


@pytest.mark.parametrize("name", COMMANDS)
def test_the_log_s_commands(name, clean, monkeypatch):
    if name == "E1":
        monkeypatch.setattr(plots, "run_plots", RUN_PLOTS)
    flags, parameters = COMMANDS[name]
    train.main(["--run-name", name, *SMALL, "--device", "cpu", *flags])
    folder = clean / "results/runs" / name
    assert json.loads((folder / "summary.json").read_text())["parameters"] == parameters
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert written - {"checkpoint.pt"} == {
        "config.json", "log.txt", "summary.json", "metrics.csv", "checkpoints/best.pt", "checkpoints/last.pt",
        *(["train_val_loss_per_step.png", "val_accuracy_per_step.png"] if name == "E1" else []),
    }  # fmt: skip
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3


def test_the_log_s_evaluation(clean, monkeypatch):
    monkeypatch.setattr(train, "SCORE_SEEDS", (41, 500))
    summary = train.main(["--run-name", "smoke", *SMALL])
    evaluate_checkpoints.main(
        ["results/runs/smoke/checkpoints/best.pt", "--device", "cpu", "--batch-size", "5000", "--output", "eval.json"]
    )
    (found,) = json.loads(Path("eval.json").read_text())["checkpoints"]
    assert found["errors"] == summary["errors_in_100000"] == sum(summary["errors_by_seed"].values())


def weights(folder, kind="last"):
    return torch.load(Path(folder) / f"checkpoints/{kind}.pt", weights_only=True)["model_state"]


def trained(folder, module=reliable, log=None, **settings):
    """Train in this folder; `log` gets every line of the log."""
    options = module.Settings(**{**QUICK, "name": folder.name, "runs": str(folder.parent), **settings})
    its_run = run.Run(options, module.__name__.rpartition(".")[2])
    its_run.log = log or (lambda line: None)
    try:
        return train.train(module.Recipe(options), its_run)
    finally:
        its_run.close()
        its_run.lock.close()


def test_training_is_adamw_on_the_clipped_gradients(tmp_path):
    """Three steps by hand."""
    trained(tmp_path / "a", train, train_steps=3, eval_interval=3, beta2=0.9)
    recipe = Recipe(Settings(**QUICK | dict(train_steps=3)))
    model = recipe.model()
    parameters = list(model.parameters())
    mean, square = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step in range(3):
        gradients = torch.autograd.grad(train.mean_loss(model, recipe.batch(step)), parameters)
        scale = min(1.0, 1 / torch.cat([g.flatten() for g in gradients]).norm().item())
        rate = recipe.learning_rate(step)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, mean, square):
                m.lerp_(scale * g, 0.1)
                v.lerp_((scale * g).square(), 0.1)
                p.mul_(1 - rate * 0.01)
                p.sub_(rate * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8))
    for name, value in weights(tmp_path / "a").items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


STUCK = dict(budget=40, leave=10, judge=20, first_stage=5, mastery=0.01)  # with 30 steps the first start is given up


def test_a_new_start_is_a_run_of_its_own_seed(tmp_path):
    """Weights, optimizer and schedule begin anew."""
    lines = []
    summary = trained(tmp_path / "stuck", log=lines.append, seed=7, train_steps=30, **STUCK)
    assert summary["starts"] == 2 and summary["sums_seen"] == (10 + 30) * 16
    assert any("start 1 is stuck" in line for line in lines)
    recipe = reliable.Recipe(reliable.Settings(**QUICK | dict(seed=7, train_steps=30) | STUCK))
    for step in range(10):
        recipe.batch(step)
        recipe.note(9.0)
    model = recipe.again(10)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999))
    for step in range(30):
        optimizer.param_groups[0].update(lr=recipe.learning_rate(step), weight_decay=recipe.weight_decay(step))
        loss = train.mean_loss(model, recipe.batch(step), recipe.sharpness(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recipe.note(loss.item())
    for name, value in weights(tmp_path / "stuck", "last").items():
        assert torch.equal(model.state_dict()[name], value)


class Killed(Exception):
    pass


def killed():
    raise Killed


def stop_at(monkeypatch, step, action):
    """Have `action` called after the training step with this index."""
    note, count = train.Recipe.note, []

    def noted(recipe, loss):
        note(recipe, loss)
        count.append(loss)
        if len(count) == step + 1:
            action()

    monkeypatch.setattr(train.Recipe, "note", noted)


def metrics_without_seconds(folder):
    return [line.rsplit(",", 1)[0] for line in (folder / "metrics.csv").read_text().splitlines()]


def assert_same_results(one, two):
    for kind in ("best", "last"):
        a, b = weights(one, kind), weights(two, kind)
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert metrics_without_seconds(one) == metrics_without_seconds(two)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trained(folder)
    return folder


@pytest.mark.parametrize("step", [5, 24])  # before the first checkpoint, and between two
def test_a_killed_run_resumes_to_the_same_weights(step, whole, tmp_path, monkeypatch):
    folder, lines = tmp_path / "killed", []
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, step, killed)
        trained(folder)
    summary = trained(folder, log=lines.append, resume=True)
    assert any(f"resumed after step {step // 10 * 10}" in line for line in lines) == (step > 10)
    assert_same_results(whole, folder)
    assert trained(folder, resume=True) == summary  # it has ended, and says so


def test_a_signal_saves_after_the_step(whole, tmp_path, monkeypatch):
    """Step 14 lies between two validations; the mean training loss of both parts must be kept."""
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        stop_at(patch, 13, lambda: os.kill(os.getpid(), signal.SIGTERM))
        trained(folder)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert disk.load_checkpoint(folder / "checkpoint.pt")["step"] == 14
    trained(folder, resume=True)
    assert_same_results(whole, folder)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The folder of a run that was killed."""
    folder = tmp_path_factory.mktemp("runs") / "half"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 15, killed)
        trained(folder)
    return folder


@pytest.mark.parametrize(
    "other", [dict(lr=0.5), dict(seed=7), dict(train_steps=30), dict(model=ModelConfig(d_model=8))]
)
@pytest.mark.parametrize("ended", [False, True])
def test_resume_refuses_other_settings(other, ended, whole, half):
    folder = whole if ended else half
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.suffix != ".txt"}
    with pytest.raises(SystemExit, match=next(iter(other))):
        trained(folder, resume=True, **other)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_is_not_overwritten_and_its_folder_not_shared(clean):
    train.main(["--run-name", "mine", *SMALL])
    before = Path("results/runs/mine/summary.json").read_bytes()
    with pytest.raises(SystemExit, match="--resume"):
        train.main(["--run-name", "mine", *SMALL, "--seed", "7"])
    assert Path("results/runs/mine/summary.json").read_bytes() == before
    first = run.Run(Settings(name="other"), "train")
    with pytest.raises(SystemExit, match="in use"):
        train.main(["--run-name", "other", *SMALL])
    first.lock.close()


@pytest.mark.parametrize("step", [3, 24])  # before the first validation, and after one
def test_a_run_that_diverges_is_a_result(step, tmp_path, monkeypatch):
    """It keeps its best weights, and says so again when it is resumed."""
    rate = reliable.Recipe.learning_rate
    monkeypatch.setattr(reliable.Recipe, "learning_rate", lambda self, at: 1e38 if at >= step else rate(self, at))
    summary = trained(tmp_path / "a")
    assert step < summary["diverged_at"] <= step + 3 and summary["best_val_exact"] == 0
    assert (tmp_path / "a/checkpoints/best.pt").exists() == (step == 24)
    assert trained(tmp_path / "a", resume=True) == summary


def test_a_full_disk_loses_nothing(whole, tmp_path):
    folder, replace_file = tmp_path / "full", disk.replace

    def write(path, fill):
        if path == folder / "checkpoint.pt" and path.exists():
            raise OSError(28, "No space left on device")
        replace_file(path, fill)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="No space left"):
        patch.setattr(disk, "replace", write)
        trained(folder)
    trained(folder, resume=True)
    assert_same_results(whole, folder)


@pytest.mark.parametrize(
    "document",
    ["README.md", "addition/README.md", "addition/train.py", "addition/reliable.py", "addition/tiny.py",
     "addition/export.py", "addition/fast/sweep.py", "addition/fast/bench.py"],
)  # fmt: skip
def test_commands_in_the_pages_exist(document):
    for name in re.findall(r"python -m (addition[.\w]*)", (Path(__file__).parents[2] / document).read_text()):
        assert importlib.util.find_spec(name), name


def test_wandb_gets_every_row_and_cannot_end_a_run(tmp_path, monkeypatch):
    sent = []

    class Service:
        def log(self, row, step):
            sent.append((step, row))
            raise ConnectionError

    monkeypatch.setattr(plumbing.run, "start_wandb", lambda *arguments: Service())
    trained(tmp_path / "w")
    assert [step for step, _ in sent] == [10, 20, 30, 40] and {"val_exact", "lr"} <= sent[0][1].keys()


@pytest.mark.parametrize(
    "flags",
    [
        "--pos-rank 9", "--d-model 0", "--device quantum", "--device mps", "--train-steps 0", "--train-steps -5",
        "--lr nan", "--lr inf", "--lr -1", "--lr 0", "--weight-decay -1", "--batch-size 0", "--val-size 99999999999",
        "--beta2 2", "--beta2 1", "--warmup -1", "--save-every 0", "--seed -5", "--seed 9999999999", "--init-std 0",
        "--wandb-mode later", "--pos-ranks 3", "--run-name ../../x", "--run-name .", "--runs /dev/null",
        "--carry 2", "--rehearse nan", "--rehearse 3", "--soften 1.5", "--mastery -1",
    ],
)  # fmt: skip
def test_wrong_flags_are_errors(flags, clean, capsys):
    """One line that names the flag, and no folder is left behind."""
    flag, value = flags.split()
    if value == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    small = dict(zip(SMALL[::2], SMALL[1::2])) | {flag: value}
    with pytest.raises(SystemExit) as error:
        train.main([word for pair in small.items() for word in pair], reliable.Settings, reliable.Recipe)
    message = str(error.value) + capsys.readouterr().err
    assert error.value.code not in (0, None)
    named = flag.strip("-").replace("-", "_")
    assert named in message.replace("-", "_") or (flag == "--run-name" and "--name" in message)
    assert not [path for path in clean.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "module",
    ["train", "reliable", "tiny", "fast.sweep", "evaluate_checkpoints", "export", "verify", "report", "fast.bench"],
)
def test_help(module, capsys):
    module = importlib.import_module(f"addition.{module}")
    arguments = (module.Settings, module.Recipe, module.__file__) if module in (reliable, tiny) else ()
    with pytest.raises(SystemExit) as stop:
        (train if arguments else module).main(["--help"], *arguments)
    assert not stop.value.code and len(capsys.readouterr().out) > 200
