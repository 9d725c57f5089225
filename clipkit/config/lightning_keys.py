"""Which arguments of Lightning's Trainer a configuration may set, and why it may not set the others.

The names are written out, so that reading a configuration does not import Lightning; a test holds them against the real
signature.
"""

from __future__ import annotations

ALLOWED = frozenset(
    {
        "benchmark",
        "detect_anomaly",
        "enable_autolog_hparams",
        "enable_model_summary",
        "enable_progress_bar",
        "inference_mode",
        "profiler",
        "sync_batchnorm",
    }
)

_LENGTH = "the run's length is `trainer.length`: the schedule and the position in the data follow from it"
_WHEN = "`evaluate.every` says when the evaluation runs; Lightning's own clock counts batches of one rank"
_UNUSED = "it has no effect here: a run never calls it"

REFUSED = {
    "accelerator": "write `trainer.accelerator`",
    "accumulate_grad_batches": "it sums the losses of small batches, whose negatives never meet, so the gradient would "
    "not be the global batch's; `trainer.micro_batch` saves the same memory exactly",
    "barebones": "it turns off logging and checkpoints, so the run could not be resumed",
    "callbacks": "objects cannot come from a file",
    "check_val_every_n_epoch": _WHEN,
    "default_root_dir": "the run folder is `run`",
    "deterministic": "write `trainer.deterministic`",
    "devices": "write `trainer.devices`",
    "enable_checkpointing": "clipkit writes its own checkpoints: see `checkpoint`",
    "fast_dev_run": "it turns off logging and checkpoints; for a short try write `trainer.length: 10 steps`",
    "gradient_clip_algorithm": "clipping is by norm: write `optim.clip_norm`",
    "gradient_clip_val": "write `optim.clip_norm`",
    "limit_predict_batches": _UNUSED,
    "limit_test_batches": _UNUSED,
    "limit_train_batches": _LENGTH,
    "limit_val_batches": "the validation loss is over all of `data.val`; give it fewer shards instead",
    "log_every_n_steps": "write `logging.every`",
    "logger": "write `logging`",
    "max_epochs": _LENGTH,
    "max_steps": _LENGTH,
    "max_time": _LENGTH,
    "min_epochs": _LENGTH,
    "min_steps": _LENGTH,
    "model_registry": "checkpoints are clipkit's own, so nothing would reach the registry",
    "num_nodes": "write `trainer.nodes`",
    "num_sanity_val_steps": "evaluation is clipkit's own and reads no part of a data set",
    "overfit_batches": "it replaces the sampler, so samples would be neither planned nor counted",
    "plugins": "objects cannot come from a file, and checkpoints and precision are clipkit's to keep exact",
    "precision": "write `trainer.precision`",
    "reload_dataloaders_every_n_epochs": "to Lightning a run is one epoch; the data plan counts epochs",
    "strategy": "trainer.strategy chooses among those that the exact gradient is proven for",
    "use_distributed_sampler": "the data plan deals samples to the ranks; a second sampler would deal them again",
    "val_check_interval": _WHEN,
}
