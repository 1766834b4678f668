"""Adds two numbers of up to 10 digits: a transformer with 57 parameters, all of them in this file.

Give it two numbers on the command line, and it prints their sum.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

# The prompt; the digits of the two numbers, least significant first, go to the positions A and B.
PROMPT = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
A = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
B = (13, 14, 15, 16, 17, 18, 19, 20, 21, 22)
ANSWER = 11  # digits of the sum, which the model generates, least significant first


def turn(x, angle):
    """Turn each pair (i, i + pairs) of x [..., head] by its own angle [..., pairs]."""
    first, second = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class Adder(nn.Module):
    """One layer, 3 wide, one head of 4, 2 hidden (SwiGLU), pre-RMSNorm, rotary positions"""

    def __init__(self):
        super().__init__()
        for name, value in WEIGHTS.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float32)))
        for name, value in FROZEN.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

    def forward(self, tokens):
        """Logits [batch, length, vocabulary] of the token after each of the tokens [batch, length]."""
        radius, start, span = self.arc
        angle = start + span * torch.linspace(0, 1, 10)
        digits = F.pad(torch.stack([radius * angle.cos(), radius * angle.sin()], -1), (0, 1))
        x = digits[tokens]
        h = F.rms_norm(x, (3,), self.norm1, 1e-06)
        q = h @ self.query
        v = q
        k = turn(q, self.angle)
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        q = q * self.scale
        speed = 3.0 ** (-torch.arange(2) / 2)
        places = torch.arange(tokens.shape[1])[:, None] * speed
        q, k = turn(q, places), turn(k, places)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0) @ self.out
        h = F.rms_norm(x, (3,), self.norm2, 1e-06)
        x = x + (F.silu(h @ self.gate) * (h @ self.up)) @ self.down
        return F.rms_norm(x, (3,), self.final, 1e-06) @ digits.T


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
    model = Adder().eval()
    metadata = {
        "name": "adder 57p",
        "author": "this repository",
        "params": count(model),
        "architecture": "One layer, 3 wide, one head of 4, 2 hidden (SwiGLU), pre-RMSNorm, rotary positions",
        "tricks": [
            "output head tied to the token embedding",
            "all numbers least significant digit first",
            "RoPE, theta 3",
            "digits on a circular arc: radius, start, span",
            "values = queries before their rotation",
            "keys = queries, turned by an angle a pair"
        ],
    }
    return model, metadata


WEIGHTS = {
    "arc": [58.331673, 0.84929734, 1.12651],
    "query": [
        [10.272448, -13.053296, -2.1693327, 1.7463119],
        [19.65282, -23.502731, 0.886455, -0.18091848],
        [-0.37825483, 0.30118933, -0.53609514, 0.15734135],
    ],
    "angle": [9.89647, -0.07747465],
    "out": [
        [-0.37380862, -0.2805147, 0.46580392],
        [0.7960254, -0.2789933, -0.8453219],
        [34.591312, 3.6184518, -28.873602],
        [-26.372616, 3.4672549, 19.593836],
    ],
    "scale": [13.17996],
    "up": [
        [2.5008235, -5.300565],
        [10.683215, -0.4150691],
        [4.7248874, 0.88744694],
    ],
    "down": [
        [-3.6123664, 7.65319, -1.5822918],
        [2.3806808, 3.4506626, -5.1601324],
    ],
    "gate": [
        [2.080013, -0.62582964],
        [0.1585798, 2.535197],
        [-1.4493092, 2.3506122],
    ],
    "norm1": [3.505069, 9.712043, 1.0],
    "norm2": [1.704795, 1.8654313, 1.0358328],
    "final": [-14.85565, 13.699417, 1.0],
}

# Never trained, so not parameters.
FROZEN = {}

if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("give two numbers")
    print(add(build_model()[0], int(sys.argv[1]), int(sys.argv[2])))
