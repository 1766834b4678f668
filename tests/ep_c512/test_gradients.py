"""Every estimator against the exact gradient: orders in the radius, on a plain net and on the block."""

import math
from types import SimpleNamespace

import pytest
import torch

from ep_c512 import gradients
from ep_c512.gradients import ESTIMATORS, Settings, free_phase
from tests.ep_c512.blocks import batch, double, every_feedback, every_mode, relaxed, small  # noqa: F401

EXACT = Settings(step_size=0.2, steps=2_000, tolerance=1e-16)
NUDGED = Settings(step_size=0.2, steps=300)


def flat(estimate):
    return torch.cat([g.flatten() for g in estimate.gradient.values()])


def error(found, exact):
    return float((found - exact).norm() / exact.norm())


def cosine(found, exact):
    return float(found.flatten() @ exact.flatten() / found.norm() / exact.norm())


class Net:
    """dz/dt = -z + tanh(W z) + x in 24 dimensions, W not symmetric; complex z too. The loss is a nonlinear one."""

    def __init__(self):
        torch.manual_seed(0)
        self.w, self.x, self.target = 0.8 * torch.randn(24, 24) / 24**0.5, torch.randn(1, 1, 24), torch.randn(1, 1, 24)
        self.force, self.z = self, torch.zeros(1, 1, 24)
        for _ in range(2_000):
            self.z = self.z + 0.2 * self(self.z)

    def __call__(self, z):
        return -z + torch.tanh(z @ self.w.T.to(z.dtype)) + self.x

    def jacobian(self, z):
        j = (1 - torch.tanh(z @ self.w.T) ** 2)[0, 0][:, None] * self.w - torch.eye(24)

        def skew(d):
            return d @ (j.T - j).to(d.dtype)

        return SimpleNamespace(skew=skew, matrix=j)

    def pull(self, z):
        return torch.sinh(z - self.target) / 10

    def exact(self):
        return torch.linalg.solve(self.jacobian(self.z).matrix.T, self.pull(self.z)[0, 0])


def last(states):
    for a, *_ in states:
        found = a
    return found.flatten()


@pytest.mark.parametrize("correction", ["frozen", "tracking"])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_error_falls_as_the_radius_to_the_number_of_betas(correction, count):
    net = Net()
    radii = (0.4, 0.2) if count == 8 else (0.2, 0.1)
    errors = [
        error(last(gradients.nudged(net, Settings(radius, 600, 0.2, held=False), count, correction)), net.exact())
        for radius in radii
    ]
    assert abs(math.log2(errors[0] / errors[1]) - count) < 0.3, errors


def test_plain_nudging_keeps_its_error_at_every_radius_and_order():
    net = Net()
    for count in (1, 2, 8):
        for radius in (0.2, 0.01):
            a = last(gradients.nudged(net, Settings(radius, 600, 0.2), count, "none"))
            assert error(a, net.exact()) > 0.2 and cosine(a, net.exact()) < 0.97


def test_a_second_side_doubles_the_order():
    net = Net()
    for count in (1, 2):
        errors = [
            error(last(gradients.nudged(net, Settings(r, 600, 0.2), count, "frozen")), net.exact()) for r in (0.1, 0.05)
        ]
        assert abs(math.log2(errors[0] / errors[1]) - count) < 0.2, errors


@every_mode
@every_feedback
def test_every_corrected_estimator_reaches_the_adjoint_in_every_parameter(mode, feedback):
    free = relaxed(mode, feedback=feedback)
    exact = ESTIMATORS["adjoint"](free, EXACT)
    for name in ("frozen-2", "tracking-2", "frozen-4", "tracking-4"):
        found = ESTIMATORS[name](free, NUDGED.but(radius=0.02))
        for parameter, g in exact.gradient.items():
            assert cosine(found.gradient[parameter], g) > 0.9999, (name, parameter)
            assert abs(found.gradient[parameter].norm() / g.norm() - 1) < 0.02, (name, parameter)


def test_orders_on_the_block_and_plain_nudging_fails_there():
    free = relaxed()
    exact = flat(ESTIMATORS["adjoint"](free, EXACT))
    for correction in ("frozen", "tracking"):
        for count, radii in ((2, (0.1, 0.05)), (4, (0.1, 0.05)), (8, (0.3, 0.15))):
            settings = [NUDGED.but(radius=r, steps=150) for r in radii]
            found = [flat(ESTIMATORS[f"{correction}-{count}"](free, s)) for s in settings]
            errors = [error(g, exact) for g in found]
            assert abs(math.log2(errors[0] / errors[1]) - count) < 0.3, (correction, errors)
    for count in (2, 8):
        assert error(flat(ESTIMATORS[f"plain-{count}"](free, NUDGED.but(radius=0.02))), exact) > 0.2


@every_feedback
def test_bptt_goes_to_the_adjoint_with_its_horizon(feedback):
    free = relaxed(feedback=feedback)
    exact = flat(ESTIMATORS["adjoint"](free, EXACT))
    errors = [error(flat(ESTIMATORS["bptt"](free, EXACT.but(horizon=t))), exact) for t in (10, 40, 200)]
    assert errors[0] > 1e-3 > 1e-5 > errors[1] > 1e-12 > errors[2], errors


def test_bptt_is_the_derivative_of_the_loss_it_reports():
    block, (tokens, targets) = small(), batch()
    free = free_phase(block, tokens, targets, 1, 0.2)
    settings = Settings(step_size=0.2, horizon=7)
    estimate = ESTIMATORS["bptt"](free, settings)
    for name in ("tok", "wk", "pj", "gain2", "head"):
        p, at, h = block.get_parameter(name), (0,) * block.get_parameter(name).ndim, 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p[at] += sign * h
            values.append(float(ESTIMATORS["bptt"](free, settings).loss))
            with torch.no_grad():
                p[at] -= sign * h
        assert math.isclose((values[0] - values[1]) / (2 * h), estimate.gradient[name][at], abs_tol=1e-8), name


def test_computing_states_again_changes_nothing():
    free = relaxed(steps=5)
    found = []
    for again in (False, True):
        free.force.count.clear()
        found.append(flat(ESTIMATORS["bptt"](free, Settings(horizon=25, recompute=again))))
        assert free.force.count["force"] == (50 if again else 25)
    assert torch.equal(*found)


def test_tracking_takes_its_gradient_where_the_mean_has_gone():
    """From a state that has not settled, its own gradient is right; the same a at the old state is not."""
    exact = flat(ESTIMATORS["adjoint"](relaxed(), EXACT))
    free = relaxed(steps=3)
    settings = NUDGED.but(radius=0.02, held=False)
    found = ESTIMATORS["tracking-2"](free, settings)
    assert cosine(flat(found), exact) > 0.9999
    old, _ = gradients.gradient(free, free.z, found.a)
    assert cosine(torch.cat([g.flatten() for g in old.values()]), exact) < 0.999
    assert cosine(flat(ESTIMATORS["frozen-2"](free, settings)), exact) < 0.999


def test_lock_in_goes_to_the_adjoint_with_its_period():
    free = relaxed()
    exact = flat(ESTIMATORS["adjoint"](free, EXACT))
    settings = Settings(radius=0.02, step_size=0.2, periods=3)
    errors = [error(flat(ESTIMATORS["lock-in"](free, settings.but(period=p))), exact) for p in (20, 40)]
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.4 and errors[1] < 0.02, errors


def test_holding_the_pull_changes_neither_limit_nor_order():
    free = relaxed()
    exact = flat(ESTIMATORS["adjoint"](free, EXACT))
    found = [flat(ESTIMATORS["frozen-2"](free, NUDGED.but(radius=0.05, held=held))) for held in (True, False)]
    assert all(error(g, exact) < 5e-3 for g in found) and not torch.allclose(*found, rtol=1e-6)


def test_the_chosen_state_of_the_nudged_phase():
    free = relaxed(steps=40)
    one = torch.ones_like(free.z)
    far = torch.stack([free.z + 0.1, free.z - 0.2])
    states = [(one * value, free.z, far * value) for value in (1.0, 2.0, 2.2, 2.21, 1.0)]
    picked = {
        choice: gradients.chosen(free, Settings(choice=choice, tolerance=0.2), iter(states))
        for choice in ("last", "settled", "adaptive")
    }
    assert {choice: estimate.steps for choice, estimate in picked.items()} == {"last": 5, "settled": 4, "adaptive": 3}
    assert all(torch.equal(e.a, states[e.steps - 1][0]) for e in picked.values())
    assert math.isclose(picked["last"].moved, 0.2 * 8**0.5)  # of a token's state of width 8


def test_what_a_nudged_phase_costs():
    free = relaxed(steps=3)
    counts = {}
    for name in ("frozen-2", "tracking-2", "tracking-4"):
        free.force.count.clear()
        ESTIMATORS[name](free, Settings(steps=10))
        counts[name] = dict(free.force.count)
    assert counts["frozen-2"] == {"force": 20, "jacobian": 1, "jvp": 20, "vjp": 20, "gradient": 1}
    assert counts["tracking-2"] == {"force": 20, "jacobian": 10, "jvp": 10, "vjp": 10, "gradient": 1}
    assert counts["tracking-4"]["force"] == 60  # three branches, the others are conjugates
