"""Small blocks for the tests, in float64, with gains and biases that are not those of the start."""

from dataclasses import replace

import pytest
import torch

from ep_c512 import run, train
from ep_c512.block import MODES, Block
from ep_c512.gradients import free_phase

SMALL = replace(run.configured(train.Config, "smoke"), vocabulary=11, width=8, heads=2, length=6, resinit=0.5)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small(mode="softmax", seed=0, feedback=None, **changes):
    torch.manual_seed(seed)
    block = Block(replace(SMALL, attn_mode=mode, **changes))
    block.feedback = feedback
    with torch.no_grad():
        for name in ("gain1", "bias1", "gain2", "bias2", "fc_bias", "pj_bias"):
            block.get_parameter(name).add_(0.3 * torch.randn_like(block.get_parameter(name)))
        block.head.mul_(25)
    return block


def batch(seed=1, sequences=2):
    tokens = torch.randint(
        SMALL.vocabulary, (sequences, SMALL.length + 1), generator=torch.Generator().manual_seed(seed)
    )
    return tokens[:, :-1], tokens[:, 1:]


def relaxed(mode="softmax", steps=400, step_size=0.2, **changes):
    return free_phase(small(mode, **changes), *batch(), steps, step_size)


every_feedback = pytest.mark.parametrize("feedback", [None, 0.4])
every_mode = pytest.mark.parametrize("mode", MODES)
