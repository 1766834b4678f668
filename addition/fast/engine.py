"""Losses of stacked copies of a plain model: by torch on any device, or by the kernels on a CPU.

With one layer, everything before the attention depends on a token and its place only: it is computed once a step for
every token at every place, instead of once for every token of the batch.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call, vmap

from addition.fast import kernels
from addition.train import TinyDecoderLM, mean_loss, test


def tables(model, sharpness=1.0):
    """A model as kernels.py reads it: by torch, so that gradients find their way to the parameters."""
    layout, first = model.config.layout, model.config.layout.first
    room = kernels.LANES - layout.vocabulary
    if isinstance(model, TinyDecoderLM):
        one, two, final = ((n.weight, getattr(n, "bias", None)) for n in (model.norm1, model.norm2, model.final))
        query, key, value = scaled(model.qkv(), *one).chunk(3, -1)
        found = {
            "embedding": F.pad(model.token_emb.weight.T, (0, room)), "positions": model.pos_emb(),
            "query": sharpness / math.sqrt(model.config.d_model) * query,
            "attended": torch.cat([key, value @ model.attn_out()], -1),
            "up": scaled(model.up(), *two), "down": model.down(),
        }  # fmt: skip
        return found | {"head": scaled(model.lm_head.weight.T, *final)}
    tokens = torch.arange(layout.vocabulary).expand(layout.length, -1)
    x, q, k, v = model.inputs(tokens, torch.arange(layout.length)[:, None])
    (out, up, gate, down), (two, final) = model.matrices(), map(model.norm_weight, ("norm2", "final"))
    kv, xq = (F.pad(torch.cat(parts, -1).movedim(-1, 0), (0, room))
              for parts in ((k, v @ out), (x[first:], sharpness * q[first:])))  # fmt: skip
    return {"kv": kv, "xq": xq, "up": scaled(up, two), "gate": scaled(gate, two), "down": down,
            "head": scaled(model.digits().T, final)}  # fmt: skip


def scaled(matrix, weight, bias=None):
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
        self.layout, self.eps, self.tables = model.config.layout, model.config.eps, Call(model, tables)

    def losses(self, parameters, rows, sharpness):
        """Mean losses [models] of rows [models, batch, tokens], with gradients for the parameters."""
        named = self.tables.stacked(parameters, sharpness)
        return kernels.Loss.apply(rows.numpy(), self.layout, self.eps, tuple(named), *named.values())

    @torch.no_grad()
    def test(self, parameters, rows):
        """Mean losses, and how many sums greedy decoding gets right."""
        named = self.tables.stacked(parameters, torch.ones(len(rows)))
        return kernels.call(False, named, rows.numpy(), self.layout, self.eps)[:2]


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
