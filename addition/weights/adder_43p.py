"""Adds two numbers of up to 10 digits: a transformer with 43 parameters, all of them in this file.

Give it two numbers on the command line, and it prints their sum.
"""

import math
import sys
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

CONFIG = SimpleNamespace(
    d_model=3,
    head_dim=4,
    d_ff=2,
    theta=3.0,
    gated=True,
    embedding='unit',
    radius=1.0,
    query='zeros',
    keys='free',
    values='joined',
    out='free',
    norms='final',
    qk_norm='scale',
    eps=1e-08,
    read=2,
)
# The prompt; the digits of the two numbers, least significant first, go to the positions A and B.
PROMPT = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
A = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
B = (13, 14, 15, 16, 17, 18, 19, 20, 21, 22)
ANSWER = 11  # digits of the sum, which the model generates, least significant first


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

    def forward(self, tokens, sharpness=1):
        """Logits [batch, length, 10] of tokens [batch, length]; `sharpness` is a factor of attention scores."""
        width, (out, up, gate, down) = (self.config.d_model,), self.matrices()
        x, q, k, v = self.inputs(tokens, torch.arange(tokens.shape[1], device=tokens.device))
        x = x + F.scaled_dot_product_attention(sharpness * q, k, v, is_causal=True, scale=1) @ out
        h = F.rms_norm(x, width, self.norm_weight("norm2"), self.config.eps)
        x = x + (F.gelu(h @ up) if gate is None else F.silu(h @ gate) * (h @ up)) @ down
        return F.rms_norm(x, width, self.norm_weight("final"), self.config.eps) @ self.digits().T


class TinyAdder(Adder):
    def digits(self):
        """The embeddings of the ten digits [10, width]."""
        if self.config.embedding == "free":
            return self.embedding
        *radius, start, span = self.arc
        return on_arc(radius[0] if radius else self.config.radius, start, span, self.config.d_model)

    def norm_weight(self, name):
        """The weights of an RMSNorm [width]."""
        width, norms = self.config.d_model, self.config.norms
        if norms == "none" or (norms == "final" and name != "final"):
            return torch.ones(width).to(self.up)
        weight = getattr(self, "norm" if norms == "shared" else name)
        return F.pad(weight, (0, width - weight.shape[0]))

    def queries(self, h):
        if self.config.query == "free":
            return h @ self.query
        a, b, c = self.query  # each pair reads (a x + b y, c y)
        return h @ torch.cat([torch.stack([a, b]), torch.stack([torch.zeros_like(c), c])], -1)

    def inputs(self, tokens, places):
        """Of tokens at these places: the residual stream, and the attention's queries, keys and values."""
        c, pairs = self.config, self.config.head_dim // 2
        x = self.digits()[tokens]
        h = F.rms_norm(x, (c.d_model,), self.norm_weight("norm1"), self.config.eps)[..., : c.read]
        q = self.queries(h)
        v = F.pad(h, (0, c.head_dim - c.read)) if c.values == "joined" else q if c.values == "query" else h @ self.value
        if c.keys == "free":
            k = h @ self.key
        else:
            k = turn(q, F.pad(self.angle, (0, pairs - 1)) if c.keys == "turn" else self.angle)
        if c.qk_norm == "none":
            q = q / math.sqrt(c.head_dim)
        else:
            q, k = (part * torch.rsqrt(part.square().sum(-1, keepdim=True) + 1e-6) for part in (q, k))
            q = q * (self.scale if c.qk_norm == "scale" else math.sqrt(c.head_dim))
        speed = (c.theta ** (-torch.arange(pairs) / pairs)).to(x)
        angles = places[..., None] * speed
        return x, turn(q, angles), turn(k, angles), v

    def matrices(self):
        """What follows the attention: its output matrix, up, gate, down."""
        c = self.config
        if c.values == "joined":
            out = F.pad(self.joined, (0, 0, 0, c.head_dim - c.read))
        else:
            out = self.out if c.out == "free" else (self.query if c.values == "query" else self.value).T
        return out, self.up, self.gate if c.gated else None, self.down


def count(model):
    """The number of parameters; tied ones share their storage and count once."""
    found = {(p.untyped_storage().data_ptr(), p.storage_offset(), p.numel()) for p in model.parameters()}
    return sum(size for _, _, size in found)


@torch.no_grad()
def generate(model, tokens, count):
    """Greedy decoding: append the most likely next token, `count` times."""
    for _ in range(count):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens


def prompts(a, b):
    rows = torch.tensor(PROMPT).repeat(len(a), 1)
    for places, numbers in ((A, a), (B, b)):
        for number in numbers:
            if not 0 <= number < 10 ** len(places):
                raise ValueError(f"{number} is not a number from 0 to {10 ** len(places) - 1}")
        for i, place in enumerate(places):
            rows[:, place] = torch.tensor([number // 10**i % 10 for number in numbers])
    return rows


def add_batch(model, a, b):
    """The sums of many pairs; -1 where an answer of the model has a token that is not a digit."""
    answers = generate(model, prompts(a, b), ANSWER)[:, len(PROMPT) :].tolist()
    return [sum(d * 10**i for i, d in enumerate(answer)) if max(answer) < 10 else -1 for answer in answers]


def add(model, a, b):
    return add_batch(model, [a], [b])[0]


def build_model():
    weights = {name: torch.tensor(value) for name, value in WEIGHTS.items()}
    model = TinyAdder(CONFIG, weights).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    metadata = {
        "name": "43 parameters",
        "author": "the authors",
        "params": count(model),
        "architecture": "One layer, one head, RMSNorm before each part; the output head is the embedding of the digits. Width 3, 2 hidden.",
        "tricks": [
            "embedding unit",
            "radius 1.0",
            "query zeros",
            "values joined",
            "norms final"
        ],
    }
    return model, metadata


WEIGHTS = {
    "arc": [0.6427111, 1.6047536],
    "query": [
        [9.662562, 11.274339],
        [25.442871, 30.184017],
        [-0.31275058, -0.16712552],
    ],
    "key": [
        [-7.805905, 10.767222, -4.375382, -0.54396385],
        [-22.029665, 30.593016, -12.148354, -1.7233291],
    ],
    "joined": [
        [-11.742262, -1.3401575, -3.3261392],
        [2.104462, -1.6023895, -2.473611],
    ],
    "scale": [14.851241],
    "up": [
        [0.33330888, 7.5294065],
        [-2.216331, 7.744654],
        [-19.588404, -13.499935],
    ],
    "down": [
        [0.082361124, 0.16721456, 0.098177895],
        [-0.124996416, 0.12637796, 0.04837756],
    ],
    "gate": [
        [-1.9583305, 2.8938236],
        [-0.85882676, -1.8393422],
        [-0.28482896, 0.90761346],
    ],
    "final": [-350.15677, 391.69238],
}

if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("give two numbers")
    print(add(build_model()[0], int(sys.argv[1]), int(sys.argv[2])))
