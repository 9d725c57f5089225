import io

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from clipkit.data.strip import strip_metadata

SECRET = b"Nikon of Jane"


def picture(kind, orientation, **options):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x10F] = SECRET.decode()
    if orientation != 1:
        exif[0x112] = orientation
    buffer = io.BytesIO()
    if kind == "png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("Author", SECRET.decode())
    image.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("jpeg", {"comment": SECRET, "quality": 80, "icc_profile": b"a profile"}),
        ("jpeg", {"progressive": True, "restart_marker_blocks": 1}),
        ("png", {}),
        ("webp", {"xmp": SECRET}),
        ("webp", {"lossless": True}),
    ],
)
def test_private_parts_go_and_pixels_stay(kind, options, orientation):
    data = picture(kind, orientation, **options)
    assert SECRET in data
    data += SECRET if kind == "jpeg" else b""  # what follows the image goes too
    stripped = strip_metadata(data, {"jpeg": "jpg"}.get(kind, kind), orientation)
    assert SECRET not in stripped
    before, after = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(stripped))
    assert after.getexif().get(0x112, 1) == orientation
    assert dict(after.getexif()) == ({0x112: 6} if orientation == 6 else {})
    upright = ImageOps.exif_transpose(after)
    assert upright.size == ((24, 40) if orientation == 6 else (40, 24))
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(before)), np.asarray(upright))
    assert after.info.get("icc_profile") == options.get("icc_profile")


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_file_that_breaks_off_is_refused(kind):
    data = picture({"jpg": "jpeg"}.get(kind, kind), 1)
    with pytest.raises(ValueError, match="breaks off|no marker"):
        strip_metadata(data[:60], kind)
