"""How much each token changed beyond what its whole tubelet did: embedding [B, N, D] -> motion [B, N].

The score of MATS (arXiv 2211.10636) takes all change for motion, also a flicker of the light or the jerk of a hand-held camera.
Recognition of actions has long subtracted the dominant motion of a picture and kept the residual (Jain, Jégou, Bouthemy: "Better
exploiting motion for better action recognition", CVPR 2013); there it is a model of optical flow, here, our own simplification,
two medians over the places of a tubelet. They follow what is common to the places: light, fades, a shake that lasts a few
tubelets. A camera that pans steadily over a textured scene changes each place in its own way, and this does not take that off.
"""

from __future__ import annotations

import torch

from mats_ds.clips import TokenGrid
from mats_ds.tokens.motion import join_tubelets, split_tubelets

CAMERA_DISTANCES = {"l2": 2, "l1": 1}  # the order of the norm


def score_local_motion(embedding_BND: torch.Tensor, grid: TokenGrid, *, distance: str = "l2") -> torch.Tensor:
    """motion_BN, float32, in place of `score_motion`'s; half of every tubelet's scores are at most zero.

    Of each tubelet's differences to the one before, the median over its places is subtracted in every channel; of the lengths of
    what remains, again the median over the places. (Of an even number of places, the lower one of the two in the middle.) A clip
    that stands still scores zero throughout. Arguments and errors as for `score_motion`, without the distance "cosine".
    """
    check_compensation(distance=distance)
    steps_BTLD = split_tubelets(embedding_BND, grid)
    change_BTLD = steps_BTLD[:, 1:] - steps_BTLD[:, :-1]
    residual_BTLD = change_BTLD - change_BTLD.median(dim=2, keepdim=True).values
    length_BTL = torch.linalg.vector_norm(residual_BTLD, ord=CAMERA_DISTANCES[distance], dim=-1)
    return join_tubelets(length_BTL - length_BTL.median(dim=2, keepdim=True).values)


def check_compensation(*, distance: str, strategy: str = "mats") -> None:
    """Raises ValueError for a distance that is not the length of a difference, or a strategy with a score of its own."""
    if strategy == "run_length":
        raise ValueError("compensate_camera changes the score of mats, run_length has its own: choose one of the two")
    if distance not in CAMERA_DISTANCES:
        raise ValueError(
            f"compensate_camera subtracts differences, and distance {distance!r} has none: choose {' or '.join(CAMERA_DISTANCES)}"
        )
