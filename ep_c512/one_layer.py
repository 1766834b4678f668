"""The reference: one Transformer layer of the same size, trained by plain backpropagation."""

import torch.nn as nn
import torch.nn.functional as F


class OneLayer(nn.Module):
    """Pre-norm attention, then MLP, each added to the state, a final norm, an untied head without bias: 7,478,784
    parameters at full size."""

    def __init__(self, config):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.tok = nn.Embedding(config.vocabulary, width)
        self.pos = nn.Embedding(config.length, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.pj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, config.vocabulary, bias=False)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.ndim == 2:
                nn.init.normal_(p, std=config.embedding if name.startswith(("tok", "pos")) else 0.02)

    def loss(self, tokens, targets):
        h = self.tok(tokens) + self.pos.weight[: tokens.shape[1]]
        q, k, v = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        h = h + self.pj(F.gelu(self.fc(self.norm2(h)), approximate="tanh"))
        return F.cross_entropy(self.head(self.norm3(h)).flatten(0, 1), targets.flatten())
