"""Adds two numbers of up to 10 digits: a transformer with 79 parameters, all of them in this file.

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
        v = h @ self.value
        k = h @ self.key
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
        "name": "adder 79p",
        "author": "this repository",
        "params": count(model),
        "architecture": "One layer, 3 wide, one head of 4, 2 hidden (SwiGLU), pre-RMSNorm, rotary positions",
        "tricks": [
            "output head tied to the token embedding",
            "all numbers least significant digit first",
            "RoPE, theta 3",
            "digits on a circular arc: radius, start, span"
        ],
    }
    return model, metadata


WEIGHTS = {
    "arc": [35.13206, 0.6427111, 1.6047536],
    "query": [
        [-0.039918616, 2.6725388, 2.3060963, 0.31612694],
        [-0.024026567, 5.645781, 4.7893143, 0.63614655],
        [0.49738073, -0.66526484, 0.28298128, -0.6266499],
    ],
    "key": [
        [1.0764902, 2.5675814, -1.8449049, 0.17296311],
        [2.3580613, 5.756641, -4.1063614, 0.35429958],
        [0.66346055, -0.26336014, 0.10121518, -0.34944794],
    ],
    "value": [
        [3.6387675, -5.574065, -4.5552697, -4.4221945],
        [-2.3504443, -0.1581986, 0.88979065, -1.7968037],
        [0.86769605, 0.51650053, 0.32788005, 0.6954677],
    ],
    "out": [
        [-5.5361576, 1.772108, 3.5128405],
        [5.5888495, 1.5030104, 4.230601],
        [7.6460004, -0.8796612, -0.17732464],
        [2.7912319, 3.0111835, 4.0480947],
    ],
    "scale": [14.851241],
    "up": [
        [0.16605671, 3.7512007],
        [-1.4981257, 5.2349877],
        [-6.766523, -4.663352],
    ],
    "down": [
        [2.893516, 5.874592, 3.4491918],
        [-4.3913817, 4.439918, 1.6996033],
    ],
    "gate": [
        [-0.97565335, 1.4417223],
        [-0.5805227, -1.2433007],
        [-0.09838993, 0.3135216],
    ],
    "norm1": [4.1893806, 5.312759, 1.0],
    "norm2": [2.007199, 1.4794025, 2.8948994],
    "final": [-9.966872, 11.149143, 1.0],
}

# Never trained, so not parameters.
FROZEN = {}

if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("give two numbers")
    print(add(build_model()[0], int(sys.argv[1]), int(sys.argv[2])))
