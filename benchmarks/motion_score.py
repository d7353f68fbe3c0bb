"""The motion score's part of a pre-training step, and cheaper ways to compute it: their time, and
how many of the picked tokens they change.

    python benchmarks/motion_score.py FOLDER_OF_VIDEOS ... [--sizes small base] [--most 60]

On this machine's CPU, in float32, clips of 16 x 224 x 224 (1568 tokens, 470 kept). Every way gets
the same patches and the same weights; times are the best of the rounds, in which ways take turns.
A way that changes no token may replace the present one where it is quicker. The synthetic clips are
noise, and a ramp that moves by less than a grey level a frame, where scores are nearly equal.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from einops import rearrange, reduce

from mats_ds import MaskedAutoencoder, TokenGrid, step_flops
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.models.vit import PatchEmbed, gather_tokens, split_patches
from mats_ds.tokens.motion import join_tubelets, score_motion
from mats_ds.tokens.selection import rank_by_motion

GRID = TokenGrid()
NUM_KEPT = 470
ROUNDS = 5
Score = Callable[[PatchEmbed, torch.Tensor], torch.Tensor]


def folded(embed: PatchEmbed) -> torch.Tensor:
    return embed.proj.weight.float() * embed.scale_P


def present(embed: PatchEmbed, patches_BNP: torch.Tensor) -> torch.Tensor:
    """Distances of the embeddings of all tokens."""
    return score_motion(embed(patches_BNP), GRID)


def differences(embed: PatchEmbed, patches_BNP: torch.Tensor) -> torch.Tensor:
    """Lengths of the embedded differences of pixels: one tubelet in eight less to embed."""
    steps_BTLP = rearrange(patches_BNP, "b (t l) p -> b t l p", t=GRID.tau).float()
    change_BTLD = F.linear(steps_BTLP[:, 1:] - steps_BTLP[:, :-1], folded(embed))
    return join_tubelets(torch.linalg.vector_norm(change_BTLD, dim=-1))


def clip_by_clip(embed: PatchEmbed, patches_BNP: torch.Tensor) -> torch.Tensor:
    """As at present, a clip at a time, so that floats stay in the caches."""
    return torch.cat([present(embed, patches_1NP) for patches_1NP in patches_BNP.split(1)])


def tubelet_by_tubelet(embed: PatchEmbed, patches_BNP: torch.Tensor) -> torch.Tensor:
    """As at present, a tubelet of all clips at a time; no more than two tubelets' embeddings are
    there."""
    before_BLD, changes = None, []
    for patches_BLP in rearrange(patches_BNP, "b (t l) p -> t b l p", t=GRID.tau):
        embedding_BLD = embed(patches_BLP)
        if before_BLD is not None:
            changes.append(torch.linalg.vector_norm(embedding_BLD - before_BLD, dim=-1))
        before_BLD = embedding_BLD
    return join_tubelets(torch.stack(changes, dim=1))


def in_bf16(embed: PatchEmbed, patches_BNP: torch.Tensor) -> torch.Tensor:
    """The product in bfloat16, distances in float32."""
    bias = embed.proj.bias + embed.proj.weight @ embed.shift_P
    return score_motion(F.linear(patches_BNP.bfloat16(), folded(embed).bfloat16(), bias.bfloat16()), GRID)


def of_half_size(embed: PatchEmbed, patches_BNP: torch.Tensor) -> torch.Tensor:
    """Embeddings of pictures of half the size (2 x 2 means, weights summed): a quarter of the
    products."""
    p0, p1, p2 = GRID.tubelet
    shape = dict(t=p0, h=p1 // 2, w=p2 // 2, p=2, q=2)
    means = reduce(patches_BNP.float(), "b n (t h p w q c) -> b n (t h w c)", "mean", **shape, c=3)
    weight = reduce(folded(embed), "d (t h p w q c) -> d (t h w c)", "sum", **shape, c=3)
    return score_motion(F.linear(means, weight), GRID)


def of_every_second_frame(embed: PatchEmbed, patches_BNP: torch.Tensor) -> torch.Tensor:
    """The first frame of every tubelet alone: half of the products."""
    half = patches_BNP.shape[-1] // 2
    return score_motion(F.linear(patches_BNP[..., :half].float(), folded(embed)[:, :half]), GRID)


# way -> its products, as a part of the present one's
WAYS: dict[Score, float] = {
    present: 1.0,
    clip_by_clip: 1.0,
    tubelet_by_tubelet: 1.0,
    differences: 1 - 1 / GRID.tau,
    in_bf16: 1.0,
    of_every_second_frame: 0.5,
    of_half_size: 0.25,
}


def read_clips(folders: list[Path], most: int) -> Iterator[torch.Tensor]:
    """One clip of each of up to `most` videos of a folder, [1, T, H, W, 3] uint8."""
    for folder in folders:
        with ClipLoader.from_manifest(folder, batch_size=1, size=(GRID.height, GRID.width), num_workers=1) as loader:
            for batch in islice(loader, min(most, len(loader))):
                if batch.valid_B.all():
                    yield batch.frames_BTHWC


def make_clips(count: int) -> Iterator[torch.Tensor]:
    """Clips of noise, and ramps that move slowly under noise of one grey level."""
    dice = torch.Generator().manual_seed(0)
    shape = (1, GRID.num_frames, GRID.height, GRID.width, 3)
    row = torch.arange(GRID.height)[:, None, None] + torch.arange(GRID.width)[None, :, None]
    time_T = torch.arange(GRID.num_frames)[:, None, None, None]
    for number in range(count):
        noise = torch.randint(0, 256 if number % 2 else 2, shape, generator=dice)
        yield (noise + (0 if number % 2 else 40 + (0.4 * row + 0.3 * time_T) % 160)).to(torch.uint8)


def count_changes(embed: PatchEmbed, clips: Iterator[torch.Tensor]) -> tuple[int, dict[Score, list[int]], int]:
    """Clips, kept tokens that each way changes in each of them, and the clips in which embedding
    the visible tokens alone gives other bits than taking them from the embedding of all."""
    changed: dict[Score, list[int]] = {way: [] for way in WAYS}
    other_bits = 0
    for frames_BTHWC in clips:
        patches_BNP = split_patches(frames_BTHWC, GRID)
        kept = rank_by_motion(present(embed, patches_BNP))[:, :NUM_KEPT]
        for way in WAYS:
            found = rank_by_motion(way(embed, patches_BNP))[0, :NUM_KEPT].tolist()
            changed[way].append(NUM_KEPT - len(set(found) & set(kept[0].tolist())))
        visible = kept[:, : NUM_KEPT // 3].sort().values
        alone = embed(gather_tokens(patches_BNP, visible))
        other_bits += not torch.equal(alone, gather_tokens(embed(patches_BNP), visible))
    return len(changed[present]), changed, other_bits


def time_best(jobs: dict, *, rounds: int = ROUNDS) -> dict:
    """Seconds of each job, the best of the rounds."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            began = time.process_time()
            job()
            best[name] = min(best[name], time.process_time() - began)
    return best


def time_parts(model: MaskedAutoencoder, frames_BTHWC: torch.Tensor) -> dict[str, float]:
    """CPU seconds of a step (forward and backward) and of the parts of its score."""
    seeds = torch.arange(len(frames_BTHWC))
    patches_BNP = split_patches(frames_BTHWC, GRID)
    floats_BNP = patches_BNP.float()
    embedding_BND = model.patch_embed(patches_BNP).detach()
    weight = folded(model.patch_embed).detach()
    jobs = {
        "step": lambda: model(frames_BTHWC, seeds).backward(),
        "score": lambda: present(model.patch_embed, patches_BNP),
        "patches to floats": lambda: patches_BNP.float(),
        "product": lambda: F.linear(floats_BNP, weight),
        "distances": lambda: score_motion(embedding_BND, GRID),
        "ranking": lambda: rank_by_motion(score_motion(embedding_BND[:, :, :1], GRID)),
    }
    with torch.no_grad():
        times = time_best({name: job for name, job in jobs.items() if name != "step"})
    return time_best({"step": jobs["step"]}) | times


def describe_size(name: str, frames_BTHWC: torch.Tensor, folders: list[Path], most: int, num_synthetic: int) -> str:
    """The page's section of a model size."""
    torch.manual_seed(0)
    model = MaskedAutoencoder.from_name(name)
    batch, embed = len(frames_BTHWC), model.patch_embed
    parts = time_parts(model, frames_BTHWC)
    macs = GRID.num_tokens * GRID.patch_values * embed.proj.out_features
    flops = step_flops(name, GRID).training_flops
    inside = ("product", "patches to floats", "distances", "ranking")
    lines = [
        f"## {name}",
        "",
        f"Step (forward and backward): {1e3 * parts['step'] / batch:.0f} ms a clip. "
        f"Score: {1e3 * parts['score'] / batch:.1f} ms, {100 * parts['score'] / parts['step']:.1f}% of it; "
        f"{100 * 2 * macs / flops:.1f}% of its FLOPs. "
        "Of the score: " + ", ".join(f"{part} {100 * parts[part] / parts['score']:.0f}%" for part in inside) + ".",
        "",
    ]
    patches_BNP = split_patches(frames_BTHWC, GRID)
    with torch.no_grad():
        times = time_best({way: lambda way=way: way(embed, patches_BNP) for way in WAYS})
        num_real, real, bits_real = count_changes(embed, read_clips(folders, most))
        num_made, made, bits_made = count_changes(embed, make_clips(num_synthetic))
    lines += [
        f"Tokens changed of {NUM_KEPT}, mean (most):",
        "",
        f"| way | products | time | {num_real} clips of videos | {num_made} synthetic clips |",
        "|---|---|---|---|---|",
    ]
    for way, products in WAYS.items():
        found = (f"{sum(each) / max(1, len(each)):.2f} ({max(each, default=0)})" for each in (real[way], made[way]))
        name_of_way = way.__name__.replace("_", " ")
        lines.append(f"| {name_of_way} | {products:.3g} | {times[way] / times[present]:.2f} | {' | '.join(found)} |")
    lines += [
        "",
        "Embedding the visible tokens alone and taking them from the embedding of all differ in some bit in "
        f"{bits_real} of {num_real} clips of videos and {bits_made} of {num_made} synthetic ones.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["small", "base"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--most", type=int, default=60, help="videos of a folder")
    parser.add_argument("--synthetic", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    frames_BTHWC = torch.cat(list(read_clips(arguments.folders[:1], arguments.batch)))
    for name in arguments.sizes:
        print(describe_size(name, frames_BTHWC, arguments.folders, arguments.most, arguments.synthetic), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
