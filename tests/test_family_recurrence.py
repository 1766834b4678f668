"""Carried states in all their forms, and the two runs of Kaggle's puzzles with a larger network or more iterations."""

import pytest
import torch

import common
from tests import experiments
from tests.test_experiments import REVERSE, first_loss, moved_by, small

PARAMETERS = {
    "exp_scale_model": 2_679_945,
    "exp_scale_iter": 800_265,
    "exp_recur_concat": 816_649,
    "exp_recur_gated": 833_161,
    "exp_recur_mem": 816_841,
    "exp_recur_add_nopred": 799_113,
    "exp_recur_concat_nopred": 815_497,
    "exp_recur_mem_nopred": 815_689,
    "exp_separate_h_pred": 874_386,
    "exp_norm_pred": 874_395,
}
CHANGES = {
    "exp_scale_model": {"width": 192, "heads": 6, "layers": 6, "mlp": 768, "batch": 256},
    "exp_scale_iter": {"iterations": 32, "batch": 256},
}
PUZZLE = torch.tensor([[5, 3, 0] * 27, [0, 0, 7] * 27])


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_log(name):
    module = experiments.load(name)
    assert sum(p.numel() for p in module.Model(module.Config()).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_settings_of_the_log(name):
    config, expected = experiments.load(name).Config(), REVERSE | CHANGES.get(name, {})
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("preset", ["mini", "smoke"])
def test_presets_keep_the_scale(name, preset):
    parent, child = (
        common.with_preset(experiments.load(n).Config(), preset) for n in ("train_curriculum_reverse", name)
    )
    for field in set(CHANGES[name]) - ({"heads", "layers"} if preset == "smoke" else set()):  # one of each there
        assert getattr(parent, field) != getattr(child, field), field


def test_loss_at_step_0_of_the_larger_network():
    assert first_loss(experiments.load("exp_scale_model"))[1] == pytest.approx(3.34, abs=0.3)


def test_the_loss_is_the_mean_over_32_iterations():
    """The state is fresh at each of them, so at step 0 they are as good as 16."""
    module = experiments.load("exp_scale_iter")
    assert 2.75 < first_loss(module)[1] < 3.1
    model = small("exp_scale_iter")
    target = torch.where(PUZZLE == 0, 4, common.IGNORED)
    batch = common.Batch(PUZZLE, target, None, int((PUZZLE == 0).sum()))
    each = [module.blank_loss(logits, batch) for logits in model(PUZZLE, 32)]
    loss, last = module.forward_loss(model, batch, module.Config())
    assert len(each) == 32 and loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    assert torch.equal(module.blank_loss(last, batch), each[-1])


def encoder_output(model, state):
    """What leaves the last layer in this iteration."""
    seen = []
    hook = model.layers[-1].register_forward_hook(lambda module, given, h: seen.append(h))
    model.iterate(state)
    hook.remove()
    return seen[0]


@torch.no_grad()
def test_the_last_state_is_a_further_input():
    model = small("exp_recur_concat")
    state = model.start(PUZZLE)
    assert not state[1].any() and not state[2].any()
    logits, state = model.iterate(state)
    assert torch.equal(model.head(state[1]), logits), "what is carried is the encoder's output, without a norm"
    assert all(moved_by(model, state, part) for part in range(3))
    model.input.weight[:, 19:] = 0
    assert not moved_by(model, state, 1) and moved_by(model, state, 2), "puzzle, predictions, state: in this order"


@torch.no_grad()
def test_the_gate_mixes_the_last_state_with_the_new_one():
    model = small("exp_recur_gated")
    width = model.head.in_features
    x, last, predictions = model.iterate(model.start(PUZZLE))[1]
    assert not model.start(PUZZLE)[1].any()
    candidate = encoder_output(model, (x, last, predictions))
    assert torch.equal(candidate, encoder_output(model, (x, last + 1, predictions))), "the layers never see it"
    gate = model.gate(torch.cat([last, candidate], -1)).sigmoid()
    logits, (_, h, _) = model.iterate((x, last, predictions))
    assert torch.allclose(h, candidate + gate * (last - candidate), atol=1e-5)
    assert torch.equal(model.head(h), logits)
    model.gate.bias.fill_(100)
    assert torch.equal(model.iterate((x, last, predictions))[1][1], last), "an open gate keeps the last state"
    model.gate.weight[:, width:] = 0
    model.gate.bias.fill_(-100)
    assert torch.equal(model.iterate((x, last, predictions))[1][1], candidate), "a closed one replaces it"


@pytest.mark.parametrize("name", ["exp_recur_mem", "exp_recur_mem_nopred"])
@torch.no_grad()
def test_the_memory_adds_up_over_the_iterations(name):
    model = small(name)
    state, expected = model.start(PUZZLE), 0.0
    assert not state[1].any() and 2 * state[1].shape[-1] == model.head.in_features
    first = model.iterate(state)[0]
    for _ in range(3):
        expected = expected + model.write(encoder_output(model, state))
        state = model.iterate(state)[1]
        assert torch.allclose(state[1], expected, atol=1e-5)
    assert all(moved_by(model, state, part) for part in range(len(state)))
    model.read.bias += 1
    assert not torch.equal(first, model.iterate(model.start(PUZZLE))[0]), "its bias counts at the first iteration too"
    model.read.weight.zero_()
    assert not moved_by(model, state, 1), "nothing else carries the hidden state"


def after_two(model):
    """The state after two iterations."""
    return model.iterate(model.iterate(model.start(PUZZLE))[1])[1]


@pytest.mark.parametrize("kind", ["add", "concat", "mem"])
@torch.no_grad()
def test_no_predictions_are_fed_back(kind):
    """With another head, a model that reads its predictions comes to another state; without them it does not."""
    for name, reads in ((f"exp_recur_{kind}", True), (f"exp_recur_{kind}_nopred", False)):
        model = small(name)
        state = after_two(model)
        assert len(state) == 2 + reads and moved_by(model, state, 1)
        model.head.weight.mul_(-5)
        assert torch.equal(state[1], after_two(model)[1]) != reads


@pytest.mark.parametrize("name", ["exp_separate_h_pred", "exp_norm_pred"])
@torch.no_grad()
def test_hidden_state_and_predictions_are_updated_apart(name):
    model = small(name)
    normed = hasattr(model, "norm")
    state = model.start(PUZZLE)
    assert not state[1].any()
    h, s = model.iterate(state)[1]
    logits, after = model.iterate((h, s))
    assert torch.equal(after[0], encoder_output(model, (h, s))), "the state is carried without a norm"
    assert torch.equal(after[0], model.iterate((h, s + 1))[1][0]), "predictions never enter the hidden state"
    up, act, down = model.update
    total = s + down(act(up(torch.cat([after[0], s], -1))))
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() if normed else total
    assert torch.allclose(after[1], expected, atol=1e-5) and after[1].min() < 0, "no softmax"
    assert torch.equal(logits, model.head(after[0]) + after[1])
    assert isinstance(act, torch.nn.GELU) and act.approximate == "none"


@torch.no_grad()
def test_only_the_norm_keeps_the_predictions_small():
    """Twenty times the same update: a sum grows with each, a sum with a norm does not."""
    sizes = []
    for name in ("exp_separate_h_pred", "exp_norm_pred"):
        model = small(name)
        model.update[2].weight.zero_()
        model.update[2].bias.copy_(torch.arange(9.0))
        h, s = model.start(PUZZLE)
        for _ in range(20):
            s = model.iterate((h, s))[1][1]
        sizes.append(s.square().mean(-1).sqrt().max().item())
    assert sizes[0] == pytest.approx(20 * (204 / 9) ** 0.5) and sizes[1] == pytest.approx(1, abs=1e-3)


@torch.no_grad()
def test_the_norm_of_predictions_has_nine_weights_and_the_logs_epsilon():
    model = small("exp_norm_pred")
    assert model.norm.weight.shape == (9,) and model.norm.eps == 1e-5
    model.norm.weight.copy_(torch.arange(9.0))
    assert not model.iterate(model.start(PUZZLE))[1][1][..., 0].any()
