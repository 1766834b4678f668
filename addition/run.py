"""What stands behind a run of this folder: command line, checkpoints, metrics, the summary. Plumbing is the root's."""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

import common
import plumbing.run
from plumbing import disk

RunName = Annotated[str, tyro.conf.arg(name="run-name", aliases=("--name",))]
BOUNDS = {  # of flags; elsewhere common.py's hold: 1 for whole numbers, 0 for others, and no largest value
    **dict.fromkeys(("seed", "warmup", "first_stage", "decay_until", "soften_until"), (0, 10**9)),
    **dict.fromkeys(("full", "ramp", "budget"), (0, 10**9)),
    **dict.fromkeys(("batch_size", "val_size", "test_size", "eval_batch_size"), (1, 10**7)),
    **dict.fromkeys(("rehearse", "carry", "soften", "promising"), (0, 1)),
    **dict.fromkeys(("lr", "init_std"), (1e-30, 1e30)),
    "beta2": (0, 0.999999),
}


@dataclass(frozen=True)
class Flags:
    """Flags that every run has."""

    name: RunName = ""  # the folder under results/runs; empty: from the experiment and the seed
    seed: int = 42  # it fixes every random number
    resume: bool = False  # go on from the checkpoint of a stopped run
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    save_every: int = 1_000  # steps between two checkpoints: what a killed run loses at most
    wandb: bool = False  # also send the metrics to Weights & Biases
    wandb_mode: Literal["online", "offline", "disabled"] = "online"
    runs: str = "results/runs"

    @property
    def steps(self):
        return self.train_steps


def wrong_value(options):
    """What is wrong with the value of a flag, or None."""
    bounded = {name: value for name, value in vars(options).items() if name in BOUNDS}
    for name, value in bounded.items():
        low, high = BOUNDS[name]
        if not low <= value <= high:
            return f"--{name.replace('_', '-')} {value}: expected {low} to {high}"
    return common.wrong_value(replace(options, **dict.fromkeys(bounded, 1)))


class Run(plumbing.run.Run):
    """The folder results/runs/NAME."""

    project = "addition"

    def __init__(self, options, tool, argv=()):
        command = shlex.join(["python", "-m", f"addition.{tool}", *argv])
        options = replace(options, wandb=options.wandb_mode if options.wandb else "off")
        name = options.name or f"{tool}-seed{options.seed}"
        file = Path(__file__).parent / f"{tool.replace('.', '/')}.py"
        super().__init__(options, file, command, Path(options.runs) / name)

    def sources(self):
        names = ("train", "reliable", "tiny", "smallest", "shrink", "fast/engine", "fast/kernels", "fast/sweep")
        return [Path(__file__).parent / f"{name}.py" for name in names]

    def ended(self):
        """The summary where this run has ended already; other flags than it was begun with are refused."""
        if summary := self.finished():
            self.compare(disk.read_json(self.folder / "config.json") or {})
            self.log(f"# {self.folder} has ended already")
            self.close()
        return summary

    def save(self, model, settings, name, step, exact):
        """checkpoints/NAME.pt, which export and evaluate_checkpoints read."""
        state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
        content = {
            "architecture": type(model.config).__name__, "model_config": asdict(model.config), "model_state": state,
            "settings": {key: value for key, value in asdict(settings).items() if key != "model"},
            "step": step, "val_exact": exact,
        }  # fmt: skip
        with disk.writing(self.folder, f"checkpoints/{name}.pt"):
            disk.save_checkpoint(self.folder / f"checkpoints/{name}.pt", content)


def result(recipe, steps, test, errors):
    """A run's figures for its summary; `test`: the share of the test's sums that its best weights get right."""
    best_step, best = recipe.best
    return {
        "seed": recipe.s.seed, "best_step": best_step, "best_val_exact": max(0.0, best),
        "last_val_exact": recipe.rows[-1]["val_exact"] if recipe.rows else 0.0,
        "step_at_99": next((row["step"] for row in recipe.rows if row["val_exact"] >= 0.99), None),
        "test_exact": test, "errors_in_100000": sum(errors.values()),
        "errors_by_seed": {str(seed): wrong for seed, wrong in errors.items()},
        "sums_seen": steps * recipe.s.batch_size, "starts": recipe.given_up + 1, "config": asdict(recipe.s),
    }  # fmt: skip


def progress(run, step, text):
    """One line of the log, with the share of the steps, the speed and the time left."""
    speed, left = run.pace(step, 1)
    run.log(f"step {step + 1:6d} {(step + 1) / run.config.steps:4.0%}  {1000 / speed:6.2f} ms  {text}  left {left}")
