"""Whether the block settles: eigenvalues of its Jacobian, and what keeps them small in training.

The causal mask makes dF/dz block lower triangular over the tokens, so its eigenvalues are those of the diagonal blocks
dF_t/dz_t, one matrix [C, C] a token. Relaxation with a small step converges while their largest real part, with the
-(1 + c) of the damping, is below 0; with steps of `step_size` while |1 + step_size * eigenvalue| is below 1.
"""

import torch
import torch.nn.functional as F

from ep_c512.block import DAMPING, Force

AT_ONCE = 2**26  # numbers in the largest tensor of a batch of products


def spread(length, count):
    """So many places in a text of this length, evenly, the last one among them."""
    return torch.linspace(0, length - 1, min(count, length)).round().long()


@torch.no_grad()
def diagonal_blocks(force, z):
    """dF_t/dz_t of every token, [B, T, C, C], with the damping."""
    jacobian, width = force.jacobian(z), z.shape[-1]
    one = torch.eye(width, dtype=z.dtype, device=z.device)
    count = max(1, AT_ONCE // (8 * z.numel()))
    columns = [jacobian.jvp(part[:, None, None].expand(-1, *z.shape[:-1], -1), own=True) for part in one.split(count)]
    return torch.cat(columns).movedim(0, -1) - (1 + DAMPING) * one


def leading(force, z, step_size, places=slice(None)):
    """(largest real part of the eigenvalues, largest |1 + step_size * eigenvalue|) of every token, [B, T], or of the
    tokens at these places."""
    blocks = diagonal_blocks(force, z)[:, places]
    if not blocks.isfinite().all():  # LAPACK may crash on these
        return (torch.full(blocks.shape[:2], torch.inf, device=z.device),) * 2
    values = torch.linalg.eigvals(blocks)
    return values.real.amax(-1), (1 + step_size * values).abs().amax(-1)


# ---------------------------------------------------------------- penalties on the Jacobian


def penalty(block, tokens, z, kind, noise, cap):
    """A number to be kept small, with its graph to the weights; z stays where it is, x too.

    full: |J v|^2 per element, v = noise (Hutchinson's estimate of the squares of all elements of J, which is without
    the damping). diagonal: the same of the diagonal blocks alone. spectral: by how much the growth of a vector under
    the diagonal blocks exceeds `cap`, squared; the vector is noise after some products, so it is near what grows most.
    """
    with torch.enable_grad():
        jacobian = Force(block, block.inputs(tokens).detach()).jacobian(z)
        if kind != "spectral":
            return jacobian.jvp(noise, own=kind == "diagonal").square().mean()
        with torch.no_grad():
            v = F.normalize(noise, dim=-1)
            for _ in range(4):
                v = F.normalize(jacobian.jvp(v, own=True), dim=-1)
        return (jacobian.jvp(v, own=True).norm(dim=-1) - cap).relu().square().mean()


class Controller:
    """The weight of the penalty: it rises where the residual is above its target, and falls back below.

    The log says only from where to where the weight goes; the law is ours."""

    RISE, FALL = 1.02, 0.995  # a step

    def __init__(self, start, floor, most, target):
        self.weight, self.floor, self.most, self.target = start, floor, most, target

    def update(self, residual):
        factor = self.RISE if not residual <= self.target else self.FALL  # a residual that is no number counts as high
        self.weight = min(self.most, max(self.floor, self.weight * factor))

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = float(state["weight"])


class SpectralCaps:
    """W <- W min(1, rho / sigma) for each attention matrix, sigma its largest singular value: one power iteration a
    step, from the vector of the last one. Off the gradient, as in the log."""

    FIRST = 30  # iterations at the start

    def __init__(self, block, rho):
        self.rho, self.matrices = (
            rho,
            {name: w for name in ("wq", "wk", "wv", "wo") if (w := getattr(block, name, None)) is not None},
        )
        self.vectors = {name: torch.ones_like(w[0]) for name, w in self.matrices.items()}
        for _ in range(self.FIRST):
            self.iterate()

    @torch.no_grad()
    def iterate(self):
        for name, w in self.matrices.items():
            self.vectors[name] = F.normalize(w.T @ (w @ self.vectors[name]), dim=0)

    @torch.no_grad()
    def apply(self):
        self.iterate()
        for name, w in self.matrices.items():
            w *= (self.rho / (w @ self.vectors[name]).norm()).clamp(max=1)

    def state_dict(self):
        return self.vectors

    def load_state_dict(self, state):
        self.vectors = {name: state[name] for name in self.vectors}
