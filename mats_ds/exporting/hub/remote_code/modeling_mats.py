"""VideoMAE models that encode only the tokens with motion: video [B, T, 3, H, W] -> features,
logits.

Written by `mats convert --to hub`; needs torch and transformers. The weights bear VideoMAE's names,
so transformers' own VideoMAE classes load them too, and then encode every token.

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    features = model(**processor(frames)).pooler_output

`config.keep_ratio` is the fraction of the tokens that is encoded: `from_pretrained(FOLDER,
trust_remote_code=True, keep_ratio=0.5)` loads another one, 1.0 encodes all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import VideoMAEConfig, VideoMAEModel, VideoMAEPreTrainedModel
from transformers.utils import ModelOutput

from .token_selection_mats import UINT8_MAX, SelectedTokens, SelectionOptions, gather_rows, select_tokens, split_patches

# ImageNet's colour statistics, VideoMAE's normalisation
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class MatsModelOutput(ModelOutput):
    """last_hidden_state [B, K, D]: the encoded tokens. pooler_output [B, D]: the feature of each
    clip. token_index [B, K] int64: which tokens of the clip they are (time first, then rows, then
    columns), of the tubelets in tubelet_index [B, T]. hidden_states, where asked for: the tokens
    before the first block and after each, depth + 1 tensors [B, K, D].
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    token_index: torch.Tensor | None = None
    tubelet_index: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class MatsClassifierOutput(ModelOutput):
    """loss: scalar, where labels are given. logits [B, classes]. token_index [B, K]: the tokens
    that were encoded. hidden_states as of MatsModelOutput."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    token_index: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class MatsModel(VideoMAEPreTrainedModel):
    """The encoder: features of clips."""

    config_class = VideoMAEConfig
    _auto_class = "AutoModel"  # save_pretrained writes this code beside the weights; version 4 would not
    # of pre-training's decoder and of a classifier's head, which the same file may hold
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^encoder_to_decoder\.", r"^mask_token$", r"^classifier\."]

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        add_encoder(self, config)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: object,
    ) -> MatsModelOutput | tuple:
        """pixel_values [B, T, 3, H, W]: normalised as the processor does it, or uint8 (0 to 255)
        as it is.

        Motion is scored on 8-bit pixels, as in training. Raises ValueError for another shape or
        type, and for output_attentions, which this code does not have.
        """
        output = encode(self, pixel_values, output_hidden_states=output_hidden_states, output_attentions=output_attentions)
        return output if return_dict is not False else output.to_tuple()


class MatsForVideoClassification(VideoMAEPreTrainedModel):
    """The classifier: logits of clips."""

    config_class = VideoMAEConfig
    _auto_class = "AutoModelForVideoClassification"

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        add_encoder(self, config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: object,
    ) -> MatsClassifierOutput | tuple:
        """pixel_values as for MatsModel; labels [B]: class numbers, for the loss."""
        encoded = encode(self, pixel_values, output_hidden_states=output_hidden_states, output_attentions=output_attentions)
        logits = self.classifier(encoded.pooler_output)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        output = MatsClassifierOutput(
            loss=loss, logits=logits, token_index=encoded.token_index, hidden_states=encoded.hidden_states
        )
        return output if return_dict is not False else output.to_tuple()


def add_encoder(model: VideoMAEPreTrainedModel, config: VideoMAEConfig) -> None:
    """Give a model the parts that `encode` uses, under the names that VideoMAE's checkpoints
    have."""
    model.videomae = VideoMAEModel(config)
    if config.token_selection["fc_norm_eps"] is not None:  # tokens are averaged, then normalised
        model.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.token_selection["fc_norm_eps"])


def encode(
    model: VideoMAEPreTrainedModel,
    pixel_values: torch.Tensor,
    *,
    output_hidden_states: bool | None = None,
    output_attentions: bool | None = None,
) -> MatsModelOutput:
    """The kept tokens of clips, encoded. output_hidden_states None: as the config says."""
    if output_attentions:
        raise ValueError("output_attentions: this model gives no attention weights, leave it out")
    config, videomae = model.config, model.videomae
    num_frames = config.token_selection["num_candidate_frames"]
    size = videomae.embeddings.patch_embeddings.image_size
    expected = (num_frames, config.num_channels, *size)
    shape = f"[B, {', '.join(map(str, expected))}]"
    if not isinstance(pixel_values, torch.Tensor):
        raise ValueError(f"pixel_values are a tensor {shape}, got {type(pixel_values).__name__}")
    if pixel_values.ndim != 5 or tuple(pixel_values.shape[1:]) != expected or len(pixel_values) == 0:
        raise ValueError(f"pixel_values are {shape}, got {list(pixel_values.shape)}")
    if pixel_values.dtype != torch.uint8 and not pixel_values.is_floating_point():
        raise ValueError(f"pixel_values are uint8 as decoded, or floats as the processor gives them, got {pixel_values.dtype}")
    if pixel_values.dtype == torch.uint8:
        frames_BTCHW, pixel_values = pixel_values, normalise(pixel_values)
    else:
        frames_BTCHW = to_bytes(pixel_values)
    tubelet = tubelet_of(videomae)
    selected = select_tokens(
        split_patches(frames_BTCHW.movedim(2, -1), tubelet),
        lambda patches_BNP: embed_bytes(videomae, patches_BNP),
        num_tubelets=num_frames // tubelet[0],
        options=selection_options(config, tubelet),
    )
    embedding_BKD = embed_kept(videomae, pixel_values, selected, tubelet)
    positions_ND = videomae.embeddings.position_embeddings[0].to(embedding_BKD.device, embedding_BKD.dtype)
    tokens_BKD = embedding_BKD + positions_ND[selected.index_BK]
    wants_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
    hidden_states = [tokens_BKD]
    for layer in videomae.encoder.layer:
        tokens_BKD = layer(tokens_BKD)
        hidden_states += [tokens_BKD] if wants_states else []
    if videomae.layernorm is not None:
        tokens_BKD = videomae.layernorm(tokens_BKD)
    feature_BD = average(tokens_BKD, selected.size_BK)
    if config.token_selection["fc_norm_eps"] is not None:
        feature_BD = model.fc_norm(feature_BD)
    return MatsModelOutput(
        last_hidden_state=tokens_BKD,
        pooler_output=feature_BD,
        token_index=selected.index_BK,
        tubelet_index=selected.tubelets_BT,
        hidden_states=tuple(hidden_states) if wants_states else None,
    )


def selection_options(config: VideoMAEConfig, tubelet: tuple[int, int, int]) -> SelectionOptions:
    """config.json as options of the selection."""
    names = ("strategy", "distance", "feature", "compensate_camera", "run_threshold", "merge_dropped")
    return SelectionOptions(
        keep_ratio=config.keep_ratio,
        num_tubelets=config.num_frames // tubelet[0],
        tubelet_frames=tubelet[0],
        **{name: config.token_selection[name] for name in names},
    )


def tubelet_of(videomae: VideoMAEModel) -> tuple[int, int, int]:
    """(frames, height, width) of a token."""
    return tuple(videomae.embeddings.patch_embeddings.projection.kernel_size)


def embed_kept(
    videomae: VideoMAEModel, pixel_values: torch.Tensor, selected: SelectedTokens, tubelet: tuple[int, int, int]
) -> torch.Tensor:
    """[B, K, D]: the patch embeddings of the kept tokens, without positions."""
    weight_DP, bias_D = patch_matrix(videomae)
    if selected.merged_BKP is not None:
        colours = selected.merged_BKP.unflatten(-1, (-1, 3))
        kept_BKP = ((colours / UINT8_MAX - as_colours(MEAN, colours)) / as_colours(STD, colours)).flatten(-2)
    else:
        per_tubelet = selected.patches_BNP.shape[1] // selected.tubelets_BT.shape[1]
        tubelet_BK = selected.tubelets_BT.gather(1, selected.index_BK // per_tubelet)
        patches_BNP = split_patches(pixel_values.movedim(2, -1), tubelet)
        kept_BKP = gather_rows(patches_BNP, tubelet_BK * per_tubelet + selected.index_BK % per_tubelet)
    return F.linear(kept_BKP.to(weight_DP.dtype), weight_DP, bias_D)


def embed_bytes(videomae: VideoMAEModel, patches_BNP: torch.Tensor) -> torch.Tensor:
    """[B, N, D]: the patch embedding of uint8 patches, the normalisation folded into its weights as
    mats_ds does it: the same numbers, and so the same ranks."""
    weight_DP, bias_D = patch_matrix(videomae)
    repeats = patches_BNP.shape[-1] // 3
    std = torch.tensor(STD, device=weight_DP.device).repeat(repeats)
    shift_P = -torch.tensor(MEAN, device=weight_DP.device).repeat(repeats) / std
    folded_bias = bias_D.float() + weight_DP.float() @ shift_P
    folded = weight_DP.float() * (1 / (UINT8_MAX * std))
    return F.linear(patches_BNP.to(weight_DP.dtype), folded.to(weight_DP.dtype), folded_bias.to(weight_DP.dtype))


def patch_matrix(videomae: VideoMAEModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The Conv3d of the patch embedding as a matrix [D, P], in the order of `split_patches`, and
    its bias."""
    projection = videomae.embeddings.patch_embeddings.projection
    return projection.weight.permute(0, 2, 3, 4, 1).flatten(1), projection.bias


def normalise(frames_BTCHW: torch.Tensor) -> torch.Tensor:
    """float32 pixel_values of uint8 frames."""
    mean, std = (as_colours(values, frames_BTCHW).view(3, 1, 1) for values in (MEAN, STD))
    return (frames_BTCHW / UINT8_MAX - mean) / std


def to_bytes(pixel_values: torch.Tensor) -> torch.Tensor:
    """uint8 frames of normalised pixels, the inverse of `normalise`."""
    mean, std = (as_colours(values, pixel_values).view(3, 1, 1) for values in (MEAN, STD))
    return ((pixel_values.detach().float() * std + mean) * UINT8_MAX).round().clamp(0, UINT8_MAX).to(torch.uint8)


def as_colours(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device)


def average(tokens_BKD: torch.Tensor, size_BK: torch.Tensor | None) -> torch.Tensor:
    """[B, D]: the mean of the tokens; where dropped ones were merged, the mean of all."""
    if size_BK is None:
        return tokens_BKD.mean(dim=1)
    fraction_BK = size_BK / size_BK.sum(dim=1, keepdim=True)
    return (tokens_BKD.float() * fraction_BK[..., None]).sum(dim=1).to(tokens_BKD.dtype)
