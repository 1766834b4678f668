"""Every experiment: its four names, its sizes, a few steps end to end, and what the log's figures rest on."""

import dataclasses
import inspect
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

import common
import exp_cosine_no_sam
import exp_extreme_baseline
import exp_sam
import lineage
import sudoku
from data import generate, sources, store
from ebm import ours
from plumbing import disk, loop, presets, run
from tests import experiments

TRANSFORMERS = [name for name in experiments.of_the_log() if hasattr(experiments.load(name).Config, "heads")]
INDEPENDENT = {"exp_faster_2drope", "exp_faster_alibi"}  # layers with weights of their own, in PyTorch's own init
OWN_ATTENTION = INDEPENDENT | {"exp_faster_t5bias"}  # compared with PyTorch in tests/pos_embedding/
ACTIVATIONS = {"exp_cosine_gelu": "gelu", "exp_cosine_relu2": lambda x: F.relu(x) ** 2}
PARAMETERS = {"sudoku": 800_265, "exp_recur_add": 800_265, "exp_no_x_after_init": 800_393, "exp_cosine": 800_393}


@pytest.fixture
def seen(monkeypatch):
    """What a training loop does: backward passes, sums of gradients, dropout seeds, the rate of each optimiser step,
    and whether its weights were those from before SAM's perturbation."""
    seen = SimpleNamespace(passes=0, sums=[], seeds=[], rates=[], before=None, restored=[])
    backward, sum_gradients, seed_dropout = torch.Tensor.backward, common.sum_gradients, common.seed_dropout

    def count(*arguments, **options):
        seen.passes += 1
        return backward(*arguments, **options)

    def step(optimizer, *_):
        seen.rates.append(optimizer.param_groups[0]["lr"])
        if seen.before:
            seen.restored.append(all(map(torch.equal, optimizer.param_groups[0]["params"], seen.before)))
            seen.before = None

    def seed(model, seeds):
        seen.seeds.append(tuple(seeds.tolist()))
        seed_dropout(model, seeds)

    monkeypatch.setattr(torch.Tensor, "backward", count)
    monkeypatch.setattr(common, "sum_gradients", lambda model: seen.sums.append(seen.passes) or sum_gradients(model))
    monkeypatch.setattr(common, "seed_dropout", seed)
    hook = register_optimizer_step_pre_hook(step)
    yield seen
    hook.remove()


@pytest.mark.parametrize("name", experiments.names())
def test_smoke(name, clean, monkeypatch, seen):
    """The file trains, tests, saves and sums up; the checkpoint is the trained model and loads safely. The gradients
    of every backward pass are summed over the processes, every pass has dropout masks of its own, the rate in
    metrics.csv is the optimiser's, and SAM steps from the weights that it perturbed."""
    module = experiments.load(name)
    if sam := hasattr(module, "perturb"):
        perturb = module.perturb

        def perturb_and_note(model, rho):
            seen.before = [p.clone() for p in model.parameters()]
            return perturb(model, rho)

        monkeypatch.setattr(module, "perturb", perturb_and_note)
    summary = module.main(["--preset", "smoke"])
    steps = summary["steps"]
    if not hasattr(module, "candidates"):  # those are one process, without dropout
        parts = getattr(module.Config, "micro_batches", 1)  # backward passes whose gradients are summed together
        assert seen.sums == list(range(parts, seen.passes + 1, parts))
        assert seen.passes == steps * (1 + sam) * parts
        if hasattr(module.Config, "dropout"):
            assert len(set(seen.seeds)) == len(seen.seeds) == seen.passes
    assert seen.restored == [True] * steps * sam
    folder = clean / "runs" / name / "smoke-seed0"
    assert {"config.json", "metrics.csv", "log.txt", "checkpoint.pt", "summary.json"} <= {
        path.name for path in folder.iterdir()
    }
    saved = disk.load_checkpoint(folder / "checkpoint.pt")
    config = module.Config(**json.loads((folder / "config.json").read_text()))
    model = module.Model(config)
    model.load_state_dict(saved["model"])
    assert saved["step"] == config.steps == summary["steps"]
    rows = disk.read_rows(folder / "metrics.csv")
    assert int(rows[-1]["step"]) == config.steps
    assert math.isfinite(float(rows[-1]["loss"]))
    if len(seen.rates) == steps:  # one optimiser
        assert [float(row["lr"]) for row in rows if row["lr"]] == pytest.approx(seen.rates)
    assert 0 <= summary["solved"] <= 1
    assert summary["peak"]["solved"] >= summary["solved"] and summary["seconds"] >= float(rows[-1]["seconds"])


@pytest.mark.parametrize("name", experiments.names())
def test_has_the_four_names(name):
    module = experiments.load(name)
    assert issubclass(module.Config, common.RunConfig)
    assert isinstance(module.Model(common.with_preset(module.Config(), "smoke")), torch.nn.Module)
    assert list(inspect.signature(module.train).parameters) == ["config"]
    assert callable(module.main)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_log(name):
    module = experiments.load(name)
    assert sum(p.numel() for p in module.Model(module.Config()).parameters()) == PARAMETERS[name]


# What each run of the log really was, from the history of its code: the fields that differ from file to file.
K, X = ((100_000, 0.0, 10.0),), (51.0, 11.0, 1.0, 0.0)
EASY = {"batch": 128, "steps": 100_000, "lr": 1e-3, "precision": "fp32", "data": "kaggle", "edges": (0.0, 0.1)}
EASY |= {"train_puzzles": 0, "train_per_bucket": 100_000, "test_per_bucket": 1_000, "evaluate_every": 1_000}
EASY |= {"width": 128, "heads": 4, "layers": 4, "mlp": 512, "iterations": 16, "dropout": 0.1, "weight_decay": 0.01}
BATCH_512 = EASY | {"batch": 512, "precision": "bf16"}
SAM = BATCH_512 | {"rho": 0.05}
MIXED = SAM | {"edges": (0.0, 1.0, 2.0, 3.0, 4.0, 10.0), "phases": K, "train_per_bucket": 0,
               "test_per_bucket": 500, "evaluate_every": 5_000}  # fmt: skip
EASY_TO_HARD = tuple((20_000 * (i + 1), 0.0, below) for i, below in enumerate((1.0, 2.0, 3.0, 4.0, 10.0)))
REVERSE = MIXED | {"phases": ((20_000, 3.0, 10.0), (40_000, 2.0, 10.0), (60_000, 1.0, 10.0), (100_000, 0.0, 10.0))}


def hard_to_easy(*ends):
    return tuple((until, low, math.inf) for until, low in zip(ends, X))


EXTREME = {"edges": (0.0, 1.0, 3.0, 11.0, 51.0, math.inf), "train_per_bucket": 0}
CURRICULUM = REVERSE | EXTREME | {"data": "extreme-test", "train_puzzles": 400_000, "test_per_bucket": 0,
                                  "phases": hard_to_easy(20_000, 40_000, 60_000, 100_000)}  # fmt: skip
BASELINE = CURRICULUM | {"data": "extreme", "train_puzzles": 2_700_000, "test_per_bucket": 5_000, "steps": 70_000,
                         "phases": hard_to_easy(14_000, 28_000, 42_000, 70_000)}  # fmt: skip
BATCH_4096 = BASELINE | {"batch": 4096, "lr": 1.5e-3}
WARMUP = BATCH_4096 | {"warmup": 2_000}
NO_SAM = {name: value for name, value in WARMUP.items() if name != "rho"}
SETTINGS = {
    "sudoku": EASY | {"muon_lr": 0.02},
    "sudoku_bs512": BATCH_512 | {"muon_lr": 0.02},
    "exp_sam": SAM,
    "train_mixed": MIXED,
    "train_curriculum": MIXED | {"phases": EASY_TO_HARD},
    "train_curriculum_reverse": REVERSE,
    "exp_recur_add": REVERSE,
    "exp_no_x_after_init": REVERSE,
    "exp_extreme_curriculum": CURRICULUM,
    "exp_extreme_baseline": BASELINE,
    "exp_scale_wide": BASELINE | {"width": 256, "heads": 8, "mlp": 1024},
    "exp_scale_batch_4k": BATCH_4096,
    "exp_warmup": WARMUP,
    "exp_cosine": WARMUP,
    "exp_cosine_no_sam": NO_SAM,
    "exp_cosine_gelu": NO_SAM,
    "exp_cosine_50k": NO_SAM
    | {"steps": 50_000, "warmup": 1_400, "phases": hard_to_easy(10_000, 20_000, 30_000, 50_000)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_log(name):
    config = experiments.load(name).Config()
    found = {field: getattr(config, field) for field in SETTINGS[name]}
    assert found == SETTINGS[name]
    assert hasattr(config, "rho") == ("rho" in SETTINGS[name])


def test_scale_wide_has_the_logs_parameters_not_its_width():
    import exp_scale_wide

    assert sum(p.numel() for p in exp_scale_wide.Model(exp_scale_wide.Config()).parameters()) == 3_173_641


def small(name, **changes):
    module = experiments.load(name)
    config = dataclasses.replace(common.with_preset(module.Config(), "smoke"), dropout=0.0, **changes)
    torch.manual_seed(0)
    return module.Model(config)


def moved_by(model, state, part):
    """Whether one iteration gives other logits when this part of the state is another."""
    with torch.no_grad():
        other = tuple(x + torch.rand_like(x) if i == part else x for i, x in enumerate(state))
        return not torch.equal(model.iterate(state)[0], model.iterate(other)[0])


def test_the_baseline_reads_the_puzzle_and_its_predictions_at_every_iteration():
    model = small("sudoku")
    clues, predictions = model.start(torch.zeros(2, 81, dtype=torch.int64))
    assert not predictions.any()
    state = model.iterate((clues, predictions))[1]
    assert len(state) == 2 and moved_by(model, state, 0) and moved_by(model, state, 1)
    assert torch.allclose(state[1].sum(-1), torch.ones(2, 81)), "probabilities"


def test_the_recurrent_model_adds_its_last_hidden_state():
    model = small("exp_recur_add")
    x, h, predictions = model.start(torch.zeros(2, 81, dtype=torch.int64))
    assert not h.any()
    logits, state = model.iterate((x, h, predictions))
    assert torch.equal(model.head(state[1]), logits), "what is carried is the encoder's output, without a norm"
    assert all(moved_by(model, state, part) for part in range(3))


def test_the_puzzle_is_read_once():
    model = small("exp_no_x_after_init")
    with torch.no_grad():
        state = model.start(torch.randint(0, 10, (2, 81)))
        blank = model.start(torch.zeros(1, 81, dtype=torch.int64))[0]  # without positions
        assert torch.allclose(blank, model.encode_puzzle.bias + model.encode_puzzle.weight[:, 0])
        before = model.iterate(state)
        model.encode_puzzle.weight.zero_()
        assert len(state) == 2 and torch.equal(before[0], model.iterate(state)[0])
    assert moved_by(model, state, 0) and moved_by(model, before[1], 1)


def test_gelu_replaces_relu():
    plain, gelu = small("exp_cosine_no_sam").layers[0], small("exp_cosine_gelu").layers[0]
    gelu.load_state_dict(plain.state_dict())
    seen = []
    for layer in (plain, gelu):
        layer.down.register_forward_hook(lambda module, given, out: seen.append(given[0]))
        layer(torch.randn(2, 81, plain.up.in_features, generator=torch.Generator().manual_seed(0)))
    assert seen[0].min() == 0 and seen[1].min() < 0, "GELU is negative left of 0, exactly and not by tanh"
    assert seen[1].min() > -0.171


def layer_of(module):
    """A small layer of this experiment, its weights drawn anew: norms and biases too."""
    config = dataclasses.replace(module.Config(), width=16, heads=2, mlp=24, dropout=0.1)
    torch.manual_seed(0)
    layer = module.Layer(config)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    return layer


def assert_is_pytorchs(layer, monkeypatch, activation="relu", given=(), mask=None):
    """The same result with the same weights, and dropout in the same four places."""
    reference = torch.nn.TransformerEncoderLayer(16, 2, 24, 0.0, activation, batch_first=True, norm_first=True)
    pairs = {"self_attn.in_proj_": "qkv.", "self_attn.out_proj.": "out.", "norm1.": "norm_attention."}
    pairs |= {"linear1.": "up.", "linear2.": "down.", "norm2.": "norm_mlp."}
    own = layer.state_dict()
    reference.load_state_dict({a + part: own[b + part] for a, b in pairs.items() for part in ("weight", "bias")})
    dropped = []
    monkeypatch.setattr(common.Dropout, "forward", lambda self, x: dropped.append(tuple(x.shape)) or x)
    h = torch.randn(3, 81, 16)
    assert torch.allclose(layer(h, *given), reference(h, mask), rtol=1e-4, atol=1e-3)
    assert dropped == [(3, 2, 81, 81), (3, 81, 16), (3, 81, 24), (3, 81, 16)]


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if name not in OWN_ATTENTION])
def test_a_layer_is_that_of_pytorch(name, monkeypatch):
    assert_is_pytorchs(layer_of(experiments.load(name)), monkeypatch, ACTIVATIONS.get(name, "relu"))


def test_row_column_and_box_of_each_cell():
    row, column, box = common.places()
    board = torch.arange(81).view(9, 9)
    for i in range(9):
        assert (row[board[i]] == i).all() and (column[board[:, i]] == i).all()
        block = board[i // 3 * 3 : i // 3 * 3 + 3, i % 3 * 3 : i % 3 * 3 + 3]
        assert (box[block] == i).all()


def test_positions_are_added_at_every_iteration():
    for name in ("sudoku", "exp_cosine_no_sam"):
        model = small(name)
        puzzle = torch.randint(0, 10, (2, 81))
        with torch.no_grad():
            state = model.iterate(model.start(puzzle))[1]
            before = model.iterate(state)[0]
            for table in (model.row, model.column, model.box):
                table.weight.mul_(2)
                assert not torch.equal(before, before := model.iterate(state)[0])


@pytest.mark.parametrize("preset", ["gpu", "mini"])
@pytest.mark.parametrize("name", experiments.of_the_log())
def test_presets_keep_the_change(name, preset):
    """What sets an experiment apart from its parent also does when both are shrunk; not where and when it is tested."""
    family = {experiment.name: experiment for experiment in lineage.find().values()}
    if not family[name].parent:
        return
    full = [experiments.load(n).Config() for n in (family[name].parent.stem, name)]
    small = [common.with_preset(config, preset) for config in full]
    for field in vars(full[0]).keys() & vars(full[1]).keys() - {"data", "evaluate_every", "test_per_bucket"}:
        before, after = ([getattr(config, field) for config in both] for both in (full, small))
        assert (before[0] != before[1]) == (after[0] != after[1]), (field, before, after)


@pytest.mark.parametrize(
    ("step", "expected"), [(85_000, 5.25e-4), (90_000, 4.46e-4), (95_000, 3.72e-4), (2_000, 1.5e-3), (140_000, 1.5e-5)]
)
def test_cosine_of_the_140k_run(step, expected):
    assert common.cosine_rate(step, 1.5e-3, 2_000, 140_000) == pytest.approx(expected, rel=2e-3)


def test_rates_of_the_70k_run():
    config = exp_cosine_no_sam.Config()
    rates = [common.cosine_rate(step, config.lr, config.warmup, config.steps) for step in range(config.steps)]
    assert rates[0] == pytest.approx(1.5e-3 / 2000)
    assert max(rates) == rates[1999] == rates[2000] == pytest.approx(1.5e-3)
    assert rates[-1] == pytest.approx(1.5e-5, rel=1e-3)
    assert common.warmup_rate(1999, 1.5e-3, 2000) == common.warmup_rate(60_000, 1.5e-3, 2000) == 1.5e-3


def test_sam_takes_the_gradient_at_perturbed_weights_and_restores_them_exactly():
    """f = (a^2 + 4 b^2) / 2 at (3, 1): gradient (3, 4), norm 5; rho 0.5 goes to (3.3, 1.4), gradient (3.3, 5.6).

    What has no gradient, like a memory that one iteration does not read, stays where it is.
    """

    class Bowl(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = (torch.nn.Parameter(torch.tensor([v])) for v in (3.0, 1.0, 7.0))

        def loss(self):
            return (self.a**2 + 4 * self.b**2).sum() / 2

    bowl = Bowl()
    bowl.loss().backward()
    weights = exp_sam.perturb(bowl, 0.5)
    assert [p.item() for p in bowl.parameters()] == pytest.approx([3.3, 1.4, 7.0])
    bowl.loss().backward()
    exp_sam.restore(bowl, weights)
    assert [p.item() for p in bowl.parameters()] == [3.0, 1.0, 7.0]
    assert [p.grad.item() for p in (bowl.a, bowl.b)] == pytest.approx([3.3, 5.6])


def test_sam_is_the_same_in_every_experiment():
    """exp_sam_bs256.py and exp_sam.py have it from no common parent, so `propagate` cannot hold them together."""

    def body(name, function):
        lines = inspect.getsource(getattr(experiments.load(name), function)).splitlines()
        return [line.split("  # ")[0] for line in lines]

    users = [name for name in experiments.names() if hasattr(experiments.load(name), "perturb")]
    assert len(users) > 30
    for function in ("perturb", "restore"):
        assert all(body(name, function) == body("exp_sam", function) for name in users)


def test_sam_restores_every_bit_of_a_network():
    """Subtracting the perturbation again would round many weights to a neighbour."""
    torch.manual_seed(0)
    model = torch.nn.Linear(200, 50)
    before = model.weight.clone()
    model(torch.randn(8, 200)).square().sum().backward()
    weights = exp_sam.perturb(model, 0.05)
    assert not torch.equal(model.weight, before)
    exp_sam.restore(model, weights)
    assert torch.equal(model.weight, before)


def test_muon_is_the_logs():
    """Nesterov momentum 0.95, five cubic Newton-Schulz steps, never transposed, scaled by sqrt(rows / columns)."""
    for shape in ((48, 16), (16, 48), (9, 9)):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(shape))
        expected, buffer, optimizer = weight.detach().clone(), torch.zeros(shape), sudoku.Muon([weight], lr=0.02)
        for _ in range(3):
            weight.grad = torch.randn(shape)
            buffer = 0.95 * buffer + weight.grad
            x = weight.grad + 0.95 * buffer
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                x = 1.5 * x - 0.5 * x @ x.T @ x
            expected = expected - 0.02 * max(1, shape[0] / shape[1]) ** 0.5 * x
            optimizer.step()
        assert torch.allclose(weight, expected, atol=1e-6)


class Spy:
    """Stands in for an optimiser class, and keeps the one that was made."""

    def __init__(self, real):
        self.real = real

    def __call__(self, *arguments, **options):
        self.made = self.real(*arguments, **options)
        return self.made


def optimizers_of(module, monkeypatch, *flags):
    """[(class, parameters, settings)] of each optimiser that a run of this experiment makes."""
    spies = [Spy(torch.optim.AdamW)] + ([Spy(module.Muon)] if hasattr(module, "Muon") else [])
    monkeypatch.setattr(torch.optim, "AdamW", spies[0])
    if len(spies) > 1:
        monkeypatch.setattr(module, "Muon", spies[1])
    module.main(["--preset", "smoke", *flags])
    return [spy.made.param_groups[0] for spy in spies]


def test_easy_runs_use_muon_for_every_matrix(clean, monkeypatch):
    """Embeddings, input map and head included; AdamW gets biases and norms only."""
    adamw, muon = optimizers_of(sudoku, monkeypatch)
    assert {p.ndim for p in muon["params"]} == {2} and {p.ndim for p in adamw["params"]} == {1}
    model = sudoku.Model(common.with_preset(sudoku.Config(), "smoke"))
    assert len(muon["params"]) + len(adamw["params"]) == len(list(model.parameters()))
    assert muon["lr"] == sudoku.Config().muon_lr == 0.02
    assert adamw["betas"] == (0.9, 0.95) and adamw["weight_decay"] == 0.01
    assert sudoku.Config().lr == 1e-3


@pytest.mark.parametrize("name", ["exp_sam", "exp_scale_batch_4k", "exp_warmup", "exp_cosine", "exp_cosine_no_sam"])
def test_everything_after_uses_adamw_at_the_logs_rate(name, clean, monkeypatch):
    module = experiments.load(name)
    (adamw,) = optimizers_of(module, monkeypatch)
    config = common.with_preset(module.Config(), "smoke")
    assert len(adamw["params"]) == len(list(module.Model(config).parameters()))
    assert adamw["betas"] == (0.9, 0.95) and adamw["weight_decay"] == 0.01
    assert module.Config().lr == (1e-3 if name == "exp_sam" else 1.5e-3)
    last = {"exp_warmup": config.lr, "exp_sam": config.lr, "exp_scale_batch_4k": config.lr}
    expected = last.get(name, common.cosine_rate(config.steps - 1, config.lr, config.warmup, config.steps)
                        if hasattr(config, "warmup") else None)  # fmt: skip
    assert adamw["lr"] == pytest.approx(expected)
    (folder,) = clean.glob(f"runs/{name}/*")
    assert float(disk.read_rows(folder / "metrics.csv")[-1]["lr"]) == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if name not in INDEPENDENT])
def test_layers_start_as_copies_of_one(name):
    module = experiments.load(name)
    config = module.Config()
    model = module.Model(config)
    for layers in getattr(model, "encoders", None) or [model.layers]:  # separate encoders are drawn each on its own
        first, *others = [layer.state_dict() for layer in layers]
        for other in others:
            assert all(torch.equal(value, other[name]) for name, value in first.items())
        assert len({p.data_ptr() for p in layers.parameters()}) == config.layers * len(first)


def first_loss(module):
    """The loss at step 0 of the full-size network, with dropout, on puzzles of 26 clues."""
    puzzle, solution = (torch.from_numpy(a.astype(np.int64)) for a in
                        generate.cached(16, clues=26, seed=5, progress=False).rows(np.arange(6)))  # fmt: skip
    target = torch.where(puzzle == 0, solution - 1, common.IGNORED)
    batch = common.Batch(puzzle, target, torch.arange(6, dtype=torch.int32), int((puzzle == 0).sum()))
    torch.manual_seed(0)
    model = module.Model(module.Config())
    common.seed_dropout(model, batch.seeds)
    loss, _ = module.forward_loss(model, batch, module.Config())
    loss.backward()
    weights = module.perturb(model, module.Config().rho) if hasattr(module, "perturb") else None
    with torch.no_grad():
        return loss.item(), module.forward_loss(model, batch, module.Config())[0].item() if weights else None


def test_loss_at_step_0_where_h_is_fresh():
    plain, perturbed = first_loss(exp_sam)
    assert 2.6 < plain < 3.1 and 2.75 < perturbed < 3.1  # SAM's logged loss is the perturbed one


def test_loss_at_step_0_where_h_is_carried_without_a_norm():
    assert first_loss(exp_extreme_baseline)[0] == pytest.approx(17.3, abs=0.8)  # 13 with independent layers


@pytest.mark.parametrize("name", experiments.names())
def test_contract_of_a_model(name):
    """forward is the generic loop over start and iterate, so a state can be carried, and taken up late."""
    module = experiments.load(name)
    model = module.Model(common.with_preset(module.Config(), "smoke")).eval()
    puzzle = torch.from_numpy(
        generate.cached(16, clues=45, seed=5, progress=False).rows(np.arange(4))[0].astype(np.int64)
    )
    with torch.no_grad():
        outputs = list(model(puzzle, 3))
        state = model.start(puzzle)
        for expected in outputs:
            logits, state = model.iterate(state)
            assert logits.shape == (4, 81, 9) and torch.equal(logits, expected)


def test_every_preset_names_every_field():
    configs = {name: experiments.load(name).Config() for name in experiments.names()} | {"ebm/ours": ours.Config()}
    for name, config in configs.items():
        fields = set(vars(config))
        for preset in set(presets.PRESETS) - {"full"}:
            rules = set(presets.PRESETS[preset])
            assert fields <= rules | presets.UNCHANGED, (name, preset)
            assert not rules & presets.UNCHANGED - {"test_iterations"}, preset
    known = set().union(*map(vars, configs.values()))
    assert presets.UNCHANGED | set(presets.MINI) <= known, "names that no experiment has"


def test_a_field_that_no_preset_names_is_an_error():
    Config = dataclasses.make_dataclass("Config", [("gates", int, 3)], bases=(sudoku.Config,))
    with pytest.raises(SystemExit, match="gates"):
        common.with_preset(Config(), "mini")


@pytest.mark.parametrize("preset", ["gpu", "mini"])
@pytest.mark.parametrize("name", experiments.names())
def test_the_whole_schedule_shrinks_alike(name, preset):
    full = experiments.load(name).Config()
    small = common.with_preset(full, preset)
    divisor = full.steps / small.steps
    assert small.steps >= min(600, full.steps)
    for before, after in zip(getattr(full, "phases", ()), getattr(small, "phases", ())):
        assert after[0] == pytest.approx(before[0] / divisor, abs=1) and after[1:] == before[1:]
    if getattr(full, "warmup", 0) and hasattr(full, "phases"):
        assert small.warmup == pytest.approx(full.warmup / divisor, abs=1)


@pytest.mark.parametrize("name", experiments.names())
def test_the_gpu_preset_keeps_the_network(name):
    module = experiments.load(name)
    full, gpu = module.Config(), common.with_preset(module.Config(), "gpu")
    assert str(module.Model(full)) == str(module.Model(gpu)) and full.lr == gpu.lr


def test_the_command_in_a_summary_gives_the_same_config():
    for flags in (
        ["--preset", "mini", "--seed", "3"],
        ["--steps", "9", "--no-compile", "--test-iterations", "8", "32", "--phases", "5", "0", "3", "9", "1", "inf"],
    ):
        config = common.parse(exp_cosine_no_sam.Config, flags)
        default = common.with_preset(exp_cosine_no_sam.Config(), config.preset)
        words = run.command(config, default, exp_cosine_no_sam.__file__).split()
        assert words[:2] == ["python", "exp_cosine_no_sam.py"]
        assert common.parse(exp_cosine_no_sam.Config, words[2:]) == config


def test_memory_of_batch_4096_is_the_171_gb_that_it_was_counted_at():
    model, bf16 = exp_cosine_no_sam.Model(exp_cosine_no_sam.Config()), torch.autocast("cpu", torch.bfloat16)
    kept = loop.kept_bytes(model, torch.zeros(4, 81, dtype=torch.int64), 16, bf16)
    assert kept / 4 * 4096 / 1e9 == pytest.approx(173, abs=4)  # a few GB are copies of the weights


def test_loss_counts_blank_cells_only():
    target = torch.full((1, 81), common.IGNORED)
    target[0, 5], target[0, 60] = 3, 7
    batch = common.Batch(None, target, None, 2)
    logits = torch.randn(1, 81, 9)
    expected = (F.cross_entropy(logits[0, 5], torch.tensor(3)) + F.cross_entropy(logits[0, 60], torch.tensor(7))) / 2
    assert sudoku.blank_loss(logits, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    shouted = torch.where(target[..., None] == common.IGNORED, 50 * logits, logits)
    assert torch.equal(sudoku.blank_loss(shouted, batch), sudoku.blank_loss(logits, batch))


def test_loss_is_the_mean_over_iterations_and_flows_back_through_predictions():
    config = common.with_preset(sudoku.Config(), "smoke")
    config.iterations = 3
    torch.manual_seed(0)
    model = sudoku.Model(config).eval()
    puzzle = torch.randint(0, 10, (2, 81))
    target = torch.where(puzzle == 0, torch.randint(0, 9, (2, 81)), common.IGNORED)
    batch = common.Batch(puzzle, target, None, int((puzzle == 0).sum()))
    outputs = list(model(puzzle, 3))
    each = [sudoku.blank_loss(logits, batch) for logits in outputs]
    loss, last = sudoku.forward_loss(model, batch, config)
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-6)
    assert torch.equal(last, outputs[-1])
    assert torch.autograd.grad(each[2], outputs[0])[0].abs().sum() > 0


def test_first_iteration_sees_no_predictions():
    """With predictions at zero their projection adds nothing but its bias."""
    config = common.with_preset(exp_cosine_no_sam.Config(), "smoke")
    model = exp_cosine_no_sam.Model(config).eval()
    puzzle = torch.randint(0, 10, (2, 81))
    before = next(model(puzzle, 1))
    with torch.no_grad():
        model.embed_predictions.weight.normal_()
    assert torch.equal(before, next(model(puzzle, 1)))


class FakeRun:
    rank, world, device = 0, 1, torch.device("cpu")


def rated(edges):
    """A set whose puzzles all differ, ten to a rating 0, 1, 2, 3, 10, 11, 50, 51, 400."""
    ratings = np.repeat(np.array([0, 1, 2, 3, 10, 11, 50, 51, 400], np.float32), 10)
    solution = np.tile(np.arange(1, 10, dtype=np.uint8), (len(ratings), 9))
    puzzle = solution.copy()
    for i in range(len(puzzle)):
        puzzle[i, i % 81] = 0
    puzzle_set = store.from_arrays(puzzle, solution, ratings)
    return sources.Data(puzzle_set, puzzle_set, edges)


def test_pools_are_the_buckets_that_were_really_run():
    """70k steps: 51+ to 14k, 11+ to 28k, 1+ to 42k, then all; not the "21+, 6+, 1+" of the log's names."""
    config, data = exp_cosine_no_sam.Config(), rated(store.EXTREME)
    steps = {0: 51, 13_999: 51, 14_000: 11, 27_999: 11, 28_000: 1, 41_999: 1, 42_000: 0, 69_999: 0}
    for step, low in steps.items():
        pool = common.pool_at(config, data, step)
        assert pool.tolist() == np.flatnonzero(data.train.rating >= low).tolist()


def test_pools_of_the_easy_to_hard_curriculum_end_below_the_next_bucket():
    config, data = experiments.load("train_curriculum").Config(), rated(store.EXTREME)
    for step, below in {0: 1, 19_999: 1, 20_000: 2, 40_000: 3, 79_999: 4, 80_000: 10, 99_999: 10}.items():
        assert set(data.train.rating[common.pool_at(config, data, step)]) == {r for r in (0, 1, 2, 3) if r < below}


def test_batches_are_a_function_of_seed_and_step():
    config, data = exp_cosine_no_sam.Config(batch=8), rated(store.EXTREME)
    one, again = (common.batch_at(config, data, FakeRun(), 50_000) for _ in range(2))
    other = common.batch_at(config, data, FakeRun(), 50_001)
    config.seed = 1
    seeded = common.batch_at(config, data, FakeRun(), 50_000)
    assert torch.equal(one.puzzle, again.puzzle) and torch.equal(one.seeds, again.seeds)
    assert not torch.equal(one.puzzle, other.puzzle) and not torch.equal(one.puzzle, seeded.puzzle)


def test_processes_share_the_batch():
    config, data = exp_cosine_no_sam.Config(batch=8), rated(store.EXTREME)
    whole = common.batch_at(config, data, FakeRun(), 50_000)
    parts = []
    for rank in range(4):
        run = FakeRun()
        run.rank, run.world = rank, 4
        parts.append(common.batch_at(config, data, run, 50_000))
    assert torch.equal(torch.cat([part.puzzle for part in parts]), whole.puzzle)
    assert torch.equal(torch.cat([part.seeds for part in parts]), whole.seeds)
    assert {part.blanks for part in parts} == {whole.blanks}


def test_targets_are_digits_on_blanks_only():
    data = rated(store.EXTREME)
    batch = common.batch_at(exp_cosine_no_sam.Config(batch=8), data, FakeRun(), 50_000)
    blank = batch.puzzle == 0
    assert (batch.target[~blank] == common.IGNORED).all()
    assert (batch.target[blank] >= 0).all() and batch.blanks == blank.sum() == 8


def test_an_empty_pool_is_an_error():
    config = exp_cosine_no_sam.Config(batch=8, phases=((10, 500.0, math.inf),))
    with pytest.raises(SystemExit, match="no training puzzle"):
        common.batch_at(config, rated(store.EXTREME), FakeRun(), 0)


def test_exact_evaluation_counts_by_bucket_and_iteration():
    """A stand-in that is right on bucket 0 from its first iteration, on the rest from its third."""
    data = rated(store.EXTREME)
    data.bucket_shares = [0.5, 0.125, 0.125, 0.125, 0.125]

    class Oracle(torch.nn.Module):
        def forward(self, puzzle, iterations):
            assert not self.training and torch.get_float32_matmul_precision() == "highest"
            digits = torch.arange(9).repeat(9).expand(len(puzzle), 81)
            easy = torch.isin((puzzle == 0).int().argmax(1), torch.arange(10))
            for i in range(iterations):
                right = easy | torch.tensor(i >= 2)
                yield F.one_hot(torch.where(right[:, None], digits, (digits + 1) % 9), 9).float()

    torch.set_float32_matmul_precision("high")
    model = Oracle()
    table = common.evaluate(model, data, FakeRun(), [1, 3], batch=7)
    assert model.training and torch.get_float32_matmul_precision() == "high"
    assert table[1]["solved"][0] == 10 and table[1]["puzzles"] == [10, 20, 20, 20, 20]
    assert table[3]["share"] == 1.0 and table[3]["share_natural"] == pytest.approx(1.0)
    # a blank at places 0-9 is "easy" to the stand-in: rows 0-9 and 81-89, that is all of bucket 0 and nine of 51+
    assert table[1]["solved"] == [10, 0, 0, 0, 9]
    assert table[1]["share_natural"] == pytest.approx(0.5 + 0.125 * 9 / 20)


def test_symmetries_keep_a_grid_legal_and_the_clues_in_place():
    solution = np.tile(np.array([(3 * (r % 3) + r // 3 + c) % 9 + 1 for r in range(9) for c in range(9)]), (200, 1))
    random = np.random.default_rng(0)
    solution = solution.astype(np.uint8)
    puzzle = solution * (random.random((200, 81)) < 0.4)
    moved, moved_solution = sources.symmetries(puzzle, solution, random)
    boards = moved_solution.reshape(-1, 9, 9)
    boxes = boards.reshape(-1, 3, 3, 3, 3).transpose(0, 1, 3, 2, 4).reshape(-1, 9, 9)
    for unit in (boards, boards.transpose(0, 2, 1), boxes):
        assert (np.sort(unit, 2) == np.arange(1, 10)).all()
    assert ((moved == moved_solution) | (moved == 0)).all()
    assert ((moved > 0).sum(1) == (puzzle > 0).sum(1)).all()
    assert len(np.unique(moved_solution, axis=0)) > 195
