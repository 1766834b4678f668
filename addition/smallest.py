"""The smallest adders, below 36 parameters: attention by distance, and matrices of which few entries are learned.

python -m addition.fast.sweep smallest --seeds 0-63                                           24 parameters
python -m addition.fast.sweep smallest --seeds 0-63 --gate "00/00/__"                         20
python -m addition.smallest --seed 3                                                          one, in plain PyTorch

What differs from tiny.py:

Queries and keys are the same for every token. Between two places the attention score is scale * cos(turn - angle),
where RoPE's turn is 2 pi / 12 a place: the two digits that belong to a digit of the sum are 12 places apart, so one
peak finds both. Scale and angle are learned.

Digits lie on an arc around the first axis of a plane; its span is learned. Values and output are one matrix.

The other entries are learned where a pattern has a blank: see Pattern. The default leaves out what changes no answer:
a hidden unit can be scaled, so the first row of `up` is 1; what is added to the third coordinate after the last layer
cannot change which digit is nearest; the last norm has one weight, with another sign for each coordinate: digits are
answered on the mirrored arc.
"""

import math
import re
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
import tyro

from addition import tiny, train
from addition.tiny import Adder, on_arc
from addition.train import ModelConfig


class Pattern:
    """The entries of a matrix, rows apart by "/": _ is learned, digits and - for minus 1 are fixed, a letter is one
    learned number wherever it stands, and a capital letter is minus that number."""

    NAMES = ("joined", "up", "gate", "down", "final")

    def __init__(self, text):
        rows, entries = text.split("/"), text.replace("/", "")
        self.fixed = torch.tensor([[float(c) if c.isdigit() else -float(c == "-") for c in row] for row in rows])
        names = [place if entry == "_" else entry.lower() for place, entry in enumerate(entries)]
        signs = [(entry == "_" or entry.islower()) - entry.isupper() for entry in entries]  # 0: it is fixed
        learned = dict.fromkeys(name for name, sign in zip(names, signs) if sign)
        self.signs = [[sign * (name == one) for name, sign in zip(names, signs)] for one in learned]

    def added(self):
        """What one of each learned number adds to the fixed entries [learned, rows, columns]."""
        return torch.tensor(self.signs).view(-1, *self.fixed.shape).to(self.fixed)

    def __call__(self, learned):
        """The matrix with these learned numbers."""
        return self.fixed.to(learned) + torch.tensordot(learned, self.added().to(learned), 1)


@dataclass(frozen=True)
class SmallestConfig:
    joined: str = "___/___"  # values and output: the plane -> width
    up: str = "11/__/__"  # width -> hidden
    gate: str = "__/__/__"  # width -> hidden, of SwiGLU
    down: str = "__0/__0"  # hidden -> width
    final: str = "aA0"  # weights of the last norm
    centred: bool = True  # the arc around the first axis; else its start is learned
    period: float = 12.0  # places in which RoPE turns once
    radius: float = 10.0  # of the arc
    span: float = 0.0  # of the arc in radians; 0: learned
    scale: float = 0.0  # of the attention scores; 0: learned

    def __post_init__(self):
        w, h = self.d_model, self.d_ff
        sizes = dict(joined=(2, w), up=(w, h), gate=(w, h), down=(h, w), final=(1, w))
        for name, (rows, columns) in sizes.items():
            text = getattr(self, name)
            if not re.fullmatch("/".join([rf"[\w-]{{{columns}}}"] * rows), text, re.ASCII):
                form = f"{rows} rows of {columns} entries, of _ - digits and letters, apart by /"
                raise ValueError(f"{name} {text!r}: expected {form}")
        numbers = dict(period=self.period, radius=self.radius, span=self.span or 1.0, scale=self.scale or 1.0)
        for name, value in numbers.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0")

    layout = tiny.REVERSED
    from_dict = classmethod(ModelConfig.from_dict.__func__)
    d_model = property(lambda self: 1 + self.up.count("/"))
    d_ff = property(lambda self: len(self.up.partition("/")[0]))
    eps = property(lambda self: 1e-8 * self.radius**2)

    def shapes(self):
        """Every trained parameter, by name."""
        sizes = {"span": not self.span, "start": not self.centred, "scale": not self.scale, "angle": 1}
        sizes |= {name: len(Pattern(getattr(self, name)).signs) for name in Pattern.NAMES}
        return {name: (int(size),) for name, size in sizes.items() if size}


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


@dataclass(frozen=True)
class Settings(tiny.Settings):
    model: tyro.conf.OmitArgPrefixes[SmallestConfig] = field(default_factory=SmallestConfig)
    train_steps: int = 6_000
    lr: float = 0.1  # at the end of the warm-up
    beta2: float = 0.99
    carry: float = 0.2  # share of the batch that has long carries
    full: int = 3_000  # from this step on all numbers have ten digits; 0: never


class Recipe(tiny.Recipe):
    architecture = SmallestAdder
    starts = tiny.Recipe.starts | dict(span=([1.5], [0.1]), start=([0.0], [3.0]))


if __name__ == "__main__":
    train.main(settings=Settings, recipe=Recipe, file=__file__)
