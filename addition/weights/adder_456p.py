"""Adds two numbers of up to 10 digits: a transformer with 456 parameters, all of them in this file.

Give it two numbers on the command line, and it prints their sum.
"""

import math
import sys
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

CONFIG = SimpleNamespace(
    n_layer=1,
    d_model=7,
    n_head=1,
    d_ff=14,
    max_seq_len=33,
    vocab_size=14,
    pos_rank=3,
    qkv_rank=3,
    attn_out_rank=2,
    ffn_rank=3,
    use_rmsnorm=True,
    tie_qkv='shareA_tieKV',
    eps=1e-08,
)
# The prompt; the digits of the two numbers, least significant first, go to the positions A and B.
PROMPT = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11)
A = (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
B = (20, 19, 18, 17, 16, 15, 14, 13, 12, 11)
ANSWER = 11  # digits of the sum, which the model generates, least significant first


class Matrix(nn.Module):
    """A learned matrix, or the product of two factors of the given rank; call it for its value."""

    def __init__(self, rows, columns, rank, full_std, low_std=None):
        super().__init__()
        if rank:
            self.a = nn.Parameter(torch.randn(rows, rank) * (low_std or math.sqrt(2 / (rows + rank))))
            self.b = nn.Parameter(torch.randn(rank, columns) * (low_std or math.sqrt(2 / (rank + columns))))
        else:
            self.weight = nn.Parameter(torch.randn(rows, columns) * full_std)

    def forward(self):
        return self.a @ self.b if hasattr(self, "a") else self.weight


class SharedQKV(nn.Module):
    """Queries and keys have one factor in common, and the values are the keys."""

    def __init__(self, width, rank):
        super().__init__()
        std = math.sqrt(2 / (width + rank))
        self.a = nn.Parameter(torch.randn(width, rank) * std)
        self.q = nn.Parameter(torch.randn(rank, width) * std)
        self.kv = nn.Parameter(torch.randn(rank, width) * std)

    def forward(self):
        q, kv = self.a @ self.q, self.a @ self.kv
        return torch.cat([q, kv, kv], -1)


class TinyDecoderLM(nn.Module):
    """One layer, one head, norms before each part; the output head is the token embedding."""

    def __init__(self, config, std=1 / 50):
        """`std` is that of the embeddings, the positions' matrices and the full matrices."""
        super().__init__()
        self.config, d, eps = config, config.d_model, config.eps
        self.token_emb = nn.Embedding(config.vocab_size, d)
        nn.init.normal_(self.token_emb.weight, std=std)
        self.pos_emb = Matrix(config.max_seq_len, d, config.pos_rank, std, low_std=std)
        tied = config.tie_qkv == "shareA_tieKV"
        self.qkv = SharedQKV(d, config.qkv_rank) if tied else Matrix(d, 3 * d, config.qkv_rank, std)
        self.attn_out = Matrix(d, d, config.attn_out_rank, std)
        self.up, self.down = Matrix(d, config.d_ff, config.ffn_rank, std), Matrix(config.d_ff, d, config.ffn_rank, std)
        norm = nn.RMSNorm if config.use_rmsnorm else nn.LayerNorm
        self.norm1, self.norm2, self.final = norm(d, eps=eps), norm(d, eps=eps), norm(d, eps=eps)
        self.lm_head = nn.Linear(d, config.vocab_size, bias=False)
        self.lm_head.weight = self.token_emb.weight

    def inputs(self, tokens, places):
        """Of tokens at these places: the residual stream, and the attention's queries, keys and values. A function of
        its own because fast/ calls it for every token at every place."""
        x = self.token_emb(tokens) + self.pos_emb()[places]
        q, k, v = (self.norm1(x) @ self.qkv()).chunk(3, -1)
        return x, q / math.sqrt(self.config.d_model), k, v

    def forward(self, tokens, sharpness=1):
        """Logits [batch, length, vocabulary] of tokens [batch, length]; `sharpness` is a factor of attention scores."""
        x, q, k, v = self.inputs(tokens, torch.arange(tokens.shape[1], device=tokens.device))
        x = x + F.scaled_dot_product_attention(sharpness * q, k, v, is_causal=True, scale=1) @ self.attn_out()
        x = x + F.gelu(self.norm2(x) @ self.up()) @ self.down()
        return self.lm_head(self.final(x))


def count(model):
    """The number of parameters; tied ones share their storage and count once."""
    found = {(p.untyped_storage().data_ptr(), p.storage_offset(), p.numel()) for p in model.parameters()}
    return sum(size for _, _, size in found)


@torch.no_grad()
def generate(model, tokens, count):
    """Greedy decoding: append the most likely next token, `count` times."""
    for _ in range(count):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens


def prompts(a, b):
    rows = torch.tensor(PROMPT).repeat(len(a), 1)
    for places, numbers in ((A, a), (B, b)):
        for number in numbers:
            if not 0 <= number < 10 ** len(places):
                raise ValueError(f"{number} is not a number from 0 to {10 ** len(places) - 1}")
        for i, place in enumerate(places):
            rows[:, place] = torch.tensor([number // 10**i % 10 for number in numbers])
    return rows


def add_batch(model, a, b):
    """The sums of many pairs; -1 where an answer of the model has a token that is not a digit."""
    answers = generate(model, prompts(a, b), ANSWER)[:, len(PROMPT) :].tolist()
    return [sum(d * 10**i for i, d in enumerate(answer)) if max(answer) < 10 else -1 for answer in answers]


def add(model, a, b):
    return add_batch(model, [a], [b])[0]


def build_model():
    weights = {name: torch.tensor(value) for name, value in WEIGHTS.items()}
    model = TinyDecoderLM(CONFIG, 1).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    metadata = {
        "name": "456 parameters",
        "author": "the authors",
        "params": count(model),
        "architecture": "One layer, one head, norms before each part; the output head is the token embedding. Width 7, 14 hidden.",
        "tricks": [
            "pos_rank 3",
            "qkv_rank 3",
            "attn_out_rank 2",
            "ffn_rank 3",
            "use_rmsnorm True",
            "tie_qkv shareA_tieKV"
        ],
    }
    return model, metadata


WEIGHTS = {
    "token_emb.weight": [
        [4.745318, 0.48446184, -0.888741, -1.6935264, 0.6902622, -3.6304023, 0.2663958],
        [3.6279874, 0.44652304, -0.9030186, -1.9156348, -2.5295117, -2.4334517, 2.1864033],
        [3.2013319, 0.3958981, -0.8671785, -2.0107398, -3.7976384, 0.2929177, -1.5851034],
        [2.0005457, 0.40099782, -0.864773, -1.4639668, -4.6750193, 0.48696628, -1.4034705],
        [0.49677077, 0.36030173, -0.8893962, -1.5544031, -5.0277066, -0.3084334, -0.83763814],
        [-1.0529207, 0.35555094, -0.8828918, -1.3840823, -4.8400445, -1.0713235, -0.3344767],
        [-2.2646005, 0.34292322, -0.9187633, -1.4170909, -4.276719, -1.0945542, 1.0615079],
        [-3.3559365, 0.30502513, -0.8899944, -1.499295, -3.1371818, -0.8075475, 2.026425],
        [-4.2331367, 0.33675927, -0.81550354, -1.3774774, -1.3537804, -0.061561797, 2.4452276],
        [-4.7416363, 0.33163694, -0.88641065, -1.3499621, 1.3736494, 2.4583664, 0.21206838],
        [-0.49207866, 0.5858579, 0.2084376, 0.69633824, -0.68304765, 0.08422014, -0.9724342],
        [-3.6899524, 2.2036114, 4.195869, -4.348705, -0.40814778, 3.1132696, -4.1355357],
        [-0.33050713, 1.1550651, 0.13298218, 0.57368845, -0.59934413, 0.0073341792, -0.4276925],
        [-0.28496733, 12.388823, 0.41594303, 13.077629, 1.5450748, 4.049485, 1.8312006],
    ],
    "pos_emb.a": [
        [-1.0380981, -0.11730961, 4.1666393],
        [-3.1102052, -0.007162284, 3.1954348],
        [-4.2367744, 0.12685935, 1.0895228],
        [-4.0060387, 0.41930157, -1.4666559],
        [-2.340241, 0.58008575, -3.4422302],
        [0.1105755, 0.5925875, -4.1291094],
        [2.6194842, 0.41976804, -3.1293123],
        [3.9004223, 0.24639095, -0.89299893],
        [3.4855988, 0.038163017, 1.9390682],
        [1.9008676, -0.2094005, 4.1475353],
        [0.017207181, 0.08868256, 0.10794982],
        [-1.0987124, -0.122336976, 4.2579846],
        [-3.081172, 0.040227525, 3.184434],
        [-4.2058463, 0.17427784, 1.0739093],
        [-3.993667, 0.4449167, -1.4391276],
        [-2.2957802, 0.58633804, -3.426652],
        [0.11253004, 0.59680045, -4.098067],
        [2.6048977, 0.4963149, -3.1231368],
        [3.8887024, 0.23309837, -0.8889136],
        [3.4780955, -0.0048095565, 1.9264526],
        [1.9080498, -0.20229313, 4.181038],
        [-3.86504, -3.5390627, -2.216141],
        [-1.6147106, -4.0412817, -2.6871815],
        [0.26059482, -3.9395466, -2.9706318],
        [2.0621934, -4.0677447, -2.0558913],
        [3.2815082, -4.29577, -0.52972144],
        [2.889868, -4.49115, 1.3805199],
        [1.2686503, -4.4332395, 2.528379],
        [-0.8008961, -4.3825583, 2.9818635],
        [-3.0717251, -4.3105316, 2.3069623],
        [-3.5010428, -4.2774057, 0.20254417],
        [-1.1584058, 0.557692, 0.22875455],
        [-5.5914145, -17.578783, -15.348058],
    ],
    "pos_emb.b": [
        [-0.0056472616, 0.22887923, -5.767352, 0.0717019, -0.018512974, 0.031435907, 0.0065329424],
        [0.10134995, 0.45203465, 0.028355729, 5.9374714, -1.5141157, 0.46061653, 0.3632375],
        [0.016240682, -5.5450635, -0.3185462, 0.52249426, -0.12164832, 0.025978802, 0.06688036],
    ],
    "qkv.a": [
        [-0.00031558127, -0.0016422647, 2.755952],
        [-0.43462873, 3.837475, 0.014093673],
        [4.170496, 0.4401363, 0.014827562],
        [0.0014294413, -0.0038428688, -0.14924733],
        [-0.044806037, -0.06893485, -0.0018970603],
        [-0.020738889, 0.01857236, -1.7784953],
        [9.785563e-07, -1.3805263e-06, -1.3335553e-07],
    ],
    "qkv.q": [
        [0.0001018165, -1.2297893, 3.0530288, 0.022079585, 2.89756e-06, 1.6333853e-06, 5.9600785e-05],
        [-5.000898e-05, 3.3934085, 1.2231628, 0.0005631894, 1.0951178e-05, -8.351426e-07, -3.7645135e-05],
        [-0.00030284387, -0.028366288, -0.05857227, -0.0145600345, -0.00023901336, -2.0927826e-06, -0.00020655854],
    ],
    "qkv.kv": [
        [-0.00037308873, -4.3914895, -0.64503527, -0.0052838223, 0.00032575018, -4.6678524e-06, -0.0004104569],
        [-0.00043249707, 0.5899156, -4.098315, -0.027194545, 0.00019657786, -3.1823884e-06, -0.00042562565],
        [0.00010262608, 0.011631151, -0.028539935, 4.076869, -0.00013544317, 1.1985987e-06, 7.7403216e-05],
    ],
    "attn_out.a": [
        [-0.009123647, -0.0035552215],
        [0.024186937, -0.016695334],
        [-0.34765428, -0.10865117],
        [3.595086, -6.220989],
        [0.017890647, 0.0069924835],
        [-0.00016599838, -6.514164e-05],
        [-0.00880396, -0.0034409775],
    ],
    "attn_out.b": [
        [-2.1166093, 0.7527416, 4.7706547, 0.005662499, -0.077844046, 0.6196358, -0.31761193],
        [5.4173465, 0.2573991, 2.7562058, -0.029430589, -0.012639798, -1.9494619, 0.19303948],
    ],
    "up.a": [
        [0.27962542, 0.38289893, 2.0763667],
        [0.030840702, 0.66051817, -0.07773296],
        [-0.1576316, 0.37333426, -0.0667779],
        [-2.4146492, 0.47561985, 0.41626826],
        [0.69497216, 3.6452706, -0.3215488],
        [-0.25310102, 2.7030537, -0.8250632],
        [-0.5144816, -0.5936019, 0.3605464],
    ],
    "up.b": [
        [0.8091486, -3.7641566, -5.477985, -0.28082067, 1.2317766, 0.3783785, -4.138439, -0.8953219, -2.4089363,
         -0.15058583, -0.25484058, -3.8199804, -6.586645, -4.525208],
        [-0.042786755, 1.0968338, -1.0006719, 0.51403093, -0.21340874, 0.53479606, -0.17378294, 3.81767,
         0.008464499, -3.2095535, -0.31878135, 0.1148463, 2.3853748, -1.347886],
        [-1.6725804, 0.19097519, 1.8615979, -1.6796976, 1.4786502, 2.2962584, 1.7271904, 0.053360544, 2.272689,
         -0.48858106, -1.6708947, -1.4853346, -0.4807498, 0.24653672],
    ],
    "down.a": [
        [1.5177888, -1.0060484, -0.8906478],
        [-1.7311587, 2.2975233, 0.6352606],
        [2.224933, -4.6649427, 10.387713],
        [1.514127, 1.3081249, 1.5253481],
        [-1.685956, -1.8627769, 0.7204607],
        [0.15514785, 2.7011364, 2.4648368],
        [-2.826507, -4.1242347, 3.6150286],
        [-0.39045984, 0.84864014, -0.7646976],
        [-2.1172693, -4.220559, -2.8375006],
        [0.20705451, -0.20579825, -0.2924217],
        [1.6987946, 1.2918183, 1.162295],
        [-0.062369954, -4.3515334, -4.3644886],
        [-5.214126, -0.16506092, 0.38257018],
        [0.38949716, -0.8023588, 2.5255654],
    ],
    "down.b": [
        [2.3473017, -0.32463348, -0.50759465, 1.0978032, -0.9072369, -0.45329183, 0.7769961],
        [0.2249017, 1.7213407, 4.1221776, -4.2655177, -1.5793597, 0.58633196, -5.0339127],
        [-1.1921031, -0.54615146, -0.9772013, 2.4589584, -2.430544, 0.3382622, 1.1688195],
    ],
    "norm1.weight": [0.41228986, 0.25491303, 0.22577031, 6.2927356e-05, 0.010729537, 0.2118523, -2.039579e-08],
    "norm2.weight": [0.61225474, 0.03324225, -0.098760016, 0.92148745, 0.76508504, 0.23742771, 0.3208244],
    "final.weight": [-14.80864, 0.38863844, 0.039429925, -5.1480083, 9.7588415, -4.6740885, 2.1291585],
}

if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("give two numbers")
    print(add(build_model()[0], int(sys.argv[1]), int(sys.argv[2])))
