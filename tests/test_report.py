"""The documents match results/, the tables say what the runs' summaries say, and a run's evidence is kept whole."""

import json

import pytest

import common
import exp_cosine_no_sam as experiment
import insights
import lineage
import report

DOCSTRING = '''"""Title.

Parent: {parent}
Change: something.
Hypothesis: it
learns.
Log: {log}

python {name}
"""
'''


@pytest.fixture
def root(clean, monkeypatch):
    """Three experiments: one in the folder, one that is not of the log."""
    monkeypatch.setattr(report, "ROOT", clean)
    (clean / "pos_embedding").mkdir()
    for name, parent, log in (
        ("sudoku.py", "none", "64.3 %; noise."),
        ("pos_embedding/exp_pos.py", "sudoku.py", "82.8 %"),
        ("exp_speedrun.py", "none", "not in the log."),
    ):
        (clean / name).write_text(DOCSTRING.format(parent=parent, log=log, name=name))
    (clean / "README.md").write_text("before\n<!-- report mini -->\nold\n<!-- end -->\nafter\n")
    for name in ("EXPERIMENTS.md", "pos_embedding/EXPERIMENTS_POS.md"):
        (clean / name).write_text("nothing to fill\n")
    return clean


def counts(*solved, cells=0.9, puzzles=100, **more):
    """A test as common.evaluate counts it."""
    buckets = len(solved)
    row = {"solved": list(solved), "puzzles": [puzzles] * buckets, "cells": [9] * buckets, "blanks": [10] * buckets}
    return row | {"share": sum(solved) / buckets / puzzles, "cell_accuracy": cells} | more


def put(root, name, run, test=None, iterations=4, **summary):
    """A kept run; `test` is {iterations: counts}, the run's figure the one at its own number of iterations."""
    folder = root / "results" / name / run
    folder.mkdir(parents=True)
    config = {"preset": "full" if "full" in run else "mini", "seed": int(run[-1]), "iterations": iterations}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.csv").write_text("step,loss,accuracy\n50,2.1,0.2\n100,2.0,0.4\n")
    figures = {"solved": test[iterations]["share"], "test": {str(n): row for n, row in test.items()}} if test else {}
    told = {"seconds": 60.0, "hardware": "a laptop; torch", "command": f"python {name}.py --name {run}"}
    (folder / "summary.json").write_text(json.dumps(told | config | figures | summary))


def rows(lines):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def test_documents_match_results():
    report.main(["--check"])


def test_mini_pools_the_seeds(root):
    for seed, solved in enumerate((40, 50, 60)):
        peak = {"solved": solved / 100 + 0.1, "step": 300}
        put(root, "sudoku", f"mini-seed{seed}", {4: counts(solved)}, cells=0.8 + seed / 100, peak=peak)
    put(root, "sudoku", "mini-other-flag-seed0", {4: counts(1)})
    put(root, "sudoku", "full-seed0", {4: counts(99)})
    head, sudoku, pos = rows(report.mini())
    assert "mean (min-max)" in head[3]
    assert sudoku[0] == "[`sudoku.py`](sudoku.py)" and sudoku[2] == "64.3 %"
    assert sudoku[3:6] == ["50.0 % (40.0-60.0)", "-", "never, never, never"]
    assert sudoku[6:] == ["81.0 % (80.0-82.0)", "60.0 % (50.0-70.0)", "3", "60 s"]
    assert pos[0] == "[`pos_embedding/exp_pos.py`](pos_embedding/exp_pos.py)" and pos[3] == "not run"


def test_a_run_is_compared_with_its_parents_run_of_the_same_seed_and_test(root):
    for seed, (old, new) in enumerate([(40, 50), (50, 45), (60, None)]):
        put(root, "sudoku", f"mini-seed{seed}", {4: counts(old)})
        if new:
            put(root, "exp_pos", f"mini-seed{seed}", {4: counts(new)})
        else:
            put(root, "exp_pos", f"mini-seed{seed}", solved=None, diverged_at=9)
    put(root, "exp_pos", "mini-seed3", {4: counts(99)})  # its parent has no such seed
    assert rows(report.mini())[2][4] == "+10.0, -5.0, -60.0"
    for path in root.glob("results/sudoku/*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": "kaggle"}))
    assert rows(report.mini())[2][4] == "-"


def test_when_half_is_solved(root):
    for seed, tests in enumerate(["50,0.2\n100,0.5\n150,0.4", "50,0.1\n100,", "50,0.6\n100,0.7"]):
        put(root, "sudoku", f"mini-seed{seed}", {4: counts(40)})
        (root / f"results/sudoku/mini-seed{seed}/metrics.csv").write_text(f"step,test_solved\n{tests}\n")
    assert rows(report.mini())[1][5] == "100, never, 50"


def test_a_diverged_seed_is_named_and_not_averaged(root):
    put(root, "sudoku", "mini-seed0", solved=None, diverged_at=310)
    assert rows(report.mini())[1][3:9] == ["-", "-", "-", "-", "-", "1; seed 0 diverged at step 310"]
    (root / "results/sudoku/mini-seed0/metrics.csv").unlink()  # it diverged before its first row
    put(root, "sudoku", "mini-seed1", {4: counts(40)}, peak={"solved": None, "step": None})
    assert rows(report.mini())[1][3:9] == ["40.0 %", "-", "never", "90.0 %", "-", "2; seed 0 diverged at step 310"]
    family = lineage.find(root)
    (line,) = [line for line in report.ours(family[root / "sudoku.py"], family) if line.startswith("**Ours")]
    assert "seed 0 diverged at step 310" in line and "40.0 % solved" in line
    assert len(rows(report.contrast())) == 1
    report.plot()


def test_a_seed_that_learned_nothing_is_named(root):
    put(root, "sudoku", "mini-seed0", {4: counts(0)}, cells=0.12)
    put(root, "sudoku", "mini-seed1", {4: counts(40)}, cells=0.8)
    assert rows(report.mini())[1][3] == "20.0 % (0.0-40.0)"
    assert rows(report.mini())[1][8] == "2; seed 0 no better than chance"


def test_figures_are_those_of_the_runs_own_iterations(root):
    """Also of summaries that do not hold `cells` and `peak` yet."""
    tests = {4: counts(30, 10, cells=0.7), 16: counts(90, 80, cells=0.9, share_natural=0.5)}
    put(root, "exp_pos", "mini-seed0", tests)
    put(root, "exp_pos", "full-seed0", tests, iterations=16)
    family = lineage.find(root)
    lines = report.ours(report.lineage.pick(family, "exp_pos"), family)
    assert lines[0] == "**Change** (from [`sudoku.py`](sudoku.py)): something.  "
    assert lines[1] == "**Hypothesis**: it learns.  "
    full, mini = lines[3:]
    assert "20.0 % solved (30.0, 10.0 by bucket), 70.0 % of the blank cells" in mini and "natural" not in mini
    assert "85.0 % solved (90.0, 80.0 by bucket), 50.0 % on the natural mix, 90.0 % of the blank" in full
    assert rows(report.mini())[2][3:8] == ["20.0 %", "-", "never", "70.0 %", "-"]


def test_an_experiment_without_all_fields_yet_is_no_error(root):
    (root / "exp_new.py").write_text('"""New.\n\nParent: sudoku.py\n"""\n')
    (root / "EXPERIMENTS.md").write_text("<!-- report exp_new -->\n<!-- end -->\n")
    report.main([])
    assert "**Ours**: not run." in (root / "EXPERIMENTS.md").read_text()
    assert "exp_new" in lineage.tree(root) and "exp_new" in (root / "README.md").read_text()


def test_contrast_has_a_row_for_each_number_of_iterations(root):
    for seed in (0, 1):
        put(root, "sudoku", f"mini-seed{seed}", {4: counts(10 + seed), 16: counts(20)})
        put(root, "sudoku", f"mini-one-seed{seed}", {1: counts(seed)}, iterations=1)
    put(root, "exp_pos", "mini-seed0", {4: counts(10)})  # nothing to contrast
    found = [row[1:6] for row in rows(report.contrast())[1:]]
    assert found == [
        ["mini", "4", "10.5 % (10.0-11.0)", "90.0 %", "2"],
        ["mini", "16", "20.0 %", "90.0 %", "2"],
        ["mini-one", "1", "0.5 % (0.0-1.0)", "90.0 %", "2"],
    ]


def test_speedrun_has_a_row_for_each_kind_of_puzzle(root):
    put(root, "exp_speedrun", "full-seed0", {4: counts(100, 30), 8: counts(100, 50)})
    for seed in (0, 1):
        put(root, "exp_iterate", f"minute-seed{seed}", {8: counts(90 + seed, 20)}, iterations=8)
    head, *found = rows(report.speedrun())
    assert head == ["experiment", "run", "seeds", "training", "puzzles", "4", "8"]
    assert [row[:3] + row[5:] for row in found] == [
        ["exp_speedrun", "full", "1", "100.0 %", "100.0 %"],
        ["exp_speedrun", "full", "1", "30.0 %", "50.0 %"],
        ["exp_iterate", "minute", "2", "", "90.5 % (90.0-91.0)"],
        ["exp_iterate", "minute", "2", "", "20.0 %"],
    ]
    assert [row[1] for row in rows(report.speedrun("minute", "more"))[1:]] == ["minute", "minute"]
    report.plot()
    for name in ("results.png", "curves.png"):
        assert (root / name).read_bytes().startswith(b"\x89PNG")


def test_records_say_what_was_reached_in_how_much_time(root):
    for seed in (0, 1):
        put(root, "exp_iterate", f"minute-seed{seed}", {4: counts(80, 0), 8: counts(90 + seed, 20)})
        put(root, "exp_suppose", f"forum-seed{seed}", {4: counts(1, 1)})
        (root / "results/thinking").mkdir(exist_ok=True)
        sample = "sudoku_extreme_sample.csv"
        for run, end, data, solved in (("forum", "", sample, 3 + seed), ("forum", "-easy", "easy.csv", 5),
                                       ("doubtful", "", sample, 2)):  # fmt: skip
            test = {"16": {"solved": [0], "puzzles": [5]}, "4096": {"solved": [solved], "puzzles": [5]}}
            path = root / f"results/thinking/suppose-{run}-seed{seed}{end}.json"
            path.write_text(json.dumps({"data": data, "test": test}))
    _, minute, seconds, doubtful, hour = rows(report.records())
    assert minute[2:6] == ["2", "60 s", "90.5 % (90.0-91.0)", "a laptop"]
    assert seconds[2:6] == 4 * ["not run"]
    assert doubtful[2:6] == ["2", "60 s", "40.0 %", "a laptop"], "an earlier test of the same runs"
    assert hour[2:6] == ["2", "60 s", "70.0 % (60.0-80.0)", "a laptop"]


def evaluated(root, folder, name, solved, **more):
    """What eval_extreme.py would have written: how many of 10 puzzles are solved after each number of iterations."""
    (root / "results" / folder).mkdir(parents=True, exist_ok=True)
    test = {str(n): {"solved": [count], "puzzles": [10]} for n, count in solved.items()}
    kept = {"data": "sudoku_extreme_sample.csv", "step": 9, "test": test, **more}
    (root / f"results/{folder}/{name}.json").write_text(json.dumps(kept))


def test_the_ladder_compares_with_the_parent_seed_by_seed(root):
    for name, parent in (("exp_hard.py", "none"), ("exp_deep.py", "exp_hard.py")):
        (root / name).write_text(DOCSTRING.format(parent=parent, log="not in the log.", name=name))
    for seed in (0, 1):
        for name, group, solved in (("hard", "ladder", 2), ("deep", "ladder", 3 + seed), ("deep", "rate02", 1)):
            put(root, f"exp_{name}", f"{group}-seed{seed}", {4: counts(90)})
            evaluated(root, "ladder", f"{name}-{group}-seed{seed}", {16: 1, 256: solved})
    evaluated(root, "ladder", "deep-rate02-seed2", {16: 1, 256: 9})
    head, *found = rows(report.ladder())
    assert head[:6] == ["experiment", "seeds", "steps", "training", "16", "256"]
    assert [row[:2] + row[3:] for row in found] == [
        ["exp_hard", "0, 1", "60 s", "10.0 %", "20.0 %", ""],
        ["exp_deep", "0, 1", "60 s", "10.0 %", "35.0 % (30.0-40.0)", "+15.0 (+10.0, +20.0)"],
        ["exp_deep rate02", "0, 1, 2", "60 s", "10.0 %", "36.7 % (10.0-90.0)", "-25.0 (-20.0, -30.0)"],
    ]


def test_later_iterations_stand_side_by_side(root):
    for seed in (0, 1):
        put(root, "sudoku", f"longer-seed{seed}", {4: counts(10 + seed), 8: counts(20)})
    put(root, "exp_pos", "mini-seed0", {4: counts(30), 16: counts(40)})
    head, *found = rows(report.later("sudoku:longer", "exp_pos:mini"))
    assert head == ["experiment", "run", "seeds", "4", "8", "16"]
    assert found[0] == ["sudoku", "longer", "2", "10.5 % (10.0-11.0)", "20.0 %", ""]
    assert found[1] == ["exp_pos", "mini", "1", "30.0 %", "", "40.0 %"]


def test_the_curves_show_what_was_tested(root, monkeypatch):
    for step, solved in ((5, 2), (9, 4)):
        for seed in (0, 1):
            name = f"suppose-curve-seed{seed}-{step}"
            evaluated(root, "curve", name, {16: 1, 256: solved}, step=step, seconds=60.0 * step)
    left, right = report.curves_plot().axes
    assert [list(line.get_ydata()) for line in left.lines] == [[10, 40]] * 2, "the last checkpoint of each seed"
    assert [list(line.get_xdata()) for line in right.lines] == [[5, 9]] * 2
    assert [list(line.get_ydata()) for line in right.lines] == [[20, 40]] * 2


def test_documents_are_written_and_checked(root):
    document = root / "README.md"
    document.chmod(0o640)
    with pytest.raises(SystemExit, match=r"README\.md does not match"):
        report.main(["--check"])
    assert "old" in document.read_text() and not (root / "results.png").exists()
    report.main([])
    text = document.read_text()
    assert text.startswith("before\n<!-- report mini -->\n| exp") and text.endswith("|\n<!-- end -->\nafter\n")
    assert "not run" in text and document.stat().st_mode & 0o777 == 0o640
    report.main(["--check"])


@pytest.mark.parametrize(
    "text",
    ["<!-- report minis -->\n<!-- end -->\n", "<!-- report mini-->\n<!-- end -->\n", "<!-- report mini -->\nno end\n"],
)
def test_a_wrong_block_is_named(root, text):
    (root / "EXPERIMENTS.md").write_text(text + "<!-- report sudoku -->\n<!-- end -->\n")
    with pytest.raises(SystemExit, match=r"EXPERIMENTS\.md: '<!-- report mini"):
        report.main([])


def test_keep_copies_what_is_quoted(root, monkeypatch):
    experiment.main(["--preset", "smoke"])
    folder = root / "runs/exp_cosine_no_sam/smoke-seed0"
    monkeypatch.chdir(folder)
    report.main(["keep", "."])
    kept = root / "results/exp_cosine_no_sam/smoke-seed0"
    assert {path.name for path in kept.iterdir()} == {"config.json", "metrics.csv", "summary.json"}
    (run,) = lineage.runs("exp_cosine_no_sam", root)
    summary = json.loads((folder / "summary.json").read_text())
    assert run["group"] == "smoke" and run["solved"] == summary["solved"]
    assert report.frame("exp_cosine_no_sam")["cells"].notna().all()
    with pytest.raises(SystemExit, match=r"summary\.json"):
        report.main(["keep", str(folder.parent)])
    (folder / "metrics.csv").unlink()  # a run that diverged at once has none
    (kept / "metrics.csv").unlink()
    report.main(["keep", str(folder)])
    assert {path.name for path in kept.iterdir()} == {"config.json", "summary.json"}


def test_what_more_thinking_gives(root):
    assert report.thinking() == report.guessing() == ["Not run."]
    (root / "results/thinking").mkdir(parents=True)
    (root / "results/guess").mkdir()
    for seed, more in ((0, 0), (2, 2)):
        test = {n: {"solved": [solved, 1], "puzzles": [6, 2]} for n, solved in ((16, 1), (64, 3 + more))}
        kept = {"data": "x/hard.csv", "test": test, "test_seconds": 0.8}
        (root / f"results/thinking/a-seed{seed}.json").write_text(json.dumps(kept))
    (root / "results/thinking/a-seed2-easy.json").write_text(json.dumps(kept | {"data": "easy.csv"}))
    assert report.thinking()[-2:] == [
        "| a | 0, 2 | hard.csv | 8 | 25.0 % | 62.5 % (50.0-75.0) | 100 |",
        "| a | 2 | easy.csv | 8 | 25.0 % | 75.0 % | 100 |",
    ]
    for seed, mean in ((0, 4.25), (1, 5.25)):
        spread = {"median": 3.0, "mean": mean, "most": 9}
        ways = {"network": {"solved": 8, "seconds": 0.08, "guesses": spread, "iterations": spread}}
        ways["exact solver"] = {"solved": 8, "seconds": 0.0008}
        found = {"puzzles": 8, "command": "python guess.py x/hard.csv", "ways": ways}
        (root / f"results/guess/a-seed{seed}.json").write_text(json.dumps(found))
    assert report.guessing()[-2:] == [
        "| a | 0, 1 | hard.csv | network | 16 of 16 | 3 | 4.75 (4.25-5.25) | 9 | 3 | 4.75 (4.25-5.25) | 9 | 10 |",
        "| a | 0, 1 | hard.csv | exact solver | 16 of 16 |  |  |  |  |  |  | 0.1 |",
    ]


def test_keep_refuses_a_changed_run_under_its_presets_name(root):
    experiment.main(["--preset", "smoke", "--lr", "0.01", "--test-iterations", "1"])
    with pytest.raises(SystemExit, match=r"smoke-seed0 is not its preset: --lr differ.*--name"):
        report.main(["keep", "runs/exp_cosine_no_sam/smoke-seed0"])
    experiment.main(["--preset", "smoke", "--lr", "0.01", "--name", "fast-seed0"])
    report.main(["keep", "runs/exp_cosine_no_sam/fast-seed0"])
    assert [run["group"] for run in lineage.runs("exp_cosine_no_sam", root)] == ["fast"]


def kept_runs():
    family = {experiment.name for experiment in lineage.find().values()}
    return [path.parent for path in lineage.ROOT.glob("results/*/*/config.json") if path.parts[-3] in family]


def test_kept_runs_are_what_their_names_say():
    """Fails when a preset or a default changes under figures that were measured with the old one."""
    assert len(kept_runs()) > 50 and not [folder for folder in kept_runs() if report.altered(folder)]


def test_the_command_of_a_kept_run_gives_its_config():
    for folder in kept_runs():
        config, summary = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "summary"))
        _, _, *flags = summary["command"].split()
        module = lineage.module(folder.parent.name)
        asked = json.loads(json.dumps(vars(common.parse(module.Config, flags))))
        assert {n: asked[n] for n in config.keys() & asked.keys() - report.FREE} == {
            n: config[n] for n in config.keys() & asked.keys() - report.FREE
        }, folder


def test_what_cannot_be_read_or_written_is_one_line(root):
    (root / "results.png").mkdir()
    for broken in (lambda: None, lambda: (root / "README.md").unlink()):
        broken()
        with pytest.raises(SystemExit) as ended:
            lineage.run_command(lambda: report.main([]))
        assert len(ended.value.code.splitlines()) == 1


def test_a_contrast_pairs_the_seeds_and_has_students_interval(root, monkeypatch):
    monkeypatch.setattr(insights, "CONTRASTS", {"a": insights.Contrast("x or y", "sudoku", "exp_pos")})
    monkeypatch.setattr(insights, "INSIGHTS", (insights.Insight("x is better", ("a",)),))
    assert rows(report.verdicts())[1][1] == "not run"
    for seed, (old, new) in enumerate([(50, 40), (53, 41), (55, 41)]):
        put(root, "sudoku", f"mini-seed{seed}", {4: counts(old)})
        put(root, "exp_pos", f"mini-seed{seed}", {4: counts(new)})
        if seed == 0:
            assert rows(report.contrasts())[1][4:] == ["+10.0", "", ""]
            assert rows(report.verdicts())[1][1] == "one seed so far"
            (child,) = [e for e in report.all_of_them() if e.name == "exp_pos"]
            said = report.ours(child, report.lineage.find(report.ROOT))[-1]
            assert "-10.0 points against its parent, one seed" in said
    put(root, "sudoku", "mini-seed3", {4: counts(99)})  # no partner
    row = rows(report.contrasts())[1]
    assert row[3:] == ["64.3 % / 82.8 %", "+10.0, +12.0, +14.0", "+12.0 (+7.0 to +17.0)", "first better"]
    assert rows(report.verdicts())[1][:3] == ["x is better", "confirmed", "a"]
    (experiment,) = [e for e in report.all_of_them() if e.name == "exp_pos"]
    assert "**Verdict**: -12.0 points (-17.0 to -7.0) against its parent: worse." in report.ours(
        experiment, report.lineage.find(report.ROOT)
    )


def test_a_diverged_run_solved_nothing_in_contrasts_and_against_its_parent(root, monkeypatch):
    monkeypatch.setattr(insights, "CONTRASTS", {"a": insights.Contrast("x or y", "sudoku", "exp_pos")})
    monkeypatch.setattr(insights, "INSIGHTS", (insights.Insight("x is better", ("a",)),))
    for seed in range(3):
        put(root, "sudoku", f"mini-seed{seed}", {4: counts(50 + seed)})
        put(root, "exp_pos", f"mini-seed{seed}", solved=None, diverged_at=9)
    assert rows(report.contrasts())[1][4:6] == ["+50.0, +51.0, +52.0", "+51.0 (+48.5 to +53.5)"]
    assert rows(report.verdicts())[1][1] == "confirmed"
    assert rows(report.mini())[2][4] == "-50.0, -51.0, -52.0"


@pytest.mark.parametrize(
    "first, second, mark",
    [
        (50, 50, "confirmed, within 5 points"),
        (97, 97, "mini cannot tell"),
        (94, 97, "mini cannot tell"),  # nothing could be 5 points better than the second
        (97, 94, "confirmed, within 5 points"),
        (2, 2, "mini cannot tell"),
    ],
)
def test_two_that_solve_nearly_all_or_nothing_are_not_called_alike(root, monkeypatch, first, second, mark):
    monkeypatch.setattr(insights, "CONTRASTS", {"a": insights.Contrast("x or y", "sudoku", "exp_pos")})
    monkeypatch.setattr(insights, "INSIGHTS", (insights.Insight("y will do", ("a",), enough="second"),))
    for seed in range(3):
        for name, solved in (("sudoku", first), ("exp_pos", second)):
            put(root, name, f"mini-seed{seed}", {4: counts(solved)})
    assert rows(report.verdicts())[1][1].split(":")[0] == mark


@pytest.mark.parametrize(
    "enough, intervals, mark",
    [
        ("", {"a": (1, 9), "b": (1, 9)}, "confirmed"),
        ("", {"a": (1, 9)}, "not all run yet"),
        ("", {"a": (-1, 9)}, "not all run yet"),
        ("", {"a": (1, 9), "b": (-1, 9)}, "confirmed in part"),
        ("", {"a": (1, 9), "b": (-9, -1)}, "confirmed in part, in part the opposite"),
        ("", {"a": (-1, 9), "b": (-9, -1)}, "not confirmed"),
        ("", {"a": (-1, 9), "b": (-1, 9)}, "mini cannot tell"),
        ("", {}, "not run"),
        ("both", {"a": (-4, 4), "b": (1, 4)}, "confirmed, within 5 points"),
        ("both", {"a": (-4, 4)}, "not all run yet"),
        ("both", {"a": (-4, 4), "b": (1, 6)}, "mini cannot tell"),  # the difference is sure, that it matters is not
        ("both", {"a": (-4, 4), "b": (6, 9)}, "not confirmed"),
        ("both", {"a": (-4, 4), "b": (-9, -6)}, "not confirmed"),
        ("first", {"a": (-4, 40), "b": (6, 9)}, "confirmed, within 5 points"),
        ("first", {"a": (-4, 40), "b": (-9, -6)}, "not confirmed"),
        ("second", {"a": (-40, 4), "b": (-9, -6)}, "confirmed, within 5 points"),
        ("second", {"a": (-40, 4), "b": (6, 9)}, "not confirmed"),
        ("second", {"a": (-40, 4), "b": (4, 9)}, "mini cannot tell"),
    ],
)
def test_marks_of_insights(enough, intervals, mark):
    assert insights.judged(insights.Insight("", ("a", "b"), enough), intervals) == mark


def test_the_spread_over_seeds_is_computed(root, monkeypatch):
    monkeypatch.setattr(insights, "INSIGHTS", (insights.Insight("runs vary", verdict=insights.SPREAD),))
    for seed, solved in enumerate((40, 50, 43)):
        put(root, "sudoku", f"mini-seed{seed}", {4: counts(solved)})
    assert "1 experiments: median 10.0, most 10.0 points" in rows(report.verdicts())[1][1]


def test_insights_rest_on_contrasts_and_these_on_experiments():
    family = {experiment.name for experiment in report.all_of_them()}
    assert {name for c in insights.CONTRASTS.values() for name in (c.better, c.worse)} <= family
    assert {name for insight in insights.INSIGHTS for name in insight.contrasts} == set(insights.CONTRASTS)
    assert all(bool(insight.contrasts) != bool(insight.verdict) for insight in insights.INSIGHTS)


def test_positions_have_a_table_of_their_own(root):
    put(root, "sudoku", "mini-seed0", {4: counts(50)})
    put(root, "exp_pos", "mini-seed0", {4: counts(40)})
    _, *found = rows(report.positions())
    assert len(found) == 1 and found[0][0] == "[`exp_pos.py`](exp_pos.py)"
    assert found[0][2:] == ["82.8 %", "64.3 %", "40.0 %", "-10.0"]
