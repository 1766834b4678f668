"""The rounds on a run's checkpoint, and the bench: each writes a table that says what it should, and a plot."""

import json
import math
from pathlib import Path

import pytest
import torch

from ep_c512 import bench, blowup_diag, compare, cos_now, data, lr_overlay, navg_sweep, plateau_ablation, train

RUN = "runs/ep_c512/x"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of 30 steps in it."""
    folder = tmp_path_factory.mktemp("rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(data, "GENERATED", 200)
        flags = ["--steps", "30", "--lr", "1e-2", "--save-every", "30", "--evaluate-every", "30"]
        train.main(["--preset", "smoke", "--name", "x", *flags])
        train.main(["--preset", "smoke", "--name", "bp", "--estimator", "bp", *flags])
    return folder


@pytest.fixture(autouse=True)
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setattr(data, "GENERATED", 200)


def table(name):
    """{first cells of a row: the row by the head's names} of a round's file, beside which there is a plot"""
    assert Path(f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads(Path(f"{name}.json").read_text())
    return found, {row[0]: dict(zip(found["head"], row, strict=True)) for row in found["rows"]}


def test_the_ablation_compares_every_estimator_with_bptt(capsys):
    plateau_ablation.main([RUN, "--double", "--output", "plateau.json"])
    found, rows = table("plateau")
    assert found["reference"] == 27 and rows["BPTT 27"]["cos"] == pytest.approx(1) and rows["BPTT 27"]["k"] == 1
    assert {"BPTT 10", "BPTT 53", "lock-in", "tracking N=8", "frozen N=4", "plain N=2"} <= set(rows)
    for name in ("adjoint at z*", "frozen N=2, no head clamp", "tracking N=2", "tracking N=8", "BPTT 53"):
        assert rows[name]["cos"] > 0.999 and 0.9 < rows[name]["k"] < 1.1, name
        assert all(rows[name][group] > 0.99 for group in ("tok", "WQ", "WO", "fc", "pj", "LN1", "LN2", "head")), name
    assert rows["frozen N=2, T2=2 fixed"]["cos"] < rows["frozen N=2, T2=8 fixed"]["cos"]
    assert rows["frozen N=2, T2=2 fixed"]["T2"] == 2 and 0 < rows["frozen N=2, adaptive"]["T2"] <= 12
    error = {name: 1 - rows[name]["cos"] for name in ("frozen N=2, r=0.02", "frozen N=2, r=0.2")}
    assert error["frozen N=2, r=0.02"] <= error["frozen N=2, r=0.2"]
    assert rows["adjoint at z*"]["self"] < 0.999  # of two batches
    facts = found["facts"]
    assert facts["largest real part"] < 0 and facts["largest growth of a step"] < 1
    assert facts["|Jv - J'v| / |Jv| without the damping"] > facts["with it"] > 0
    assert "adjoint at z*" in capsys.readouterr().out


def test_averaging_brings_two_estimates_together_and_leaves_the_weights_alone(monkeypatch):
    seen, real = [], navg_sweep.compare.load
    monkeypatch.setattr(navg_sweep.compare, "load", lambda options: seen.append(real(options)) or seen[-1])
    navg_sweep.main([RUN, "--estimators", "tracking-2", "plain-2", "--tests", "2", "--output", "navg.json"])
    found, _ = table("navg")
    rows = [dict(zip(found["head"], row)) for row in found["rows"]]
    exact = [row for row in rows if row["estimator"] == "tracking-2"]
    assert [row["batches"] for row in exact] == [1, 2, 4, 8, 16]
    assert all(row["cos to BPTT"] > 0.999 for row in exact) and exact[-1]["self"] > exact[0]["self"]
    assert all(row["change of the loss"] < 0 and row["by BPTT"] < 0 for row in rows)
    saved = torch.load(f"{RUN}/checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in seen[0].model.state_dict().items())


def test_what_drives_a_run(capsys):
    blowup_diag.main([RUN, "--double", "--output", "blowup.json"])
    found, rows = table("blowup")
    whole = rows["all"]
    cos, ratio = whole["cos(CE, penalty)"], whole["|penalty| / |CE|"]
    for weight in (0.1, 8):  # the law of cosines
        expected = (1 + weight * ratio * cos) / math.sqrt(1 + (weight * ratio) ** 2 + 2 * weight * ratio * cos)
        assert whole[f"cos(CE, sum) at {weight:g}"] == pytest.approx(expected)
    assert whole["|w penalty| / |CE| at 32"] == pytest.approx(32 * ratio)
    assert rows["head"]["|penalty| / |CE|"] == rows["embeddings"]["|penalty| / |CE|"] == 0
    facts, sweep = found["facts"], {row[0]: row for row in found["sweep"]}
    assert facts["largest real part without W_O"] != facts["largest real part"] == max(found["by_token"])
    assert sweep[0.5][1] == 10 and sweep[0.05][1] == 100 and sweep[0.5][2] < sweep[0.05][2]
    assert "largest real part" in capsys.readouterr().out


def test_a_running_checkpoint_is_compared():
    cos_now.main([RUN, "--double", "--batches", "3", "--output", "now.json"])
    _, rows = table("now")
    assert len(rows) == 3 and all(
        row["cos to BPTT"] > 0.99 and row["cos to the adjoint"] > 0.99 for row in rows.values()
    )


def write(name, rates, losses):
    folder = Path(name)
    folder.mkdir()
    lines = [f"{10 * i},{rate},{loss}" for i, (rate, loss) in enumerate(zip(rates, losses), 1)]
    (folder / "metrics.csv").write_text("\n".join(["step,lr,validation", *lines]) + "\n")


def test_slow_and_misled_runs_differ_in_their_path():
    """The second run needs twice the steps of the first, at half the rate: the same path."""
    write("fast", (0.2,) * 4, (4, 3, 2, 1))
    write("slow", (0.1,) * 8, (4.5, 4, 3.5, 3, 2.5, 2, 1.5, 1))
    lr_overlay.main(["fast", "slow", "--output", "overlay.json"])
    found, _ = table("overlay")
    slow = [dict(zip(found["head"], row)) for row in found["rows"] if row[0] == "slow"]
    assert [row["loss"] for row in slow] == [4, 3, 2, 1]
    assert all(row["steps over the first run's"] == pytest.approx(2) for row in slow)
    assert all(row["path over the first run's"] == pytest.approx(1) for row in slow)
    with pytest.raises(SystemExit, match=r"nowhere/metrics\.csv cannot be read"):
        lr_overlay.main(["fast", "nowhere", "--output", "overlay.json"])


def test_wrong_checkpoints_are_explained(tmp_path):
    for words, message in (
        ([RUN.replace("/x", "/bp")], "ordinary layer, which has no relaxation"),
        (["nowhere"], "nowhere"),
        ([str(tmp_path / "other.pt")], "not a checkpoint of ep_c512.train"),
        ([RUN, "--output", "x.txt"], "json"),
    ):
        torch.save({"model": {}, "config": {"unknown": 1}}, tmp_path / "other.pt")
        with pytest.raises(SystemExit, match=message):
            cos_now.main(words)


def test_the_bench_measures_every_step(capsys):
    bench.main(["--preset", "smoke", "--repeats", "1", "--output", "speed.json"])
    found = json.loads(Path("speed.json").read_text())
    rows = {row[0]: dict(zip(found["head"], row, strict=True)) for row in found["rows"]}
    assert list(rows) == [name for name, _ in bench.STEPS] and rows["BPTT"]["against BPTT"] == 1
    assert 30 < rows["BPTT"]["forces"] < rows["EP, tracking"]["forces"]  # ten forward, twice that backward; the head
    assert all(row["ms"] > row["least ms"] > 0 and row["overhead ms"] > 0 for row in rows.values())
    parts = {row[0]: row for row in found["parts"]}
    assert parts["force"][2] == 1 and parts["J v"][1] > 0
    assert "GFLOP/s" in capsys.readouterr().out


def test_cosines_over_some_parameters():
    one, other = (
        {"a": torch.tensor([1.0, 0]), "b": torch.tensor([2.0])},
        {"a": torch.tensor([0, 1.0]), "b": torch.tensor([2.0])},
    )
    assert compare.cosine(one, other) == pytest.approx(0.8) and compare.cosine(one, other, ["a"]) == 0
    assert compare.norm(one) == pytest.approx(math.sqrt(5)) and compare.norm(
        compare.mean([one, other]), ["a"]
    ) == pytest.approx(math.sqrt(0.5))
