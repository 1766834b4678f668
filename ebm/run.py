"""What stands behind a run of ebm/train.py: presets, command line, validation, reports, best checkpoints, W&B."""

import math
import re
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import common
import plumbing.run
from plumbing import disk

FOLDER = Path(__file__).resolve().parent
COLLAPSED = 1e-3  # standard deviation over puzzles, averaged over dimensions; new encoders have 0.02 and 0.002
KEPT = 3  # best checkpoints
AT_ONCE = 512  # puzzles in a validation's forward pass
UPLOAD_SECONDS = 60.0  # how long the end of a run waits until W&B has taken the best checkpoint
NAMES = ("zero", "random", "oracle")  # the columns of a validation
MEMORY = ((40, 2048), (24, 1024), (12, 512), (0, 256))  # the log's batch for a GPU of so many GB; without one, 512

SMALLER = {  # what a preset divides; a batch of None counts as 2048
    "full": {},
    "mini": dict(width=4, layers=2, heads=2, mlp=4, latent=4, predictor=4, batch=32),  # the decoder is small already
    "smoke": dict(width=8, layers=4, heads=4, mlp=8, latent=8, predictor=8, cell=8, decoder_heads=4, batch=128),
}
PRESETS = {  # what it replaces
    "full": {},
    # With the log's own settings, so small a model is still at chance after ten minutes; ebm/EXPERIMENTS.md says why.
    "mini": dict(data="generated:71", embedding=0.1, dropout=0.0, vicreg_covariance=0.04, lr=6e-3, warmup=100,
                 puzzles=100_000, validation_puzzles=1_000, epochs=1,
                 report_every=50, evaluate_every=200, save_every=200),
    "smoke": dict(data="generated:40-70", puzzles=300, validation_puzzles=12, steps=6, lr=3e-3,
                  report_every=1, evaluate_every=2, save_every=2),
}  # fmt: skip


def parse(config_class, argv=None):
    """The config from the command line: the log's run first, then the preset, then the flags on top of both."""
    argv = sys.argv[1:] if argv is None else list(argv)
    module, words = sys.modules[config_class.__module__], " ".join(argv).replace("=", " ").split()
    after = dict(zip(words, words[1:]))
    runs = {str(number): number for number in module.RUNS}
    preset = after.get("--preset", "full")
    default = module.configured(runs.get(after.get("--run"), 4), preset if preset in PRESETS else "full")
    config = common.from_flags(config_class, argv, default, wrong_value)
    return replace(config, name=config.name or default_name(config))


def wrong_value(config):
    """What is wrong with the value of a flag, or None."""
    if problem := common.wrong_value(config):
        return problem
    if config.cell % config.decoder_heads:
        return f"--decoder-heads {config.decoder_heads}: expected a divisor of --cell {config.cell}"
    if config.batch == 1:
        return "--batch 1: expected 2 or more, as VICReg needs a variance"
    if config.ema > 1:
        return f"--ema {config.ema}: expected a share from 0 to 1"
    return None


def default_name(config):
    return f"run{config.run}-{config.preset}-seed{config.seed}"


def command(config, default):
    """The command line that gives this config."""
    default = replace(default, name=default_name(config), run=4)  # so that another run is named
    words = plumbing.run.command(config, default, FOLDER / "train.py")
    return words.replace("python ebm/train.py", "python -m ebm.train", 1)


def batch_for(device):
    """The log's rule for a batch that is not given."""
    if device.type != "cuda":
        return 512
    memory = torch.cuda.get_device_properties(device).total_memory / 1e9
    return next(batch for least, batch in MEMORY if memory >= least)


@torch.no_grad()
def validate(model, puzzles, run):
    """{column: share}: blanks and whole puzzles right in one forward pass with z = 0, with random z, and with the
    oracle's z, which is computed from the solution. Also how far the encoders' vectors differ between puzzles."""
    training, config, row = model.training, model.config, {}
    model.eval()
    counts = torch.zeros(len(NAMES) + 1, 2, dtype=torch.float64, device=run.device)
    for part in range(run.rank, math.ceil(len(puzzles) / AT_ONCE), run.world):
        puzzle, solution = board_tensors(puzzles, part, run.device)
        z_context, z_target = model.context(puzzle), model.target(F.one_hot(solution - 1, 9).float())
        random = np.random.Generator(np.random.Philox(key=[part, AT_ONCE]))  # the same for every run
        normal = random.standard_normal((2, len(puzzle), config.latent), np.float32)
        normal, noise = torch.from_numpy(normal).to(run.device)
        zs = torch.zeros_like(normal), normal, model.latent(z_target, config.z_noise * noise)
        blank = puzzle == 0
        for count, z in zip(counts, zs):
            right = (model.decode(z_context, z, puzzle).argmax(-1) + 1 == solution) & blank
            count += torch.stack([right.sum(), (right == blank).all(1).sum()])
        counts[-1] += torch.stack([blank.sum(), puzzle.new_tensor(len(puzzle))])
    counts = run.agreed(counts, torch.distributed.ReduceOp.SUM).cpu() if run.world > 1 else counts.cpu()
    for name, (cells, solved) in zip(NAMES, (counts[:-1] / counts[-1].clamp(min=1)).tolist()):
        row |= {f"{name}_cells": round(cells, 6), f"{name}_puzzles": round(solved, 6)}
    puzzle, solution = board_tensors(puzzles, 0, run.device)
    vectors = {"context": model.context(puzzle), "target": model.target(F.one_hot(solution - 1, 9).float())}
    model.train(training)
    return row | {f"std_{name}": float(f"{z.std(0).mean():.6g}") for name, z in vectors.items()}


def board_tensors(puzzles, part, device):
    """(puzzle, solution), int64 [n, 81], of the validation's forward pass with this number."""
    rows = np.arange(part * AT_ONCE, min(len(puzzles), (part + 1) * AT_ONCE))
    return [torch.from_numpy(board.astype(np.int64)).to(device) for board in puzzles.rows(rows)]


class Run(plumbing.run.Run):
    """The folder runs/ebm/NAME."""

    project = "sudoku-ebm"

    def __init__(self, config, default):
        batch = config.batch or batch_for(plumbing.run.pick_device(config.device))
        super().__init__(replace(config, batch=batch), FOLDER, command(config, default))

    def sources(self):
        return [FOLDER / "train.py", FOLDER / "run.py", FOLDER / "data.py", FOLDER.parent / "common.py"]

    def compiled(self, model):
        if self.config.compile and self.device.type == "cuda":
            for part in (model.context_encoder, model.target_encoder, model.decoder):
                part.compile()
        return model

    def resume(self, model, optimizers):
        first = super().resume(model, optimizers)
        self.parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.log(f"# {self.parameters:,} of them trained; the others, the target encoder's, are averages")
        self.log(f"# {self.config.steps:,} steps of {self.config.batch:,} puzzles")
        return first

    def whole(self, share):
        """The whole batch out of all processes' shares. Only this process's own has a gradient: then the processes'
        gradients add up to that of the whole batch, VICReg's statistics included."""
        if self.world == 1:
            return share
        shares = list(self.gathered(share.detach()).chunk(self.world))
        shares[self.rank] = share
        return torch.cat(shares)

    def report(self, step, terms, rate, decay):
        """A line and a row every report_every steps: the loss and its terms, before their weights."""
        self.watch(step, terms["total"])
        if not self.due(step, self.config.report_every):
            return
        values = torch.stack([value.detach().float() for value in terms.values()]).tolist()
        speed, left = self.pace(step, self.config.batch)
        self.row |= {name: float(f"{value:.6g}") for name, value in zip(terms, values)}
        self.row |= {"ema": round(decay, 8), "lr": rate}
        self.row |= {"puzzles_per_second": round(speed, 1), "seconds": round(self.elapsed(), 1)}
        shown = "  ".join(f"{name} {self.row[name]:.4g}" for name in list(terms)[:5])  # the others are variances
        share = f"{100 * (step + 1) / self.config.steps:5.1f}%"
        self.log(f"step {step + 1:>6} {share}  {shown}  {speed:,.0f} puzzles/s  left {left}")

    def validate(self, step, model, puzzles):
        """Every evaluate_every steps and after the last; keeps the best checkpoints."""
        if not self.due(step, self.config.evaluate_every):
            return
        self.check_finite(step, model)
        with self.untimed():
            row = validate(model, puzzles, self)
            self.row |= row
            self.keep_best(step + 1, model)
        self.log(f"step {step + 1:>6} validation: {columns_line(row)}")
        if min(row["std_context"], row["std_target"]) < COLLAPSED:
            self.log(
                f"# collapse: over puzzles z_context varies by {row['std_context']:.2g} and z_target by "
                f"{row['std_target']:.2g}, below {COLLAPSED}: a low energy says nothing now"
            )

    def keep_best(self, step, model):
        """Keep the checkpoints with most blanks right at z = 0. Never by energy: a collapsed model has the lowest, nor
        by the oracle, which has seen the solution."""
        if self.rank > 0:
            return
        shares = {row["step"]: row["zero_cells"] for row in self.rows if "zero_cells" in row}
        shares[step] = self.row["zero_cells"]
        there = [at for at in shares if at == step or self.best_path(at).exists()]
        kept = sorted(there, key=lambda at: (-shares[at], at))[:KEPT]
        if step in kept:
            config = asdict(self.config)
            state = {"experiment": self.experiment, "step": step, "config": config, "model": model.state_dict()}
            with disk.writing(self.folder, self.best_path(step).name):
                disk.save_checkpoint(self.best_path(step), state | {"zero_cells": shares[step]})
        for path in self.folder.glob("best-*.pt"):
            if path not in map(self.best_path, kept):
                path.unlink(missing_ok=True)

    def best_path(self, step):
        return self.folder / f"best-{step:07d}.pt"

    def finish(self, puzzles):
        """summary.json, with the last validation and the best one; the best checkpoint goes to W&B."""
        self.default_signals()
        if ended := self.finished():
            self.log("# finished already")
            self.close()
            return ended
        rows = [row for row in self.rows if "zero_cells" in row]
        if not rows:  # another process than the first keeps none
            return self.end({})
        there = [row for row in rows if self.best_path(row["step"]).exists()]
        best = max(there, key=lambda row: row["zero_cells"], default=None)
        low = [row["step"] for row in rows if min(row["std_context"], row["std_target"]) < COLLAPSED]
        self.log(f"summary: {columns_line(rows[-1])}")
        self.log(f"summary: collapsed at step {low[0]}" if low else "summary: no collapse")
        best = best and {"step": best["step"], "zero_cells": best["zero_cells"]}
        if best and self.wandb:
            self.upload(self.best_path(best["step"]), best)
        return self.end({
            "run": self.config.run, "preset": self.config.preset, "solved": rows[-1]["zero_puzzles"],
            "validation": {name: rows[-1][name] for name in rows[-1] if name.startswith(NAMES)} | {"puzzles": puzzles},
            "best": best,
            "collapsed_at": low[0] if low else None,
        })  # fmt: skip

    def upload(self, path, best):
        """Send this checkpoint to W&B as an artifact; a failure costs a line in the log and at most UPLOAD_SECONDS."""
        problem = [f"no answer in {UPLOAD_SECONDS:g} s"]

        def send():
            try:
                import wandb

                name = re.sub(r"[^\w.-]", "-", f"{self.experiment}-{self.folder.name}")
                artifact = wandb.Artifact(name, "model", metadata=best)
                artifact.add_file(str(path))
                logged = self.wandb.log_artifact(artifact)
                if not self.wandb.offline:
                    logged.wait(UPLOAD_SECONDS)
                problem.clear()
            except Exception as error:
                problem[:] = [str(error) or type(error).__name__]

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        thread.join(UPLOAD_SECONDS)
        sent = "recorded as an artifact, `wandb sync` sends it" if self.wandb.offline else "sent as an artifact"
        sent = f"not sent ({problem[0]}); it is kept here" if problem else sent
        self.log(f"# W&B: {path.name} {sent}")


def columns_line(row):
    """Blanks and puzzles right; what has seen the solution says so."""
    shown = {"z = 0": "zero", "random z": "random", "oracle, which sees the solution": "oracle"}
    cells = "  ".join(f"{text} {100 * row[f'{name}_cells']:.2f}%" for text, name in shown.items())
    puzzles = " / ".join(f"{100 * row[f'{name}_puzzles']:.1f}%" for name in shown.values())
    return f"blanks right at {cells}  puzzles {puzzles}"
