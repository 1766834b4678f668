"""The log's model: its size, its ties, and the compiled arithmetic against plain PyTorch."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from addition import fused, model
from addition.data import STANDARD, encode, uniform_pairs
from addition.model import ModelConfig, TinyDecoderLM
from addition.tiny import TinyConfig

LOG = {
    456: dict(pos_rank=3, qkv_rank=3, attn_out_rank=2, ffn_rank=3, use_rmsnorm=True, tie_qkv="shareA_tieKV"),
    498: dict(pos_rank=3, qkv_rank=3, attn_out_rank=2, ffn_rank=3),
    512: dict(pos_rank=3, qkv_rank=3, attn_out_rank=3, ffn_rank=3),
    763: dict(),
    959: dict(d_ff=28),
    1128: dict(d_model=8, d_ff=28),
}
ARC = dict(embedding="arc", keys="turn", values="query", out="transpose")


@pytest.mark.parametrize("parameters", LOG)
def test_the_log_s_sizes(parameters):
    config = ModelConfig(**LOG[parameters])
    module = TinyDecoderLM(config)
    assert model.count(config) == parameters == sum(p.numel() for p in module.parameters())
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == config.shapes()


def test_starting_values():
    full, low = ModelConfig().initial(3), ModelConfig(**LOG[498]).initial(3)
    assert full["pos_emb.weight"].std().item() == pytest.approx(0.02, rel=0.15)
    assert full["qkv.weight"].std().item() == pytest.approx(0.02, rel=0.15)
    assert low["pos_emb.a"].std().item() == pytest.approx(0.02, rel=0.25)
    assert low["up.a"].std().item() == pytest.approx((2 / 10) ** 0.5, rel=0.4)
    assert torch.equal(full["final.weight"], torch.ones(7)) and not full["norm1.bias"].any()


def test_tying_survives_a_save(tmp_path):
    config = ModelConfig(**LOG[498])
    first = TinyDecoderLM(config, seed=1)
    torch.save({"model_config": asdict(config), "model_state": first.state_dict()}, tmp_path / "best.pt")
    saved = torch.load(tmp_path / "best.pt", weights_only=True)
    again = TinyDecoderLM(ModelConfig(**saved["model_config"]))
    again.load_state_dict(saved["model_state"])
    assert first.lm_head.weight is first.token_emb.weight and again.lm_head.weight is again.token_emb.weight
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    with torch.no_grad():
        again.token_emb.weight.add_(1)
    assert torch.equal(again.lm_head.weight, again.token_emb.weight)


def test_from_dict_drops_what_it_does_not_know():
    old = dict(LOG[498], n_layer=1, n_head=1, max_seq_len=33, vocab_size=14, dropout=0.0, use_rmsnorm=False)
    assert ModelConfig.from_dict(old) == ModelConfig(**LOG[498])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(pos_rank=8),
        dict(ffn_rank=-1),
        dict(attn_out_rank=9),
        dict(tie_qkv="shareB"),
        dict(tie_qkv="shareA_tieKV"),
        dict(n_layer=2),
        dict(d_model=0),
    ],
)
def test_a_wrong_config_names_its_field(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelConfig(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(head_dim=3), dict(d_ff=0), dict(embedding="arc", d_model=1), dict(radius=0), dict(query="zeros"),
        dict(query="even", head_dim=6), dict(values="query", query="constant"), dict(values="joined", head_dim=2),
        dict(down="turned", d_ff=1), dict(gate="scaled", gated=False),
    ],
)  # fmt: skip
def test_a_wrong_tiny_config_names_its_field(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TinyConfig(**wrong)


SMALLEST = dict(embedding="unit", values="joined", norms="final")


def stacked(config, count=2, std=0.4):
    models = [config.initial(seed, std) for seed in range(count)]
    return {name: torch.stack([m[name] for m in models]).requires_grad_() for name in models[0]}


CONFIGS = [
    *(ModelConfig(**values) for values in LOG.values()),
    TinyConfig(),
    TinyConfig(**ARC),
    TinyConfig(**ARC, gated=False, norms="none", qk_norm="none", d_ff=3, head_dim=2),
    TinyConfig(norms="shared", keys="rotation", qk_norm="unit", d_model=5),
    *(
        TinyConfig(**SMALLEST, **more)
        for more in (
            dict(query="zeros"),
            dict(query="constant", gate="scaled"),
            dict(query="even", keys="one", down="turned"),
        )
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{type(c).__name__}{model.count(c)}")
def test_kernels_agree_with_autograd(config):
    """300 rows are not a multiple of a register's lanes, nor 37 of its parts: the edges count too."""
    for rows in (300, 37):
        p = stacked(config)
        data = torch.from_numpy(np.stack([encode(uniform_pairs(seed, rows), config.layout) for seed in range(2)]))
        found = []
        for engine in (model, fused):
            loss = engine.losses(config.tables(p), data, config.layout, config.kind)
            gradients = torch.autograd.grad((loss * torch.tensor([1.0, 3.0])).sum(), list(p.values()))
            found.append((loss.detach(), gradients))
        (loss, gradients), (compiled_loss, compiled) = found
        torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=1e-6)
        for name, a, b in zip(p, gradients, compiled):
            assert (a - b).abs().max() <= 2e-5 * a.abs().max() + 1e-7, name
        with torch.no_grad():
            tables = config.tables(p)
            arguments = (tables, data, config.layout, config.kind)
            torch.testing.assert_close(fused.losses(*arguments), loss, rtol=1e-5, atol=1e-6)
            assert (fused.decode(*arguments) == model.decode(*arguments)).float().mean() > 0.999


@pytest.mark.parametrize("parameters", LOG)
def test_tables_are_the_module(parameters):
    """Computing everything before the attention once a (position, token) changes nothing."""
    config = ModelConfig(**LOG[parameters])
    module = TinyDecoderLM(config, seed=5, std=0.4)
    rows = torch.from_numpy(encode(uniform_pairs(1, 20)))
    p = {name: value[None] for name, value in module.named_parameters()}
    ours = model.logits(config.tables(p), rows[None], STANDARD, config.kind)[0]
    torch.testing.assert_close(ours, module(rows[:, :33].long())[:, STANDARD.first :], rtol=1e-4, atol=1e-5)


def test_error_function_and_exponential_are_float32_exact():
    x = np.linspace(-12, 12, 64 * 50, dtype=np.float32).reshape(50, 64)
    y, slope = np.empty_like(x), np.empty_like(x)
    fused.gelu(x, y, slope)
    exact = torch.from_numpy(x).double().requires_grad_()
    value = torch.nn.functional.gelu(exact)
    value.sum().backward()
    np.testing.assert_allclose(y, value.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(slope, exact.grad.numpy(), atol=2e-6)
    fused.silu(x, y, slope)
    np.testing.assert_allclose(y, torch.nn.functional.silu(torch.from_numpy(x)).numpy(), atol=2e-6)
