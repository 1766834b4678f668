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
    # arc: digits on a circular arc, given by radius, start and span; unit: the radius is fixed
    embedding: Literal["free", "arc", "unit"] = "free"
    radius: float = 10.0  # of a unit arc: any radius gives the same models, but other steps of training
    # zeros: each pair turned so that one entry is 0; constant: the same for every token, only the share of the two
    # pairs is learned; even: both pairs alike, nothing is learned
    query: Literal["free", "zeros", "constant", "even"] = "free"
    # rotation: the queries, each pair turned by a learned angle; turn: only the first pair; one: all by the same
    keys: Literal["free", "rotation", "turn", "one"] = "free"
    # query: the queries without rotation; joined: values and output are one matrix
    values: Literal["free", "query", "joined"] = "free"
    out: Literal["free", "transpose"] = "free"  # transpose: of the values' matrix
    gate: Literal["free", "scaled"] = "free"  # scaled: the up matrix times a learned number
    down: Literal["free", "turned"] = "free"  # turned: the up matrix transposed, its two rows turned by a learned angle
    # weights of the three RMSNorms; final: only the last one has some; none: no weights
    norms: Literal["separate", "shared", "final", "none"] = "separate"
    # unit: queries and keys of length 1; scale: times a learned number
    qk_norm: Literal["none", "unit", "scale"] = "scale"
    layout = REVERSED  # without a type, so it is not a field

    def __post_init__(self):
        at_least_one(self, "d_model", "d_ff")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; RoPE turns pairs, so it must be even")
        for name in ("theta", "radius"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a number above 0")
        if self.embedding != "free" and self.d_model < 2:
            raise ValueError("embedding arc needs d_model 2 or more: an arc lies in a plane")
        if self.query == "zeros" and self.read != 2:
            raise ValueError("query zeros needs embedding unit")
        if self.query in ("constant", "even") and self.head_dim != 4:
            raise ValueError(f"query {self.query} is written for head_dim 4")
        if self.values == "query" and self.query != "free":
            raise ValueError("values query needs query free")
        if self.values == "joined" and self.read > self.head_dim:
            raise ValueError(f"values joined needs a head_dim of {self.read} or more")
        if self.down == "turned" and self.d_ff != 2:
            raise ValueError("down turned is written for d_ff 2")
        if self.gate == "scaled" and not self.gated:
            raise ValueError("gate scaled needs a gate")

    from_dict = classmethod(ModelConfig.from_dict.__func__)

    @property
    def kind(self):
        eps = 1e-8 * self.radius**2 if self.embedding == "unit" else 1e-6
        return Kind(centered=False, eps=eps, gated=self.gated)

    def shapes(self):
        """Every trained parameter, by name."""
        d, r, h, f = self.d_model, self.read, self.head_dim, self.d_ff
        found = {"free": {"embedding": (self.layout.vocabulary, d)}, "arc": {"arc": (3,)}, "unit": {"arc": (2,)}}[
            self.embedding
        ]
        found |= {"free": {"query": (r, h)}, "zeros": {"query": (3, h // 2)}, "constant": {"mix": (1,)}, "even": {}}[
            self.query
        ]
        found |= {"free": {"key": (r, h)}, "rotation": {"angle": (h // 2,)}}.get(self.keys, {"angle": (1,)})
        found |= {"free": {"value": (r, h)}, "query": {}, "joined": {"joined": (r, d)}}[self.values]
        found |= {"out": (h, d)} if self.out == "free" and self.values != "joined" else {}
        found |= {"scale": (1,)} if self.qk_norm == "scale" else {}
        found |= {"up": (d, f)} | ({"down": (f, d)} if self.down == "free" else {"turn": (1,)})
        if self.gated:
            found |= {"gate": (d, f)} if self.gate == "free" else {"gain": (1,)}
        names = {"separate": ("norm1", "norm2", "final"), "shared": ("norm",), "none": (), "final": ("final",)}
        return found | {name: (r if name == "final" else d,) for name in names[self.norms]}

    @property
    def read(self):
        """How many coordinates of an embedding are read and compared with; the others of an arc are 0."""
        return 2 if self.embedding == "unit" else self.d_model

    def initial(self, seed, std):
        """Matrices N(0, std). The arc begins as about a quarter circle, the scale of attention near 5."""
        generator = torch.Generator().manual_seed(seed)
        values = {name: torch.randn(shape, generator=generator) for name, shape in self.shapes().items()}
        normal = {"arc": ([10.0, 0.0, 1.5], [1.0, 0.3, 0.1]), "scale": ([5.0], [0.5]), "angle": ([0.0], [math.pi]),
                  "mix": ([math.pi / 4], [0.3]), "gain": ([0.0], [1.0]), "turn": ([0.0], [math.pi])}  # fmt: skip
        if self.embedding == "unit":
            normal["arc"] = ([0.0, 1.5], [0.3, 0.1])
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
        *radius, start, span = (part[..., None] for part in p["arc"].unbind(-1))
        radius = radius[0] if radius else self.radius
        angle = start + span * torch.linspace(0, 1, self.layout.vocabulary, device=start.device)
        flat = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
        return torch.nn.functional.pad(flat, (0, self.d_model - 2))

    def norm(self, p, name):
        """Weight and bias [..., 2, width] of an RMSNorm; there is no bias."""
        if self.norms == "none" or (self.norms == "final" and name != "final"):
            weight = torch.ones_like(p["up"][..., 0])
        else:
            weight = p["norm"] if self.norms == "shared" else p[name]
        weight = torch.nn.functional.pad(weight, (0, self.d_model - weight.shape[-1]))
        return torch.stack([weight, torch.zeros_like(weight)], -2)

    def tables(self, p):
        embedding, pairs = self.embed(p), self.head_dim // 2
        h = normalise(embedding, self.norm(p, "norm1")[..., None, :, :], self.kind)[..., : self.read]
        q = self.queries(p, h)
        if self.values == "joined":
            v = torch.nn.functional.pad(h, (0, self.head_dim - self.read))
        else:
            v = q if self.values == "query" else h @ p["value"]
        if self.keys == "free":
            k = h @ p["key"]
        else:
            angle = p["angle"]
            if self.keys == "turn":
                angle = torch.nn.functional.pad(angle, (0, pairs - 1))
            k = turn(q, angle[..., None, :].expand(*angle.shape[:-1], 1, pairs))
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
        if self.values == "joined":
            out = torch.nn.functional.pad(p["joined"], (0, 0, 0, self.head_dim - self.read))
        else:
            out = p["out"] if self.out == "free" else p["query" if self.values == "query" else "value"].mT
        gate = up[..., :0] if not self.gated else p["gate"] if self.gate == "free" else p["gain"][..., None] * up
        down = p["down"] if self.down == "free" else turn(up, p["turn"][..., None, :]).mT
        return Tables(x, q[..., first:, :, :], k, v, out, norm=self.norm(p, "norm2"), up=up, gate=gate, down=down,
                      final=self.norm(p, "final"), head=embedding)  # fmt: skip

    def queries(self, p, h):
        if self.query == "free":
            return h @ p["query"]
        if self.query == "zeros":  # each pair reads (a x + b y, c y)
            a, b, c = p["query"].unbind(-2)
            return h @ torch.cat([torch.stack([a, b], -2), torch.stack([torch.zeros_like(c), c], -2)], -1)
        mix = p["mix"][..., None] if self.query == "constant" else torch.full_like(h[..., :1, :1], math.pi / 4)
        fixed = torch.cat([mix.cos(), mix.sin(), torch.zeros_like(mix), torch.zeros_like(mix)], -1)
        return fixed.expand(*h.shape[:-1], 4)


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
