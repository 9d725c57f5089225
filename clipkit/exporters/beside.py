"""What lies beside graph files so that a stranger can feed them: open_clip's configuration and the tokenizer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from PIL import Image
from torch import Tensor

from clipkit.config.json_text import parse_json
from clipkit.encoder import Encoder
from clipkit.exporters.open_clip import save_tokenizer
from clipkit.towers.graph_files import graph_of
from clipkit.towers.model_files import CONFIG_FILE

USAGE = """from open_clip.transform import PreprocessCfg, image_transform_v2
config = json.load(open("FOLDER/open_clip_config.json"))["preprocess_cfg"]
preprocess = image_transform_v2(PreprocessCfg(**config), is_train=False)
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")"""


class Beside(NamedTuple):
    """What a stranger makes of the files.

    Args:
        preprocess: An opened image to normalised floats (3, H, W), by open_clip.
        tokenize: Texts to tokens int64 (N, context length), by open_clip.
        options: ``preprocess_cfg``.
        temperature: Logarithm of the inverse temperature, and the bias.
    """

    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    options: dict[str, Any]
    temperature: tuple[float, float | None]


def refuse(encoder: Encoder, name: str) -> None:
    """What holds no weights, or a tokenizer that cannot be saved.

    Raises:
        ValueError: Saying so.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    refuse_graphs(encoder, name)
    if not isinstance(encoder.tokenize, HFTokenizer | SimpleTokenizer):
        kinds = "open_clip's SimpleTokenizer or HFTokenizer"
        raise ValueError(f"the tokenizer {type(encoder.tokenize).__name__} cannot be saved offline; {kinds} can")


def refuse_graphs(encoder: Encoder, name: str) -> None:
    """What is an exported folder of another program.

    Raises:
        ValueError: Saying so.
    """
    if (graph := graph_of(encoder.image) or graph_of(encoder.text)) is not None:
        raise ValueError(
            f"{encoder.info.model} holds {graph.kind}s and {graph.lacks}; export {name} from the run itself"
        )


def write_beside(encoder: Encoder, folder: Path) -> None:
    """Write ``open_clip_config.json``, its preprocessing complete and its temperature the trained one, and the tokenizer."""
    config = copy.deepcopy(encoder.info.config)
    config["init_logit_scale"] = encoder.log_scale
    if encoder.logit_bias is not None:
        config["init_logit_bias"] = encoder.logit_bias
    save_tokenizer(encoder.tokenize, config, folder)
    stored = {"model_cfg": config, "preprocess_cfg": encoder.info.preprocess}
    (folder / CONFIG_FILE).write_text(json.dumps(stored, indent=2) + "\n")


def read_beside(folder: Path) -> Beside:
    """Through open_clip alone."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    stored = parse_json((folder / CONFIG_FILE).read_text())
    options, config = stored["preprocess_cfg"], stored["model_cfg"]
    preprocess = image_transform_v2(PreprocessCfg(**options), is_train=False)
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    temperature = config["init_logit_scale"], config.get("init_logit_bias")
    return Beside(cast("Callable[[Image.Image], Tensor]", preprocess), tokenize, options, temperature)
