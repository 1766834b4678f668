"""One run's folder, for every family of experiments: lock, config, log, metrics, checkpoint, resume, signals, W&B,
summary, torchrun. It knows nothing of what is trained. A training loop uses it so:

    run = Run(config, __file__)
    model = run.compiled(Model(config).to(run.device))
    for step in range(run.resume(model, optimizers), config.steps):
        ...                                     # the gradients of this step
        run.watch(step, loss)                   # notes the first loss that is not finite
        run.row["loss"] = ...                   # numbers for a row of metrics.csv, on any step
        run.end_step(step, model, optimizers)   # appends the row, saves when due, stops after Ctrl-C
    run.end({"solved": ...})                    # summary.json
"""

import ast
import contextlib
import dataclasses
import json
import os
import re
import signal
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from plumbing import disk, loop
from plumbing.tracking import limited, start_wandb

ROOT = Path(__file__).resolve().parent.parent
# Flags that may change when a run is resumed: they do not change what is computed.
RESUMABLE = {"resume", "keep_every", "device", "compile", "test_iterations", "wandb", "wandb_mode", "runs", "name"}


@dataclass
class RunConfig:
    """Flags that every run has; a config also needs `steps`."""

    name: str = ""  # the run's folder is runs/<experiment>/<name>; empty: preset and seed
    seed: int = 0  # with the step it fixes every random number of the run
    resume: bool = False  # go on from the run's checkpoint; start anew where there is none
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: CUDA if there is one, else the CPU
    compile: bool = True  # torch.compile one iteration; on CUDA only
    report_every: int = 100  # steps between two lines of log.txt and metrics.csv
    save_every: int = 1_000  # steps between two checkpoints: what a killed run loses at most
    keep_every: int = 0  # steps between two checkpoints that stay, as checkpoint-STEP.pt; 0: none but the last
    wandb: Literal["off", "offline", "online"] = "off"  # also send the metrics to Weights & Biases
    runs: str = "runs"  # the folder that holds all runs


def checksums(files):
    """A checksum of each file's code; comments and layout do not count."""
    return {path.name: zlib.crc32(ast.dump(ast.parse(path.read_bytes())).encode()) for path in files if path.exists()}


def run_name(config):
    return config.name or f"{config.preset}-seed{config.seed}"


def command(config, default, file):
    """The command line that gives this config, whichever way the run was started; `default`: without any flag but
    the preset."""
    words = ["python", Path(file).resolve().relative_to(ROOT).as_posix()]
    words += ["--preset", config.preset] * (config.preset != "full")
    for name, value in vars(config).items():
        if value != getattr(default, name) and name != "resume":
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{'' if value else 'no-'}{flag}")
            else:
                words += [f"--{flag}", *re.findall(r"[^\s(),']+", str(value))]
    return " ".join(words)


class Run:
    """The folder of one run, what is written there, and the devices that it runs on."""

    project = "sudoku"  # in W&B

    def __init__(self, config, file, command="", folder=None):
        self.config, self.file, self.experiment = config, Path(file).resolve(), Path(file).stem
        self.command = command
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = pick_device(config.device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        if getattr(config, "batch", self.world) % self.world:
            raise SystemExit(f"--batch {config.batch} does not divide among {self.world} processes; make it a multiple")
        low_precision = getattr(config, "precision", "fp32") == "bf16"
        torch.set_float32_matmul_precision("high" if low_precision else "highest")  # high: TF32 where there is any
        torch.manual_seed(config.seed)
        self.folder = Path(folder or Path(config.runs) / self.experiment / run_name(config))
        self.checkpoint = self.folder / "checkpoint.pt"
        self.rows, self.row, self.notes, self.data = [], {}, {}, None
        self.seconds, self.interrupted, self.handlers = 0.0, None, {}
        self.first_bad = torch.full((), torch.inf, device=self.device)  # the first step whose loss is not finite
        self.code = checksums([*self.sources(), *sorted((ROOT / "plumbing").glob("*.py"))])
        self.wandb = self.lock = None
        if self.rank == 0:
            self.open_folder()
        self.clock = self.window = time.perf_counter()
        self.window_step = 0

    # ------------------------------------------------------------ start

    def open_folder(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.folder / "lock", "w")
        except OSError as error:
            raise SystemExit(
                f"cannot write to {self.folder} ({error.strerror}); pick another --runs or --name"
            ) from None
        with contextlib.suppress(ImportError):  # no such locks on Windows
            import fcntl

            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SystemExit(
                    f"{self.folder} is in use by another process; wait for it or pick another --name"
                ) from None
        for leftover in self.folder.glob("*.tmp"):  # of a run killed while it wrote
            leftover.unlink(missing_ok=True)
        found = self.checkpoint.exists() or (self.folder / "summary.json").exists()
        if found and not self.config.resume:
            raise SystemExit(f"{self.folder} holds a run already; add --resume to go on, or pick another --name")
        with disk.writing(self.folder, "config.json"):
            if not found:
                for leftover in ("metrics.csv", "log.txt"):  # of a run killed before it saved
                    (self.folder / leftover).unlink(missing_ok=True)
            if not found or disk.read_json(self.folder / "config.json") is None:
                disk.write_json(self.folder / "config.json", dataclasses.asdict(self.config))
        self.log(f"# {self.command or self.experiment}")
        self.log(f"# {disk.describe(self.device)} x {self.world}, git {disk.commit()}")
        self.log(f"# {self.folder}")

    def finished(self):
        """The summary of this folder, if its run has ended: with all its steps, or diverged."""
        summary = disk.read_json(self.folder / "summary.json")
        whole = isinstance(summary, dict) and "commit" in summary
        return summary if whole and self.config.resume else None

    def resume(self, model, optimizers=()):
        """Load the checkpoint where there is one; from here on signals end the run after the current step.
        `optimizers`: anything with state_dict and load_state_dict. -> the number of steps already done"""
        ended = self.finished()
        if ended and ended.get("diverged_at"):
            self.log(f"# this run diverged at step {ended['diverged_at']}; to try again, pick another --name")
            raise SystemExit(0)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.log(f"# {self.parameters:,} parameters")
        step = self.load(model, optimizers) if self.checkpoint.exists() else 0
        if self.rank == 0 and not ended:
            config = dataclasses.asdict(self.config)
            self.wandb = start_wandb(config["wandb"], self.folder, self.experiment, config, self.log, self.project)
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            with contextlib.suppress(ValueError):  # only the main thread may set handlers
                self.handlers[number] = signal.signal(number, self.interrupt)
        self.window, self.window_step = time.perf_counter(), step
        return step

    def load(self, model, optimizers):
        saved = disk.load_checkpoint(self.checkpoint, self.device)
        if missing := {"experiment", "step", "seconds", "config", "model", "optimizers", "rows"} - set(saved):
            self.refuse(f"holds no {', '.join(sorted(missing))}: it is not a run's checkpoint")
        if saved["experiment"] != self.experiment:
            self.refuse(f"is of {saved['experiment']}, not of {self.experiment}")
        self.compare(saved["config"])
        step = saved["step"]
        if not isinstance(step, int) or not 0 <= step <= self.config.steps:
            self.refuse(f"is of step {step}, outside 0 to {self.config.steps}")
        if saved.get("data") != self.data:
            self.refuse("was made from other puzzles than --data gives now")
        try:
            model.load_state_dict(saved["model"])
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.refuse(f"does not fit {self.file.name} any more ({' '.join(str(error).split())[:200]})")
        self.notes = saved.get("notes", {})
        if changed := [name for name, code in self.code.items() if saved.get("code", {}).get(name) != code]:
            self.log(f"# the code has changed since the checkpoint ({', '.join(changed)}); the summary will say so")
            self.notes = self.notes | {"code_changed": sorted({*self.notes.get("code_changed", []), *changed})}
        self.seconds, self.rows = saved["seconds"], saved["rows"]
        if self.rank == 0:
            with disk.writing(self.folder, "metrics.csv"):  # rows after the checkpoint come again
                if self.rows:
                    disk.write_rows(self.folder / "metrics.csv", self.rows)
                else:
                    (self.folder / "metrics.csv").unlink(missing_ok=True)
        self.log(f"# resumed after step {step}")
        return step

    def refuse(self, reason):
        raise SystemExit(f"{self.checkpoint} {reason}; restore what it was made with, or pick another --name")

    def compare(self, then):
        """A run goes on with the config that it was begun with."""
        now = json.loads(json.dumps(dataclasses.asdict(self.config)))
        other = [f"{k}: {then.get(k)} then, {v} now" for k, v in now.items() if k not in RESUMABLE and then.get(k) != v]
        if other:
            raise SystemExit(f"{self.folder} was begun with another config ({'; '.join(other)}); pick another --name")

    def sources(self):
        """The files that decide what this run computes, beside those in plumbing/."""
        return [self.file, ROOT / "common.py"]

    # ------------------------------------------------------------ devices

    def precision(self):
        """Autocast to the config's precision on CUDA; a CPU always computes in fp32."""
        wanted = self.device.type == "cuda" and getattr(self.config, "precision", "fp32") == "bf16"
        return torch.autocast("cuda", torch.bfloat16) if wanted else contextlib.nullcontext()

    def compiled(self, model):
        """On CUDA, `iterate` is compiled: one iteration is small to compile, and all iterations use it again."""
        if self.config.compile and self.device.type == "cuda":
            loop.replace(model, torch.compile(type(model).iterate))
        return model

    # ------------------------------------------------------------ every step

    def interrupt(self, number, frame):
        if self.interrupted is not None:
            raise SystemExit(f"ended at once; --resume goes on from {self.checkpoint}")
        self.interrupted = number
        disk.say(f"# {signal.Signals(number).name}: saving after this step; once more ends at once")

    def log(self, line):
        if self.rank == 0:
            disk.say(line)
            with disk.writing(self.folder, "log.txt"), open(self.folder / "log.txt", "a") as file:
                file.write(line + "\n")

    def due(self, step, every):
        return (step + 1) % every == 0 or step + 1 == self.config.steps

    def elapsed(self):
        return self.seconds + time.perf_counter() - self.clock

    def watch(self, step, loss):
        """Note the first step whose loss is not finite; nothing waits for the device here."""
        bad = ~torch.isfinite(loss.detach())
        self.first_bad = torch.where(bad, self.first_bad.clamp(max=step + 1), self.first_bad)

    def pace(self, step, batch):
        """(examples a second since the last call, time left as text)"""
        now = time.perf_counter()
        speed = (step + 1 - self.window_step) * batch / max(1e-9, now - self.window)
        self.window, self.window_step = now, step + 1
        seconds = round((self.config.steps - step - 1) * batch / speed)
        minutes, seconds = divmod(seconds, 60)
        return speed, f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{seconds:02d}s"

    @contextlib.contextmanager
    def untimed(self):
        """What is done in this context, such as a test, does not count as training time."""
        before = time.perf_counter()
        yield
        spent = time.perf_counter() - before
        self.window, self.clock = self.window + spent, self.clock + spent

    def end_step(self, step, model, optimizers=()):
        """Append the metrics row, then checkpoint: a saved step has its row. A signal or a loss that is not
        finite ends the run here."""
        stop = self.agreed(torch.tensor(float(self.interrupted or 0)), dist.ReduceOp.MAX) if self.world > 1 else 0
        stop = int(stop) or self.interrupted
        every = getattr(self.config, "keep_every", 0)  # addition/ has no such flag
        keep = every and self.due(step, every)
        save = self.due(step, self.config.save_every) or keep or stop
        if self.row or save:
            self.check_finite(step, model if save else None)
        if self.row and self.rank == 0:
            self.rows.append({"step": step + 1} | self.row)
            with disk.writing(self.folder, "metrics.csv"):
                disk.append_row(self.folder / "metrics.csv", self.rows)
            if self.wandb:
                with contextlib.suppress(Exception):
                    self.wandb.log(self.row, step=step + 1)
        self.row = {}
        if save:  # on every process: what they share out, they gather for it
            state = {
                "experiment": self.experiment,
                "step": step + 1,
                "seconds": self.elapsed(),
                "config": json.loads(json.dumps(dataclasses.asdict(self.config))),
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "rows": self.rows,
                "data": self.data,
                "code": self.code,
                "notes": self.notes,
            }
            if self.rank == 0:
                with disk.writing(self.folder, "checkpoint.pt"):
                    disk.save_checkpoint(self.checkpoint, state)
                if keep:  # to test it, not to go on from it
                    with disk.writing(self.folder, name := f"checkpoint-{step + 1}.pt"):
                        disk.save_checkpoint(self.folder / name, state | {"optimizers": []})
        if stop:
            self.log(f"# stopped after step {step + 1}; the same command with --resume goes on")
            self.close()
            raise SystemExit(128 + stop)

    def agreed(self, number, operation):
        number = number.to(self.device)
        if self.world > 1:
            dist.all_reduce(number, operation)
        return number

    def gathered(self, share):
        """All processes' shares of a tensor, one after the other."""
        if self.world == 1:
            return share
        shares = [torch.empty_like(share) for _ in range(self.world)]
        dist.all_gather(shares, share.contiguous())
        return torch.cat(shares)

    def share(self, whole):
        """This process's share of what `gathered` gave."""
        return whole.chunk(self.world)[self.rank].clone()

    def check_finite(self, step, model=None):
        """A run that diverges is a result: it ends with a summary that says at which step."""
        bad = float(self.agreed(self.first_bad.clone(), dist.ReduceOp.MIN))
        if model is not None and bad == torch.inf and not all(bool(p.isfinite().all()) for p in model.parameters()):
            bad = step + 1
        if bad < torch.inf:
            self.log(f"# loss or weights not finite at step {bad:.0f}; the last finite checkpoint is kept")
            self.end({"solved": None, "diverged_at": int(bad)})
            raise SystemExit(0)

    # ------------------------------------------------------------ end

    def end(self, results):
        """Write summary.json, with these results and what every run says of itself."""
        summary = {
            "experiment": self.experiment,
            "seed": self.config.seed,
            "parameters": self.parameters,
            "steps": self.config.steps,
            "seconds": round(self.elapsed(), 1),  # with data and compiling, without tests
            "hardware": disk.describe(self.device),
            "command": self.command,
            "commit": disk.commit(),
            **self.notes,
            **results,
        }
        if summary.get("diverged_at"):
            self.log(f"summary: diverged at step {summary['diverged_at']}")
        if self.rank == 0:
            with disk.writing(self.folder, "summary.json"):
                disk.write_json(self.folder / "summary.json", summary)
            if self.wandb:
                limited(lambda: (self.wandb.summary.update(results), self.wandb.finish()))
        self.close()
        return summary

    def default_signals(self):
        """Signals do again what they did before `resume`."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def close(self):
        self.default_signals()
        if self.lock:
            self.lock.close()


def sum_gradients(model):
    """Add up the gradients of all processes, each scaled to the whole batch already."""
    if dist.is_initialized():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for g, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            g.copy_(part.view_as(g))


def pick_device(name):
    """The device of this process; torchrun's processes on one machine take a card each."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        raise SystemExit(f"--device {name}: torch finds no such device on this machine; use --device cpu")
    if name == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)
