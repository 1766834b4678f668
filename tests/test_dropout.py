"""Dropout: the fused CPU pass equals the reference, and each example's masks depend on its seed alone."""

import contextlib
import copy

import pytest
import torch

import common
from plumbing import dropout, loop


@pytest.fixture
def seeds():
    return torch.randint(-(2**31), 2**31 - 1, (16,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))


def seeded(rate, seeds, count=1):
    """This many dropout layers of one model, with their seeds."""
    layers = torch.nn.ModuleList(dropout.Dropout(rate) for _ in range(count))
    common.seed_dropout(layers, seeds)
    return layers


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_fused_equals_reference(seeds, rate):
    x = torch.randn(16, 81, 24, requires_grad=True)
    (layer,) = seeded(rate, seeds)
    mask = dropout.mask(x, rate, layer.seeds)
    out = layer(x)
    assert torch.equal(out, x * mask)
    gradient = torch.randn_like(x)
    out.backward(gradient)
    assert torch.equal(x.grad, gradient * mask)


def test_rate_and_independence(seeds):
    """Other calls, other layers, other seeds and the next seeds (SAM's second pass) all give masks of their own."""
    ones = torch.ones(16, 81, 128)
    first, second = seeded(0.1, seeds, 2)
    dropped = first(ones) == 0
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.002)
    others = [first(ones) == 0, second(ones) == 0, dropped.roll(1, 0)]
    others += [layer(ones) == 0 for layer in seeded(0.1, seeds + 1, 2)]
    for other in others:  # independent masks are both dropped with a chance of 0.01
        assert (dropped & other).float().mean().item() == pytest.approx(0.01, abs=0.001)
    assert dropped.float().mean((0, 1)).max() < 0.16 and dropped.float().mean((0, 2)).max() < 0.16


def test_no_layer_repeats_the_masks_of_another_later():
    """The seeds of sixteen iterations of four layers and two passes are all different."""
    used = []
    for start in (torch.tensor([7], dtype=torch.int32), torch.tensor([8], dtype=torch.int32)):
        for layer in seeded(0.1, start, 4):
            for _ in range(64):
                used.append(int(layer.seeds))
                layer(torch.ones(1, 4))
    assert len(set(used)) == len(used) == 2 * 4 * 64


def test_an_example_keeps_its_mask_in_any_batch(seeds):
    x = torch.randn(16, 81, 8)
    (whole,), (part,) = seeded(0.1, seeds), seeded(0.1, seeds[5:9])
    assert torch.equal(whole(x)[5:9], part(x[5:9]))


def test_evaluation_drops_nothing(seeds):
    x = torch.randn(16, 3)
    (layer,) = seeded(0.5, seeds).eval()
    assert layer(x) is x
    (none,) = seeded(0.0, seeds)
    assert none(x) is x


def test_training_without_seeds_is_an_error():
    with pytest.raises(RuntimeError, match="seed_dropout"):
        dropout.Dropout(0.1)(torch.randn(2, 3))


class Iterated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.dropout = torch.nn.Linear(8, 8), dropout.Dropout(0.3)

    def iterate(self, state):
        state = self.linear(self.dropout(state).tanh()).tanh()  # its weight's gradient needs what was dropped
        return state, state

    def forward(self, x, iterations):
        for _ in range(iterations):
            logits, x = self.iterate(x)
            yield logits


def loss_and_gradient(model, seeds):
    common.seed_dropout(model, seeds)
    x = torch.linspace(-1, 1, 128).view(16, 8)
    loss = sum(logits.square().sum() for logits in model(x, 4))
    return loss, torch.autograd.grad(loss, model.linear.weight)[0]


def test_recomputed_iterations_have_the_same_masks_and_keep_less(seeds):
    torch.manual_seed(0)
    model = Iterated()
    loss, gradient = loss_and_gradient(model, seeds)
    kept = loop.kept_bytes(model, torch.ones(16, 8), 4, contextlib.nullcontext())
    loop.recompute(model)
    again, same = loss_and_gradient(model, seeds)
    assert torch.equal(loss, again) and torch.equal(gradient, same)
    assert loop.kept_bytes(model, torch.ones(16, 8), 4, contextlib.nullcontext()) < kept


def test_iterations_are_recomputed_only_where_memory_does_not_suffice():
    model = Iterated()
    assert loop.fit(model, needed=80e9, count=16, free=100e9) == "the backward pass needs 80.0 GB, 100.0 GB are free"
    assert loop.fit(model, needed=80e9, count=16, free=float("inf")) == "the backward pass needs 80.0 GB"
    assert "iterate" not in vars(model)
    assert "171.0 GB, 139.0 GB are free: iterations" in loop.fit(model, needed=171e9, count=16, free=139e9)
    assert "iterate" in vars(model)
    assert loop.free_bytes(torch.device("cpu")) > 1e6
    with pytest.raises(SystemExit, match=r"lower --batch"):
        loop.fit(Iterated(), needed=171e9, count=16, free=8e9)


def test_compiled_iterations_have_the_same_masks(seeds):
    torch.manual_seed(0)
    model = Iterated()
    loss, gradient = loss_and_gradient(model, seeds)
    loop.replace(model, torch.compile(Iterated.iterate, backend="aot_eager"))
    again, same = loss_and_gradient(model, seeds)
    assert torch.allclose(loss, again) and torch.allclose(gradient, same, atol=1e-6)


def test_a_copy_of_a_compiled_model_has_its_own_weights():
    """An EMA copy must not go on computing with the live model's weights."""
    model = Iterated()
    loop.replace(model, torch.compile(Iterated.iterate, backend="eager"))
    twin = copy.deepcopy(model).eval()
    before = next(twin(torch.ones(1, 8), 1))
    with torch.no_grad():
        model.linear.weight.zero_()
    assert torch.equal(next(twin(torch.ones(1, 8), 1)), before)
    assert not torch.equal(next(model.eval()(torch.ones(1, 8), 1)), before)
