"""A sweep's evidence gets to results/ whole, and tables and plots say what is in it."""

import pytest

from addition import report, train
from addition.fast import sweep
from addition.plots import run_plots
from plumbing import disk

PNG = b"\x89PNG\r\n"


def rows_of(table):
    """The cells of a table's rows."""
    lines = [line for line in table if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def summary(seed, errors, at=None, **config):
    config = {"train_steps": 1000, "batch_size": 500, "model": {"d_model": 7}, "lr": 0.01} | config
    return {
        "parameters": 456, "seed": seed, "best_step": 900, "step_at_99": at, "errors_in_100000": errors,
        "seconds": 100.0 + seed, "models_together": 4, "starts": 1, "sums_seen": 500_000,
        "hardware": "a laptop", "commit": "abc1234",
        "config": config | {"seed": seed},
    }  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results/addition")
    monkeypatch.setattr(report, "DOCUMENTS", ("addition/README.md",))
    (tmp_path / "addition").mkdir()
    (tmp_path / "addition/README.md").touch()
    return tmp_path


def put(root, name, members, command="python -m addition.fast.sweep train"):
    """A kept sweep."""
    folder = root / "results/addition" / name
    folder.mkdir(parents=True)
    disk.write_json(folder / "summary.json", {"command": command, "members": members})
    columns = ["member", "step", "train_loss", "val_loss", "val_exact", "digits"]
    rows = [dict(zip(columns, (m, s, 1, 1, s / 1000, s // 250))) for m in members for s in (250, 500, 750, 1000)]
    disk.write_rows(folder / "metrics.csv", rows, columns)


FOUR = {"seed0": (0, 600), "seed1": (40, 700), "seed2": (900, 950), "seed3": (99_000, None)}


def four(first=0, **config):
    return {f"seed{first + i}": summary(first + i, *values, **config) for i, values in enumerate(FOUR.values())}


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(9, 10, 0.596, 0.982), (0, 8, 0.0, 0.324), (8, 8, 0.676, 1.0), (5, 10, 0.237, 0.763)],
)
def test_wilson(successes, total, low, high):
    assert report.wilson(successes, total) == pytest.approx((low, high), abs=5e-4)


def test_one_row_a_configuration(root):
    put(root, "one", four())
    ((name, size, steps, starts, good, none, sums, median, errors, seconds),) = rows_of(report.sweep("one"))
    assert name == "`one`" and (size, steps, starts, median, errors) == ("456", "1,000", "1", "700", "0, 470")
    assert good == "3 of 4 (75 %, 30-95 %)" and none == "1"
    assert float(sums) == pytest.approx(4 * 0.5 / 3, abs=0.06) and float(seconds) == pytest.approx(103 / 4, abs=0.06)
    put(root, "never", {"seed0": summary(0, 100_000)})
    assert rows_of(report.sweep("never"))[0][6:8] == ["-", "-"]


def test_all_starts_of_a_run_count(root):
    several = {f"seed{i}": summary(i, 0, 600) | {"starts": 2 + i, "sums_seen": 10**6} for i in (0, 1)}
    put(root, "several", several)
    ((*_, starts, _, _, sums, _, _, seconds),) = rows_of(report.sweep("several"))
    assert (starts, sums, seconds) == ("2 to 3, 5 in all", "1", "20.2")


def test_a_grid_is_a_row_a_combination(root):
    grid = {f"lr{lr}-seed{i}": summary(i, lr, lr=lr) for lr in (1, 2) for i in (0, 1)}
    put(root, "grid", grid)
    rows = [(row[0], row[4][:6]) for row in rows_of(report.sweep("grid"))]
    assert rows == [("`grid lr1`", "2 of 2"), ("`grid lr2`", "2 of 2")]
    assert len(rows_of(report.seeds("grid"))) == 4


def test_not_run_is_said(root):
    for kind in report.KINDS:
        assert "not run" in "\n".join(report.KINDS[kind]("nothing"))


def test_commands_can_be_pasted(root):
    put(root, "long", four(), command=f"python -m addition.train{' --seed 1234567' * 20}")
    first, *rest, about = report.command("long")[1:-1]
    assert first.endswith(" \\") and rest and about == "# a laptop; commit abc1234"


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
    sweep.main(["train", *flags.split(), "--seeds", "0-1", "--run-name", "tiny", "--runs", str(runs)])
    report.main(["keep", str(runs / "tiny")])
    kept = root / "results/addition/tiny"
    assert {path.name for path in kept.iterdir()} == {"summary.json", "metrics.csv"}
    rows = disk.read_rows(kept / "metrics.csv")
    assert [(row["member"], row["step"]) for row in rows] == [(f"seed{i}", s) for i in (0, 1) for s in "24"]
    assert next(iter(rows[0])) == "member"
    assert (kept / "summary.json").read_text() == (runs / "tiny/summary.json").read_text()
    assert rows_of(report.sweep("tiny"))[0][4].startswith("0 of 2")
    train.main([*flags.split(), "--run-name", "alone", "--runs", str(runs)])
    report.main(["keep", str(runs / "alone")])
    assert {path.name for path in (root / "results/addition/alone").iterdir()} == {"summary.json", "metrics.csv"}
    assert "python -m addition.train --train-steps 4" in "\n".join(report.command("alone"))
    assert len(rows_of(report.seeds("alone"))) == 1
    report.draw()
    assert (root / "results/addition/alone/seeds.png").exists()
    for seed in ("42", "7"):
        train.main([*flags.split(), "--run-name", f"both-seed{seed}", "--runs", str(runs), "--seed", seed])
    report.main(["keep", str(runs / "both-seed42"), str(runs / "both-seed7")])
    with pytest.raises(SystemExit, match="also has seed7"):
        report.main(["keep", str(runs / "both-seed42")])
    assert rows_of(report.sweep("both"))[0][4].startswith("0 of 2")
    assert [row["member"] for row in disk.read_rows(root / "results/addition/both/metrics.csv")] == (
        ["seed42"] * 2 + ["seed7"] * 2
    )
    with pytest.raises(SystemExit, match=r"summary\.json"):
        report.main(["keep", str(runs)])


def test_runs_that_diverged_are_shown(root):
    put(root, "one", {"seed0": summary(0, 0, 600), "seed1": summary(1, 100_000) | {"diverged_at": 1234}})
    assert "1 of 2" in rows_of(report.sweep("one"))[0][4] and "1 diverged" in rows_of(report.sweep("one"))[0][4]
    assert "diverged at step 1,234" in rows_of(report.seeds("one"))[1][4]
    put(root, "whole", four())
    assert "diverged" not in "".join(report.sweep("whole") + report.seeds("whole"))


def test_a_run_has_its_plots(tmp_path):
    rows = [{"step": s, "train_loss": 2.0, "val_loss": 1.0, "val_exact": 0.5, "stage": f"up to {s // 100} digits"}
            for s in (100, 200, 300)]  # fmt: skip
    run_plots(tmp_path, rows)
    names = ["train_val_loss_per_step.png", "val_accuracy_per_step.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in names)


def test_repository_documents_match_results():
    report.main(["--check"])
