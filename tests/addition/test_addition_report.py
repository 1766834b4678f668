"""A sweep's evidence gets to results/ whole, and tables and plots say what is in it."""

import pytest

from addition import plots, report, sweep, train
from addition.data import phases
from plumbing import disk

PNG = b"\x89PNG\r\n"


def rows_of(table):
    """The cells of a table's rows."""
    lines = [line for line in table if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def summary(seed, errors, at=None, **config):
    config = {"train_steps": 1000, "curriculum": "200:3,500:6", "model": {"d_model": 7}, "lr": 0.01} | config
    return {
        "parameters": 456, "seed": seed, "best_step": 900, "step_at_99": at, "errors_in_100000": errors,
        "seconds": 100.0 + seed, "models_together": 4, "hardware": "a laptop", "commit": "abc1234",
        "config": config | {"seed": seed},
    }  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "addition").mkdir()
    return tmp_path


def put(root, name, members, command="--seeds 0-3"):
    """A kept sweep."""
    folder = root / "results/addition" / name
    folder.mkdir(parents=True)
    disk.write_json(folder / "sweep.json", {"command": command, "members": members})
    columns = ["member", "step", "train_loss", "val_loss", "val_exact"]
    rows = [dict(zip(columns, (m, s, 1, 1, s / 1000))) for m in members for s in (250, 500, 750, 1000)]
    disk.write_rows(folder / "metrics.csv", rows, columns)


FOUR = {"seed0": (0, 600), "seed1": (40, 700), "seed2": (900, 950), "seed3": (99_000, None)}


def four(first=0, **config):
    return {f"seed{first + i}": summary(first + i, *values, **config) for i, values in enumerate(FOUR.values())}


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(9, 10, 0.596, 0.982), (0, 8, 0.0, 0.324), (8, 8, 0.676, 1.0), (5, 10, 0.237, 0.763), (0, 0, 0.0, 1.0)],
)
def test_wilson(successes, total, low, high):
    assert report.wilson(successes, total) == pytest.approx((low, high), abs=5e-4)


def test_one_row_a_configuration(root):
    put(root, "one", four())
    ((name, size, steps, good, better, none, median, errors, seconds),) = rows_of(report.sweep("one"))
    assert "one" in name and (size, steps, median, errors) == ("456", "1,000", "700", "0, 470")
    assert good == "3 of 4 (75 %, 30-95 %)"
    assert better.startswith("2 of 4") and none.startswith("1 of 4")
    assert float(seconds) == pytest.approx(103 / 4, abs=0.06)
    never = {"seed0": summary(0, 100_000)}
    put(root, "never", never)
    assert rows_of(report.sweep("never"))[0][6] == "-"


def test_a_grid_is_a_row_a_combination(root):
    grid = {f"lr{lr}-seed{i}": summary(i, lr, lr=lr) for lr in (1, 2) for i in (0, 1)}
    put(root, "grid", grid)
    assert [(row[0], row[3][:6]) for row in rows_of(report.sweep("grid"))] == [("`lr1`", "2 of 2"), ("`lr2`", "2 of 2")]
    assert len(rows_of(report.seeds("grid"))) == 4


def test_pooled_folders_are_one_row(root):
    put(root, "wide-a", four())
    put(root, "wide-b", four(4))
    rows = rows_of(report.sweep("wide-a+wide-b", "wide-a"))
    assert [row[3].split(" (")[0] for row in rows] == ["6 of 8", "3 of 4"]
    assert float(rows[0][8]) == pytest.approx((103 + 107) / 8, abs=0.06)
    assert [int(row[1]) for row in rows_of(report.seeds("wide-a+wide-b"))] == list(range(8))
    put(root, "again", four())
    with pytest.raises(SystemExit, match="seed"):
        report.sweep("wide-a+again")
    put(root, "other", four(8, lr=0.5))
    with pytest.raises(SystemExit, match="lr"):
        report.sweep("wide-a+other")


def test_not_run_is_said(root):
    for kind in report.KINDS:
        assert "not run" in "\n".join(report.KINDS[kind]("nothing"))


def test_commands_can_be_pasted(root):
    put(root, "grid", four(), command="--grid curriculum=100:3;200:6 --seeds 0-3")
    text = "\n".join(report.command("grid"))
    assert "python -m addition.sweep --grid 'curriculum=100:3;200:6'" in text
    assert "a laptop" in text and "abc1234" in text


@pytest.mark.parametrize("text", ["<!-- report sweeps one -->\n<!-- end -->\n", "<!-- report sweep one -->\nno end\n"])
def test_a_wrong_block_is_named(root, text):
    put(root, "one", four())
    (root / "addition/README.md").write_text(text + "<!-- report seeds one -->\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="report sweep"):
        report.main([])


def test_documents_and_plots_are_written(root):
    put(root, "one", four())
    document = root / "addition/README.md"
    document.write_text("before\n<!-- report sweep one -->\n<!-- end -->\nafter\n")
    with pytest.raises(SystemExit):
        report.main(["--check"])
    assert not list(root.rglob("*.png"))
    report.main([])
    assert document.read_text().startswith("before\n") and document.read_text().endswith("<!-- end -->\nafter\n")
    report.main(["--check"])
    pictures = list(root.rglob("*.png"))
    assert {p.name for p in pictures} == {"seeds.png", "accuracy.png"}
    assert all(p.read_bytes().startswith(PNG) for p in pictures)


def test_a_real_sweep_is_kept(root, tmp_path):
    flags = "--train-steps 4 --eval-interval 2 --batch-size 8 --val-size 16 --test-size 16 --eval-batch-size 10000"
    runs = tmp_path / "runs"
    sweep.main([*flags.split(), "--seeds", "0-1", "--run-name", "tiny", "--runs", str(runs)])
    report.main(["keep", str(runs / "tiny")])
    kept = root / "results/addition/tiny"
    assert {path.name for path in kept.iterdir()} == {"summary.json", "metrics.csv"}
    rows = disk.read_rows(kept / "metrics.csv")
    assert [(row["member"], row["step"]) for row in rows] == [(f"seed{i}", s) for i in (0, 1) for s in "24"]
    assert next(iter(rows[0])) == "member"
    assert (kept / "summary.json").read_text() == (runs / "tiny/summary.json").read_text()
    assert rows_of(report.sweep("tiny"))[0][3].startswith("0 of 2")
    train.main([*flags.split(), "--run-name", "alone", "--runs", str(runs)])
    report.main(["keep", str(runs / "alone")])
    assert {path.name for path in (root / "results/addition/alone").iterdir()} == {"summary.json", "metrics.csv"}
    assert "python -m addition.train --train-steps 4" in "\n".join(report.command("alone"))
    assert len(rows_of(report.seeds("alone"))) == 1
    report.draw()
    assert (root / "results/addition/alone/seeds.png").exists()
    with pytest.raises(SystemExit, match=r"summary\.json"):
        report.main(["keep", str(runs)])


def test_runs_that_diverged_are_shown(root):
    put(root, "one", {"seed0": summary(0, 0, 600), "seed1": summary(1, 100_000) | {"diverged_at": 1234}})
    assert "1 of 2" in rows_of(report.sweep("one"))[0][3] and "1 diverged" in rows_of(report.sweep("one"))[0][3]
    assert "diverged at step 1,234" in rows_of(report.seeds("one"))[1][4]
    put(root, "whole", four())
    assert "diverged" not in "".join(report.sweep("whole") + report.seeds("whole"))


def test_a_run_has_its_plots(tmp_path):
    rows = [{"step": s, "train_loss": 2.0, "val_loss": 1.0, "val_exact": 0.5} for s in (100, 200, 300)]
    plots.run_plots(tmp_path, rows, phases("150:3,250:6"))
    names = ["train_val_loss_per_step.png", "val_accuracy_per_step.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in names)


def test_labels_are_apart_and_near():
    places = plots.spread([5.0, 1.0, 1.0, 1.1], 0.5)
    assert places[0] == 5 and all(b - a >= 0.5 - 1e-9 for a, b in zip(sorted(places), sorted(places)[1:]))
    assert sum(places[1:]) == pytest.approx(3.1)


def test_repository_documents_match_results():
    report.main(["--check"])
