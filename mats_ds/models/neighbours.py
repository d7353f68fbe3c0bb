"""k nearest neighbours on frozen features: queries [Q, D] and a labelled bank [S, D] -> scores of the classes [Q, C].

Cosine similarity, votes weighted by exp(similarity / temperature): DINO, arXiv 2104.14294, section 4.1 and its k 20 and 0.07,
which are those of Wu et al., arXiv 1805.01978.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

NUM_NEIGHBOURS = 20
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
    """scores_QC: shares of the vote, each row adds up to one. A bank with fewer than `num_neighbours` rows votes as a whole.

    Of equally near neighbours the earlier one comes first. Raises ValueError for an empty bank or no neighbours.
    """
    if num_neighbours < 1 or len(bank_SD) < 1:
        raise ValueError(f"at least 1 neighbour and 1 labelled feature are needed, got {num_neighbours} and {len(bank_SD)}")
    bank_SD = F.normalize(bank_SD.float(), dim=-1)
    count = min(num_neighbours, len(bank_SD))
    scores = []
    for part_QD in query_QD.float().split(QUERIES_AT_ONCE):
        similarity_QS = F.normalize(part_QD, dim=-1) @ bank_SD.T
        near_QS = similarity_QS.sort(dim=1, descending=True, stable=True)
        weight_QK = (near_QS.values[:, :count] / temperature).softmax(dim=1)  # the shares of exp(similarity / temperature)
        votes_QC = torch.zeros(len(part_QD), num_classes, device=part_QD.device)
        scores.append(votes_QC.scatter_add_(1, label_S[near_QS.indices[:, :count]], weight_QK))
    return torch.cat(scores)
