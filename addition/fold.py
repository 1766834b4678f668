"""Takes out of a tiny or smallest model what its answers do not need: the same logits with fewer parameters.

python -m addition.export best.pt -o adder.py --fold

Norm1's weights go into the matrices that read it, norm2's into up and gate, the arc's radius into what is added to it.
An arc lies in a plane: what reads its other coordinates has no effect. Values and output are one matrix. And each pair
of a query and a key may be turned by the same angle, so that one entry of the query is 0. Of a smallest model, the
last norm's weight is a factor of all scores, which no answer depends on.
"""

import copy
from dataclasses import replace

import torch

from addition.smallest import SmallestAdder
from addition.tiny import turn
from addition.train import carry_pairs, count, encode_pairs

PAIRS = 10_000  # on which two models are compared
SAME = 1e-6  # difference of two models' logits, over their range, that is rounding and the epsilons in the norms


@torch.no_grad()
def fold(model):
    """A model of the same function, in float64; with fewer parameters, where there is one."""
    model = copy.deepcopy(model).double()
    config, w = with_signs(model) if isinstance(model, SmallestAdder) else with_folded_matrices(model)
    folded = type(model)(config, {name: w[name] for name in config.shapes()})
    return folded if count(folded) < count(model) else model


def with_folded_matrices(model):
    """Of a tiny model: the config and the parameters of the same function with everything folded, whatever it costs."""
    c, query = replace(model.config, out="free"), model.query_matrix()
    value = query if c.values == "query" else torch.eye(c.read, c.head_dim).to(query)  # eye: if they are joined
    w = {"key": query, "value": value} | dict(model.named_parameters()) | {"query": query, "out": model.matrices()[0]}
    readers = {"query": "norm1", "key": "norm1", "value": "norm1", "up": "norm2", "gate": "norm2"}
    w |= {name: model.norm_weight(norm)[: len(w[name]), None] * w[name] for name, norm in readers.items()}
    if c.norms != "none":
        w["final"], c = model.norm_weight("final")[: c.read], replace(c, norms="final")
    if c.norms == "final" and c.embedding == "arc":
        radius, w["arc"], c = w["arc"][0], w["arc"][1:], replace(c, embedding="unit")
        w |= {name: w[name][:2] for name in ("query", "key", "value")}  # of the plane of the arc
        w |= {"out": w["out"] / radius, "down": w["down"] / radius, "final": w["final"][:2] * radius}
    if c.read <= c.head_dim:
        w["joined"], c = w["value"] @ w["out"], replace(c, values="joined")
    if c.read == 2:
        first, second = w["query"].chunk(2, -1)
        angle = -torch.atan2(second[0], first[0])
        w |= {name: turn(w[name], angle) for name in ("query", "key")}
        first, second = w["query"].chunk(2, -1)
        w["query"], c = torch.stack([*first, second[1]]), replace(c, query="zeros")  # second[0] is 0 now
    return c, w


def with_signs(model):
    """Of a smallest model: where the last norm's weights are one number and its negative, only their signs stay."""
    config, final = model.config, model.matrix("final")[0]
    if len(model.patterns["final"].signs) == 1 and len(set(final.abs().tolist()) - {0.0}) == 1:
        config = replace(config, final="".join("-01"[1 + int(sign)] for sign in final.sign()))
    return config, dict(model.named_parameters())


@torch.no_grad()
def difference(one, other):
    """The largest difference of two models' logits, in float64, each over the range of its own; on prompts with their
    answers."""
    rows = encode_pairs(carry_pairs(11, PAIRS), one.config.layout)[:, :-1].long()
    first, second = (copy.deepcopy(model).double()(rows) for model in (one, other))
    first, second = (logits / (logits.max() - logits.min()) for logits in (first, second))
    return float((first - second).abs().max())
