"""What the rounds share: a run's checkpoint with its text, cosines of gradients, a table and a JSON file."""

import argparse
import math
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import torch

from ep_c512 import data, train
from ep_c512.block import Block
from ep_c512.run import wrong_value
from plumbing import disk
from plumbing.run import pick_device

LINES = {"tok": "tok", "pos": "pos", "wq": "WQ", "wk": "WK", "wv": "WV", "wo": "WO", "strength": "strength",
         "fc": "fc", "fc_bias": "fc", "pj": "pj", "pj_bias": "pj", "gain1": "LN1", "bias1": "LN1", "gain2": "LN2",
         "bias2": "LN2", "head": "head"}  # fmt: skip
OVERRIDES = {"step_size": float, "free_steps": int, "nudged_steps": int, "radius": float}


def parser(text):
    """The flags that every round has."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("run", help="a run's folder or checkpoint")
    found.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    found.add_argument("--seed", type=int, default=0, help="of the batches")
    found.add_argument("--double", action="store_true", help="compute in float64")
    for name, kind in OVERRIDES.items():
        found.add_argument(f"--{name.replace('_', '-')}", type=kind, help="in place of the run's own")
    found.add_argument("--output", help="a .json file; a plot of the same name is drawn beside it")
    return found


def load(options):
    """The model of a run, its config, and a function from a number to a relaxed batch of training text."""
    if options.output and (problem := disk.wrong_json(options.output)):
        raise SystemExit(f"error: {problem}")
    path = disk.checkpoint_path(options.run)
    saved = disk.load_checkpoint(path)
    known = {field.name for field in fields(train.Config)}
    if not {"config", "model"} <= set(saved) or not set(saved["config"]) <= known:
        raise SystemExit(f"{path} is not a checkpoint of ep_c512.train; give the path of one, as in runs/ep_c512/NAME")
    asked = {name: value for name in OVERRIDES if (value := getattr(options, name)) is not None}
    config = replace(train.Config(), **saved["config"] | asked | {"seed": 10**6 + options.seed})
    if problem := wrong_value(replace(config, name="x")):
        raise SystemExit(f"error: {problem}")
    if config.estimator == "bp":
        raise SystemExit(f"{path} is of the ordinary layer, which has no relaxation; give that of a block")
    device = pick_device(options.device)
    model = Block(config)
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise SystemExit(f"{path} does not fit ep_c512/block.py ({' '.join(str(error).split())[:200]})") from None
    model = model.to(device, torch.float64 if options.double else torch.float32)
    step = saved.get("step", config.steps)
    if config.feedback != 1:
        model.feedback = train.feedback(config, step)
    run = SimpleNamespace(rank=0, world=1, device=device)
    text = data.load(config, run)

    def relaxed(number):
        tokens, targets = text.batch(config, run, number)
        return train.relaxed(model, tokens, targets, config)

    return SimpleNamespace(model=model, config=config, text=text, relaxed=relaxed, path=path, step=step)


def cosine(one, other, names=None):
    """Of two gradients, over these parameters."""
    names = names or one
    dot = sum(float((one[n] * other[n]).sum(dtype=torch.float64)) for n in names)
    return dot / max(1e-300, norm(one, names) * norm(other, names))


def norm(gradient, names=None):
    return sum(float(gradient[n].square().sum(dtype=torch.float64)) for n in names or gradient) ** 0.5


def mean(gradients):
    return {name: sum(g[name] for g in gradients) / len(gradients) for name in gradients[0]}


def groups(gradient):
    """{what the log calls it: names of parameters}"""
    found = {}
    for name in gradient:
        found.setdefault(LINES[name], []).append(name)
    return found


def table(head, rows):
    """As Markdown, which a terminal shows well, too."""
    cells = [[text(value) for value in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def text(value):
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)


def number(value):
    """Four digits after the point of what is about 1, as cosines are; three digits of all else."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.4f}" if 0.1 <= abs(value) < 10 else f"{value:.3g}"


def finish(options, loaded, head, rows, draw, **more):
    """Print the table; write it, with what it is of, and the plot where an output is given."""
    disk.say(table(head, rows))
    if options.output:
        path = Path(options.output)
        config = {name: value for name, value in vars(loaded.config).items() if name not in ("runs", "warm", "seed")}
        disk.write_json(path, {
            "run": Path(loaded.path).parent.name, "step": loaded.step, "config": config, "head": head, "rows": rows,
            "feedback": train.feedback(loaded.config, loaded.step),
            "hardware": disk.describe(next(loaded.model.parameters()).device), "commit": disk.commit(), **more,
        })  # fmt: skip
        figure = draw()
        figure.savefig(path.with_suffix(".png"), dpi=100)
        disk.say(f"{path} and {path.with_suffix('.png').name} are written")
