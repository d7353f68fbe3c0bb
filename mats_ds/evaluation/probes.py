"""Classifiers on frozen features: k nearest neighbours, a linear and an attentive probe.

Nearest neighbours: queries [Q, D] and a labelled bank [S, D] -> scores of the classes [Q, C].
Cosine similarity, votes weighted by exp(similarity / temperature): DINO, arXiv 2104.14294, section
4.1 and its k 20 and 0.07, which are those of Wu et al., arXiv 1805.01978.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mats_ds.core.progress import Ticker, show_progress
from mats_ds.evaluation.probe_options import NUM_NEIGHBOURS
from mats_ds.models.layers import NORM_EPS, Mlp
from mats_ds.models.sizes import MLP_RATIO

TEMPERATURE = 0.07
QUERIES_AT_ONCE = 1024


def vote_of_neighbours(
    query_QD: torch.Tensor,
    *,
    bank_SD: torch.Tensor,
    label_S: torch.Tensor,
    num_classes: int,
    num_neighbours: int = NUM_NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """scores_QC: fractions of the vote; rows add up to one.

    All rows of a bank with fewer than `num_neighbours` vote. Of equally near neighbours the earlier
    one ranks first. Raises ValueError for an empty bank or no neighbours.
    """
    if num_neighbours < 1 or len(bank_SD) < 1:
        raise ValueError(f"at least 1 neighbour and 1 labelled feature are needed, got {num_neighbours} and {len(bank_SD)}")
    bank_SD = F.normalize(bank_SD.float(), dim=-1)
    count = min(num_neighbours, len(bank_SD))
    scores = []
    for part_QD in query_QD.float().split(QUERIES_AT_ONCE):
        similarity_QS = F.normalize(part_QD, dim=-1) @ bank_SD.T
        near_QS = similarity_QS.sort(dim=1, descending=True, stable=True)
        # exp(similarity / temperature), normalised
        weight_QK = (near_QS.values[:, :count] / temperature).softmax(dim=1)
        votes_QC = torch.zeros(len(part_QD), num_classes, device=part_QD.device)
        scores.append(votes_QC.scatter_add_(1, label_S[near_QS.indices[:, :count]], weight_QK))
    return torch.cat(scores)


# from strong to weak, so that each fit starts from the one before
DECAYS = (1.0, 0.1, 0.01, 1e-3, 1e-4)
HELD_OUT_FRACTION = 0.2
MAX_STEPS = 100
EPS = 1e-6


@dataclass(frozen=True)
class LinearProbe:
    """logits = (features - mean_D) / spread_D @ weight_CD.T + bias_C; `decay`: the chosen one."""

    mean_D: torch.Tensor
    spread_D: torch.Tensor
    weight_CD: torch.Tensor
    bias_C: torch.Tensor
    decay: float

    def __call__(self, features_QD: torch.Tensor) -> torch.Tensor:
        """logits_QC."""
        return F.linear((features_QD.float() - self.mean_D) / self.spread_D, self.weight_CD, self.bias_C)


def fit_linear_probe(
    features_SD: torch.Tensor, label_S: torch.Tensor, *, num_classes: int, decays: tuple[float, ...] = DECAYS
) -> LinearProbe:
    """The probe with the best decay on held-out videos, the stronger of a tie. Deterministic."""
    held_S = hold_out(label_S)
    if len(decays) == 1 or not held_S.any():
        best = 0
    else:
        probes = fit_decays(features_SD[~held_S], label_S[~held_S], num_classes=num_classes, decays=decays)
        losses = [float(F.cross_entropy(probe(features_SD[held_S]), label_S[held_S])) for probe in probes]
        best = losses.index(min(losses))
    return fit_decays(features_SD, label_S, num_classes=num_classes, decays=decays[: best + 1])[-1]


def hold_out(label_S: torch.Tensor) -> torch.Tensor:
    """held_S bool: the last fifth of every class in manifest order; none of a single video.

    The last and not random ones, since neighbours in a manifest are often cuts of one recording.
    """
    held_S = torch.zeros(len(label_S), dtype=torch.bool, device=label_S.device)
    for label in label_S.unique():
        rows = (label_S == label).nonzero()[:, 0]
        count = max(1, round(HELD_OUT_FRACTION * len(rows)))
        if len(rows) > 1:
            held_S[rows[-count:]] = True
    return held_S


def fit_decays(
    features_SD: torch.Tensor, label_S: torch.Tensor, *, num_classes: int, decays: tuple[float, ...]
) -> list[LinearProbe]:
    """One probe per decay; it minimises the mean cross-entropy + decay / 2 * |weight|^2."""
    features_SD = features_SD.float()
    mean_D, spread_D = features_SD.mean(dim=0), features_SD.std(dim=0, unbiased=False).clamp(min=EPS)
    scaled_SD = (features_SD - mean_D) / spread_D
    weight_CD = torch.zeros(num_classes, features_SD.shape[1], device=features_SD.device, requires_grad=True)
    bias_C = torch.zeros(num_classes, device=features_SD.device, requires_grad=True)
    probes = []
    # a fit needs far fewer as a rule, so the time left is a bound
    ticker, num_done = Ticker("linear probe", len(decays) * MAX_STEPS, unit="evaluation", at_most=True), 0
    for number, decay in enumerate(decays):
        optimizer = torch.optim.LBFGS([weight_CD, bias_C], max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

        most = (number + 1) * MAX_STEPS

        def loss(decay: float = decay, optimizer: torch.optim.Optimizer = optimizer, most: int = most) -> torch.Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear(scaled_SD, weight_CD, bias_C), label_S) + decay / 2 * weight_CD.square().sum()
            value.backward()
            nonlocal num_done
            num_done += 1
            ticker(min(num_done, most))
            return value

        num_done = number * MAX_STEPS
        with torch.enable_grad():
            optimizer.step(loss)
        probes.append(LinearProbe(mean_D, spread_D, weight_CD.detach().clone(), bias_C.detach().clone(), decay))
    ticker.close()
    return probes


QUERY_STD = 0.02  # V-JEPA's initialisation of query and linear layers
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01  # V-JEPA's frozen evaluation
EPOCHS, MIN_STEPS = 20, 500
# of a small set the batch is smaller, so that an epoch has some steps
BATCH, STEPS_PER_EPOCH = 64, 8
WARMUP_FRACTION = 0.1


class AttentivePool(nn.Module):
    """Normalised tokens [B, K, D] (see `normalise_tokens`) -> one vector per clip [B, D]."""

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
        query_HD = torch.einsum("he,hed->hd", self.query_HE, self.key_HED) / math.sqrt(self.query_HE.shape[1])
        weight_BHK = (tokens_BKD @ query_HD.T).transpose(1, 2).softmax(dim=-1)
        mixed_BHE = torch.einsum("bhd,hed->bhe", weight_BHK @ tokens_BKD, self.value_HED) + self.value_bias_HE
        pooled_BD = self.proj(mixed_BHE.flatten(1))
        return pooled_BD + self.mlp(self.norm(pooled_BD))


class AttentiveProbe(nn.Module):
    """tokens [B, K, D] -> logits [B, C].

    Channels are first standardised with mean_D and spread_D of the training set's tokens: what all
    tokens have in common would otherwise hide the differences between videos.
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
        """Set mean_D and spread_D from these tokens, a batch of clips at a time."""
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
    """Tokens with mean 0 and standard deviation 1, as the pool expects them.

    It is the pool's LayerNorm, computed once; the projections can learn its scale and shift.
    """
    return F.layer_norm(tokens_BKD.float(), tokens_BKD.shape[-1:], eps=NORM_EPS)


def fit_attentive_probe(
    tokens_SKD: torch.Tensor, label_S: torch.Tensor, *, heads: int, num_classes: int, seed: int = 0
) -> AttentiveProbe:
    """Train with AdamW, warm-up and cosine decay over EPOCHS, at least MIN_STEPS steps.

    Nothing is tuned. Deterministic under a seed. tokens_SKD: normalised, of any float type,
    anywhere; the probe is trained on the device of `label_S`.
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
    for _ in show_progress(range(num_steps), total=num_steps, label="attentive probe", unit="step"):
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
    """The factor on the learning rate at a step, from 0."""
    warmup = max(1, int(WARMUP_FRACTION * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


@torch.no_grad()
def apply_attentive_probe(probe: AttentiveProbe, tokens_QKD: torch.Tensor) -> torch.Tensor:
    """logits_QC, float32, a batch at a time on the probe's device."""
    device = probe.head.weight.device
    return torch.cat([probe(part.to(device).float()) for part in tokens_QKD.split(BATCH)])
