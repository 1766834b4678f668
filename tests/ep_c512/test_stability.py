"""Penalties, their controller, spectral caps."""

import math

import pytest
import torch

from ep_c512 import stability, train
from ep_c512.gradients import gradients
from tests.ep_c512.blocks import batch, double, relaxed, small  # noqa: F401


def norms(free):
    """(mean square of all elements that J v sums, of those of the diagonal blocks) over the states of this batch"""
    n, whole, own = free.z.numel(), 0.0, 0.0
    for sequence in range(len(free.z)):
        z = free.z[sequence : sequence + 1]
        force = type(free.force)(free.block, free.force.x[sequence : sequence + 1].detach())
        j = torch.func.jacrev(force)(z).reshape(48, 48) + 2 * torch.eye(48)
        whole += float(j.square().sum())
        own += sum(float(j[t : t + 8, t : t + 8].square().sum()) for t in range(0, 48, 8))
    return whole / n, own / n


def test_penalties_estimate_what_they_are_named_after():
    free = relaxed()
    whole, own = norms(free)
    random = torch.Generator().manual_seed(0)
    noise = [torch.randn(free.z.shape, generator=random) for _ in range(400)]
    for kind, expected in (("full", whole), ("diagonal", own)):
        values = [float(stability.penalty(free.block, free.tokens, free.z, kind, v, 0.0).detach()) for v in noise]
        assert math.isclose(sum(values) / len(values), expected, rel_tol=0.1), kind
    assert own < 0.9 * whole


def test_the_spectral_penalty_is_zero_below_its_cap_and_lowers_what_is_above():
    free = relaxed(resinit=1.5)
    noise = torch.randn(free.z.shape)

    def penalty(cap):
        return stability.penalty(free.block, free.tokens, free.z, "spectral", noise, cap)

    blocks = stability.diagonal_blocks(free.force, free.z) + 2 * torch.eye(8)
    largest = float(torch.linalg.matrix_norm(blocks, 2).max())
    assert penalty(largest).detach() == 0
    cap = 0.5 * float(torch.linalg.eigvals(blocks).abs().max())
    before = penalty(cap)
    assert before > 0
    for name, g in gradients(before, free.block).items():
        with torch.no_grad():
            free.block.get_parameter(name).sub_(0.3 * g)
    assert penalty(cap) < 0.9 * before


def test_the_vector_of_the_spectral_penalty_grows_most():
    free = relaxed(resinit=1.5)
    blocks, noise = stability.diagonal_blocks(free.force, free.z) + 2 * torch.eye(8), torch.randn(free.z.shape)
    v = noise[..., None]
    for _ in range(4):
        v = torch.nn.functional.normalize(blocks @ v, dim=-2)
    growth = (blocks @ v).norm(dim=-2)
    cap = float(growth.mean())
    expected = (growth - cap).relu().square().mean()
    found = stability.penalty(free.block, free.tokens, free.z, "spectral", noise, cap).detach()
    assert float(found) == pytest.approx(float(expected), rel=1e-3)


def test_penalties_leave_the_state_and_the_embeddings_alone():
    free = relaxed()
    for kind in ("full", "diagonal", "spectral"):
        value = stability.penalty(free.block, free.tokens, free.z, kind, torch.randn(free.z.shape), 0.1)
        found = gradients(value, free.block)
        moved = {name for name, g in found.items() if g.any()}
        assert not moved & {"tok", "pos", "head", "pj_bias"} and {"wo", "pj", "gain1", "gain2"} <= moved


def test_a_bounded_penalty_is_a_share_of_the_other_gradient():
    random = [{name: torch.randn(3, generator=torch.Generator().manual_seed(seed)) for name in "ab"} for seed in (0, 1)]
    ce, extra = random
    for weight in (1e-3, 1e3):
        large = {name: weight * g for name, g in extra.items()}
        more = {name: g - ce[name] for name, g in train.added(ce, large, 0.3).items()}
        share = float(train.norm(more) / train.norm(ce))
        assert share < 0.01 if weight < 1 else math.isclose(share, 0.3, rel_tol=1e-4)
        assert torch.allclose(train.added(ce, large, 0.0)["a"], ce["a"] + large["a"])


def test_the_controller_rises_above_its_target_and_falls_below():
    controller = stability.Controller(0.1, 0.1, 0.2, 1e-3)
    for residual, rises in ((1e-4, False), (2e-3, True), (math.nan, True), (1e-4, False)):
        before = controller.weight
        controller.update(residual)
        assert controller.weight > before if rises else controller.weight <= before
    for _ in range(100):
        controller.update(1.0)
    assert controller.weight == 0.2
    other = stability.Controller(0.1, 0.1, 0.2, 1e-3)
    other.load_state_dict(controller.state_dict())
    assert other.weight == 0.2
    for _ in range(1_000):
        other.update(0.0)
    assert other.weight == 0.1


def test_spectral_caps_bring_the_attention_matrices_below_rho():
    block = small()
    with torch.no_grad():
        block.wq.mul_(5)
        block.wk.mul_(1e-3)
    caps = stability.SpectralCaps(block, 0.9)
    caps.apply()  # already the first one acts
    assert float(torch.linalg.matrix_norm(block.wq, 2)) < 0.95
    small_one, mlp = block.wk.clone(), block.fc.clone()
    for _ in range(50):  # each step has one power iteration
        caps.apply()
    sizes = {name: float(torch.linalg.matrix_norm(getattr(block, name), 2)) for name in ("wq", "wv")}
    assert all(0.85 < size < 0.95 for size in sizes.values()), sizes
    assert torch.equal(block.wk, small_one) and torch.equal(block.fc, mlp)
