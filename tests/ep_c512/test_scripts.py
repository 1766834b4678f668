"""The chains of runs of ep_c512, with a stand-in for Python that notes what it is asked for: nothing is trained."""

import os
import shutil
import subprocess

import pytest
import torch

from ep_c512.block import Block
from ep_c512.gradients import free_phase
from ep_c512.run import parse
from ep_c512.train import Config
from tests.experiments import ROOT

# Writes the summary that a training run would; winner is what the report would print.
PYTHON = """#!/usr/bin/env bash
echo "$@" >>"$CALLS"
name=$(sed -n 's/.*--name \\([^ ]*\\).*/\\1/p' <<<"$*")
case "$2 $3" in
  "ep_c512.train "*) mkdir -p "runs/ep_c512/$name" && echo "${SUMMARY:-{\\}}" >"runs/ep_c512/$name/summary.json" ;;
  "ep_c512.report winner") echo "--lr 0.1 --jr-max 16" ;;
esac
"""


@pytest.fixture
def chain(tmp_path):
    """A function that runs a script in a folder of its own and returns what Python was asked for."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    stub = tmp_path / "python-stub"
    stub.write_text(PYTHON)
    stub.chmod(0o755)

    def run(script, *flags, **environment):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        environment = os.environ | {"PYTHON": str(stub), "CALLS": str(calls), "JOBS": "1"} | environment
        command = ["bash", str(tmp_path / "scripts" / script), *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return done, calls.read_text().splitlines() if calls.exists() else []

    run.folder = tmp_path
    return run


def trained(calls):
    """{name: flags} of the training runs, in order"""
    words = [call.split() for call in calls if call.startswith("-m ep_c512.train ")]
    return {flags[flags.index("--name") + 1]: flags for flags in (w[2:] for w in words)}


def names():
    text = (ROOT / "scripts/ep.sh").read_text()
    return [line.split("]=")[0].strip(" [") for line in text.splitlines() if line.startswith("  [") and "]=" in line]


def test_every_arm_is_a_command_that_training_understands(chain):
    arms = [name for name in names() if name != "first-phase"]
    assert len(arms) > 15
    done, calls = chain("ep.sh", "--steps", "7", SEEDS="0 2", ARMS=" ".join(arms))
    assert done.returncode == 0, done.stderr
    found = trained(calls)
    assert set(found) == {f"{arm}-seed{seed}" for arm in (*arms, "first-phase") for seed in (0, 2)}
    for name, flags in found.items():
        config = parse(Config, flags)
        assert (config.name, config.seed, config.preset, config.steps) == (name, int(name[-1]), "mini", 7)
    assert parse(Config, found["bp-long-seed0"]).estimator == "bp"
    assert parse(Config, found["recipe-bptt-seed2"]).penalty == "spectral"
    assert parse(Config, found["freeze-floor-seed0"]).jr_max == 0.1
    assert calls[-1] == "-m ep_c512.report"
    assert calls.count("-m ep_c512.report keep runs/ep_c512/recipe-seed0") == 1
    for name in ("recipe", "tracking", "energy", "mono", "nemon"):  # each settles before it is trained
        config = parse(Config, found[f"{name}-seed0"])
        torch.manual_seed(0)
        tokens = torch.randint(config.vocabulary, (2, config.length + 1))
        free = free_phase(Block(config), tokens[:, :-1], tokens[:, 1:], config.free_steps, config.step_size)
        assert free.residual < 1e-4, name


def test_a_second_phase_follows_a_first_that_came_to_its_end(chain):
    _, calls = chain("ep.sh", SEEDS="1", ARMS="two-phase")
    found = trained(calls)
    assert list(found) == ["first-phase-seed1", "two-phase-seed1"]
    assert parse(Config, found["two-phase-seed1"]).warm == "runs/ep_c512/first-phase-seed1"
    done, calls = chain("ep.sh", SEEDS="2", ARMS="two-phase", SUMMARY='{"diverged_at": 5}')
    assert list(trained(calls)) == ["first-phase-seed2"] and "there is no second phase" in done.stderr


def test_what_is_there_is_left_out_and_a_wrong_arm_is_named(chain):
    folder = chain.folder / "results/ep_c512/recipe-seed0"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    _, calls = chain("ep.sh", SEEDS="0 1", ARMS="recipe")
    assert list(trained(calls)) == ["recipe-seed1"]
    _, calls = chain("ep.sh", SEEDS="0", ARMS="all")
    rates = [f"bp-lr{rate}" for rate in ("1e-3", "3e-3", "5e-3", "1e-2", "2e-2", "4e-2")] + [
        "bp-unit-lr3e-3",
        "bp-unit-lr1e-2",
    ]
    every = {*names(), *(f"unrolled-{steps}" for steps in (1, 2, 4, 8)), *rates}
    assert set(trained(calls)) == {f"{arm}-seed0" for arm in every - {"recipe"}}
    done, calls = chain("ep.sh", ARMS="recipe magic")
    assert done.returncode == 2 and "magic is no arm" in done.stderr and not calls


def test_the_grid_and_what_follows_it(chain):
    done, calls = chain("bptt_rescue.sh", "--preset", "mini", RATES="1e-3 1e-2", MOST="8 16", SEEDS="0 1")
    assert done.returncode == 0, done.stderr
    configs = {name: parse(Config, flags) for name, flags in trained(calls).items()}
    assert len(configs) == 8
    config = configs["rescue-lr1e-2-jr8-seed1"]
    assert (config.estimator, config.penalty, config.lr, config.jr_max) == ("bptt", "full", 0.01, 8.0)
    done, calls = chain("chain_next.sh", "--preset", "mini", SEEDS="0")
    config = parse(Config, trained(calls)["ceiling-seed0"])
    assert (config.lr, config.jr_max, config.steps, config.penalty) == (0.1, 16.0, 12_000, "full")


def test_a_text_of_ones_own(chain):
    done, calls = chain("ep_sample.sh", "texts", SEEDS="0")
    assert done.returncode == 2 and "must hold train.txt and valid.txt" in done.stderr and not calls
    (chain.folder / "texts").mkdir()
    for name in ("train", "valid"):
        (chain.folder / f"texts/{name}.txt").write_text("Once.\n")
    _, calls = chain("ep_sample.sh", "texts", "--steps", "9", SEEDS="0 1", RATES="1e-2")
    configs = {name: parse(Config, flags) for name, flags in trained(calls).items()}
    assert set(configs) == {f"sample-{a}-seed{s}" for a in ("recipe", "bptt", "bp-lr1e-2") for s in (0, 1)}
    config = configs["sample-bp-lr1e-2-seed1"]
    assert (config.data, config.validation_data, config.steps) == ("texts/train.txt", "texts/valid.txt", 9)


def test_watched_runs_are_kept_when_all_have_ended(chain):
    for name in ("a", "b"):
        folder = chain.folder / "runs/ep_c512" / name
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}")
        (folder / "log.txt").write_text("summary: x\n")
    done, calls = chain("watch_arms.sh", "runs/ep_c512/a", "runs/ep_c512/b")
    assert done.returncode == 0 and calls[0] == "-m ep_c512.report keep runs/ep_c512/a runs/ep_c512/b", done.stderr
    assert "runs/ep_c512/b has ended: summary: x" in done.stdout and calls[1].startswith("-m ep_c512.lr_overlay runs")
    assert chain("watch_arms.sh")[0].returncode == chain("watch_arms.sh", "nowhere")[0].returncode == 2


def test_the_rounds_are_of_the_run_that_was_trained_for_them(chain):
    done, calls = chain("ep_rounds.sh", STEPS="30")
    config = parse(Config, trained(calls)["edge-seed0"])
    assert done.returncode == 0 and (config.steps, config.jacreg, config.estimator) == (30, 0.0, "tracking-2")
    rounds = [call.split()[1:3] for call in calls if "runs/ep_c512/edge-seed0 --step-size" in call]
    assert rounds == [
        [f"ep_c512.{name}", "runs/ep_c512/edge-seed0"] for name in ("plateau_ablation", "navg_sweep", "blowup_diag")
    ]
