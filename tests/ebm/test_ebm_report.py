"""The tables of ebm/report.py say what the kept evidence says, the documents match it, and `keep` copies it whole."""

import json

import pytest

from ebm import report


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    return tmp_path


def share(value, of=100):
    return {
        "right": int(value * of),
        "of": of,
        "puzzles": of,
        "share": value,
        "low": value - 0.01,
        "high": value + 0.01,
    }


def evaluation(zero, langevin, oracle=0.9):
    columns = {}
    for name, cells in (("z = 0", zero), ("z random", zero), ("Langevin", langevin), ("oracle", oracle)):
        found = {"cells": share(cells), "puzzles": share(cells / 10), "groups": share(cells / 2)}
        columns[name] = {"all": found}
    return {"columns": columns}


METRICS = "step,std_context,std_target,energy\n1,0.5,0.25,3\n2,0.01,0.002,2\n3,0.04,0.003,1\n"


def put(root, arm, seed, family="ebm", **files):
    folder = root / "results" / family / f"{arm}-seed{seed}"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(METRICS)
    for name, value in ({"summary": {"collapsed_at": None, "seconds": 600.0, "hardware": "cpu; x"}} | files).items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(value))


def rows(lines):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def test_documents_match_results():
    report.main(["--check"])


def test_an_arm_is_the_mean_of_its_seeds_and_the_oracle_says_that_it_sees_the_answer(root):
    put(root, "base", 0, evaluation=evaluation(0.20, 0.30))
    put(root, "base", 1, evaluation=evaluation(0.40, 0.30))
    head, base, other = rows(report.arms("base", "no-constraint"))
    assert [title for title in head if "sees the answer" in title] == ["oracle (sees the answer)"]
    assert base[:2] == ["`base`", "2"] and base[2].startswith("30.0") and base[4].startswith("30.0")
    assert [figure.split()[0] for figure in base[6:]] == ["15.0", "15.0", "3.0", "3.0"]
    assert other[:3] == ["`no-constraint`", "0", "not run"]


def test_a_question_compares_the_same_seeds_only(root):
    for seed, (zero, langevin) in enumerate(((0.20, 0.25), (0.40, 0.45), (0.30, 0.36))):
        put(root, "base", seed, evaluation=evaluation(zero, langevin))
    put(root, "no-constraint", 1, evaluation=evaluation(0.50, 0.5))
    found = {row[0]: row[1:] for row in rows(report.questions())}
    assert (
        found["Does Langevin beat z = 0?"][0] == "+5.0, +5.0, +6.0" and found["Does Langevin beat z = 0?"][2] == "yes"
    )
    assert found["Does the constraint loss help z = 0?"] == ["-10.0", "-", "-"]  # one seed in common: no interval
    assert found["Does the unit norm of z help z = 0?"] == ["not run", "-", "-"]


@pytest.mark.parametrize(
    ("points", "answer"), [((2, 3, 4), "yes"), ((-2, -3, -4), "no, it harms"), ((-2, 3, 1), "not shown")]
)
def test_an_answer_needs_an_interval_on_one_side(root, points, answer):
    for seed, more in enumerate(points):
        put(root, "base", seed, evaluation=evaluation(0.5, 0.5 + more / 100))
    assert rows(report.questions())[1][3] == answer


def test_collapse_has_the_least_and_the_last_spread(root):
    spread = {"spread": {"untrained": {"context": 0.03, "target": 0.006, "z": 0.1}}}
    put(root, "base", 0, config={"seed": 0}, evaluation_forward=spread)
    put(root, "base", 1, summary={"diverged_at": 7}, config={"seed": 1})
    (root / "results/ebm/base-seed1/metrics.csv").unlink()  # it ended before its first row
    put(root, "first-form", 0)
    (root / "results/ebm/first-form-seed0/metrics.csv").write_text(METRICS.replace("0.002", "0.0005"))
    _, base, lost, first, missing = rows(report.collapse("base", "first-form", "wrong-tensor"))
    assert base == ["`base`", "0", "0.03", "0.01", "0.04", "0.006", "0.002", "0.003", "1", "no collapse"]
    assert lost[2:] == ["-"] * 7 + ["diverged at step 7"] and first[-1] == "z_target below 0.001"
    assert missing[:2] == ["`wrong-tensor`", "not run"]


def forward(zero, other, own):
    columns = {"z = 0": zero, "z of another": other, "oracle": own}
    return {
        "columns": {name: {"all": {"cells": share(cells)}} for name, cells in columns.items()},
        "spread": {"trained": {"z": 0.002}},
    }


def test_what_z_carries(root):
    put(root, "base", 0, evaluation_forward=forward(0.2, 0.21, 0.25))
    put(root, "base", 1, evaluation_forward=forward(0.2, 0.2, 0.2))
    put(root, "run1", 0, config={"z_encoder": False}, evaluation=evaluation(0.2, 0.3))
    _, base, other = rows(report.carried("base", "run1", "no-unit-norm"))  # run 1's z is noise: no row
    assert base[:2] == ["`base`", "2"] and [cell.split()[0] for cell in base[2:5]] == ["20.0", "20.5", "22.5"]
    assert base[5] == "+4.0, +0.0" and base[7] == "0.002, 0.002"
    assert other[:2] == ["`no-unit-norm`", "not run"]
    assert rows(report.arms("run1"))[1][5] == "-"  # nothing there sees the answer


def test_every_energy_has_its_row(root):
    found = evaluation(0.2, 0.3) | {"states": {"Langevin": {"norm of z": 5.5}}}
    put(root, "base", 0, evaluation=found, evaluation_norm=found | {"columns": evaluation(0.2, 0.1)["columns"]})
    _, consistency, norm, penalty = rows(report.energies("base"))
    assert consistency[3] == "+10.0" and norm[3] == "-10.0" and norm[5] == "5.50" and penalty[1] == "not run"


def test_a_run_that_diverged_is_named_and_not_averaged(root):
    put(root, "base", 0, evaluation=evaluation(0.20, 0.30))
    put(root, "base", 1, evaluation=evaluation(0.90, 0.90), summary={"diverged_at": 7})
    base = rows(report.arms("base"))[1]
    assert base[1] == "1, 1 diverged" and base[2].startswith("20.0")


def test_other_settings_are_not_averaged(root):
    put(root, "base", 0, evaluation=evaluation(0.20, 0.30), config={"seed": 0, "lr": 0.1, "name": "base-seed0"})
    put(root, "base", 1, evaluation=evaluation(0.20, 0.30), config={"seed": 1, "lr": 0.1, "name": "base-seed1"})
    report.arms("base")
    put(root, "base", 2, evaluation=evaluation(0.90, 0.90), config={"seed": 2, "lr": 0.2, "name": "base-seed2"})
    with pytest.raises(SystemExit, match="base-seed2"):
        report.arms("base")


def test_choices_stand_beside_the_baseline_at_equal_cost(root):
    found = evaluation(0.20, 0.30)
    one = {"all": {metric: share(0.5) for metric in report.METRICS}}
    for column in ("Langevin, energy", "Langevin, oracle", "decodes, majority"):
        found["columns"][column] = one
    put(root, "base", 0, evaluation=found)
    _, energy, best, majority = rows(report.choices("base"))
    assert energy[:2] == ["chains of Langevin", "lowest energy"] and energy[2].startswith("50.0")
    assert "sees the answer" in best[1] and majority[:2] == ["random z, no energy", "vote on each cell"]
    assert report.choices("other") == ["not run"]


def test_solver_and_proof(root):
    test = {str(n): {"solved": [50, solved], "puzzles": [50, 50]} for n, solved in ((16, 20), (256, 40))}
    summary = {"test": test, "seconds": 1500.0, "hardware": "a laptop; torch"}
    kind = {"falls": {"right": 99, "of": 100, "converged": 7},
            "solved": {"8": share(0.1), "256": share(0.8), "1024": share(0.85)},
            "auroc": {"value": None, "solved": 9, "unsolved": 0}, "boards": share(0.99)}  # fmt: skip
    proof = {
        "update": {"largest_error": 1.5e-7},
        "45 clues": kind,
        "minimal": kind | {"auroc": {"value": 0.971, "solved": 7, "unsolved": 2}},
    }
    put(root, "full", 0, family="ours", summary=summary, proof=proof)
    assert report.descents("full") == ["not run"]  # a proof from before they were measured
    head, easy, minimal = rows(report.solver("full"))
    assert head[2:4] == ["16 steps", "256 steps"] and easy[1] == "50 45 clues" and easy[3].startswith("100.0")
    assert minimal[1] == "50 minimal" and minimal[2:4] == ["40.0 [27.6, 53.8]", "80.0 [67.0, 88.8]"]
    assert minimal[4:] == ["25", "a laptop"]
    head, easy, minimal = rows(report.proof("full"))
    assert head[-2:] == ["solved after 256 steps, %", "solved after 1024 steps, %"]
    assert "99.00 % of 100" in easy and "no data" in easy and {"0.971", "7 / 2", "7"} <= set(minimal)
    assert minimal[-2].startswith("80.0") and minimal[-1].startswith("85.0")
    more = {
        "choices": {choice: share(0.5) for choice in (*report.CHOICES, "oracle")},
        "path": {"four times the steps": share(0.6), "half the step": share(0.7),
                 "gradient": {"start": 9.0, "end": 0.5, "four times the steps": 0.1}},
    }  # fmt: skip
    for seed in (0, 1):
        changed = {kind: proof[kind] | more for kind in ("45 clues", "minimal")}
        folder = root / f"results/ours/full-seed{seed}"
        folder.mkdir(exist_ok=True)
        for name, value in {"summary": summary, "config": {"seed": seed}, "proof": proof | changed}.items():
            (folder / f"{name}.json").write_text(json.dumps(value))
    table = rows(report.proof("full"))
    assert [row[0] for row in table[1:]] == ["0", "1", "all"] * 2
    assert "99.00 % of 200" in table[-1] and "14 / 4" in table[-1] and table[-1][-2].startswith("80.0 [73.9")
    _, *kinds = rows(report.descents("full"))
    assert [row[0] for row in kinds][:2] == ["one descent", "lowest energy"] and kinds[-1][1:] == ["0.1", "0.1"]
    assert kinds[5][2].startswith("60.0 [53.1") and kinds[6][2].startswith("70.0")
    assert report.solver("other") == report.proof("other") == ["not run"]


def network(name, flops, **more):
    steps = {str(n): {"solved": share(n / 300), "flops": n * flops, "milliseconds": 2.0 * n} for n in (1, 256)}
    kinds = {"45 clues": steps, "minimal": steps}
    return {"experiment": name, "run": "x", "seconds": 1800.0, "parameters": 1234, "kinds": kinds} | more


def test_compute_has_a_row_and_a_picture_for_all_networks(root):
    (root / "results/ebm").mkdir(parents=True)
    (root / "ebm").mkdir()
    assert report.compute() == ["not run"]
    report.plot()
    assert not (root / "ebm/compute.png").exists()
    found = {"networks": [network("ours", 2e6), network("exp_sam", 1e6, seconds=None, parameters=None)]}
    (root / "results/ebm/compute.json").write_text(json.dumps(found))
    _, ours, other = rows(report.compute())
    assert ours[:6] == ["ebm/ours.py", "30", "1,234", "256", "512", "512"] and ours[6].startswith("85.3")
    assert other[:3] == ["exp_sam", "-", "-"]
    report.plot()
    assert (root / "ebm/compute.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("steps", [None, 7])
def test_keep_takes_ours_as_its_preset_only(root, tmp_path, monkeypatch, steps):
    import dataclasses

    import report as of_the_root
    from ebm import ours

    monkeypatch.setattr(of_the_root, "ROOT", root)
    run = tmp_path / "runs/ours/full-seed1"
    run.mkdir(parents=True)
    config = dataclasses.asdict(ours.Config(seed=1, steps=steps or ours.Config().steps))
    (run / "config.json").write_text(json.dumps(config))
    (run / "summary.json").write_text("{}")
    if steps:
        with pytest.raises(SystemExit, match="--steps"):
            report.keep([run])
    else:
        report.keep([run])
        assert (root / "results/ours/full-seed1/summary.json").exists()


def test_keep_copies_evaluations_and_the_study(root, tmp_path, monkeypatch):
    import report as of_the_root

    monkeypatch.setattr(of_the_root, "ROOT", root)
    run = tmp_path / "runs/ebm/base-seed0"
    (run / "interpret").mkdir(parents=True)
    names = ("config.json", "metrics.csv", "summary.json", "evaluation.json", "evaluation-true-noise.json")
    for name in (*names, "interpret/interpret.json"):
        (run / name).write_text('{"preset": "mini", "seed": 0}')
    report.keep([run])
    kept = {path.name for path in (root / "results/ebm/base-seed0").iterdir()}
    assert kept == {*names, "interpret.json"}
