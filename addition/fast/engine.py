"""Losses of stacked copies of a plain model: by torch on any device, or by the kernels on a CPU.

With one layer, everything before the attention depends on a token and its place only. `tables` has the plain model
compute it once a step for every token at every place, instead of once for every token of the batch; the kernels start
from there.
"""

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call, vmap

from addition.fast import kernels
from addition.train import TinyDecoderLM, mean_loss, test


class Kind(NamedTuple):
    """What all models of a stack have in common."""

    centered: bool  # LayerNorm; else RMSNorm
    eps: float
    gated: bool  # SwiGLU; else exact GELU
    tied: bool  # keys are the values


def tied(model):
    """Whether keys are the values."""
    return getattr(model.config, "tie_qkv", "none") != "none"


def tables(model, sharpness=1.0):
    layout, first = model.config.layout, model.config.layout.first
    room = kernels.LANES - layout.vocabulary
    tokens = torch.arange(layout.vocabulary).expand(layout.length, -1)
    x, q, k, v = model.inputs(tokens, torch.arange(layout.length)[:, None])
    attended = [v] if tied(model) else [k, v]
    kv, xq = (F.pad(torch.cat(parts, -1).movedim(-1, 0), (0, room))
              for parts in (attended, (x[first:], sharpness * q[first:])))  # fmt: skip
    if isinstance(model, TinyDecoderLM):
        norm, final = ((n.weight, getattr(n, "bias", None)) for n in (model.norm2, model.final))
        out, up, down, head = model.attn_out(), model.up(), model.down(), model.lm_head.weight
        gate = up[:, :0]
    else:
        norm, final = ((model.norm_weight(name), None) for name in ("norm2", "final"))
        (out, up, gate, down), head = model.matrices(), model.digits()
    return kernels.Tables(kv, xq, out, scaled(up, *norm), scaled(gate, *norm), down, scaled(head.T, *final))


def scaled(matrix, weight, bias):
    """The matrix for what comes before a norm's weights; a last row is for its bias."""
    rows = weight[:, None] * matrix
    return rows if bias is None else torch.cat([rows, bias[None] @ matrix])


class Call(nn.Module):
    """A function of a model, so that functional_call can give it other parameters."""

    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *arguments):
        return self.function(self.model, *arguments)

    def stacked(self, parameters, *arguments):
        """For every model of a stack: named parameters [models, ...], and arguments [models, ...]."""
        named = {f"model.{name}": value for name, value in parameters.items()}
        return vmap(lambda p, *a: functional_call(self, p, a))(named, *arguments)


class Compiled:
    """The kernels: for a CPU."""

    name = "compiled"

    def __init__(self, model):
        self.layout, self.tables = model.config.layout, Call(model, tables)
        centered = any(isinstance(part, nn.LayerNorm) for part in model.modules())
        self.kind = Kind(centered, model.config.eps, not isinstance(model, TinyDecoderLM), tied(model))

    def losses(self, parameters, rows, sharpness):
        """Mean losses [models] of rows [models, batch, tokens], with gradients for the parameters."""
        return kernels.Loss.apply(rows.numpy(), self.layout, self.kind, *self.tables.stacked(parameters, sharpness))

    @torch.no_grad()
    def test(self, parameters, rows):
        """Mean losses, and how many sums greedy decoding gets right."""
        ones = torch.ones(len(rows))
        tables = kernels.Tables(*self.tables.stacked(parameters, ones))
        return kernels.call(False, tables, rows.numpy(), self.layout, self.kind)[:2]


class Torch:
    """Plain PyTorch, for any device."""

    name = "torch"

    def __init__(self, model, at_once=10_000):
        self.loss, self.tested, self.at_once = Call(model, mean_loss), Call(model, test), at_once

    def losses(self, parameters, rows, sharpness):
        return self.loss.stacked(parameters, rows, sharpness)

    def test(self, parameters, rows):
        each = ({f"model.{name}": value[i] for name, value in parameters.items()} for i in range(len(rows)))
        found = [functional_call(self.tested, one, (part, self.at_once)) for one, part in zip(each, rows)]
        return tuple(map(torch.tensor, zip(*found)))
