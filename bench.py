"""How fast is a training step? Ours against the plain loop and the machine's matrix rate, in one run.

The model is exp_cosine_no_sam.py's. The plain loop is what one writes first: nn.TransformerEncoder with its own
dropout, boolean indexing of the blank cells, AdamW with defaults. Steps alternate, so that whatever else the
machine does hits both alike; the matrix rate is measured between them. First the two are given the same weights
and must agree, without dropout, on loss and gradients.

python bench.py                      batch 64, 16 iterations on a CPU: a few minutes
python bench.py --device cuda --batch 4096 --compile
python bench.py --output results/bench/cpu.json
"""

import functools
import statistics
import time
from collections import defaultdict
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro

import common
import exp_cosine_no_sam as experiment
from plumbing import disk, loop
from plumbing.run import pick_device


@dataclass
class Arguments:
    batch: int = 64  # puzzles a step
    iterations: int = 16  # as in the log
    repeats: int = 3  # steps of each kind after a first one to warm up; the median counts
    device: str = "auto"  # auto, cpu or cuda
    compile: bool = False  # also compile ours (on CUDA)
    output: str = ""  # write the figures to this .json file


class Plain(nn.Module):
    """The same network in PyTorch's ready-made layers."""

    def __init__(self, config):
        super().__init__()
        self.encode_puzzle, self.embed_predictions = nn.Linear(10, config.width), nn.Linear(9, config.width)
        self.row, self.column, self.box = (nn.Embedding(9, config.width) for _ in range(3))
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.mlp, config.dropout, batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.head = nn.Linear(config.width, 9)
        self.register_buffer("places", common.places())

    def forward(self, puzzle, iterations):
        position = self.row(self.places[0]) + self.column(self.places[1]) + self.box(self.places[2])
        h, predictions, outputs = self.encode_puzzle(F.one_hot(puzzle, 10).float()), 0.0, []
        for i in range(iterations):
            given = self.embed_predictions(predictions) if i else self.embed_predictions.bias
            h = self.transformer(h + given + position)
            outputs.append(self.head(h))
            predictions = outputs[-1].softmax(-1)
        return outputs


def copy_weights(model, plain):
    """The plain network's weights become ours."""
    names = {"self_attn.in_proj_": "qkv.", "self_attn.out_proj": "out", "linear1": "up", "linear2": "down"}
    names |= {"norm1": "norm_attention", "norm2": "norm_mlp", "transformer.": ""}
    state = {}
    for name, value in plain.state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        state[name] = value
    state.pop("places")
    model.load_state_dict(state)


def flops(config, batch, iterations):
    """Multiplications and additions of the matrix products of one step: forward, and twice that backward."""
    d = config.width
    layer = 2 * (4 * d * d + 2 * d * config.mlp) + 2 * 2 * 81 * d  # projections and MLP, then attention's two
    return 3 * batch * 81 * iterations * (config.layers * layer + 2 * 9 * d * 2)


def matrix_rate(device, size=2048, kind=None):
    """FLOP/s of one product of large matrices of this kind (default: fp32, on CUDA bf16), the best of five."""
    kind = kind or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    a, b = torch.randn(2, size, size, device=device, dtype=kind)
    return max(2 * size**3 / timed(lambda: a @ b, device) for _ in range(5))


def timed(work, device):
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def step(loss, optimizer):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def breakdown(work):
    """Seconds by kind of operation in one step."""
    kinds = {"dropout": ("FusedDropout", "bernoulli_", "native_dropout"), "softmax": ("softmax",)}
    kinds |= {"layer norm": ("layer_norm",), "copies": ("copy_", "cat"), "additions and products": ("add", "mul")}
    seconds = defaultdict(float)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    for row in profile.key_averages():
        name = row.key.removeprefix("aten::")
        named = (kind for kind, parts in kinds.items() if any(part in name for part in parts))
        kind = "matrix products" if name in ("mm", "addmm", "bmm") else next(named, "the rest")
        seconds[kind] += row.self_cpu_time_total / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def main(argv=None):
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    device = pick_device(arguments.device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = experiment.Config(iterations=arguments.iterations)
    plain, model = Plain(config).to(device), experiment.Model(config).to(device)
    copy_weights(model, plain)
    puzzle = torch.randint(1, 10, (arguments.batch, 81), device=device)
    blank = torch.rand(puzzle.shape, device=device) < 0.6
    target = torch.where(blank, puzzle - 1, common.IGNORED)
    puzzle = puzzle.masked_fill(blank, 0)
    seeds = torch.randint(-(2**31), 2**31 - 1, (arguments.batch,), dtype=torch.int32, device=device)
    batch = common.Batch(puzzle, target, seeds, int(blank.sum()))
    precision = torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda")

    def plain_loss():
        with precision:
            outputs = plain(puzzle, config.iterations)
            return sum(F.cross_entropy(o[blank].float(), target[blank]) for o in outputs) / config.iterations

    def our_loss():
        common.seed_dropout(model, batch.seeds)
        with precision:
            return experiment.forward_loss(model, batch, config)[0]

    plain.eval(), model.eval()  # without dropout
    losses = plain_loss(), our_loss()
    for loss in losses:
        loss.backward()
    ours, theirs = model.layers[0].up.weight.grad, plain.transformer.layers[0].linear1.weight.grad
    agreement = {
        "loss": abs(1 - losses[1].item() / losses[0].item()),
        "gradient": float((ours - theirs).norm() / theirs.norm()),
    }
    plain.train(), model.train()
    if arguments.compile:
        loop.replace(model, torch.compile(experiment.Model.iterate))

    steps = {
        "plain": functools.partial(step, plain_loss, torch.optim.AdamW(plain.parameters(), lr=1e-4)),
        "ours": functools.partial(step, our_loss, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)),
    }
    for work in steps.values():
        work()
    rates, seconds = [], {name: [] for name in steps}
    for _ in range(arguments.repeats):
        rates.append(matrix_rate(device))
        for name, work in steps.items():
            seconds[name].append(timed(work, device))
    rates.append(matrix_rate(device))
    total, rate = flops(config, arguments.batch, config.iterations), statistics.median(rates)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    report = {
        "arguments": asdict(arguments),
        "hardware": disk.describe(device),
        "commit": disk.commit(),
        "gflop_a_step": total / 1e9,
        "matrix_gflops": rate / 1e9,
        "floor_seconds": total / rate,
        "seconds": seconds,
        "median_seconds": median,
        "share_of_matrix_rate": {name: total / rate / value for name, value in median.items()},
        "agreement_without_dropout": agreement,
    }
    if device.type == "cpu":
        report["breakdown_seconds"] = {name: breakdown(work) for name, work in steps.items()}
    if device.type == "cuda":
        report["peak_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
    print(table(report))
    if arguments.output:
        disk.write_json(arguments.output, report)
    return report


def table(report):
    lines = [
        report["hardware"],
        f"{report['gflop_a_step']:.0f} GFLOP a step, {report['matrix_gflops']:.0f} GFLOP/s in large products: "
        f"no step can take less than {report['floor_seconds']:.2f} s",
        f"same weights, no dropout: loss differs by {report['agreement_without_dropout']['loss']:.1e}, "
        f"gradient by {report['agreement_without_dropout']['gradient']:.1e} (relative)",
        "",
        "| step | seconds | puzzles/s | share of the matrix rate | against plain |",
        "|---|---|---|---|---|",
    ]
    for name, label in (("plain", "plain loop, nn.TransformerEncoder"), ("ours", "ours")):
        seconds = report["median_seconds"][name]
        speed = report["arguments"]["batch"] / seconds
        share = 100 * report["share_of_matrix_rate"][name]
        ratio = report["median_seconds"]["plain"] / seconds
        lines.append(f"| {label} | {seconds:.2f} | {speed:.1f} | {share:.0f} % | {ratio:.2f} x |")
    for name, kinds in report.get("breakdown_seconds", {}).items():
        lines += ["", f"where a step of {name} goes: " + ", ".join(f"{k} {v:.2f} s" for k, v in kinds.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
