"""The tokens of a clip that a model computes: patches [B, N, P] -> indices [B, K], by motion.

Motion-aware token selection (arXiv 2211.10636) as mats_ds evaluates it: no random seeds, the same
clip always gives the same tokens. Needs torch alone: this file travels with exported models, and
its results are held to those of mats_ds by its tests.

Legend: B clips, T tubelets along time, L tokens of a tubelet, N = T L tokens, P pixel values of a
token, D width, K kept tokens, M dropped ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F

UINT8_MAX = 255.0
MASK64 = (1 << 64) - 1
# the stream of random numbers that chooses kept tokens, of the seed that evaluation takes
STREAM_KEPT, EVALUATION_SEED = 2, 0


@dataclass(frozen=True)
class SelectionOptions:
    """Which tokens are kept: the options of mats_ds's section `selection`; the number of tubelets
    that are used of a clip (fewer than it has, where frames are selected, too), and of their
    frames."""

    keep_ratio: float
    num_tubelets: int
    tubelet_frames: int = 2
    strategy: str = "mats"
    distance: str = "l2"
    feature: str = "embedding"
    compensate_camera: bool = False
    run_threshold: float = 0.0226
    merge_dropped: bool = False


@dataclass(frozen=True)
class SelectedTokens:
    """index_BK: int64, ascending, which tokens of the tubelets used are kept. tubelets_BT: int64,
    which tubelets of the clip these are. patches_BNP: uint8, of the tubelets used. feature_BNX: the
    features that were compared, None where none were. merged_BKP: uint8, kept tokens with the
    dropped ones averaged into them, size_BK how many each averages; None unless dropped ones are
    merged.
    """

    index_BK: torch.Tensor
    tubelets_BT: torch.Tensor
    patches_BNP: torch.Tensor
    feature_BNX: torch.Tensor | None = None
    merged_BKP: torch.Tensor | None = None
    size_BK: torch.Tensor | None = None


def select_tokens(
    patches_BNP: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor], *, num_tubelets: int, options: SelectionOptions
) -> SelectedTokens:
    """The kept tokens of clips of `num_tubelets` tubelets.

    patches_BNP: uint8, tokens time-major, the values of a patch in the order (frame, row, column,
    colour). embed: the model's patch embedding, [B, N, P] -> [B, N, D]. Raises ValueError for
    options that leave no token, or that this code does not have.
    """
    batch, num_all, _ = patches_BNP.shape
    per_tubelet = num_all // num_tubelets
    num_tokens = options.num_tubelets * per_tubelet
    if not 0 < options.keep_ratio <= 1:
        raise ValueError(f"keep_ratio is above 0 and at most 1, got {options.keep_ratio:g}")
    num_kept = count_tokens(options.keep_ratio, num_tokens)
    if num_kept < 1:
        raise ValueError(f"keep_ratio {options.keep_ratio} of {num_tokens} tokens is no token at all: raise it")
    adaptive, keeps_all = num_tubelets > options.num_tubelets, num_kept == num_tokens
    if adaptive and keeps_all:
        raise ValueError(
            f"{num_tubelets} tubelets are read and the {options.num_tubelets} with the most kept tokens used, and keep_ratio 1 "
            "keeps all: give a lower keep_ratio"
        )
    merges = options.merge_dropped and not keeps_all
    feature_BNX = None
    if adaptive or merges or (options.strategy == "mats" and not keeps_all):
        feature_BNX = embed(patches_BNP) if options.feature == "embedding" else patches_BNP.float() / UINT8_MAX
    tubelets_BT = torch.arange(options.num_tubelets, device=patches_BNP.device).expand(batch, -1)
    if adaptive:
        motion_BN = score_motion(feature_BNX, num_tubelets, options)
        tubelets_BT = fullest_tubelets(motion_BN, options, per_tubelet=per_tubelet)
        patches_BNP = take_tubelets(patches_BNP, tubelets_BT, per_tubelet)
        feature_BNX = take_tubelets(feature_BNX, tubelets_BT, per_tubelet)
    if keeps_all:
        index_BK = torch.arange(num_tokens, device=patches_BNP.device).expand(batch, -1)
    elif options.strategy == "random_drop":
        kept = torch.tensor(random_tokens(num_tokens, num_kept), device=patches_BNP.device)
        index_BK = kept.expand(batch, -1)
    elif options.strategy == "mats":
        index_BK = highest(score_motion(feature_BNX, options.num_tubelets, options), num_kept)
    elif options.strategy == "run_length":
        index_BK = highest(score_runs(patches_BNP, options), num_kept)
    else:
        raise ValueError(f"strategy is mats, run_length or random_drop, got {options.strategy!r}")
    merged = merge_dropped(patches_BNP, feature_BNX, index_BK) if merges else (None, None)
    return SelectedTokens(index_BK, tubelets_BT, patches_BNP, feature_BNX, *merged)


def split_patches(frames_BTHWC: torch.Tensor, tubelet: tuple[int, int, int]) -> torch.Tensor:
    """patches_BNP: tokens time-major, the values of a patch in the order (frame, row, column,
    colour)."""
    batch, frames, height, width, colours = frames_BTHWC.shape
    p0, p1, p2 = tubelet
    parts = frames_BTHWC.reshape(batch, frames // p0, p0, height // p1, p1, width // p2, p2, colours)
    return parts.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, -1, p0 * p1 * p2 * colours)


def gather_rows(values_BNX: torch.Tensor, index_BK: torch.Tensor) -> torch.Tensor:
    """[B, K, X]: row `index_BK[b, k]` of clip b."""
    batch, num_rows, _ = values_BNX.shape
    rows = (index_BK + num_rows * torch.arange(batch, device=index_BK.device)[:, None]).flatten()
    return values_BNX.flatten(0, 1).index_select(0, rows).unflatten(0, index_BK.shape)


def count_tokens(ratio: float, num_tokens: int) -> int:
    """The integer part of `ratio * num_tokens`, 0.3 meaning three tenths exactly."""
    return int(Fraction(ratio).limit_denominator(1_000_000) * num_tokens)


def highest(score_BN: torch.Tensor, count: int) -> torch.Tensor:
    """[B, count] ascending indices of the largest entries, the first of equal ones."""
    return score_BN.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values


def score_motion(feature_BNX: torch.Tensor, num_tubelets: int, options: SelectionOptions) -> torch.Tensor:
    """motion_BN: the distance of each token to the one at the same position a tubelet earlier; the
    first tubelet takes the second one's. With `compensate_camera` less each tubelet's median."""
    steps_BTLX = feature_BNX.float().unflatten(1, (num_tubelets, -1))
    later, earlier = steps_BTLX[:, 1:], steps_BTLX[:, :-1]
    if options.distance == "cosine":
        change_BTL = 1.0 - F.cosine_similarity(later, earlier, dim=-1)
    else:
        difference = later - earlier
        if options.compensate_camera:
            difference = difference - lower_median(difference)
        change_BTL = torch.linalg.vector_norm(difference, ord={"l2": 2, "l1": 1}[options.distance], dim=-1)
        if options.compensate_camera:
            change_BTL = change_BTL - lower_median(change_BTL)
    return torch.cat([change_BTL[:, :1], change_BTL], dim=1).flatten(1)


def lower_median(values_BTL: torch.Tensor) -> torch.Tensor:
    """The median over dimension 2, which stays; of an even number the lower one."""
    middle = (values_BTL.shape[2] - 1) // 2
    return values_BTL.sort(dim=2).values.narrow(2, middle, 1)


def score_runs(patches_BNP: torch.Tensor, options: SelectionOptions) -> torch.Tensor:
    """score_BN: the change of each patch since its run began (run-length tokenization, arXiv
    2411.05222); beginnings of runs are above `run_threshold`."""
    tubelets_BTLP = patches_BNP.unflatten(1, (options.num_tubelets, -1))
    frame_values = tubelets_BTLP.shape[-1] // options.tubelet_frames
    fronts, backs = tubelets_BTLP[..., :frame_values], tubelets_BTLP[..., -frame_values:]
    start_BLP, scores = fronts[:, 0].float(), []
    for tubelet in range(1, options.num_tubelets):
        score_BL = (backs[:, tubelet].float() - start_BLP).abs().mean(dim=-1) / UINT8_MAX
        start_BLP = torch.where(score_BL[..., None] > options.run_threshold, fronts[:, tubelet].float(), start_BLP)
        scores.append(score_BL)
    return torch.stack([1 + scores[0], *scores], dim=1).flatten(1)


def fullest_tubelets(motion_BN: torch.Tensor, options: SelectionOptions, *, per_tubelet: int) -> torch.Tensor:
    """tubelets_BT: those with the most tokens among the clip's top `keep_ratio` by motion."""
    batch, num_tokens = motion_BN.shape
    num_marked = max(1, count_tokens(options.keep_ratio, num_tokens))
    tubelet_BK = motion_BN.argsort(dim=1, descending=True, stable=True)[:, :num_marked] // per_tubelet
    number_T = torch.arange(num_tokens // per_tubelet, device=motion_BN.device)
    count_BT = (tubelet_BK[..., None] == number_T).sum(dim=1)
    return highest(count_BT, options.num_tubelets)


def take_tubelets(values_BNX: torch.Tensor, tubelets_BT: torch.Tensor, per_tubelet: int) -> torch.Tensor:
    """[B, T L, X]: the L tokens of each selected tubelet."""
    token_L = torch.arange(per_tubelet, device=tubelets_BT.device)
    return gather_rows(values_BNX, (tubelets_BT[..., None] * per_tubelet + token_L).flatten(1))


def merge_dropped(
    patches_BNP: torch.Tensor, feature_BNX: torch.Tensor, index_BK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(merged_BKP uint8, size_BK): every dropped token averaged into the kept one whose feature is
    closest (token merging, arXiv 2210.09461)."""
    batch, num_kept = index_BK.shape
    num_tokens = patches_BNP.shape[1]
    is_kept_BN = torch.zeros(batch, num_tokens, dtype=torch.int8, device=index_BK.device).scatter(1, index_BK, 1)
    dropped_BM = is_kept_BN.argsort(dim=1, stable=True)[:, : num_tokens - num_kept]
    dropped_BMX, kept_BKX = gather_rows(feature_BNX, dropped_BM).float(), gather_rows(feature_BNX, index_BK).float()
    half_square_B1K = kept_BKX.square().sum(dim=-1)[:, None] / 2
    owner_BM = torch.baddbmm(half_square_B1K, dropped_BMX, kept_BKX.mT, beta=-1).argmax(dim=-1)
    rows = (owner_BM + num_kept * torch.arange(batch, device=index_BK.device)[:, None]).flatten()
    size = torch.ones(batch * num_kept, device=rows.device).index_add(0, rows, torch.ones(len(rows), device=rows.device))
    total = gather_rows(patches_BNP, index_BK).flatten(0, 1).float()
    total = total.index_add(0, rows, gather_rows(patches_BNP, dropped_BM).flatten(0, 1).float())
    mean = (total / size[:, None]).round().to(torch.uint8)
    return mean.unflatten(0, (batch, num_kept)), size.unflatten(0, (batch, num_kept))


def random_tokens(num_tokens: int, num_kept: int) -> list[int]:
    """The tokens that random_drop keeps in an evaluation, ascending: SplitMix64's numbers of the
    seed 0 (Steele, Lea, Flood, OOPSLA 2014), the smallest first."""

    def mix(state: int) -> int:
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            state = (state ^ (state >> shift)) * multiplier & MASK64
        return state

    start = mix((mix(EVALUATION_SEED) + STREAM_KEPT * 0xD1342543DE82EF95 + 1) & MASK64)
    bits = [mix((start + (count + 1) * 0x9E3779B97F4A7C15) & MASK64) & (MASK64 >> 1) for count in range(num_tokens)]
    return sorted(sorted(range(num_tokens), key=bits.__getitem__)[:num_kept])
