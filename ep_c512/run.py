"""What stands behind a run of ep_c512/train.py: presets, command line, averaged weights, reports, validation."""

import contextlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

import common
import plumbing.run
from ep_c512 import stability
from ep_c512.block import Kernels
from ep_c512.gradients import free_phase
from plumbing import disk

FOLDER = Path(__file__).resolve().parent

PRESETS = {  # what a preset replaces
    "full": {},
    "mini": dict(estimator="tracking-2", data="generated", vocabulary=1024, width=64, heads=4, length=64, batch=16,
                 steps=2_000, lr=2e-2, warmup=100, feedback=0.0, opened=0.25, ramp=0.5, ema=0.99, step_size=0.5,
                 free_steps=30, refine=120, nudged_steps=12, radius=1e-3, held=True, choice="last",
                 penalty="spectral", cap=1.0, jacreg=10.0, jr_floor=10.0, jr_max=10.0, gate_change=0.1,
                 diagnosed_tokens=64, report_every=25, evaluate_every=500, save_every=250),
    "smoke": dict(estimator="tracking-2", data="generated", vocabulary=300, width=8, heads=2, length=8, batch=4,
                  steps=6, lr=3e-3, warmup=2, ema=0.9, step_size=0.5, free_steps=10, refine=20, nudged_steps=4,
                  held=True, choice="last", validation_windows=8, report_every=1, evaluate_every=2, save_every=2,
                  diagnose_every=2, diagnosed_tokens=8),
}  # fmt: skip
MAY_BE_ZERO = {"seed", "warmup", "refine"}


def configured(config_class, preset="full"):
    return replace(config_class(), preset=preset, **PRESETS[preset])


def parse(config_class, argv=None):
    """The config from the command line: the preset first, then the flags on top of it."""
    argv = sys.argv[1:] if argv is None else list(argv)
    words = " ".join(argv).replace("=", " ").replace("_", "-").split()
    given = dict(zip(words, words[1:]))
    preset = given.get("--preset", "full")
    default = configured(config_class, preset if preset in PRESETS else "full")
    default = replace(default, **implied(given.get("--estimator"), given.get("--warm")))
    config = common.from_flags(config_class, argv, default, wrong_value)
    if config.track:
        config = replace(config, estimator=config.estimator.replace("frozen", "tracking"), track=False)
    return replace(config, name=config.name or f"{config.estimator}-{config.preset}-seed{config.seed}")


def implied(estimator, warm):
    """Defaults that follow from other flags, whatever the preset says."""
    found = {"embedding": 0.02, "feedback": 1.0} if estimator == "bp" else {}
    return found | ({"feedback": 1.0} if warm else {})


def wrong_value(config):
    """What is wrong with the value of a flag, or None."""
    zero = {name: 1 for name in MAY_BE_ZERO if type(getattr(config, name)) is int and getattr(config, name) == 0}
    if problem := common.wrong_value(replace(config, **zero)):
        return problem
    if not 0 < config.step_size <= 1:
        return f"--step-size {config.step_size}: expected a number above 0, up to 1"
    for name in ("ema", "beta2"):
        if getattr(config, name) >= 1:
            return f"--{name} {getattr(config, name)}: expected a share below 1"
    for name in ("radius", "clip", "lr"):
        if getattr(config, name) == 0:
            return f"--{name} 0: expected a number above 0"
    if config.track and not config.estimator.startswith(("frozen", "tracking")):
        return f"--track with --estimator {config.estimator}: expected one of them"
    if config.validation_data and config.data in ("generated", "tinystories"):
        return (
            f"--validation-data with --data {config.data}, which has its own: expected the path of a text file in both"
        )
    if config.estimator == "bp" and (config.specnorm or config.attn_mode != "softmax" or config.feedback != 1):
        return "--estimator bp with --specnorm, --attn-mode or --feedback: these are the block's"
    if config.jacreg and not config.jr_floor <= config.jacreg <= config.jr_max:
        return (
            f"--jacreg {config.jacreg}: expected from --jr-floor, {config.jr_floor}, to --jr-max, {config.jr_max}; "
            "or 0 for no penalty"
        )
    if config.feedback > 1 or config.ramp == 0 or config.opened + config.ramp > 1:
        return (
            f"--feedback {config.feedback} --opened {config.opened} --ramp {config.ramp}: expected a feedback of at "
            "most 1 that reaches 1: opened + ramp at most 1, ramp above 0"
        )
    return None


def command(config):
    """The command line that gives this config."""
    default = configured(type(config), config.preset)
    default = replace(default, **implied(config.estimator, config.warm))
    default = replace(default, name=f"{config.estimator}-{config.preset}-seed{config.seed}")
    words = plumbing.run.command(config, default, FOLDER / "train.py")
    return words.replace("python ep_c512/train.py", "python -m ep_c512.train", 1)


class Average:
    """An average of the weights over the steps; at first over few, so that the start does not count."""

    def __init__(self, model, decay):
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()} if decay else {}

    @torch.no_grad()
    def update(self, model, step):
        for name, weight in self.weights.items():
            weight.lerp_(model.get_parameter(name), 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextlib.contextmanager
    def applied(self, model):
        """The model with these weights, in this context."""
        own = {name: model.get_parameter(name).detach().clone() for name in self.weights}
        with torch.no_grad():
            for name, weight in self.weights.items():
                model.get_parameter(name).copy_(weight)
            yield
            for name, weight in own.items():
                model.get_parameter(name).copy_(weight)

    def state_dict(self):
        return self.weights

    def load_state_dict(self, state):
        self.weights = {name: state[name] for name in self.weights}


class Worst:
    """The largest residual and change of a since the last report, and how many updates were left out so far."""

    def __init__(self):
        self.residual, self.change, self.skipped = 0.0, 0.0, 0

    def state_dict(self):
        return vars(self).copy()

    def load_state_dict(self, state):
        self.residual, self.change = float(state["residual"]), float(state["change"])
        self.skipped = int(state["skipped"])


class Run(plumbing.run.Run):
    """The folder runs/ep_c512/NAME."""

    project = "ep-c512"

    def __init__(self, config):
        super().__init__(config, FOLDER, command(config))
        self.worst = Worst()

    def sources(self):
        names = ("block", "data", "gradients", "one_layer", "run", "stability", "train")
        return [FOLDER.parent / "common.py", *(FOLDER / f"{name}.py" for name in names)]

    def warm_start(self, model):
        """The weights of another run, as its training left them."""
        if not self.config.warm or self.checkpoint.exists():
            return
        path = disk.checkpoint_path(self.config.warm)
        saved = disk.load_checkpoint(path, self.device)
        try:
            model.load_state_dict(saved["model"])
        except (RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(f"--warm {path} does not fit this model ({' '.join(str(error).split())[:200]})") from None

    def compiled(self, model):
        """On CUDA a step of relaxation is compiled; it is small, and all steps use it again."""
        if self.config.compile and self.device.type == "cuda" and self.config.estimator != "bp":
            model.kernels = Kernels(torch.compile)
        return model

    def highest(self, numbers):
        """Of all processes, which must agree on what follows from it; infinite where one is no number. So gates and
        controller see the worst share of a batch where there are several, and the whole batch where there is one."""
        most = max(number if math.isfinite(number) else math.inf for number in numbers)
        if self.world == 1:
            return most
        return float(self.agreed(torch.tensor(most, dtype=torch.float64), torch.distributed.ReduceOp.MAX))

    def summed(self, gradient):
        """The gradient of the whole batch out of those of all processes' shares."""
        if self.world > 1:
            flat = torch.cat([g.flatten() for g in gradient.values()]) / self.world
            torch.distributed.all_reduce(flat)
            parts = flat.split([g.numel() for g in gradient.values()])
            gradient = {name: part.view_as(g) for (name, g), part in zip(gradient.items(), parts)}
        return gradient

    def passes(self, health):
        """Whether the states have settled well enough for their gradient to be followed."""
        residual, change = health.get("residual", 0.0), health.get("change", 0.0)
        self.worst.residual, self.worst.change = max(self.worst.residual, residual), max(self.worst.change, change)
        if residual <= self.config.gate and (change <= self.config.gate_change or not self.config.gate_change):
            return True
        self.worst.skipped += 1
        return False

    def report(self, step, model, loss, health, rate):
        self.watch(step, loss)
        residual = health.get("residual", 0.0)
        if residual > self.config.abort:
            self.check_finite(step, model)
            self.log(f"# the residual is {residual:.2g}, above --abort {self.config.abort}: the block does not settle")
            self.end({"solved": None, "diverged_at": step + 1, "aborted_at": step + 1})
            raise SystemExit(0)
        if not self.due(step, self.config.report_every):
            return
        speed, left = self.pace(step, self.config.batch * self.config.length * self.config.navg)
        loss = float(self.agreed(loss, torch.distributed.ReduceOp.SUM) / self.world)
        self.row |= {"loss": round(loss, 6), "lr": rate}
        if health:
            found = health | {"residual_max": self.worst.residual, "change_max": self.worst.change}
            found["force_residual_max"] = self.worst.residual / self.config.step_size
            self.row |= {name: float(f"{float(value):.6g}") for name, value in found.items()}
            self.row["skipped"] = self.worst.skipped
        self.row |= {"tokens_per_second": round(speed), "seconds": round(self.elapsed(), 1)}
        self.worst.residual = self.worst.change = 0.0
        shown = "  ".join(f"{name} {self.row[name]:.3g}" for name in health)
        share = f"{100 * (step + 1) / self.config.steps:5.1f}%"
        self.log(f"step {step + 1:>6} {share}  loss {loss:.4f}  {shown}  {speed:,.0f} tokens/s  left {left}")

    def diagnose(self, step, model, text):
        """The leading eigenvalues of the block, at tokens of the first validation text."""
        if self.config.estimator == "bp" or not self.due(step, self.config.diagnose_every):
            return
        with self.untimed():
            tokens, targets = next(text.held_out(self.config, self.device, 1))
            free = free_phase(model, tokens, targets, self.config.free_steps, self.config.step_size)
            places = stability.spread(self.config.length, self.config.diagnosed_tokens)
            real, growth = stability.leading(free.force, free.z, self.config.step_size, places)
        worst = int(real[0].argmax())
        self.row["leading_by_token"] = " ".join(f"{value:.2f}" for value in real[0].tolist())
        found = {"leading": real[0, worst], "leading_mean": real.mean(), "growth": growth.max()}
        self.row |= {name: float(f"{float(value):.6g}") for name, value in found.items()}
        self.row["leading_token"] = int(places[worst])

    @torch.no_grad()
    def validate(self, step, model, average, text):
        if not self.due(step, self.config.evaluate_every):
            return
        self.check_finite(step, model)
        total = torch.zeros(3, dtype=torch.float64)
        with self.untimed(), average.applied(model):
            for tokens, targets in text.held_out(self.config, self.device, self.config.validation_windows):
                if self.config.estimator == "bp":
                    loss, residual = model.loss(tokens, targets), 0.0
                else:
                    free = free_phase(model, tokens, targets, self.config.free_steps, self.config.step_size)
                    loss, residual = model.loss(free.z, targets), free.residual
                total += torch.tensor([float(loss) * len(tokens), residual * len(tokens), len(tokens)])
        loss, residual, _ = (total / total[2]).tolist()
        self.row |= {"validation": round(loss, 6), "validation_residual": float(f"{residual:.6g}")}
        self.log(f"step {step + 1:>6} validation: cross-entropy {loss:.4f}  residual {residual:.2g}")

    def finish(self, text):
        if ended := self.finished():
            self.log("# finished already")
            self.close()
            return ended
        if not any("validation" in row for row in self.rows):  # another process than the first keeps none
            return self.end({})
        bigram, last = text.bigram(self.config), self.rows[-1]["validation"]
        self.log(f"summary: validation {last:.4f}, bigram {bigram:.4f}, skipped {self.worst.skipped}")
        return self.end({"validation": last, "bigram": round(bigram, 6)})

    def end(self, results):
        """Also of a run that was aborted or diverged: what its rows say of its whole course."""
        rows, found = self.rows, {}
        if validated := [row for row in rows if "validation" in row]:
            best = min(validated, key=lambda row: row["validation"])
            found["best"] = {"step": best["step"], "validation": best["validation"]}
        for name, column in (("residual_max",) * 2, ("change_max",) * 2, ("leading_max", "leading")):
            values = [row[column] for row in rows if column in row]
            if column in ("residual_max", "change_max") and values:
                values.append(getattr(self.worst, column.removesuffix("_max")))
            if values:
                found[name] = max(value if math.isfinite(value) else math.inf for value in values)
        found = {name: value if value != math.inf else "inf" for name, value in found.items()}
        return super().end(found | {"skipped": self.worst.skipped} | results)
