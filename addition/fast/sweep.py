"""Many runs of a recipe at once, in one process: for success rates.

python -m addition.fast.sweep reliable --seeds 0-39 --pos-rank 3 --qkv-rank 3 --attn-out-rank 2 --ffn-rank 3 \\
  --use-rmsnorm --tie-qkv shareA_tieKV
python -m addition.fast.sweep train --seeds 42-49 --train-steps 50000
python -m addition.fast.sweep tiny --seeds 0-99 --prune 3000:20                     the best 20 go on after step 3,000

The first word is the recipe, a module of addition/ with Settings and Recipe: train, reliable, tiny, smallest or yours.
All of its flags can be given. A run has the data, the start and the arithmetic of its single run up to rounding, which
after some hundred steps makes single seeds differ, but not their rates.
"""

import importlib
import math
import re
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import tyro
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from addition import run as outputs
from addition.fast import kernels
from addition.fast.batches import batches
from addition.fast.engine import Compiled, Torch
from addition.train import Recipe, score_rows
from common import from_flags
from plumbing import disk

MOST_SEEDS = 10_000  # in one range
COLUMNS = ("member", "step", "train_loss", "val_loss", "val_exact", "lr", "stage", "seconds")
LARGEST = 1_200  # d_model x (d_model + d_ff) of a model for the kernels: up to 20 seconds to compile


def numbers(words):
    """["3", "0-2"] -> [3, 0, 1, 2]"""
    found = {}
    for word in words or [""]:
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
        seeds = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not 1 <= len(seeds) <= MOST_SEEDS:
            form = f"numbers of up to nine digits and ranges of at most {MOST_SEEDS:,}, such as 0-7 or 41 100"
            raise SystemExit(f"--seeds {word}: expected {form}")
        found |= dict.fromkeys(seeds)
    return list(found)


def parse_prune(text, interval):
    """'3000:20,6000:5' -> {3000: 20, 6000: 5}"""
    found = {int(step): int(left) for step, left in re.findall(r"(\d+):(\d+)", text)}
    if not re.fullmatch(r"([1-9]\d*:[1-9]\d*(,|$))*", text) or any(step % interval for step in found):
        form = f"STEP:LEFT,... such as 3000:20,6000:5; steps are multiples of --eval-interval, {interval}"
        raise SystemExit(f"--prune {text}: expected {form}")
    return found


def pick_engine(model, device, recipe):
    """The kernels, where they compute what the model computes from any weights; else torch."""
    d, plain = model.config.d_model, Torch(model, recipe.s.eval_batch_size)
    if device.type != "cpu" or d * (d + model.config.d_ff) > LARGEST:
        return plain
    random, engine, rows = torch.Generator().manual_seed(0), Compiled(model), recipe.validation[None, :64]
    named = {name: (p.detach() + 0.3 * torch.randn(p.shape, generator=random))[None]
             for name, p in model.named_parameters()}  # fmt: skip
    ours, theirs = engine.test(named, rows)[0], plain.test(named, rows)[0]
    return engine if torch.allclose(ours, theirs, rtol=1e-4) else plain


class Stack:
    """Models as rows of one matrix of parameters; those whose run is over stay as they are."""

    STATE = ("flat", "mean", "square", "best", "done")  # what a resumed sweep needs, with the recipes

    def __init__(self, recipes, device):
        """`recipes` by the names of their runs."""
        self.recipes, self.done = list(recipes.values()), dict.fromkeys(recipes)  # summaries of runs that are over
        for recipe in self.recipes:
            recipe.batch = batches(recipe)  # the same ones in less time
        models = [recipe.model() for recipe in self.recipes]
        self.flat = torch.stack([parameters_to_vector(m.parameters()).detach() for m in models]).to(device)
        self.device, self.model = device, models[0].to(device)
        self.shapes = {name: p.shape for name, p in self.model.named_parameters()}
        self.mean, self.square, self.best = torch.zeros_like(self.flat), torch.zeros_like(self.flat), self.flat.clone()
        self.engine = pick_engine(self.model, device, self.recipes[0])

    def training(self):
        """Indices of the models that are not over."""
        return [i for i, recipe in enumerate(self.recipes) if not recipe.over]

    def named(self, flat):
        """Views of `flat` [models, parameters]."""
        pieces = flat.split([math.prod(shape) for shape in self.shapes.values()], -1)
        return {name: piece.unflatten(-1, self.shapes[name] or (1,)) for name, piece in zip(self.shapes, pieces)}

    def step(self, step):
        """AdamW on every model's own batch. -> indices of the models that are not finite any more"""
        training = self.training()
        steps = [(self.recipes[i], step - self.recipes[i].begun) for i in training]
        made = kernels.in_parallel([(recipe.batch, at) for recipe, at in steps])
        rows = torch.stack([batch.T for batch in made]).mT.to(self.device)  # as they lie in memory
        values = [(r.sharpness(at), r.learning_rate(at), r.weight_decay(at), r.s.beta2, at + 1) for r, at in steps]
        columns = torch.tensor(values, dtype=torch.float32, device=self.device).T.contiguous()
        sharpness, (rate, decay, beta2, past) = columns[0], columns[1:, :, None]
        these = training if len(training) < len(self.recipes) else slice(None)  # a slice copies nothing
        flat, mean, square = (part[these] for part in (self.flat.detach(), self.mean, self.square))
        loss = self.engine.losses(self.named(flat.requires_grad_()), rows, sharpness)
        (gradient,) = torch.autograd.grad(loss.sum(), flat)
        gradient = gradient * (1 / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
        mean.lerp_(gradient, 0.1)
        square.mul_(beta2).add_((1 - beta2) * gradient.square())
        update = (mean / (1 - 0.9**past)) / ((square / (1 - beta2**past)).sqrt() + 1e-8)
        flat = flat.detach().mul_(1 - rate * decay).sub_(rate * update)
        self.flat[these], self.mean[these], self.square[these] = flat, mean, square
        for (recipe, _), value in zip(steps, loss.tolist()):
            recipe.note(value)
        finite = loss.isfinite() & flat.isfinite().all(1)
        return [i for i, good in zip(training, finite.tolist()) if not good]

    def validate(self, step, seconds):
        """-> indices of the models whose run ends here"""
        training, ended = self.training(), []
        rows = torch.stack([self.recipes[i].validation for i in training]).to(self.device)
        losses, right = self.engine.test(self.named(self.flat[training]), rows)
        for i, loss, exact in zip(training, losses.tolist(), (right / rows.shape[1]).tolist()):
            recipe, at = self.recipes[i], step - self.recipes[i].begun
            if recipe.validated(at, loss, exact, seconds):
                self.best[i] = self.flat[i]
            verdict = recipe.verdict(at, exact)
            if verdict == "stuck":
                self.flat[i] = parameters_to_vector(recipe.again(step + 1).parameters()).detach()
                self.mean[i] = self.square[i] = 0
            elif verdict == "over":
                ended.append(i)
        return ended

    def errors(self, weights, rows):
        """How many sums the model with these weights gets wrong."""
        return len(rows) - int(self.engine.test(self.named(weights[None]), rows[None].to(self.device))[1])

    def parameters(self):
        return [self.best[:1]]  # of one model

    def state_dict(self):
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state):
        vars(self).update(state)


def train(recipes, run, prune):
    """Train all runs together; -> {name: summary}"""
    if summary := run.ended():
        return summary["members"]
    kernels.flush_denormals()
    stack, names, settings = Stack(recipes, run.device), list(recipes), run.config
    score = score_rows(stack.model.config.layout)
    run.log(f"# losses by the {stack.engine.name} engine")

    def end(indices, step, reason=None):
        """Test and save the models whose run ends after so many steps."""
        for i in indices:
            name, recipe, weights = names[i], stack.recipes[i], stack.best[i]
            recipe.over = True
            vars(recipe).pop("batch", None)  # with its table of held-out keys
            test = 1 - stack.errors(weights, recipe.test) / len(recipe.test)
            errors = {seed: stack.errors(weights, rows) for seed, rows in score.items()}
            stack.done[name] = outputs.result(recipe, step, test, errors) | {
                "name": name, "parameters": stack.flat.shape[1], "steps": step, "seconds": round(run.elapsed(), 1),
                "models_together": len(names), "engine": stack.engine.name, "hardware": disk.describe(run.device),
                "commit": disk.commit(), **({reason: step} if reason else {}),
            }  # fmt: skip
            vector_to_parameters(weights.clone(), stack.model.parameters())
            run.save(stack.model, recipe.s, name, *recipe.best)
            if reason == "diverged_at":
                run.log(f"# {name}: the loss or the weights are not finite at step {step}; this run ends here")

    for step in range(run.resume(stack, stack.recipes), settings.steps):  # a recipe may say earlier that it is over
        if not stack.training():
            break
        end(stack.step(step), step + 1, "diverged_at")
        if stack.training() and run.due(step, settings.eval_interval):
            ended = stack.validate(step, run.elapsed())
            good = sum((r.best[1] if r.over else r.rows[-1]["val_exact"]) >= 0.99 for r in stack.recipes)
            exact = sorted((r.rows[-1]["val_exact"] for r in stack.recipes if not r.over), reverse=True)
            run.row = {"at_99": good, "best": exact[0], "training": len(exact)}
            shown = " ".join(f"{value:.2f}" for value in exact[:8]) + " ..." * (len(exact) > 8)
            outputs.progress(run, step, f"{good} of {len(names)} at 99 %  best {shown}")
            end(ended, step + 1)
        if step + 1 in prune:
            ranked = sorted(stack.training(), key=lambda i: stack.recipes[i].rows[-1]["val_loss"])
            end(ranked[prune[step + 1] :], step + 1, "pruned_at")
        run.end_step(step, stack, stack.recipes)
    end(stack.training(), settings.steps)
    with disk.writing(run.folder, "members.csv"):
        rows = [{"member": name} | row for name, recipe in recipes.items() for row in recipe.rows]
        disk.write_rows(run.folder / "members.csv", rows, COLUMNS)
    run.end({"seed": sorted(recipe.s.seed for recipe in stack.recipes), "members": stack.done})
    run.checkpoint.unlink(missing_ok=True)
    return stack.done


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__)
        raise SystemExit
    name = argv[0] if argv and re.fullmatch(r"\w+", argv[0]) else ""
    there = Path(outputs.__file__).with_name(f"{name or '-'}.py").exists()
    module = importlib.import_module(f"addition.{name}") if there else None
    if not (hasattr(module, "Settings") and hasattr(module, "Recipe")):
        raise SystemExit("give a recipe first: train, reliable, tiny, smallest or your own in addition/")
    if module.Recipe.optimizer is not Recipe.optimizer:
        raise SystemExit(f"{module.__name__} has an optimizer of its own; run that module by itself")

    @dataclass(frozen=True)
    class Sweep(module.Settings):
        seed: tyro.conf.Suppress[int] = 42  # is of a single run
        seeds: tuple[str, ...] = ("0-7",)  # numbers and ranges: 0-7, or 41 100 200-205
        prune: str = ""  # STEP:LEFT,...: only so many runs go on then, the best by validation loss

    options = from_flags(Sweep, argv[1:], Sweep(), outputs.wrong_value)
    seeds, prune = numbers(options.seeds), parse_prune(options.prune, options.eval_interval)
    shared = module.Settings(**{f.name: getattr(options, f.name) for f in fields(module.Settings)})
    run = outputs.Run(replace(options, name=options.name or f"{argv[0]}-sweep"), "fast.sweep", argv)
    recipes = {f"seed{seed}": module.Recipe(replace(shared, seed=seed)) for seed in seeds}
    results = train(recipes, run, prune)
    for name, r in results.items():
        found = f"best {r['best_val_exact']:.4f} at {r['best_step']}, 99 % at {r['step_at_99']}"
        print(f"{name:10s} {found}, {r['errors_in_100000']:,} errors in 100,000")
    good = sum(r["errors_in_100000"] <= 1000 for r in results.values())
    print(f"{good} of {len(results)} at 99 %; results in {run.folder}")
    return results


if __name__ == "__main__":
    main()
