"""A masked autoencoder in Lightning: its loop, devices and loggers, with the clips of `ClipLoader`.

python examples/lightning_module.py videos.csv   # or a folder of videos; none: a synthetic set
"""

import sys

import lightning
import torch

from mats_ds import MaskedAutoencoder, TokenGrid
from mats_ds.data import ClipLoader


class PreTraining(lightning.LightningModule):
    """Model, clips and optimizer; each rank reads its own part of the clips, on its own device."""

    def __init__(self, manifest: str, *, batch_size: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        grid = TokenGrid(num_frames=16, height=64, width=64, tubelet=(2, 8, 8))
        self.model = MaskedAutoencoder.from_name("tiny", grid=grid, keep_ratio=0.3, visible_ratio=0.1)

    def train_dataloader(self):
        options = dict(batch_size=self.hparams.batch_size, size=64, stride=2, device=self.device)
        return ClipLoader.from_manifest(self.hparams.manifest, **options)

    def on_train_epoch_start(self):
        self.trainer.train_dataloader.set_epoch(self.current_epoch)  # a resumed training goes on with other clips

    def training_step(self, batch, batch_index):
        loss = self.model(batch.frames_BTHWC)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, prog_bar=True, batch_size=len(batch.label_B))
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, betas=(0.9, 0.95))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        manifest = sys.argv[1]
    else:
        from mats_ds.data.synthetic import write_synthetic_set

        manifest = str(write_synthetic_set("data/synthetic"))
    lightning.Trainer(max_epochs=20, log_every_n_steps=1).fit(PreTraining(manifest))
