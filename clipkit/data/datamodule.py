"""The data of a run for Lightning: one integer of state, the same on every rank."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from clipkit import distributed
from clipkit.data.account import Counts, EpochAccount, add, count_records, merge, report
from clipkit.data.catalogue import Catalogue, open_catalogue, remote_cache
from clipkit.data.check import PROBED, check_budget, check_fields, check_samples, check_sizes
from clipkit.data.dataset import ShardDataset
from clipkit.data.images import Decode
from clipkit.data.lookahead import LookAhead, NodeOrder
from clipkit.data.node_cache import NodeCache
from clipkit.data.plan import BLOCK, Ints, Plan
from clipkit.data.sampler import InOrder, PlanSampler
from clipkit.data.selection import rule
from clipkit.data.source import Source
from clipkit.data.stages import IMAGE, Ends, Schedule, Stage, Transform
from clipkit.data.trace import Trace
from clipkit.data.transforms import Preprocess
from clipkit.data.urls import is_remote
from clipkit.data.worker import as_it_is, end_workers, start_worker

VERSION = 1
Batch = dict[str, Any]


class ShardDataModule(LightningDataModule):
    """Sources to batches, exactly resumable.

    To Lightning the run is one epoch of ``ceil(length / batch_size)`` full batches; epochs exist only in the plan. Of several
    ranks each opens its indexes here; ``prepare_indexes``, called before they meet, makes missing ones once for all.

    Args:
        train: Sources to train on.
        val: Sources of the validation loss.
        batch_size: Samples of a batch over all ranks, a multiple of them.
        length: Samples of the whole run, or a function of batch size and samples of an epoch that tells it.
        seed: Of the order and of the augmentation.
        tokenize: Captions to tokens (B, L).
        augment: Transform of training images.
        preprocess: Transform of validation images.
        views: Further transforms of each image, by the field that they make (``image_view1``).
        decode: How training images become pixels; validation takes its colour rules alone.
        stages: What stands in for the four above at first, each with where it ends.
        workers: Loader processes of this rank; 0 loads in the training process.
        start_method: How they start: ``fork``, ``forkserver``, ``spawn``, or None for Python's own choice.
        cache: Folder for indexes that cannot be kept beside the shards, and for remote shards.
        node_cache: Where remote shards are kept; None makes one in ``cache`` where a source is remote.
        trace: Folder of ``samples.rankR.jsonl``, or None for no trace.
        ranks: This rank and how many there are; None asks the process group.
        allow_mismatch: Whether a state of other data starts this plan at its position 0, where it would be refused.

    Raises:
        ValueError: If the shards, the fields or the sizes cannot make a batch.
    """

    dataset_class = ShardDataset
    resumed = "data position restored exactly"
    """What is said of a resumed run."""

    def __init__(
        self,
        *,
        train: Sequence[Source],
        val: Sequence[Source] = (),
        batch_size: int,
        length: int | Callable[[int, int | None], int],
        seed: int,
        tokenize: Callable[[list[str]], Tensor],
        augment: Transform,
        preprocess: Preprocess,
        views: Mapping[str, Transform] | None = None,
        decode: Decode | None = None,
        stages: Sequence[tuple[Ends, Stage]] = (),
        workers: int = 0,
        start_method: str | None = None,
        cache: Path | None = None,
        node_cache: NodeCache | None = None,
        trace: Path | None = None,
        ranks: tuple[int, int] | None = None,
        allow_mismatch: bool = False,
    ) -> None:
        super().__init__()
        self.train, self.val = tuple(train), tuple(val)
        self.batch_size, self.seed, self.workers, self.cache = batch_size, seed, workers, cache
        self.start_method = start_method
        last = Stage({IMAGE: augment, **(views or {})}, tokenize, decode or Decode())
        self.stages = (*(stage for _, stage in stages), last)
        # views are part of some losses, so validation has them too, drawn by its positions and the same each time
        self.val_stage = Stage({**last.images, IMAGE: preprocess}, tokenize, Decode(policy=last.decode.policy))
        self.rank, self.world = ranks or (distributed.rank(), distributed.world_size())
        self.allow_mismatch, self.position = allow_mismatch, 0
        self.earlier: list[dict[str, Any]] = []  # plans that were left: their steps, samples and bad samples
        self.node_cache = self._cache_of_remote(node_cache)
        self._look_ahead: LookAhead | None = None
        self._loaders: weakref.WeakSet[DataLoader[Batch]] = weakref.WeakSet()  # whom nobody else holds, ends at once
        check_fields(self.train)
        self.catalogues, self.plan = self._open_train()
        self._rules = [rule(source) for source in self.train]  # of the lists of keys as they were read
        check_sizes(self.plan, self.train, batch_size, self.world)
        self.length = length if isinstance(length, int) else length(batch_size, self.plan.epoch_samples)
        self.stage_at = self._schedule([end for end, _ in stages])
        self.dataset = self.dataset_class(
            sources=self.train,
            catalogues=self.catalogues,
            order=self.plan,
            seed=seed,
            stages=self.stages,
            cache=cache,
            node_cache=self.node_cache,
        )
        self._check_train()
        self.dataset.reader.close()  # workers open their own
        self._node = self._node_order()
        if self.node_cache is not None:
            check_budget(self._node, self.node_cache, batches=2 * workers + 2)  # what the workers have in hand
        self._trace = None if trace is None else Trace(trace, self.rank)
        self._bad_before, self._noted_before = dict[str, Any](), dict[str, Any]()  # of all ranks, from the checkpoint
        self._bad_here, self._noted_here = dict[str, Any](), dict[str, Any]()  # of this rank, since then
        self._val_loader: DataLoader[Batch] | None = None

    def _cache_of_remote(self, given: NodeCache | None) -> NodeCache | None:
        """Where remote shards are kept, if there are any."""
        remote = any(is_remote(path) for source in (*self.train, *self.val) for path in source.shards)
        return (given or remote_cache(self.cache)) if remote else None

    def _schedule(self, ends: Sequence[Ends]) -> Schedule:
        """Which stage a batch is in."""
        found = [end if isinstance(end, int) else end(self.batch_size, self.plan.epoch_samples) for end in ends]
        names = [stage.name for stage in self.stages[:-1]]
        return Schedule(list(zip(names, found, strict=True)), batch_size=self.batch_size, length=self.length)

    def _node_order(self) -> NodeOrder:
        """What the ranks of this machine read, in order."""
        local = distributed.launcher_world()[0] if distributed.launched() else self.world
        first = self.rank // local * local
        ranks = range(first, first + local)
        return NodeOrder(self.plan, self.catalogues, batch_size=self.batch_size, ranks=ranks, world=self.world)

    def _open_train(self) -> tuple[list[Catalogue], Plan]:
        catalogues = [open_catalogue(source, self.cache, self.node_cache) for source in self.train]
        weights = [source.weight for source in self.train]
        return catalogues, Plan([held.planned for held in catalogues], weights, self.seed)

    def _check_train(self) -> None:
        check_samples(self.dataset, self.train, self.plan, self._first_positions())

    def _begin(self) -> None:
        """Called where reading begins at the position."""

    def _first_positions(self) -> list[Ints]:
        """Per source the positions of its first samples: at most PROBED, never more than it plans."""
        found = []
        for number, plan in enumerate(self.plan.sources):
            wanted = min(PROBED, plan.planned)
            span = np.arange(BLOCK * -(-wanted // self.plan.shares[number]))
            found.append(span[self.plan.ordinals(span)[0] == number][:wanted])
        return found

    @property
    def epoch_samples(self) -> int | None:
        """Samples of one epoch over all sources; None where they are streamed and nobody knows."""
        return self.plan.epoch_samples

    @property
    def batches(self) -> int:
        """Batches of the whole run."""
        return -(-self.length // self.batch_size)

    @property
    def earlier_steps(self) -> int:
        """Steps of the run that were trained on other plans, before position 0 of this one."""
        return sum(int(plan["steps"]) for plan in self.earlier)

    def _loader(self, dataset: ShardDataset, sampler: PlanSampler, *, persistent: bool) -> DataLoader[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            dataset,
            batch_sampler=sampler,  # type: ignore[arg-type]  # torch's types know lists of indices alone
            num_workers=self.workers,
            collate_fn=as_it_is,  # type: ignore[arg-type]
            worker_init_fn=start_worker,
            persistent_workers=persistent and self.workers > 0,
            multiprocessing_context=self.start_method if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        self._loaders.add(loader)
        return loader

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches from ``position`` to the end of the run; its ``len`` is that of the whole run."""
        self._begin()
        sampler = PlanSampler(
            self.plan,
            batch_size=self.batch_size,
            batches=self.batches,
            rank=self.rank,
            world=self.world,
            position=self._start,
            earlier=lambda: self.earlier_steps,
            stage=self.stage_at,
        )
        return self._loader(self.dataset, sampler, persistent=True)

    def _start(self) -> int:
        """Where iteration starts, once the position is known and the workers are forked: no thread of ours is there before."""
        if self.node_cache is not None and self.rank == self._node.ranks[0]:
            self._end_look_ahead()
            end = (self.batches - self.earlier_steps) * self.batch_size
            self._look_ahead = LookAhead(self._node, self.node_cache, position=lambda: self.position, end=end)
        return self.position

    def _end_look_ahead(self) -> None:
        if self._look_ahead is not None:
            self._look_ahead.stop()
            self._look_ahead = None

    def teardown(self, stage: str) -> None:
        """End what fetches remote shards ahead, and the loader's processes."""
        self._end_look_ahead()
        end_workers(list(self._loaders))

    def on_exception(self, exception: BaseException) -> None:
        """The same, where the run failed."""
        self.teardown("fit")

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
        order = InOrder([held.planned for held in catalogues])
        dataset = ShardDataset(
            sources=self.val,
            catalogues=catalogues,
            order=order,
            seed=self.seed,
            stages=[self.val_stage],
            cache=self.cache,
            node_cache=self.node_cache,
        )
        starts = np.concatenate([[0], np.cumsum([held.planned.sum() for held in catalogues])])
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
        for source, epoch, cause in batch["noted"]:
            add(self._noted_here, source, str(epoch), cause)
        if self._trace is not None:
            self._trace.write(batch)
        self.position += self.batch_size

    def _bad(self) -> Counts:
        return self._of_all_ranks(self._bad_before, self._bad_here)

    def _noted(self) -> Counts:
        return self._of_all_ranks(self._noted_before, self._noted_here)

    def _of_all_ranks(self, before: Counts, here: Counts) -> Counts:
        return merge([before, *([here] if self.world == 1 else distributed.gather_json(here))])

    def report(self) -> dict[str, list[EpochAccount]]:
        """The account of every source and epoch of this plan up to the position; all ranks call it together."""
        names = [source.name for source in self.train]
        return report(self.plan, names, self.catalogues, self.position, self._bad(), self._noted())

    def _constants(self) -> dict[str, Any]:
        """What must not change between the parts of a run."""
        sources: dict[str, Any] = {}
        for source, held, chosen_by in zip(self.train, self.catalogues, self._rules, strict=True):
            fields = {name: list(places) for name, places in source.fields.items()}
            sources[source.name] = {
                "weight": source.weight,
                "fields": fields,
                "captions": source.captions,
                "shards": held.fingerprint,
                "selection": None if held.chosen is None else {"rule": chosen_by, "samples": held.chosen.fingerprint},
            }
        return {"version": VERSION, "seed": self.seed, "batch_size": self.batch_size, "sources": sources}

    def state_dict(self) -> dict[str, Any]:
        """The state, of JSON types, equal on every rank; all ranks call it together."""
        counts = {"bad": self._bad(), "noted": self._noted()}
        return {**self._constants(), "position": self.position, **counts, "earlier": self.earlier}

    def differences(self, state_dict: dict[str, Any]) -> list[str]:
        """What a state's data have other than these: a line a field, none if its position means the same here."""
        return list(_differences("data", state_dict, self._constants()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; one of other data, where that is allowed, counts its steps and starts this plan at position 0.

        Args:
            state_dict: What ``state_dict`` gave, perhaps on another number of ranks.

        Raises:
            ValueError: If it is of other data, another seed or another batch size, and that is not allowed: what differs is named.
        """
        differences = self.differences(state_dict)
        if differences and not self.allow_mismatch:
            text = "the checkpoint was made with other data, so its position means nothing here: "
            cure = "Restore them, start a new run, or go on with its weights at the beginning of these data: --allow-mismatch"
            raise ValueError(f"{text}{'; '.join(differences)}. {cure}")
        position, self.earlier = int(state_dict["position"]), list(state_dict.get("earlier", []))
        if differences:
            steps = position // int(state_dict["batch_size"])
            self.earlier.append({"steps": steps, "samples": position, "bad": state_dict["bad"]})
        self.position = 0 if differences else position
        self._bad_before = {} if differences else merge([state_dict["bad"]])
        self._noted_before = {} if differences else merge([state_dict.get("noted", {})])
        self._bad_here, self._noted_here = {}, {}
        self._begin()
        if self._trace is not None:
            self._trace.begin_plan(self.earlier_steps)


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
