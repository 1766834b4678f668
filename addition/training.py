"""The training loop, for one model or for many stacked ones. Each model has its own data, schedule and result."""

import contextlib
import math
import re
import shlex
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import numpy as np
import torch
import tyro

import plumbing.run
from addition import fused, model
from addition.data import SCORE_SEEDS, Stream, encode, held_out, phases, uniform_pairs
from addition.model import ModelConfig
from addition.plots import run_plots
from plumbing import disk

HERE = Path(__file__).parent
RunName = Annotated[str, tyro.conf.arg(name="run-name", aliases=("--name",))]


@dataclass(frozen=True)
class Settings:
    """A training run. The defaults are the log's."""

    model: tyro.conf.OmitArgPrefixes[ModelConfig] = field(default_factory=ModelConfig)
    preset: Literal["log", "reliable"] = "log"  # reliable: our recipe; other flags override its values
    name: RunName = ""  # the folder under results/runs; empty: from parameters and seed
    train_steps: int = 27_000
    lr: float = 0.02  # at the end of the warm-up
    weight_decay: float = 0.01  # on all parameters
    batch_size: int = 512
    val_size: int = 5_000  # pairs for the metrics and for choosing best.pt
    test_size: int = 10_000
    eval_batch_size: int = 10_000  # pairs decoded at once; bounds memory on a GPU
    eval_interval: int = 500  # steps between two validations
    seed: int = 42  # with the step it fixes every random number
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    wandb: bool = False  # also send the metrics to Weights & Biases
    wandb_mode: Literal["online", "offline", "disabled"] = "online"
    # beyond the log
    engine: Literal["auto", "torch", "fused"] = "auto"  # torch: plain autograd; fused: compiled for a CPU
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: orthogonalised momentum for the matrices
    beta2: float = 0.999
    init_std: float = 0.02  # of embeddings, positions and full matrices
    warmup: int = 1_350
    final_lr: float = 0.1  # of lr, at the end of the cosine
    clip: float = 1.0  # of the gradient's norm
    curriculum: str = "2000:3,7000:6"  # up to 3 digits before step 2,000, up to 6 before 7,000; 500:10@09: only 0 and 9
    mastery: float = 0.0  # a stage of the curriculum also lasts until the loss is below this; 0: only its steps count
    rehearse: float = 0.0  # share of the batch that is made of the first stage's digits in later stages, too
    lengths: Literal["uniform", "full"] = "uniform"  # digit counts 1 to the curriculum's; full: always the curriculum's
    carry: float = 0.0  # share of the batch made of long carries
    carry_until: int = 0  # step at which that share has decayed to 0; 0: it stays
    grokfast: float = 0.0  # factor of the slow gradients (their average over about 50 steps) that are added
    calm: float = 0.0  # weight of the mean squared attention score in the loss: keeps the softmax from saturating
    decay_until: int = 0  # step at which the weight decay has decayed to 0; 0: it stays
    soften: float = 1.0  # factor of the attention scores at step 0; it rises linearly to 1 at --soften-until
    soften_until: int = 4_000
    candidates: int = 1  # random starts of each run, of which --choose keeps the best
    choose: str = "5000:1"  # STEP:LEFT, ...: from this step on, so many candidates of a run are left
    resume: bool = False  # go on from the checkpoint of a killed run
    save_every: int = 1_000  # steps between two checkpoints
    runs: str = "results/runs"

    @property
    def steps(self):
        return self.train_steps


# Our recipe; EXPERIMENTS.md shows how each value was found.
RELIABLE = dict(
    train_steps=24_000, batch_size=256, lr=0.08, warmup=200, init_std=0.38, decay_until=10_000,
    weight_decay=0.02,  # lets wrong attention shrink; for all steps it would keep predictions uncertain
    curriculum="1000:10@09",  # zeros and nines: carries of any length, but only three sums of two digits
    soften=0.3,  # attention that saturates early has no gradient for carries
    mastery=0.2, rehearse=0.3, carry=0.5, candidates=6, choose="5500:2,10000:1",
)  # fmt: skip
CANDIDATE = 10**9  # candidate i of a run has the run's seed + i * CANDIDATE
METRICS = ("step", "train_loss", "val_loss", "val_exact", "lr", "digits", "stage", "seconds")
RANGES = {  # the least and the greatest value of a number; where nothing is said, 0 and no bound
    **dict.fromkeys(("train_steps", "eval_interval", "save_every", "candidates"), (1, math.inf)),
    **dict.fromkeys(("batch_size", "val_size", "test_size", "eval_batch_size"), (1, 10**7)),
    **dict.fromkeys(("rehearse", "carry"), (0, 1)),
    **dict.fromkeys(("lr", "clip"), (1e-9, math.inf)),
    "beta2": (0, 0.999999),
    "seed": (0, CANDIDATE - 1),
}


def check(settings):
    if not re.fullmatch(r"(?!\.)[\w.+=-]*", settings.name):
        raise ValueError(f"--run-name is {settings.name}; expected letters, digits and _ . + = - (it names a folder)")
    for f in fields(settings):
        value, flag = getattr(settings, f.name), f"--{f.name.replace('_', '-')}"
        if f.type in (int, float):
            low, high = RANGES.get(f.name, (0, math.inf))
            if not (math.isfinite(value) and low <= value <= high):
                expected = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
                raise ValueError(f"{flag} is {value}; expected a number {expected}")
        if get_origin(f.type) is Literal and value not in get_args(f.type):
            raise ValueError(f"{flag} is {value!r}; expected one of {', '.join(get_args(f.type))}")
    phases(settings.curriculum)
    selections(settings)


def selections(settings):
    """The steps of --choose, each with the number of candidates that are left."""
    found = [re.fullmatch(r"(\d+):([1-9]\d*)", part) for part in settings.choose.split(",")]
    if not all(found):
        raise ValueError(f"--choose is {settings.choose!r}; expected STEP:LEFT,STEP:LEFT such as 5500:2,10000:1")
    return [(int(match[1]), int(match[2])) for match in found]


class Run(plumbing.run.Run):
    """The folder results/runs/NAME of a run or of a sweep."""

    project = "addition"

    def __init__(self, options, tool, name, argv=()):
        options = replace(options, wandb=options.wandb_mode if options.wandb else "off")
        command = shlex.join(["python", "-m", f"addition.{tool}", *argv])
        super().__init__(options, HERE / f"{tool}.py", command, Path(options.runs) / name)

    def sources(self):
        return [HERE / f"{name}.py" for name in ("data", "fused", "model", "tiny", "training")]


def learning_rate(s, step):
    """The rate of this step, counted from 0: linear warm-up, then a cosine to final_lr * lr."""
    if step < s.warmup:
        return s.lr * (step + 1) / s.warmup
    progress = (step - s.warmup) / max(1, s.train_steps - s.warmup)
    return s.lr * (s.final_lr + (1 - s.final_lr) * (1 + math.cos(math.pi * progress)) / 2)


def fading(value, until, step):
    """The value, decayed linearly to 0 at step `until`; constant where `until` is 0."""
    return value * max(0.0, 1 - step / until) if until else value


def pick_engine(device, name="auto"):
    """The module whose functions compute losses and decode."""
    if name == "fused" and device.type != "cpu":
        raise SystemExit(f"--engine fused is for a CPU; with --device {device.type} use --engine torch")
    return fused if device.type == "cpu" and name != "torch" else model


def unflatten(flat, shapes):
    """Named parameters, views of `flat` [models, parameters]."""
    pieces = flat.split([math.prod(shape) for shape in shapes.values()], -1)
    return {name: piece.unflatten(-1, shapes[name]) for name, piece in zip(shapes, pieces, strict=True)}


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

    def __init__(self, flat, kind, shapes):
        self.kind, self.shapes = kind, shapes
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
            momentum = unflatten(0.1 * gradient + 0.9 * mean, self.shapes)
            for name, value in unflatten(update, self.shapes).items():
                if value.ndim == 3 and not name.startswith(("token_emb", "pos_emb")):
                    value.copy_(orthogonal(momentum[name]) * math.sqrt(max(1, value.shape[1] / value.shape[2])))
        flat.mul_(1 - lr * decay).sub_(lr * update)


@torch.no_grad()
def exact_match(engine, tables, rows, layout, kind, at_once):
    """Share of rows whose eleven digits are all right, one number a model; rows [models, pairs, tokens]."""
    places, right = list(layout.sum), 0
    for start in range(0, rows.shape[1], at_once):
        part = rows[:, start : start + at_once]
        right = right + (engine.decode(tables, part, layout, kind) == part[..., places]).all(-1).sum(1)
    return right / rows.shape[1]


def score(engine, config, named, device, at_once=10_000):
    """Errors in the 100,000 pairs of the final score, by seed."""
    tables, errors = config.tables({name: value[None] for name, value in named.items()}), {}
    for seed in SCORE_SEEDS:
        rows = torch.from_numpy(encode(uniform_pairs(seed, 10_000), config.layout))[None].to(device)
        exact = exact_match(engine, tables, rows, config.layout, config.kind, at_once)
        errors[seed] = round((1 - exact.item()) * 10_000)
    return errors


def run_of(member):
    """The name of the run that a member, RUN#CANDIDATE, belongs to."""
    return member.rpartition("#")[0]


class Members:
    """The stacked models that are still training: every candidate of every run, named RUN#CANDIDATE."""

    LISTS = ("best_exact", "best_step", "rows", "stages", "smooth_loss")
    TENSORS = ("best", "loss_sum")

    def __init__(self, settings, names, device):
        self.settings, self.names, self.device = settings, names, device
        self.config, self.done = settings[0].model, {}
        self.layout, self.kind = self.config.layout, self.config.kind
        initial = [s.model.initial(s.seed, s.init_std).values() for s in settings]
        flats = [torch.cat([value.reshape(-1) for value in values]) for values in initial]
        self.flat = torch.stack(flats).to(device).requires_grad_()
        frozen = [s.model.frozen(s.seed) for s in settings]
        self.frozen = {name: torch.stack([values[name] for values in frozen]).to(device) for name in frozen[0]}
        self.optimizer = Optimizer(self.flat.detach(), settings[0].optimizer, self.config.shapes())
        self.best = self.flat.detach().clone()
        self.best_exact = [-1.0] * len(settings)  # below any: the first validation is an improvement
        self.best_step = [0] * len(settings)
        self.rows = [[] for _ in settings]
        self.stages = [0] * len(settings)
        self.smooth_loss = [math.inf if s.mastery else 0.0 for s in settings]
        self.loss_sum, self.loss_count = torch.zeros(len(settings), device=device), 0  # since the last validation
        self.prepare()

    def prepare(self):
        """Everything that follows from the settings of the members."""
        *sets, held = zip(*(held_out(s.seed, s.val_size, s.test_size) for s in self.settings))
        self.streams = [Stream(s.seed, pairs, self.layout) for s, pairs in zip(self.settings, held)]
        rows = (np.stack([encode(pairs, self.layout) for pairs in one_set]) for one_set in sets)
        self.val, self.test = (torch.from_numpy(stack).to(self.device) for stack in rows)
        self.curricula = [phases(s.curriculum) for s in self.settings]
        self.hyper = {name: self.column([getattr(s, name) for s in self.settings])
                      for name in ("clip", "beta2", "grokfast")}  # fmt: skip
        self.calm = self.column([s.calm for s in self.settings])[:, 0]
        shape = len(self.settings), self.settings[0].batch_size, self.layout.length + 1
        self.batch = np.zeros(shape, dtype=np.uint8)

    def column(self, values):
        return torch.tensor(values, dtype=torch.float32, device=self.device)[:, None]

    def stage(self, i, step):
        """The curriculum's stage of member i. A stage ends after its steps, and not before its --mastery."""
        curriculum, mastery = self.curricula[i], self.settings[i].mastery
        while step >= curriculum[self.stages[i]].until and not (mastery and self.smooth_loss[i] > mastery):
            self.stages[i] += 1
            self.smooth_loss[i] = math.inf if mastery else 0.0
        return curriculum[self.stages[i]]

    def named(self, flat):
        return unflatten(flat, self.config.shapes()) | self.frozen

    def member(self, i, flat):
        """The named tensors of one member."""
        return {name: value[i] for name, value in self.named(flat).items()}

    def tables(self, flat, step):
        tables = self.config.tables(self.named(flat))
        if all(s.soften == 1 for s in self.settings):
            return tables
        factors = [min(1.0, s.soften + (1 - s.soften) * step / max(1, s.soften_until)) for s in self.settings]
        return tables._replace(q=tables.q * torch.tensor(factors, device=self.device).view(-1, 1, 1, 1))

    def penalised(self, loss, tables):
        """The loss plus --calm times the mean square of all attention scores, each less its query's mean."""
        if not self.calm.any():
            return loss
        q, k = tables.q.flatten(1, 2), tables.k.flatten(1, 2)
        k = k - k.mean(1, keepdim=True)
        return loss + self.calm * ((q.mT @ q) * (k.mT @ k)).sum((1, 2)) / (q.shape[1] * k.shape[1])

    def fill_batch(self, step):
        jobs = []
        for i, s in enumerate(self.settings):
            stage, first = self.stage(i, step), self.curricula[i][0]
            shortest = stage.digits if s.lengths == "full" else 1
            carries = fading(s.carry, s.carry_until, step)
            jobs.append((self.streams[i].fill, step, shortest, stage, first.among, s.rehearse, carries, self.batch[i]))
        fused.in_parallel(jobs)
        return torch.from_numpy(self.batch).to(self.device)

    def train_step(self, engine, step):
        """One step of every member on its own batch. -> indices of those whose loss or weights are not finite now"""
        rows = self.fill_batch(step)
        self.flat.grad = None
        tables = self.tables(self.flat, step)
        loss = engine.losses(tables, rows, self.layout, self.kind)
        self.penalised(loss, tables).sum().backward()
        loss, flat = loss.detach(), self.flat.detach()
        rate = self.column([learning_rate(s, step) for s in self.settings])
        decay = self.column([fading(s.weight_decay, s.decay_until, step) for s in self.settings])
        self.optimizer.step(flat, self.flat.grad, step, rate, decay, **self.hyper)
        if any(s.mastery for s in self.settings):
            for i, value in enumerate(loss.tolist()):  # the average over about 50 steps
                before = self.smooth_loss[i]
                self.smooth_loss[i] = value if math.isinf(before) else 0.98 * before + 0.02 * value
        self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1
        finite = loss.isfinite() & flat.isfinite().all(1)
        return (~finite).nonzero()[:, 0].tolist()

    @torch.no_grad()
    def validate(self, engine, step, seconds):
        """Append a row of metrics for every member, after `step` steps, and keep the best weights."""
        flat, at_once = self.flat.detach(), self.settings[0].eval_batch_size
        tables = self.tables(flat, step)
        self.train_loss = (self.loss_sum / self.loss_count).tolist()
        val_loss = engine.losses(tables, self.val, self.layout, self.kind).tolist()
        exact = exact_match(engine, tables, self.val, self.layout, self.kind, at_once).tolist()
        self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0
        for i, s in enumerate(self.settings):
            stage = self.curricula[i][self.stages[i]]
            values = (
                step, round(self.train_loss[i], 6), round(val_loss[i], 6), round(exact[i], 6),
                round(learning_rate(s, step - 1), 8), stage.digits, self.stages[i], round(seconds, 3),
            )  # fmt: skip
            self.rows[i].append(dict(zip(METRICS, values, strict=True)))
            if exact[i] > self.best_exact[i]:
                self.best_exact[i], self.best_step[i] = exact[i], step
                self.best[i] = flat[i]

    def select(self, step, lost, validated):
        """-> indices of the members that go on, and of those whose run ends now.

        A run goes on with its best candidates and ends with its best one. Between two validations (`validated` is
        False) it loses only the candidates that have diverged.
        """
        staying, ending = [], []
        for run in dict.fromkeys(map(run_of, self.names)):
            candidates = [i for i, name in enumerate(self.names) if run_of(name) == run]
            s = self.settings[candidates[0]]
            good = [i for i in candidates if i not in lost]
            if validated:
                good.sort(key=lambda i: (-self.stages[i], self.train_loss[i]))
                good = good[: min([left for at, left in selections(s) if step >= at], default=len(good))]
            if good and not (validated and step == s.train_steps):
                staying += good
            else:
                ending.append(good[0] if good else max(candidates, key=lambda i: self.best_exact[i]))
        return sorted(staying), ending

    def keep(self, indices):
        """Leave only these members."""
        self.flat = self.flat.detach()[indices].requires_grad_()
        for name in self.TENSORS:
            setattr(self, name, getattr(self, name)[indices])
        self.frozen = {name: value[indices] for name, value in self.frozen.items()}
        self.optimizer.state = {name: value[indices] for name, value in self.optimizer.state.items()}
        for name in ("settings", "names", *self.LISTS):
            setattr(self, name, [getattr(self, name)[i] for i in indices])
        if indices:
            self.prepare()

    def parameters(self):
        return [self.flat]

    def state_dict(self):
        """Everything that a resumed run needs; also the summaries of the runs that have ended."""
        state = {name: getattr(self, name) for name in ("names", "done", "loss_count", *self.LISTS, *self.TENSORS)}
        return state | {"flat": self.flat.detach(), "optimizer": self.optimizer.state}

    def load_state_dict(self, state):
        self.keep([self.names.index(name) for name in state["names"]])
        self.flat.detach().copy_(state["flat"])
        self.optimizer.state = state["optimizer"]
        for name in ("done", "loss_count", *self.LISTS, *self.TENSORS):
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


def train(settings, names, run):
    """Train all models together, each in a folder of its own; -> {name: summary}. sweep.py says what may differ."""
    shared = settings[0]
    if summary := run.finished():
        if begun := disk.read_json(run.folder / "config.json"):
            run.compare(begun)
        run.log(f"# {run.folder} is finished already")
        return summary.get("members", {names[0]: summary})
    engine = pick_engine(run.device, shared.engine)
    folders = {name: run.folder / name if len(names) > 1 else run.folder for name in names}
    starts = {f"{name}#{i}": replace(s, seed=s.seed + i * CANDIDATE)
              for name, s in zip(names, settings) for i in range(s.candidates)}  # fmt: skip
    members = Members(list(starts.values()), list(starts), run.device)
    first = run.resume(members)
    run.parameters = model.count(shared.model)
    if len(starts) > 1:
        run.log(f"# {len(starts)} models of {run.parameters} parameters each, for {len(names)} runs")

    def end(staying, ending, step, diverged):
        """Test and save the members that end their runs; go on with those that stay."""
        for i in ending:
            name = run_of(members.names[i])
            members.done[name] = summarise(members, i, step, engine, run, len(names))
            if diverged:
                members.done[name] |= {"diverged_at": step}
                run.log(f"# {name}: the loss or the weights are not finite at step {step}; this run ends here")
            save_member(folders[name], members, i, step)
            with disk.writing(folders[name], "plots"):
                run_plots(folders[name], members.rows[i], members.curricula[i])
            if len(names) > 1:
                with disk.writing(folders[name], "summary.json"):
                    disk.write_json(folders[name] / "summary.json", members.done[name])
        if len(staying) < len(members.names):
            members.keep(staying)

    for step in range(first + 1, shared.train_steps + 1):
        lost = members.train_step(engine, step - 1)
        if lost:
            end(*members.select(step, lost, validated=False), step, diverged=True)
        if members.names and run.due(step - 1, shared.eval_interval):
            members.validate(engine, step, run.elapsed())
            run.log(progress(members, step, run))
            send_to_wandb(run, members, step)
            end(*members.select(step, [], validated=True), step, diverged=False)
        if not members.names:
            break
        if run.due(step - 1, shared.save_every) or run.interrupted:
            for i, name in enumerate(members.names):
                if sum(run_of(other) == run_of(name) for other in members.names) == 1:
                    save_member(folders[run_of(name)], members, i, step)
        run.end_step(step - 1, members)
    done = {name: members.done[name] for name in names}
    run.end(done[names[0]] if len(names) == 1 else {"seed": sorted({s.seed for s in settings}), "members": done})
    run.checkpoint.unlink(missing_ok=True)
    return done


def summarise(members, i, step, engine, run, together):
    """The summary of a run that ends with member i: its best weights on the test pairs and on the final score."""
    s, rows, at_once = members.settings[i], members.rows[i], members.settings[i].eval_batch_size
    named, config = members.member(i, members.best), members.config
    tables = config.tables({name: value[None] for name, value in named.items()})
    test = exact_match(engine, tables, members.test[i : i + 1], members.layout, members.kind, at_once).item()
    errors = score(engine, config, named, run.device, at_once)
    return {
        "name": run_of(members.names[i]), "parameters": model.count(config),
        "seed": s.seed % CANDIDATE, "candidate": s.seed // CANDIDATE, "steps": step,
        "best_step": members.best_step[i], "best_val_exact": max(0.0, members.best_exact[i]),
        "last_val_exact": rows[-1]["val_exact"] if rows else 0.0,
        "step_at_99": next((row["step"] for row in rows if row["val_exact"] >= 0.99), None),
        "test_exact": test, "errors_in_100000": sum(errors.values()),
        "errors_by_seed": {str(key): value for key, value in errors.items()},
        "seconds": round(run.elapsed(), 1), "models_together": together, "hardware": disk.describe(run.device),
        "engine": engine.__name__.removeprefix("addition."), "commit": disk.commit(), "config": asdict(s),
    }  # fmt: skip


def save_member(folder, members, i, step):
    """metrics.csv and the checkpoints of one member; weights that are not finite are not saved."""
    rows = members.rows[i]
    with disk.writing(folder, "checkpoints"):
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        disk.write_rows(folder / "metrics.csv", rows, METRICS)
        for kind, flat, at, exact in (
            ("best", members.best, members.best_step[i], members.best_exact[i]),
            ("last", members.flat.detach(), step, rows[-1]["val_exact"] if rows else 0.0),
        ):
            if flat[i].isfinite().all():
                content = checkpoint(members.config, members.member(i, flat), members.settings[i], at, exact)
                disk.save_checkpoint(folder / "checkpoints" / f"{kind}.pt", content)


def send_to_wandb(run, members, step):
    if run.wandb:
        prefixes = [f"{name}/" for name in members.names] if len(members.names) > 1 else [""]
        last = zip(prefixes, (rows[-1] for rows in members.rows))
        row = {prefix + key: value for prefix, values in last for key, value in values.items()}
        with contextlib.suppress(Exception):  # a failure of W&B never ends a run
            run.wandb.log(row, step=step)


def progress(members, step, run):
    """One line: step, share, speed, time left; one model's losses, or the exact matches of all."""
    speed, left = run.pace(step - 1, 1)
    exact = [rows[-1]["val_exact"] for rows in members.rows]
    head = f"step {step:6d} {step / run.config.steps:4.0%}  {1000 / speed / len(exact):5.2f} ms a model"
    if len(exact) == 1 and not members.done:
        last = members.rows[0][-1]
        body = f"train {last['train_loss']:.4f}  val {last['val_loss']:.4f}  exact {exact[0]:.4f}"
    else:
        good = sum(value >= 0.99 for value in exact) + sum(s["best_val_exact"] >= 0.99 for s in members.done.values())
        shown = " ".join(f"{value:.2f}" for value in sorted(exact, reverse=True)[:8]) + " ..." * (len(exact) > 8)
        body = f"{good} of {len(exact) + len(members.done)} at 99 %  best {shown}"
    return f"{head}  {body}  left {left}"
