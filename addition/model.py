"""The log's model: one transformer layer, one head, 456 to 1,128 parameters.

With one layer, everything before the attention depends on one token and its position only. `tables` computes it once a
step for all 33 x 14 combinations, instead of once for every token of the batch; `logits` and the kernels in fused.py
start from there. All functions of parameters accept leading dimensions: one call computes many stacked models.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from addition.data import STANDARD


class Tables(NamedTuple):
    """The inputs of attention and of everything after it, each [models, ...]."""

    x: torch.Tensor  # [queries, vocabulary, width] the residual stream at the positions that predict
    q: torch.Tensor  # [queries, vocabulary, head], already divided by the root of the head's width
    k: torch.Tensor  # [length, vocabulary, head]
    v: torch.Tensor  # [length, vocabulary, head]
    out: torch.Tensor  # [head, width]
    norm: torch.Tensor  # [2, width] weight and bias before the feed-forward
    up: torch.Tensor  # [width, hidden]
    gate: torch.Tensor  # [width, hidden] of SwiGLU; without it [width, 0]
    down: torch.Tensor  # [hidden, width]
    final: torch.Tensor  # [2, width]
    head: torch.Tensor  # [vocabulary, width]


class Kind(NamedTuple):
    """What all models of a stack have in common."""

    centered: bool  # LayerNorm; else RMSNorm
    eps: float
    gated: bool  # SwiGLU; else exact GELU


def normalise(x, norm, kind):
    """LayerNorm or RMSNorm of x [..., width]; `norm` [..., 2, width] holds weight and bias."""
    if kind.centered:
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + kind.eps) * norm[..., 0, :] + norm[..., 1, :]


def at_least_one(config, *names):
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """A rank of 0 means a full matrix, r > 0 the product of two low-rank factors."""

    n_layer: int = 1
    d_model: int = 7
    n_head: int = 1
    d_ff: int = 14
    max_seq_len: int = 33
    vocab_size: int = 14
    pos_rank: int = 0  # of the 33 learned positions
    qkv_rank: int = 0  # of one fused matrix for queries, keys and values
    attn_out_rank: int = 0
    ffn_rank: int = 0  # of both feed-forward matrices
    use_rmsnorm: bool = False  # instead of LayerNorm
    tie_qkv: Literal["none", "shareA_tieKV"] = "none"  # one low-rank factor for all, keys = values
    companion: float = 0.0  # standard deviation of a frozen random matrix beside each low-rank one; 0: none
    layout = STANDARD  # without a type, so it is not a field

    def __post_init__(self):
        d, tied = self.d_model, self.tie_qkv == "shareA_tieKV"
        fixed = dict(n_layer=1, n_head=1, max_seq_len=STANDARD.length, vocab_size=STANDARD.vocabulary)
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)}; this model is written for {name} = {value} only")
        at_least_one(self, "d_model", "d_ff")
        factorised = dict(pos_rank=(self.max_seq_len, d), qkv_rank=(d, d if tied else 3 * d), attn_out_rank=(d, d),
                          ffn_rank=(d, self.d_ff))  # fmt: skip
        for name, (rows, columns) in factorised.items():
            rank, most = getattr(self, name), min(rows, columns)
            if not 0 <= rank <= most:
                form = f"use 1 to {most}, or 0 for a full matrix"
                raise ValueError(f"{name} is {rank}, but its matrix is {rows} x {columns}: {form}")
        if not 0 <= self.companion < math.inf:
            raise ValueError(f"companion is {self.companion}; it must be a number of at least 0")
        if self.tie_qkv not in ("none", "shareA_tieKV"):
            raise ValueError(f"tie_qkv is {self.tie_qkv!r}; known are 'none' and 'shareA_tieKV'")
        if tied and self.qkv_rank == 0:
            raise ValueError("tie_qkv shareA_tieKV shares a low-rank factor; give qkv_rank 1 or more")

    @classmethod
    def from_dict(cls, values):
        """From a checkpoint's config; keys that this version does not know are dropped."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @property
    def kind(self):
        return Kind(not self.use_rmsnorm, 1e-8 if self.use_rmsnorm else 1e-5, False)

    def matrices(self):
        """(rows, columns, rank) of each matrix that can be factorised."""
        d, f = self.d_model, self.d_ff
        found = {"pos_emb": (self.max_seq_len, d, self.pos_rank)}
        if self.tie_qkv == "none":
            found["qkv"] = (d, 3 * d, self.qkv_rank)
        found["attn_out"] = (d, d, self.attn_out_rank)
        return found | {"up": (d, f, self.ffn_rank), "down": (f, d, self.ffn_rank)}

    def shapes(self):
        """Every trained parameter, by name."""
        d, r = self.d_model, self.qkv_rank
        found = {"token_emb.weight": (self.vocab_size, d)}
        for name, (rows, columns, rank) in self.matrices().items():
            if rank:
                found |= {f"{name}.a": (rows, rank), f"{name}.b": (rank, columns)}
            else:
                found[f"{name}.weight"] = (rows, columns)
        if self.tie_qkv == "shareA_tieKV":
            found |= {"qkv.a": (d, r), "qkv.q": (r, d), "qkv.kv": (r, d)}
        for name in ("norm1", "norm2", "final"):
            found[f"{name}.weight"] = (d,)
            if not self.use_rmsnorm:
                found[f"{name}.bias"] = (d,)
        return found

    def initial(self, seed, std=0.02):
        """Initial values. `std` is that of the embeddings, the positions' matrices and the full matrices."""
        generator = torch.Generator().manual_seed(seed)
        values = {}
        for name, shape in self.shapes().items():
            if name.startswith(("norm", "final")):
                values[name] = torch.full(shape, float(name.endswith("weight")))
                continue
            scale = std if name.endswith("weight") or name.startswith("pos_emb") else math.sqrt(2 / sum(shape))
            values[name] = torch.randn(shape, generator=generator) * scale
        return values

    def frozen(self, seed):
        """Fixed random matrices beside the low-rank ones, never trained and not counted; a function of the seed."""
        generator = torch.Generator().manual_seed(seed + 2**32)
        return {
            f"{name}.companion": torch.randn(rows, columns, generator=generator) * self.companion
            for name, (rows, columns, rank) in self.matrices().items()
            if rank and self.companion
        }

    def matrix(self, p, name):
        if f"{name}.weight" in p:
            return p[f"{name}.weight"]
        product = p[f"{name}.a"] @ p[f"{name}.b"]
        return product + p[f"{name}.companion"] if f"{name}.companion" in p else product

    def qkv(self, p, h):
        """Queries, keys and values of the normalised stream `h`; p and h may share leading dimensions."""
        if self.tie_qkv == "shareA_tieKV":
            h = h @ p["qkv.a"]
            kv = h @ p["qkv.kv"]
            return h @ p["qkv.q"], kv, kv
        return (h @ self.matrix(p, "qkv")).split(self.d_model, -1)

    def tables(self, p):
        embedding, first, d = p["token_emb.weight"], self.layout.first, self.d_model
        x = self.matrix(p, "pos_emb")[..., :, None, :] + embedding[..., None, :, :]  # [..., position, token, width]
        none = torch.zeros_like(p["norm1.weight"])  # the biases of an RMSNorm
        norm1, norm2, final = (
            torch.stack([p[f"{name}.weight"], p.get(f"{name}.bias", none)], -2) for name in ("norm1", "norm2", "final")
        )
        h = normalise(x.flatten(-3, -2), norm1[..., None, :, :], self.kind)
        q, k, v = (part.unflatten(-2, x.shape[-3:-1]) for part in self.qkv(p, h))
        q, x, up = q[..., first:, :, :] / math.sqrt(d), x[..., first:, :, :], self.matrix(p, "up")
        return Tables(x, q, k, v, out=self.matrix(p, "attn_out"), norm=norm2, up=up, gate=up[..., :0],
                      down=self.matrix(p, "down"), final=final, head=embedding)  # fmt: skip


def rows_of(table, tokens):
    """Rows of table [models, positions, vocabulary, n] for tokens [models, batch, positions]."""
    models, positions, vocabulary, n = table.shape
    base = torch.arange(models * positions, device=tokens.device).view(models, 1, positions) * vocabulary
    return F.embedding(tokens + base, table.reshape(-1, n))


def logits(t, tokens, layout, kind):
    """[models, batch, queries, vocabulary] for rows of tokens [models, batch, length or more]; on any device."""
    tokens, first = tokens[..., : layout.length].long(), layout.first
    q, x = rows_of(t.q, tokens[..., first:]), rows_of(t.x, tokens[..., first:])
    k, v = rows_of(t.k, tokens), rows_of(t.v, tokens)
    ahead = torch.ones(layout.queries, layout.length, dtype=torch.bool, device=tokens.device).triu(first + 1)
    x = x + (q @ k.mT).masked_fill(ahead, -torch.inf).softmax(-1) @ v @ t.out[:, None]
    h = normalise(x, t.norm[:, None, None], kind)
    h, up = h.flatten(1, 2), h.flatten(1, 2) @ t.up
    hidden = F.silu(h @ t.gate) * up if kind.gated else F.gelu(up)
    x = x + (hidden @ t.down).view_as(x)
    return normalise(x, t.final[:, None, None], kind) @ t.head.mT[:, None]


def losses(t, rows, layout, kind):
    """Mean cross-entropy of the answer's tokens, one number a model."""
    predicted = logits(t, rows, layout, kind)
    target = rows[..., layout.first + 1 : layout.length + 1].long()
    return F.cross_entropy(predicted.flatten(0, 2), target.flatten(), reduction="none").view(len(rows), -1).mean(1)


@torch.no_grad()
def decode(t, rows, layout, kind):
    """Greedy decoding. -> the predicted digits [models, batch, 11]"""
    rows = rows.clone()
    for place in layout.sum:
        rows[..., place] = logits(t, rows, layout, kind)[..., place - 1 - layout.first, :].argmax(-1).to(rows.dtype)
    return rows[..., list(layout.sum)]


class TinyDecoderLM(nn.Module):
    """One model as an ordinary torch module; the log's E11 imports it. Its output head is the token embedding."""

    def __init__(self, config, seed=0, std=0.02):
        super().__init__()
        self.config, d = config, config.d_model
        self.token_emb = nn.Embedding(config.vocab_size, d)
        self.lm_head = nn.Linear(d, config.vocab_size, bias=False)
        norm = nn.RMSNorm if config.use_rmsnorm else nn.LayerNorm
        self.norm1, self.norm2, self.final = (norm(d, eps=config.kind.eps) for _ in range(3))
        for name, value in config.initial(seed, std).items():
            part, kind = name.split(".")
            if not hasattr(self, part):
                self.add_module(part, nn.Module())
            setattr(self.get_submodule(part), kind, nn.Parameter(value))
        self.lm_head.weight = self.token_emb.weight
        for name, value in config.frozen(seed).items():
            self.get_submodule(name.split(".")[0]).register_buffer("companion", value)

    def forward(self, tokens):
        """Logits [batch, length, vocabulary] of tokens [batch, length]."""
        p = dict(self.named_parameters()) | dict(self.named_buffers())
        c, length = self.config, tokens.shape[1]
        x = self.token_emb(tokens) + c.matrix(p, "pos_emb")[:length]
        q, k, v = c.qkv(p, self.norm1(x))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True) @ c.matrix(p, "attn_out")
        x = x + F.gelu(self.norm2(x) @ c.matrix(p, "up")) @ c.matrix(p, "down")
        return self.lm_head(self.final(x))


def state(parameters):
    """A state_dict of TinyDecoderLM from named parameters."""
    return parameters | {"lm_head.weight": parameters["token_emb.weight"]}


def count(config):
    return sum(math.prod(shape) for shape in config.shapes().values())
