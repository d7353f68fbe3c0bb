"""The masked autoencoder with motion-aware token selection: frames [B, T, H, W, 3] uint8 -> loss.

Source: arXiv 2211.10636 (METHOD sections 1 to 4) on VideoMAE's asymmetric encoder and decoder
(arXiv 2203.12602). The encoder sees the V visible tokens only, the decoder the kept ones (visible
and targets), the loss the targets. Gradient flows only where it is needed: scores come from a
no-grad embedding, patches are gathered before they are embedded, and only target patches become
targets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import nn

from mats_ds.core.token_grid import RGB_CHANNELS, TokenGrid, TokenPruning, TokenSelection
from mats_ds.models.layers import KeepsTables, init_linear, make_positions
from mats_ds.models.sizes import MODEL_SIZES
from mats_ds.models.token_pruning import PrunedClip, prune_clip
from mats_ds.models.vit import UINT8_MAX, PatchEmbed, Transformer, embed_patches, gather_tokens, join_patches

if TYPE_CHECKING:
    from mats_ds.config.recipe import Recipe

MASK_TOKEN_STD = 0.02  # VideoMAE's, arXiv 2203.12602
GREY = 0.5


@dataclass(frozen=True)
class Reconstruction:
    """A clip as the model reconstructs it, for people to look at.

    frames_BTHWC: uint8, the frames used (after frame selection). motion_BN: float32 scores.
    tubelets_BT: which tubelets of the candidates they are. predicted_BTHWC: float32 in 0 to 1;
    visible tokens as they are, targets as predicted (with the mean and spread of the true tubelet,
    since the model predicts normalised pixels), dropped tokens grey. loss: scalar.
    """

    frames_BTHWC: torch.Tensor
    motion_BN: torch.Tensor
    selection: TokenSelection
    tubelets_BT: torch.Tensor
    predicted_BTHWC: torch.Tensor
    loss: torch.Tensor


class MaskedAutoencoder(KeepsTables):
    """Masked autoencoder of one size on one token grid; build it with `from_name` or
    `from_recipe`."""

    def __init__(
        self,
        *,
        grid: TokenGrid,
        width: int,
        depth: int,
        heads: int,
        decoder_width: int,
        decoder_heads: int,
        decoder_depth: int,
        pruning: TokenPruning | None = None,
        candidate_grid: TokenGrid | None = None,
        position_grid: TokenGrid | None = None,
        drop_path: float = 0.0,
        recompute: str = "none",
        checkpoint_blocks: str | int = "none",
        **options: Any,
    ) -> None:
        """`pruning`: the options of the method; `options` change some of them by name
        (keep_ratio=0.3). `candidate_grid`: of the frames that are read, where they are more than
        the grid's. `position_grid`: the grid that the weights' positions were made for.
        Raises ValueError for options that do not go together, or that leave no token visible or
        none to reconstruct.
        """
        super().__init__()
        pruning = replace(pruning or TokenPruning(), **options)
        pruning.check_pretraining(grid)
        self.pruning = pruning
        self.grid, self.candidate_grid, self.position_grid = grid, candidate_grid or grid, position_grid or grid
        self.patch_embed = PatchEmbed(grid, width)
        policy = {"recompute": recompute, "checkpoint_blocks": checkpoint_blocks}
        self.encoder = Transformer(width, depth, heads, drop_path=drop_path, **policy)
        self.to_decoder = nn.Linear(width, decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder = Transformer(decoder_width, decoder_depth, decoder_heads, drop_path=drop_path, **policy)
        self.head = nn.Linear(decoder_width, grid.patch_values)
        self.register_buffer("positions_ND", make_positions(grid, width, made_for=position_grid), persistent=False)
        decoder_positions_ND = make_positions(grid, decoder_width, made_for=position_grid)
        self.register_buffer("decoder_positions_ND", decoder_positions_ND, persistent=False)
        # As VideoMAE begins: the patch embedding keeps a convolution's own start and `to_decoder` a
        # linear layer's, which are the same rule (uniform within 1 / sqrt(inputs)); the mask token
        # is cut off at one standard deviation.
        for part in (self.encoder, self.decoder, self.head):
            part.apply(init_linear)
        nn.init.trunc_normal_(self.mask_token, std=MASK_TOKEN_STD, a=-MASK_TOKEN_STD, b=MASK_TOKEN_STD)

    @classmethod
    def from_name(cls, name: str, *, grid: TokenGrid | None = None, decoder_depth: int | None = None, **options: Any):
        """A model of size "tiny", "small", "base", "large" or "huge" on `grid` (16 x 224 x 224 if
        None).

        `decoder_depth` None takes the size's own. `options` are the constructor's: the method's
        (strategy, keep_ratio, visible_ratio, ...; see TokenPruning), candidate_grid, position_grid,
        drop_path, recompute, checkpoint_blocks.
        Raises ValueError for an unknown name.
        """
        if name not in MODEL_SIZES:
            raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODEL_SIZES)}")
        size = MODEL_SIZES[name]._asdict()
        if decoder_depth is not None:
            size["decoder_depth"] = decoder_depth
        return cls(grid=grid or TokenGrid(), **size, **options)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> MaskedAutoencoder:
        """The model that a recipe describes, with fresh weights from torch's global generator."""
        model = recipe.model
        return cls.from_name(
            model.name,
            grid=recipe.clip.grid(),
            decoder_depth=model.decoder_depth,
            pruning=recipe.selection.pruning(),
            candidate_grid=recipe.candidate_grid(),
            drop_path=model.drop_path,
            recompute=model.recompute,
            checkpoint_blocks=model.checkpoint_blocks,
        )

    def forward(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> torch.Tensor:
        """The scalar float32 loss: mean squared error over the normalised pixels of the target
        tokens.

        frames_BTHWC: uint8 RGB of the candidate grid's size. seed_B: int64 random seed of each
        clip, which fixes its mask and frames; None samples seeds from torch's global generator.
        Raises ValueError for frames of another shape or type.
        """
        chosen = self.choose(frames_BTHWC, seed_B)
        true_BMP = gather_tokens(chosen.patches_BNP, chosen.selection.target_BM)
        return reconstruction_loss(self.predict(chosen), true_BMP)

    def choose(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> PrunedClip:
        """Score the motion, then pick frames (where there are more candidates than frames) and
        tokens. No gradient."""
        return prune_clip(
            frames_BTHWC,
            pruning=self.pruning,
            grid=self.grid,
            candidate_grid=self.candidate_grid,
            motion_feature=self.motion_feature,
            seed_B=seed_B,
        )

    def motion_feature(self, patches_BNP: torch.Tensor) -> torch.Tensor:
        """The features whose distances are the motion: patch embeddings, or pixels (0 to 1)."""
        return self.patch_embed(patches_BNP) if self.pruning.feature == "embedding" else patches_BNP.float() / UINT8_MAX

    def predict(self, chosen: PrunedClip) -> torch.Tensor:
        """predicted_BMP: normalised pixels of the target tokens."""
        num_targets = chosen.selection.target_BM.shape[1]
        return self.decoder(self._encode(chosen), num_outputs=num_targets, then=self.head)

    def _encode(self, chosen: PrunedClip) -> torch.Tensor:
        """The decoder's tokens [B, V + M, D]: the encoded visible ones, then mask tokens for the
        targets, with positions."""
        visible_BV, target_BM = chosen.selection.visible_BV, chosen.selection.target_BM
        patches_BVP = gather_tokens(chosen.patches_BNP, visible_BV)
        how = {"positions_ND": self.positions_ND, "recompute": self.encoder.recompute}
        tokens_BVD = embed_patches(self.patch_embed, patches_BVP, visible_BV, **how)
        encoded_BVD = self.encoder(tokens_BVD, then=self.to_decoder)
        positions_ND = self.decoder_positions_ND.to(encoded_BVD.dtype)
        return torch.cat([encoded_BVD + positions_ND[visible_BV], self.mask_token + positions_ND[target_BM]], dim=1)

    @torch.no_grad()
    def reconstruct(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> Reconstruction:
        """Run the model on clips and put its predictions back into frames. Arguments and errors as
        for `forward`."""
        chosen = self.choose(frames_BTHWC, seed_B)
        predicted_BMP = self.predict(chosen).float()
        true_BMP = gather_tokens(chosen.patches_BNP, chosen.selection.target_BM)
        restored_BMP = normalise_patches(true_BMP).restore(predicted_BMP)
        picture_BNP = torch.full(chosen.patches_BNP.shape, GREY, device=predicted_BMP.device)
        visible_BV = chosen.selection.visible_BV
        shown = gather_tokens(chosen.patches_BNP, visible_BV).float() / UINT8_MAX
        put_tokens(picture_BNP, visible_BV, shown)
        put_tokens(picture_BNP, chosen.selection.target_BM, restored_BMP.clamp(0, 1))
        return Reconstruction(
            frames_BTHWC=join_patches(chosen.patches_BNP, self.grid),
            motion_BN=chosen.motion_BN,
            selection=chosen.selection,
            tubelets_BT=chosen.tubelets_BT,
            predicted_BTHWC=join_patches(picture_BNP, self.grid),
            loss=reconstruction_loss(predicted_BMP, true_BMP),
        )


def put_tokens(values_BNX: torch.Tensor, index_BK: torch.Tensor, new_BKX: torch.Tensor) -> None:
    """Write rows `index_BK` in place."""
    values_BNX.scatter_(1, index_BK[..., None].expand(-1, -1, values_BNX.shape[-1]), new_BKX)


SPREAD_EPS = 1e-6


@dataclass(frozen=True)
class Normalised:
    """Pixels of 0 to 1 are pixels_BMP * spread + mean, colour by colour; mean_BMC and spread_BMC
    are float32 [B, M, 1, C]."""

    pixels_BMP: torch.Tensor
    mean_BMC: torch.Tensor
    spread_BMC: torch.Tensor

    def restore(self, normalised_BMP: torch.Tensor) -> torch.Tensor:
        """Pixels in 0 to 1 of (predicted) normalised pixels of these tubelets, not clamped."""
        colours = rearrange(normalised_BMP, "b m (p c) -> b m p c", c=RGB_CHANNELS)
        return rearrange(colours * self.spread_BMC + self.mean_BMC, "b m p c -> b m (p c)")


@torch.no_grad()
def normalise_patches(patches_BMP: torch.Tensor) -> Normalised:
    """Normalise uint8 patches tubelet by tubelet. No gradient."""
    centred = rearrange(patches_BMP, "b m (p c) -> b m p c", c=RGB_CHANNELS).to(torch.float32, copy=True)
    mean = centred.mean(dim=2, keepdim=True)
    centred -= mean
    variance = centred.square().sum(dim=2, keepdim=True) / (centred.shape[2] - 1)
    # the same as dividing pixels of 0 to 1 by their own spread, in one pass less over all of them
    spread = variance.sqrt() + SPREAD_EPS * UINT8_MAX
    centred /= spread
    return Normalised(rearrange(centred, "b m p c -> b m (p c)"), mean / UINT8_MAX, spread / UINT8_MAX)


def reconstruction_loss(predicted_BMP: torch.Tensor, patches_BMP: torch.Tensor) -> torch.Tensor:
    """Scalar float32: mean squared error of predicted normalised pixels against those of the uint8
    patches.

    Backward keeps their difference, once.
    """
    return (predicted_BMP.float() - normalise_patches(patches_BMP).pixels_BMP).square().mean()
