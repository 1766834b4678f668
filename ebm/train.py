"""The log's energy-based Sudoku model, a joint-embedding predictive architecture: trains any of its five runs.

Two encoders turn the puzzle and the solution into vectors. A predictor maps (puzzle's vector, z) to the solution's,
and the squared distance is the energy; a decoder maps the same pair to digits. In training z comes from the solution
(run 1: from noise alone). A solver has no solution: it takes z = 0 or random, or looks for z by descent
(ebm/langevin.py). So `oracle` columns say what z could carry, and only `zero` and `random` say what the model knows.

python -m ebm.train --run 4 --preset mini       under ten minutes on one CPU core; generated puzzles
python -m ebm.train --run 5 --data kaggle       the log's run; its card was an H200, for 22 hours
python -m ebm.train --run 1 --vicreg-on prediction --vicreg-variance 25 --vicreg-covariance 1 --decode-weight 0.1 \\
    --decode-cells all                          run 1 before its fixes, which collapsed
torchrun --nproc-per-node 8 -m ebm.train        the same batches, shared; `modal run ebm/train.py` rents a GPU
"""

import copy
import math
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):  # run by its path: this folder's data.py must not hide the package data/
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn as nn
import torch.nn.functional as F

import common
import plumbing.run
from ebm.data import batch_at, load, steps_per_epoch
from ebm.run import PRESETS, SMALLER, Run, parse
from plumbing import disk


@dataclass
class Config(plumbing.run.RunConfig):
    """The defaults are run 4's; RUNS says what the others change."""

    run: Literal[1, 2, 3, 4, 5] = 4  # of the log; the default of every other field
    preset: Literal["full", "mini", "smoke"] = "full"  # the log's; under ten minutes on a core; for tests
    width: int = 256  # of the encoders and their vectors
    layers: int = 6  # of each encoder
    heads: int = 8
    mlp: int = 1024  # hidden units, four times the width
    latent: int = 128  # size of z
    predictor: int = 512  # its hidden units
    cell: int = 64  # the decoder's width; its hidden units are four times that
    decoder_layers: int = 2
    decoder_heads: int = 4
    embedding: float = 1.0  # standard deviation of the embeddings of row, column and box at the start
    dropout: float = 0.1  # in both encoders and the decoder; the target encoder's is on in training, too
    z_encoder: bool = True  # z = a linear map of the target's vector, plus noise; off: z is noise
    unit_norm: bool = True  # that map's output has length 1; the log: at length 144 z was a lookup table
    z_noise: float = 0.1  # scale of the noise; at 128 dimensions its length is 1.13
    target_input: Literal["random", "trained"] = "random"  # its input weight: as drawn, or averaged as the rest
    ema: float = 0.996  # share that the target encoder keeps at the first step; rises linearly to 1
    vicreg_on: Literal["context", "prediction"] = "context"  # what is kept from collapsing; prediction: the log's bug
    vicreg_variance: float = 1.0  # weight; 25 drowned all else
    vicreg_covariance: float = 0.01  # weight; 1 was too much
    decode_weight: float = 1.0  # of the cross-entropy; at 0.1 the decoder hardly learned
    decode_cells: Literal["blank", "all"] = "blank"  # all: the clues, right by construction, hide the blanks
    constraint_weight: float = 0.1  # of the rules' penalty
    data: str = "generated"  # with 28 to 50 clues, 39 on average; or kaggle (the log's), extreme, a .csv file
    puzzles: int = 9_000_000  # to generate, or the first rows of the file; 90 % of them are for training
    validation_puzzles: int = 20_000  # at most
    epochs: int = 20
    steps: int | None = None  # None: as many as the epochs take
    batch: int | None = 2048  # None: by the device's memory; the log's rule gives its 32 GB card 1024, yet it took 2048
    lr: float = 3e-4  # at batch 512; times the root of batch / 512
    warmup: int = 2_000  # steps; at most a fifth of all
    weight_decay: float = 0.01  # on everything
    clip: float = 1.0  # of the gradient's norm
    evaluate_every: int | None = None  # steps between two validations; None: an epoch


RUNS = {  # what each run of the log changes in the one before; run 1 in the defaults
    1: dict(z_encoder=False, unit_norm=False, z_noise=1.0, constraint_weight=0.0, batch=512, puzzles=100_000),
    2: dict(z_encoder=True, puzzles=9_000_000),
    3: dict(batch=2048),
    4: dict(unit_norm=True, z_noise=0.1, constraint_weight=0.1),
    5: dict(width=512, layers=8, mlp=2048, latent=256, predictor=1024, cell=128, decoder_layers=4, decoder_heads=8,
            batch=None),
}  # fmt: skip
FIRST_FORM = dict(vicreg_on="prediction", vicreg_variance=25.0, vicreg_covariance=1.0, decode_weight=0.1,
                  decode_cells="all")  # run 1 before its fixes  # fmt: skip


def configured(run=4, preset="full"):
    """The config of one run of the log, shrunk by a preset."""
    config = Config(run=run, preset=preset)
    for number in range(1, run + 1):
        config = replace(config, **RUNS[number])
    divided = {name: (getattr(config, name) or 2048) // by for name, by in SMALLER[preset].items()}
    return replace(config, **divided, **PRESETS[preset])


# ---------------------------------------------------------------- model


class Layer(nn.Module):
    """A pre-norm Transformer layer with GELU, as PyTorch's own: attention, then an MLP, each added to the state."""

    def __init__(self, width, heads, mlp, dropout):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, mlp)
        self.down = nn.Linear(mlp, width)
        self.dropout = common.Dropout(dropout)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def attention(self, h):
        """(weights [n, heads, 81, 81], values [n, heads, 81, width / heads]) of the state before the layer"""
        q, k, v = self.qkv(self.norm_attention(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1), v

    def forward(self, h):
        weights, values = self.attention(h)
        h = h + self.dropout(self.out((self.dropout(weights) @ values).transpose(1, 2).flatten(2)))
        return h + self.dropout(self.down(self.dropout(F.gelu(self.up(self.norm_mlp(h))))))


class Cells(nn.Module):
    """81 tokens, with learned embeddings of row, column and box, through Transformer layers."""

    def __init__(self, width, layers, heads, mlp, config):
        super().__init__()
        self.row, self.column, self.box = (nn.Embedding(9, width) for _ in range(3))
        for embedding in (self.row, self.column, self.box):
            embedding.weight.data *= config.embedding
        layer = Layer(width, heads, mlp, config.dropout)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(layers))  # equal weights at the start
        self.register_buffer("places", common.places(), persistent=False)

    def forward(self, h):
        row, column, box = self.places
        h = h + self.row(row) + self.column(column) + self.box(box)
        for layer in self.layers:
            h = layer(h)
        return h


class Encoder(nn.Module):
    """A board of `channels` numbers a cell -> one vector, the mean over its cells."""

    def __init__(self, channels, config):
        super().__init__()
        self.input = nn.Linear(channels, config.width)
        self.cells = Cells(config.width, config.layers, config.heads, config.mlp, config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, board):
        return self.norm(self.cells(self.input(board))).mean(1)


class Predictor(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.first = nn.Linear(config.width + config.latent, config.predictor)
        self.second = nn.Linear(config.predictor, config.predictor)
        self.norm = nn.LayerNorm(config.predictor)
        self.last = nn.Linear(config.predictor, config.width)

    def forward(self, both):
        h = F.gelu(self.first(both))
        return self.last(self.norm(h + F.gelu(self.second(h))))


class Decoder(nn.Module):
    """Everything it knows of the puzzle comes through the vector."""

    def __init__(self, config):
        super().__init__()
        self.input = nn.Linear(config.width + config.latent, 81 * config.cell)
        self.cells = Cells(config.cell, config.decoder_layers, config.decoder_heads, 4 * config.cell, config)
        self.head = nn.Linear(config.cell, 9)

    def forward(self, both):
        return self.head(self.cells(self.input(both).unflatten(1, (81, -1))))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.context_encoder = Encoder(10, config)  # blank, then the nine digits
        self.target_encoder = Encoder(9, config).requires_grad_(False)  # an average of the context encoder
        self.z_encoder = nn.Linear(config.width, config.latent) if config.z_encoder else None
        self.predictor, self.decoder = Predictor(config), Decoder(config)
        self.update_target(0.0)

    def context(self, puzzle):
        return self.context_encoder(F.one_hot(puzzle, 10).to(self.decoder.head.weight))

    def target(self, board):
        """z_target of a board of probabilities, float [n, 81, 9]: cells in reading order, then digits."""
        return self.target_encoder(board)

    def latent(self, z_target, noise):
        if self.z_encoder is None:
            return noise
        z = self.z_encoder(z_target)
        return (F.normalize(z, dim=-1) if self.config.unit_norm else z) + noise

    def predict(self, z_context, z):
        return self.predictor(torch.cat([z_context, z], -1))

    def decode(self, z_context, z, puzzle):
        """Logits [n, 81, 9]; a clue's are 1e6 for its digit."""
        logits = self.decoder(torch.cat([z_context, z], -1))
        clue = puzzle[..., None] == torch.arange(1, 10, device=puzzle.device)
        return torch.where(puzzle[..., None] > 0, 1e6 * clue.to(logits), logits)

    @torch.no_grad()
    def update_target(self, decay):
        """Keep this share of the target encoder; the rest comes from the context encoder, as all does at the start."""
        for name, weight in self.target_encoder.named_parameters():
            source = self.context_encoder.get_parameter(name)
            if name == "input.weight":  # of 9 and 10 channels: the log's code left it as it was drawn
                if self.config.target_input == "random":
                    continue
                source = source[:, 1:]
            weight.lerp_(source, 1 - decay)


def one_hot(solution):
    """float [n, 81, 9]; the digits are the last axis, as in the logits."""
    return F.one_hot(solution - 1, 9).float()


# ---------------------------------------------------------------- losses


def constraint_penalty(probabilities):
    """[n]: over rows, columns and boxes, (expected count of a digit - 1)^2; 0 on a solution."""
    board = probabilities.unflatten(1, (3, 3, 3, 3))  # band, row in it, stack, column in it; then the digit
    counts = [board.sum(cells) for cells in ((3, 4), (1, 2), (2, 4))]
    return sum((count - 1).square().flatten(1).sum(1) for count in counts)


def vicreg(z, config):
    """Pushes each dimension's standard deviation over the batch up to 1, and the correlations down to 0."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    others = (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]
    return config.vicreg_variance * (1 - z.std(0)).relu().mean() + config.vicreg_covariance * others


def losses(model, puzzle, solution, noise, config, whole=lambda share: share):
    """({term: its mean over the batch; "total": their weighted sum}, logits). `whole` makes the batch of all processes
    out of this one's share."""
    z_context = model.context(puzzle)
    z_target = model.target(one_hot(solution))
    z = model.latent(z_target, noise)
    parts = z_context, model.predict(z_context, z), z_target, model.decode(z_context, z, puzzle), puzzle, solution
    z_context, z_prediction, z_target, logits, puzzle, solution = map(whole, parts)
    counted = puzzle == 0 if config.decode_cells == "blank" else torch.ones_like(puzzle, dtype=torch.bool)
    answer = torch.where(counted, solution - 1, common.IGNORED)
    terms = {
        "energy": (z_prediction - z_target).square().sum(-1).mean(),
        "vicreg": vicreg(z_context if config.vicreg_on == "context" else z_prediction, config),
        "decode": F.cross_entropy(logits.flatten(0, 1), answer.flatten(), ignore_index=common.IGNORED),
        "constraint": constraint_penalty(logits.softmax(-1)).mean(),
    }
    weights = {"energy": 1.0, "vicreg": 1.0, "decode": config.decode_weight, "constraint": config.constraint_weight}
    total = sum(weight * terms[name] for name, weight in weights.items() if weight)
    spread = {"variance_context": z_context, "variance_prediction": z_prediction, "variance_target": z_target}
    spread = {name: z.detach().var(0).mean() for name, z in spread.items()}
    return {"total": total} | terms | spread, logits


# ---------------------------------------------------------------- training


def learning_rate(config, step):
    """Linear warm-up, then a cosine to zero; the warm-up is at most a fifth of the run, or it would never end."""
    peak = config.lr * math.sqrt(config.batch / 512)
    return common.cosine_rate(step, peak, min(config.warmup, config.steps // 5), config.steps, floor=0.0)


def train(config):
    run = Run(config, configured(config.run, config.preset))
    data = load(run.config, run)
    epoch = steps_per_epoch(run.config, data)
    config = run.config = replace(
        run.config,
        steps=config.steps or config.epochs * epoch,
        evaluate_every=config.evaluate_every or epoch,
    )
    held_out = data.validation.subset(slice(config.validation_puzzles))
    model = run.compiled(Model(config).to(run.device))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=config.weight_decay, fused=True)
    for step in range(run.resume(model, [optimizer]), config.steps):
        rate = learning_rate(config, step)
        decay = config.ema + (1 - config.ema) * step / config.steps
        optimizer.param_groups[0]["lr"] = rate
        batch = batch_at(config, data, run, step)
        common.seed_dropout(model, batch.seeds)
        terms, _ = losses(model, batch.puzzle, batch.solution, batch.noise, config, run.whole)
        terms["total"].backward()
        common.sum_gradients(model)
        nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        optimizer.zero_grad()
        model.update_target(decay)
        run.report(step, terms, rate, decay)
        run.validate(step, model, held_out)
        run.end_step(step, model, [optimizer])
    return run.finish(len(held_out))


def load_model(path):
    """(model, config) of a checkpoint of this file: a run's checkpoint.pt or one of its best-*.pt."""
    saved = disk.load_checkpoint(path)
    config, known = saved.get("config"), {field.name for field in fields(Config)}
    if not isinstance(config, dict) or not {"run", "latent"} <= set(config) <= known or config["run"] not in RUNS:
        raise SystemExit(f"{path} is not a checkpoint of ebm.train; give the path of one, as in runs/ebm/NAME")
    try:
        model = Model(replace(configured(config["run"]), **config))
        model.load_state_dict(saved["model"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path} does not fit ebm/train.py any more ({' '.join(str(error).split())[:200]})") from None
    return model.eval(), model.config


def main(argv=None):
    return train(parse(Config, argv))


app = None
if "modal" in sys.modules:  # `modal run ebm/train.py`
    from plumbing import remote

    app = remote.entry(__file__, parse)
if __name__ == "__main__":
    main()
