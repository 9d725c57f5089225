import inspect
import subprocess
import sys
from typing import get_args

import pytest

from clipkit.config import RunConfig, Spec, json_schema, split_model
from clipkit.config.lightning_keys import ALLOWED, REFUSED


def specs(of: type[Spec] = Spec) -> list[type[Spec]]:
    return [spec for child in of.__subclasses__() for spec in [child, *specs(child)]]


def test_every_field_is_described():
    assert RunConfig in specs()
    blank = [f"{s.__name__}.{name}" for s in specs() for name, field in s.model_fields.items() if not field.description]
    assert blank == []


def test_every_spec_is_closed_and_frozen():
    for spec in specs():
        assert spec.model_config["extra"] == "forbid", spec
        assert spec.model_config["frozen"], spec


def test_importing_and_loading_pulls_in_no_torch(folder):
    code = (
        "import sys, clipkit.config as c; assert 'omegaconf' not in sys.modules\n"
        "c.load_config('small.yaml', ['seed=1'])\n"
        "heavy = {'torch', 'lightning', 'numpy', 'open_clip', 'webdataset'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_names_of_trainer_arguments_are_lightnings():
    from lightning.pytorch import Trainer

    assert set(inspect.signature(Trainer.__init__).parameters) - {"self"} == ALLOWED | set(REFUSED)
    assert not ALLOWED & set(REFUSED)


def test_the_schema_describes_every_key():
    schema = json_schema()
    assert {"base", *RunConfig.model_fields} == set(schema["properties"])
    blank = [
        f"{name}.{key}"
        for name, part in {"": schema, **schema["$defs"]}.items()
        for key, value in part["properties"].items()
        if not value.get("description") and not schema["$defs"][value["$ref"].split("/")[-1]]["description"]
    ]
    assert blank == []


def test_the_schema_is_one_and_takes_the_short_forms(folder):
    schema = json_schema()
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema).is_valid
    data = {"train": {"cc": {"shards": "x.tar"}}, "batch_size": "32Ki"}
    right = {
        "base": "a",
        "model": "ViT-B-32:openai",
        "data": data,
        "loss": "infonce",
        "trainer": {"length": "3 epochs"},
    }
    assert check(right)
    assert check(right | {"trainer": {"length": "3 epochs", "devices": "auto", "micro_batch": 8}})
    assert not check(right | {"optmi": {}})
    assert not check(right | {"trainer": {"length": 3}})
    assert not check(right | {"data": data | {"batch_size": "many"}})


def test_unions_are_closed_by_kind():
    from clipkit.config import TaskSpec

    kinds = [spec.model_fields["kind"].annotation for spec in get_args(get_args(TaskSpec)[0])]
    assert [name for kind in kinds for name in get_args(kind)] == [
        *("zero_shot", "retrieval", "multi_label", "compositional", "linear_probe", "knn")
    ]


@pytest.mark.parametrize(
    ("text", "name", "tag"),
    [
        ("ViT-B-32", "ViT-B-32", None),
        ("ViT-B-32:laion2b", "ViT-B-32", "laion2b"),
        ("ViT-B-32:/weights/a:b.pt", "ViT-B-32", "/weights/a:b.pt"),
        ("hf-hub:org/repo", "hf-hub:org/repo", None),
        ("local-dir:/x", "local-dir:/x", None),
        ("runs/a:b", "runs/a:b", None),
        ("./model.json", "./model.json", None),
        ("s3://bucket/m.pt", "s3://bucket/m.pt", None),
    ],
)
def test_models_by_name_and_tag(text, name, tag):
    assert split_model(text) == {"name": name, "pretrained": tag}
