"""A masked autoencoder in a training loop of your own: plain PyTorch, no DeepSpeed.

python examples/plain_pytorch.py videos.csv      # or a folder of videos; none: a synthetic set
"""

import sys

import torch

from mats_ds import MaskedAutoencoder, TokenGrid
from mats_ds.data import ClipLoader


def train(manifest: str, *, epochs: int = 20, batch_size: int = 8, device: str = "cpu") -> list[float]:
    """The loss of every epoch."""
    grid = TokenGrid(num_frames=16, height=64, width=64, tubelet=(2, 8, 8))
    model = MaskedAutoencoder.from_name("tiny", grid=grid, keep_ratio=0.3, visible_ratio=0.1).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    losses = []
    with ClipLoader.from_manifest(manifest, batch_size=batch_size, size=64, stride=2, device=device) as loader:
        for epoch in range(epochs):
            total = 0.0
            for batch in loader:
                loss = model(batch.frames_BTHWC)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() / len(loader)
            losses.append(total)
            print(f"epoch {epoch + 1} of {epochs}: loss {total:.3f}", flush=True)
    return losses


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(sys.argv[1])
    else:
        from mats_ds.data.synthetic import write_synthetic_set

        train(str(write_synthetic_set("data/synthetic")))
