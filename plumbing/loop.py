"""How a model's iterations run: compiled, recomputed in the backward pass, and what they keep in memory."""

import contextlib
import math
import os
import re
import types
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from plumbing import dropout


def replace(model, function):
    """Have this model, and deep copies of it, call function(model, state) as their `iterate`. A bound method is
    copied with its model; a compiled method set as an attribute would go on computing with the original's weights."""
    model.iterate = types.MethodType(function, model)


def recompute(model):
    """Keep only the states between iterations for the backward pass, which runs every iteration once more."""
    iterate = model.iterate.__func__

    def recomputed(model, state):
        if not torch.is_grad_enabled():
            return iterate(model, state)
        seeds = [layer.seeds for layer in dropout.layers(model)]  # the second time, the same masks
        contexts = lambda: (contextlib.nullcontext(), dropout.seeded_as(model, seeds))  # noqa: E731
        return checkpoint(iterate, model, state, use_reentrant=False, context_fn=contexts)

    replace(model, recomputed)


def kept_bytes(model, examples, count, precision):
    """Bytes that the backward pass of this many iterations needs kept, the model's own weights aside."""
    device = next(model.parameters()).device
    kept, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    dropout.seed_dropout(model, torch.zeros(len(examples), dtype=torch.int32, device=device))
    with precision, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # alive until all is counted, so that no address is used twice
        outputs = [logits.float().logsumexp(-1) for logits in model(examples.to(device), count)]
    del outputs
    return sum(kept.values())


def free_bytes(device):
    """What a process can still take of the device's memory; infinite where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):  # only Linux has this file
        available = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
        return 1024 * int(available[1]) / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return math.inf


def fit(model, needed, count, free):
    """Recompute the iterations where `needed` bytes are more than `free` ones. -> what to tell the user"""
    sizes = f"the backward pass needs {needed / 1e9:.1f} GB" + f", {free / 1e9:.1f} GB are free" * (free < math.inf)
    if needed < 0.9 * free:
        return sizes
    recompute(model)
    least = needed / count
    sizes += f": iterations are recomputed, which needs {least / 1e9:.1f} GB"
    if least > 0.9 * free:
        advice = "lower --batch, use more processes (torchrun), or more --micro-batches where an experiment has them"
        raise SystemExit(f"{sizes}, still too much; {advice}")
    return sizes
