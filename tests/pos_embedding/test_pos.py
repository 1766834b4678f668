"""Positional encodings: what each file adds where, and that its layers are PyTorch's but for that."""

import math

import pytest
import torch

import common
from tests import experiments
from tests.test_experiments import SETTINGS, assert_is_pytorchs, layer_of, small

PARAMETERS = {
    "exp_cosine_pos_once": 800_393,
    "exp_faster_rowcol": 799_241,
    "exp_faster_abspos": 807_305,
    "exp_faster_2drope": 796_937,
    "exp_faster_t5bias": 797_098,
    "exp_faster_alibi": 796_937,
}
ROW, COLUMN, _ = common.places()
CELL = torch.arange(81)
DISTANCE = CELL[:, None] - CELL


@pytest.mark.parametrize("name", PARAMETERS)
def test_settings_and_parameters_of_the_log(name):
    module = experiments.load(name)
    config, expected = module.Config(), SETTINGS["exp_cosine" if name == "exp_cosine_pos_once" else "exp_cosine_50k"]
    assert {field: getattr(config, field) for field in expected} == expected
    assert hasattr(config, "rho") == hasattr(module, "perturb") == ("rho" in expected)
    assert sum(p.numel() for p in module.Model(config).parameters()) == PARAMETERS[name]


def iterations(model, count=2):
    with torch.no_grad():
        state = model.start(torch.randint(0, 10, (2, 81), generator=torch.Generator().manual_seed(0)))
        states = [state]
        for _ in range(count):
            states.append(model.iterate(states[-1])[1])
    return states


def test_positions_once_are_in_the_first_state_and_nowhere_else():
    model, every = small("exp_cosine_pos_once"), small("exp_cosine")
    every.load_state_dict(model.state_dict())
    first, second = iterations(model)[:2]
    assert torch.allclose(first[0] - every.positions(), iterations(every)[0][0], atol=1e-6)
    assert torch.allclose(second[0], iterations(every)[1][0], atol=1e-6), "up to here the sums are the same"
    with torch.no_grad():
        for table in (model.row, model.column, model.box):
            table.weight.normal_()
    assert torch.equal(model.iterate(first)[1][0], second[0]), "iterate knows no positions"
    assert not torch.equal(iterations(model)[0][0], first[0])


@pytest.mark.parametrize("name", ["exp_faster_rowcol", "exp_faster_abspos"])
def test_positions_are_added_at_every_iteration(name):
    model = small(name)
    h, predictions = iterations(model)[1]
    with torch.no_grad():
        before = model.iterate((h, predictions))[0]
        moved = model.iterate((h + model.positions(), predictions))[0]
        for table in (model.row, model.column) if name == "exp_faster_rowcol" else (model.cell,):
            table.weight.mul_(2)
    assert not torch.allclose(before, moved)
    assert torch.allclose(model.iterate((h, predictions))[0], moved, atol=1e-5)


def test_rowcol_is_a_row_plus_a_column_and_abspos_a_vector_for_each_cell():
    model = small("exp_faster_rowcol")
    expected = model.row.weight[:, None] + model.column.weight[None]
    assert torch.equal(model.positions(), expected.flatten(0, 1)) and not hasattr(model, "box")
    assert torch.linalg.matrix_rank(small("exp_faster_abspos", width=96).positions()) == 81, "sums have 17 at most"


@pytest.mark.parametrize("name", ["exp_faster_2drope", "exp_faster_alibi"])
def test_layers_are_drawn_independently_in_the_init_of_pytorch(name):
    module = experiments.load(name)
    layers, width = module.Model(module.Config()).layers, 128
    assert not torch.equal(layers[0].up.weight, layers[3].up.weight)
    for layer in layers:
        for linear in (layer.qkv, layer.out):  # Xavier draws q, k, v up to 0.108, and biases start at 0 there
            for values in (linear.weight, linear.bias):
                assert 0.9 * width**-0.5 < values.abs().max() <= width**-0.5


def test_rope_layer_is_pytorchs_but_for_the_angles(monkeypatch):
    layer = layer_of(experiments.load("exp_faster_2drope"))
    layer.angles.zero_()
    assert_is_pytorchs(layer, monkeypatch)


def scores(layer, x):
    """The attention logits of this layer for cells that all have the state x: [heads, 81, 81]."""
    seen = []
    softmax = torch.Tensor.softmax
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.Tensor, "softmax", lambda scores, *given: seen.append(scores) or softmax(scores, *given))
        layer.eval()(x.expand(1, 81, -1))
    return seen[0][0]


def test_rope_sees_only_differences_of_row_and_column():
    module = experiments.load("exp_faster_2drope")
    torch.manual_seed(0)
    layer = module.Layer(module.Config())
    x = torch.randn(128)
    found = scores(layer, x)
    rows, columns = ROW[:, None] - ROW, COLUMN[:, None] - COLUMN
    for head in found:
        picked = torch.zeros(17, 17).index_put((rows + 8, columns + 8), head)  # one pair of cells for each difference
        assert torch.allclose(picked[rows + 8, columns + 8], head, atol=1e-5)
        assert len(picked.flatten().round(decimals=4).unique()) > 200, "of 289 differences"
    q, k, _ = layer.qkv(layer.norm_attention(x)).view(3, 4, 16, 2).unbind(0)  # neighbours are a pair
    speeds = torch.tensor([10 ** (-2 * i / 16) for i in range(8)])
    turn = torch.cat([rows[..., None] * speeds, columns[..., None] * speeds], -1)  # half of the pairs by row
    q, k = torch.view_as_complex(q.contiguous()), torch.view_as_complex(k.contiguous())
    expected = (q * k.conj() * torch.polar(torch.ones(()), turn)[:, :, None]).real.sum(-1) / math.sqrt(32)
    assert torch.allclose(found, expected.permute(2, 0, 1), atol=1e-5)


def test_t5_adds_a_number_for_each_signed_distance_shared_by_heads_layers_and_iterations(monkeypatch):
    bias = torch.randn(81, 81)
    assert_is_pytorchs(layer_of(experiments.load("exp_faster_t5bias")), monkeypatch, given=(bias,), mask=bias)
    model, seen = small("exp_faster_t5bias", layers=2), []
    assert torch.equal(model.positions(), model.distance.weight[DISTANCE + 80, 0])
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    iterations(model)
    assert len(seen) == 4 and all(torch.equal(given, model.positions()) for given in seen)
    assert model.distance.weight.shape == (161, 1)


def test_alibi_takes_fixed_slopes_times_the_distance_off(monkeypatch):
    module = experiments.load("exp_faster_alibi")
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])
    layer = module.Layer(module.Config())
    assert torch.equal(layer.bias, -slopes[:, None, None] * DISTANCE.abs())
    assert not layer.bias.requires_grad and "bias" not in layer.state_dict()
    layer = layer_of(module)
    assert_is_pytorchs(layer, monkeypatch, mask=layer.bias.repeat(3, 1, 1))


@pytest.mark.parametrize("name", ["exp_faster_2drope", "exp_faster_t5bias", "exp_faster_alibi"])
def test_states_hold_no_positions_but_attention_does(name):
    model = small(name)
    with torch.no_grad():
        h, predictions = model.start(torch.zeros(1, 81, dtype=torch.int64))
        assert torch.equal(h, h[:, :1].expand_as(h)), "all blanks start alike"
        state = torch.randn_like(h), predictions
        order = torch.randperm(81)
        moved = model.iterate((state[0][:, order], predictions))[0]
        assert not torch.allclose(moved, model.iterate(state)[0][:, order], atol=1e-3)
