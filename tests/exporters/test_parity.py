"""The comparison itself: what it measures, and what it refuses to vouch for."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from clipkit.cli.exits import exit_code
from clipkit.exporters.folder import new_folder
from clipkit.exporters.parity import Check, ParityError, ParityReport, compare
from clipkit.exporters.probes import HARD_TEXTS, Probes

NAMES = [f"probe {number}" for number in range(9)]


@pytest.fixture
def embeddings() -> torch.Tensor:
    torch.manual_seed(0)
    return normalize(torch.randn(9, 16), dim=1)


def test_the_worst_input_is_named(embeddings: torch.Tensor) -> None:
    other = embeddings.clone()
    other[4, 3] += 2e-5
    check = compare("x", embeddings, other, NAMES, most_difference=1e-5)
    assert (check.held, check.worst) == (False, "probe 4")
    assert check.largest_difference == pytest.approx(2e-5, rel=1e-2)
    assert check.relative_difference == pytest.approx(2e-5 / float(torch.pdist(embeddings).median()), rel=1e-2)
    assert compare("x", embeddings, other, NAMES, most_difference=3e-5).held


def test_cosines_are_centred() -> None:
    """Embeddings that all point one way: raw cosines stay above 0.9999 though two inputs are exchanged."""
    torch.manual_seed(0)
    narrow = normalize(torch.cat([torch.full((9, 1), 1.0), 0.005 * torch.randn(9, 15)], 1), dim=1)
    exchanged = narrow[[1, 0, *range(2, 9)]]
    assert float((narrow * exchanged).sum(1).min()) > 0.999
    check = compare("x", narrow, exchanged, NAMES, least_cosine=0.9999)
    assert not check.held
    assert check.smallest_cosine < 0.5
    assert check.worst in ("probe 0", "probe 1")


def test_equal_probes_prove_nothing(embeddings: torch.Tensor) -> None:
    same = embeddings[:1].repeat(9, 1)
    check = compare("x", same, same, NAMES, most_difference=1e-5)
    assert not check.held
    assert check.reason.startswith("not discriminating: the probes lie 0.0e+00 apart")


def test_nan_never_holds(embeddings: torch.Tensor, tmp_path: Path) -> None:
    broken = embeddings.clone()
    broken[2] = torch.nan
    for bound in ({"most_difference": 1e-5}, {"least_cosine": 0.9999}):
        check = compare("x", embeddings, broken, NAMES, **bound)
        assert (check.held, check.worst) == (False, "probe 2")
        assert not compare("x", broken, broken, NAMES, **bound).held
    report = ParityReport("onnx", "m", (check,))
    report.write(tmp_path / "parity.json")
    held = json.loads((tmp_path / "parity.json").read_text(), parse_constant=pytest.fail)
    assert held["checks"][0]["smallest_cosine"] is None
    with pytest.raises(
        ParityError, match=r"the onnx export of m differs from the encoder:\n  FAIL x: .*worst: probe 2"
    ) as found:
        report.require()
    assert exit_code(found.value)[0] == 1  # nobody's bad input


def test_a_control_that_was_not_caught_is_said() -> None:
    check = Check("x", 9, 0.0, 1.0, 1.0, 0.0, "probe 0", "bound", True)
    report = ParityReport("onnx", "m", (check,), controls={"channels swapped": 0.2, "other interpolation": 0.99999})
    report.require()
    assert "would have been caught: channels swapped" in report.lines()[1]
    assert "would NOT have been caught: other interpolation" in report.lines()[2]
    assert [control["caught"] for control in report.to_dict()["controls"].values()] == [True, False]


def test_probes(photos: list[Image.Image], tmp_path: Path) -> None:
    photos[0].save(tmp_path / "photo.png")
    clear = photos[1].copy()
    clear.putalpha(128)
    probes = Probes.of([tmp_path / "photo.png", clear, *photos[2:]], [f"text {number}" for number in range(8)])
    assert probes.image_names[:2] == (str(tmp_path / "photo.png"), "image 1")
    assert probes.image_names[-4:] == tuple(
        f"contact sheet of {said}" for said in ("471 x 298, RGB", "314 x 447, RGB", "314 x 298, L", "471 x 149, RGBA")
    )
    assert [image.mode for image in probes.images[-3:]] == ["RGB", "L", "RGBA"]
    assert probes.flattened == 1
    assert probes.texts[-len(HARD_TEXTS) :] == HARD_TEXTS


def test_too_few_or_unreadable_probes_are_refused(photos: list[Image.Image], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="7 probe images; a parity check needs at least 8 real ones"):
        Probes.of(photos[:7], ["a"] * 8)
    with pytest.raises(ValueError, match="1 probe texts"):
        Probes.of(photos, ["a"])
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"x.png: unreadable probe image"):
        Probes.of([tmp_path / "x.png", *photos], ["a"] * 8)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "deep" / "out") as folder:
            (folder / "a").write_text("")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert not list((tmp_path / "deep").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file; name a folder"), new_folder(tmp_path / "file"):
        pass
