"""Trains one equilibrium Transformer block to predict the next token: by equilibrium propagation, by backpropagation
through the relaxation, or (the reference) one ordinary layer by backpropagation.

python -m ep_c512.train --preset mini                       tracking EP from random weights; about 10 minutes on 2 cores
python -m ep_c512.train --preset mini --estimator bptt      the same block by BPTT; --estimator bp: one ordinary layer
python -m ep_c512.train --data tinystories                  the log's recipe at C 512, for a GPU
python -m ep_c512.train --track --warm runs/ep_c512/NAME    the log's second phase, from another run's weights
torchrun --nproc-per-node 8 -m ep_c512.train                the same batches, shared; `modal run ep_c512/train.py`
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):  # run by its path: this folder's data.py must not hide the package data/
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn as nn

import common
import plumbing.run
from ep_c512 import stability
from ep_c512.block import Block
from ep_c512.data import load
from ep_c512.gradients import ESTIMATORS, Settings, free_phase, gradients
from ep_c512.one_layer import OneLayer
from ep_c512.run import Average, Run, parse

Estimator = Literal[(*ESTIMATORS, "bp")]


@dataclass
class Config(plumbing.run.RunConfig):
    """The defaults are the log's EP recipe at C 512."""

    preset: Literal["full", "mini", "smoke"] = "full"  # the log's; about 10 minutes on two CPU cores; for tests
    estimator: Estimator = "frozen-2"  # of the gradient; the number is how many values of beta there are
    track: bool = False  # the log's name for --estimator tracking-2
    warm: str = ""  # a run's folder or checkpoint to take the weights from
    data: str = "tinystories"  # or generated, or the path of a text file
    validation_data: str = ""  # path of a text file; without it a twentieth of the text in --data is for validation
    vocabulary: int = 4096  # of the byte-level BPE
    width: int = 512  # C
    heads: int = 16  # of attention
    length: int = 256  # T, tokens in a window
    batch: int = 24  # windows a step
    attn_mode: Literal["softmax", "energy", "mono", "nemon"] = "softmax"  # how attention is made; see block.py
    embedding: float = 1.0  # standard deviation of tok and pos at the start; 0.02 with --estimator bp
    resinit: float = 0.1  # scale of the output projections at the start: a block that hardly moves z relaxes
    steps: int = 20_000  # of training
    lr: float = 8e-4  # highest learning rate
    warmup: int = 800  # steps in which the learning rate rises
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"  # wsd: constant, then linear to 0
    decay: float = 0.2  # share of the steps in which wsd falls
    feedback: float = 1.0  # share of its own state that the block reads at the start, see block.py; 1 with --warm
    opened: float = 0.0  # share of the steps at the start in which the feedback stays as it is
    ramp: float = 0.5  # share of the steps, after them, in which it rises to 1
    beta2: float = 0.95  # of Adam
    weight_decay: float = 0.0  # of matrices
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the average of the weights, which is what is validated; 0: no average
    step_size: float = 0.1  # of every phase; 1 / (1 + c) = 0.5 is Picard's iteration
    free_steps: int = 150  # T1; BPTT and validation stop here
    refine: int = 300  # EP's free phase goes on up to here, until the residual is below refine_target
    refine_target: float = 1e-4  # residual of a step at which the free phase may stop
    nudged_steps: int = 40  # T2
    radius: float = 0.05  # |beta|, where L is the sum of the tokens' losses
    held: bool = False  # dL/dz stays in the nudged phase as it was at z*
    choice: Literal["last", "settled", "adaptive"] = "settled"  # which state of the nudged phase gives the gradient
    recompute: bool = False  # BPTT keeps every tenth state only and computes the others again: less memory
    navg: int = 1  # batches whose gradients are averaged in one step
    jacreg: float = 0.1  # weight of the penalty on the Jacobian at the start; 0: no penalty
    jr_floor: float = 0.1  # least weight of the penalty
    jr_max: float = 32.0  # greatest weight of the penalty
    res_target: float = 1.5e-3  # a residual above this raises the weight of the penalty
    penalty: Literal["full", "diagonal", "spectral"] = "full"  # which penalty on the Jacobian; see stability.py
    cap: float = 1.2  # the growth of a vector that the spectral penalty allows; relaxation needs less than 2
    penalty_bound: float = 0.0  # the penalty's gradient is cut to this share of the loss's in length; 0: it is not
    specnorm: bool = False  # an estimate of the attention matrices' largest singular value is kept below rho
    rho: float = 0.9  # see specnorm
    gate: float = 0.05  # the gradient of the loss is left out where the free phase's residual is above this
    gate_change: float = 0.0  # it is left out where a changed by more than this share in its last step; 0: never
    abort: float = 0.2  # the run ends as soon as a residual is above this
    evaluate_every: int = 500  # steps between two validations
    validation_windows: int = 960  # of the validation text, at most
    diagnose_every: int = 50  # steps between two computations of eigenvalues
    diagnosed_tokens: int = 32  # how many tokens of a validation text they are computed for
    report_every: int = 10  # steps between two lines of the log
    save_every: int = 500  # steps between two checkpoints

    def settings(self):
        return Settings(
            self.radius, self.nudged_steps, self.step_size, self.held, self.choice,
            horizon=self.free_steps, recompute=self.recompute,
        )  # fmt: skip


def learning_rate(config, step):
    if config.schedule == "cosine":
        return common.cosine_rate(step, config.lr, config.warmup, config.steps, floor=0.0)
    rate, left = common.warmup_rate(step, config.lr, config.warmup), config.steps - step
    falling = max(1, round(config.decay * config.steps)) if config.schedule == "wsd" else 1
    return rate * min(1.0, left / falling)


def feedback(config, step):
    risen = (step / config.steps - config.opened) / config.ramp
    return config.feedback + (1 - config.feedback) * min(1.0, max(0.0, risen))


def relaxed(block, tokens, targets, config):
    """The batch after the free phase, which goes on where it has not settled, as EP's gradient needs z*."""
    free = free_phase(block, tokens, targets, config.free_steps, config.step_size)
    done = config.free_steps
    while free.residual > config.refine_target and done < config.refine:
        count, steps = free.force.count, min(config.free_steps, config.refine - done)
        free = free_phase(block, tokens, targets, steps, config.step_size, free.z)
        free.force.count, done = count + free.force.count, done + steps
    return free


def estimated(block, tokens, targets, config):
    """(the batch after its free phase, the estimate of its gradient)"""
    if config.estimator != "bptt":
        free = relaxed(block, tokens, targets, config)
        return free, ESTIMATORS[config.estimator](free, config.settings())
    free = free_phase(block, tokens, targets, 0, config.step_size)
    estimate = ESTIMATORS["bptt"](free, config.settings())
    return replace(free, z=estimate.z, residual=estimate.residual), estimate


def penalty_gradient(run, block, free, weight, step):
    """(the weighted gradient of the penalty on this process's share of the batch, the penalty)"""
    config = run.config
    random = torch.Generator(free.z.device).manual_seed(config.seed * 10_000_019 + step)
    shape = (config.batch, *free.z.shape[1:])
    noise = torch.randn(shape, dtype=free.z.dtype, device=free.z.device, generator=random)
    value = stability.penalty(block, free.tokens, free.z, config.penalty, run.share(noise), config.cap)
    return gradients(weight * value, block), value.detach()


def added(ce, extra, bound):
    """The sum of two gradients; the second is cut to a share of the norm of the first, where there is a bound."""
    scale = (bound * norm(ce) / norm(extra).clamp(min=1e-30)).clamp(max=1) if bound else 1.0
    return {name: g + scale * extra[name] for name, g in ce.items()}


def norm(gradient):
    return torch.stack([g.norm() for g in gradient.values()]).norm()


def train(config):
    torch.set_flush_denormal(True)  # at the start BPTT's gradients shrink below 1e-38, where a CPU is four times slower
    run = Run(config)
    text = load(config, run)
    model = run.compiled((OneLayer if config.estimator == "bp" else Block)(config).to(run.device))
    run.warm_start(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, config.beta2), fused=True,
    )  # fmt: skip
    controller = stability.Controller(config.jacreg, config.jr_floor, config.jr_max, config.res_target)
    caps, average = stability.SpectralCaps(model, config.rho), Average(model, config.ema)
    kept = [optimizer, controller, caps, average, run.worst]
    for step in range(run.resume(model, kept), config.steps):
        parts, losses, residuals, changes = [], [], [], []
        if config.feedback != 1:
            model.feedback = feedback(config, step)
        for part in range(config.navg):
            tokens, targets = text.batch(config, run, step * config.navg + part)
            if config.estimator == "bp":
                loss = model.loss(tokens, targets)
                found = gradients(loss, model)
            else:
                free, estimate = estimated(model, tokens, targets, config)
                loss, found = estimate.loss, estimate.gradient
                residuals.append(free.residual)
                changes.append(estimate.change)
            parts.append(found)
            losses.append(loss.detach())
        health = {"residual": run.highest(residuals), "change": run.highest(changes)} if residuals else {}
        total = run.summed({name: sum(found[name] for found in parts) / config.navg for name in parts[0]})
        passes = run.passes(health)
        if config.jacreg and config.estimator != "bp":
            extra, health["penalty"] = penalty_gradient(run, model, free, controller.weight, step)
            extra = run.summed(extra)
            total = added(total, extra, config.penalty_bound) if passes else extra
            health["weight"] = controller.weight
            controller.update(health["residual"])
        rate = learning_rate(config, step)
        if passes or config.jacreg:  # where the gradient is left out, the penalty still helps the block to settle
            for name, p in model.named_parameters():
                p.grad = total[name] if passes or total[name].any() else None  # None: no momentum moves it
            health["norm"] = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            if config.specnorm:
                caps.apply()
            average.update(model, step)
        run.report(step, model, torch.stack(losses).mean(), health, rate)
        run.diagnose(step, model, text)
        run.validate(step, model, average, text)
        run.end_step(step, model, kept)
    return run.finish(text)


def main(argv=None):
    return train(parse(Config, argv))


app = None
if "modal" in sys.modules:  # `modal run ep_c512/train.py`
    from plumbing import remote

    app = remote.entry(__file__, parse)
if __name__ == "__main__":
    main()
