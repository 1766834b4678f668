"""Experiments on the easiest puzzles: ablations, input maps, several encoders, batch 256, hard puzzles, positions."""

import types

import numpy as np
import pytest
import torch

import common
from data import kaggle_3m, sources
from plumbing import run
from tests import experiments
from tests import test_experiments as shared
from tests.data.test_sources import numbered, numbers
from tests.test_experiments import small

EASY = shared.EASY | {"muon_lr": 0.02, "phases": ((100_000, 0.0, 0.1),)}
SAM = shared.SAM | {"phases": EASY["phases"]}
BATCH_256 = {"batch": 256, "precision": "bf16"}
SETTINGS = {  # and the number of parameters
    "ablation_no_iteration": (EASY | {"iterations": 1}, 800_265),
    "ablation_no_intermediate": (EASY, 800_265),
    "exp_proj_add": (EASY, 800_521),
    "exp_proj_concat": (EASY, 798_857),
    "exp_middle1": (EASY | {"layers": 2, "encoders": 2}, 800_265),
    "exp_middle2": (EASY | {"layers": 1, "encoders": 4}, 800_265),
    "exp_unrolled": (EASY, 12_696_585),
    "sudoku_bs256": (EASY | BATCH_256, 800_265),
    "exp_sam_bs256": (SAM | BATCH_256, 800_265),
    "train_hard": (SAM | {"edges": (3.0, 10.0), "phases": ((100_000, 3.0, 10.0),)}, 800_265),
    "ablation_no_sudoku_pos": (EASY, 807_177),
    "exp_sinusoidal_pos": (EASY, 796_809),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_and_parameters_of_the_log(name):
    module, (settings, parameters) = experiments.load(name), SETTINGS[name]
    config = module.Config()
    assert {field: getattr(config, field) for field in settings} == settings
    assert hasattr(config, "rho") == ("rho" in settings) != hasattr(config, "muon_lr")
    assert sum(p.numel() for p in module.Model(config).parameters()) == parameters


@pytest.mark.parametrize("name", ["exp_proj_add", "exp_proj_concat", "exp_unrolled"])
def test_loss_at_step_0(name):
    assert 2.6 < shared.first_loss(experiments.load(name))[0] < 3.1


def some_batch():
    random = torch.Generator().manual_seed(0)
    puzzle = torch.randint(0, 10, (2, 81), generator=random)
    target = torch.where(puzzle == 0, torch.randint(0, 9, (2, 81), generator=random), common.IGNORED)
    return common.Batch(puzzle, target, None, int((puzzle == 0).sum()))


def given_to(layer, model, state):
    """What this layer is given in one iteration."""
    given = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        model.iterate(state)
    hook.remove()
    return given[0]


# ---------------------------------------------------------------- ablations


@pytest.mark.parametrize("preset", ["full", "mini", "smoke"])
def test_one_iteration_reads_no_predictions(preset):
    module = experiments.load("ablation_no_iteration")
    config = common.with_preset(module.Config(), preset)
    model = small("ablation_no_iteration")
    assert model.input.in_features == 10 + 9 and len(list(model(some_batch().puzzle, config.iterations))) == 1
    module.forward_loss(model, some_batch(), config)[0].backward()
    assert model.input.weight.grad[:, :10].any() and not model.input.weight.grad[:, 10:].any()


def test_only_the_last_iteration_has_a_loss_and_its_gradient_reaches_the_first():
    module, batch = experiments.load("ablation_no_intermediate"), some_batch()
    outputs = list(small("ablation_no_intermediate")(batch.puzzle, 4))
    loss, logits = module.forward_loss(lambda puzzle, iterations: iter(outputs[:iterations]), batch,
                                       module.Config(iterations=4))  # fmt: skip
    assert logits is outputs[3] and torch.equal(loss, module.blank_loss(outputs[3], batch))
    assert torch.autograd.grad(loss, outputs[0])[0].any()


# ---------------------------------------------------------------- input maps


@pytest.mark.parametrize("name", ["exp_proj_add", "exp_proj_concat"])
def test_digits_predictions_and_blanks_are_embedded_apart(name):
    model, puzzle = small(name), some_batch().puzzle
    x, _ = model.start(puzzle)
    predictions = torch.rand(2, 81, 9)
    digit = model.embed_digit.weight.T[puzzle - 1] * (puzzle > 0)[..., None] + model.embed_digit.bias
    blank = model.embed_blank.weight[(puzzle == 0).long()]
    parts = [digit, model.embed_predictions(predictions), blank]
    expected = sum(parts) if name == "exp_proj_add" else torch.cat(parts, -1)
    found = given_to(model.layers[0], model, (x, predictions))
    assert torch.allclose(found, expected + model.positions(), atol=1e-6)


@pytest.mark.parametrize("width, sizes", [(128, (64, 48, 16)), (64, (32, 24, 8)), (16, (8, 6, 2)), (12, (6, 4, 2))])
def test_the_concatenated_parts_fill_the_width(width, sizes):
    model = small("exp_proj_concat", width=width)
    assert (model.embed_digit.out_features, model.embed_predictions.out_features) == sizes[:2]
    assert model.embed_blank.embedding_dim == sizes[2]


# ---------------------------------------------------------------- several encoders


def order(model, iterations):
    """The number of the encoder that each iteration runs; all its layers must run once, one after the other."""
    names = {layer: (i, j) for i, encoder in enumerate(model.encoders) for j, layer in enumerate(encoder)}
    ran = []
    for layer in names:
        layer.register_forward_pre_hook(lambda layer, inputs: ran.append(names[layer]))
    with torch.no_grad():
        list(model(some_batch().puzzle, iterations))
    depth = len(model.encoders[0])
    assert [j for _, j in ran] == list(range(depth)) * iterations
    assert [i for i, _ in ran] == [i for i, _ in ran[::depth] for _ in range(depth)]
    return [i for i, _ in ran[::depth]]


@pytest.mark.parametrize("name, encoders, layers", [("exp_middle1", 2, 2), ("exp_middle2", 4, 1),
                                                    ("exp_unrolled", 16, 4)])  # fmt: skip
def test_each_phase_has_an_encoder_of_its_own(name, encoders, layers):
    model = small(name, iterations=16, layers=layers)
    assert [len(encoder) for encoder in model.encoders] == [layers] * encoders
    assert order(model, 18) == [i * encoders // 16 for i in range(16)] + [encoders - 1] * 2, "then the last one again"
    assert len({p.data_ptr() for p in model.encoders.parameters()}) == encoders * layers * 12
    weights = [encoder[0].qkv.weight for encoder in model.encoders]
    assert not any(torch.equal(weights[0], other) for other in weights[1:]), "drawn independently"


@pytest.mark.parametrize("name, expected", [("exp_middle1", [0, 0, 0, 1, 1, 1]), ("exp_middle2", [0, 0, 1, 2, 2, 3]),
                                            ("exp_unrolled", [0, 1, 2, 3, 4, 5])])  # fmt: skip
def test_phases_of_the_mini_preset(name, expected):
    module = experiments.load(name)
    config = common.with_preset(module.Config(), "mini")
    assert order(module.Model(config), config.iterations) == expected


@pytest.mark.parametrize("name", ["exp_middle2", "exp_unrolled"])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_no_encoder_is_left_without_an_iteration(name, iterations):
    """Muon needs a gradient of every matrix."""
    module, model = experiments.load(name), small(name, iterations=iterations)
    config = module.Config(iterations=iterations)
    module.forward_loss(model, some_batch(), config)[0].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_sixteen_encoders_are_not_compiled_sixteen_times():
    """torch.compile gives up after eight forms of `iterate`; the first iteration, the others and the test need few."""
    module, graphs = experiments.load("exp_unrolled"), []
    model = small("exp_unrolled", iterations=16)
    plain = [logits.detach() for logits in model(some_batch().puzzle, 16)]
    compiled = torch.compile(module.Model.iterate, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    model.iterate = types.MethodType(compiled, model)
    assert all(map(torch.equal, plain, model(some_batch().puzzle, 16)))
    with torch.no_grad():
        list(model(some_batch().puzzle, 18))
    assert len(graphs) <= 4


# ---------------------------------------------------------------- batch 256, SAM, hard puzzles


def test_batch_256_lies_between_the_others_at_every_preset():
    for preset in ("full", "mini", "smoke"):
        sizes = [common.with_preset(experiments.load(name).Config(), preset).batch
                 for name in ("sudoku", "sudoku_bs256", "sudoku_bs512")]  # fmt: skip
        assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("name", ["sudoku_bs256", "exp_sam_bs256"])
def test_a_step_sees_256_puzzles_in_low_precision(name, clean):
    module, data = experiments.load(name), shared.rated((0.0, 0.1))
    config = module.Config()
    assert len(common.batch_at(config, data, shared.FakeRun(), 0).puzzle) == 256
    run.Run(config, module.__file__).close()
    assert torch.get_float32_matmul_precision() == "high", "TF32"


def test_sam_at_batch_256_trains_everything_by_adamw(clean, monkeypatch):
    module = experiments.load("exp_sam_bs256")
    (adamw,) = shared.optimizers_of(module, monkeypatch)
    config = common.with_preset(module.Config(), "smoke")
    assert len(adamw["params"]) == len(list(module.Model(config).parameters()))
    assert adamw["lr"] == config.lr and adamw["betas"] == (0.9, 0.95) and adamw["weight_decay"] == 0.01


def test_sam_at_batch_256_steps_uphill_by_rho():
    module = experiments.load("exp_sam_bs256")
    model, batch = small("exp_sam_bs256"), some_batch()
    loss = module.forward_loss(model, batch, module.Config(iterations=2))[0]
    loss.backward()
    weights = module.perturb(model, 0.05)
    length = torch.stack([(p - w).norm() for p, w in zip(model.parameters(), weights)]).norm()
    assert length.item() == pytest.approx(0.05, rel=1e-3)
    assert module.forward_loss(model, batch, module.Config(iterations=2))[0] > loss
    module.restore(model, weights)
    assert all(map(torch.equal, model.parameters(), weights))


def test_hard_puzzles_are_the_first_from_3_up_and_the_test_the_next(monkeypatch):
    """Rows 3, 4 and 5 of every six are rated 3.0 or more."""
    monkeypatch.setattr(kaggle_3m, "load", lambda: numbered(np.resize([0, 1.5, 2.9, 3, 4.2, 9.9], 60)))
    config = experiments.load("train_hard").Config(train_per_bucket=7, test_per_bucket=4)
    data = sources.load(config)
    assert numbers(data.train) == [3, 4, 5, 9, 10, 11, 15] and numbers(data.test) == [16, 17, 21, 22]
    for step in (0, 99_999):
        assert len(common.pool_at(config, data, step)) == 7


def test_hard_puzzles_stay_hard_in_the_mini_preset():
    """One bucket lies in the middle of the clue counts: between the two that stand for 3.x and 4.x in the others."""
    hard, easy = (common.with_preset(experiments.load(n).Config(), "mini").data for n in ("train_hard", "exp_sam"))
    assert (hard, easy) == ("generated:42-45", "generated:42-54")


# ---------------------------------------------------------------- positions


def test_one_learned_vector_a_cell_trained_by_muon(clean, monkeypatch):
    module = experiments.load("ablation_no_sudoku_pos")
    model = module.Model(module.Config())
    assert model.positions().std().item() == pytest.approx(0.02, rel=0.03)
    _, muon = shared.optimizers_of(module, monkeypatch)
    assert any(p.shape[0] == 81 for p in muon["params"])


def test_positions_without_rows_columns_and_boxes():
    """Cells can change places along with their vectors, and nothing else changes."""
    model, puzzle = small("ablation_no_sudoku_pos"), some_batch().puzzle
    places = torch.randperm(81, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = list(model(puzzle, 3))[-1]
        alone = list(model(puzzle[:, places], 3))[-1]
        model.cells.copy_(model.cells[places])
        after = list(model(puzzle[:, places], 3))[-1]
    assert torch.allclose(after, before[:, places], atol=1e-5), "moved along with their vectors"
    assert not torch.allclose(alone, before[:, places], atol=1e-5), "without them"


def test_sine_and_cosine_of_row_column_and_box():
    model = experiments.load("exp_sinusoidal_pos").Model(experiments.load("exp_sinusoidal_pos").Config())
    row, column, box = common.places()[:, 47].tolist()
    for k in (0, 1, 20, 63):
        angles = torch.tensor([row, column, box]) / 10_000 ** (2 * k / 128)
        expected = torch.stack([angles.sin().sum(), angles.cos().sum()])
        assert torch.allclose(model.positions()[47, 2 * k : 2 * k + 2], expected, atol=1e-5)
    assert not any("wave" in name for name in model.state_dict())


def test_sinusoidal_cells_that_mirror_each_other_get_one_digit():
    """r1c2 and r2c1 have one position; both blank, they have the same logits, and no such puzzle can be solved."""
    model = small("exp_sinusoidal_pos")
    puzzle = torch.randint(1, 10, (1, 81))
    puzzle[0, [1, 2, 9]] = 0
    with torch.no_grad():
        logits = list(model(puzzle, 3))[-1][0]
    assert torch.allclose(logits[1], logits[9], atol=1e-5) and not torch.allclose(logits[1], logits[2], atol=1e-5)
