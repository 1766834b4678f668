"""Exact match of checkpoints on the 100,000 pairs of the final score, ten seeds of 10,000 pairs; their attention.

python -m addition.evaluate_checkpoints results/runs/repro_456_s43/checkpoints/best.pt --output results/eval.json

Checkpoints of the public 456-parameter project can be given, too: names of tensors differ, and full matrices are the
other way round.

The attention is the evidence for "Why it works" in README.md, with --output results/addition/attention/summary.json:
the mean weight on the two digits of the same power of ten ("own") and on the two of the next lower power ("before"),
at the positions that predict the digits of 10^1 to 10^9 of the sum; beside it, the accuracy of every digit.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from addition import train
from addition.smallest import SmallestAdder, SmallestConfig
from addition.tiny import TinyAdder, TinyConfig
from addition.train import DIGITS, ModelConfig, TinyDecoderLM, answers, count, encode_pairs, score, uniform_pairs
from plumbing import disk
from plumbing.run import pick_device

KNOWN = {
    "ModelConfig": (ModelConfig, TinyDecoderLM), "TinyConfig": (TinyConfig, TinyAdder),
    "SmallestConfig": (SmallestConfig, SmallestAdder),
}  # fmt: skip
PUBLISHED = {  # beginnings of names in the public project's checkpoints, and ours
    "blocks.0.ln1.": "norm1.", "blocks.0.ln2.": "norm2.", "ln_f.": "final.", "blocks.0.attn.qkv_A": "qkv.a",
    "blocks.0.attn.qkv_Bq": "qkv.q", "blocks.0.attn.qkv_Bkv": "qkv.kv", "blocks.0.attn.qkv.": "qkv.",
    "blocks.0.attn.proj.": "attn_out.", "blocks.0.mlp.fc1.": "up.", "blocks.0.mlp.fc2.": "down.",
}  # fmt: skip
LINEAR = ("qkv.weight", "attn_out.weight", "up.weight", "down.weight")  # which it has the other way round
PAIRS = 2_000  # on which attention is measured


def from_published(named):
    found = {}
    for name, value in named.items():
        start = max((start for start in PUBLISHED if name.startswith(start)), key=len, default=None)
        ours = PUBLISHED[start] + name.removeprefix(start) if start else name
        ours = ours.lower() if ours.endswith((".A", ".B")) else ours
        found[ours] = value.T.contiguous() if ours in LINEAR else value
    return found


def build(architecture, config, named):
    if architecture not in KNOWN:
        raise ValueError(f"its architecture is {architecture!r}; known are {', '.join(KNOWN)}")
    config_class, model_class = KNOWN[architecture]
    config = config_class.from_dict(config)
    if architecture != "ModelConfig":
        model = model_class(config, {name: torch.zeros(shape) for name, shape in config.shapes().items()})
    else:
        model = model_class(config)
        if any(name.startswith("blocks.") for name in named):
            named = from_published(named)
        head = named.setdefault("lm_head.weight", named["token_emb.weight"])
        if not torch.equal(head, named["token_emb.weight"]):
            raise ValueError("its lm_head.weight is not its token_emb.weight, but this model's head is tied")
    model.load_state_dict(named)
    return model


def load(path):
    """The model of a checkpoint made by addition.train, reliable, tiny or fast.sweep, or of the public project."""
    saved = disk.load_checkpoint(path)
    try:
        return build(saved.get("architecture", "ModelConfig"), saved["model_config"], dict(saved["model_state"]))
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        problem = f"{path} is not a checkpoint of an addition model ({reason})"
        raise SystemExit(f"{problem}; give a best.pt or last.pt of addition.train") from None


@torch.no_grad()
def attention(model):
    """Mean attention weights, and the accuracy of each digit, given the right digits before it."""
    layout = model.config.layout
    rows = encode_pairs(uniform_pairs(2026, PAIRS), layout)
    _, q, k, _ = model.inputs(rows[:, : layout.length].long(), torch.arange(layout.length))
    ahead = torch.ones(layout.length, layout.length, dtype=torch.bool).triu(1)
    weights = (q @ k.mT).masked_fill(ahead, -torch.inf).softmax(-1).mean(0)[layout.first :]  # [queries, length]
    digit, places = torch.arange(1, DIGITS), torch.tensor([layout.a, layout.b])
    own, before = (weights[digit, places[:, digit - back]].sum(0).mean().item() for back in (0, 1))
    predicted, target = answers(model, rows)
    right = (predicted.argmax(-1) == target).float().mean(0)[: len(layout.sum)].tolist()
    return {"own": own, "before": before, "digits_right": [round(x, 4) for x in right]}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT")
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--batch-size", type=int, default=10_000, help="pairs at once; bounds memory on a GPU")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(argv)
    if options.batch_size < 1:
        parser.error(f"--batch-size is {options.batch_size}; it must be at least 1")
    device = pick_device(options.device)
    models = {path: load(path) for path in options.checkpoints}  # all files before the first is evaluated
    found = []
    for path, model in models.items():
        weights, by_seed = attention(model), score(model.to(device), device, options.batch_size)
        errors, pairs = sum(by_seed.values()), train.SCORE_PAIRS * len(by_seed)
        exact = (pairs - errors) / pairs
        found.append({"path": str(path), "parameters": count(model), "aggregate_exact_match": exact, "errors": errors,
                      "pairs": pairs, "errors_by_seed": by_seed} | weights)  # fmt: skip
        told = f"{errors:,} errors in {pairs:,}  attention {weights['own']:.3f}, before {weights['before']:.3f}"
        print(f"{path}  {count(model)} parameters  exact match {exact:.5f}  {told}", flush=True)
    if options.output:
        with disk.writing(options.output.parent, options.output.name):
            command = shlex.join(
                ["python", "-m", "addition.evaluate_checkpoints", *(sys.argv[1:] if argv is None else argv)]
            )
            disk.write_json(options.output, {"command": command, "attention_pairs": PAIRS, "checkpoints": found})
    return found


if __name__ == "__main__":
    main()
