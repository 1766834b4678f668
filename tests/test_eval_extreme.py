"""eval_extreme.py and analyze_failures.py: the same counts as a direct computation, means by bucket, bad input."""

import json
import math
import re

import numpy as np
import pytest
import torch

import analyze_failures
import common
import eval_extreme
import sudoku
from data import generate, store
from plumbing import disk


@pytest.fixture
def run(clean):
    """A run's folder with an untrained network, tested on five buckets of generated puzzles."""
    config = common.with_preset(sudoku.Config(), "smoke")
    config.data, config.edges, config.train_per_bucket = "generated:74-78", common.KAGGLE, 20
    torch.manual_seed(0)
    state = {"experiment": "sudoku", "step": 4, "config": vars(config), "model": sudoku.Model(config).state_dict()}
    disk.save_checkpoint(clean / "checkpoint.pt", state)
    return clean


def puzzles_of(ratings, clues=45):
    found = generate.cached(len(ratings), clues=clues, seed=3, progress=False)
    puzzle, solution = found.rows(np.arange(len(ratings)))
    return store.from_arrays(puzzle, solution, ratings)


def test_counts_are_those_of_a_direct_computation(run, monkeypatch, capsys):
    monkeypatch.setattr(eval_extreme, "CHUNK", 7)  # several chunks, the last one shorter
    eval_extreme.main([str(run), "--data", "own", "--iterations", "3", "1", "--output", "counts.json"])
    result = json.loads((run / "counts.json").read_text())
    assert list(result["test"]) == ["1", "3"] and len(result["edges"]) == 6
    saved = disk.load_checkpoint(run / "checkpoint.pt")
    model = sudoku.Model(sudoku.Config(**saved["config"]))
    model.load_state_dict(saved["model"])
    puzzles = generate.cached(40, clues=78, seed=8, progress=False).subset(np.arange(20))  # its easiest bucket
    puzzle, solution = (torch.from_numpy(a.astype(int)) for a in puzzles.rows(np.arange(20)))
    for n, logits in enumerate(model.eval()(puzzle, 3), 1):
        right = (logits.argmax(-1) + 1 == solution) & (puzzle == 0)
        if n in (1, 3):
            row = result["test"][str(n)]
            assert row["puzzles"] == [20] * 5
            assert row["cells"][0] == right.sum() and row["blanks"][0] == (puzzle == 0).sum()
            assert row["solved"][0] == (right == (puzzle == 0)).all(1).sum()
    assert re.search(r"100 of 100 puzzles of own.*\d+ puzzles/s at 3 iterations", capsys.readouterr().out, re.DOTALL)


def test_balanced_and_natural_means():
    total = {4: np.array([[1, 3, 0], [2, 6, 0], [9, 9, 0], [10, 20, 0]])}
    names = list(eval_extreme.names((0.0, 1.0, 3.0, math.inf), np.array([0.0, 5.0])))
    column = eval_extreme.table(total, names, np.array([0.9, 0.1, 0.0]))["4 iterations"]
    assert list(column.index) == ["rated 0", "rated 1-2", "rated 3+", "balanced", "natural", "blanks right"]
    assert math.isnan(column.iloc[2])  # no puzzle there
    assert list(column.drop("rated 3+")) == pytest.approx([50, 50, 50, 50, 60])
    total[4][0] = [2, 0, 0]
    column = eval_extreme.table(total, names, np.array([0.9, 0.1, 0.0]))["4 iterations"]
    assert [column["balanced"], column["natural"]] == pytest.approx([50, 90])


def test_natural_is_left_out_where_the_source_is_not_known():
    names = list(eval_extreme.names((0.0, 1.0, 3.0), np.zeros(1)))
    found = eval_extreme.table({4: np.array([[1, 3], [2, 6], [9, 9], [10, 20]])}, names, None)["4 iterations"]
    assert list(found.index) == ["rated 0", "rated 1-2", "balanced", "blanks right"] and found["balanced"] == 50


def test_what_each_source_is_tested_on(run, monkeypatch):
    """The flags decide which puzzles a source gives, but the run's own test set stays what it was."""
    asked = []

    def load(config):
        asked.append((config.data, config.edges, config.test_per_bucket))
        return eval_extreme.sources.Data(None, "puzzles", config.edges, [0.5, 0.5])

    monkeypatch.setattr(eval_extreme.sources, "load", load)
    config = {"data": "extreme", "edges": (0.0, 1.0, 5.0), "test_per_bucket": 9}
    assert eval_extreme.test_set("own", config) == ("puzzles", (0.0, 1.0, 5.0), [0.5, 0.5])
    assert eval_extreme.test_set("own", config, (0.0, 2.0)) == ("puzzles", (0.0, 2.0), None)  # a balanced draw
    assert eval_extreme.test_set("kaggle", config, (0.0, 2.0), 500) == ("puzzles", (0.0, 2.0), [0.5, 0.5])
    eval_extreme.test_set("kaggle", config)
    own, two = ("extreme", (0.0, 1.0, 5.0), 9), ("kaggle", (0.0, 2.0), 500)
    assert asked == [own, own, two, ("kaggle", (0.0, 1.0, 5.0), 9)]


def test_a_config_without_a_later_field_gets_its_default(run):
    saved = disk.load_checkpoint(run / "checkpoint.pt")
    del saved["config"]["data"]
    disk.save_checkpoint(run / "checkpoint.pt", saved)
    config = eval_extreme.config_of(run / "checkpoint.pt")
    assert (
        config["data"] == sudoku.Config().data and config["width"] == saved["config"]["width"] != sudoku.Config().width
    )


def test_names_of_buckets():
    assert list(eval_extreme.names((0.0, 0.1), np.zeros(3))) == ["[0, 0.1)"]
    assert list(eval_extreme.names((3.0, 4.0, 10.0), np.array([3.7]))) == ["[3, 4)", "[4, 10)"]
    assert list(eval_extreme.names((0.0, 1.0, 3.0, 51.0, math.inf), np.array([7.0]))) == ["0", "1-2", "3-50", "51+"]


def test_a_file_is_tested_as_a_whole_or_by_bucket(run, capsys):
    store.save(run / "set.npy", puzzles_of([0.0] * 6 + [5.0] * 3 + [60.0]))
    eval_extreme.main([str(run), "--data", "set.npy", "--edges", "0", "1", "inf", "--per-bucket", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("4 of 10") and "left out" not in lines[2] and lines[3].split()[:3] == ["rated", "0", "2"]
    eval_extreme.main([str(run), "--data", "set.npy", "--edges", "0", "6"])
    assert "1 puzzles are rated outside --edges 0 6 and left out" in capsys.readouterr().out
    puzzle, solution = puzzles_of([0.0]).rows(np.arange(1))
    text = [",".join(["x", "".join(map(str, puzzle[0])), "".join(map(str, solution[0])), "7"])]
    (run / "my.csv").write_text("source,question,answer,rating\n" + "\n".join(text) + "\n")
    eval_extreme.main([str(run), "--data", "my.csv"])
    assert "1 of 1 puzzles of my.csv" in capsys.readouterr().out


@pytest.mark.parametrize("edges", [["5"], ["10", "5", "0"], ["0", "10", "5", "20"], ["0", "0"]])
def test_limits_of_buckets_have_to_rise(run, edges):
    with pytest.raises(SystemExit, match=f"--edges {float(edges[0])}.*rising"):
        eval_extreme.main([str(run), "--data", "own", "--edges", *edges])


@pytest.mark.parametrize("main", [eval_extreme.main, analyze_failures.main])
@pytest.mark.parametrize(
    "flags", [["--batch", "0"], ["--per-bucket", "-1"], ["--iterations", "-1"], ["--data", "none.csv"],
              ["--data", "nonsense"], ["--data", "none.npy"]]
)  # fmt: skip
def test_bad_flags_are_one_line(run, main, flags):
    with pytest.raises(SystemExit) as error:
        main([str(run), *flags])
    said = str(error.value)
    assert "\n" not in said and "delete it" not in said and any(word in said for word in flags)


def test_what_happened_to_each_puzzle():
    """Three puzzles of two blanks: one solved, one solved and lost, one that swings between two boards."""
    solution = np.tile(np.arange(81) % 9 + 1, (3, 1)).astype(np.uint8)
    puzzle = solution.copy()
    puzzle[:, :2] = 0
    boards = np.tile(solution, (4, 1, 1))
    boards[0, 0, 0] = 9
    boards[2:, 1, 0] = 9
    boards[:, 2, 0] = [8, 9, 8, 9]
    found = analyze_failures.analyse(boards, puzzle, solution, np.array([0, 0, 1]))
    assert found.failed.tolist() == [False, True, True] and found.once.tolist() == [True, True, False]
    assert found.best.tolist() == [2, 1, 1] and found.lost.tolist() == [0, 1, 0]
    assert found.changes.T.tolist() == [[True, False, False], [False, True, False], [True, True, True]]
    assert found.swings.T.tolist() == [[False, False], [False, False], [True, True]]
    assert found.right.T.tolist() == [[1, 2, 2, 2], [2, 2, 1, 1], [1, 1, 1, 1]]
    text = "\n".join(analyze_failures.tell(found, ["0", "1+"]))
    for line in (" 50.0 %  had more cells right at an earlier iteration, 1.0 on", " 50.0 %  were solved at an earlier",
                 " 50.0 %  still changed at the last", " 50.0 %  went back", "r1c1 2"):  # fmt: skip
        assert line in text
    shown = list(analyze_failures.median_failures(found, boards, puzzle, solution, ["0", "1+"]))
    assert len(shown) == 4 and shown[0].count("(1)") == 1 and shown[1].startswith("..345")


def test_failures_of_a_run(run, capsys):
    analyze_failures.main([str(run), "--iterations", "3", "--show", "--plot", "picture.png", "--per-bucket", "5"])
    assert "25 puzzles" in capsys.readouterr().out and (run / "picture.png").stat().st_size > 10_000
    for count in (1, 2):
        analyze_failures.main([str(run), "--iterations", f"{count}", "--plot", "picture.png", "--per-bucket", "5"])
        assert ("still changed" in capsys.readouterr().out) == (count == 2)
    with pytest.raises(SystemExit, match="--plot"):
        analyze_failures.main([str(run), "--plot", "."])
