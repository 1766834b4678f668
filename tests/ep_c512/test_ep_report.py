"""The tables of ep_c512/report.py say what the kept evidence says, and the documents match it."""

import json

import pytest

from ep_c512 import lr_overlay, report


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results" / "ep_c512")
    (tmp_path / "ep_c512").mkdir()
    return tmp_path


def put(root, arm, seed, validation, config=(), **summary):
    folder = root / "results" / "ep_c512" / f"{arm}-seed{seed}"
    folder.mkdir(parents=True)
    summary = {"bigram": 2.0, "validation": validation, "seconds": 600.0, "skipped": 0, "hardware": "cpu"} | summary
    if validation is None:
        del summary["validation"]
    else:
        summary["best"] = {"step": 10, "validation": validation}
    config = {"preset": "mini", "estimator": "bptt", "steps": 20, "lr": 0.1, "jr_max": 8.0, "seed": seed} | dict(config)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.csv").write_text("step,loss,validation\n10,2.5,\n20,2,1.5\n")


def rows(lines):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def test_documents_match_results():
    report.main(["--check"])


def test_an_arm_is_the_mean_of_its_seeds_and_the_worst_of_its_extremes(root):
    put(root, "one", 0, 1.0, residual_max=1e-4, leading_max=-0.5, change_max=1e-2, skipped=1)
    put(root, "one", 1, 1.2, residual_max=3e-3, change_max=1e-3, leading_max=-0.3, skipped=2)
    put(root, "one", 2, None, residual_max=0.3, leading_max=0.3, aborted_at=7)
    _, one, other = rows(report.arms("one", "other"))
    assert one == [
        "`one`",
        "3",
        "1.100 (2 of 3 seeds)",
        "0.90 (2 of 3 seeds)",
        "3.0e-01",
        "1.0e-02",
        "+0.30",
        "3",
        "10",
        "aborted at step 7",
    ]
    assert other[:2] == ["`other`", "not run"]
    put(root, "ended", 0, 1.0)
    put(root, "ended", 1, 1.2)
    assert rows(report.arms("ended"))[1][2:4] == ["1.100 (1.000-1.200)", "0.90 (0.80-1.00)"]


def test_a_run_that_ended_before_its_first_validation_is_in_the_table_and_hides_no_curve(root):
    put(root, "tracking", 0, None, diverged_at=3)
    folder = root / "results/ep_c512/tracking-seed0"
    (folder / "metrics.csv").write_text("step,loss,lr\n1,2.5,0.1\n")
    (root / "results/ep_c512/empty").mkdir()
    put(root, "frozen", 0, None, diverged_at=1)
    (root / "results/ep_c512/frozen-seed0/metrics.csv").unlink()
    put(root, "bp-lr5e-3", 0, 1.0)
    report.plot()
    assert (root / "ep_c512/curves.png").exists()
    assert rows(report.arms("tracking"))[1][-1] == "diverged at step 3"
    assert lr_overlay.curve(folder).empty


def test_a_second_phase_counts_its_first(root, monkeypatch):
    put(root, "first-phase", 0, 1.5, seconds=300.0)
    put(root, "two-phase", 0, 1.0, config={"warm": "runs/ep_c512/first-phase-seed0"})
    assert rows(report.arms("two-phase"))[1][8] == "15"  # minutes: 5 and 10
    seen, real = [], report.Figure.subplots
    monkeypatch.setattr(report.Figure, "subplots", lambda self, *a, **k: seen.append(real(self, *a, **k)) or seen[-1])
    report.plot()
    dots = ([line for line in axes.lines if line.get_marker() == "o"] for axes in seen[0])  # the others are of training
    left, right = ([list(line.get_xdata()) for line in lines] for lines in dots)
    assert left == [[20 + 20]]  # 20 steps each
    config = report.config_of({"preset": "mini", "estimator": "bptt"})
    assert right == [[pytest.approx(40 * report.step_cost(vars(config)) / 1e12)]]


def test_a_difference_is_of_the_same_seeds(root):
    for seed, (one, other) in enumerate(((1.0, 1.1), (1.2, 1.3), (1.4, 1.6))):
        put(root, "one", seed, one)
        put(root, "other", seed, other)
    put(root, "one", 3, 9.0)
    _, row = rows(report.differences("one/other"))
    assert row[:2] == ["`one` - `other`", "-0.100 (0), -0.100 (1), -0.200 (2)"] and row[2].startswith(
        "-0.133 [-0.277, +0.010]"
    )
    _, row = rows(report.differences("one/none"))
    assert row[1:] == ["not run", "-"]


def test_seeds_of_different_settings_are_not_averaged(root):
    put(root, "one", 0, 1.0)
    put(root, "one", 1, 1.0, config={"lr": 0.2})
    with pytest.raises(SystemExit, match="one-seed1 has other settings than one-seed0"):
        report.arms("one")


def test_the_grid_and_its_winner(root, capsys):
    """The lowest mean wins among the pairs whose seeds all came to their end."""
    for rate, most, seed, value, more in (
        (0.1, 8.0, 0, 2.0, {}), (0.1, 8.0, 1, 2.2, {}), (0.1, 16.0, 0, 1.9, {}), (0.1, 16.0, 1, 2.1, {}),
        (0.2, 8.0, 0, 1.0, {}), (0.2, 8.0, 1, 1.0, {"aborted_at": 9}),
    ):  # fmt: skip
        put(root, f"rescue-lr{rate}-jr{most:g}", seed, value, config={"lr": rate, "jr_max": most}, **more)
    _, *cells = rows(report.grid("rescue"))
    assert cells == [
        ["0.1", "8", "2.000, 2.200", "2.100", ""],
        ["0.1", "16", "1.900, 2.100", "2.000", ""],
        ["0.2", "8", "1.000, 1.000", "1.000", "aborted at step 9"],
    ]
    report.main(["winner", "rescue"])
    assert capsys.readouterr().out == "--lr 0.1 --jr-max 16\n"
    report.plot_grid()
    assert (root / "ep_c512/rescue.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit, match="of which every seed came to its end"):
        report.winner("other")


def test_a_round_is_its_file_and_what_was_not_run_says_so(root):
    assert report.round_of("plateau") == ["not run"]
    (root / "results/ep_c512").mkdir(parents=True)
    found = {"head": ["a", "b"], "rows": [["x", 0.12345], ["y", None]], "facts": {"f": 2.0}, "parts": [["p", 1.0, 2.0]]}
    found |= {"run": "edge", "step": 7, "hardware": "cpu", "lengths": {"head": ["k"], "rows": [["z"]]}}
    found["config"] = {"step_size": 0.1, "free_steps": 150, "nudged_steps": 40, "radius": 0.05}
    (root / "results/ep_c512/plateau.json").write_text(json.dumps(found))
    lines = [line for line in report.round_of("plateau") if not line.startswith("|---") and line]
    of, head, x, y, _, part, _, z, facts = lines
    assert of == "`edge` after 7 steps; step size 0.1, free steps 150, nudged steps 40, radius 0.05; cpu"
    assert rows([z]) == [["z"]]
    assert rows([head, x, y]) == [["a", "b"], ["x", "0.1235"], ["y", ""]] and rows([part]) == [
        ["p", "1.0000", "2.0000"]
    ]
    assert facts == "f: 2.0000"


def test_curves_are_drawn_of_what_was_run(root):
    report.plot()
    assert not (root / "ep_c512/curves.png").exists()
    put(root, "bptt", 0, 1.0)
    report.plot()
    assert (root / "ep_c512/curves.png").read_bytes()[:4] == b"\x89PNG"
