"""Many runs at once: the kernels against plain PyTorch, a sweep against the plain loop, stopped and resumed."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from addition import reliable, report, run, smallest, tiny, train
from addition.fast import bench, kernels, sweep
from addition.fast.batches import batches
from addition.fast.engine import Compiled, Torch
from addition.train import encode_pairs, uniform_pairs
from plumbing import disk
from tests.addition.test_train import QUICK, SIZES, SMALL, STUCK, Killed, killed, trained

SMALLEST = dict(embedding="unit", values="joined", norms="final")
TINY = (
    dict(), dict(embedding="arc", keys="turn", values="query", out="transpose"),
    dict(embedding="arc", norms="none", d_ff=3, head_dim=2, values="query"),
    dict(norms="shared", keys="rotation", d_model=5), SMALLEST | dict(query="zeros"),
)  # fmt: skip
CASES = {
    **{f"log-{size}": (train, train.ModelConfig(**SIZES[size])) for size in (456, 512)},
    "wide": (train, train.ModelConfig(d_model=9, d_ff=3)),  # more columns of a table than lanes
    **{f"tiny-{i}": (tiny, tiny.TinyConfig(**values)) for i, values in enumerate(TINY)},
    "smallest": (smallest, smallest.SmallestConfig(gate="00/00/a_")),
}


def models(module, config, count=2):
    settings = [
        module.Settings(model=config, init_std=0.4, seed=seed, val_size=1, test_size=1) for seed in range(count)
    ]
    return [module.Recipe(s).model() for s in settings]


@pytest.mark.parametrize("engine", [Compiled, Torch])
@pytest.mark.parametrize("case", CASES)
def test_stacks_agree_with_the_plain_model(case, engine):
    """300, 37 and 3 rows are no multiple of a register's lanes: the edges count too."""
    both = models(*CASES[case])
    named = [dict(model.named_parameters()) for model in both]
    stacked = {name: torch.stack([p[name].detach() for p in named]).requires_grad_() for name in named[0]}
    engine, sharpness = engine(both[0]), torch.tensor([1.0, 0.5])
    for count in (300, 37, 3):
        rows = torch.stack([encode_pairs(uniform_pairs(seed, count), both[0].config.layout) for seed in range(2)])
        expected = torch.stack([train.mean_loss(m, r, s) for m, r, s in zip(both, rows, sharpness)])
        found = engine.losses(stacked, rows, sharpness)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        weights = torch.tensor([1.0, 3.0])
        gradients = torch.autograd.grad((expected * weights).sum(), [p[name] for p in named for name in p])
        stacks = torch.autograd.grad((found * weights).sum(), list(stacked.values()))
        for i, (name, gradient) in enumerate(zip(stacked, stacks)):
            plain = torch.stack([gradients[i], gradients[len(stacked) + i]])
            assert (gradient - plain).abs().max() <= 2e-5 * plain.abs().max() + 1e-7, name
        detached = {name: value.detach() for name, value in stacked.items()}
        losses, _ = engine.test(detached, rows)
        torch.testing.assert_close(losses, torch.stack([train.mean_loss(m, r).detach() for m, r in zip(both, rows)]),
                                   rtol=1e-5, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("size", [456, 763])
def test_gradients_of_saturated_attention_are_exact(size):
    """A place has the whole weight there: what its score's gradient is the difference of must cancel."""
    (model,) = models(train, train.ModelConfig(**SIZES[size]), 1)
    for p in model.parameters():
        p.data = 30 * (p.data + 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    stacked = {name: p.detach()[None].requires_grad_() for name, p in model.named_parameters()}
    rows = encode_pairs(uniform_pairs(0, 300))
    found = torch.autograd.grad(
        Compiled(model).losses(stacked, rows[None], torch.ones(1)).sum(), list(stacked.values())
    )
    model.double()
    exact = torch.autograd.grad(train.mean_loss(model, rows), list(model.parameters()))
    found, exact = (torch.cat([g.flatten().double() for g in gradients]) for gradients in (found, exact))
    assert (found - exact).norm() <= 1e-4 * exact.norm()


@pytest.mark.parametrize("engine", [Compiled, Torch])
def test_right_sums_are_counted(engine):
    """A model that is right on some sums, and wrong on others in one digit only."""
    settings = reliable.Settings(model=train.ModelConfig(**SIZES[456]), val_size=1, test_size=1)
    model = reliable.Recipe(settings).model()
    model.load_state_dict(disk.load_checkpoint("addition/weights/456p.pt")["model_state"])
    rows = encode_pairs(uniform_pairs(1, 300))
    rows[:20, 32] = (rows[:20, 32] + 1) % 10  # the sum's last digit
    rows[40:50, 33] = 5  # the token after it does not count
    stacked = {name: p.detach()[None] for name, p in model.named_parameters()}
    assert engine(model).test(stacked, rows[None])[1].tolist() == [280] == [train.test(model, rows)[1]]


@pytest.mark.parametrize("engine", [Compiled, Torch])
@pytest.mark.parametrize("kind", ["equal logits", "a weight that is no number"])
def test_what_is_no_answer_is_not_right(kind, engine):
    (model,) = models(tiny, tiny.TinyConfig(), 1)
    torch.nn.init.constant_(model.final, 0.0 if kind == "equal logits" else torch.nan)
    stacked = {name: p.detach()[None] for name, p in model.named_parameters()}
    rows = encode_pairs(uniform_pairs(1, 50), model.config.layout)
    assert engine(model).test(stacked, rows[None])[1].tolist() == [0] == [train.test(model, rows)[1]]


@pytest.mark.parametrize("module", [train, reliable, tiny, smallest])
def test_batches_of_a_sweep_are_those_of_the_recipe(module):
    one, other = (module.Recipe(module.Settings(val_size=1, test_size=1)) for _ in range(2))
    make = batches(other)
    for step in (0, 5_000, 50_000):
        one.note(0.1), other.note(0.1)
        assert torch.equal(one.batch(step), make(step))


def test_a_recipe_s_own_batches_are_taken():
    class Own(tiny.Recipe):
        def batch(self, step):
            return step

    assert batches(Own(tiny.Settings(val_size=1, test_size=1)))(7) == 7


def test_torch_tests_in_parts():
    both, rows = (
        models(tiny, tiny.TinyConfig()),
        torch.stack([encode_pairs(uniform_pairs(seed, 37), tiny.REVERSED) for seed in (1, 2)]),
    )
    stacked = {name: torch.stack([dict(m.named_parameters())[name].detach() for m in both])
               for name in both[0].config.shapes()}  # fmt: skip
    losses, right = Torch(both[0]).test(stacked, rows)
    for at_once in (1, 20, 37):
        in_parts = Torch(both[0], at_once).test(stacked, rows)
        torch.testing.assert_close(in_parts[0], losses)
        assert torch.equal(in_parts[1], right)


def test_the_bench_writes_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "CASES", [(tiny, tiny.Settings(batch_size=8, val_size=64, test_size=1))])
    monkeypatch.setattr(bench, "STACKS", (1, 2))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    bench.main(["--turns", "1", "--steps", "2", "--output", str(tmp_path / "bench")])
    (line,) = [line for line in report.speed("bench") if line.startswith("| tiny")]
    cells = [cell.strip() for cell in line.split("|")]
    plain, one, two = (float(cells[i]) for i in (4, 5, 6))
    assert cells[2:4] == ["106", "8"] and min(plain, one, two) > 0
    assert float(cells[7].removesuffix(" x")) == pytest.approx(plain / min(plain, one, two), rel=0.1)


class Other(train.TinyDecoderLM):
    """A model that the kernels do not know."""

    def forward(self, *arguments):
        return super().forward(*arguments) * 0.5


class Added(train.TinyDecoderLM):
    """Another one, which differs only after it has learned."""

    def __init__(self, config, std):
        super().__init__(config, std)
        self.added = torch.nn.Parameter(torch.zeros(config.d_model))

    def inputs(self, tokens, places):
        x, q, k, v = super().inputs(tokens, places)
        return x + self.added, q, k, v


def test_the_kernels_are_for_models_that_they_know():
    recipe = train.Recipe(train.Settings(val_size=64, test_size=1))
    cpu = torch.device("cpu")
    assert sweep.pick_engine(recipe.model(), cpu, recipe).name == "compiled"
    for kind in (Other, Added):
        assert sweep.pick_engine(kind(train.ModelConfig(), 0.02), cpu, recipe).name == "torch"
    wide = train.TinyDecoderLM(train.ModelConfig(d_model=32, d_ff=32))
    assert sweep.pick_engine(wide, cpu, recipe).name == "torch"


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_activations_are_float32_exact(name):
    code = kernels.Code(f"probe_{name}", 3, 0)
    for pointer, value in zip(
        code.function.args[1:], getattr(kernels, name)(code, code.load(code.function.args[0], 0))
    ):
        code.store(value, pointer, 0)
    function = kernels.assemble(code, 0)
    x = np.linspace(-12, 12, 16 * 200, dtype=np.float32).reshape(200, 16)
    y, slope = np.empty_like(x), np.empty_like(x)
    for rows in zip(x, y, slope):
        function(*(row.ctypes.data for row in rows))
    exact = torch.from_numpy(x).double().requires_grad_()
    value = getattr(torch.nn.functional, name)(exact)
    value.sum().backward()
    np.testing.assert_allclose(y, value.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(slope, exact.grad.numpy(), atol=2e-6)


STAGES = dict(first_stage=5, mastery=2.0, rehearse=0.2, soften_until=20)


def swept(folder, recipe="reliable", seeds="1-2", log=None, **flags):
    """A sweep in this folder; -> {name: summary}."""
    flags = {**QUICK, "run_name": folder.name, "runs": folder.parent, **flags}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    opened, open_folder = [], run.Run.open_folder

    def noted(self):
        opened.append(self)
        open_folder(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Run, "open_folder", noted)
        patch.setattr(run.Run, "log", lambda self, line: log(line) if log else None)
        try:
            return sweep.main([recipe, "--seeds", *seeds.split(), *(word for word in words if word != "True")])
        finally:
            for one in opened:
                one.close()


def state(folder, name):
    return disk.load_checkpoint(folder / f"checkpoints/{name}.pt")["model_state"]


@pytest.mark.parametrize("engine", [Torch, Compiled])
@pytest.mark.parametrize(
    "module, flags", [(reliable, STAGES), (tiny, STAGES), (reliable, STAGES | STUCK | dict(train_steps=30))]
)
def test_many_at_once_are_the_single_runs(module, flags, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "pick_engine", lambda model, device, recipe: engine(model))
    together = swept(tmp_path / "all", module.__name__.rpartition(".")[2], **flags)
    for seed in (1, 2):
        alone = trained(tmp_path / f"{seed}", module, seed=seed, **flags)
        for key in ("best_step", "best_val_exact", "errors_in_100000", "sums_seen", "parameters", "starts"):
            assert alone[key] == together[f"seed{seed}"][key], key
        assert alone["starts"] == (2 if "budget" in flags else 1)
        rows, all_rows = disk.read_rows(tmp_path / f"{seed}/metrics.csv"), disk.read_rows(tmp_path / "all/members.csv")
        losses = [float(row["val_loss"]) for row in all_rows if row["member"] == f"seed{seed}"]
        assert losses == pytest.approx([float(row["val_loss"]) for row in rows], rel=2e-3)
        for key, value in state(tmp_path / f"{seed}", "best").items():
            torch.testing.assert_close(value, state(tmp_path / "all", f"seed{seed}")[key], rtol=2e-3, atol=2e-4)
    one, two = (state(tmp_path / "all", f"seed{seed}") for seed in (1, 2))
    assert not torch.equal(next(iter(one.values())), next(iter(two.values())))


def assert_same_results(one, two):
    names = sorted(path.stem for path in (one / "checkpoints").iterdir())
    assert names == sorted(path.stem for path in (two / "checkpoints").iterdir())
    for name in names:
        a, b = state(one, name), state(two, name)
        assert all(torch.equal(a[key], b[key]) for key in a)
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in disk.read_rows(folder / "members.csv")]
            for folder in (one, two)]  # fmt: skip
    assert rows[0] == rows[1]


def stop_at(patch, step, action):
    """Have `action` called after the training step with this index."""
    original = sweep.Stack.step

    def stepped(stack, index):
        lost = original(stack, index)
        if index == step:
            action()
        return lost

    patch.setattr(sweep.Stack, "step", stepped)


PRUNED = dict(seeds="1-4", prune="20:2", **STAGES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a sweep that nothing has stopped."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    swept(folder, **PRUNED)
    return folder


@pytest.mark.parametrize("step", [5, 24, 37])  # before the first checkpoint, between two, after some have ended
def test_a_killed_sweep_resumes_to_the_same_weights(step, whole, tmp_path):
    folder, lines = tmp_path / "killed", []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, step, killed)
        swept(folder, **PRUNED)
    assert not (folder / "summary.json").exists()
    found = swept(folder, log=lines.append, resume=True, **PRUNED)
    assert any(f"resumed after step {step // 10 * 10}" in line for line in lines) == (step > 10)
    assert_same_results(whole, folder)
    assert swept(folder, resume=True, **PRUNED) == found and not (folder / "checkpoint.pt").exists()


def test_a_signal_saves_after_the_step(whole, tmp_path):
    folder = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        stop_at(patch, 13, lambda: os.kill(os.getpid(), signal.SIGINT))
        swept(folder, **PRUNED)
    assert stopped.value.code == 128 + signal.SIGINT
    swept(folder, resume=True, **PRUNED)
    assert_same_results(whole, folder)


@pytest.mark.parametrize("file", ["checkpoint.pt", "members.csv", "checkpoints/seed3.pt", "summary.json"])
def test_a_full_disk_loses_nothing(file, whole, tmp_path):
    folder, replace_file = tmp_path / "full", disk.replace

    def write(path, fill):
        if path == folder / file:
            raise OSError(28, "No space left on device")
        replace_file(path, fill)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="No space left") as stopped:
        patch.setattr(disk, "replace", write)
        swept(folder, **PRUNED)
    assert stopped.value.code != 0
    swept(folder, resume=True, **PRUNED)
    assert_same_results(whole, folder)


def test_the_best_starts_go_on(whole):
    """After step 20, the two with the lowest validation loss."""
    summaries = json.loads((whole / "summary.json").read_text())["members"]
    losses = {row["member"]: float(row["val_loss"]) for row in disk.read_rows(whole / "members.csv")
              if row["step"] == "20"}  # fmt: skip
    best = sorted(losses, key=losses.get)[:2]
    for name, summary in summaries.items():
        assert summary["steps"] == (40 if name in best else 20) and ("pruned_at" in summary) == (name not in best)
        assert summary["sums_seen"] == summary["steps"] * 16


def test_a_run_that_diverges_ends_alone(tmp_path, monkeypatch):
    original = reliable.Recipe.learning_rate

    def rate(recipe, step):
        return 1e38 if recipe.s.seed == 1 and step > 12 else original(recipe, step)

    monkeypatch.setattr(reliable.Recipe, "learning_rate", rate)
    lines = []
    found = swept(tmp_path / "both", log=lines.append)
    step = found["seed1"]["diverged_at"]
    assert 13 < step < 20 and found["seed1"]["steps"] == step and any(f"step {step}" in line for line in lines)
    assert found["seed2"]["steps"] == 40 and "diverged_at" not in found["seed2"]
    for name in ("seed1", "seed2"):
        assert all(value.isfinite().all() for value in state(tmp_path / "both", name).values())


def test_a_recipe_that_is_never_over_ends_with_the_last_step(tmp_path, monkeypatch):
    monkeypatch.setattr(reliable.Recipe, "verdict", lambda recipe, step, exact: "")
    found = swept(tmp_path / "endless", budget=0)
    assert [one["steps"] for one in found.values()] == [40, 40] and state(tmp_path / "endless", "seed2")


def test_other_flags_on_resume_are_refused(whole):
    for other in (dict(lr=0.5), dict(seeds="1-5"), dict(prune="10:2")):
        with pytest.raises(SystemExit, match=next(iter(other))):
            swept(whole, resume=True, **PRUNED | other)


@pytest.mark.parametrize(
    "words",
    [
        "reliable --seeds x", "reliable --seeds 7-3", "reliable --seeds -1", "reliable --seeds 1-", "reliable --seeds",
        "reliable --seeds 0-99999999999", "reliable --seeds 99999999999", "reliable --prune 5", "reliable --prune 3:1",
        "reliable --prune 0:1", "reliable --prune 2:0", "reliable --embedding arc", "seeds",
        "tiny --query zeros", "", "reliable --seed 5", "data", "../x",
    ],
)  # fmt: skip
def test_wrong_sweeps_are_errors(words, clean, capsys):
    with pytest.raises(SystemExit) as error:
        sweep.main([*words.split(), *SMALL])
    assert error.value.code not in (0, None) and not [path for path in clean.rglob("*") if path.is_file()]
    named = [word.strip("-") for word in words.split() if word.startswith("--")]
    assert all(word in str(error.value) + capsys.readouterr().err for word in named)


def test_a_recipe_with_an_optimizer_of_its_own_is_no_sweep(clean):
    with pytest.raises(SystemExit, match=r"addition\.shrink has an optimizer of its own"):
        sweep.main(["shrink", "--start", "best.pt", *SMALL])


def test_seeds_given_twice_are_run_once():
    assert sweep.numbers(["1", "1-2", "7"]) == [1, 2, 7]
