"""``clipkit.load`` on each format's folder: the embeddings of the encoder it was made from, and what it does not take."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import clipkit
from benchmarks.export_models import build as build_small
from clipkit.cli.main import run
from clipkit.encoder import Encoder
from clipkit.evaluation.fingerprints import encoder_hashes
from clipkit.exporters.aot_inductor import AotInductorFormat
from clipkit.exporters.formats import FORMATS, make_format
from clipkit.exporters.prove import export_encoder
from clipkit.exporters.transformers import crops_elsewhere
from clipkit.loading import load_encoder, load_pair
from clipkit.towers.graph_files import graph_of
from clipkit.towers.machine_code import Receiver

from .conftest import TEXTS, build

FOLDERS = ("immich", "openvino", "transformers", "sentence_transformers")
LIKE_TRANSFORMERS = FOLDERS[2:]
WORDS = ["", *TEXTS, "a  tab\tand “quotes”", "word " * 200]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    native, small = build("vit"), build_small("siglip", tmp_path_factory.mktemp("words"))
    native.log_scale, small.log_scale, small.logit_bias = 3.25, 2.5, -7.5
    return {"vit": native, "siglip": small}


@pytest.fixture(scope="module")
def folders(sources: dict[str, Encoder], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    out = tmp_path_factory.mktemp("folders")
    made = {}
    for name, encoder in sources.items():
        for kind in FOLDERS:
            made[name, kind] = out / f"{name}-{kind}"
            made[name, kind].mkdir()
            make_format(kind).write(encoder, made[name, kind])
    return made


@pytest.fixture(scope="module")
def pictures(photos: list[Image.Image]) -> list[Image.Image]:
    return [*photos, photos[0].convert("L").resize((97, 61)), photos[1].convert("RGBA"), Image.new("L", (37, 20), 90)]


def cosines(found: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Of embeddings from whose average both are taken, as the spec's bound has them."""
    return torch.cosine_similarity(found - want.mean(0), want - want.mean(0))


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_a_folder_is_the_encoder(
    name: str, kind: str, sources: dict[str, Encoder], folders: dict[tuple[str, str], Path], pictures: list[Image.Image]
) -> None:
    want, (found, notes) = sources[name], load_encoder(folders[name, kind])
    side = want.preprocess.size[0]
    crops = name == "vit" and kind != "openvino"
    alike = [x for x in pictures if not (crops and crops_elsewhere(x, side))]
    assert len(alike) > 6
    torch.testing.assert_close(found.encode_image(alike), want.encode_image(alike), atol=2e-3, rtol=0)
    assert cosines(found.encode_image(alike), want.encode_image(alike)).min() >= 0.9999
    torch.testing.assert_close(found.encode_text(WORDS), want.encode_text(WORDS), atol=1e-5, rtol=0)
    pixels, tokens = want.prepare(alike), want.tokenize(WORDS)
    assert (found.image(pixels).pooled - want.image(pixels).pooled).abs().max() <= 1e-5
    assert (found.text(tokens).pooled - want.text(tokens).pooled).abs().max() <= 1e-5
    assert found.texts_cut == 1
    assert (found.log_scale, found.logit_bias) == pytest.approx((want.log_scale, want.logit_bias))
    assert "to train or to export" in notes[0]
    assert found.encode_text([]).shape == (0, found.encode_image(alike).shape[1])


@pytest.mark.parametrize("kind", [*LIKE_TRANSFORMERS, "immich"])
def test_pictures_are_cropped_as_the_receiver_crops_them(
    kind: str, folders: dict[tuple[str, str], Path], pictures: list[Image.Image], vit: Encoder
) -> None:
    """Which is one pixel beside open_clip's crop for some; the figures are to be the receiver's."""
    beside = [x for x in pictures if crops_elsewhere(x, 48)]
    assert beside
    folder = folders["vit", kind]
    receiver = make_format(kind).load(folder, torch.device("cpu"))
    theirs = torch.cat([receiver.raw_image([x]) for x in beside])
    found = clipkit.load(folder).encode_image(beside)
    assert (
        cosines(torch.cat([found, vit.encode_image(pictures)]), torch.cat([theirs, vit.encode_image(pictures)])).min()
        > 0.9999
    )
    assert (found - theirs).abs().max() < 2e-3 < (vit.encode_image(beside) - theirs).abs().max()


def test_a_temperature_that_is_not_there_is_said(folders: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    """As in the trees that immich itself offers."""
    folder = tmp_path / "tree"
    shutil.copytree(folders["vit", "immich"], folder)
    config = json.loads((folder / "config.json").read_text())
    del config["init_logit_scale"]
    (folder / "config.json").write_text(json.dumps(config))
    assert any("holds no temperature: 0.07 is taken" in note for note in load_encoder(folder)[1])
    assert not any("temperature" in note for note in load_encoder(folders["vit", "immich"])[1])


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_files_decide_the_hash(kind: str, folders: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(folders["vit", kind], out)
    own = encoder_hashes(clipkit.load(folders["vit", kind]))
    assert encoder_hashes(clipkit.load(out)) == own
    place = {"immich": "textual/model.onnx", "openvino": "openvino_model_text.bin"}.get(kind)
    if place is None:  # the same weights under another activation
        changed(out / "config.json", lambda stored: stored["text_config"].update(hidden_act="gelu"))
    else:
        flip(out / place)
    assert encoder_hashes(clipkit.load(out))["weights"] != own["weights"]
    other = encoder_hashes(clipkit.load(folders["siglip", kind]))
    assert other["weights"] != own["weights"]


def test_another_tokenizer_is_another_hash(folders: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    for kind, place in (("transformers", "tokenizer.json"), ("immich", "textual/tokenizer.json")):
        out = tmp_path / kind
        shutil.copytree(folders["vit", kind], out)
        (out / place).write_text((out / place).read_text() + "\n")
        own = encoder_hashes(clipkit.load(folders["vit", kind]))
        assert encoder_hashes(clipkit.load(out))["weights"] != own["weights"], kind


def flip(path: Path) -> None:
    """Other weights: bytes in the middle set to nothing."""
    data = bytearray(path.read_bytes())
    at = len(data) // 2 // 4 * 4
    data[at : at + 400] = bytes(400)
    path.write_bytes(bytes(data))


def changed(path: Path, change: Callable[[Any], object]) -> None:
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_cannot_be_done_with_a_folder_is_said(
    kind: str, folders: dict[tuple[str, str], Path], tmp_path: Path, photos: list[Image.Image]
) -> None:
    folder = folders["vit", kind]
    with pytest.raises(ValueError, match="to start from; name the run or its open_clip export"):
        load_pair(str(folder), None)
    encoder = clipkit.load(folder)
    for format in FORMATS:
        with pytest.raises(ValueError, match=f"and no weights.*; export {format} from the run itself"):
            export_encoder(encoder, make_format(format), tmp_path / "out")
    with pytest.raises(ValueError, match="not known where it projects"):
        encoder.encode_image_features(photos)
    assert not any(p.requires_grad for p in encoder.image.train().parameters())


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_command_line_measures_embeds_and_searches(
    kind: str, folders: dict[tuple[str, str], Path], photos: list[Image.Image], tmp_path: Path, capsys: Any
) -> None:
    folder = str(folders["siglip", kind])
    for number, photo in enumerate(photos):
        place = tmp_path / "classes" / ("temple" if number % 2 else "flower")
        place.mkdir(parents=True, exist_ok=True)
        photo.save(place / f"{number}.png")
    data, rows = str(tmp_path / "classes"), str(tmp_path / "rows")
    assert run(["evaluate", folder, "--data", data, "--out", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    want = clipkit.evaluate(clipkit.load(folder), data=data)
    assert found["metrics"]["acc1"] == want["acc1"]
    assert found["model"] == folder
    assert run(["embed", folder, str(tmp_path / "classes" / "temple"), "--out", rows]) == 0
    assert run(["search", rows, "a yellow flower"]) == 0
    assert "a yellow flower" in capsys.readouterr().out
    other = str(folders["siglip", "openvino" if kind != "openvino" else "immich"])
    assert run(["search", rows, "a yellow flower", "--model", other]) == 2


def test_explaining_takes_gradients(folders: dict[tuple[str, str], Path], photos: list[Image.Image]) -> None:
    from clipkit.towers.places import relevance

    direction = torch.ones(1, 32)
    for kind in FOLDERS:
        encoder = clipkit.load(folders["vit", kind])
        pixels = encoder.prepare(photos[:1])[0]
        if kind in LIKE_TRANSFORMERS:
            assert relevance(encoder.image, pixels, direction).maps.abs().sum() > 0
        else:
            with pytest.raises(ValueError, match="without gradients; explain the run itself"):
                relevance(encoder.image, pixels, direction)


def test_transformers_folders_of_others(
    folders: dict[tuple[str, str], Path], vit: Encoder, pictures: list[Image.Image], tmp_path: Path
) -> None:
    """As OpenAI's were saved: numbers for sizes, old names, both configurations, half precision in shards, words apart."""
    out = tmp_path / "out"
    shutil.copytree(folders["vit", "transformers"], out)
    want = clipkit.load(out)

    def old(stored: dict[str, Any]) -> None:
        stored["text_config_dict"], stored["text_config"] = stored["text_config"], {"model_type": "clip_text_model"}
        stored |= {"_name_or_path": "/somewhere/else", "torch_dtype": "float16"}

    def plain(stored: dict[str, Any]) -> None:
        stored |= {"crop_size": 48, "size": 48, "feature_extractor_type": "CLIPFeatureExtractor"}
        for name in (
            "image_processor_type",
            "do_rescale",
            "rescale_factor",
            "image_mean",
            "image_std",
            "do_convert_rgb",
        ):
            del stored[name]

    changed(out / "config.json", old)
    changed(out / "preprocessor_config.json", plain)
    changed(
        out / "tokenizer_config.json", lambda stored: stored.update(name_or_path="x", special_tokens_map_file="./y")
    )
    state = {key: value.half() for key, value in load_file(out / "model.safetensors").items()}
    state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    names = sorted(state)
    (out / "model.safetensors").unlink()
    for number, part in enumerate((names[::2], names[1::2]), 1):
        save_file({key: state[key] for key in part}, out / f"model-0000{number}-of-00002.safetensors")
    found = clipkit.load(out)
    assert found.info.preprocess == want.info.preprocess
    for way in ("encode_image", "encode_text"):
        given = pictures if way == "encode_image" else WORDS
        a, b = getattr(found, way)(given), getattr(want, way)(given)
        assert 0 < (a - b).abs().max() < 2e-2
        assert cosines(a, b).min() > 0.999


def test_the_folder_within_a_folder_of_sentence_transformers(
    folders: dict[tuple[str, str], Path], vit: Encoder, tmp_path: Path
) -> None:
    """As the older ones are laid out."""
    shutil.copytree(folders["vit", "transformers"], tmp_path / "out" / "0_CLIPModel")
    first = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (tmp_path / "out" / "modules.json").write_text(json.dumps([first]))
    found = clipkit.load(tmp_path / "out").encode_text(WORDS)
    torch.testing.assert_close(found, vit.encode_text(WORDS), atol=1e-5, rtol=0)


Change = tuple[str, str, str, Callable[[Any], object], str]  # model, format, file, change, what is said
REFUSED: dict[str, Change] = {
    "code": (
        "vit",
        "transformers",
        "config.json",
        lambda s: s.update(auto_map={"AutoModel": "x.X"}),
        "config.json: auto_map names code",
    ),
    "a tokenizer's code": (
        *("vit", "transformers", "tokenizer_config.json"),
        lambda s: s.update(auto_map={"AutoTokenizer": ["x.X", None]}),
        "tokenizer_config.json: auto_map names code",
    ),
    "a processor's code": (
        *("vit", "sentence_transformers", "processor_config.json"),
        lambda s: s["image_processor"].update(auto_map={"AutoImageProcessor": "x.X"}),
        "processor_config.json: auto_map names code",
    ),
    "another model": (
        "vit",
        "transformers",
        "config.json",
        lambda s: s.update(model_type="bert"),
        "model_type 'bert' .* clip, siglip are",
    ),
    "quantised": (
        *("vit", "transformers", "config.json"),
        lambda s: s.update(quantization_config={"quant_method": "bitsandbytes"}),
        "save the model unquantised",
    ),
    "an activation": (
        *("vit", "transformers", "config.json"),
        lambda s: s["vision_config"].update(hidden_act="os.system"),
        r"vision_config\.hidden_act 'os.system' is not taken; one of gelu",
    ),
    "no number": (
        "vit",
        "transformers",
        "config.json",
        lambda s: s["text_config"].update(vocab_size="9"),
        "vocab_size '9' is not taken",
    ),
    "too many layers": (
        *("vit", "transformers", "config.json"),
        lambda s: s["text_config"].update(num_hidden_layers=10**6),
        "num_hidden_layers 1000000 for .* tensors",
    ),
    "too large": (
        *("vit", "transformers", "config.json"),
        lambda s: s["text_config"].update(vocab_size=10**7),
        r"\[49408, 32\], config.json wants \[10000000, 32\]",
    ),
    "heads": (
        "vit",
        "transformers",
        "config.json",
        lambda s: s["text_config"].update(num_attention_heads=5),
        "transformers makes no CLIPModel",
    ),
    "another size": (
        *("vit", "transformers", "preprocessor_config.json"),
        lambda s: s.update(size={"shortest_edge": 64}),
        "size {'shortest_edge': 64}.*48 x 48 pixels is not taken",
    ),
    "no resize": (
        "vit",
        "transformers",
        "preprocessor_config.json",
        lambda s: s.update(do_resize=False),
        "do_resize False is not taken",
    ),
    "a filter": (
        "vit",
        "transformers",
        "preprocessor_config.json",
        lambda s: s.update(resample=1),
        "resample 1 is not taken; 2 .bilinear",
    ),
    "a mean": (
        "vit",
        "transformers",
        "preprocessor_config.json",
        lambda s: s.update(image_mean=[1]),
        "mean .1. is no number for each",
    ),
    "a processor": (
        *("vit", "transformers", "preprocessor_config.json"),
        lambda s: s.update(image_processor_type="os.system"),
        "image_processor_type 'os.system' is not taken; CLIPImageProcessor",
    ),
    "a tokenizer": (
        *("vit", "transformers", "tokenizer_config.json"),
        lambda s: s.update(tokenizer_class="TransfoXLTokenizer"),
        "tokenizer_class 'TransfoXLTokenizer' is not taken; CLIPTokenizer",
    ),
    "a mask": (
        *("siglip", "transformers", "tokenizer_config.json"),
        lambda s: s.update(model_input_names=["input_ids", "attention_mask"]),
        "SigLIP was trained without",
    ),
    "a module": (
        *("vit", "sentence_transformers", "modules.json"),
        lambda s: s[1].update(type="evil.Dense"),
        r"modules \['Transformer', 'Dense'\] are not taken",
    ),
    "a path out": (
        "vit",
        "sentence_transformers",
        "modules.json",
        lambda s: s[0].update(path="../x"),
        "'../x' leads out of the folder",
    ),
    "no modules": ("vit", "sentence_transformers", "modules.json", lambda s: s.clear(), "is no list of modules"),
    "a prompt": (
        *("vit", "sentence_transformers", "config_sentence_transformers.json"),
        lambda s: s.update(default_prompt_name="query", prompts={"query": "find: "}),
        "default_prompt_name changes embeddings .'find: '.",
    ),
    "short texts of SigLIP": (
        *("siglip", "sentence_transformers", "sentence_bert_config.json"),
        lambda s: s.pop("processing_kwargs"),
        "SigLIP pools at the end of the whole context",
    ),
    "another method": (
        *("vit", "sentence_transformers", "sentence_bert_config.json"),
        lambda s: s["modality_config"]["text"].update(method="__call__"),
        "get_text_features is",
    ),
    "immich's mean": (
        "vit",
        "immich",
        "visual/preprocess_cfg.json",
        lambda s: s.pop("mean"),
        "preprocess_cfg.json lacks mean",
    ),
    "immich's size": (
        "vit",
        "immich",
        "visual/preprocess_cfg.json",
        lambda s: s.update(size="x"),
        "size 'x' is no height and width",
    ),
    "immich's padding": (
        *("vit", "immich", "textual/tokenizer_config.json"),
        lambda s: s.update(pad_token="nowhere"),
        "pad_token 'nowhere' is no token of",
    ),
    "immich's context": (
        "vit",
        "immich",
        "config.json",
        lambda s: s["text_cfg"].update(context_length="9"),
        "context_length '9' is no number",
    ),
    "no mean": (
        "vit",
        "openvino",
        "open_clip_config.json",
        lambda s: s["preprocess_cfg"].pop("mean"),
        "preprocess_cfg lacks mean",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_stranger_may_write_is_refused_with_its_place(
    name: str, folders: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    model, kind, file, change, said = REFUSED[name]
    out = tmp_path / "out"
    shutil.copytree(folders[model, kind], out)
    changed(out / file, change)
    with pytest.raises(ValueError, match=said) as found:
        clipkit.load(out)
    assert str(out) in str(found.value)


@pytest.mark.parametrize("kind", FOLDERS)
def test_no_file_of_a_folder_may_be_damaged_missing_or_elsewhere(
    kind: str, folders: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    whole = folders["vit", kind]
    unread = {"merges.txt", "special_tokens_map.json", "1_Normalize/config.json"}
    files = {str(x.relative_to(whole)) for x in whole.rglob("*") if x.is_file()} - unread
    for number, name in enumerate(sorted(files)):
        for way in ("cut", "gone", "linked"):
            out = tmp_path / f"{number}-{way}"
            shutil.copytree(whole, out)
            if way == "cut":
                (out / name).write_bytes((whole / name).read_bytes()[: (whole / name).stat().st_size // 2])
            else:
                (out / name).unlink()
            if way == "linked":
                (out / name).symlink_to(whole / name)
            optional = {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"}
            if (way == "gone" and name in optional) or (way == "linked" and name == "open_clip_config.json"):
                continue
            with pytest.raises(ValueError, match=re.escape(str(out))) as found:
                clipkit.load(out)
            if way == "linked":
                assert "lies outside of its folder" in str(found.value), name


def test_the_hubs_cache_may_hold_its_files_as_links(folders: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(folders["vit", "transformers"].iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert clipkit.load(snapshot).encode_text(["a"]).shape == (1, 32)


def test_pickled_weights_are_named_and_not_read(folders: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(folders["vit", "transformers"], out)
    (out / "model.safetensors").rename(out / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, pickles, which are not read; write it with"):
        clipkit.load(out)


def test_a_missing_package_is_named_with_its_install_line(
    folders: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    for kind, package, extra in (
        ("openvino", "openvino", "openvino"),
        ("transformers", "transformers", "hf"),
        ("immich", "tokenizers", "hf"),
    ):
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, p=package, f=found: None if name == p else f(name)
        )
        with pytest.raises(ValueError, match=rf"needs {package}: pip install 'clipkit-train\[{extra}\]'"):
            clipkit.load(folders["vit", kind])
        monkeypatch.undo()


class Echo(Receiver):
    """In place of machine code, which takes a compiler and half a minute: the same process, another program."""

    def __init__(self, path: Path) -> None:
        import clipkit.towers.machine_code as here

        program, here._RECEIVER = (
            here._RECEIVER,
            here._RECEIVER.replace(
                "torch._inductor.aoti_load_package(sys.argv[1])", "lambda x: x.flatten(1)[:, :32].float() + 1"
            ),
        )
        super().__init__(path)
        here._RECEIVER = program


def packages(vit: Encoder, folder: Path) -> Path:
    """A folder that looks like AOTInductor's, without machine code."""
    import zipfile

    from clipkit.exporters.beside import write_beside

    folder.mkdir()
    write_beside(vit, folder)
    for name in ("visual", "textual"):
        with zipfile.ZipFile(folder / f"{name}.pt2", "w") as archive:
            archive.writestr(f"{name}/data/aotinductor/model/x.wrapper.so", b"no machine code")
    return folder


def test_machine_code_is_run_with_consent_alone(
    vit: Encoder, photos: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packages(vit, tmp_path / "out")
    started: list[Path] = []
    monkeypatch.setattr("clipkit.towers.machine_code.Receiver", lambda path: started.append(path) or Echo(path))
    with pytest.raises(
        ValueError, match="machine code that runs as it stands, .*; if you trust them, .*trust_code=True"
    ):
        clipkit.load(folder)
    with pytest.raises(ValueError, match="machine code .* and no weights to start from"):
        load_pair(str(folder), None)
    assert run(["evaluate", str(folder), "--data", "embedded:style_transfer"]) == 2
    assert not started
    encoder = clipkit.load(folder, trust_code=True)
    assert [path.name for path in started] == ["visual.pt2", "textual.pt2"]
    want = torch.nn.functional.normalize(vit.image.normalise(vit.prepare(photos)).flatten(1)[:, :32] + 1)
    torch.testing.assert_close(encoder.encode_image(photos), want, atol=1e-6, rtol=0)
    model: Any = graph_of(encoder.image)
    process = model._run[0]._process
    assert process.poll() is None
    del encoder, model
    assert process.wait(10) != 0  # its process ends with it


def test_machine_code_that_cannot_be_run_is_said(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    encoder = clipkit.load(packages(vit, tmp_path / "out"), trust_code=True)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"visual\.pt2: the package cannot be run .* compile it here"):
            encoder.encode_image(photos)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_machine_code_agrees(vit: Encoder, pictures: list[Image.Image], tmp_path: Path) -> None:
    AotInductorFormat().write(vit, tmp_path)
    encoder = clipkit.load(tmp_path, trust_code=True)
    torch.testing.assert_close(encoder.encode_image(pictures), vit.encode_image(pictures), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_text(WORDS), vit.encode_text(WORDS), atol=1e-5, rtol=0)
    assert clipkit.evaluate(encoder, data="embedded:style_transfer")["acc1"] == pytest.approx(
        clipkit.evaluate(build("vit"), data="embedded:style_transfer")["acc1"], abs=1e-3
    )
