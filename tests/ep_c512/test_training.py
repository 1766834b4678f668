"""Runs of ep_c512.train: every estimator, resume, kills, the gate, what ends a run, flags."""

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ep_c512 import compare, data, run, train
from ep_c512.gradients import ESTIMATORS
from ep_c512.run import parse
from ep_c512.train import Config
from plumbing import disk
from tests.processes import start

ROOT = Path(__file__).parent.parent.parent
SMOKE = ["--preset", "smoke", "--name", "x"]
FOLDER = Path("runs/ep_c512/x")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(data, "GENERATED", 200)


def rows(name="x"):
    found = disk.read_rows(Path(f"runs/ep_c512/{name}/metrics.csv"))
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in found]


def weights(name="x"):
    return disk.load_checkpoint(f"runs/ep_c512/{name}/checkpoint.pt")["model"]


def same(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "bp"])
def test_every_estimator_trains(estimator, clean):
    summary = train.main([*SMOKE, "--estimator", estimator, "--steps", "2", "--validation-windows", "4"])
    assert math.isfinite(summary["validation"]) and summary["bigram"] > 1 and summary["skipped"] == 0
    assert summary["parameters"] == (5_752 if estimator == "bp" else 5_704)


def test_training_learns_with_the_gradient_of_bptt(clean):
    """Tracking from random weights follows BPTT: the same batches, nearly the same loss, which falls."""
    flags = ["--steps", "60", "--lr", "1e-2", "--evaluate-every", "60", "--save-every", "60"]
    losses = {}
    for name in ("tracking-2", "frozen-2", "bptt"):
        summary = train.main(["--preset", "smoke", "--name", name, "--estimator", name, *flags])
        losses[name] = [float(row["loss"]) for row in rows(name)]
        assert summary["validation"] < 5.3
    assert all(abs(a - b) < 2e-3 for name in ("tracking-2", "frozen-2") for a, b in zip(losses[name], losses["bptt"]))


def test_a_killed_run_resumes_to_the_same_weights(clean, monkeypatch):
    flags = ["--preset", "smoke", "--steps", "8", "--save-every", "3", "--specnorm", "--rho", "0.5", "--navg", "2"]
    flags += ["--report-every", "2", "--res-target", "1e-9", "--gate-change", "5e-4"]
    train.main([*flags, "--name", "whole"])
    assert 0 < int(rows("whole")[-1]["skipped"]) < 8 and float(rows("whole")[-1]["weight"]) > 0.11
    real = data.Text.batch
    for step in (2, 10, 14):
        with monkeypatch.context() as patch, pytest.raises(KeyError):

            def batch(self, config, run, now, step=step):
                if now == step:
                    run.close()
                    raise KeyError
                return real(self, config, run, now)

            patch.setattr(data.Text, "batch", batch)
            train.main([*flags, "--name", "killed", "--resume"])
    train.main([*flags, "--name", "killed", "--resume"])
    assert Path("runs/ep_c512/killed/log.txt").read_text().count("# resumed after step") == 2
    assert same(weights("whole"), weights("killed")) and rows("whole") == rows("killed")


def test_torchrun_gives_the_same_curve_and_weights(clean):
    """Two processes that share each batch and its penalty's noise, and agree on the controller."""
    path = clean / "text.txt"
    path.write_text(data.stories.text(100, 1))
    flags = ["--preset", "smoke", "--data", str(path), "--res-target", "1e-8", "--penalty-bound", "0.1", "--steps", "5"]
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "ep_c512.train"]
    process = start(*words, *flags, "--name", "two")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    train.main([*flags, "--name", "one"])
    for a, b in zip(rows("one"), rows("two"), strict=True):
        for name in ("loss", "weight", "validation", "leading"):
            assert a[name] == b[name] == "" or float(a[name]) == pytest.approx(float(b[name]), rel=1e-4), name
    one, two = weights("one"), weights("two")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_a_real_kill(clean):
    """The file started by its path, as in Modal's container."""
    path = clean / "text.txt"
    path.write_text(data.stories.text(100, 1))
    flags = ["--preset", "smoke", "--data", str(path), "--steps", "60", "--save-every", "4", "--evaluate-every", "30"]
    process = start(ROOT / "ep_c512/train.py", *flags, "--name", "killed")
    metrics = clean / "runs/ep_c512/killed/metrics.csv"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(disk.read_rows(metrics)) < 6:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    train.main([*flags, "--name", "killed", "--resume"])
    assert "# resumed after step" in metrics.with_name("log.txt").read_text()
    train.main([*flags, "--name", "whole"])
    assert same(weights("whole"), weights("killed")) and rows("whole") == rows("killed")


def test_no_update_where_the_residual_is_above_the_gate(clean):
    summary = train.main([*SMOKE, "--gate", "1e-12", "--steps", "3", "--ema", "0", "--jacreg", "0"])
    assert summary["skipped"] == 3 and all(row["skipped"] == str(i) for i, row in enumerate(rows(), 1))
    torch.manual_seed(0)
    start_weights = train.Block(parse(Config, SMOKE)).state_dict()
    assert same(start_weights, weights())
    train.main(["--preset", "smoke", "--name", "y", "--steps", "3", "--gate-change", "1"])
    assert not same(start_weights, weights("y"))
    changes = [float(row["change"]) for row in rows("y")]
    gate = ["--steps", "3", "--gate-change", str(0.5 * min(changes))]
    train.main(["--preset", "smoke", "--name", "z", *gate, "--jacreg", "0"])
    assert same(start_weights, weights("z"))
    train.main(["--preset", "smoke", "--name", "penalised", *gate])  # the penalty alone is followed
    found = weights("penalised")
    assert torch.equal(found["tok"], start_weights["tok"]) and not torch.equal(found["pj"], start_weights["pj"])


def test_a_closed_gate_stops_the_momentum_of_what_the_penalty_leaves_alone(clean, monkeypatch):
    passed = iter([True, True, True, False, False, False])
    monkeypatch.setattr(run.Run, "passes", lambda self, health: next(passed))
    seen, real = [], run.Average.update
    kept = lambda model: {name: p.detach().clone() for name, p in model.named_parameters()}  # noqa: E731
    monkeypatch.setattr(
        run.Average, "update", lambda self, model, step: seen.append(kept(model)) or real(self, model, step)
    )
    train.main([*SMOKE, "--lr", "0.05", "--schedule", "constant"])
    assert not torch.equal(seen[1]["tok"], seen[2]["tok"])
    assert torch.equal(seen[2]["tok"], seen[5]["tok"]) and torch.equal(seen[2]["head"], seen[5]["head"])
    assert not torch.equal(seen[2]["pj"], seen[5]["pj"])


def test_spectral_caps_and_the_penalty_bound_act_in_training(clean, monkeypatch):
    train.main([*SMOKE, "--specnorm", "--rho", "0.3", "--ema", "0"])
    sizes = [float(torch.linalg.matrix_norm(weights()[name], 2)) for name in ("wq", "wk", "wv")]
    assert all(size < 0.33 for size in sizes), sizes
    seen, real = [], train.added
    monkeypatch.setattr(train, "added", lambda ce, extra, bound: seen.append(bound) or real(ce, extra, bound))
    train.main(["--preset", "smoke", "--name", "bound", "--penalty-bound", "0.3", "--steps", "1"])
    assert seen == [0.3]


def test_a_block_that_does_not_settle_ends_the_run(clean):
    with pytest.raises(SystemExit) as end:
        train.main([*SMOKE, "--abort", "1e-12"])
    assert end.value.code == 0
    summary = json.loads((FOLDER / "summary.json").read_text())
    assert summary["aborted_at"] == summary["diverged_at"] == 1 and "validation" not in summary
    assert summary["skipped"] == 0 and summary["solved"] is None
    with pytest.raises(SystemExit):
        train.main([*SMOKE, "--abort", "1e-12", "--resume"])
    assert "# this run diverged at step 1" in (FOLDER / "log.txt").read_text()


def test_an_aborted_run_says_what_came_before(clean, monkeypatch):
    """Its best validation and its largest residual and eigenvalue are in the summary, for the tables."""
    real, calls = train.estimated, []

    def estimated(*arguments):
        free, estimate = real(*arguments)
        calls.append(0)
        return replace(free, residual=0.5 if len(calls) == 6 else 0.01 * len(calls)), estimate

    monkeypatch.setattr(train, "estimated", estimated)
    with pytest.raises(SystemExit):
        train.main([*SMOKE, "--diagnose-every", "1"])
    summary = json.loads((FOLDER / "summary.json").read_text())
    assert summary["aborted_at"] == 6 and summary["residual_max"] == 0.5
    leading = [float(row["leading"]) for row in rows()]
    assert all(float(row["leading"]) > float(row["leading_mean"]) and float(row["growth"]) > 0 for row in rows())
    assert len(leading) == 5 and summary["leading_max"] == max(leading) > min(leading)
    losses = {int(row["step"]): float(row["validation"]) for row in rows() if row["validation"]}
    assert summary["best"] == {"step": min(losses, key=losses.get), "validation": min(losses.values())}
    assert all(float(row["force_residual_max"]) == pytest.approx(2 * float(row["residual_max"])) for row in rows())


def test_a_run_that_diverges_ends_with_a_summary(clean, monkeypatch):
    monkeypatch.setattr(train, "learning_rate", lambda config, step: math.nan if step == 3 else 1e-3)
    with pytest.raises(SystemExit):
        train.main([*SMOKE, "--save-every", "3", "--evaluate-every", "6", "--report-every", "6"])
    summary = json.loads((FOLDER / "summary.json").read_text())
    assert summary["diverged_at"] == 5 and summary["solved"] is None and "aborted_at" not in summary
    assert disk.load_checkpoint(FOLDER / "checkpoint.pt")["step"] == 3


def test_free_phases_go_on_until_they_settle(monkeypatch):
    """EP's goes on to `refine`; BPTT's is that of its own horizon."""
    config = parse(Config, [*SMOKE, "--free-steps", "3", "--refine", "30", "--refine-target", "1e-5"])
    torch.manual_seed(0)
    block, tokens = train.Block(config), torch.randint(300, (2, 9))
    free = train.relaxed(block, tokens[:, :-1], tokens[:, 1:], config)
    assert free.residual <= 1e-5 and 3 < free.force.count["force"] < 30 and free.force.count["force"] % 3 == 0
    free, _ = train.estimated(block, tokens[:, :-1], tokens[:, 1:], replace(config, estimator="bptt"))
    assert free.force.count["force"] == free.force.count["backward"] == 3 and free.residual > 1e-5
    settled = train.free_phase(block, tokens[:, :-1], tokens[:, 1:], 3, config.step_size)
    assert torch.equal(free.z, settled.z) and free.residual == pytest.approx(settled.residual)
    free = train.relaxed(block, tokens[:, :-1], tokens[:, 1:], replace(config, refine_target=1e-30))
    assert free.force.count["force"] == 30


def test_validation_is_of_the_averaged_weights_and_leaves_the_others_alone(clean, monkeypatch):
    seen, real = [], train.Block.loss

    def loss(self, z, targets):
        if not torch.is_grad_enabled():  # only validation computes it without
            seen.append(self.tok.detach().clone())
        return real(self, z, targets)

    monkeypatch.setattr(train.Block, "loss", loss)
    train.main([*SMOKE, "--lr", "0.05"])
    average = disk.load_checkpoint(FOLDER / "checkpoint.pt")["optimizers"][3]
    assert torch.equal(seen[-1], average["tok"]) and not torch.equal(seen[-1], weights()["tok"])
    train.main(["--preset", "smoke", "--name", "never", "--lr", "0.05", "--evaluate-every", "100"])  # but at its end
    assert same(weights(), weights("never"))


def test_a_step_averages_its_batches(clean, monkeypatch):
    """Two batches of four windows are as good as one of eight of the same windows, with BPTT."""
    numbers, real = [], data.Text.batch

    def batch(self, config, run, number):
        if config.navg == 2:
            numbers.append(number)
            return real(self, config, run, number)
        parts = [real(self, replace(config, batch=4), run, n) for n in (2 * number, 2 * number + 1)]
        return tuple(torch.cat(part) for part in zip(*parts))

    monkeypatch.setattr(data.Text, "batch", batch)
    flags = ["--preset", "smoke", "--estimator", "bptt", "--jacreg", "0", "--steps", "2", "--clip", "1e9"]
    train.main([*flags, "--name", "two", "--navg", "2"])
    train.main([*flags, "--name", "one", "--batch", "8"])
    assert numbers == [0, 1, 2, 3]
    one, two = (disk.load_checkpoint(f"runs/ep_c512/{name}/checkpoint.pt")["optimizers"][0] for name in ("one", "two"))
    for a, b in zip(one["state"].values(), two["state"].values(), strict=True):  # Adam's updates hide a factor
        assert torch.allclose(a["exp_avg"], b["exp_avg"], atol=1e-6)


def test_flags_reach_the_estimator_and_the_penalty(clean, monkeypatch):
    flags = ["--radius", "0.03", "--nudged-steps", "7", "--step-size", "0.4", "--no-held", "--choice", "adaptive"]
    settings = parse(Config, [*SMOKE, *flags, "--free-steps", "9", "--recompute"]).settings()
    assert (settings.radius, settings.steps, settings.step_size, settings.held) == (0.03, 7, 0.4, False)
    assert (settings.choice, settings.horizon, settings.recompute) == ("adaptive", 9, True)
    seen, real = [], train.stability.penalty
    monkeypatch.setattr(train.stability, "penalty", lambda *a: seen.append((a[3], a[5])) or real(*a))
    train.main([*SMOKE, "--steps", "1", "--penalty", "spectral", "--cap", "0.7"])
    assert seen == [("spectral", 0.7)]


def test_the_average_starts_short_and_ends_long():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = run.Average(model, 0.9)
    expected = 0.0
    for step in range(200):
        model.weight.data.fill_(float(step))
        average.update(model, step)
        share = min(0.9, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * step
    assert average.weights["weight"].item() == pytest.approx(expected) == pytest.approx(199 - 9, rel=1e-3)
    with average.applied(model):
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 199.0


def test_schedules():
    config = replace(Config(), steps=100, warmup=10, lr=1.0, decay=0.2)
    for schedule, expected in (
        ("constant", {0: 0.1, 9: 1.0, 50: 1.0, 99: 1.0}),
        ("wsd", {0: 0.1, 9: 1.0, 50: 1.0, 80: 1.0, 90: 0.5, 99: 0.05}),
        ("cosine", {0: 0.1, 9: 1.0, 55: 0.5, 99: pytest.approx(0.0003, abs=1e-3)}),
    ):
        for step, rate in expected.items():
            found = train.learning_rate(replace(config, schedule=schedule), step)
            assert found == pytest.approx(rate, abs=1e-3), (schedule, step)


def test_the_feedback_rises_to_one(clean, monkeypatch):
    config = replace(Config(), steps=100, feedback=0.2, opened=0.1, ramp=0.4)
    expected = {0: 0.2, 10: 0.2, 30: 0.6, 50: 1.0, 99: 1.0}
    assert {step: train.feedback(config, step) for step in expected} == pytest.approx(expected)
    assert all(train.feedback(Config(), step) == 1 for step in (0, 99))
    seen, real = [], train.gradients
    monkeypatch.setattr(train, "gradients", lambda value, block: seen.append(block.feedback) or real(value, block))
    train.main([*SMOKE, "--feedback", "0"])
    assert seen == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])  # of 6 steps, half
    options = compare.parser("").parse_args(["runs/ep_c512/x"])
    assert compare.load(options).model.feedback == 1
    disk.save_checkpoint(FOLDER / "checkpoint.pt", disk.load_checkpoint(FOLDER / "checkpoint.pt") | {"step": 1})
    assert compare.load(options).model.feedback == pytest.approx(1 / 3)  # as in the step that comes next


def test_a_warm_start_takes_the_weights_of_another_run(clean):
    train.main([*SMOKE, "--lr", "0.05"])
    summary = train.main([*SMOKE[:2], "--name", "warm", "--warm", "runs/ep_c512/x", "--track", "--lr", "1e-9"])
    assert "--warm runs/ep_c512/x" in summary["command"]
    assert all(torch.allclose(value, weights("warm")[name], atol=1e-7) for name, value in weights().items())
    with pytest.raises(SystemExit, match="does not fit this model"):
        train.main([*SMOKE[:2], "--name", "wide", "--warm", "runs/ep_c512/x", "--width", "16"])
    with pytest.raises(SystemExit, match="does not exist"):
        train.main([*SMOKE[:2], "--name", "none", "--warm", "runs/ep_c512/none"])


def test_the_command_of_a_run_gives_its_config(clean):
    flags = ["--preset", "smoke", "--track", "--jacreg", "0.2", "--attn_mode", "mono", "--jr_max", "8", "--no-held"]
    config = parse(Config, flags)
    assert (config.estimator, config.attn_mode, config.jr_max, config.held) == ("tracking-2", "mono", 8.0, False)
    words = run.command(config).split()
    assert words[:3] == ["python", "-m", "ep_c512.train"] and parse(Config, words[3:]) == config
    assert parse(Config, ["--track", "--estimator", "frozen-4"]).estimator == "tracking-4"
    for flags, feedback, embedding in (
        (["--warm", "x"], 1.0, 1.0), (["--warm", "x", "--feedback", "0"], 0.0, 1.0), (["--estimator", "bp"], 1.0, 0.02),
        (["--estimator=bp", "--embedding", "1"], 1.0, 1.0), ([], 0.0, 1.0),
    ):  # fmt: skip
        config = parse(Config, ["--preset", "mini", *flags])
        assert (config.feedback, config.embedding) == (feedback, embedding), flags
        assert parse(Config, run.command(config).split()[3:]) == config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--estimator", "magic"], "invalid choice"),
        (["--heads", "7"], "--heads 7: expected a divisor of --width 512"),
        (["--ema", "1"], "--ema 1.0: expected a share below 1"),
        (["--step-size", "1.5"], "--step-size 1.5"),
        (["--jr-floor", "9", "--jr-max", "8"], "--jacreg 0.1: expected from --jr-floor, 9.0, to --jr-max, 8.0"),
        (["--jacreg", "99"], "--jacreg 99.0: expected from --jr-floor, 0.1, to --jr-max, 32.0"),
        (["--radius", "0"], "--radius 0: expected a number above 0"),
        (["--clip", "0"], "--clip 0: expected a number above 0"),
        (["--track", "--estimator", "bptt"], "--track with --estimator bptt: expected one of them"),
        (["--steps", "0"], "--steps 0: expected 1 or more"),
        (["--validation-data", "x.txt"], "--validation-data with --data tinystories, which has its own"),
        (["--track", "--estimator", "adjoint"], "--track with --estimator adjoint: expected one of them"),
        (["--estimator", "bp", "--specnorm"], "--estimator bp with --specnorm, --attn-mode or --feedback"),
        (["--feedback", "1.5"], "expected a feedback of at most 1 that reaches 1"),
        (["--feedback", "0", "--opened", "0.6"], "expected a feedback of at most 1 that reaches 1"),
        (["--name", "../x"], "--name ../x"),
    ],
)
def test_wrong_flags_are_explained(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse(Config, flags)
    assert end.value.code == 2 and message in " ".join("".join(capsys.readouterr()).split())


def test_a_folder_is_not_overwritten(clean):
    first = train.main(SMOKE)
    with pytest.raises(SystemExit, match="--resume"):
        train.main(SMOKE)
    assert train.main([*SMOKE, "--resume"]) == first
    with pytest.raises(SystemExit, match=r"radius: 0\.05 then, 0\.1 now"):
        train.main([*SMOKE, "--resume", "--radius", "0.1"])


def test_modal_gets_the_flags(clean, monkeypatch):
    pytest.importorskip("modal")
    from plumbing import remote

    seen, real = [], remote.check
    monkeypatch.setattr(remote, "check", lambda *a: seen.append(real(*a)) or seen[-1])
    monkeypatch.setattr(remote, "connect", lambda: None)
    monkeypatch.setattr(remote, "make_app", lambda job: (SimpleNamespace(local_entrypoint=lambda: lambda f: f), None))
    monkeypatch.setattr(sys, "argv", ["modal", "run", train.__file__, "--preset", "mini", "--estimator", "bptt"])
    assert remote.entry(train.__file__, parse) is not None
    assert seen[0].config == parse(Config, ["--preset", "mini", "--estimator", "bptt"])
    assert seen[0].path == "ep_c512/bptt-mini-seed0" and seen[0].arguments[0] == "ep_c512/train.py"
