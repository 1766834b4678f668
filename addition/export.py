"""Writes a checkpoint as one self-contained Python file, an AdderBoard submission.

python -m addition.export results/runs/repro_456_s43/checkpoints/best.pt -o adder.py --author "Ada Lovelace"
python -m addition.export results/runs/mine/checkpoints/seed3.pt -o adder.py --fold    the same sums, fewer parameters

The file needs only torch: it holds the model's own source, and its weights as decimal numbers. It is not written
unless it gives the same answers as the checkpoint.
"""

import argparse
import inspect
import json
import re
import textwrap
from dataclasses import fields
from pathlib import Path
from string import Template

import numpy as np
import torch

from addition import smallest, tiny, train
from addition.evaluate_checkpoints import load
from addition.fold import PROMPTS, SAME, difference, fold
from addition.train import carry_pairs, encode_pairs
from addition.verify import build, count, read
from plumbing import disk

LICENSE = Path(__file__).parents[1] / "LICENSE"
CHECKED = 300  # pairs on which the file must give the checkpoint's answers
SOURCES = {  # of each model, and how it is built
    train.TinyDecoderLM: ([train.Matrix, train.SharedQKV], "TinyDecoderLM(CONFIG, 1)"),
    tiny.TinyAdder: ([tiny.turn, tiny.on_arc, tiny.Adder], "TinyAdder(CONFIG, weights)"),
    smallest.SmallestAdder: ([tiny.on_arc, tiny.Adder, smallest.Pattern], "SmallestAdder(CONFIG, weights)"),
}

FILE = Template('''\
"""Adds two numbers of up to $digits digits: a transformer with $params parameters, all of them in this file.

Give it two numbers on the command line, and it prints their sum.
"""

import math
import sys
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

CONFIG = SimpleNamespace(
$config
)
# The prompt; the digits of the two numbers, least significant first, go to the positions A and B.
PROMPT = $prompt
A = $a
B = $b
ANSWER = $answer  # digits of the sum, which the model generates, least significant first


$sources


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
    weights = {name: torch.tensor(value) for name, value in WEIGHTS.items()}
    model = $build.eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    metadata = {
        "name": $name,
        "author": $author,
        "params": count(model),
        "architecture": $architecture,
        "tricks": $tricks,
    }
    return model, metadata


WEIGHTS = $weights

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


def write(model, name, author):
    """The file's text."""
    config, layout, start = model.config, model.config.layout, model.config.layout.sum[0]
    parts, build = SOURCES[type(model)]
    sources = "\n\n".join(map(inspect.getsource, [*parts, type(model)])).rstrip()
    chosen = {f.name: getattr(config, f.name) for f in fields(config)}
    derived = {key: getattr(config, key) for key in ("eps", "read", "d_model") if hasattr(config, key)}
    weights = "".join(f'"{key}": {numbers(value.detach())},\n' for key, value in model.named_parameters())
    return FILE.substitute(
        digits=len(layout.a), params=train.count(model), prompt=layout.template[:start], a=layout.a, b=layout.b,
        answer=len(layout.sum), sources=sources, build=build,
        config="\n".join(f"    {key}={value!r}," for key, value in (chosen | derived).items()),
        count=inspect.getsource(count), name=quote(name), author=quote(author),
        architecture=quote(f"{inspect.getdoc(type(model))} Width {config.d_model}, {config.d_ff} hidden."),
        tricks=quote([f"{f.name} {chosen[f.name]}" for f in fields(config) if chosen[f.name] != f.default]
                     ).replace("\n", "\n" + " " * 8),
        weights="{\n" + textwrap.indent(weights, "    ") + "}",
    )  # fmt: skip


def compare(path, model):
    """Exit with the first difference between the file at `path` and the checkpoint."""
    module = read(path)
    exported, _, _ = build(path, module)
    for (name, found), value in zip(exported.named_parameters(), model.parameters(), strict=True):
        if not torch.equal(found, value):
            raise SystemExit(f"{path}: the numbers of {name} are not the checkpoint's")
    pairs = carry_pairs(1, CHECKED)
    prompts = encode_pairs(pairs, model.config.layout)[:, : len(module.PROMPT)].long()
    found = module.generate(exported, module.prompts(*pairs.T.tolist()), module.ANSWER)
    differ = (found != module.generate(model, prompts, module.ANSWER)).any(1).nonzero()
    if len(differ):
        a, b = pairs[int(differ[0])].tolist()
        sums = f"{len(differ)} of {CHECKED} sums differently, {a} + {b} for one"
        raise SystemExit(f"{path} and the checkpoint answer {sums}")


def folded(checkpoint, model):
    """The model without what its function does not need, and the proof that it is the same function."""
    if not isinstance(model, tiny.Adder):
        raise SystemExit(f"{checkpoint} is no model of addition.tiny or smallest, which --fold is written for")
    smaller, done = fold(model)
    if not done:
        print("there is nothing to fold")
    differs = difference(model, smaller)
    for text, left in done:
        print(f"{left:4d} parameters without {text}")
    print(f"the same logits but for {differs:.1g} of their range, on {PROMPTS:,} prompts with their answers")
    if not differs < SAME:
        raise SystemExit(f"{checkpoint}: the folded model differs; correct addition/fold.py")
    return smaller.float()


def holder():
    """Whom the repository's licence names."""
    found = re.search(r"Copyright \(c\) \d+ (.+)", LICENSE.read_text()) if LICENSE.exists() else None
    return found[1] if found else ""


def export(checkpoint, output, name="", author="", smaller=False):
    model = load(checkpoint)
    for key, value in model.named_parameters():
        if not value.isfinite().all():
            raise SystemExit(f"{checkpoint}: {key} is not finite; export an earlier checkpoint")
    model = folded(checkpoint, model) if smaller else model
    text = write(model, name or f"{train.count(model)} parameters", author or holder())

    def write_and_compare(file):
        file.write(text.encode())
        file.flush()
        compare(file.name, model)

    with disk.writing(Path(output).parent, Path(output).name):
        disk.replace(output, write_and_compare)
    return model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.py")
    parser.add_argument("--name", default="", help="in the metadata; else the number of parameters")
    parser.add_argument("--author", default="", help="in the metadata; else whom the LICENSE names")
    parser.add_argument("--fold", action="store_true", help="with fewer parameters and the same answers")
    options = parser.parse_args(argv)
    if options.output.is_dir():
        parser.error(f"-o {options.output} is a folder; name the file to write, such as {options.output / 'adder.py'}")
    model = export(options.checkpoint, options.output, options.name, options.author, options.fold)
    print(f"{options.output}: {train.count(model)} parameters, the same answers as {options.checkpoint}")


if __name__ == "__main__":
    main()
