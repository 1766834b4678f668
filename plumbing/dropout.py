"""Dropout whose masks are a pure function of the seeds that a training step hands out, one int32 for each example:
the same on any device, compiled or not, after a resume, and for any number of processes that share a batch.

    self.dropout = Dropout(0.1)             in a model, like torch's own
    seed_dropout(model, batch.seeds)        before each forward pass in training

Each call of a module advances its seeds. Element i of an example is dropped when hash(seed, i) falls below the rate.
On a GPU torch.compile fuses the hash with its neighbours; on a CPU one numba pass does it. Nothing is stored for the
backward pass: the mask is computed again.
"""

import contextlib

import numba
import numpy as np
import torch

GOLDEN, FIRST, SECOND = 0x9E3779B1, 0x7FEB352D, 0x846CA68B  # odd constants of the lowbias32 hash


class Dropout(torch.nn.Module):
    """`x` [examples, ...] with a share `rate` of each example's elements at 0, the rest scaled up; in training only."""

    def __init__(self, rate):
        super().__init__()
        self.rate, self.seeds = rate, None

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        if self.seeds is None:
            raise RuntimeError("dropout has no seeds: call common.seed_dropout(model, batch.seeds) before this pass")
        seeds, self.seeds = self.seeds, self.seeds * 1664525 + 1013904223
        if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
            return FusedDropout.apply(x, self.rate, seeds)
        return x * mask(x, self.rate, seeds)


def layers(model):
    return [module for module in model.modules() if isinstance(module, Dropout)]


def seed_dropout(model, seeds):
    """Give every dropout layer seeds of its own, derived from these int32 seeds, one for each example."""
    for number, layer in enumerate(layers(model), 1):
        layer.seeds = scramble(seeds ^ signed(number * GOLDEN & 0xFFFFFFFF))


@contextlib.contextmanager
def seeded_as(model, seeds):
    """Inside this context, the dropout layers have these seeds, as a list for `layers(model)`."""
    now = [layer.seeds for layer in layers(model)]
    for layer, given in zip(layers(model), seeds):
        layer.seeds = given
    yield
    for layer, given in zip(layers(model), now):
        layer.seeds = given


def signed(word):
    """The int32 with the same bits as this unsigned 32-bit word."""
    return word - (1 << 32) if word >= 1 << 31 else word


def scramble(bits):
    """lowbias32: int32 numbers that are all different stay so, and look random."""
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * FIRST
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * signed(SECOND)
    return bits ^ ((bits >> 16) & 0xFFFF)


def mask(x, rate, seeds):
    """The reference in plain torch operations: 0 or 1 / (1 - rate) for each element."""
    index = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device)
    bits = (index * signed(GOLDEN))[None] ^ seeds[:, None]
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * FIRST
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * signed(SECOND)
    return ((bits >= lowest_kept(rate)).to(x.dtype) * (1 / (1 - rate))).view(x.shape)


def lowest_kept(rate):
    """Elements whose hash, an int32, is below this are dropped."""
    return signed(round(rate * (1 << 32)) ^ (1 << 31))


class FusedDropout(torch.autograd.Function):
    @staticmethod
    def forward(context, x, rate, seeds):
        context.rate, context.seeds = rate, seeds
        return fused(x, rate, seeds)

    @staticmethod
    def backward(context, gradient):
        return fused(gradient, context.rate, context.seeds), None, None


def fused(x, rate, seeds):
    x = x.contiguous()
    out = torch.empty_like(x)
    flat = (len(x), x[0].numel())
    kernel(
        x.detach().view(flat).numpy(),
        seeds.numpy(),
        np.int32(lowest_kept(rate)),
        np.float32(1 / (1 - rate)),
        out.view(flat).numpy(),
    )
    return out


@numba.njit(cache=True, nogil=True)
def kernel(x, seeds, lowest, scale, out):
    # signed 32-bit products wrap around, which keeps eight lanes to an AVX2 register
    for example in range(x.shape[0]):
        seed = seeds[example]
        for i in range(x.shape[1]):
            bits = np.int32(np.int32(np.int32(i) * np.int32(-1640531535)) ^ seed)
            bits = np.int32(np.int32(bits ^ np.int32((bits >> 16) & 0xFFFF)) * np.int32(0x7FEB352D))
            bits = np.int32(np.int32(bits ^ np.int32((bits >> 15) & 0x1FFFF)) * np.int32(-2073254261))
            out[example, i] = x[example, i] * scale if bits >= lowest else np.float32(0)
