"""A smaller architecture, below 100 parameters: each trick has a flag of its own.

python -m addition.tiny --seeds 0-7                                  all matrices free
python -m addition.tiny --seeds 0-7 --embedding arc --values query   and so on, one trick at a time

One layer, one head, width 3. All numbers are written least significant digit first with zeros between them. Positions
are fixed rotations of queries and keys (RoPE), which have no parameters; the two digits that belong to a digit of the
sum are at the same two distances everywhere. All flags of addition.sweep can be used here.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import tyro

from addition.data import REVERSED
from addition.model import Kind, ModelConfig, Tables, at_least_one, normalise
from addition.sweep import Sweep
from addition.sweep import main as sweep


def turn(x, angle):
    """Turn each pair (i, i + pairs) of x [..., head] by its own angle [..., pairs]."""
    first, second = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


@dataclass(frozen=True)
class TinyConfig:
    d_model: int = 3
    head_dim: int = 4  # even: RoPE turns pairs
    d_ff: int = 2
    theta: float = 3.0  # RoPE turns a pair by the angle theta^(-pair / pairs) a position
    gated: bool = True  # SwiGLU; else GELU, a third fewer parameters
    embedding: Literal["free", "arc"] = "free"  # arc: digits on a circular arc, given by radius, start and span
    # rotation: the queries, each pair turned by a learned angle; turn: only the first pair
    keys: Literal["free", "rotation", "turn"] = "free"
    values: Literal["free", "query"] = "free"  # query: the queries without rotation
    out: Literal["free", "transpose"] = "free"  # transpose: of the values' matrix
    norms: Literal["separate", "shared", "none"] = "separate"  # weights of the three RMSNorms; none: no weights
    # unit: queries and keys of length 1; scale: times a learned number
    qk_norm: Literal["none", "unit", "scale"] = "scale"
    layout = REVERSED  # without a type, so it is not a field

    def __post_init__(self):
        at_least_one(self, "d_model", "d_ff")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; RoPE turns pairs, so it must be even")
        if not 0 < self.theta < math.inf:
            raise ValueError(f"theta is {self.theta}; it must be a number above 0")
        if self.embedding == "arc" and self.d_model < 2:
            raise ValueError("embedding arc needs d_model 2 or more: an arc lies in a plane")

    from_dict = classmethod(ModelConfig.from_dict.__func__)

    @property
    def kind(self):
        return Kind(centered=False, eps=1e-6, gated=self.gated)

    def shapes(self):
        """Every trained parameter, by name."""
        d, h, f = self.d_model, self.head_dim, self.d_ff
        found = {"arc": (3,)} if self.embedding == "arc" else {"embedding": (self.layout.vocabulary, d)}
        found["query"] = (d, h)
        found |= {"free": {"key": (d, h)}, "rotation": {"angle": (h // 2,)}, "turn": {"angle": (1,)}}[self.keys]
        found |= {"value": (d, h)} if self.values == "free" else {}
        found |= {"out": (h, d)} if self.out == "free" else {}
        found |= {"scale": (1,)} if self.qk_norm == "scale" else {}
        found |= {"up": (d, f), "down": (f, d)} | ({"gate": (d, f)} if self.gated else {})
        names = {"separate": ("norm1", "norm2", "final"), "shared": ("norm",), "none": ()}[self.norms]
        return found | dict.fromkeys(names, (d,))

    def initial(self, seed, std):
        """Matrices N(0, std). The arc begins as about a quarter circle, the scale of attention near 5."""
        generator = torch.Generator().manual_seed(seed)
        values = {name: torch.randn(shape, generator=generator) for name, shape in self.shapes().items()}
        normal = {"arc": ([10.0, 0.0, 1.5], [1.0, 0.3, 0.1]), "scale": ([5.0], [0.5]), "angle": ([0.0], [math.pi])}
        for name, value in values.items():
            if name in normal:
                mean, deviation = map(torch.tensor, normal[name])
                values[name] = mean + deviation * value
            elif name.startswith(("norm", "final")):
                values[name] = torch.ones_like(value)
            else:
                values[name] = value * std
        return values

    def frozen(self, seed):
        return {}

    def embed(self, p):
        if self.embedding == "free":
            return p["embedding"]
        radius, start, span = (part[..., None] for part in p["arc"].unbind(-1))
        angle = start + span * torch.linspace(0, 1, self.layout.vocabulary, device=start.device)
        flat = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
        return torch.nn.functional.pad(flat, (0, self.d_model - 2))

    def norm(self, p, name):
        """Weight and bias [..., 2, width] of an RMSNorm; there is no bias."""
        if self.norms == "none":
            weight = torch.ones_like(p["up"][..., 0])
        else:
            weight = p["norm"] if self.norms == "shared" else p[name]
        return torch.stack([weight, torch.zeros_like(weight)], -2)

    def tables(self, p):
        embedding, pairs = self.embed(p), self.head_dim // 2
        h = normalise(embedding, self.norm(p, "norm1")[..., None, :, :], self.kind)
        q = h @ p["query"]
        v = q if self.values == "query" else h @ p["value"]
        if self.keys == "free":
            k = h @ p["key"]
        else:
            angle = p["angle"] if self.keys == "rotation" else torch.nn.functional.pad(p["angle"], (0, pairs - 1))
            k = turn(q, angle[..., None, :])
        scale = 1 / math.sqrt(self.head_dim)
        if self.qk_norm != "none":
            q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
            scale = p["scale"][..., None] if self.qk_norm == "scale" else math.sqrt(self.head_dim)
        length, first = self.layout.length, self.layout.first
        frequency = self.theta ** (-torch.arange(pairs, device=q.device) / pairs)
        angles = (torch.arange(length, device=q.device)[:, None] * frequency)[:, None]  # [length, 1, pairs]
        q, k = (turn(x[..., None, :, :], angles) for x in (q * scale, k))
        lead, up = embedding.shape[:-2], p["up"]
        x = embedding[..., None, :, :].expand(*lead, self.layout.queries, *embedding.shape[-2:])
        v = v[..., None, :, :].expand(*lead, length, *v.shape[-2:])
        out = p["out"] if self.out == "free" else p["query" if self.values == "query" else "value"].mT
        return Tables(x, q[..., first:, :, :], k, v, out, norm=self.norm(p, "norm2"), up=up,
                      gate=p["gate"] if self.gated else up[..., :0], down=p["down"], final=self.norm(p, "final"),
                      head=embedding)  # fmt: skip


@dataclass(frozen=True)
class TinySweep(Sweep):
    model: tyro.conf.OmitArgPrefixes[TinyConfig] = field(default_factory=TinyConfig)
    train_steps: int = 15_000
    batch_size: int = 128
    lr: float = 0.05
    warmup: int = 200
    init_std: float = 0.5
    weight_decay: float = 0.0
    carry: float = 0.5
    curriculum: str = ""  # none: the task is the same at every position
    soften: float = 0.2
    soften_until: int = 3_000
    candidates: int = 12
    choose: str = "4000:1"


def main(argv=None):
    return sweep(argv, TinySweep, "tiny")


if __name__ == "__main__":
    main()
