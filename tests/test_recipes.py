"""The shape of shipped recipes on a tiny model: what they rely on works from the first to the last step."""

import json

import pytest
import yaml

import clipkit
from clipkit.config import load_config, shipped
from tests.conftest import TINY_MODEL


@pytest.fixture
def small(tmp_path, shards, tiny_model):
    """Runs a shipped recipe for three epochs of four batches of squares."""

    def run(name, folder, model=None, **changes):
        overrides = {
            "data.workers": 0,
            "data.batch_size": 16,
            "trainer.precision": "32-true",
            "logging.every": "1 steps",
        }
        overrides |= {"trainer.length": "3 epochs", "checkpoint.every": "3 epochs", "optim.warmup": "1 steps"}
        overrides |= {"model": model or str(tiny_model), "run": str(tmp_path / folder), "trainer.accelerator": "cpu"}
        (source,) = yaml.safe_load(shipped()[name].read_text())["data"]["train"]
        overrides |= {f"data.train.{source}.shards": str(shards / "*.tar")} | changes
        run = clipkit.fit(name, overrides)
        return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]

    return run


def test_clipa_trains_small_images_in_one_stage_and_goes_on_with_whole_ones(small, tmp_path, capsys):
    stage = {"data.stages.small.until": "3 epochs", "data.stages.small.image_size": 8}
    first = small("clipa-pretrain", "first", **stage)
    second = small("clipa-finetune", "second", model=str(tmp_path / "first"))
    assert len(first) == len(second) == 12
    assert second[0]["train/loss"] < first[0]["train/loss"]  # it starts from what the first one learned


def test_slip_trains_both_its_losses(small):
    lines = small("slip", "run", **{"losses.views": {"kind": "slip", "hidden": 32, "out": 8}})
    assert lines[-1]["train/loss/views"] < lines[0]["train/loss/views"]
    assert lines[-1]["train/loss/contrast"] < lines[0]["train/loss/contrast"]


def test_siglip_starts_its_scale_at_ten_and_its_bias_at_minus_ten(small, tmp_path):
    path = tmp_path / "siglip.json"
    text = TINY_MODEL["text_cfg"] | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    theirs = json.loads(shipped()["siglip"].with_name("siglip_model.json").read_text())["model_cfg"]
    starts = {key: theirs[key] for key in ("init_logit_scale", "init_logit_bias")}
    path.write_text(json.dumps(TINY_MODEL | starts | {"custom_text": True, "text_cfg": text}))
    lines = small("siglip", "run", model=str(path))
    assert lines[0]["train/logit_scale"] == pytest.approx(10, rel=1e-2)
    assert clipkit.load(str(tmp_path / "run")).logit_bias == pytest.approx(-10, abs=0.1)
    assert "train/text_length" not in lines[0]  # it pools the last token, padding or not: never cut
    assert load_config("siglip").losses["sigmoid"].bias == -10
