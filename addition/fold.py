"""Takes out of a tiny or smallest model what its answers do not need: the same logits with fewer parameters.

python -m addition.export best.pt -o adder.py --fold

Norm1's weights go into the matrices that read it, norm2's into up and gate, the arc's radius into what is added to it.
An arc lies in a plane: what reads its other coordinates has no effect. Values and output are one matrix. And each pair
of a query and a key may be turned by the same angle, so that one entry of the query is 0. Of a smallest model, the
last norm's weight is a factor of all scores, which no answer depends on.
"""

import copy
from dataclasses import replace

import numpy as np
import torch

from addition.smallest import SmallestAdder
from addition.tiny import TinyAdder, turn
from addition.train import answers, carry_pairs, count, encode_pairs, uniform_pairs

PROMPTS = 10_000  # on which the logits are compared
SAME = 1e-6  # difference of two models' logits, over their range, that is rounding and the epsilons in the norms


def fold(model):
    """(model of the same function, in float64, [what was done, parameters left])"""
    if isinstance(model, SmallestAdder):
        return fold_scores(model)
    config, w = model.config, {name: p.detach().double() for name, p in model.named_parameters()}
    if config.out == "transpose" and config.values != "joined":  # a norm in the values would be in the output, too
        w["out"], config = w["query" if config.values == "query" else "value"].mT, replace(config, out="free")
    done = []

    def note(text, **changes):
        nonlocal config
        config = replace(config, **changes)
        done.append((text, sum(w[name].numel() for name in config.shapes())))

    if config.norms in ("separate", "shared"):
        one, two, last = (w.get(name, w.get("norm")) for name in ("norm1", "norm2", "final"))
        readers = {"query": one, "key": one, "value": one, "joined": one, "up": two, "gate": two}
        for name, weight in readers.items():
            if name in w:
                read = [0, 1, 1] if name == "query" and config.query == "zeros" else range(len(w[name]))
                w[name] = weight[list(read), None] * w[name]
        w["final"] = last[: config.read]
        note("weights of the norms, into the matrices that follow", norms="final")
    if config.embedding == "arc" and config.norms == "final":
        radius, start, span = w["arc"]
        w["arc"] = torch.stack([start, span])
        w |= {name: w[name][:2] for name in ("query", "key", "value", "joined", "final") if name in w}
        w |= {name: w[name] / radius for name in ("out", "joined", "down") if name in w}  # added to an embedding
        w["final"] = w["final"] * radius
        note("the radius, and what reads coordinates that are 0", embedding="unit")
    if config.values != "joined" and config.read <= config.head_dim:
        value = w["query" if config.values == "query" else "value"]
        joined = value @ w["out"]
        spared = sum(w[name].numel() for name in ("value", "out") if name in w)
        if joined.numel() < spared:
            w["joined"] = joined
            note("values and output, into one matrix", values="joined")
    if config.query == "free" and config.read == 2 and config.values != "query":
        pairs = config.head_dim // 2
        first, second = w["query"].chunk(2, -1)
        angle = -torch.atan2(second[0], first[0])
        w |= {name: turn(w[name], angle) for name in ("query", "key") if name in w}
        w["query"] = torch.stack([w["query"][0, :pairs], w["query"][1, :pairs], w["query"][1, pairs:]])
        note("an entry of each pair of the queries, by turning queries and keys", query="zeros")
    folded = TinyAdder(config, {name: w[name] for name in config.shapes()})
    if count(folded) > count(model):  # an output matrix that was the values' transposed is one of its own now
        return copy.deepcopy(model).double(), []
    return folded, done


def fold_scores(model):
    """Where the last norm's weights are one number and its negative: only their signs change an answer."""
    config, w = model.config, {name: p.detach().double() for name, p in model.named_parameters()}
    letters = set(config.final.lower()) - {"0"}
    if len(letters) != 1 or not letters.pop().isalpha():
        return copy.deepcopy(model).double(), []
    positive = w.pop("final").item() > 0
    signs = "".join("0" if entry == "0" else "-1"[entry.islower() == positive] for entry in config.final)
    folded = SmallestAdder(replace(config, final=signs), w)
    return folded, [("the size of the last norm's weights, a factor of all scores", count(folded))]


@torch.no_grad()
def difference(one, other):
    """The largest difference of two models' logits, in float64, each over the range of its own; on prompts with their
    answers."""
    pairs = np.concatenate([uniform_pairs(11, PROMPTS // 2), carry_pairs(11, PROMPTS // 2)])
    rows = encode_pairs(pairs, one.config.layout)
    first, second = (answers(copy.deepcopy(model).double(), rows)[0] for model in (one, other))
    first, second = (logits / (logits.max() - logits.min()) for logits in (first, second))
    return float((first - second).abs().max())
