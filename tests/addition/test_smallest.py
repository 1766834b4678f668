"""The smallest models, and taking parameters out of trained ones."""

import math
from dataclasses import replace

import pytest
import torch

from addition import shrink, train
from addition.evaluate_checkpoints import load
from addition.smallest import Pattern, SmallestAdder, SmallestConfig
from addition.train import answers, encode_pairs, uniform_pairs
from tests.addition.test_export import build, write
from tests.addition.test_train import QUICK, trained

ROWS = encode_pairs(uniform_pairs(1, 50), SmallestConfig.layout)
CHILD = SmallestConfig(joined="0__/0-0", up="00/01/11", gate="00/00/_1", radius=0.1, span=1.0)


def logits(model):
    return answers(model, ROWS)[0].detach()


def test_a_pattern_is_what_it_says():
    found = Pattern("017-_/aAb_A")(torch.tensor([2.0, 3.0, 5.0, 7.0]))
    assert found.tolist() == [[0, 1, 7, -1, 2], [3, -3, 5, 7, -3]]
    assert Pattern("01/-0")(torch.zeros(0)).tolist() == [[0, 1], [-1, 0]]


@pytest.mark.parametrize("period", [12.0, 7.0])
def test_attention_depends_on_the_distance_only(period):
    model = build(SmallestConfig(period=period))
    places = torch.arange(20)
    tokens = torch.randint(10, (20,), generator=torch.Generator().manual_seed(1))
    _, q, k, _ = model.inputs(tokens, places)
    distance = (places[:, None] - places) * 2 * math.pi / period
    torch.testing.assert_close(q @ k.T, model.scale * torch.cos(distance - model.angle), atol=1e-4, rtol=1e-4)


def test_the_arc_lies_around_the_first_axis():
    digits = build(SmallestConfig()).digits().detach()
    torch.testing.assert_close(digits.flip(0), digits * torch.tensor([1.0, -1.0, 1.0]))
    assert digits.norm(dim=1).tolist() == pytest.approx([10] * 10)
    first = build(SmallestConfig(centred=False))
    angle = torch.atan2(*first.digits()[0, :2].flip(0))
    assert math.cos(float(angle.detach() - first.start.detach())) == pytest.approx(1)


def test_fixed_numbers_are_no_parameters_but_have_an_effect():
    model = build(SmallestConfig(span=1.2, scale=30.0))
    assert train.count(model) == 22 and (float(model.span), float(model.scale)) == pytest.approx((1.2, 30))
    for name in ("span", "scale"):
        other = SmallestAdder(replace(model.config, **{name: 2.0}), dict(model.named_parameters()))
        assert not torch.allclose(logits(other), logits(model), rtol=1e-3)


@pytest.mark.parametrize("radius", [10.0, 0.5])
def test_copies_are_the_same_function(radius):
    model = build(SmallestConfig())
    config = SmallestConfig(
        joined="___/___", up="__/__/__", gate="__/__/__", down="___/___", final="___", radius=radius
    )
    copies = list(shrink.copies(model, radius))
    assert len(copies) == 2 * 2 * 7 * 7  # orders, mirrored or not, units as they are or one of three entries as 1 or -1
    for matrices in copies:
        learned, distance, _ = shrink.projected(config, matrices)
        assert distance < 1e-4
        others = {name: getattr(model, name).detach() for name in ("span", "scale", "angle")}
        same = SmallestAdder(config, {name: (learned | others)[name] for name in config.shapes()})
        torch.testing.assert_close(logits(same) / radius, logits(model) / 10, rtol=1e-3, atol=1e-3)


def test_the_closest_numbers_are_the_mean_of_what_shares_a_letter():
    matrices = {name: Pattern(getattr(SmallestConfig(), name)).fixed for name in Pattern.NAMES}
    matrices["up"] = torch.tensor([[1.0, 1.0], [4.0, 2.0], [7.0, -6.0]])
    learned, distance, change = shrink.projected(SmallestConfig(up="11/a0/_A"), matrices)
    assert learned["up"].tolist() == [5, 7]  # a: 4 and -(-6)
    assert change["up"].tolist() == [[0, 0], [-1, 2], [0, -1]]
    assert distance == pytest.approx(1 / 5 + 2 / 3 + 1 / 7)


def test_a_shrinking_model_begins_as_the_trained_one_and_ends_as_what_remains():
    parent = build(SmallestConfig())
    model = shrink.Shrinking(CHILD, parent)
    assert train.count(model) == 3 + 2 + 1 + 4 + 1 - 1 == 10
    model.set(1.0)
    torch.testing.assert_close(logits(model) / CHILD.radius, logits(parent) / 10, rtol=1e-3, atol=1e-3)
    model.set(0.5)
    assert float(model.span.detach()) == pytest.approx((1 + float(parent.span.detach())) / 2)
    model.set(0.0)
    torch.testing.assert_close(logits(model), logits(SmallestAdder(CHILD, dict(model.named_parameters()))))


def test_the_copy_that_changes_least_is_taken():
    """A model that has the form already, but in another order, mirrored and with scaled units, does not change."""
    config = replace(CHILD, joined="0__/0_0", radius=10.0)
    model = build(config)
    wide = replace(config, joined="___/___", up="__/__/__", gate="__/__/__", down="___/___", final="___", span=0.0)
    others = {"span": model.span.detach(), "scale": model.scale.detach(), "angle": model.angle.detach()}
    for matrices in list(shrink.copies(model, 10.0))[::7]:
        learned = shrink.projected(wide, matrices)[0] | others
        other = SmallestAdder(wide, {name: learned[name] for name in wide.shapes()})
        change = shrink.Shrinking(config, other).change
        assert all(value.abs().max() < 1e-4 for value in change.values())


@pytest.fixture
def parent(tmp_path):
    return write(tmp_path / "parent.pt", build(SmallestConfig()))


def test_a_run_takes_them_out_step_by_step_and_keeps_what_remains(parent, tmp_path, monkeypatch):
    left, validated, mean_loss, test = [], [], train.mean_loss, train.test

    def noted(model, rows, sharpness):
        left.append(model.left)
        return mean_loss(model, rows, sharpness)

    def tested(model, *arguments):
        validated.append(model.left)
        return test(model, *arguments)

    monkeypatch.setattr(train, "mean_loss", noted)
    monkeypatch.setattr(train, "test", tested)
    start = str(tmp_path / "parent.pt")
    flags = dict(model=CHILD, start=start, ramp=20, init_std=0.5)
    summary = trained(tmp_path / "child", shrink, **flags)
    assert left == pytest.approx([max(0, 1 - step / 20) for step in range(QUICK["train_steps"])])
    assert len(validated) > 4 and not any(validated)
    child = load(tmp_path / "child/checkpoints/last.pt")
    assert child.config == CHILD and summary["config"]["start"] == start
    recipe = shrink.Recipe(shrink.Settings(**QUICK | flags))
    first = {name: p.detach().clone() for name, p in recipe.model().named_parameters()}
    assert all(not torch.equal(first[name], p) for name, p in child.named_parameters())


def test_steps_are_in_proportion_to_the_size():
    p = torch.nn.Parameter(torch.tensor([100.0, -2.0, 0.0]))
    optimizer = shrink.Relative([p], lr=0.01, weight_decay=0.0)
    p.grad = torch.tensor([1.0, 3.0, -5.0])
    optimizer.step()
    assert p.tolist() == pytest.approx([99, -2.02, 0.0005], rel=1e-4)


def test_a_start_is_needed(tmp_path):
    with pytest.raises(SystemExit, match=r"--start \(none\)"):
        shrink.Recipe(shrink.Settings()).model()
    write(tmp_path / "other.pt", build(train.ModelConfig()))
    with pytest.raises(SystemExit, match=r"other\.pt"):
        shrink.Recipe(shrink.Settings(start=str(tmp_path / "other.pt"))).model()
