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
LARGEST = {  # values of flags; where nothing is said, there is no bound
    **dict.fromkeys(("rehearse", "carry", "soften", "promising"), 1.0),
    **dict.fromkeys(("batch_size", "val_size", "test_size", "eval_batch_size"), 10**7),
    "beta2": 0.999999,
    "seed": 10**9,
}
ABOVE_ZERO = ("lr", "init_std")
MAY_BE_ZERO = ("seed", "warmup", "first_stage", "decay_until", "soften_until", "full", "ramp", "budget")


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
    for name, value in vars(options).items():
        flag = f"--{name.replace('_', '-')}"
        if name in LARGEST and value > LARGEST[name]:
            return f"{flag} {value}: expected at most {LARGEST[name]}"
        if name in ABOVE_ZERO and value <= 0:
            return f"{flag} {value}: expected a number above 0"
    zero = {name: 1 for name in MAY_BE_ZERO if getattr(options, name, None) == 0}
    return common.wrong_value(replace(options, **zero))


def parse(settings, argv):
    """The settings from the command line; a wrong value is one line that names its flag."""
    return common.from_flags(settings, argv, settings(), wrong_value)


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


def result(recipe, steps, rows, best, test, errors):
    """A run's figures for its summary; `best`: (share of the validation's sums that are right, step)."""
    return {
        "seed": recipe.s.seed, "best_step": best[1], "best_val_exact": max(0.0, best[0]),
        "last_val_exact": rows[-1]["val_exact"] if rows else 0.0,
        "step_at_99": next((row["step"] for row in rows if row["val_exact"] >= 0.99), None),
        "test_exact": test, "errors_in_100000": sum(errors.values()),
        "errors_by_seed": {str(seed): wrong for seed, wrong in errors.items()},
        "sums_seen": steps * recipe.s.batch_size, "starts": recipe.given_up + 1, "config": asdict(recipe.s),
    }  # fmt: skip


def progress(run, step, text):
    """One line of the log, with the share of the steps, the speed and the time left."""
    speed, left = run.pace(step, 1)
    run.log(f"step {step + 1:6d} {(step + 1) / run.config.steps:4.0%}  {1000 / speed:6.2f} ms  {text}  left {left}")
