"""Dropout: the fused CPU pass equals the reference, and each example's mask depends on its key alone."""

import pytest
import torch

from plumbing.dropout import advance, dropout, mask


@pytest.fixture
def keys():
    return torch.randint(-(2**31), 2**31 - 1, (16,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_fused_equals_reference(keys, rate):
    x = torch.randn(16, 81, 24, requires_grad=True)
    out = dropout(x, rate, keys, 3)
    assert torch.equal(out, x * mask(x, rate, keys + 3))
    gradient = torch.randn_like(x)
    out.backward(gradient)
    assert torch.equal(x.grad, gradient * mask(x, rate, keys + 3))


def test_rate_and_independence(keys):
    ones = torch.ones(16, 81, 128)
    dropped = dropout(ones, 0.1, keys) == 0
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.002)
    others = [dropout(ones, 0.1, keys, 1) == 0, dropout(ones, 0.1, advance(keys)) == 0, dropped.roll(1, 0)]
    for other in others:  # independent masks are both dropped with a chance of 0.01
        assert (dropped & other).float().mean().item() == pytest.approx(0.01, abs=0.001)
    assert dropped.float().mean((0, 1)).max() < 0.16 and dropped.float().mean((0, 2)).max() < 0.16


def test_an_example_keeps_its_mask_in_any_batch(keys):
    x = torch.randn(16, 81, 8)
    assert torch.equal(dropout(x, 0.1, keys)[5:9], dropout(x[5:9], 0.1, keys[5:9]))


def test_none_without_keys():
    x = torch.randn(2, 3)
    assert dropout(x, 0.5, None) is x and advance(None) is None
