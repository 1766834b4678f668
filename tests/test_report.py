"""The documents match results/, and a run's evidence gets there whole."""

import json
import shutil

import pytest

import exp_cosine_no_sam as experiment
import report


def test_documents_match_results():
    report.main(["--check"])


def test_keep_copies_what_is_quoted(clean, monkeypatch):
    monkeypatch.setattr(report, "ROOT", clean)
    shutil.copy(experiment.__file__, clean)
    experiment.main(["--preset", "smoke"])
    folder = clean / "runs/exp_cosine_no_sam/smoke-seed0"
    report.main(["keep", str(folder)])
    kept = clean / "results/exp_cosine_no_sam/smoke-seed0"
    assert {path.name for path in kept.iterdir()} == {"config.json", "metrics.csv", "summary.json"}
    solved = json.loads((kept / "summary.json").read_text())["solved"]
    text = report.fill("<!-- report exp_cosine_no_sam -->\nold\n<!-- end -->\n")
    assert "old" not in text and report.percent(solved) in text
    with pytest.raises(SystemExit, match=r"summary\.json"):
        report.main(["keep", str(clean / "runs/exp_cosine_no_sam")])


def test_not_run_is_said(clean, monkeypatch):
    monkeypatch.setattr(report, "ROOT", clean)
    shutil.copy(experiment.__file__, clean)
    assert "not run" in "\n".join(report.mini())
