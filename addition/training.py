"""The training loop, for one model or for many stacked ones. Each model has its own data, schedule and result."""

import contextlib
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from addition import fused, model
from addition.data import SCORE_SEEDS, Stream, encode, held_out, phases, uniform_pairs
from addition.model import ModelConfig
from addition.plots import run_plots
from plumbing import disk


@dataclass(frozen=True)
class Settings:
    """A training run. The defaults are the log's."""

    model: tyro.conf.OmitArgPrefixes[ModelConfig] = field(default_factory=ModelConfig)
    preset: Literal["log", "reliable"] = "log"  # reliable: ours, which trains at will; flags go on top of it
    run_name: str = ""  # the folder under results/runs; empty: from parameters and seed
    train_steps: int = 27_000
    lr: float = 0.02  # at the end of the warm-up
    weight_decay: float = 0.01  # on all parameters
    batch_size: int = 512
    val_size: int = 5_000  # pairs for the metrics and for choosing best.pt
    test_size: int = 10_000
    eval_batch_size: int = 10_000  # pairs decoded at once; bounds memory on a GPU
    eval_interval: int = 500  # steps between two validations
    seed: int = 42  # with the step it fixes every random number
    device: str = "cpu"  # cpu, cuda, mps
    wandb: bool = False  # also send the metrics to Weights & Biases
    wandb_mode: Literal["online", "offline", "disabled"] = "online"
    # beyond the log
    engine: Literal["auto", "torch", "fused"] = "auto"  # torch: plain autograd; fused: compiled for a CPU
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: orthogonalised steps for the matrices
    beta2: float = 0.999
    init_std: float = 0.02  # of embeddings and full matrices
    position_std: float = 0.0  # of the learned positions, whatever their rank; 0: init_std for their matrices
    warmup: int = 1_350
    final_lr: float = 0.1  # of lr, at the end of the cosine
    clip: float = 1.0  # of the gradient's norm
    curriculum: str = "2000:3,7000:6"  # up to 3 digits before step 2,000, up to 6 before 7,000; 500:10@09: only 0 and 9
    mastery: float = 0.0  # a stage of the curriculum also lasts until the loss is below this; 0: only its steps count
    rehearse: float = 0.0  # share of the batch that is still made of the first stage's digits
    lengths: Literal["uniform", "full"] = "uniform"  # digit counts 1 to the curriculum's; full: always the curriculum's
    carry: float = 0.0  # share of the batch made of long carries
    carry_until: int = 0  # step at which that share has faded out; 0: it stays
    grokfast: float = 0.0  # slow gradients (their average over about 50 steps) are added this many times
    calm: float = 0.0  # weight of the mean squared attention score in the loss: keeps attention soft enough to learn
    decay_until: int = 0  # step at which the weight decay has faded out; 0: it stays
    soften: float = 1.0  # attention scores are multiplied by this at first, by 1 from --soften-until on
    soften_until: int = 4_000
    average: float = 0.0  # evaluate a moving average of the weights with this decay; 0: the weights themselves
    candidates: int = 1  # starts of each run; the best go on, the others end
    choose: str = "5000:1"  # STEP:LEFT, ...: when, and how many of a run's candidates go on
    solved: int = 0  # stop after so many validations without an error in a row; 0: never
    give_up: str = ""  # STEP:EXACT, stop at that step below that exact match; empty: never
    resume: bool = False  # go on from where a killed run was
    save_every: float = 30.0  # seconds between two saves, at least
    runs: str = "results/runs"


# Ours; EXPERIMENTS.md has the way to it.
RELIABLE = dict(
    train_steps=24_000,
    batch_size=256,
    lr=0.08,
    warmup=200,
    weight_decay=0.02,  # lets go of wrong attention while it fades; for good, it would keep sums from getting certain
    decay_until=10_000,
    init_std=0.38,
    curriculum="1000:10@09",  # zeros and nines: carries of any length, but only three sums a digit to tell apart
    mastery=0.2,
    rehearse=0.3,
    carry=0.5,
    soften=0.3,  # attention that is certain too early learns no carries
    candidates=6,
    choose="5500:2,10000:1",
)
CANDIDATE = 10**9  # what a further start adds to its run's seed
SHARED = ("train_steps", "batch_size", "val_size", "test_size", "eval_batch_size", "eval_interval", "optimizer")


def check(settings):
    s = settings
    for name in (
        "train_steps",
        "batch_size",
        "val_size",
        "test_size",
        "eval_batch_size",
        "eval_interval",
        "candidates",
    ):
        if getattr(s, name) < 1:
            raise ValueError(f"{name} is {getattr(s, name)}; it must be at least 1")
    if not 0 <= s.carry <= 1:
        raise ValueError(f"carry is {s.carry}; it is a share, 0 to 1")
    phases(s.curriculum)
    limit(s)
    choices(s)


def limit(settings):
    """The step and exact match of --give-up."""
    if not settings.give_up:
        return math.inf, 0.0
    try:
        step, exact = settings.give_up.split(":")
        return int(step), float(exact)
    except ValueError:
        raise ValueError(f"give_up is {settings.give_up!r}; write STEP:EXACT, such as 20000:0.05") from None


def choices(settings):
    """The steps of --choose, each with how many candidates go on."""
    try:
        found = [tuple(map(int, part.split(":"))) for part in settings.choose.split(",")]
        if all(len(pair) == 2 and pair[1] >= 1 for pair in found):
            return found
    except ValueError:
        pass
    raise ValueError(f"choose is {settings.choose!r}; write STEP:LEFT,STEP:LEFT such as 5500:2,10000:1")


def learning_rate(s, step):
    """Of the step that is about to be taken, counted from 0."""
    if step < s.warmup:
        return s.lr * (step + 1) / s.warmup
    progress = (step - s.warmup) / max(1, s.train_steps - s.warmup)
    return s.lr * (s.final_lr + (1 - s.final_lr) * (1 + math.cos(math.pi * progress)) / 2)


def fading(value, until, step):
    return value * max(0.0, 1 - step / until) if until else value


def choose_device(name):
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SystemExit(f"--device {name}: unknown; use cpu, cuda or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise SystemExit(f"--device {name}: this machine has none; use --device cpu")
    return device


def engine(device, name="auto"):
    """The functions that compute losses and decode."""
    if name == "fused" and device.type != "cpu":
        raise SystemExit(f"--engine fused is for a CPU; with --device {device} use --engine torch")
    return fused if device.type == "cpu" and name != "torch" else model


class Parameters:
    """Named parameters of stacked models as one matrix [models, parameters], and back."""

    def __init__(self, shapes):
        self.shapes = shapes
        self.sizes = [math.prod(shape) for shape in shapes.values()]

    def named(self, flat):
        pieces = flat.split(self.sizes, -1)
        return {
            name: piece.unflatten(-1, shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def flat(self, named):
        return torch.cat([named[name].reshape(-1) for name in self.shapes])


def orthogonal(matrix):
    """Newton-Schulz: the nearest matrix with singular values near 1 (Muon)."""
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    wide = x.shape[-2] > x.shape[-1]
    x = x.mT if wide else x
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if wide else x


class Optimizer:
    """AdamW or Muon on stacked parameters [models, parameters], each row with its own rates."""

    def __init__(self, flat, kind, parameters):
        self.kind, self.parameters = kind, parameters
        self.state = {name: torch.zeros_like(flat) for name in ("mean", "square", "slow")}

    def step(self, flat, gradient, step, lr, decay, clip, beta2, grokfast):
        mean, square, slow = (self.state[name] for name in ("mean", "square", "slow"))
        if grokfast.any():
            slow.lerp_(gradient, 0.02)
            gradient = gradient + grokfast * slow
        norm = gradient.norm(dim=1, keepdim=True)
        gradient = gradient * (clip / (norm + 1e-6)).clamp(max=1)
        mean.lerp_(gradient, 0.1)
        square.mul_(beta2).add_((1 - beta2) * gradient.square())
        update = (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - beta2 ** (step + 1))).sqrt() + 1e-8)
        if self.kind == "muon":
            named, momentum = self.parameters.named(update), self.parameters.named(0.1 * gradient + 0.9 * mean)
            for name, value in named.items():
                if value.ndim == 3 and not name.startswith(("token_emb", "pos_emb")):
                    value.copy_(orthogonal(momentum[name]) * math.sqrt(max(1, value.shape[1] / value.shape[2])))
        flat.mul_(1 - lr * decay).sub_(lr * update)
        return norm


@torch.no_grad()
def exact_match(run, tables, rows, layout, kind, at_once):
    """Share of rows whose eleven digits are all right, one number a model; rows [models, pairs, tokens]."""
    places, right = list(layout.sum), 0
    for start in range(0, rows.shape[1], at_once):
        piece = rows[:, start : start + at_once]
        right = right + (run.decode(tables, piece, layout, kind) == piece[..., places]).all(-1).sum(1)
    return right / rows.shape[1]


def score(run, config, named, device, at_once=10_000):
    """Errors in the 100,000 pairs of the final score, by seed."""
    tables, errors = config.tables({name: value[None] for name, value in named.items()}), {}
    for seed in SCORE_SEEDS:
        rows = torch.from_numpy(encode(uniform_pairs(seed, 10_000), config.layout))[None].to(device)
        exact = exact_match(run, tables, rows, config.layout, config.kind, at_once)
        errors[seed] = round((1 - exact.item()) * 10_000)
    return errors


def default_name(s):
    return f"{model.count(s.model)}p-seed{s.seed}"


def stack(values, device):
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]


class Members:
    """The stacked models that are still training."""

    def __init__(self, settings, names, device):
        self.settings, self.names, self.device = list(settings), list(names), device
        self.config = settings[0].model
        self.layout, self.kind = self.config.layout, self.config.kind
        self.parameters = Parameters(self.config.shapes())
        self.frozen_shapes = Parameters({name: value.shape for name, value in self.config.frozen(0).items()})
        flats = [self.parameters.flat(s.model.initial(s.seed, s.init_std, s.position_std)) for s in settings]
        self.flat = torch.stack(flats).to(device).requires_grad_()
        frozen = [self.frozen_shapes.flat(s.model.frozen(s.seed)) if self.frozen_shapes.shapes else torch.zeros(0)
                  for s in settings]  # fmt: skip
        self.frozen = torch.stack(frozen).to(device)
        self.optimizer = Optimizer(self.flat.detach(), settings[0].optimizer, self.parameters)
        self.averaged = self.flat.detach().clone()
        self.best = self.flat.detach().clone()
        self.best_exact = [-1.0] * len(settings)
        self.best_step = [0] * len(settings)
        self.rows = [[] for _ in settings]
        self.streak = [0] * len(settings)
        self.stages = [0] * len(settings)
        self.smooth = [math.inf if s.mastery else 0.0 for s in settings]
        self.prepare()

    def prepare(self):
        """What follows from the settings of the models that are left."""
        held = [held_out(s.seed, s.val_size, s.test_size) for s in self.settings]
        self.streams = [Stream(s.seed, h[2], self.layout) for s, h in zip(self.settings, held)]
        self.val, self.test = (
            torch.from_numpy(np.stack([encode(h[i], self.layout) for h in held])).to(self.device) for i in (0, 1)
        )
        self.curricula = [phases(s.curriculum) for s in self.settings]
        self.hyper = {name: stack([getattr(s, name) for s in self.settings], self.device)
                      for name in ("clip", "beta2", "grokfast", "average", "calm")}  # fmt: skip

    def stage(self, i, step):
        """The curriculum's stage of model i; the next one begins after its steps and, if asked for, its mastery."""
        curriculum, mastery = self.curricula[i], self.settings[i].mastery
        while step >= curriculum[self.stages[i]].until and not (mastery and self.smooth[i] > mastery):
            self.stages[i] += 1
            self.smooth[i] = math.inf if mastery else 0.0
        return curriculum[self.stages[i]]

    def follow(self, loss):
        """The average of each model's loss over about 50 steps."""
        for i, value in enumerate(loss):
            self.smooth[i] = value if math.isinf(self.smooth[i]) else 0.98 * self.smooth[i] + 0.02 * value

    def named(self, flat):
        return self.parameters.named(flat) | self.frozen_shapes.named(self.frozen)

    def tables(self, flat, step):
        tables = self.config.tables(self.named(flat))
        if all(s.soften == 1 for s in self.settings):
            return tables
        factors = [min(1.0, s.soften + (1 - s.soften) * step / max(1, s.soften_until)) for s in self.settings]
        return tables._replace(q=tables.q * torch.tensor(factors, device=self.device).view(-1, 1, 1, 1))

    def penalised(self, loss, tables):
        """The loss, and what --calm adds to it: the mean square of all scores, less each query's mean."""
        calm = self.hyper["calm"][:, 0]
        if not calm.any():
            return loss
        q, k = tables.q.flatten(1, 2), tables.k.flatten(1, 2)
        k = k - k.mean(1, keepdim=True)
        return loss + calm * ((q.mT @ q) * (k.mT @ k)).sum((1, 2)) / (q.shape[1] * k.shape[1])

    def evaluated(self):
        """The weights that validation and best.pt see."""
        averaged = self.hyper["average"] > 0
        return torch.where(averaged, self.averaged, self.flat.detach()) if averaged.any() else self.flat.detach()

    def keep(self, indices):
        """Leave only these models."""
        with torch.no_grad():
            self.flat = self.flat.detach()[indices].clone().requires_grad_()
        self.frozen, self.averaged, self.best = self.frozen[indices], self.averaged[indices], self.best[indices]
        self.optimizer.state = {name: value[indices] for name, value in self.optimizer.state.items()}
        for name in ("settings", "names", "best_exact", "best_step", "rows", "streak", "stages", "smooth"):
            setattr(self, name, [getattr(self, name)[i] for i in indices])
        self.prepare()

    def state(self):
        return {
            "names": self.names,
            "flat": self.flat.detach(),
            "averaged": self.averaged,
            "best": self.best,
            "optimizer": self.optimizer.state,
            "best_exact": self.best_exact,
            "best_step": self.best_step,
            "rows": self.rows,
            "streak": self.streak,
            "stages": self.stages,
            "smooth": self.smooth,
        }

    def restore(self, state):
        self.keep([self.names.index(name) for name in state["names"]])
        with torch.no_grad():
            self.flat.copy_(state["flat"])
        self.averaged, self.best, self.optimizer.state = state["averaged"], state["best"], state["optimizer"]
        for name in ("best_exact", "best_step", "rows", "streak", "stages", "smooth"):
            setattr(self, name, state[name])


def checkpoint(config, named, settings, step, exact):
    named = {name: value.detach().cpu().clone() for name, value in named.items()}
    return {
        "architecture": type(config).__name__,
        "model_config": asdict(config),
        "model_state": model.state(named) if isinstance(config, ModelConfig) else named,
        "settings": {name: value for name, value in asdict(settings).items() if name != "model"},
        "step": step,
        "val_exact": exact,
    }


def train(settings, names, folder, watch=print):
    """Trains all models together; returns {name: summary}. Each gets a folder of its own when there are several."""
    for s in settings:
        check(s)
    shared = settings[0]
    for name in ("model", *SHARED):
        if any(getattr(s, name) != getattr(shared, name) for s in settings):
            raise ValueError(f"{name} must be the same for all models that train together")
    device = choose_device(shared.device)
    run = engine(device, shared.engine)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folders = {name: folder / name if len(names) > 1 else folder for name in names}
    starts = [(f"{name}#{i}", replace(s, seed=s.seed + i * CANDIDATE)) for name, s in zip(names, settings)
              for i in range(s.candidates)]  # fmt: skip
    members = Members([s for _, s in starts], [name for name, _ in starts], device)
    saved, done, step, trained = folder / "state.pt", {}, 0, 0.0
    summaries = [folders[name] / "summary.json" for name in names]
    if shared.resume and not saved.exists() and all(path.exists() for path in summaries):
        watch(f"# {folder} has finished already")
        return {name: json.loads(path.read_text()) for name, path in zip(names, summaries)}
    if shared.resume and saved.exists():
        state = disk.load_checkpoint(saved, device)
        missing = set(state["names"]) - set(members.names)
        if missing or len(state["flat"][0]) != members.flat.shape[1]:
            raise SystemExit(
                f"{saved} is of another run ({', '.join(state['names'])}); give the same flags, or no --resume"
            )
        members.restore(state)
        done, step, trained = state["done"], state["step"], state["seconds"]
        watch(f"# resumed at step {step}")
    mode = shared.wandb_mode if shared.wandb else "off"
    wandb = disk.start_wandb(mode, folder, "addition", asdict(shared), project="addition")
    batch = np.zeros((len(starts), shared.batch_size, members.layout.length + 1), dtype=np.uint8)
    train_loss, counted, began, last_save = 0.0, 0, time.perf_counter() - trained, time.perf_counter()
    start = (step, time.perf_counter())

    def write(names_to_write):
        for name in names_to_write:
            i = members.names.index(name)
            place = folders[base(name)]
            (place / "checkpoints").mkdir(parents=True, exist_ok=True)
            if members.rows[i]:
                disk.write_rows(place / "metrics.csv", members.rows[i], list(members.rows[i][0]))
            for kind, flat, at, exact in (
                ("best", members.best, members.best_step[i], members.best_exact[i]),
                ("last", members.evaluated(), step, members.rows[i][-1]["val_exact"] if members.rows[i] else 0.0),
            ):
                named = {key: value[i] for key, value in members.named(flat).items()}
                content = checkpoint(members.config, named, members.settings[i], at, exact)
                disk.save_checkpoint(place / "checkpoints" / f"{kind}.pt", content)

    def finish(name):
        i, name = members.names.index(name), base(name)
        s, rows, at_once = members.settings[i], members.rows[i], shared.eval_batch_size
        named = {key: value[i] for key, value in members.named(members.best).items()}
        stacked = {key: value[None] for key, value in named.items()}
        tables = members.config.tables(stacked)
        test = exact_match(run, tables, members.test[i : i + 1], members.layout, members.kind, at_once).item()
        errors = score(run, members.config, named, device, at_once)
        write([members.names[i]])
        done[name] = {
            "name": name,
            "parameters": model.count(members.config),
            "seed": s.seed % CANDIDATE,
            "candidate": s.seed // CANDIDATE,
            "steps": step,
            "best_step": members.best_step[i],
            "best_val_exact": members.best_exact[i],
            "last_val_exact": rows[-1]["val_exact"],
            "step_at_99": next((row["step"] for row in rows if row["val_exact"] >= 0.99), None),
            "test_exact": test,
            "errors_in_100000": sum(errors.values()),
            "errors_by_seed": {str(key): value for key, value in errors.items()},
            "seconds": round(time.perf_counter() - began, 1),
            "models_together": len(names),
            "hardware": disk.describe(device),
            "engine": run.__name__.removeprefix("addition."),
            "commit": disk.commit(),
            "config": asdict(s),
        }
        disk.write_json(folders[name] / "summary.json", done[name])
        run_plots(folders[name], rows, members.curricula[i])

    def save():
        with disk.writing(folder, "state.pt"):
            if len(set(map(base, members.names))) == len(members.names):
                write(members.names)
            content = members.state() | {"done": done, "step": step, "seconds": time.perf_counter() - began}
            disk.save_checkpoint(saved, content)

    while members.names and step < shared.train_steps:
        rates = [learning_rate(s, step) for s in members.settings]
        fill = []
        for i, (s, stream) in enumerate(zip(members.settings, members.streams)):
            now = members.stage(i, step)
            least, simple = now.digits if s.lengths == "full" else 1, members.curricula[i][0].among
            fill.append(
                (stream.fill, step, least, now, simple, s.rehearse, fading(s.carry, s.carry_until, step), batch[i])
            )
        fused.in_parallel(fill)
        rows = torch.from_numpy(batch[: len(members.names)]).to(device)
        members.flat.grad = None
        tables = members.tables(members.flat, step)
        loss = run.losses(tables, rows, members.layout, members.kind)
        members.penalised(loss, tables).sum().backward()
        with torch.no_grad():
            hyper = members.hyper
            decay = stack([fading(s.weight_decay, s.decay_until, step) for s in members.settings], device)
            members.optimizer.step(
                members.flat.detach(), members.flat.grad, step, stack(rates, device), decay,
                hyper["clip"], hyper["beta2"], hyper["grokfast"],
            )  # fmt: skip
            if hyper["average"].any():
                decay = hyper["average"].clamp(max=(1 + step) / (10 + step))
                members.averaged.mul_(decay).add_((1 - decay) * members.flat.detach())
        if any(s.mastery for s in members.settings):
            members.follow(loss.tolist())
        train_loss, counted, step = train_loss + loss.detach(), counted + 1, step + 1
        if step % shared.eval_interval and step != shared.train_steps:
            continue
        flat = members.evaluated()
        with torch.no_grad():
            tables = members.tables(flat, step)
            val_loss = run.losses(tables, members.val, members.layout, members.kind).tolist()
            exact = exact_match(run, tables, members.val, members.layout, members.kind, shared.eval_batch_size).tolist()
        train_losses = (train_loss / counted).tolist()
        train_loss, counted, ended = 0.0, 0, []
        for i, s in enumerate(members.settings):
            members.rows[i].append({
                "step": step, "train_loss": round(train_losses[i], 6), "val_loss": round(val_loss[i], 6),
                "val_exact": round(exact[i], 6), "lr": round(rates[i], 8),
                "digits": members.curricula[i][members.stages[i]].digits, "stage": members.stages[i],
                "seconds": round(time.perf_counter() - began, 2),
            })  # fmt: skip
            if exact[i] > members.best_exact[i]:
                members.best_exact[i], members.best_step[i] = exact[i], step
                members.best[i] = flat[i]
            members.streak[i] = members.streak[i] + 1 if exact[i] == 1 else 0
            at, least = limit(s)
            lost = not math.isfinite(train_losses[i])
            if lost or (s.solved and members.streak[i] >= s.solved) or (step >= at and members.best_exact[i] < least):
                ended.append(members.names[i])
            if lost:
                watch(f"# {members.names[i]}: the loss is not finite at step {step}; it ends here")
        rate, start = (time.perf_counter() - start[1]) / (step - start[0]), (step, time.perf_counter())
        watch(progress(members, done, step, shared.train_steps, rate, train_losses, val_loss, exact))
        if wandb:
            with contextlib.suppress(Exception):  # metrics.csv has them all; W&B never ends a run
                prefix = [f"{name}/" if len(starts) > 1 else "" for name in members.names]
                shown = [{p + key: value for key, value in rows[-1].items()} for p, rows in zip(prefix, members.rows)]
                wandb.log(dict(itertools.chain.from_iterable(row.items() for row in shown)), step=step)
        if step == shared.train_steps:
            ended = list(members.names)
        dropped = beaten(members, step, train_losses)
        for name in ended:
            if name not in dropped:
                with disk.writing(folders[base(name)], "summary.json"):
                    finish(name)
        ended = {*ended, *dropped}
        if len(ended) == len(members.names):
            break
        if ended:
            members.keep([i for i, name in enumerate(members.names) if name not in ended])
        if ended or time.perf_counter() - last_save > shared.save_every:
            save()
            last_save = time.perf_counter()
    saved.unlink(missing_ok=True)
    if wandb:
        with contextlib.suppress(Exception):
            wandb.finish()
    return {name: done[name] for name in names}


def base(name):
    return name.rpartition("#")[0]


def beaten(members, step, train_losses):
    """The candidates that end here: all but the one of each run that are furthest, then lowest in training loss."""
    dropped = []
    for name in dict.fromkeys(map(base, members.names)):
        rivals = [i for i, other in enumerate(members.names) if base(other) == name]
        s = members.settings[rivals[0]]
        left = (
            1 if step >= s.train_steps else min([count for at, count in choices(s) if step >= at], default=len(rivals))
        )
        rivals.sort(key=lambda i: (-members.stages[i], math.isnan(train_losses[i]), train_losses[i]))
        dropped += [members.names[i] for i in rivals[left:]]
    return dropped


def progress(members, done, step, steps, rate, train_losses, val_loss, exact):
    """One line: step, share, speed, time left; one model's losses, or the exact matches of all."""
    left = round(rate * (steps - step))
    head = f"step {step:6d} {step / steps:4.0%}  {1000 * rate / len(exact):5.2f} ms a model  "
    if len(exact) == 1 and not done:
        body = f"train {train_losses[0]:.4f}  val {val_loss[0]:.4f}  exact {exact[0]:.4f}"
    else:
        good = sum(value >= 0.99 for value in exact) + sum(s["best_val_exact"] >= 0.99 for s in done.values())
        shown = " ".join(f"{value:.2f}" for value in sorted(exact, reverse=True)[:8]) + (
            " ..." if len(exact) > 8 else ""
        )
        body = f"{good} of {len(exact) + len(done)} at 99 %  best {shown}"
    return f"{head}{body}  {left // 60}:{left % 60:02d} left"


def expand(settings, seeds, grid):
    """Every combination of the grid's values, each with every seed: names and settings."""
    names, found = [], []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values))
        label = "".join(f"{key}{value}-".replace(":", ".").replace(",", "_") for key, value in chosen.items())
        for seed in seeds:
            names.append(f"{label}seed{seed}")
            found.append(replace(settings, seed=seed, **chosen))
    return names, found
