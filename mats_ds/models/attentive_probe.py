"""Attentive probe on frozen tokens: [S, K, D] and labels -> one learned query attends to all tokens, an MLP, a linear classifier.

Source: V-JEPA, arXiv 2404.08471, section 4.1: a cross-attention layer with one learned query in place of the mean, with residual
MLP. As the query is one for all clips and tokens are frozen, keys and values need not be computed: what the query asks for is
mapped back through the key projection once, and the value projection is applied to the mixed token. Same function, 2 H instead of
4 D multiplications a value of a token: seconds instead of minutes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from mats_ds.config import MLP_RATIO
from mats_ds.models.blocks import NORM_EPS, Mlp

QUERY_STD = 0.02  # V-JEPA's start of query and linear layers
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01  # V-JEPA's frozen evaluation
EPOCHS, MIN_STEPS = 20, 500
BATCH, STEPS_PER_EPOCH = 64, 8  # of a small set the batch is smaller, so that an epoch has some steps
WARMUP_SHARE = 0.1


class AttentivePool(nn.Module):
    """tokens [B, K, D] -> one vector a clip [B, D]. Tokens are expected normalised (see `normalise_tokens`)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        side = width // heads
        self.query_HE = nn.Parameter(torch.empty(heads, side))
        self.key_HED = nn.Parameter(torch.empty(heads, side, width))
        self.value_HED = nn.Parameter(torch.empty(heads, side, width))
        self.value_bias_HE = nn.Parameter(torch.zeros(heads, side))
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, MLP_RATIO * width)
        for weight in (self.query_HE, self.key_HED, self.value_HED):
            nn.init.trunc_normal_(weight, std=QUERY_STD)

    def forward(self, tokens_BKD: torch.Tensor) -> torch.Tensor:
        asked_HD = torch.einsum("he,hed->hd", self.query_HE, self.key_HED) / math.sqrt(self.query_HE.shape[1])
        share_BHK = (tokens_BKD @ asked_HD.T).transpose(1, 2).softmax(dim=-1)
        mixed_BHE = torch.einsum("bhd,hed->bhe", share_BHK @ tokens_BKD, self.value_HED) + self.value_bias_HE
        pooled_BD = self.proj(mixed_BHE.flatten(1))
        return pooled_BD + self.mlp(self.norm(pooled_BD))


class AttentiveProbe(nn.Module):
    """tokens [B, K, D] -> logits [B, C].

    Channels are first standardised with mean_D and spread_D of the training set's tokens: what all tokens share would else hide
    what tells videos apart.
    """

    def __init__(self, width: int, heads: int, num_classes: int) -> None:
        super().__init__()
        self.pool = AttentivePool(width, heads)
        self.head = nn.Linear(width, num_classes)
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("spread_D", torch.ones(width))

    def forward(self, tokens_BKD: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool((tokens_BKD - self.mean_D) / self.spread_D))

    def measure(self, tokens_SKD: torch.Tensor) -> None:
        """Take mean and spread from these tokens, a batch of clips at a time."""
        count = tokens_SKD.shape[0] * tokens_SKD.shape[1]
        total_D, square_D = torch.zeros_like(self.mean_D).double(), torch.zeros_like(self.mean_D).double()
        for part_BKD in tokens_SKD.split(BATCH):
            part_BKD = part_BKD.to(self.mean_D.device).float()
            total_D += part_BKD.sum(dim=(0, 1))
            square_D += part_BKD.square().sum(dim=(0, 1))
        mean_D = total_D / count
        self.mean_D.copy_(mean_D)
        self.spread_D.copy_((square_D / count - mean_D.square()).clamp(min=NORM_EPS).sqrt())


def normalise_tokens(tokens_BKD: torch.Tensor) -> torch.Tensor:
    """Every token with mean 0 and spread 1, as the pool expects them: its own LayerNorm, whose scale and shift the projections
    can learn, computed once.
    """
    return F.layer_norm(tokens_BKD.float(), tokens_BKD.shape[-1:], eps=NORM_EPS)


def fit_attentive_probe(
    tokens_SKD: torch.Tensor, label_S: torch.Tensor, *, heads: int, num_classes: int, seed: int = 0
) -> AttentiveProbe:
    """AdamW with warm-up and cosine decay over EPOCHS, at least MIN_STEPS steps. Nothing is tuned. Deterministic under a seed.

    tokens_SKD: normalised, of any float type, anywhere; the probe is trained on the device of `label_S`.
    """
    num_clips, device = len(label_S), label_S.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = AttentiveProbe(tokens_SKD.shape[-1], heads, num_classes).to(device)
    probe.measure(tokens_SKD)
    generator = torch.Generator().manual_seed(seed)
    batch = max(1, min(BATCH, num_clips // STEPS_PER_EPOCH))
    num_steps = max(MIN_STEPS, EPOCHS * (num_clips // batch))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, num_steps))
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(num_steps):
        if len(order) < batch:
            order = torch.randperm(num_clips, generator=generator)
        rows, order = order[:batch], order[batch:]
        tokens_BKD = tokens_SKD[rows.to(tokens_SKD.device)].to(device).float()
        loss = F.cross_entropy(probe(tokens_BKD), label_S[rows.to(device)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return probe.eval()


def rate_at(step: int, num_steps: int) -> float:
    """The share of the learning rate at a step, from 0."""
    warmup = max(1, int(WARMUP_SHARE * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


@torch.no_grad()
def apply_attentive_probe(probe: AttentiveProbe, tokens_QKD: torch.Tensor) -> torch.Tensor:
    """logits_QC, float32, a batch at a time on the probe's device."""
    device = probe.head.weight.device
    return torch.cat([probe(part.to(device).float()) for part in tokens_QKD.split(BATCH)])
