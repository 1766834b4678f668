"""A smaller architecture, below 100 parameters: each trick is a flag.

python -m addition.fast.sweep tiny --seeds 0-39 --embedding arc            79 parameters, forty starts at once
python -m addition.tiny --seed 3 --embedding arc --keys rotation      one of them in plain PyTorch

One layer, one head, width 3. All numbers are written least significant digit first with zeros between them. Positions
are fixed rotations of queries and keys (RoPE), which have no parameters; the two digits that belong to a digit of the
sum are at the same two distances everywhere.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro

from addition import reliable, train
from addition.train import DIGITS, Layout, ModelConfig

# All numbers least significant digit first, zeros as separators, no other token.
REVERSED = Layout((0,) * 35, a=tuple(range(1, 11)), b=tuple(range(13, 23)), sum=tuple(range(24, 35)), vocabulary=10)


@dataclass(frozen=True)
class TinyConfig:
    d_model: int = 3
    head_dim: int = 4  # even: RoPE turns pairs
    d_ff: int = 2
    # arc: digits on a circular arc, given by radius, start and span; unit: the radius is 1
    embedding: Literal["free", "arc", "unit"] = "free"
    query: Literal["free", "zeros"] = "free"  # zeros: each pair turned so that one entry is 0
    # rotation: the queries, each pair turned by a learned angle; turn: only the first pair
    keys: Literal["free", "rotation", "turn"] = "free"
    # query: the queries without rotation; joined: values and output are one matrix
    values: Literal["free", "query", "joined"] = "free"
    out: Literal["free", "transpose"] = "free"  # transpose: of the queries' matrix
    # weights of the three RMSNorms; final: only the last one has some; none: no weights
    norms: Literal["separate", "shared", "final", "none"] = "separate"

    def __post_init__(self):
        for wrong, problem in (
            (min(self.d_model, self.d_ff) < 1, "d_model and d_ff must be at least 1"),
            (self.head_dim < 2 or self.head_dim % 2, "head_dim must be even: RoPE turns pairs"),
            (self.embedding != "free" and self.d_model < 2, "embedding arc needs d_model 2: an arc lies in a plane"),
            (self.query == "zeros" and self.read != 2, "query zeros needs embedding unit"),
            (self.values == "query" and self.query != "free", "values query needs query free"),
            (self.out == "transpose" and self.values != "query", "out transpose needs values query"),
            (self.values == "joined" and self.read > self.head_dim, f"values joined needs head_dim {self.read}"),
        ):
            if wrong:
                raise ValueError(problem)

    layout = REVERSED
    from_dict = classmethod(ModelConfig.from_dict.__func__)
    eps = property(lambda self: 1e-8 if self.embedding == "unit" else 1e-6)
    # How many coordinates of an embedding are read and compared with; the others of an arc are 0.
    read = property(lambda self: 2 if self.embedding == "unit" else self.d_model)

    def shapes(self):
        """Every trained parameter, by name."""
        d, r, h, f = self.d_model, self.read, self.head_dim, self.d_ff
        norms = {"separate": ("norm1", "norm2", "final"), "shared": ("norm",), "final": ("final",), "none": ()}
        return (
            {"free": {"embedding": (10, d)}, "arc": {"arc": (3,)}, "unit": {"arc": (2,)}}[self.embedding]
            | {"query": (r, h) if self.query == "free" else (3, h // 2)}
            | {"free": {"key": (r, h)}, "rotation": {"angle": (h // 2,)}, "turn": {"angle": (1,)}}[self.keys]
            | {"free": {"value": (r, h)}, "query": {}, "joined": {"joined": (r, d)}}[self.values]
            | ({"out": (h, d)} if self.values != "joined" and self.out == "free" else {})
            | {"scale": (1,), "up": (d, f), "down": (f, d), "gate": (d, f)}
            | {name: (r,) if name == "final" else (d,) for name in norms[self.norms]}
        )


def turn(x, angle):
    """Turn each pair (i, i + pairs) of x [..., head] by its own angle [..., pairs]."""
    first, second = x.chunk(2, -1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def on_arc(radius, start, span, width):
    """The ten digits on an arc in the plane of the first two coordinates [10, width]."""
    angle = start + span * torch.linspace(0, 1, 10).to(span)
    return F.pad(radius * torch.stack([torch.cos(angle), torch.sin(angle)], -1), (0, width - 2))


class Adder(nn.Module):
    """One layer, one head, RMSNorm before each part; the output head is the embedding of the digits."""

    def __init__(self, config, weights):
        super().__init__()
        self.config = config
        for name, value in weights.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, tokens, sharpness=1, first=0):
        """Logits [batch, length - first, 10] of tokens [batch, length], of what follows from position `first` on;
        `sharpness` is a factor of attention scores."""
        width, (out, up, gate, down) = (self.config.d_model,), self.matrices()
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x, q, k, v = self.inputs(tokens, places)
        seen = places <= places[first:, None]
        attended = F.scaled_dot_product_attention(sharpness * q[:, first:], k, v, attn_mask=seen, scale=1)
        x = x[:, first:] + attended @ out
        h = F.rms_norm(x, width, self.norm_weight("norm2"), self.config.eps)
        x = x + (F.silu(h @ gate) * (h @ up)) @ down
        return F.rms_norm(x, width, self.norm_weight("final"), self.config.eps) @ self.digits().T


class TinyAdder(Adder):
    def digits(self):
        """The embeddings of the ten digits [10, width]."""
        if self.config.embedding == "free":
            return self.embedding
        *radius, start, span = self.arc
        return on_arc(radius[0] if radius else 1.0, start, span, self.config.d_model)

    def norm_weight(self, name):
        """The weights of an RMSNorm [width]: its own, those of all, or ones."""
        width = self.config.d_model
        weight = getattr(self, name, getattr(self, "norm", torch.ones(width).to(self.up)))
        return F.pad(weight, (0, width - weight.shape[0]))

    def query_matrix(self):
        """What makes queries [read, head]."""
        if self.config.query == "free":
            return self.query
        a, b, c = self.query  # each pair reads (a x + b y, c y)
        return torch.stack([torch.cat([a, torch.zeros_like(a)]), torch.cat([b, c])])

    def inputs(self, tokens, places):
        """Of tokens at these places: the residual stream, and the attention's queries, keys and values."""
        c, pairs = self.config, self.config.head_dim // 2
        x = self.digits()[tokens]
        h = F.rms_norm(x, (c.d_model,), self.norm_weight("norm1"), c.eps)[..., : c.read]
        q = h @ self.query_matrix()
        k = h @ self.key if c.keys == "free" else turn(q, F.pad(self.angle, (0, pairs - self.angle.shape[0])))
        v = F.pad(h, (0, c.head_dim - c.read)) if c.values == "joined" else q if c.values == "query" else h @ self.value
        q, k = (part * torch.rsqrt(part.square().sum(-1, keepdim=True) + 1e-6) for part in (q, k))  # of length 1
        angles = places[..., None] * (3.0 ** (-torch.arange(pairs) / pairs)).to(x)  # RoPE's
        return x, turn(q * self.scale, angles), turn(k, angles), v

    def matrices(self):
        """What follows the attention: its output matrix, up, gate, down."""
        c = self.config
        out = self.joined if c.values == "joined" else self.out if c.out == "free" else self.query.T
        rows, columns = out.shape
        return F.pad(out, (0, c.d_model - columns, 0, c.head_dim - rows)), self.up, self.gate, self.down


@dataclass(frozen=True)
class Settings(reliable.Settings):
    model: tyro.conf.OmitArgPrefixes[TinyConfig] = field(default_factory=TinyConfig)
    train_steps: int = 15_000
    batch_size: int = 128
    lr: float = 0.05  # at the end of the warm-up
    init_std: float = 0.5  # of matrices
    weight_decay: float = 0.0  # on all parameters
    first_stage: int = 0  # steps of numbers made of zeros and nines: none, as the task is the same at every position
    rehearse: float = 0.0  # share of such numbers in the later batches
    soften: float = 0.2  # factor of the attention scores at first
    soften_until: int = 3_000  # step at which it has risen to 1
    budget: int = 0  # steps of all starts; 0: there is one
    full: int = 0  # from this step on all numbers have ten digits; 0: never


class Recipe(reliable.Recipe):
    """As reliable.py's, from other initial values."""

    architecture = TinyAdder
    # Means and deviations where they are not 0 and init_std. The arc begins as about a quarter circle, of the last two
    # numbers where the radius is 1; the scale of attention near 5.
    starts = dict.fromkeys(("norm", "norm1", "norm2", "final"), ([1.0], [0.0]))
    starts |= dict(arc=([10.0, 0.0, 1.5], [1.0, 0.3, 0.1]), scale=([5.0], [0.5]), angle=([0.0], [math.pi]))

    def model(self):
        torch.manual_seed(self.s.seed)
        weights = {}
        for name, shape in self.s.model.shapes().items():
            mean, deviation = torch.tensor(self.starts.get(name, ([0.0], [self.s.init_std])))[:, -shape[0] :]
            weights[name] = mean + deviation * torch.randn(shape)
        return self.architecture(self.s.model, weights)

    def counts(self, step):
        counts = super().counts(step)
        return counts if not self.s.full or step < self.s.full else np.full_like(counts, DIGITS)


if __name__ == "__main__":
    train.main(settings=Settings, recipe=Recipe, file=__file__)
