"""The force and its Jacobian, against autograd and against the formulas written another way."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from ep_c512 import block as blocks
from ep_c512 import gradients, stability, train
from ep_c512.block import DAMPING, Block, Force, relax
from ep_c512.gradients import Settings
from ep_c512.one_layer import OneLayer
from tests.ep_c512.blocks import batch, double, every_feedback, every_mode, relaxed, small  # noqa: F401


def matrix(function, z):
    """The Jacobian of a function of z, as a matrix."""
    return torch.func.jacrev(function)(z).reshape(z.numel(), z.numel())


def test_the_numbers_of_parameters_are_those_of_the_log():
    with torch.device("meta"):
        models = Block(train.Config()), OneLayer(train.Config())
    assert [sum(p.numel() for p in model.parameters()) for model in models] == [7_475_712, 7_478_784]


def test_the_force_is_the_formula():
    """Written out as a sum of an attention and an MLP on normalised states."""
    block = small()
    x, z = block.inputs(batch()[0]), torch.randn(2, 6, 8)
    one = F.layer_norm(z, (8,), block.gain1, block.bias1, blocks.EPS)
    two = F.layer_norm(z, (8,), block.gain2, block.bias2, blocks.EPS)
    heads = [(one @ w.T).view(2, 6, 2, 4).transpose(1, 2) for w in (block.wq, block.wk, block.wv)]
    q, k = (F.rms_norm(part, (4,), eps=blocks.EPS) for part in heads[:2])
    attention = F.scaled_dot_product_attention(q, k, heads[2], is_causal=True).transpose(1, 2).reshape(2, 6, 8)
    mlp = F.gelu(two @ block.fc.T + block.fc_bias, approximate="tanh") @ block.pj.T + block.pj_bias
    expected = -(z - x) + attention @ block.wo.T + mlp - DAMPING * z
    assert torch.allclose(Force(block, x)(z), expected, atol=1e-13)


def test_the_ordinary_layer_is_the_formula_and_sees_no_later_token():
    layer, (tokens, targets) = OneLayer(train.Config(vocabulary=11, width=8, heads=2, length=6, embedding=0.5)), batch()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))

    def normed(h, of):
        return F.layer_norm(h, (8,), of.weight, of.bias)

    def logits(tokens):
        h = layer.tok.weight[tokens] + layer.pos.weight[:6]
        q, k, v = (
            (normed(h, layer.norm1) @ layer.qkv.weight.T + layer.qkv.bias).view(2, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        )
        scores = (q @ k.mT / 2).masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -math.inf)
        h = h + (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 8) @ layer.out.weight.T + layer.out.bias
        u = F.gelu(normed(h, layer.norm2) @ layer.fc.weight.T + layer.fc.bias, approximate="tanh")
        h = h + u @ layer.pj.weight.T + layer.pj.bias
        return normed(h, layer.norm3) @ layer.head.weight.T

    found = layer.loss(tokens, targets)
    expected = F.cross_entropy(logits(tokens).flatten(0, 1), targets.flatten())
    assert torch.allclose(found, expected, atol=1e-12)
    assert OneLayer(train.Config(embedding=0.5)).tok.weight.std() > 0.4


@every_mode
def test_feedback_is_the_share_of_the_state_that_is_read(mode):
    block = small(mode)
    x, z = block.inputs(batch()[0]), torch.randn(2, 6, 8)
    read = 0.4 * z + 0.6 * x / (1 + DAMPING)
    whole = Force(block, x)(z)
    expected = Force(block, x)(read) + (1 + DAMPING) * (read - z)  # all but the damping is that of the state read
    block.feedback = 0.4
    assert torch.allclose(Force(block, x)(z), expected, atol=1e-13)
    block.feedback = 1.0
    assert torch.equal(Force(block, x)(z), whole)
    block.feedback = 0.0
    force = Force(block, x)
    one = relax(force, x / (1 + DAMPING), 1, 1 / (1 + DAMPING))[0]
    assert torch.allclose(force(one), torch.zeros_like(one), atol=1e-13)  # one ordinary layer: a single step settles


def test_the_relaxed_state_has_no_force_and_picard_finds_the_same():
    free = relaxed()
    assert free.residual < 1e-15 and free.force(free.z).abs().max() < 1e-13
    picard, _ = relax(free.force, torch.zeros_like(free.z), 200, 1 / (1 + DAMPING))
    assert torch.allclose(picard, free.z, atol=1e-12)


def test_the_residual_is_that_of_the_last_step():
    block = small()
    x = block.inputs(batch()[0]).detach()
    force = Force(block, x)
    z, _ = relax(force, x, 4, 0.1)
    after, residual = relax(force, x, 5, 0.1)
    assert math.isclose(residual, (after - z).norm() / after.norm())


@every_mode
@every_feedback
def test_products_with_the_jacobian_are_those_of_autograd(mode, feedback):
    free = relaxed(mode, steps=5, feedback=feedback)
    z, n = torch.randn_like(free.z), free.z.numel()
    j = matrix(free.force, z) + (1 + DAMPING) * torch.eye(n)
    own = torch.zeros_like(j)
    for t in range(0, n, 8):
        own[t : t + 8, t : t + 8] = j[t : t + 8, t : t + 8]
    jacobian, v = free.force.jacobian(z), torch.randn(3, *z.shape)  # three at once
    for blocks_only, expected in ((False, j), (True, own)):
        assert torch.allclose(jacobian.jvp(v, blocks_only).view(3, n), v.view(3, n) @ expected.T, atol=1e-12)
        assert torch.allclose(jacobian.vjp(v, blocks_only).view(3, n), v.view(3, n) @ expected, atol=1e-12)
    u = torch.randn_like(v)
    assert torch.allclose((u * jacobian.jvp(v)).sum(), (jacobian.vjp(u) * v).sum())
    assert torch.allclose(jacobian.skew(v).view(3, n), v.view(3, n) @ (j.T - j), atol=1e-12)


@every_mode
@every_feedback
def test_the_force_is_complex_analytic(mode, feedback):
    """A step along i v changes the imaginary part by the derivative along v, to the precision of the numbers."""
    free = relaxed(mode, steps=5, feedback=feedback)
    v, h = torch.randn_like(free.z), 1e-20
    complex_step = free.force(torch.complex(free.z, h * v)).imag / h
    assert torch.allclose(complex_step, free.force.jacobian(free.z).jvp(v) - (1 + DAMPING) * v, atol=1e-12)


@every_mode
@every_feedback
def test_a_step_is_one_graph_to_compile(mode, feedback):
    """Nothing in it makes the compiler give up; what it captures computes the same."""
    free = relaxed(mode, steps=5, feedback=feedback)
    kernels = blocks.Kernels(lambda function: torch.compile(function, fullgraph=True, backend="eager"))
    z, jacobian = torch.randn_like(free.z), free.force.jacobian(free.z)
    plain = free.force(z), jacobian.skew(z)
    free.force.kernels = kernels
    assert torch.allclose(free.force(z), plain[0]) and torch.allclose(jacobian.skew(z), plain[1])


def test_what_is_compiled_serves_every_feedback():
    """A graph for each shape, whatever the feedback is at that step."""
    graphs, free = [], relaxed(steps=5, feedback=0.1)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    free.block.kernels = blocks.Kernels(lambda function: torch.compile(function, backend=backend))
    counts = []
    for feedback in (0.1, 0.3, 0.8, 1.0):
        free.block.feedback = feedback
        now = replace(free, force=Force(free.block, free.force.x))
        list(gradients.nudged(now, Settings(steps=3), 2, "tracking"))
        counts.append(len(graphs))
    assert len(set(counts)) == 1, counts


@every_mode
@every_feedback
def test_no_token_feels_a_later_one(mode, feedback):
    block, (tokens, _) = small(mode, feedback=feedback), batch()
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % 11
    states = [relax(Force(block, block.inputs(t).detach()), torch.zeros(2, 6, 8), 300, 0.2)[0] for t in (tokens, other)]
    assert torch.equal(states[0][:, :-1], states[1][:, :-1])
    assert not torch.allclose(states[0][:, -1], states[1][:, -1])
    first = tokens.clone()
    first[:, 0] = (first[:, 0] + 1) % 11
    moved, _ = relax(Force(block, block.inputs(first).detach()), torch.zeros(2, 6, 8), 300, 0.2)
    assert not torch.allclose(states[0][:, -1], moved[:, -1], atol=1e-6)  # attention does read earlier ones


@every_mode
def test_eigenvalues_are_those_of_the_diagonal_blocks(mode):
    free = relaxed(mode)
    whole = torch.linalg.eigvals(matrix(free.force, free.z))
    real, growth = stability.leading(free.force, free.z, 0.3)
    assert math.isclose(whole.real.max(), real.max(), rel_tol=1e-9)
    assert math.isclose((1 + 0.3 * whole).abs().max(), growth.max(), rel_tol=1e-9)
    assert real.shape == (2, 6)


def test_energy_attention_descends_the_energy_of_each_token():
    """Given the tokens before it: keys are constants, the normalised state of the token is what moves."""
    block = small("energy")
    force = Force(block, block.inputs(batch()[0]).detach())
    g = torch.randn(2, 6, 8, requires_grad=True)
    q = (g @ block.wq.T).view(2, 6, 2, 4)
    k = (g @ block.wk.T).view(2, 6, 2, 4).detach()
    scores = torch.einsum("bthd,bshd->bhts", q, k) / 2
    scores = scores.masked_fill(torch.ones(6, 6).triu().bool(), -torch.inf)
    zero = torch.zeros_like(scores[..., :1])
    energy = -block.strength * 2 * torch.logsumexp(torch.cat([scores, zero], -1), -1).sum()
    expected = -torch.autograd.grad(energy, g)[0]
    h = torch.cat([g @ block.wq.T, g @ block.wk.T], -1)
    assert torch.allclose(force.attention(h, g) @ force.wo, expected, atol=1e-12)


def test_monotone_weights_are_bounded_whatever_their_parameters():
    for seed in range(3):
        block = small("mono", seed, resinit=3.0)
        w = Force(block, block.inputs(batch()[0])).attention.w
        assert torch.linalg.eigvalsh((w + w.T) / 2).max() <= 1 - blocks.MARGIN + 1e-12
        assert not torch.allclose(w, w.T)
        block = small("nemon", seed)
        w = Force(block, block.inputs(batch()[0])).attention.w
        rows = w.diagonal() + w.abs().sum(1) - w.diagonal().abs()
        assert rows.max() <= 1 - blocks.MARGIN + 1e-12
