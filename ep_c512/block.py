"""The equilibrium block: one Transformer block whose output is the state z on which it exerts no force.

    F(z) = x - z + Attn(LN1 z) + FFN(LN2 z) - c z,        x = tok[tokens] + pos

`Block` has the parameters, `Force` is F for one batch, `relax` follows it. `Jacobian` applies dF/dz and its transpose
without autograd: what the derivative needs of z is computed once, then a product costs about as much as a force.

LN1 and LN2 normalise the same z, so there is one normalised state n with two gains and two biases, which `Force` folds
into the matrices that follow: a force is n, one product with [C, 7C] (queries, keys, values, hidden units), attention
and GELU, and one product with [5C, C].

Attention is one of
    softmax   causal, with q and k normalised per head
    energy    the force of a log-sum-exp energy of each token, given the tokens before it; a key does not feel its
              reader, as the full gradient of that energy would carry later tokens into earlier positions
    mono      what is read depends on x alone, and the values are z W with W monotone, as in monDEQ
    nemon     the same with a W whose bound is in the largest-element norm, as in NEMON
Both bounds are from above only: W may have large negative eigenvalues, which need small steps.
"""

import math
from collections import Counter

import torch
import torch.nn as nn
import torch.nn.functional as F

DAMPING = 1.0  # c
EPS = 1e-5  # in the norms
MARGIN = 0.5  # m of a monotone W; nemon's gamma is 1 - m
MODES = ("softmax", "energy", "mono", "nemon")


class Block(nn.Module):
    """No attention biases, no final norm: 7,475,712 parameters at full size with softmax attention."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.mode, self.kernels = config.heads, config.attn_mode, Kernels()
        self.feedback = None  # see Force
        width, scale = config.width, config.resinit

        def matrix(rows, columns, std):
            return nn.Parameter(torch.randn(rows, columns) * std)

        self.tok = matrix(config.vocabulary, width, config.embedding)
        self.pos = matrix(config.length, width, config.embedding)
        self.gain1, self.bias1 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.gain2, self.bias2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.wq, self.wk = matrix(width, width, width**-0.5), matrix(width, width, width**-0.5)
        if self.mode == "energy":
            self.strength = nn.Parameter(torch.tensor(scale))
        else:
            self.wv = matrix(width, width, width**-0.5)
        if self.mode in ("softmax", "mono"):
            self.wo = matrix(width, width, scale * width**-0.5)
        self.fc, self.fc_bias = matrix(4 * width, width, width**-0.5), nn.Parameter(torch.zeros(4 * width))
        self.pj = matrix(width, 4 * width, scale * (4 * width) ** -0.5)
        self.pj_bias = nn.Parameter(torch.zeros(width))
        self.head = matrix(config.vocabulary, width, 0.02)

    def inputs(self, tokens):
        return self.tok[tokens] + self.pos[: tokens.shape[1]]

    def loss(self, z, targets):
        """The mean cross-entropy of the next token."""
        return F.cross_entropy((z @ self.head.T).flatten(0, -2), targets.flatten())


GROUPS = {  # of parameters, for diagnostics
    "attention": ("wq", "wk", "wv", "wo", "strength"),
    "feed-forward": ("fc", "fc_bias", "pj", "pj_bias"),
    "norms": ("gain1", "bias1", "gain2", "bias2"),
    "embeddings": ("tok", "pos"),
    "head": ("head",),
}


class Force:
    """F of this block for one batch of inputs x, [..., T, C]; for a complex z, its analytic continuation.

    Where the block has a number as its feedback, attention and MLP read feedback z + (1 - feedback) x / (1 + c) in
    place of z: at 0 the block is one ordinary layer, which does not read its own output, at 1 it is the block above.
    """

    def __init__(self, block, x):
        self.x, self.count, self.kernels = x, Counter(), block.kernels
        self.feedback = self.fixed = None
        if block.feedback is not None:  # a tensor, so that what is compiled at one value serves all
            self.feedback = torch.tensor(block.feedback, dtype=x.dtype, device=x.device)
            self.fixed = (1 - self.feedback) / (1 + DAMPING) * x
        self.attention = ATTENTION[block.mode](block, x)
        into, bias = self.attention.projections(block)
        self.into = torch.cat([into, (block.fc * block.gain2)]).T
        self.bias = torch.cat([bias, block.fc_bias + block.fc @ block.bias2])
        self.wo, self.pj, self.pj_bias = self.attention.output(block), block.pj.T, block.pj_bias
        self.hidden = len(block.fc)

    def __call__(self, z):
        """z: [..., T, C], with further dimensions in front for several states at once"""
        self.count["force"] += (z.numel() // self.x.numel()) * (2 if z.is_complex() else 1)
        return self.kernels.value(self, z)

    def read(self, z):
        """what attention and MLP read of z"""
        return z if self.feedback is None else self.feedback * z + self.fixed

    def share(self, v):
        """what arrives of a change of z, or goes back to it"""
        return v if self.feedback is None else self.feedback * v

    def value(self, z):
        read = self.read(z)
        h = linear(normalise(read), self.into) + self.bias
        o, u = self.attention(h[..., : -self.hidden], read), h[..., -self.hidden :]
        return self.x + self.pj_bias - (1 + DAMPING) * z + linear(o, self.wo) + linear(gelu(u), self.pj)

    def jacobian(self, z):
        return Jacobian(self, z)


class Jacobian:
    """dF/dz at a real z, but for its part -(1 + c) I: `jvp` is J v, `vjp` is J^T v. own=True: of the diagonal blocks
    dF_t/dz_t alone, whose eigenvalues are all that J has, as no token feels a later one."""

    def __init__(self, force, z):
        self.force = force
        force.count["jacobian"] += z.numel() // force.x.numel()
        read = force.read(z)
        centred = read - read.mean(-1, keepdim=True)
        self.scale = (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
        self.n = centred * self.scale
        h = self.n @ force.into + force.bias
        self.attention = force.attention.linearized(h[..., : -force.hidden])
        u = h[..., -force.hidden :]
        self.slope = torch.ops.aten.gelu_backward(torch.ones_like(u), u, approximate="tanh")

    def through_norm(self, v):
        return self.scale * (v - v.mean(-1, keepdim=True) - self.n * (self.n * v).mean(-1, keepdim=True))

    def jvp(self, v, own=False):
        self.force.count["jvp"] += v.numel() // self.force.x.numel()
        return self.forward(v, own)

    def vjp(self, a, own=False):
        self.force.count["vjp"] += a.numel() // self.force.x.numel()
        return self.backward(a, own)

    def skew(self, d):
        """(J - J^T) d, where that part is not missed; of a complex d by its parts."""
        if d.is_complex():
            return torch.complex(self.skew(d.real), self.skew(d.imag))
        for name in ("jvp", "vjp"):
            self.force.count[name] += d.numel() // self.force.x.numel()
        return self.force.kernels.difference(self, d)

    def forward(self, v, own=False):
        f = self.force
        v = f.share(v)
        h = self.through_norm(v) @ f.into
        o = self.attention.jvp(h[..., : -f.hidden], v, own)
        return o @ f.wo + (self.slope * h[..., -f.hidden :]) @ f.pj

    def backward(self, a, own=False):
        f = self.force
        h, direct = self.attention.vjp(a @ f.wo.T, own)
        h = [h] if h is not None else []
        return f.share(self.through_norm(torch.cat([*h, self.slope * (a @ f.pj.T)], -1) @ f.into.T) + direct)

    def difference(self, d):
        return self.forward(d) - self.backward(d)


class Kernels:
    """What a step of relaxation computes; compiled, each is a few kernels."""

    def __init__(self, compile=lambda function: function):
        self.value, self.difference = compile(Force.value), compile(Jacobian.difference)


def relax(force, z, steps, step_size):
    """(z after so many steps, its step residual |z' - z| / |z'|: step_size times that of the force)"""
    moved = torch.full_like(z, math.nan)
    for _ in range(steps):
        moved = step_size * force(z)
        z = z + moved
    return z, float((moved.norm() / z.norm()).detach())


# ---------------------------------------------------------------- attention


class Softmax:
    """softmax(q k) v; q and k of length sqrt(C / heads)"""

    parts, strict, normed = 3, False, True

    def __init__(self, block, x):
        self.heads = block.heads

    def projections(self, block):
        w = torch.cat([block.wq, block.wk, block.wv])
        return w * block.gain1, w @ block.bias1

    def output(self, block):
        return block.wo.T

    def split(self, h):
        """[..., T, parts C] -> parts of [..., heads, T, C / heads]"""
        return h.unflatten(-1, (self.parts, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)

    def joined(self, o):
        return o.transpose(-3, -2).flatten(-2)

    def __call__(self, h, z):
        q, k, *v = self.split(h)
        if self.normed:
            q, k = (p / (p.square().mean(-1, keepdim=True) + EPS).sqrt() for p in (q, k))
        if v and not q.is_complex():
            return self.joined(F.scaled_dot_product_attention(q, k, v[0], is_causal=True))
        p = causal_softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), self.strict)
        return self.joined(p @ (v[0] if v else k))

    def linearized(self, h):
        return SoftmaxLinear(self, h)


class SoftmaxLinear:
    def __init__(self, attention, h):
        self.of = attention
        q, k, *v = attention.split(h)
        if attention.normed:
            self.rq, self.rk = ((p.square().mean(-1, keepdim=True) + EPS).rsqrt() for p in (q, k))
            q, k = q * self.rq, k * self.rk
        self.q, self.k, self.v = q, k, v[0] if v else k
        self.scale = 1 / math.sqrt(q.shape[-1])
        self.p = causal_softmax(q @ k.transpose(-2, -1) * self.scale, attention.strict)

    def through_norms(self, dq, dk):
        if not self.of.normed:
            return dq, dk
        dq = self.rq * (dq - self.q * (self.q * dq).mean(-1, keepdim=True))
        return dq, self.rk * (dk - self.k * (self.k * dk).mean(-1, keepdim=True))

    def jvp(self, h, z, own):
        dq, dk, *dv = self.of.split(h)
        dq, dk = self.through_norms(dq, dk)
        dv = dv[0] if dv else dk
        ds = dq @ self.k.transpose(-2, -1)
        ds = ds + (torch.diag_embed((self.q * dk).sum(-1)) if own else self.q @ dk.transpose(-2, -1))
        ds = self.p * ds
        dp = (ds - self.p * ds.sum(-1, keepdim=True)) * self.scale
        return self.of.joined(dp @ self.v + (diagonal(self.p) * dv if own else self.p @ dv))

    def vjp(self, o, own):
        do = o.unflatten(-1, (self.of.heads, -1)).transpose(-3, -2)
        dp = self.p * (do @ self.v.transpose(-2, -1))
        ds = (dp - self.p * dp.sum(-1, keepdim=True)) * self.scale
        dk = diagonal(ds) * self.q if own else ds.transpose(-2, -1) @ self.q
        dv = diagonal(self.p) * do if own else self.p.transpose(-2, -1) @ do
        if self.of.parts == 2:  # the values are the keys
            parts = self.through_norms(ds @ self.k, dk + dv)
        else:
            parts = *self.through_norms(ds @ self.k, dk), dv
        return torch.stack(parts, -3).transpose(-4, -2).flatten(-3), 0.0


class Energy(Softmax):
    """The force s W_Q^T sum_j p_j k_j of the energy -s sqrt(d) log(1 + sum_j exp(q k_j / sqrt(d))) of each token, over
    the tokens j before it; the 1 stands for a key of zeros, without which the first token would have none."""

    parts, strict, normed = 2, True, False

    def projections(self, block):
        w = torch.cat([block.wq, block.wk])
        return w * block.gain1, w @ block.bias1

    def output(self, block):
        return block.strength * block.wq


class Mono:
    """p(x) z W with W = (1 - m) I - A^T A + B - B^T, so that its symmetric part is at most (1 - m) I; A is wv, B wo."""

    def __init__(self, block, x):
        self.heads = block.heads
        h = (normalise(x) * block.gain1 + block.bias1) @ torch.cat([block.wq, block.wk]).T
        q, k = h.unflatten(-1, (2, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        self.p = causal_softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]))
        self.w = self.values(block)

    def values(self, block):
        one = torch.eye(len(block.wv), dtype=block.wv.dtype, device=block.wv.device)
        return (1 - MARGIN) * one - block.wv.T @ block.wv + block.wo - block.wo.T

    def projections(self, block):
        return block.fc[:0], block.fc_bias[:0]  # nothing is read from n

    def output(self, block):
        return torch.eye(len(block.wv), dtype=block.wv.dtype, device=block.wv.device)

    def mixed(self, p, z):
        return (p @ z.unflatten(-1, (self.heads, -1)).transpose(-3, -2)).transpose(-3, -2).flatten(-2)

    def __call__(self, h, z):
        z = linear(z, self.w.T)
        return (
            torch.complex(self.mixed(self.p, z.real), self.mixed(self.p, z.imag))
            if z.is_complex()
            else self.mixed(self.p, z)
        )

    def linearized(self, h):
        return self

    def jvp(self, h, v, own):
        v = v @ self.w.T
        return self.mixed(torch.diag_embed(self.p.diagonal(dim1=-2, dim2=-1)), v) if own else self.mixed(self.p, v)

    def vjp(self, o, own):
        p = torch.diag_embed(self.p.diagonal(dim1=-2, dim2=-1)) if own else self.p.transpose(-2, -1)
        return None, self.mixed(p, o) @ self.w


class Nemon(Mono):
    """The same with W = T - diag(|T| 1) + (1 - m) I, T of wv: the largest row sum of |W|, its diagonal counted with its
    sign, is at most 1 - m."""

    def values(self, block):
        one = torch.eye(len(block.wv), dtype=block.wv.dtype, device=block.wv.device)
        return block.wv - torch.diag(block.wv.abs().sum(1)) + (1 - MARGIN) * one


ATTENTION = {"softmax": Softmax, "energy": Energy, "mono": Mono, "nemon": Nemon}


def diagonal(p):
    return p.diagonal(dim1=-2, dim2=-1)[..., None]


def causal_softmax(scores, strict=False):
    """Over the tokens up to one's own; strict: over those before it and one with a score of 0."""
    length = scores.shape[-1]
    hidden = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(0 if strict else 1)
    scores = scores.masked_fill(hidden, -1e4 if scores.is_complex() else -math.inf)
    if not strict:
        return softmax(scores)
    return softmax(torch.cat([scores, torch.zeros_like(scores[..., :1])], -1))[..., :-1]


# ---------------------------------------------------------------- operations on real and complex states


def linear(z, weight):
    return torch.complex(z.real @ weight, z.imag @ weight) if z.is_complex() else z @ weight


def normalise(z):
    """Layer normalisation without gain and bias; without the conjugate, and with the principal root."""
    if not z.is_complex():
        return F.layer_norm(z, z.shape[-1:], eps=EPS)
    centred = z - z.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


def gelu(u):
    if not u.is_complex():
        return F.gelu(u, approximate="tanh")
    return 0.5 * u * (1 + (math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)).tanh())


def softmax(scores):
    """Of complex scores, the largest real part may be subtracted as a constant: the value does not change."""
    if not scores.is_complex():
        return scores.softmax(-1)
    e = (scores - scores.real.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)
