"""Writes a checkpoint as one self-contained Python file, an AdderBoard submission.

python -m addition.export results/runs/repro_456_s43/checkpoints/best.pt -o adder.py --author "Ada Lovelace"

The file needs only torch and has its weights as decimal numbers. It is not written unless it gives the same answers as
the checkpoint.
"""

import argparse
import inspect
import json
import textwrap
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
import torch

from addition import model
from addition.data import carry_pairs, encode
from addition.evaluate_checkpoints import load
from addition.fold import PROMPTS, difference, fold
from addition.tiny import TinyConfig, turn
from addition.verify import build, count, read
from plumbing import disk

SAME = 1e-6  # difference of two models' logits that is rounding, and the epsilon in the norms
CHECKED = 300  # pairs on which the file must give the checkpoint's answers


class Text(NamedTuple):
    """What differs between architectures."""

    architecture: str
    tricks: list[str]
    helpers: str  # functions that `forward` calls, each followed by two empty lines
    forward: str  # the body of Adder.forward(self, tokens), with the weights as attributes: "up.a" is self.up_a


def standard(config):
    d, eps = config.d_model, config.kind.eps
    ranks = {name: rank for name, (_, _, rank) in config.matrices().items() if rank}
    tied = config.tie_qkv == "shareA_tieKV"

    def matrix(name):
        if name not in ranks:
            return f"self.{name}_weight"
        return f"(self.{name}_a @ self.{name}_b{f' + self.{name}_companion' if config.companion else ''})"

    def norm(name):
        if config.use_rmsnorm:
            return f"F.rms_norm(x, ({d},), self.{name}_weight, {eps})"
        return f"F.layer_norm(x, ({d},), self.{name}_weight, self.{name}_bias, {eps})"

    qkv = f"q, k, v = (h @ {matrix('qkv')}).split({d}, -1)"
    if tied:
        qkv = "h = h @ self.qkv_a\nq = h @ self.qkv_q\nk = v = h @ self.qkv_kv"
    forward = f"""\
x = self.token_emb_weight[tokens] + {matrix("pos_emb")}[: tokens.shape[1]]
h = {norm("norm1")}
{qkv}
x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True) @ {matrix("attn_out")}
h = {norm("norm2")}
x = x + F.gelu(h @ {matrix("up")}) @ {matrix("down")}
return {norm("final")} @ self.token_emb_weight.T"""
    kind = "RMSNorm" if config.use_rmsnorm else "LayerNorm"
    tricks = ["output head tied to the token embedding", "sum least significant digit first"]
    if tied:
        tricks.append(f"queries, keys and values share a low-rank factor of rank {config.qkv_rank}, keys = values")
    if ranks:
        tricks.append("low rank: " + ", ".join(f"{name} {rank}" for name, rank in ranks.items()))
    if config.companion and ranks:
        tricks.append("a frozen random matrix, not counted, beside each low-rank one")
    architecture = f"One layer, {d} wide, one head, {config.d_ff} hidden (GELU), pre-{kind}, learned positions"
    return Text(architecture, tricks, "", forward)


def tiny(config):
    d, head, eps, pairs = config.d_model, config.head_dim, config.kind.eps, config.head_dim // 2

    def norm(name):
        weight = {"separate": f"self.{name}", "shared": "self.norm", "none": "None", "final": "None"}[config.norms]
        if config.norms == "final" and name == "final":
            weight = f"F.pad(self.final, (0, {d - config.read}))"
        return f"F.rms_norm(x, ({d},), {weight}, {eps})"

    arc = f"""\
start, span = self.arc
angle = start + span * torch.linspace(0, 1, 10)
digits = F.pad(torch.stack([angle.cos(), angle.sin()], -1), (0, {d - 2}))"""
    digits = {
        "free": "digits = self.embedding", "unit": arc + (f" * {config.radius}" if config.radius != 1 else ""),
        "arc": arc.replace("start,", "radius, start,").replace("angle.", "radius * angle."),
    }  # fmt: skip
    query = {
        "free": "q = h @ self.query", "zeros": f"""\
a, b, c = self.query
q = h @ torch.stack([torch.cat([a, torch.zeros({pairs})]), torch.cat([b, c])])""",
        "constant": "q = torch.cat([self.mix.cos(), self.mix.sin(), torch.zeros(2)]).expand(*tokens.shape, 4)",
        "even": "q = torch.tensor([1, 1, 0, 0]).expand(*tokens.shape, 4) / 2**0.5",
    }[config.query]  # fmt: skip
    keys = {"free": "h @ self.key", "rotation": "turn(q, self.angle)", "one": f"turn(q, self.angle.expand({pairs}))",
            "turn": f"turn(q, F.pad(self.angle, (0, {pairs - 1})))"}  # fmt: skip
    values = {"free": "self.value", "query": "self.query", "joined": ""}[config.values]
    read = {"query": "q", "free": "h @ self.value", "joined": "h"}[config.values]
    out = "self.joined" if config.values == "joined" else {"free": "self.out", "transpose": f"{values}.T"}[config.out]
    gate = {"free": "self.gate", "scaled": "(self.gain * self.up)"}[config.gate]
    down = {"free": "self.down", "turned": "turn(self.up, self.turn).T"}[config.down]
    unit = "q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))\n"
    lengths = {"none": "", "unit": unit, "scale": f"{unit}q = q * self.scale\n"}[config.qk_norm]
    sharpness = {"none": head**-0.5, "unit": head**0.5, "scale": 1.0}[config.qk_norm]
    forward = f"""\
{digits[config.embedding]}
x = digits[tokens]
h = {norm("norm1")}{f"[..., :{config.read}]" if config.read < d else ""}
{query}
v = {read}
k = {keys[config.keys]}
{lengths}speed = {config.theta} ** (-torch.arange({pairs}) / {pairs})
places = torch.arange(tokens.shape[1])[:, None] * speed
q, k = turn(q, places), turn(k, places)
x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True, scale={sharpness!r}) @ {out}
h = {norm("norm2")}
x = x + ({f"F.silu(h @ {gate}) * (h @ self.up)" if config.gated else "F.gelu(h @ self.up)"}) @ {down}
return {norm("final")} @ digits.T"""
    used = {
        "output head tied to the token embedding": True,
        "all numbers least significant digit first": True,
        f"RoPE, theta {config.theta:g}": True,
        "digits on a circular arc: radius, start, span": config.embedding == "arc",
        "digits on a circular arc: start, span": config.embedding == "unit",
        "queries with a zero for each pair": config.query == "zeros",
        "queries do not depend on the token": config.query in ("constant", "even"),
        "values and output matrix are one": config.values == "joined",
        "the gate is the up matrix times a number": config.gate == "scaled",
        "the down matrix is the up matrix, turned": config.down == "turned",
        "values = queries before their rotation": config.values == "query",
        "keys = queries, turned by an angle a pair": config.keys == "rotation",
        "keys = queries, turned by one angle": config.keys in ("turn", "one"),
        "output matrix = the values' transposed": config.out == "transpose",
        "norms share one weight": config.norms == "shared",
        "norms without weights": config.norms == "none",
        "a weight for the last norm only": config.norms == "final",
    }
    hidden = f"{config.d_ff} hidden ({'SwiGLU' if config.gated else 'GELU'})"
    architecture = f"One layer, {d} wide, one head of {head}, {hidden}, pre-RMSNorm, rotary positions"
    tricks = [text for text, is_used in used.items() if is_used]
    return Text(architecture, tricks, f"{inspect.getsource(turn)}\n\n", forward)


TEMPLATES = {"ModelConfig": standard, "TinyConfig": tiny}

FILE = Template('''\
"""Adds two numbers of up to $digits digits: a transformer with $params parameters, all of them in this file.

Give it two numbers on the command line, and it prints their sum.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

# The prompt; the digits of the two numbers, least significant first, go to the positions A and B.
PROMPT = $prompt
A = $a
B = $b
ANSWER = $answer  # digits of the sum, which the model generates, least significant first


${helpers}class Adder(nn.Module):
    """$architecture"""

    def __init__(self):
        super().__init__()
        for name, value in WEIGHTS.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float32)))
        for name, value in FROZEN.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

    def forward(self, tokens):
        """Logits [batch, length, vocabulary] of the token after each of the tokens [batch, length]."""
$forward


$count

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
        "name": $name,
        "author": $author,
        "params": count(model),
        "architecture": $quoted,
        "tricks": $tricks,
    }
    return model, metadata


WEIGHTS = $weights

# Never trained, so not parameters.
FROZEN = $frozen

if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("give two numbers")
    print(add(build_model()[0], int(sys.argv[1]), int(sys.argv[2])))
''')


def quote(value):
    return json.dumps(value, indent=4, ensure_ascii=False)


def numbers(value):
    """A tensor as nested lists; each number has the fewest digits that give the same float32."""
    if value.ndim > 1:
        return "[\n" + textwrap.indent("".join(f"{numbers(row)},\n" for row in value), "    ") + "]"
    row = "[" + ", ".join(str(number) for number in value.numpy().astype(np.float32)) + "]"
    return "\n".join(textwrap.wrap(row, 108, subsequent_indent=" "))


def dictionary(named):
    if not named:
        return "{}"
    lines = (f'"{name.replace(".", "_")}": {numbers(value)},\n' for name, value in named.items())
    return "{\n" + textwrap.indent("".join(lines), "    ") + "}"


def write(config, named, name, author):
    """The file's text."""
    text, layout, trained = TEMPLATES[type(config).__name__](config), config.layout, config.shapes()
    start = layout.sum[0]
    return FILE.substitute(
        digits=len(layout.a), params=model.count(config), prompt=layout.template[:start], a=layout.a, b=layout.b,
        answer=len(layout.sum), helpers=text.helpers, architecture=text.architecture,
        forward=textwrap.indent(text.forward, " " * 8), count=inspect.getsource(count),
        name=quote(name), author=quote(author), quoted=quote(text.architecture),
        tricks=quote(text.tricks).replace("\n", "\n" + " " * 8),
        weights=dictionary({name: named[name] for name in trained}),
        frozen=dictionary({name: value for name, value in named.items() if name not in trained}),
    )  # fmt: skip


def compare(path, config, named):
    """Exit with the first difference between the file at `path` and the checkpoint."""
    module = read(path)
    exported, metadata, params = build(path, module)
    claimed, expected = metadata["params"], model.count(config)
    if not params == claimed == expected:
        raise SystemExit(f"{path} has {params} parameters and claims {claimed}, but the checkpoint has {expected}")
    for name, value in named.items():
        if not torch.equal(getattr(exported, name.replace(".", "_")).detach(), value):
            raise SystemExit(f"{path}: the numbers of {name} are not the checkpoint's")
    pairs = carry_pairs(1, CHECKED)
    found = module.generate(exported, module.prompts(*pairs.T.tolist()), module.ANSWER)[:, len(module.PROMPT) :]
    tables = config.tables({name: value[None] for name, value in named.items()})
    rows = torch.from_numpy(encode(pairs, config.layout))[None]
    differ = (found != model.decode(tables, rows, config.layout, config.kind)[0]).any(1).nonzero()
    if len(differ):
        a, b = pairs[int(differ[0])].tolist()
        raise SystemExit(
            f"{path} and the checkpoint answer {len(differ)} of {CHECKED} sums differently, {a} + {b} for one; "
            "correct the template in addition/export.py"
        )


def folded(checkpoint, config, named):
    """The model without what its function does not need, and the proof that it is the same function."""
    if not isinstance(config, TinyConfig):
        raise SystemExit(f"{checkpoint} is no model of addition.tiny, which --fold is written for")
    try:
        smaller, weights, done = fold(config, named)
    except ValueError as error:
        raise SystemExit(f"{checkpoint}: {error}") from None
    differs = difference((config, named), (smaller, weights))
    for text, left in done:
        print(f"{left:4d} parameters without {text}")
    print(f"the same logits but for {differs:.1g} of their range, on {PROMPTS:,} prompts with their answers")
    if not differs < SAME:
        raise SystemExit(f"{checkpoint}: the folded model differs; correct addition/fold.py")
    return smaller, {key: value.float() for key, value in weights.items()}


def export(checkpoint, output, name="", author="", smaller=False):
    config, named = load(checkpoint)
    for key, value in named.items():
        if not value.isfinite().all():
            raise SystemExit(f"{checkpoint}: {key} is not finite; export an earlier checkpoint")
    if smaller:
        config, named = folded(checkpoint, config, named)
    text = write(config, named, name or f"{model.count(config)} parameters", author)

    def write_and_compare(file):
        file.write(text.encode())
        file.flush()
        compare(file.name, config, named)

    with disk.writing(Path(output).parent, Path(output).name):
        disk.replace(output, write_and_compare)
    return config


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.py")
    parser.add_argument("--name", default="", help="in the metadata; else the number of parameters")
    parser.add_argument("--author", default="")
    parser.add_argument("--fold", action="store_true", help="a tiny model with fewer parameters and the same function")
    options = parser.parse_args(argv)
    config = export(options.checkpoint, options.output, options.name, options.author, options.fold)
    print(f"{options.output}: {model.count(config)} parameters; answers as {options.checkpoint} on {CHECKED} pairs")


if __name__ == "__main__":
    main()
