"""The arithmetic of a stack of models, compiled for a CPU: loss and gradients of all of them in one call.

LANES examples are computed at a time, one in each lane of the vector registers, so that all intermediate values stay in
the L1 cache from the forward to the backward pass. bench.py compares the time of a step with its arithmetic.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core.cpu import CPUTargetOptions
from numba.extending import intrinsic

LANES = 64  # with fewer, LLVM unrolls the loops over lanes instead of vectorising them
FAST = {"contract", "arcp", "nsz", "reassoc", "afn"}
# An option of LLVM that numba does not expose: the arrays given to a function never overlap. Without it the loops are
# not vectorised, and everything takes four times as long.
CPUTargetOptions.noalias = CPUTargetOptions.Mapping("noalias")
compiled = numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy", noalias=True)


@intrinsic
def float_of_bits(context, bits):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@compiled
def exponential(x):
    """e^x for x <= 0, to float32; without branches, so that it can be vectorised."""
    z = max(x * np.float32(1.4426950408889634), np.float32(-126.0))
    n = np.int32(z - np.float32(0.5))
    r = z - np.float32(n)
    p = np.float32(1.535336188319500e-4)
    p = p * r + np.float32(1.339887440266574e-3)
    p = p * r + np.float32(9.618437357674640e-3)
    p = p * r + np.float32(5.550332471162809e-2)
    p = p * r + np.float32(2.402264791363012e-1)
    p = p * r + np.float32(6.931472028550421e-1)
    p = p * r + np.float32(1.0)
    return p * float_of_bits((n + np.int32(127)) << np.int32(23))


@compiled
def product(w, x, y):
    """y[o] = sum over i of w[i, o] x[i], in every lane."""
    rows, columns = w.shape
    for o in range(columns):
        for lane in range(LANES):
            y[o, lane] = w[0, o] * x[0, lane]
    for i in range(1, rows):
        for o in range(columns):
            factor = w[i, o]
            for lane in range(LANES):
                y[o, lane] += factor * x[i, lane]


@compiled
def product_back(w, x, dy, dx, dw):
    """Add to the gradients dx and dw; dw has one sum a lane."""
    rows, columns = w.shape
    for i in range(rows):
        for o in range(columns):
            factor = w[i, o]
            for lane in range(LANES):
                dx[i, lane] += factor * dy[o, lane]
                dw[i, o, lane] += x[i, lane] * dy[o, lane]


@compiled
def normalise(x, weight, centered, eps, normal, scale, y):
    """y = normal * weight + bias; `normal` and `scale` (1 / deviation) are for the backward pass."""
    width = len(x)
    scale[:] = np.float32(0)
    if centered:
        for i in range(width):
            for lane in range(LANES):
                scale[1, lane] += x[i, lane] * np.float32(1 / width)
    for i in range(width):
        for lane in range(LANES):
            value = x[i, lane] - scale[1, lane]
            normal[i, lane] = value
            scale[0, lane] += value * value
    for lane in range(LANES):
        scale[0, lane] = np.float32(1) / np.sqrt(scale[0, lane] * np.float32(1 / width) + eps)
    for i in range(width):
        for lane in range(LANES):
            normal[i, lane] *= scale[0, lane]
            y[i, lane] = normal[i, lane] * weight[0, i] + weight[1, i]


@compiled
def normalise_back(dy, weight, centered, normal, scale, work, dx, dweight):
    """Add to the gradients dx and dweight."""
    width = len(dy)
    work[:] = np.float32(0)
    for i in range(width):
        for lane in range(LANES):
            dweight[0, i, lane] += dy[i, lane] * normal[i, lane]
            dweight[1, i, lane] += dy[i, lane]
            work[0, lane] += dy[i, lane] * weight[0, i] * normal[i, lane]
            work[1, lane] += dy[i, lane] * weight[0, i]
    for lane in range(LANES):
        work[0, lane] *= np.float32(1 / width)
        work[1, lane] *= np.float32((1 if centered else 0) / width)
    for i in range(width):
        for lane in range(LANES):
            projected = dy[i, lane] * weight[0, i] - work[1, lane] - normal[i, lane] * work[0, lane]
            dx[i, lane] += scale[0, lane] * projected


@compiled
def gelu(x, y, slope):
    """Exact GELU: the error function by Abramowitz and Stegun 7.1.26, 1.5e-7 at most."""
    for i in range(len(x)):
        for lane in range(LANES):
            value = x[i, lane]
            size = abs(value) * np.float32(0.7071067811865476)
            bell = exponential(-size * size)
            t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * size)
            p = np.float32(1.061405429)
            p = p * t + np.float32(-1.453152027)
            p = p * t + np.float32(1.421413741)
            p = p * t + np.float32(-0.284496736)
            p = p * t + np.float32(0.254829592)
            tail = np.float32(0.5) * p * t * bell
            below = tail if value < 0 else np.float32(1) - tail
            y[i, lane] = value * below
            slope[i, lane] = below + value * bell * np.float32(0.3989422804014327)


@compiled
def silu(x, y, slope):
    for i in range(len(x)):
        for lane in range(LANES):
            value = x[i, lane]
            e = exponential(-abs(value))
            large = np.float32(1) / (np.float32(1) + e)
            sigmoid = large if value > 0 else e * large
            y[i, lane] = value * sigmoid
            slope[i, lane] = sigmoid * (np.float32(1) + value * (np.float32(1) - sigmoid))


@compiled
def softmax(x, count, total):
    """In place, over the first `count` rows; total[0] becomes the sum of e^(x - maximum), total[1] the maximum."""
    total[0] = np.float32(0)
    total[1] = x[0]
    for i in range(1, count):
        for lane in range(LANES):
            total[1, lane] = max(total[1, lane], x[i, lane])
    for i in range(count):
        for lane in range(LANES):
            e = exponential(x[i, lane] - total[1, lane])
            x[i, lane] = e
            total[0, lane] += e
    for i in range(count):
        for lane in range(LANES):
            x[i, lane] /= total[0, lane]


@compiled
def gather(table, tokens, position, into):
    for lane in range(LANES):
        token = tokens[position, lane]
        for i in range(len(into)):
            into[i, lane] = table[token, i]


@compiled
def scatter(values, tokens, position, table):
    for lane in range(LANES):
        token = tokens[position, lane]
        for i in range(len(values)):
            table[token, i] += values[i, lane]


@compiled
def reduce(lanes, sums):
    for i in range(lanes.shape[0]):
        for j in range(lanes.shape[1]):
            total = np.float32(0)
            for lane in range(LANES):
                total += lanes[i, j, lane]
            sums[i, j] = total


@compiled
def zeros(*shape):
    return np.zeros(shape, dtype=np.float32)


@compiled
def run(training, rows, first, answer, centered, gated, eps, tx, tq, tk, tv, wo, n2, up, gate, down, nf, head,
        gx, gq, gk, gv, go, gn2, gup, ggate, gdown, gnf, ghead):  # fmt: skip
    """One model on rows of tokens [batch, length + 1]: its mean loss, and in training the gradients into g*.

    Else also how many rows have all of their first `answer` predicted tokens right.
    """
    queries, vocabulary, width = tx.shape
    length, _, inner = tk.shape
    hidden = up.shape[1]
    k, v = zeros(length, inner, LANES), zeros(length, inner, LANES)
    dk, dv = zeros(length, inner, LANES), zeros(length, inner, LANES)
    q, o = zeros(inner, LANES), zeros(inner, LANES)
    dq, do = zeros(inner, LANES), zeros(inner, LANES)
    x, y, dy = zeros(width, LANES), zeros(width, LANES), zeros(width, LANES)
    h2, m2, hf, mf = zeros(width, LANES), zeros(width, LANES), zeros(width, LANES), zeros(width, LANES)
    dh, s2, sf, total = zeros(width, LANES), zeros(2, LANES), zeros(2, LANES), zeros(2, LANES)
    a, ag, b, slope = zeros(hidden, LANES), zeros(hidden, LANES), zeros(hidden, LANES), zeros(hidden, LANES)
    act, db, da = zeros(hidden, LANES), zeros(hidden, LANES), zeros(hidden, LANES)
    p, dp = zeros(length, LANES), zeros(length, LANES)
    z, headT = zeros(vocabulary, LANES), np.ascontiguousarray(head.T)
    lo, ln2, lnf = zeros(inner, width, LANES), zeros(2, width, LANES), zeros(2, width, LANES)
    lup, lgate = zeros(width, hidden, LANES), zeros(width, gate.shape[1], LANES)
    ldown, lhead = zeros(hidden, width, LANES), zeros(width, vocabulary, LANES)
    tokens = np.zeros((length + 1, LANES), dtype=np.int64)
    loss, good, right = zeros(LANES), np.ones(LANES, dtype=np.bool_), 0
    share = np.float32(1) / np.float32(len(rows) * queries)
    for start in range(0, len(rows), LANES):
        live = min(LANES, len(rows) - start)
        good[:] = True
        for place in range(length + 1):
            for lane in range(LANES):
                tokens[place, lane] = rows[start + min(lane, live - 1), place]
        for j in range(length):
            gather(tk[j], tokens, j, k[j])
            gather(tv[j], tokens, j, v[j])
        if training:
            dk[:] = np.float32(0)
            dv[:] = np.float32(0)
        for query in range(queries):
            here = first + query
            gather(tq[query], tokens, here, q)
            gather(tx[query], tokens, here, x)
            # attention over all positions up to this one
            for j in range(here + 1):
                for lane in range(LANES):
                    p[j, lane] = q[0, lane] * k[j, 0, lane]
                for i in range(1, inner):
                    for lane in range(LANES):
                        p[j, lane] += q[i, lane] * k[j, i, lane]
            softmax(p, here + 1, total)
            o[:] = np.float32(0)
            for j in range(here + 1):
                for i in range(inner):
                    for lane in range(LANES):
                        o[i, lane] += p[j, lane] * v[j, i, lane]
            product(wo, o, y)
            x += y
            # feed-forward
            normalise(x, n2, centered, eps, m2, s2, h2)
            product(up, h2, a)
            if gated:
                product(gate, h2, ag)
                silu(ag, act, slope)
                np.multiply(act, a, b)
            else:
                gelu(a, b, slope)
            product(down, b, y)
            x += y
            normalise(x, nf, centered, eps, mf, sf, hf)
            product(headT, hf, z)
            if not training and query < answer:
                for lane in range(LANES):
                    target = z[tokens[here + 1, lane], lane]
                    for token in range(vocabulary):
                        if z[token, lane] > target:
                            good[lane] = False
            for lane in range(LANES):
                loss[lane] -= z[tokens[here + 1, lane], lane] if lane < live else np.float32(0)
            softmax(z, vocabulary, total)
            for lane in range(live):
                loss[lane] += np.log(total[0, lane]) + total[1, lane]
            if not training:
                continue
            # backward pass
            for lane in range(LANES):
                z[tokens[here + 1, lane], lane] -= np.float32(1)
            for token in range(vocabulary):
                for lane in range(LANES):
                    z[token, lane] *= share if lane < live else np.float32(0)
            dh[:] = np.float32(0)
            product_back(headT, hf, z, dh, lhead)
            dy[:] = np.float32(0)
            normalise_back(dh, nf, centered, mf, sf, total, dy, lnf)
            db[:] = np.float32(0)
            product_back(down, b, dy, db, ldown)
            dh[:] = np.float32(0)
            if gated:
                np.multiply(db, act, da)
                db *= a
                db *= slope
                product_back(up, h2, da, dh, lup)
                product_back(gate, h2, db, dh, lgate)
            else:
                db *= slope
                product_back(up, h2, db, dh, lup)
            normalise_back(dh, n2, centered, m2, s2, total, dy, ln2)
            do[:] = np.float32(0)
            product_back(wo, o, dy, do, lo)
            total[0] = np.float32(0)
            for j in range(here + 1):
                for lane in range(LANES):
                    dp[j, lane] = do[0, lane] * v[j, 0, lane]
                for i in range(1, inner):
                    for lane in range(LANES):
                        dp[j, lane] += do[i, lane] * v[j, i, lane]
                for lane in range(LANES):
                    total[0, lane] += dp[j, lane] * p[j, lane]
            dq[:] = np.float32(0)
            for j in range(here + 1):
                for lane in range(LANES):
                    dp[j, lane] = p[j, lane] * (dp[j, lane] - total[0, lane])
                for i in range(inner):
                    for lane in range(LANES):
                        dv[j, i, lane] += p[j, lane] * do[i, lane]
                        dk[j, i, lane] += dp[j, lane] * q[i, lane]
                        dq[i, lane] += dp[j, lane] * k[j, i, lane]
            scatter(dq, tokens, here, gq[query])
            scatter(dy, tokens, here, gx[query])
        if training:
            for j in range(length):
                scatter(dk[j], tokens, j, gk[j])
                scatter(dv[j], tokens, j, gv[j])
        right += good[:live].sum()
    if training:
        for lanes, sums in ((lo, go), (ln2, gn2), (lup, gup), (lgate, ggate), (ldown, gdown), (lnf, gnf)):
            reduce(lanes, sums)
        reduce(lhead, ghead.T)
    return loss.sum() * share, right


@cache
def pool():
    return ThreadPoolExecutor(max(1, min(torch.get_num_threads(), os.cpu_count() or 1)))


def in_parallel(jobs):
    """The results of (function, *arguments) of all jobs."""
    if len(jobs) == 1:
        function, *arguments = jobs[0]
        return [function(*arguments)]
    return [future.result() for future in [pool().submit(*job) for job in jobs]]


def call(training, tables, rows, layout, kind):
    """Every model on its own rows [models, batch, length + 1]; models and parts of batches run in parallel.

    -> losses, counts of right rows, and in training the gradients of the tables
    """
    models, batch = rows.shape[:2]
    parts = 1 if models > 2 or (training and batch < 256) else 4
    bounds = [batch * part // parts for part in range(parts + 1)]
    arrays = [np.ascontiguousarray(t.detach().numpy(), dtype=np.float32) for t in tables]
    gradients = [np.zeros((parts, *a.shape) if training else (parts, models, 0, 0, 0)[: a.ndim + 1], np.float32)
                 for a in arrays]  # fmt: skip
    jobs, shares = [], []
    for model in range(models):
        for part in range(parts):
            piece = rows[model, bounds[part] : bounds[part + 1]]
            shares.append(len(piece) / batch)
            jobs.append((run, training, piece, layout.first, len(layout.sum), kind.centered, kind.gated,
                         np.float32(kind.eps), *(a[model] for a in arrays),
                         *(g[part, model] for g in gradients)))  # fmt: skip
    losses, right = zip(*in_parallel(jobs))
    losses = (np.array(losses, dtype=np.float64) * shares).reshape(models, parts).sum(1)
    right = np.array(right).reshape(models, parts).sum(1)
    if training:
        weights = np.array(shares[:parts], dtype=np.float32)
        gradients = [torch.from_numpy(np.tensordot(weights, g, 1) if parts > 1 else g[0]) for g in gradients]
    return torch.from_numpy(losses.astype(np.float32)), torch.from_numpy(right), gradients


class Loss(torch.autograd.Function):
    """The mean losses of stacked models, with gradients for their tables."""

    @staticmethod
    def forward(context, rows, layout, kind, *tables):
        loss, _, gradients = call(True, tables, rows, layout, kind)
        context.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(context, upstream):
        found = (g * upstream.view(-1, *(1,) * (g.ndim - 1)) for g in context.saved_tensors)
        return None, None, None, *found
