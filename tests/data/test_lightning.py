"""Through Lightning's own Trainer: stopped anywhere and gone on, the steps see the samples of an uninterrupted run."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clipkit.data.augment import Augment
from clipkit.data.datamodule import ShardDataModule
from clipkit.data.source import Source
from clipkit.data.transforms import Preprocess

from .conftest import tokenize


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["image"].float().mean((2, 3))).mean()

    def configure_optimizers(self):
        # reading this makes Lightning set up the loaders before it would restore their state
        assert self.trainer.estimated_stepping_batches == 30
        return torch.optim.SGD(self.parameters(), 1e-3)


class Watch(Callback):
    def __init__(self, data, stop_at=None, path=None):
        self.data, self.stop_at, self.path, self.seen = data, stop_at, path, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.data.advance(batch)
        self.seen.append((trainer.global_step, batch["position"], batch["key"]))
        if trainer.global_step == self.stop_at:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def fit(shards, workers, checkpoint=None, **watch):
    data = ShardDataModule(
        train=[Source("pairs", shards)],
        batch_size=8,
        length=240,
        seed=0,
        tokenize=tokenize,
        augment=Augment((16, 16)),
        preprocess=Preprocess((16, 16)),
        workers=workers,
    )
    watcher = Watch(data, **watch)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[watcher],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return watcher.seen, data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_stop_and_go_on(make_shards, tmp_path, workers):
    shards = make_shards([30, 41])
    whole, data = fit(shards, workers)
    assert [step for step, _, _ in whole] == list(range(1, 31))
    for stop_at in (1, 11):
        path = str(tmp_path / f"{stop_at}.ckpt")
        first, _ = fit(shards, workers, stop_at=stop_at, path=path)
        second, resumed = fit(shards, 2 - workers, checkpoint=path)
        assert first + second == whole
        assert resumed.state_dict() == data.state_dict()
