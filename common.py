"""What must never differ between experiments: configs, data, exact evaluation, schedules, the plumbing of a run.

What experiments vary (model, loss, loop, optimiser) stands in each experiment's own file, on purpose.
"""

import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import tyro

from plumbing.disk import (
    append_row,
    commit,
    describe,
    keep_rows,
    load_checkpoint,
    save_checkpoint,
    start_wandb,
    write_json,
    writing,
)

FREE = {
    "resume",
    "device",
    "compile",
    "test_iterations",
    "wandb",
    "runs",
    "name",
}  # flags that may differ between parts of one run
IGNORED = -100  # the target of a clue: no loss there
Phases = tuple[tuple[int, float, float], ...]  # (until step, lowest rating, below this rating), ...

# ---------------------------------------------------------------- configs


@dataclass
class RunConfig:
    """Flags that every experiment has."""

    preset: Literal["full", "mini", "smoke"] = "full"  # the log's run; minutes on 2 cores; seconds, for tests
    name: str = ""  # the run's folder is runs/<experiment>/<name>; empty: preset and seed
    seed: int = 0  # with the step it fixes every random number of the run
    resume: bool = False  # go on from the run's checkpoint; start anew where there is none
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: CUDA if there is one, else the CPU
    compile: bool = True  # torch.compile one iteration; on CUDA only
    report_every: int = 100  # steps between two lines of log.txt and metrics.csv
    evaluate_every: int = 5_000  # steps between two passes over the test set
    save_every: int = 1_000  # steps between two checkpoints: what a killed run loses at most
    test_iterations: tuple[int, ...] = ()  # further counts of iterations to test at the end; --resume adds them later
    wandb: Literal["off", "offline", "online"] = "off"  # also send the metrics to Weights & Biases
    runs: str = "runs"  # the folder that holds all runs


# One rule a field shrinks every run of the log alike, so what an experiment changes stays changed.
MINI = {
    "width": lambda v: max(8, v // 4),
    "mlp": lambda v: max(8, v // 4),
    "layers": lambda v: max(1, v // 2),
    "heads": lambda v: max(1, v // 2),
    "iterations": lambda v: max(1, v // 4),
    "dropout": lambda v: 0.0,  # a mini run sees each puzzle once or twice: nothing to regularise
    "batch": lambda v: max(2, 2 * round(math.sqrt(v) / 2)),  # 4096 -> 64, 512 -> 22, 128 -> 12
    "lr": lambda v: round(v * 10 / 3, 6),  # narrow layers want larger steps
    "steps": lambda v: v // 50,
    "warmup": lambda v: v // 50,
    "phases": lambda v: tuple((step // 50, low, below) for step, low, below in v),
    "train_puzzles": lambda v: v // 50,
    "train_per_bucket": lambda v: v // 50,
    "test_per_bucket": lambda v: 200,
    "data": lambda v: "generated",
    "report_every": lambda v: 50,
    "evaluate_every": lambda v: 500,
    "save_every": lambda v: 100,
}
SMOKE = MINI | {
    "width": lambda v: max(8, v // 8),
    "mlp": lambda v: max(8, v // 8),
    "layers": lambda v: max(1, v // 4),
    "heads": lambda v: max(1, v // 4),
    "iterations": lambda v: max(1, v // 8),
    "dropout": lambda v: v,
    "batch": lambda v: max(2, 2 * round(math.sqrt(v) / 8)),
    "steps": lambda v: max(4, v // 10_000),
    "warmup": lambda v: v // 1_000,
    "phases": lambda v: tuple((step // 10_000, low, below) for step, low, below in v),
    "train_puzzles": lambda v: min(v or 400, 400),
    "train_per_bucket": lambda v: min(v, 80),
    "test_per_bucket": lambda v: 20,
    "test_iterations": lambda v: (),
    "report_every": lambda v: 1,
    "evaluate_every": lambda v: 4,
    "save_every": lambda v: 2,
}
PRESETS = {"full": {}, "mini": MINI, "smoke": SMOKE}


def parse(config_class, argv=None):
    """The experiment's config from the command line: its preset first, then the flags on top of that."""
    argv = sys.argv[1:] if argv is None else list(argv)
    words = " ".join(argv).replace("=", " ").split()
    preset = words[words.index("--preset") + 1] if "--preset" in words[:-1] else "full"
    default = with_preset(config_class(), preset)
    text = (sys.modules[config_class.__module__].__doc__ or "").replace("\n", "\n ")  # tyro keeps indented lines apart
    return tyro.cli(config_class, args=argv, default=default, description=text)


def with_preset(config, preset):
    """This config shrunk by the preset's rules; fields that it does not have are passed over."""
    rules = {name: rule for name, rule in PRESETS.get(preset, {}).items() if hasattr(config, name)}
    changed = {name: rule(getattr(config, name)) for name, rule in rules.items()}
    return dataclasses.replace(config, **changed, preset=preset if preset in PRESETS else config.preset)


def run_name(config):
    return config.name or f"{config.preset}-seed{config.seed}"


# ---------------------------------------------------------------- data


@dataclass
class Batch:
    puzzle: torch.Tensor  # int64 [n, 81], 0 is a blank; this process's share
    target: torch.Tensor  # int64 [n, 81], digit - 1 on blanks, IGNORED on clues
    keys: torch.Tensor  # int32 [n], the randomness of dropout
    blanks: int  # blank cells in the batch of all processes together


def batch_at(config, data, run, step):
    """The batch of this step: a pure function of (seed, step), however many processes share it."""
    random = np.random.Generator(np.random.Philox(key=[config.seed, step]))
    low, below = next(((low, below) for until, low, below in config.phases if step < until), config.phases[-1][1:])
    pool = run.pools.get((low, below))
    if pool is None:
        pool = run.pools[low, below] = np.flatnonzero((data.train.rating >= low) & (data.train.rating < below))
        if not len(pool):
            raise SystemExit(f"step {step}: no training puzzle is rated in [{low}, {below}); change --phases")
    puzzle, solution = data.train.rows(pool[random.integers(len(pool), size=config.batch)])
    keys = random.integers(-(2**31), 2**31, size=config.batch, dtype=np.int32)
    blanks = int((puzzle == 0).sum())
    mine = slice(run.rank * config.batch // run.world, (run.rank + 1) * config.batch // run.world)
    puzzle, solution = puzzle[mine].astype(np.int64), solution[mine].astype(np.int64)
    target = np.where(puzzle == 0, solution - 1, IGNORED)
    return Batch(*(torch.from_numpy(a).to(run.device) for a in (puzzle, target, keys[mine])), blanks)


# ---------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate(model, data, run, iterations, batch=256):
    """Exact counts in fp32 for every bucket after each of these numbers of iterations. A puzzle counts as
    solved when every blank is right. -> {iterations: {"solved": [...], "puzzles": [...], "cells", "blanks"}}"""
    training = model.training
    model.eval()
    buckets = data.rows_by_bucket(data.test)
    counts = torch.zeros(len(iterations), len(buckets), 4, dtype=torch.float64, device=run.device)
    for bucket, rows in enumerate(buckets):
        parts = np.array_split(rows, math.ceil(len(rows) / batch)) if len(rows) else []
        for part in parts[run.rank :: run.world]:
            puzzle, solution = (torch.from_numpy(a.astype(np.int64)).to(run.device) for a in data.test.rows(part))
            blank = puzzle == 0
            for i, logits in enumerate(model(puzzle, max(iterations)), 1):
                if i in iterations:
                    right = (logits.argmax(-1) + 1 == solution) & blank
                    solved = (right == blank).all(1).sum()
                    numbers = [solved, puzzle.new_tensor(len(part)), right.sum(), blank.sum()]
                    counts[iterations.index(i), bucket] += torch.stack(numbers)
    if run.world > 1:
        dist.all_reduce(counts)
    model.train(training)
    names = ("solved", "puzzles", "cells", "blanks")
    table = {n: dict(zip(names, c.long().T.tolist())) for n, c in zip(iterations, counts.cpu())}
    for row in table.values():
        row["share"] = sum(row["solved"]) / max(1, sum(row["puzzles"]))
        row["cell_accuracy"] = sum(row["cells"]) / max(1, sum(row["blanks"]))
        if data.natural:  # the buckets weighted as they occur in the source's whole test file
            shares = [s / max(1, n) for s, n in zip(row["solved"], row["puzzles"])]
            row["share_natural"] = sum(w * s for w, s in zip(data.natural, shares))
    return table


# ---------------------------------------------------------------- schedules


def warmup_rate(step, peak, warmup):
    return peak * min(1.0, (step + 1) / warmup)


def cosine_rate(step, peak, warmup, steps, floor=0.01):
    """Linear warm-up, then a cosine from the peak to `floor` of it at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


# ---------------------------------------------------------------- one run


def start(config, file):
    return Run(config, Path(file).stem)


def sum_gradients(model):
    """Add up the gradients of all processes, each scaled to the whole batch already."""
    if dist.is_initialized():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for g, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            g.copy_(part.view_as(g))


class Run:
    """The folder of one run, what is written there, and the devices that it runs on."""

    def __init__(self, config, experiment):
        self.config, self.experiment = config, experiment
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = pick_device(config.device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        batch = getattr(config, "batch", self.world)
        if batch % self.world:
            raise SystemExit(f"--batch {batch} does not divide among {self.world} processes; make it a multiple")
        torch.set_float32_matmul_precision("high")  # TF32 where there is any
        torch.manual_seed(config.seed)
        self.folder = Path(config.runs) / experiment / run_name(config)
        self.pools, self.row, self.seconds, self.interrupted = {}, {}, 0.0, None
        self.first_bad = torch.full((), -1, device=self.device)
        self.wandb = self.lock = None
        if self.rank == 0:
            self.open_folder()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # only the main thread may set handlers
                signal.signal(number, self.interrupt)
        self.clock = self.window = time.perf_counter()
        self.window_step = 0

    def open_folder(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.folder / "lock", "w")
        try:
            import fcntl

            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # no such locks on Windows
        except BlockingIOError:
            raise SystemExit(
                f"{self.folder} is in use by another process; wait for it or pick another --name"
            ) from None
        if self.checkpoint.exists() and not self.config.resume:
            raise SystemExit(f"{self.folder} holds a run already; add --resume to go on, or pick another --name")
        if not self.checkpoint.exists():
            for leftover in ("metrics.csv", "log.txt", "summary.json"):  # of a run killed before it saved
                (self.folder / leftover).unlink(missing_ok=True)
            write_json(self.folder / "config.json", dataclasses.asdict(self.config))
        self.log(f"# {self.experiment} {' '.join(sys.argv[1:])}")
        self.log(f"# {describe(self.device)} x {self.world}, git {commit()}")
        self.log(f"# {self.folder}")

    @property
    def checkpoint(self):
        return self.folder / "checkpoint.pt"

    def interrupt(self, number, frame):
        if self.interrupted is not None:  # a second Ctrl-C does not wait for the step to end
            raise KeyboardInterrupt
        self.interrupted = number

    def log(self, line):
        if self.rank == 0:
            print(line, flush=True)
            with writing(self.folder, "log.txt"), open(self.folder / "log.txt", "a") as file:
                file.write(line + "\n")

    def precision(self):
        """Autocast to the config's precision on CUDA; a CPU always computes in fp32."""
        wanted = self.device.type == "cuda" and getattr(self.config, "precision", "bf16") == "bf16"
        return torch.autocast("cuda", torch.bfloat16) if wanted else contextlib.nullcontext()

    def compiled(self, model):
        """The model with one iteration compiled: small to compile, reused by all iterations."""
        if self.config.compile and self.device.type == "cuda":
            model.iterate = torch.compile(model.iterate)
        return model

    def resume(self, model, optimizers):
        """Load the checkpoint where there is one. -> the number of steps already done"""
        self.wandb = (
            None if self.rank else start_wandb(self.config.wandb, self.folder, self.experiment, vars(self.config))
        )
        self.log(f"# {sum(p.numel() for p in model.parameters()):,} parameters")
        if not self.checkpoint.exists():
            return 0
        saved = load_checkpoint(self.checkpoint, self.device)
        now = json.loads(json.dumps(dataclasses.asdict(self.config)))
        other = [f"{k}: {saved['config'].get(k)} then, {v} now" for k, v in now.items()]
        other = [line for line, (k, v) in zip(other, now.items()) if k not in FREE and saved["config"].get(k) != v]
        if other:
            raise SystemExit(f"{self.folder} was begun with another config ({'; '.join(other)}); pick another --name")
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.seconds, self.window_step = saved["seconds"], saved["step"]
        if self.rank == 0:
            keep_rows(self.folder / "metrics.csv", saved["step"])
        self.log(f"# resumed after step {saved['step']}")
        return saved["step"]

    def report(self, step, loss, logits, batch, rate):
        """One line every report_every steps: loss and accuracy of this very batch, speed since the last line."""
        loss = loss.detach()
        self.first_bad = torch.where((self.first_bad < 0) & ~torch.isfinite(loss), step + 1, self.first_bad)
        due = self.due(step, self.config.report_every)
        if not due and not self.due(step, self.config.save_every):
            return
        right = ((logits.argmax(-1) == batch.target).sum() / batch.blanks).detach()
        numbers = torch.stack([loss.float(), right.float()])
        if self.world > 1:  # each process holds its share of the sums
            dist.all_reduce(numbers)
        if self.first_bad >= 0 or not torch.isfinite(numbers[0]):
            at = int(self.first_bad) if self.first_bad >= 0 else step + 1
            raise SystemExit(
                f"the loss is not finite at step {at} of {self.folder}; the last good checkpoint is kept there. "
                "Lower --lr, or look at the batch with common.batch_at"
            )
        if due:
            now = time.perf_counter()
            speed = (step + 1 - self.window_step) * self.config.batch / max(1e-9, now - self.window)
            left = (self.config.steps - step - 1) * self.config.batch / speed
            self.window, self.window_step = now, step + 1
            self.row |= {
                "loss": round(float(numbers[0]), 6),
                "accuracy": round(float(numbers[1]), 6),
                "lr": rate,
            }
            self.row |= {"puzzles_per_second": round(speed, 1), "seconds": round(self.elapsed(), 1)}
            share = f"{100 * (step + 1) / self.config.steps:5.1f}%"
            self.log(
                f"step {step + 1:>6} {share}  loss {numbers[0]:.4f}  blanks right {100 * numbers[1]:5.1f}%  "
                f"{speed:,.0f} puzzles/s  left {clock(left)}"
            )

    def evaluate(self, step, model, data):
        """Test every evaluate_every steps and after the last."""
        if self.due(step, self.config.evaluate_every):
            before = time.perf_counter()
            n = self.config.iterations
            row = evaluate(model, data, self, [n])[n]
            self.row |= {"test_solved": round(row["share"], 6), "test_cells": round(row["cell_accuracy"], 6)}
            self.log(f"step {step + 1:>6} test: {solved_line(row)}")
            spent = time.perf_counter() - before
            self.window, self.clock = self.window + spent, self.clock + spent  # tests are not training time

    def end_step(self, step, model, optimizers):
        """Write what this step has to say, then save when due: a metrics row never comes later than its step."""
        if self.row and self.rank == 0:
            with writing(self.folder, "metrics.csv"):
                append_row(self.folder / "metrics.csv", {"step": step + 1} | self.row)
            if self.wandb:
                with contextlib.suppress(Exception):
                    self.wandb.log(self.row, step=step + 1)
        self.row = {}
        stop = self.agreed_stop() if self.world > 1 else self.interrupted
        if (self.due(step, self.config.save_every) or stop is not None) and self.rank == 0:
            state = {
                "experiment": self.experiment,
                "step": step + 1,
                "seconds": self.elapsed(),
                "config": json.loads(json.dumps(dataclasses.asdict(self.config))),
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
            with writing(self.folder, "checkpoint.pt"):
                save_checkpoint(self.checkpoint, state)
        if stop is not None:
            self.log(f"# stopped after step {step + 1}; the same command with --resume goes on")
            raise SystemExit(128 + stop)

    def agreed_stop(self):
        """The signal that any of the processes got; all leave at the same step."""
        flag = torch.tensor(self.interrupted or 0, device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return int(flag) or None

    def finish(self, model, data):
        """The last test, summary.json, and lines that grep can read."""
        trained = self.elapsed()
        counts = {self.config.iterations, *self.config.test_iterations}
        table = evaluate(model, data, self, sorted(counts))
        summary = {
            "experiment": self.experiment,
            "preset": self.config.preset,
            "seed": self.config.seed,
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": self.config.steps,
            "seconds": round(trained, 1),  # with data and compiling, without tests
            "hardware": describe(self.device),
            "command": f"python {self.experiment}.py {' '.join(sys.argv[1:])}".strip(),
            "commit": commit(),
            "solved": table[self.config.iterations]["share"],
            "test": {str(n): row for n, row in table.items()},
        }
        for n, row in table.items():
            self.log(f"summary: iterations={n} {solved_line(row)}")
        if self.rank == 0:
            with writing(self.folder, "summary.json"):
                write_json(self.folder / "summary.json", summary)
            if self.wandb:
                with contextlib.suppress(Exception):
                    self.wandb.summary.update({"solved": summary["solved"]})
                    self.wandb.finish()
            self.lock.close()
        return summary

    def due(self, step, every):
        return (step + 1) % every == 0 or step + 1 == self.config.steps

    def elapsed(self):
        return self.seconds + time.perf_counter() - self.clock


def pick_device(name):
    """The device of this process; torchrun's processes on one machine take a card each."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("--device cuda: no CUDA device is visible to torch; use --device cpu")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{seconds:02d}s"


def solved_line(row):
    """solved 83.6% (836/1000) of all, then of every bucket."""
    parts = " ".join(f"{100 * s / max(1, n):.1f}" for s, n in zip(row["solved"], row["puzzles"]))
    natural = f"  natural mix {100 * row['share_natural']:.1f}%" if "share_natural" in row else ""
    counts = f"{100 * row['share']:.1f}% ({sum(row['solved'])}/{sum(row['puzzles'])})"
    return f"solved {counts}  by bucket {parts}  blanks right {100 * row['cell_accuracy']:.1f}%{natural}"


def modal_app(file):
    """The Modal app of this experiment when `modal run` imports the file; nothing is loaded otherwise."""
    if "modal" not in sys.modules:
        return None
    from plumbing import remote

    return remote.entry(file)
