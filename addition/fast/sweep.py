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

import torch

from addition import run as outputs
from addition.fast import kernels
from addition.fast.batches import batches
from addition.fast.engine import Compiled, Torch
from addition.train import Recipe, mean_loss, score_rows
from plumbing import disk

MOST_SEEDS = 10_000  # in one range
COLUMNS = ("member", "step", "train_loss", "val_loss", "val_exact", "lr", "stage", "seconds")
LARGEST = 600  # d_model x d_ff of a model for the kernels: up to 20 seconds to compile


def flags(recipe):
    """The recipe's settings, and those of a sweep."""

    @dataclass(frozen=True)
    class Sweep(recipe.Settings):
        seeds: tuple[str, ...] = ("0-7",)  # numbers and ranges: 0-7, or 41 100 200-205
        prune: str = ""  # STEP:LEFT,...: only so many runs go on then, the best by validation loss

    return Sweep


def numbers(words):
    found = []
    for word in words:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not low <= high < min(low + MOST_SEEDS, outputs.LARGEST["seed"]):
            form = f"a number below {outputs.LARGEST['seed']:,} or a range of at most {MOST_SEEDS:,}, such as 0-7"
            raise SystemExit(f"--seeds {word}: expected {form}")
        found += range(low, high + 1)
    if not found:
        raise SystemExit("--seeds is empty: expected numbers and ranges, such as 0-7 or 41 100")
    return list(dict.fromkeys(found))


def parse_prune(text, interval):
    """'3000:20,6000:5' -> {3000: 20, 6000: 5}"""
    if not re.fullmatch(r"(\d+:[1-9]\d*(,|$))*", text):
        raise SystemExit(f"--prune {text}: expected STEP:LEFT,STEP:LEFT such as 3000:20,6000:5")
    found = {int(step): int(left) for step, left in re.findall(r"(\d+):(\d+)", text)}
    if any(step == 0 or step % interval for step in found):
        raise SystemExit(f"--prune {text}: expected multiples of --eval-interval, {interval}")
    return found


def pick_engine(model, device, recipe):
    """The kernels, where they compute what the model computes; else torch."""
    if device.type == "cpu" and model.config.d_model * model.config.d_ff <= LARGEST:
        engine, rows = Compiled(model), recipe.validation[:64]
        stacked = {name: p.detach()[None] for name, p in model.named_parameters()}
        ours, theirs = float(engine.test(stacked, rows[None])[0]), float(mean_loss(model, rows).detach())
        if math.isclose(ours, theirs, rel_tol=1e-3):
            return engine
    return Torch(model, recipe.s.eval_batch_size)


class Stack:
    """The models that are still training, as rows of one matrix of parameters."""

    ROWS = ("flat", "mean", "square", "best")
    LISTS = ("names", "recipes", "batches", "best_at")

    def __init__(self, recipes, device):
        """`recipes` by the names of their runs."""
        self.names, self.recipes = list(recipes), list(recipes.values())
        self.batches = [batches(recipe) for recipe in self.recipes]
        models = [recipe.model() for recipe in self.recipes]
        self.device, self.model = device, models[0].to(device)
        self.shapes = {name: p.shape for name, p in self.model.named_parameters()}
        self.flat = torch.stack([torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in models])
        self.flat = self.flat.to(device)
        self.mean, self.square, self.best = torch.zeros_like(self.flat), torch.zeros_like(self.flat), self.flat.clone()
        self.best_at = [(-1.0, 0)] * len(models)  # (share of right sums, step); the first validation is better
        self.rows, self.done = {name: [] for name in self.names}, {}  # of all runs; the summaries of those that ended
        self.engine = pick_engine(self.model, device, self.recipes[0])

    def named(self, flat):
        """Views of `flat` [models, parameters]."""
        pieces = flat.split([math.prod(shape) for shape in self.shapes.values()], -1)
        return {name: piece.unflatten(-1, self.shapes[name] or (1,)) for name, piece in zip(self.shapes, pieces)}

    def column(self, values):
        return torch.tensor(values, dtype=torch.float32, device=self.device)[:, None]

    def step(self, step):
        """AdamW on every model's own batch. -> indices of the models that are not finite any more"""
        steps = [(recipe, step - recipe.begun) for recipe in self.recipes]
        rows = kernels.in_parallel([(batch, at) for batch, (_, at) in zip(self.batches, steps, strict=True)])
        sharpness = self.column([recipe.sharpness(at) for recipe, at in steps])[:, 0]
        flat = self.flat.detach().requires_grad_()
        loss = self.engine.losses(
            self.named(flat), torch.stack([part.T for part in rows]).mT.to(self.device), sharpness
        )
        (gradient,) = torch.autograd.grad(loss.sum(), flat)
        rate = self.column([recipe.learning_rate(at) for recipe, at in steps])
        decay = self.column([recipe.weight_decay(at) for recipe, at in steps])
        past = self.column([at + 1 for _, at in steps])
        beta2 = self.column([recipe.s.beta2 for recipe in self.recipes])
        gradient = gradient * (1 / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(beta2).add_((1 - beta2) * gradient.square())
        update = (self.mean / (1 - 0.9**past)) / ((self.square / (1 - beta2**past)).sqrt() + 1e-8)
        self.flat.mul_(1 - rate * decay).sub_(rate * update)
        finite = loss.isfinite() & self.flat.isfinite().all(1)
        for recipe, value in zip(self.recipes, loss.tolist()):
            recipe.note(value)
        return (~finite).nonzero()[:, 0].tolist()

    def validate(self, step, seconds):
        """-> indices of the models whose run ends here"""
        ended, rows = [], torch.stack([recipe.validation for recipe in self.recipes]).to(self.device)
        losses, right = self.engine.test(self.named(self.flat), rows)
        for i, (recipe, loss, exact) in enumerate(zip(self.recipes, losses.tolist(), (right / rows.shape[1]).tolist())):
            at = step - recipe.begun
            self.rows[self.names[i]].append({"step": step + 1} | recipe.row(at, loss, exact) | {"seconds": seconds})
            if exact > self.best_at[i][0]:
                self.best_at[i], self.best[i] = (exact, step + 1), self.flat[i]
            verdict = recipe.verdict(at, exact)
            if verdict == "stuck":
                self.flat[i] = torch.nn.utils.parameters_to_vector(recipe.again(step + 1).parameters()).detach()
                self.mean[i] = self.square[i] = 0
            elif verdict == "over":
                ended.append(i)
        return ended

    def errors(self, weights, rows):
        """How many sums the model with these weights gets wrong."""
        return len(rows) - int(self.engine.test(self.named(weights[None]), rows[None].to(self.device))[1])

    def keep(self, indices):
        for name in self.ROWS:
            setattr(self, name, getattr(self, name)[indices])
        for name in self.LISTS:
            setattr(self, name, [getattr(self, name)[i] for i in indices])

    def parameters(self):
        return [self.flat[:1]]  # of one model

    def state_dict(self):
        """Everything that a resumed sweep needs."""
        state = {name: getattr(self, name) for name in (*self.ROWS, "names", "best_at", "rows", "done")}
        return state | {"recipes": [recipe.state_dict() for recipe in self.recipes]}

    def load_state_dict(self, state):
        self.keep([self.names.index(name) for name in state["names"]])
        for name in (*self.ROWS, "best_at", "rows", "done"):
            setattr(self, name, state[name])
        for recipe, saved in zip(self.recipes, state["recipes"], strict=True):
            recipe.load_state_dict(saved)


def train(recipes, run, prune):
    """Train all runs together; -> {name: summary}"""
    if summary := run.ended():
        return summary["members"]
    kernels.flush_denormals()
    stack, together = Stack(recipes, run.device), len(recipes)
    settings, score = run.config, score_rows(stack.model.config.layout)
    run.log(f"# losses by the {stack.engine.name} engine")

    def end(indices, step, reason):
        """Test and save the models whose run ends after so many steps; go on with the others."""
        for i in indices:
            name, recipe, weights = stack.names[i], stack.recipes[i], stack.best[i]
            test = 1 - stack.errors(weights, recipe.test) / len(recipe.test)
            errors = {seed: stack.errors(weights, rows) for seed, rows in score.items()}
            stack.done[name] = outputs.result(recipe, step, stack.rows[name], stack.best_at[i], test, errors) | {
                "name": name, "parameters": stack.flat.shape[1], "steps": step, "seconds": round(run.elapsed(), 1),
                "models_together": together, "engine": stack.engine.name, "hardware": disk.describe(run.device),
                "commit": disk.commit(), **({reason: step} if reason else {}),
            }  # fmt: skip
            torch.nn.utils.vector_to_parameters(weights.clone(), stack.model.parameters())
            run.save(stack.model, recipe.s, name, *reversed(stack.best_at[i]))
            if reason == "diverged_at":
                run.log(f"# {name}: the loss or the weights are not finite at step {step}; this run ends here")
        if indices:
            stack.keep([i for i in range(len(stack.names)) if i not in indices])

    for step in range(run.resume(stack), settings.steps):
        if not stack.names:
            break
        end(stack.step(step), step + 1, "diverged_at")
        if stack.names and run.due(step, settings.eval_interval):
            ended = stack.validate(step, round(run.elapsed(), 1))
            exact = sorted((stack.rows[name][-1]["val_exact"] for name in stack.names), reverse=True)
            good = sum(value >= 0.99 for value in exact) + sum(s["best_val_exact"] >= 0.99 for s in stack.done.values())
            run.row = {"at_99": good, "best": exact[0], "training": len(exact)}
            shown = " ".join(f"{value:.2f}" for value in exact[:8]) + " ..." * (len(exact) > 8)
            outputs.progress(run, step, f"{good} of {together} at 99 %  best {shown}")
            end(ended, step + 1, None)
        if (left := prune.get(step + 1, together)) < len(stack.names):
            ranked = sorted(range(len(stack.names)), key=lambda i: stack.rows[stack.names[i]][-1]["val_loss"])
            end(ranked[left:], step + 1, "pruned_at")
        run.end_step(step, stack)
    with disk.writing(run.folder, "members.csv"):
        rows = [{"member": name} | row for name in recipes for row in stack.rows[name]]
        disk.write_rows(run.folder / "members.csv", rows, COLUMNS)
    done = {name: stack.done[name] for name in recipes}
    run.end({"seed": sorted({s["seed"] for s in done.values()}), "members": done})
    run.checkpoint.unlink(missing_ok=True)
    return done


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__)
        raise SystemExit
    try:
        recipe = importlib.import_module(f"addition.{argv[0]}" if re.fullmatch(r"\w+", argv[0]) else "")
        recipe.Settings, recipe.Recipe  # noqa: B018
    except (ImportError, AttributeError, ValueError, IndexError):
        raise SystemExit("give a recipe first: train, reliable, tiny, smallest or your own in addition/") from None
    if recipe.Recipe.optimizer is not Recipe.optimizer:
        raise SystemExit(f"{recipe.__name__} has an optimizer of its own; run that module by itself")
    if "--seed" in argv:
        raise SystemExit("--seed is of a single run; here it is --seeds")
    options = outputs.parse(flags(recipe), argv[1:])
    seeds, prune = numbers(options.seeds), parse_prune(options.prune, options.eval_interval)
    shared = recipe.Settings(**{f.name: getattr(options, f.name) for f in fields(recipe.Settings)})
    options = replace(options, name=options.name or f"{argv[0]}-sweep")
    run = outputs.Run(options, "fast.sweep", argv)
    recipes = {f"seed{seed}": recipe.Recipe(replace(shared, seed=seed)) for seed in seeds}
    results = train(recipes, run, prune)
    for name, r in results.items():
        found = f"best {r['best_val_exact']:.4f} at {r['best_step']}, 99 % at {r['step_at_99']}"
        print(f"{name:10s} {found}, {r['errors_in_100000']:,} errors in 100,000")
    good = sum(r["errors_in_100000"] <= 1000 for r in results.values())
    print(f"{good} of {len(results)} at 99 %; results in {run.folder}")
    return results


if __name__ == "__main__":
    main()
