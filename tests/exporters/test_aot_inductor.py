"""Packages of machine code: what cannot be compiled or run is said; compiling itself takes minutes."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipkit.encoder import Encoder
from clipkit.exporters.aot_inductor import AotInductorFormat
from clipkit.exporters.prove import export_encoder
from clipkit.towers.machine_code import Receiver

from .conftest import TEXTS

FORMAT = AotInductorFormat()


def test_without_a_compiler_it_is_refused(vit: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler: install g\+\+, or export torch_export instead"):
        FORMAT.refuse(vit)


def test_a_package_that_cannot_be_run_is_said(tmp_path: Path) -> None:
    (tmp_path / "visual.pt2").write_bytes(b"no package")
    with pytest.raises(ValueError, match="the package cannot be run"):
        Receiver(tmp_path / "visual.pt2")(torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_machine_code_agrees(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    report = export_encoder(vit, FORMAT, tmp_path / "out", images=photos, texts=TEXTS)
    assert report.held
    assert any("machine code, for torch" in line for line in report.details["said"])
    found = torch._inductor.aoti_load_package(str(tmp_path / "out" / "textual.pt2"))(vit.tokenize(TEXTS[:3]))
    assert torch.allclose(found, vit.encode_text(TEXTS[:3]), atol=1e-5)
