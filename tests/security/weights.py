"""Hostile weights: pickles in every place that holds weights or states, and models that bring code."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from unittest import mock

import lightning
import lightning.pytorch.core.saving as saving
import numpy as np
import torch
import torch.distributed.checkpoint as dcp

import clipkit
from clipkit.checkpoint import INFO, MANIFEST, STATE
from tests.conftest import TINY_MODEL
from tests.security.lab import Exploit, Lab, environment, fires, raises

PREPROCESS = {"size": 16, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bicubic", "resize_mode": "shortest"}
UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""With it torch.load unpickles, unless weights_only is spelled out."""


def evil_file(lab: Lab, name: str = "evil.pt", *, zipped: bool = True, key: str = "state_dict") -> Path:
    """What torch.save writes, with a payload among the weights."""
    path = lab.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: {"logit_scale": torch.zeros(()), "x": lab.payload()}}, path, _use_new_zipfile_serialization=zipped)
    return path


def unsafely(work: object) -> None:
    """With the environment variable that lets torch.load unpickle by default."""
    with environment(**{UNSAFE: "1"}):
        work()


def load_by_default(lab: Lab) -> None:
    """torch.load under that variable."""
    unsafely(lambda: fires(lambda: torch.load(evil_file(lab))))


def each_way(lab: Lab, model: object) -> None:
    """A hostile MODEL through every verb that takes one, with and without the variable."""
    data = lab.shard_set(lab.world.shard)
    for variables in ({}, {UNSAFE: "1"}):
        with environment(**variables):
            raises(ValueError, lambda: clipkit.load(str(model)))
            lab.refused("evaluate", model, "--data", data, "--task", "retrieval")
            lab.refused("export", model, "--out", lab.folder / "out")
            lab.refused("embed", model, lab.world.shard, "--out", lab.folder / "emb")
            lab.refused("fit", lab.world.config, f"model={json.dumps(str(model))}", f"run={lab.folder / 'run'}")


def files_here(lab: Lab) -> None:
    """A file of weights beside its configuration or its run, in both forms, and as the start of a run."""
    (lab.folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_MODEL, "preprocess_cfg": {}}))
    each_way(lab, evil_file(lab))
    old = evil_file(lab, "old.pth", zipped=False)
    scanned_by_nothing = evil_file(lab, "bare.bin", key="x")
    for variables in ({}, {UNSAFE: "1"}):
        with environment(**variables):
            for path in (old, scanned_by_nothing):
                raises(ValueError, lambda path=path: clipkit.load(path))
            start = json.dumps({"name": str(lab.world.model), "pretrained": str(old)})
            lab.refused(
                "fit", lab.world.config, f"model={start}", f"run={lab.folder / 'run'}", words="nothing in it is run"
            )


def confused(lab: Lab) -> Path:
    """A pickle on which the safe reader stumbles in another way than by refusing: a call of an allowed name with too few arguments."""
    path = lab.folder / "folder" / "open_clip_pytorch_model.bin"
    evil = pickle.dumps(lab.payload(), protocol=2)
    wrong = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."
    magic = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    path.write_bytes(b"".join(magic) + wrong + evil)
    return path


def folder_here(lab: Lab) -> None:
    """An exported folder whose weights are a pickle, where open_clip itself would load them."""
    folder = lab.folder / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_MODEL, "preprocess_cfg": {}}))
    for name in ("open_clip_pytorch_model.bin", "open_clip_model.pt", "pytorch_model.bin"):
        path = evil_file(lab, f"folder/{name}")
        for variables in ({}, {UNSAFE: "1"}):
            with environment(**variables):
                fires(lambda: clipkit.load(folder))
        path.unlink()
    evil_file(lab, "folder/open_clip_pytorch_model.bin")
    each_way(lab, folder)
    confused(lab)
    with environment(**{UNSAFE: "1"}):
        raises(ValueError, lambda: clipkit.load(folder))
    evil_file(lab, "saved/pytorch_model.bin")
    (lab.folder / "saved" / "config.json").write_text(json.dumps({"model_type": "clip"}))  # as transformers saved it
    each_way(lab, lab.folder / "saved")


def evil_checkpoint(lab: Lab) -> Path:
    """A run whose checkpoint verifies: whoever wrote its state wrote its manifest too."""
    run = lab.folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(lab.world.run, run)
    shutil.rmtree(run / "checkpoints" / "2")
    step = run / "checkpoints" / "1"
    sign(step, {"optimizer": lab.payload()})
    return step


def sign(step: Path, state: object) -> None:
    """Another state under a manifest that fits it."""
    torch.save(state, step / STATE)
    manifest = json.loads((step / MANIFEST).read_text())
    data = (step / STATE).read_bytes()
    manifest["files"][STATE] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (step / MANIFEST).write_text(json.dumps(manifest))


def resume_here(lab: Lab) -> None:
    """Resuming it, by the folder or by name; and looking for its moving average, without which no state is read at all."""
    for variables in ({}, {UNSAFE: "1"}):
        with environment(**variables):
            step = evil_checkpoint(lab)
            lab.refused("fit", lab.world.config, f"run={step.parents[1]}")
            other = lab.folder / "other"
            shutil.rmtree(other, ignore_errors=True)
            lab.refused("fit", lab.world.config, f"run={other}", "--resume", step)
            scored = ("evaluate", step, "--data", lab.shard_set(lab.world.shard), "--task", "retrieval")
            lab.refused(*scored, words="holds more than tensors and plain values, and nothing in it is run")
            lab.refused("export", step, "--out", lab.folder / "out", words="holds more than tensors and plain values")
            lab.passed(*scored, "--no-average")


def evil_distributed(lab: Lab) -> Path:
    """A folder of torch.distributed.checkpoint whose metadata are a payload."""
    folder = lab.folder / "dcp"
    folder.mkdir(exist_ok=True)
    (folder / ".metadata").write_bytes(pickle.dumps(lab.payload()))
    (folder / "__0_0.distcp").write_bytes(pickle.dumps(lab.payload()))
    return folder


def distributed_here(lab: Lab) -> None:
    """Such a folder is no model and no checkpoint."""
    folder = evil_distributed(lab)
    each_way(lab, folder)
    lab.refused("fit", lab.world.config, f"run={lab.folder / 'r'}", "--resume", folder)
    for name in (INFO, MANIFEST):
        shutil.copy(lab.world.step / name, folder / name)
    lab.refused("fit", lab.world.config, f"run={lab.folder / 'r'}", "--resume", folder)
    raises(ValueError, lambda: clipkit.load(folder))


def evil_module(lab: Lab, name: str = "evil_module") -> Path:
    """A Python module that leaves the marker when it is imported."""
    path = lab.folder / "code" / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f"open({str(lab.marker)!r}, 'w').close()\ndef make(*args, **kwargs):\n    return None\nclass Thing: pass\n"
    )
    return path


class Plain(lightning.LightningModule):
    """A module as its users write it."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()


def lightning_file(lab: Lab) -> Path:
    """A Lightning checkpoint of harmless tensors whose hyper-parameters name code."""
    path = lab.folder / "hyper.ckpt"
    hyper = {"_instantiator": "evil_module.make", "_class_path": "evil_module.Thing", "width": 1}
    torch.save({"state_dict": {}, "hyper_parameters": hyper, "pytorch-lightning_version": "2.6.6", "epoch": 0}, path)
    return path


def with_code(lab: Lab, work: object) -> None:
    """With the evil module where an import would find it."""
    import importlib
    import sys

    path = evil_module(lab)
    sys.modules.pop("evil_module", None)
    importlib.invalidate_caches()
    with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):
        work()
    sys.modules.pop("evil_module", None)


def instantiate(lab: Lab) -> None:
    """Lightning up to 2.6.5, whose list of what it calls was empty and not asked: here the entry is put on it."""
    allowed = saving._ALLOWED_INSTANTIATORS | {"evil_module.make"}
    with (
        mock.patch.object(saving, "_ALLOWED_INSTANTIATORS", allowed),
        mock.patch.object(saving, "_is_imported_subclass", return_value=True),
    ):
        with_code(lab, lambda: fires(lambda: Plain.load_from_checkpoint(lightning_file(lab))))


def lightning_here(lab: Lab) -> None:
    """It names no model, and nothing that it names is imported; neither as a file of weights, nor as a run's state."""

    def work() -> None:
        path = lightning_file(lab)
        each_way(lab, path)
        weights = shutil.copy(path, lab.folder / "hyper.pt")
        start = json.dumps({"name": str(lab.world.model), "pretrained": str(weights)})
        lab.refused("fit", lab.world.config, f"model={start}", f"run={lab.folder / 'run'}")
        step = evil_checkpoint(lab)
        state = torch.load(lab.world.run / "checkpoints" / "1" / STATE, weights_only=True)
        sign(step, state | torch.load(path, weights_only=True))
        lab.passed("fit", lab.world.config, f"run={step.parents[1]}")

    with_code(lab, work)


def code_folder(lab: Lab) -> Path:
    """A folder as transformers saves it, whose configuration maps its classes to a file of code."""
    folder = lab.folder / "hf"
    folder.mkdir(exist_ok=True)
    mark = f"open({str(lab.marker)!r}, 'w').close()\n"
    for kind, base in (
        ("configuration", "PretrainedConfig"),
        ("modeling", "PreTrainedModel"),
        ("tokenization", "PreTrainedTokenizer"),
    ):
        (folder / f"{kind}_x.py").write_text(
            f"{mark}from transformers import {base}\nclass X({base}):\n    model_type = 'x'\n"
        )
    code = {"AutoConfig": "configuration_x.X", "AutoModel": "modeling_x.X"}
    tokenizer = {"AutoTokenizer": ["tokenization_x.X", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": code | tokenizer}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "X", "auto_map": tokenizer}))
    return folder


def trust(lab: Lab) -> None:
    """transformers, told to trust."""
    import transformers

    with environment(HF_MODULES_CACHE=str(lab.folder / "modules")):
        fires(lambda: transformers.AutoConfig.from_pretrained(code_folder(lab), trust_remote_code=True))


def trust_here(lab: Lab) -> None:
    """As the model itself, as text tower, as tokenizer, by an option of the tokenizer, and in an exported folder; nobody is asked either."""
    folder = str(code_folder(lab))
    each_way(lab, folder)
    text = {"context_length": 16, "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler", "width": 32}
    asked = mock.patch("builtins.input", side_effect=lambda *_: (lab.harmed(), "y")[1])
    with asked:
        for more in (
            {"hf_model_name": folder, "hf_tokenizer_name": folder},
            {"hf_tokenizer_name": folder},
            {"hf_model_name": folder, "hf_tokenizer_name": folder, "tokenizer_kwargs": {"trust_remote_code": True}},
        ):
            config = TINY_MODEL | {"text_cfg": (text if "hf_model_name" in more else TINY_MODEL["text_cfg"]) | more}
            path = lab.folder / "code.json"
            path.write_text(json.dumps(config))
            raises(ValueError, lambda path=path: clipkit.load(path))
            lab.refused("fit", lab.world.config, f"model={path}", f"run={lab.folder / 'r'}")
        home = lab.folder / "exported"
        shutil.copytree(folder, home / "text_tower")
        stored = {"model_cfg": TINY_MODEL | {"text_cfg": text | {"hf_model_name": "x"}}, "preprocess_cfg": {}}
        (home / "open_clip_config.json").write_text(json.dumps(stored))
        raises(ValueError, lambda: clipkit.load(home))


def onnx_folder(lab: Lab, location: str) -> Path:
    """ONNX encoders whose weights lie in a file that the graph names."""
    import onnx
    from onnx import TensorProto, helper

    folder = lab.folder / "models" / "onnx"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("visual", "textual"):
        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value=location)
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy")
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    stored = {"model_cfg": TINY_MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(stored))
    del onnx
    return folder


def secret_numbers(lab: Lab) -> Path:
    """A file of somebody's, outside the folder of the model."""
    path = lab.folder / "secret.bin"
    path.write_bytes(bytes(64))
    return path


def external(lab: Lab) -> None:
    """onnx_ir takes a graph that was read without its folder at its word: the numbers of somebody's file are its weights."""
    import onnx
    import onnx_ir

    numbers = np.arange(16, dtype=np.float32)
    secret_numbers(lab).write_bytes(numbers.tobytes())
    path = onnx_folder(lab, str(lab.folder / "secret.bin")) / "visual.onnx"
    read = onnx_ir.from_proto(onnx.load(path, load_external_data=False)).graph.initializers["w"].const_value
    lab.harmed(np.array_equal(read.numpy().ravel(), numbers))


def external_here(lab: Lab) -> None:
    """No path but a file's own name; no link out of the folder."""
    secret = secret_numbers(lab)
    for location in ("../../secret.bin", str(secret), "sub/../../../secret.bin", "./../../secret.bin"):
        folder = onnx_folder(lab, location)
        assert "External data path" in raises(ValueError, lambda folder=folder: clipkit.load(folder)), location
    folder = onnx_folder(lab, "linked.bin")
    (folder / "linked.bin").symlink_to(secret)
    assert "External data path" in raises(ValueError, lambda: clipkit.load(folder))


EXPLOITS = (
    Exploit("pickled weights", load_by_default, files_here),
    Exploit("pickled weights of a folder", load_by_default, folder_here),
    Exploit(
        "pickled state of a checkpoint",
        lambda lab: fires(lambda: torch.load(evil_checkpoint(lab) / STATE, weights_only=False)),
        resume_here,
    ),
    Exploit(
        "torch.distributed.checkpoint",
        lambda lab: fires(lambda: dcp.load({"x": torch.zeros(1)}, checkpoint_id=evil_distributed(lab))),
        distributed_here,
    ),
    Exploit("hyper-parameters that name code", instantiate, lightning_here),
    Exploit("trust_remote_code", trust, trust_here),
    Exploit("ONNX external data", external, external_here),
)
