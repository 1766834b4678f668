"""The speed table: both loops compute the same, and the count of FLOPs is torch's own count."""

import torch
from torch.utils.flop_counter import FlopCounterMode

import bench
import common
import exp_cosine_no_sam as experiment


def test_table_of_a_small_step(clean, capsys):
    report = bench.main(
        ["--batch", "2", "--iterations", "2", "--repeats", "1", "--device", "cpu", "--output", "a/b.json"]
    )
    assert report["agreement_without_dropout"]["loss"] < 1e-6
    assert report["agreement_without_dropout"]["gradient"] < 1e-4
    assert 0 < report["share_of_matrix_rate"]["ours"] < 1.2
    assert (clean / "a/b.json").exists()
    assert "against plain" in capsys.readouterr().out


def test_flops_are_those_that_torch_counts():
    config = common.with_preset(experiment.Config(), "smoke")
    model = experiment.Model(config).eval()
    puzzle = torch.randint(0, 10, (4, 81))
    target = torch.where(puzzle == 0, 1, common.IGNORED)
    batch = common.Batch(puzzle, target, None, int((puzzle == 0).sum()))
    with FlopCounterMode(display=False) as counter:
        experiment.forward_loss(model, batch, config)[0].backward()
    counted = counter.get_total_flops()
    assert abs(bench.flops(config, 4, config.iterations) / counted - 1) < 0.05
