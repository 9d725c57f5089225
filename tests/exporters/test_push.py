"""What goes to a hub: a folder whose proof holds, as it was proven; the token is shown nowhere."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from PIL import Image

from clipkit.cli.main import run
from clipkit.encoder import Encoder
from clipkit.exporters.handover import make_ready
from clipkit.exporters.open_clip import OpenClipFormat
from clipkit.exporters.push import Push, check_proof, check_repository, push

from .conftest import TEXTS

TOKEN = "hf_" + "A1b2" * 8


@pytest.fixture(scope="module")
def proven(vit: Encoder, photos: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("push") / "out"
    make_ready(vit).export(OpenClipFormat(), out, images=photos, texts=TEXTS)
    return out


@pytest.fixture
def folder(proven: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    for file in proven.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


def test_what_would_be_uploaded_is_listed(folder: Path) -> None:
    lines = list(Push(folder, "me/model").lines())
    assert lines[0].startswith("to me/model (private where it is made anew), 7 files, ")
    size = (folder / "open_clip_model.safetensors").stat().st_size
    assert f"  {size:>13,}  open_clip_model.safetensors" in lines
    assert next(Push(folder, "me/model", public=True).lines()).startswith("to me/model (public")


def test_only_what_was_proven_is_pushed(folder: Path) -> None:
    check_proof(folder)
    weights = folder / "open_clip_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="open_clip_model.safetensors changed since the proof; export it again"):
        check_proof(folder)
    weights.write_bytes(whole)
    (folder / "more.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="more.bin changed since the proof"):
        push(Push(folder, "me/model"))
    (folder / "more.bin").unlink()
    report = json.loads((folder / "parity.json").read_text())
    (folder / "parity.json").write_text(json.dumps(report | {"held": False}))
    with pytest.raises(ValueError, match=r"parity.json does not say that the proof holds"):
        check_proof(folder)
    (folder / "parity.json").unlink()
    with pytest.raises(ValueError, match=r"has no parity.json that can be read"):
        check_proof(folder)


def test_the_hub_is_asked_for_a_private_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, *a, **k: asked.append((a, k)))

    def upload(self: Any, **how: Any) -> Any:
        asked.append(how)
        return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert push(Push(folder, "me/model")) == "https://hub/commit"
    assert asked[0] == (("me/model",), {"private": True, "exist_ok": True})
    assert (asked[1]["repo_id"], asked[1]["folder_path"]) == ("me/model", folder)


def test_a_hub_that_refuses_is_said_without_the_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Any, *_: Any, **__: Any) -> None:
        raise OSError(f"401 for https://hub/api?token={TOKEN}, Authorization: Bearer {TOKEN}")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    copy = folder.parent / "again"
    assert run(["export", str(folder), "--out", str(copy), "--push", "me/model"]) == 2
    said = capsys.readouterr()
    assert "the hub cannot be written to" in said.err
    assert f"hf upload me/model {copy} --private" in said.err
    assert TOKEN not in said.err + said.out
    assert run(["export", str(folder), "--out", str(copy), "--force", "--push", "me/model", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "nothing was uploaded (--dry-run)" in said.out
    assert TOKEN not in said.err + said.out


@pytest.mark.parametrize("name", ["me", "me/a/b", "/b", "me/", "../x", "me/a b", f"me/{TOKEN}/x", "a--b/c"])
def test_a_name_that_no_repository_has(name: str) -> None:
    with pytest.raises(ValueError, match="write org/repo") as found:
        check_repository(name)
    assert TOKEN not in str(found.value)


def test_a_missing_extra_names_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ValueError, match=r"pip install 'clipkit-train\[hf\]'"):
        check_repository("me/model")
