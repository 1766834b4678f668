"""Writes a checkpoint as one self-contained Python file, an AdderBoard submission.

python -m addition.export results/runs/repro_456_s43/checkpoints/best.pt -o adder.py --author "Ada Lovelace"
python -m addition.export results/runs/mine/checkpoints/seed3.pt -o adder.py --fold    the same sums, fewer parameters

The file needs only torch: it holds the model's own source, and its weights as decimal numbers. It is not written
unless it gives the same answers as the checkpoint.
"""

import argparse
import inspect
import re
from pathlib import Path
from pprint import pformat
from string import Template

import torch

from addition import smallest, tiny, train
from addition.evaluate_checkpoints import load
from addition.fold import PAIRS, SAME, difference, fold
from addition.train import carry_pairs, encode_pairs
from addition.verify import build, read
from plumbing import disk

LICENSE = Path(__file__).parents[1] / "LICENSE"
SOURCES = {  # of each model, and how it is built
    train.TinyDecoderLM: ([train.Matrix, train.SharedQKV], "TinyDecoderLM(CONFIG)"),
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
$config)
# The prompt; the digits of the two numbers, least significant first, go to the positions A and B.
PROMPT = $prompt
A = $a
B = $b
ANSWER = $answer  # digits of the sum, which the model generates, least significant first
METADATA = $metadata


$sources

def prompts(a, b):
    rows = torch.tensor(PROMPT).repeat(len(a), 1)
    for places, numbers in ((A, a), (B, b)):
        for number in numbers:
            if not 0 <= number < 10 ** len(places):
                raise ValueError(f"{number} is not a number from 0 to {10 ** len(places) - 1}")
        for i, place in enumerate(places):
            rows[:, place] = torch.tensor([number // 10**i % 10 for number in numbers])
    return rows


@torch.no_grad()
def add_batch(model, a, b):
    """The sums of many pairs; -1 where an answer of the model has a token that is not a digit."""
    tokens = prompts(a, b)
    for _ in range(ANSWER):  # greedy decoding: append the most likely next token
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    answers = tokens[:, len(PROMPT) :].tolist()
    return [sum(d * 10**i for i, d in enumerate(answer)) if max(answer) < 10 else -1 for answer in answers]


def add(model, a, b):
    return add_batch(model, [a], [b])[0]


def build_model():
    weights = {name: torch.tensor(value) for name, value in WEIGHTS.items()}
    model = $build.eval()
    model.load_state_dict(weights, strict=False)  # what is tied is named once
    return model, METADATA


WEIGHTS = $weights

if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("give two numbers")
    print(add(build_model()[0], int(sys.argv[1]), int(sys.argv[2])))
''')


def literal(value):
    return pformat(value, width=110, compact=True, sort_dicts=False)


def numbers(value):
    """A tensor as nested lists; each number has the fewest digits that give the same float32."""
    return value.detach().numpy().astype(str).astype(float).tolist()


def write(model, name, author):
    """The file's text."""
    config, layout, parameters = model.config, model.config.layout, train.count(model)
    sources, build = SOURCES[type(model)]
    derived = {key: getattr(config, key) for key in ("eps", "read", "d_model") if hasattr(config, key)}
    metadata = {
        "name": name or f"{parameters} parameters",
        "author": author
        or ", ".join(re.findall(r"Copyright \(c\) \d+ (.+)", LICENSE.read_text() if LICENSE.exists() else "")),
        "params": parameters,
        "architecture": f"{inspect.getdoc(type(model))} Width {config.d_model}, {config.d_ff} hidden.",
        "tricks": [f"{key} {value}" for key, value in vars(config).items() if value != getattr(type(config), key)],
    }
    return FILE.substitute(
        digits=len(layout.a), params=parameters, metadata=literal(metadata),
        config="".join(f"    {key}={value!r},\n" for key, value in (vars(config) | derived).items()),
        prompt=layout.template[: layout.sum[0]], a=layout.a, b=layout.b, answer=len(layout.sum),
        sources="\n\n".join(map(inspect.getsource, [*sources, type(model)])), build=build,
        weights=literal({key: numbers(value) for key, value in model.named_parameters()}),
    )  # fmt: skip


def compare(path, model):
    """Exit unless the file at `path` is this model, and asks it what it was trained on."""
    module, pairs = read(path), carry_pairs(1, PAIRS)
    prompts = module.prompts(*pairs.T.tolist())
    asked = torch.equal(prompts, encode_pairs(pairs, model.config.layout)[:, : prompts.shape[1]].long())
    if not asked or difference(model, build(path, module)[0]) != 0:
        raise SystemExit(f"{path} does not give the checkpoint's answers; correct addition/export.py")


def folded(checkpoint, model):
    """The model without what its function does not need, and the proof that it is the same function."""
    if not isinstance(model, tiny.Adder):
        raise SystemExit(f"{checkpoint} is no model of addition.tiny or smallest, which --fold is written for")
    smaller = fold(model)
    changed = [f"{name} {value}" for name, value in vars(smaller.config).items() if value != vars(model.config)[name]]
    fewer = f"{train.count(smaller)} parameters instead of {train.count(model)}: {', '.join(changed)}"
    print(fewer if changed else "there is nothing to fold")
    differs = difference(model, smaller)
    print(f"the same logits but for {differs:.1g} of their range, on {PAIRS:,} prompts with their answers")
    if not differs < SAME:
        raise SystemExit(f"{checkpoint}: the folded model differs; correct addition/fold.py")
    return smaller.float()


def export(checkpoint, output, name="", author="", smaller=False):
    model = load(checkpoint)
    for key, value in model.named_parameters():
        if not value.isfinite().all():
            raise SystemExit(f"{checkpoint}: {key} is not finite; export an earlier checkpoint")
    model = folded(checkpoint, model) if smaller else model
    text = write(model, name, author)

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
