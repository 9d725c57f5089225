"""The data of a run for Lightning: one integer of state, the same on every rank."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from clipkit import distributed
from clipkit.data.account import Counts, EpochAccount, count_records, merge, report
from clipkit.data.augment import Augment
from clipkit.data.catalogue import open_catalogue, remote_cache
from clipkit.data.check import PROBED, check_budget, check_fields, check_samples, check_sizes
from clipkit.data.dataset import ShardDataset
from clipkit.data.lookahead import LookAhead, NodeOrder
from clipkit.data.node_cache import NodeCache
from clipkit.data.plan import BLOCK, Ints, Plan
from clipkit.data.sampler import InOrder, PlanSampler
from clipkit.data.source import Source
from clipkit.data.trace import Trace
from clipkit.data.transforms import Preprocess
from clipkit.data.urls import is_remote

VERSION = 1
Batch = dict[str, Any]


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _start_worker(_: int) -> None:
    """One thread each; signals are the parent's to handle, or Ctrl-C would lose the batches on their way."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class ShardDataModule(LightningDataModule):
    """Sources to batches, exactly resumable.

    To Lightning the run is one epoch of ``ceil(length / batch_size)`` full batches; epochs exist only in the plan.

    Args:
        train: Sources to train on.
        val: Sources of the validation loss.
        batch_size: Samples of a batch over all ranks, a multiple of them.
        length: Samples of the whole run, or a function of batch size and samples of an epoch that tells it.
        seed: Of the order and of the augmentation.
        tokenize: Captions to tokens (B, L).
        augment: Transform of training images.
        preprocess: Transform of validation images.
        workers: Loader processes of this rank; 0 loads in the training process.
        cache: Folder for indexes that cannot be kept beside the shards, and for remote shards.
        node_cache: Where remote shards are kept; None makes one in ``cache`` where a source is remote.
        trace: Folder of ``samples.rankR.jsonl``, or None for no trace.
        ranks: This rank and how many there are; None asks the process group.

    Raises:
        ValueError: If the shards, the fields or the sizes cannot make a batch.
    """

    def __init__(
        self,
        *,
        train: Sequence[Source],
        val: Sequence[Source] = (),
        batch_size: int,
        length: int | Callable[[int, int], int],
        seed: int,
        tokenize: Callable[[list[str]], Tensor],
        augment: Augment,
        preprocess: Preprocess,
        workers: int = 0,
        cache: Path | None = None,
        node_cache: NodeCache | None = None,
        trace: Path | None = None,
        ranks: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.train, self.val = tuple(train), tuple(val)
        self.batch_size, self.seed, self.workers, self.cache = batch_size, seed, workers, cache
        self.tokenize, self.augment, self.preprocess = tokenize, augment, preprocess
        self.rank, self.world = ranks or (distributed.rank(), distributed.world_size())
        self.position = 0
        remote = any(is_remote(path) for source in (*self.train, *self.val) for path in source.shards)
        self.node_cache = (node_cache or remote_cache(cache)) if remote else None
        self._look_ahead: LookAhead | None = None
        if ranks is None and self.world > 1:  # one rank builds what indexes are missing, the others then find them
            distributed.on_rank_0(self._build_indexes)
        check_fields(self.train)
        self.catalogues = [open_catalogue(source, cache, self.node_cache) for source in self.train]
        self.plan = Plan([held.counts for held in self.catalogues], [source.weight for source in self.train], seed)
        check_sizes(self.plan, self.train, batch_size, self.world)
        self.length = length if isinstance(length, int) else length(batch_size, self.plan.epoch_samples)
        self.dataset = ShardDataset(
            sources=self.train,
            catalogues=self.catalogues,
            order=self.plan,
            seed=seed,
            tokenize=tokenize,
            transform=augment,
            cache=cache,
            node_cache=self.node_cache,
        )
        check_samples(self.dataset, self.train, self.plan, self._first_positions())
        self.dataset.reader.close()  # workers open their own
        local = distributed.launcher_world()[0] if distributed.launched() else self.world
        first = self.rank // local * local
        self._node = NodeOrder(
            self.plan,
            self.catalogues,
            batch_size=batch_size,
            ranks=range(first, first + local),
            world=self.world,
        )
        if self.node_cache is not None:
            check_budget(self._node, self.node_cache, batches=2 * workers + 2)  # what the workers have in hand
        self._trace = None if trace is None else Trace(trace, self.rank)
        self._bad_before: Counts = {}  # of all ranks, from the checkpoint
        self._bad_here: Counts = {}  # of this rank, since then
        self._val_loader: DataLoader[Batch] | None = None

    def _build_indexes(self) -> None:
        for source in (*self.train, *self.val):
            open_catalogue(source, self.cache, self.node_cache)

    def _first_positions(self) -> list[Ints]:
        """Per source the positions of its first samples: at most PROBED, never more than it plans."""
        found = []
        for number, plan in enumerate(self.plan.sources):
            wanted = min(PROBED, plan.planned)
            span = np.arange(BLOCK * -(-wanted // self.plan.shares[number]))
            found.append(span[self.plan.ordinals(span)[0] == number][:wanted])
        return found

    @property
    def epoch_samples(self) -> int:
        """Samples of one epoch over all sources."""
        return self.plan.epoch_samples

    @property
    def batches(self) -> int:
        """Batches of the whole run."""
        return -(-self.length // self.batch_size)

    def _loader(self, dataset: ShardDataset, sampler: PlanSampler, *, persistent: bool) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            batch_sampler=sampler,  # type: ignore[arg-type]  # torch's types know lists of indices alone
            num_workers=self.workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            worker_init_fn=_start_worker,
            persistent_workers=persistent and self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches from ``position`` to the end of the run; its ``len`` is that of the whole run."""
        sampler = PlanSampler(
            self.plan,
            batch_size=self.batch_size,
            batches=self.batches,
            rank=self.rank,
            world=self.world,
            position=self._begin,
        )
        return self._loader(self.dataset, sampler, persistent=True)

    def _begin(self) -> int:
        """Where iteration starts, once the position is known and the workers are forked: no thread of ours is there before."""
        if self.node_cache is not None and self.rank == self._node.ranks[0]:
            self._end_look_ahead()
            end = self.batches * self.batch_size
            self._look_ahead = LookAhead(self._node, self.node_cache, position=lambda: self.position, end=end)
        return self.position

    def _end_look_ahead(self) -> None:
        if self._look_ahead is not None:
            self._look_ahead.stop()
            self._look_ahead = None

    def teardown(self, stage: str) -> None:
        """End what fetches remote shards ahead."""
        self._end_look_ahead()

    def on_exception(self, exception: BaseException) -> None:
        """The same, where the run failed."""
        self._end_look_ahead()

    def val_batches(self) -> Iterator[Batch]:
        """Full batches of the validation sources, each sample at most once, in the order in which they lie.

        The last samples that fill no batch are left out: a contrastive loss is comparable at one batch size alone.
        """
        if not self.val:
            return
        if self._val_loader is None:
            self._val_loader = self._make_val_loader()
        yield from self._val_loader

    def _make_val_loader(self) -> DataLoader[Batch]:
        check_fields(self.val)
        catalogues = [open_catalogue(source, self.cache, self.node_cache) for source in self.val]
        order = InOrder([held.counts for held in catalogues])
        dataset = ShardDataset(
            sources=self.val,
            catalogues=catalogues,
            order=order,
            seed=self.seed,
            tokenize=self.tokenize,
            transform=self.preprocess,
            cache=self.cache,
            node_cache=self.node_cache,
        )
        starts = np.concatenate([[0], np.cumsum([held.counts.sum() for held in catalogues])])
        firsts = [np.arange(start, stop) for start, stop in pairwise(starts)]
        check_samples(dataset, self.val, order, firsts)
        dataset.reader.close()
        sampler = PlanSampler(
            order,
            batch_size=self.batch_size,
            batches=order.total // self.batch_size,
            rank=self.rank,
            world=self.world,
            position=lambda: 0,
        )
        return self._loader(dataset, sampler, persistent=False)

    def advance(self, batch: Batch) -> None:
        """Take note that a batch was trained on: the position moves behind it.

        Args:
            batch: As the loader gave it.

        Raises:
            ValueError: If it is not the next one.
        """
        if batch["position"] != self.position:
            raise ValueError(f"a batch of position {batch['position']} was trained on, the next one is {self.position}")
        count_records(self._bad_here, batch["bad"])
        if self._trace is not None:
            self._trace.write(batch)
        self.position += self.batch_size

    def _bad(self) -> Counts:
        here = [self._bad_here] if self.world == 1 else distributed.gather_json(self._bad_here)
        return merge([self._bad_before, *here])

    def report(self) -> dict[str, list[EpochAccount]]:
        """The account of every source and epoch up to the position; all ranks call it together."""
        return report(self.plan, [source.name for source in self.train], self.position, self._bad())

    def _constants(self) -> dict[str, Any]:
        """What must not change between the parts of a run."""
        sources: dict[str, Any] = {}
        for source, held in zip(self.train, self.catalogues, strict=True):
            fields = {name: list(places) for name, places in source.fields.items()}
            sources[source.name] = {"weight": source.weight, "fields": fields, "shards": held.fingerprint}
        return {"version": VERSION, "seed": self.seed, "batch_size": self.batch_size, "sources": sources}

    def state_dict(self) -> dict[str, Any]:
        """The state, of JSON types, equal on every rank; all ranks call it together."""
        return {**self._constants(), "position": self.position, "bad": self._bad()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state_dict: What ``state_dict`` gave, perhaps on another number of ranks.

        Raises:
            ValueError: If it is of other data, another seed or another batch size: what differs is named.
        """
        differences = list(_differences("data", state_dict, self._constants()))
        if differences:
            text = "the checkpoint was made with other data, so its position means nothing here: "
            raise ValueError(text + "; ".join(differences) + ". Restore them, or start a new run")
        self.position = int(state_dict["position"])
        self._bad_before = merge([state_dict["bad"]])
        self._bad_here = {}


def _differences(path: str, then: Any, now: Any) -> Iterator[str]:
    if not isinstance(now, dict):
        if then != now:
            yield f"{path} was {then!r} and is {now!r}"
        return
    if not isinstance(then, dict):
        yield f"{path} is missing"
        return
    for name in now:
        yield from _differences(f"{path}.{name}", then.get(name), now[name])
    if path == "data.sources" and list(then) != list(now):  # their order is part of every draw
        yield f"{path} were {list(then)} and are {list(now)}"
