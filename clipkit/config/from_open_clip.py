"""open_clip's command line as a clipkit configuration, and one sentence on everything that has no place in it."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from braceexpand import braceexpand

from clipkit.config.checkpoint import check_copy_url
from clipkit.config.open_clip_command import Command, parse_command
from clipkit.config.open_clip_options import OPTIONS

Tree = dict[str, Any]
_PRECISION = {"fp32": "32-true", "amp_bf16": "bf16-mixed", "amp_bfloat16": "bf16-mixed"}
_TABLES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Migration:
    """A configuration and what could not be put into it.

    Args:
        tree: The configuration.
        notes: A sentence for each option that is not in it, or is there otherwise.
    """

    tree: Tree
    notes: list[str]

    def __str__(self) -> str:
        text = yaml.safe_dump(self.tree, sort_keys=False, allow_unicode=True, width=10**6)
        head = [
            "# From a command line of open_clip_train 3.3.0 (clipkit config from-open-clip).",
            *map("# {}".format, self.notes),
        ]
        return "\n".join(head) + "\n" + text


def from_open_clip(text: str, *, world: int | None = None) -> Migration:
    """Translate a command line of open_clip_train 3.3.0.

    Args:
        text: The command line, launcher and all.
        world: Processes that it starts, where the launcher does not say.

    Raises:
        ValueError: If it cannot be read, or how many processes it starts is not known: open_clip's batch size is a process's.
    """
    command = parse_command(text)
    ranks = world or command.world
    if ranks is None:
        raise ValueError(
            "how many processes does it start? open_clip's --batch-size is for each of them, data.batch_size for all together; "
            "give the whole command with its launcher (torchrun --nproc-per-node N ...), or --world-size N"
        )
    if world and command.world and world != command.world:
        raise ValueError(
            f"--world-size {world}, but the launcher starts {command.world} processes; leave one of them out"
        )
    return _Translation(command, ranks).run()


@dataclass
class _Translation:
    command: Command
    world: int
    notes: list[str] = field(default_factory=list)

    def run(self) -> Migration:
        for name in self.command.options:
            if (reason := OPTIONS[name].why_not) is not None:
                self.notes.append(f"--{name}: {reason}.")
        tree: Tree = {"model": self._model(), "seed": int(self._one("seed", "0")), "data": self._data()}
        tree["loss"] = self._loss()
        tree |= {"optim": self._optim(), "trainer": self._trainer(), "checkpoint": self._checkpoint()}
        tree |= {"evaluate": self._evaluate(), "logging": self._logging()}
        if self._given("logs") or self._given("name"):
            tree["run"] = os.path.join(self._one("logs", "./logs/"), self._one("name", "run"))
        return Migration({key: value for key, value in tree.items() if value not in ({}, None)}, self.notes)

    def _given(self, name: str) -> bool:
        return name in self.command.options

    def _one(self, name: str, default: str = "") -> str:
        values = self.command.options.get(name)
        return values[0] if values else default

    def _note(self, name: str, text: str) -> None:
        if self._given(name):
            self.notes.append(f"--{name}: {text}.")

    def _put(self, part: Tree, key: str, option: str, kind: Callable[[str], Any]) -> None:
        if self._given(option):
            try:
                part[key] = kind(self._one(option))
            except ValueError as error:
                raise ValueError(f"--{option} {self._one(option)}: {error}") from error

    def _model(self) -> Any:
        name, tag = self._one("model", "RN50"), self._one("pretrained")
        more: Tree = {}
        locks: Tree = {}
        for tower, layers in (("image", "lock-image-unlocked-groups"), ("text", "lock-text-unlocked-layers")):
            if self._given(f"lock-{tower}"):
                locks[tower] = {"unlocked": int(self._one(layers, "0"))}
            else:
                self._note(layers, f"it has no effect without --lock-{tower}")
        if locks:
            more["lock"] = locks
        self._put(more, "patch_dropout", "force-patch-dropout", float)
        if "coca" in name.lower():
            self.notes.append(f"--model {name}: models with a caption decoder (CoCa) are not trained.")
        if not more:
            return (
                f"{name}:{tag}" if tag and "/" not in name else name if not tag else {"name": name, "pretrained": tag}
            )
        return {"name": name} | ({"pretrained": tag} if tag else {}) | more

    def _is_table(self, option: str) -> bool:
        kind = self._one("dataset-type", "auto")
        return kind == "csv" or (kind == "auto" and self._one(option).lower().endswith(_TABLES))

    def _data(self) -> Tree:
        if self._one("dataset-type") == "synthetic":
            raise ValueError("--dataset-type synthetic: there is no made-up data; name shards or a table of pairs")
        if not self._given("train-data"):
            raise ValueError("--train-data is missing: a run needs something to train on")
        data: Tree = {"train": self._sources("train-data")}
        if self._given("val-data"):
            data["val"] = self._sources("val-data")
        data["batch_size"] = int(self._one("batch-size", "64")) * self.world * int(self._one("accum-freq", "1"))
        data["workers"] = int(self._one("workers", "4"))
        if self._is_table("train-data"):
            image, caption = self._one("csv-img-key", "filepath"), self._one("csv-caption-key", "title")
            data["pack"] = {"image_column": image, "caption_column": caption}
        if self._given("aug-cfg"):
            data["augment"] = self._augment()
        return data

    def _sources(self, option: str) -> Tree:
        value = self._one(option)
        if self._is_table(option):
            return {_name(value, {}): {"loose": value}}
        parts, factors = value.split("::"), self._one("train-data-upsampling-factors").split("::")
        if option == "val-data" or factors == [""]:  # drawn by size: one source, whose shards are all alike
            return {_name(value, {}): {"shards": parts if len(parts) > 1 else value}}
        if len(factors) != len(parts):
            raise ValueError(f"--train-data-upsampling-factors: {len(factors)} factors for {len(parts)} sources")
        sources: Tree = {}
        for part, factor in zip(parts, factors, strict=True):
            # open_clip draws shards, each as often as its factor says: a source's share goes by how many it has
            sources[_name(part, sources)] = {"shards": part, "weight": float(factor) * len(list(braceexpand(part)))}
        text = "a weight is a source's share of the samples: each factor times the number of shards, which are taken to be of equal size"
        self._note("train-data-upsampling-factors", text)
        return sources

    def _augment(self) -> Tree:
        given: Tree = {}
        for word in self.command.options["aug-cfg"]:
            key, _, value = word.partition("=")
            try:
                given[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                given[key] = value
        timm = bool(given.pop("use_timm", False))
        augment: Tree = {"kind": "timm" if timm else "open_clip"}
        jitter = given.pop("color_jitter", None)
        if jitter is not None:
            levels = [float(level) for level in (jitter if isinstance(jitter, tuple | list) else [jitter] * 3)]
            augment["color_jitter"] = [*levels, 0.0][:4]
        names = {"scale": "scale", "color_jitter_prob": "color_jitter_prob"}
        names["gray_scale_prob"] = "grayscale" if timm else "gray_scale_prob"
        names |= {"ratio": "ratio", "re_prob": "re_prob", "re_count": "re_count"} if timm else {}
        for key, value in given.items():
            if key in names:
                augment[names[key]] = list(value) if isinstance(value, tuple) else value
            else:
                self.notes.append(
                    f"--aug-cfg {key}={value}: open_clip's own transform does not read it without use_timm=True."
                )
        return augment

    def _loss(self) -> Any:
        for name in ("distill-model", "distill-pretrained"):
            self._note(
                name,
                "no teacher runs beside the model: store its embeddings with the samples as .npy, name them in `fields` as "
                "teacher_image and teacher_text, and add a loss of kind `distillation` with the teacher's scale beside `infonce`",
            )
        if not self._given("siglip"):
            return "infonce"
        if self._given("pretrained"):
            # a scale comes with the weights, and open_clip adds a bias of 0 to those without one
            return {"kind": "sigmoid", "bias": 0.0}
        self._note(
            "siglip",
            "the bias starts at -10 as there, the scale at 14.3, not at 10: that stands in a model's JSON configuration "
            "(init_logit_scale: 2.302585)",
        )
        return {"kind": "sigmoid", "bias": -10.0}

    def _optim(self) -> Tree:
        vit = "vit" in self._one("model", "RN50").lower()  # open_clip goes by the name alone
        betas = [float(self._one("beta1", "0.9")), float(self._one("beta2", "0.98" if vit else "0.999"))]
        optim: Tree = {"lr": float(self._one("lr", "5e-4")), "weight_decay": float(self._one("wd", "0.2"))}
        optim |= {"betas": betas, "eps": float(self._one("eps", "1e-6" if vit else "1e-8"))}
        constant = self._given("skip-scheduler") or self._one("lr-scheduler", "cosine") != "cosine"
        optim["warmup"] = "0 steps" if self._given("skip-scheduler") else f"{int(self._one('warmup', '10000'))} steps"
        optim["schedule"] = "constant" if constant else "cosine"
        if self._one("lr-scheduler") == "const-cooldown":
            self._note("lr-scheduler", "const-cooldown is written as constant, without the cooldown")
        if self._one("opt", "adamw").lower() != "adamw":
            self._note("opt", f"{self._one('opt')} is not there; the configuration trains with AdamW")
        self._put(optim, "clip_norm", "grad-clip-norm", float)
        return optim

    def _trainer(self) -> Tree:
        epochs = int(self._one("epochs", "32"))
        trainer: Tree = {"length": f"{epochs * self._samples()} samples" if self._samples() else f"{epochs} epochs"}
        device = self._one("device", "cuda")
        trainer["accelerator"] = "cpu" if device == "cpu" else "gpu"
        if self.command.ranks == self.world:  # on one machine clipkit starts the ranks by itself
            trainer["devices"] = self.world
        asked = self._one("precision", "amp")
        trainer["precision"] = _PRECISION.get(asked, "bf16-mixed")
        if asked not in _PRECISION:
            self.notes.append(
                f"--precision {asked}: written as bf16-mixed; 16-bit floats with a scaled loss, and weights of 16 bits, are not there."
            )
        if int(self._one("accum-freq", "1")) > 1:
            trainer["micro_batch"] = int(self._one("batch-size", "64"))
        elif self._given("grad-checkpointing"):
            trainer["micro_batch"] = "auto"
            self._note("grad-checkpointing", "written as micro_batch: auto, which saves the memory where it is needed")
        if self._given("torchcompile"):
            trainer["compile"] = True
        return trainer

    def _samples(self) -> int:
        """Samples of open_clip's epoch; 0 where the index is to count them."""
        return int(self._one("train-num-samples", "0"))

    def _every(self, epochs: int) -> str:
        return f"{epochs * self._samples()} samples" if self._samples() else f"{epochs} epochs"

    def _checkpoint(self) -> Tree:
        text = (
            "a checkpoint of open_clip holds no position in the data: its weights start a run as `model: NAME:FILE.pt`"
        )
        self._note("resume", "the same command goes on by itself" if self._one("resume") == "latest" else text)
        part: Tree = {}
        if int(self._one("save-frequency", "1")) > 0:
            part["every"] = self._every(int(self._one("save-frequency", "1")))
        if self._given("delete-previous-checkpoint"):
            part["keep_last"] = 1
        if self._given("remote-sync"):
            place = f"{self._one('remote-sync').rstrip('/')}/{self._one('name', 'run')}"
            try:
                part["copy_to"] = check_copy_url(place)
            except ValueError as error:
                self._note("remote-sync", f"not taken over, as it {error}")
        return part

    def _evaluate(self) -> Tree:
        tasks: Tree = {}
        for option, name in (("imagenet-val", "imagenet"), ("imagenet-v2", "imagenet_v2")):
            if self._given(option):
                tasks[name] = {"kind": "zero_shot", "data": self._one(option)}
                self._note(
                    option,
                    "its folders are classes by their names: put the 1,000 names into classnames.txt beside them, in the folders' order",
                )
        part: Tree = {"tasks": tasks} if tasks else {}
        zero_shot, val = int(self._one("zeroshot-frequency", "2")), int(self._one("val-frequency", "1"))
        every = zero_shot if tasks else val
        if (tasks or self._given("val-data")) and every > 0:
            part["every"] = self._every(every)
        if tasks and self._given("val-data") and zero_shot != val:
            self.notes.append(
                f"--val-frequency {val}: there is one interval for all evaluations, that of --zeroshot-frequency ({zero_shot})."
            )
        return part

    def _logging(self) -> Tree:
        part: Tree = {"every": f"{int(self._one('log-every-n-steps', '100'))} steps"}
        to = self._one("report-to")
        if "tensorboard" in to or "all" in to:
            part["tensorboard"] = True
        if "wandb" in to or "all" in to:
            part["wandb"] = {"project": self._one("wandb-project-name", "open-clip")}
        return part


def _name(path: str, taken: Mapping[str, Any]) -> str:
    """A source's name after the folder that its shards lie in, or after its file."""
    *folders, file = re.split(r"[/\\]", path.split("::")[0])
    near = [*folders, file.split(".")[0]] if not file.endswith(".tar") else [file.split("{")[0].split(".")[0], *folders]
    words = [re.sub(r"[^A-Za-z0-9_-]+", "", word) for word in near]
    name = next((word for word in reversed(words) if re.search("[A-Za-z]", word)), "data")
    return name if name not in taken else f"{name}{len(taken) + 1}"
