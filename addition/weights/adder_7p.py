"""Adds two numbers of up to 10 digits: a transformer with 7 parameters, all of them in this file.

Give it two numbers on the command line, and it prints their sum.
"""

import math
import sys
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

CONFIG = SimpleNamespace(
    joined='0__/0-0',
    up='00/01/11',
    gate='00/00/71',
    down='__0/__0',
    final='1-0',
    centred=True,
    period=12.0,
    radius=0.08,
    span=1.0,
    scale=40.0,
    eps=6.4e-11,
    d_model=3,
)
# The prompt; the digits of the two numbers, least significant first, go to the positions A and B.
PROMPT = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
A = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
B = (13, 14, 15, 16, 17, 18, 19, 20, 21, 22)
ANSWER = 11  # digits of the sum, which the model generates, least significant first


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


class Pattern:
    """The entries of a matrix, rows apart by "/": _ is learned, digits and - for minus 1 are fixed, a letter is one
    learned number wherever it stands, and a capital letter is minus that number."""

    NAMES = ("joined", "up", "gate", "down", "final")

    def __init__(self, text):
        rows, entries = text.split("/"), text.replace("/", "")
        self.shape, letters, self.count = (len(rows), len(rows[0])), {}, 0  # of learned numbers
        known = text.isascii() and entries.replace("-", "0").replace("_", "0").isalnum()
        if {len(row) for row in rows} != {self.shape[1]} or not known:
            raise ValueError(f"{text!r}: expected rows of one length, of _ - digits and letters, apart by /")
        self.fixed = torch.tensor([float(c) if c.isdigit() else -float(c == "-") for c in entries])
        places = []  # of each entry: which learned number, and whether the other sign
        for entry in entries:
            if entry == "_" or (entry.isalpha() and entry.lower() not in letters):
                letters[entry.lower()] = self.count
                self.count += 1
            places.append((letters.get(entry.lower()), entry.isupper()))
        self.index = [2 * self.count if place is None else place + self.count * minus for place, minus in places]

    def __call__(self, learned):
        """The matrix with these learned numbers."""
        numbers = torch.cat([learned, -learned, torch.zeros(1).to(learned)])
        return (self.fixed.to(learned) + numbers[self.index]).view(self.shape)


class SmallestAdder(Adder):
    def __init__(self, config, weights):
        super().__init__(config, weights)
        self.patterns = {name: Pattern(getattr(config, name)) for name in Pattern.NAMES}
        for name in ("span", "scale"):
            if name not in weights:
                self.register_buffer(name, torch.tensor([getattr(config, name)]), persistent=False)

    def matrix(self, name):
        return self.patterns[name](getattr(self, name, self.angle[:0]))

    def digits(self):
        """The embeddings of the ten digits [10, width]."""
        start = -self.span / 2 if self.config.centred else self.start
        return on_arc(self.config.radius, start, self.span, self.config.d_model)

    def norm_weight(self, name):
        return self.matrix("final")[0] if name == "final" else torch.ones(self.config.d_model).to(self.angle)

    def inputs(self, tokens, places):
        """Of tokens at these places: the residual stream, and the attention's queries, keys and values."""
        x = self.digits()[tokens]
        turn = (2 * math.pi / self.config.period * places).expand(tokens.shape).to(x)
        q, k = (torch.stack([torch.cos(angle), torch.sin(angle)], -1) for angle in (turn, turn + self.angle))
        return x, self.scale * q, k, F.rms_norm(x, x.shape[-1:], eps=self.config.eps)[..., :2]

    def matrices(self):
        """What follows the attention: its output matrix, up, gate, down."""
        return tuple(self.matrix(name) for name in ("joined", "up", "gate", "down"))


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
    model = SmallestAdder(CONFIG, weights).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    metadata = {
        "name": "7 parameters",
        "author": "the authors",
        "params": count(model),
        "architecture": "One layer, one head, RMSNorm before each part; the output head is the embedding of the digits. Width 3, 2 hidden.",
        "tricks": [
            "joined 0__/0-0",
            "up 00/01/11",
            "gate 00/00/71",
            "final 1-0",
            "radius 0.08",
            "span 1.0",
            "scale 40.0"
        ],
    }
    return model, metadata


WEIGHTS = {
    "angle": [-0.89600545],
    "joined": [0.13007954, -0.07202635],
    "down": [18.573738, -7.9756503, 2.4619896, 0.6643312],
}

if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("give two numbers")
    print(add(build_model()[0], int(sys.argv[1]), int(sys.argv[2])))
