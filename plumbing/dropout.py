"""Dropout whose mask is a pure function of (key, element): the same on any device, compiled or not,
in the second half of a resumed run, and for however many processes share a batch.

`keys` holds one int32 for each example. Element i of an example is dropped when hash(key, i) falls below
the rate. On a GPU, torch.compile fuses the hash into its neighbours; on a CPU, one numba pass does it, about
eight times cheaper than torch's own generator. Nothing is stored for the backward pass: the mask is made again.
"""

import numba
import numpy as np
import torch

GOLDEN, FIRST, SECOND = 0x9E3779B1, 0x7FEB352D, 0x846CA68B  # odd constants of the lowbias32 hash


def signed(word):
    """The int32 with the same bits as this unsigned 32-bit word."""
    return word - (1 << 32) if word >= 1 << 31 else word


def advance(keys):
    """Fresh keys for the next layer or iteration; None stays None."""
    return None if keys is None else keys * 1664525 + 1013904223


def dropout(x, rate, keys, site=0):
    """`x` [examples, ...] with a share `rate` of each example's elements at 0, the rest scaled up.
    Calls with the same keys need their own `site`. Without keys (evaluation) nothing is dropped."""
    if keys is None or rate == 0:
        return x
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        return FusedDropout.apply(x, rate, keys + site)
    return x * mask(x, rate, keys + site)


def mask(x, rate, keys):
    """The reference in plain torch operations: 0 or 1 / (1 - rate) for each element."""
    index = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device)
    bits = (index * signed(GOLDEN))[None] ^ keys[:, None]
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * FIRST
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * signed(SECOND)
    keep = bits >= signed(threshold(rate) ^ (1 << 31))
    return (keep.to(x.dtype) * (1 / (1 - rate))).view(x.shape)


def threshold(rate):
    return round(rate * (1 << 32))


class FusedDropout(torch.autograd.Function):
    @staticmethod
    def forward(context, x, rate, keys):
        context.rate, context.keys = rate, keys
        return fused(x, rate, keys)

    @staticmethod
    def backward(context, gradient):
        return fused(gradient, context.rate, context.keys), None, None


def fused(x, rate, keys):
    x = x.contiguous()
    out = torch.empty_like(x)
    flat = (len(x), x[0].numel())
    kernel(
        x.detach().view(flat).numpy(),
        keys.numpy(),
        np.int32(signed(threshold(rate) ^ (1 << 31))),
        np.float32(1 / (1 - rate)),
        out.view(flat).numpy(),
    )
    return out


@numba.njit(cache=True, nogil=True)
def kernel(x, keys, limit, scale, out):
    # signed 32-bit products wrap around, which keeps eight lanes to an AVX2 register
    for example in range(x.shape[0]):
        key = keys[example]
        for i in range(x.shape[1]):
            bits = np.int32(np.int32(np.int32(i) * np.int32(-1640531535)) ^ key)
            bits = np.int32(np.int32(bits ^ np.int32((bits >> 16) & 0xFFFF)) * np.int32(0x7FEB352D))
            bits = np.int32(np.int32(bits ^ np.int32((bits >> 15) & 0x1FFFF)) * np.int32(-2073254261))
            out[example, i] = x[example, i] * scale if bits >= limit else np.float32(0)
