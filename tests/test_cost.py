"""cost.py against bench.py's count by hand, and what multiplies it."""

import json

import pytest

import bench
import common
import cost
import lineage


def test_the_baseline_costs_what_bench_counts(monkeypatch, capsys, clean):
    family = {path: one for path, one in lineage.find().items() if one.name in ("sudoku", "exp_trm_carry", "exp_sam")}
    for one in family.values():
        one.parent = None
    monkeypatch.setattr(lineage, "find", lambda: family)
    cost.main(["mini", "--rate", "0.001", "--output", "cost.json"])
    kept = json.loads((clean / "cost.json").read_text())
    rows = {row["experiment"]: row for row in kept["rows"]}
    for name, passes in (("sudoku", 1), ("exp_sam", 2)):
        config = common.with_preset(lineage.module(name).Config(), "mini")
        expected = passes * bench.flops(config, 1, config.iterations)
        assert rows[name]["gflop"] == pytest.approx(expected / 1e9, rel=0.02)
        assert rows[name]["pflop"] == pytest.approx(rows[name]["gflop"] * config.batch * config.steps / 1e6)
        slower = {"sudoku": cost.FP32, "exp_sam": 1}[name]
        assert rows[name]["minutes"] == pytest.approx(slower * rows[name]["pflop"] * 1e15 / 1e9 / 60)
    carry = lineage.module("exp_trm_carry")
    once = cost.pass_flops(carry, common.with_preset(carry.Config(iterations=1), "mini"))
    assert rows["exp_trm_carry"]["gflop"] == pytest.approx(once / 1e9)
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 runs")
