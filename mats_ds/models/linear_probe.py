"""Logistic regression on frozen features: [S, D] and labels -> a linear classifier, by full-batch L-BFGS.

Features are standardised with the training set's mean and spread. The weight decay is chosen on a part of the training set
that is held out, and the classifier is then fitted to all of it: the validation set has no say in anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

DECAYS = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # from strong to weak, so that each fit starts from the one before
HELD_OUT_SHARE = 0.2
MAX_STEPS = 100
EPS = 1e-6


@dataclass(frozen=True)
class LinearProbe:
    """logits = (features - mean_D) / spread_D @ weight_CD.T + bias_C. `decay` is the one that was chosen."""

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
    """The probe of the decay that does best on the held-out part; the stronger one of a tie. Deterministic."""
    held_S = hold_out(label_S)
    if len(decays) == 1 or not held_S.any():
        best = 0
    else:
        probes = fit_decays(features_SD[~held_S], label_S[~held_S], num_classes=num_classes, decays=decays)
        losses = [float(F.cross_entropy(probe(features_SD[held_S]), label_S[held_S])) for probe in probes]
        best = losses.index(min(losses))
    return fit_decays(features_SD, label_S, num_classes=num_classes, decays=decays[: best + 1])[-1]


def hold_out(label_S: torch.Tensor) -> torch.Tensor:
    """held_S bool: of each class the last fifth of its videos in the order of the manifest; none of a class with one video.

    Why the last and not random ones: neighbours in a manifest are often cuts of one recording, and ought to stay together.
    """
    held_S = torch.zeros(len(label_S), dtype=torch.bool, device=label_S.device)
    for label in label_S.unique():
        rows = (label_S == label).nonzero()[:, 0]
        count = max(1, round(HELD_OUT_SHARE * len(rows)))
        if len(rows) > 1:
            held_S[rows[-count:]] = True
    return held_S


def fit_decays(
    features_SD: torch.Tensor, label_S: torch.Tensor, *, num_classes: int, decays: tuple[float, ...]
) -> list[LinearProbe]:
    """One probe a decay: the least mean cross-entropy + decay / 2 * |weight|^2; the bias is not decayed."""
    features_SD = features_SD.float()
    mean_D, spread_D = features_SD.mean(dim=0), features_SD.std(dim=0, unbiased=False).clamp(min=EPS)
    scaled_SD = (features_SD - mean_D) / spread_D
    weight_CD = torch.zeros(num_classes, features_SD.shape[1], device=features_SD.device, requires_grad=True)
    bias_C = torch.zeros(num_classes, device=features_SD.device, requires_grad=True)
    probes = []
    for decay in decays:
        optimizer = torch.optim.LBFGS([weight_CD, bias_C], max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

        def loss(decay: float = decay, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear(scaled_SD, weight_CD, bias_C), label_S) + decay / 2 * weight_CD.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        probes.append(LinearProbe(mean_D, spread_D, weight_CD.detach().clone(), bias_C.detach().clone(), decay))
    return probes
