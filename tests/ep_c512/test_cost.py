"""What a step is said to cost, against what is run."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ep_c512 import cost, run, stability, train
from ep_c512.gradients import gradients

CONFIG = replace(
    run.configured(train.Config, "smoke"), refine=0, jacreg=0.0, width=16, length=12, vocabulary=50, batch=3
)


@pytest.mark.parametrize("estimator", ["bptt", "plain-1", "frozen-2", "tracking-2", "frozen-4", "tracking-4"])
@pytest.mark.parametrize("held", [True, False])
def test_the_counts_and_the_products_are_those_of_a_step(estimator, held):
    config = replace(CONFIG, estimator=estimator, held=held)
    tokens = torch.randint(50, (3, 13))
    model = train.Block(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # a fused kernel is not counted
        free, _ = train.estimated(model, tokens[:, :-1], tokens[:, 1:], config)
    counted = {name: n for name, n in cost.operations(config).items() if name not in ("pull", "head")}
    assert dict(free.force.count) == counted
    assert counter.get_total_flops() == pytest.approx(cost.flop(config), rel=0.05)


@pytest.mark.parametrize("kind", ["full", "diagonal", "spectral"])
def test_the_penalty_costs_what_is_counted(kind):
    config = replace(CONFIG, estimator="plain-1", jacreg=1.0, penalty=kind)
    model, tokens = train.Block(config), torch.randint(50, (3, 12))
    z = torch.randn(3, 12, 16)
    with FlopCounterMode(display=False) as counter:
        gradients(stability.penalty(model, tokens, z, kind, torch.randn(z.shape), 0.0), model)
    counted = cost.flop(config) - cost.flop(replace(config, jacreg=0.0))
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.05)


def test_the_ordinary_layer_costs_a_force_and_its_head_three_times():
    config = replace(CONFIG, estimator="bp")
    h = torch.randn(3 * 12, 16, requires_grad=True)
    layer = train.OneLayer(config)
    with FlopCounterMode(display=False) as counter:  # without attention's own products, which a CPU's kernel hides
        q = layer.qkv(h)[:, :16]
        (layer.head(layer.out(q)).sum() + layer.pj(layer.fc(h)).sum()).backward()
    attention = 3 * 36 * 4 * 12 * 16
    assert counter.get_total_flops() + attention == pytest.approx(cost.flop(config), rel=0.02)


def test_memory_grows_with_the_batch_and_the_length():
    assert cost.kept_bytes(replace(CONFIG, length=24)) == pytest.approx(2 * cost.kept_bytes(CONFIG), rel=0.05)

    def memory(estimator, **changes):
        return cost.memory(replace(CONFIG, estimator=estimator, **changes))

    longer = [memory("bptt", free_steps=n) - memory("bptt", free_steps=0) for n in (10, 30)]
    assert longer[1] == 3 * longer[0] == 30 * cost.kept_bytes(CONFIG) > 0
    assert memory("tracking-2", free_steps=10) == memory("tracking-2", free_steps=30)
    assert memory("frozen-1") < memory("frozen-2") < memory("frozen-4") < memory("frozen-8")
    assert memory("frozen-2", held=False) > memory("frozen-2", held=True)
