"""Formats, colour rules, caps, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from clipkit.data import images
from clipkit.data.images import BadSample, Decode, decode, decode_image, image_tensor
from clipkit.data.pixels import PillowImage, crop_resized, size_of
from clipkit.data.transforms import Preprocess


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(height=21, width=34):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 7 % 256, y * 11 % 256, (x + y) * 4 % 256], -1).astype(np.uint8)


RGB = Image.fromarray(colours())
EXPECTED = torch.from_numpy(colours()).permute(2, 0, 1)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})])
def test_lossless_formats_are_exact(kind, options):
    assert torch.equal(decode_image(encoded(RGB, kind, **options)), EXPECTED)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}, {"optimize": True}]
)
def test_jpeg_equals_pillow(options):
    data = encoded(RGB, "JPEG", **options)
    assert torch.equal(decode_image(data), image_tensor(Image.open(io.BytesIO(data))))


def test_torchvision_decodes_plain_jpegs(monkeypatch):
    monkeypatch.setattr(images, "_with_pillow", lambda *_, **__: pytest.fail("went through Pillow"))
    for data in (encoded(RGB, "JPEG"), encoded(RGB.convert("L"), "JPEG")):
        assert decode_image(data).shape == (3, 21, 34)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_any_mode_gives_rgb(mode, kind):
    image = RGB.convert(mode)
    if (kind == "JPEG" and mode in ("P", "LA", "RGBA")) or (kind == "PNG" and mode == "CMYK"):
        pytest.skip("cannot be written")
    if kind in ("GIF", "WEBP") and mode == "CMYK":
        pytest.skip("cannot be written")
    found = decode_image(encoded(image, kind))
    assert found.dtype == torch.uint8
    assert found.shape == (3, 21, 34)
    if kind == "PNG":
        assert torch.equal(found, torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
    elif mode == "CMYK":
        assert (found.float() - EXPECTED.float()).abs().mean() < 25


def test_transparency_lies_on_white():
    rgba = np.concatenate([colours(), np.zeros((21, 34, 1), np.uint8)], -1)
    rgba[:, 17:, 3] = 255
    found = decode_image(encoded(Image.fromarray(rgba), "PNG"))
    assert (found[:, :, :17] == 255).all()
    assert torch.equal(found[:, :, 17:], EXPECTED[:, :, 17:])
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (decode_image(encoded(palette, "PNG", transparency=1)) == 255).all()
    assert decode_image(encoded(palette, "PNG"))[:, 0, 0].tolist() == [10, 20, 30]
    key = Image.new("RGB", (4, 4), (1, 2, 3))
    assert (decode_image(encoded(key, "PNG", transparency=(1, 2, 3))) == 255).all()


def test_sixteen_bits_are_scaled():
    grey = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    found = decode_image(encoded(Image.fromarray(grey), "PNG"))
    assert found.shape == (3, 1, 6)
    assert found[0, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert image_tensor(Image.fromarray(grey.astype(np.int32)))[2, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    found = decode_image(
        encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
    )
    assert found[:, 4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, kind, exif=exif)
    assert decode_image(data).shape == ((3, 21, 34) if orientation < 5 else (3, 34, 21))
    assert torch.equal(decode_image(data), image_tensor(Image.open(io.BytesIO(data))))


def cause(data):
    with pytest.raises(BadSample) as caught:
        decode_image(data)
    return caught.value.cause


def test_refusals_have_a_cause():
    assert cause(b"") == "empty"
    assert cause(b"<svg/>") == "format"
    assert cause(encoded(RGB, "TIFF")) == "format"
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)), kind)
        for length in (3, 14, 30, 40, len(whole) // 2, len(whole) - 40):
            assert cause(whole[:length]) in ("truncated", "damaged", "format"), (kind, length)
    half = encoded(RGB, "JPEG")
    assert cause(half[: len(half) * 3 // 4]) == "truncated"
    assert cause(encoded(RGB, "JPEG")[:2] + b"\xff\xe0\x00\x04ab" + b"?" * 99) == "damaged"


def test_the_header_is_read_before_the_pixels(monkeypatch):
    def png(width, height):
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + head
        return (
            b"\x89PNG\r\n\x1a\n"
            + struct.pack(">I", 13)
            + chunk
            + struct.pack(">I", zlib.crc32(chunk))
            + b"\0\0\0\0IDAT"
        )

    assert cause(png(50_000, 50_000)) == "too_large"
    assert cause(png(1, 49_000_000)) == "aspect"
    assert cause(png(0, 5)) == "damaged"
    bmp = bytearray(encoded(RGB, "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    assert cause(bytes(bmp)) == "too_large"
    jpeg = bytearray(encoded(RGB, "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    assert cause(bytes(jpeg)) == "too_large"
    monkeypatch.setattr(images, "MOST_BYTES", 10)
    assert cause(encoded(RGB, "JPEG")) == "too_large"


def test_a_jpeg_with_a_tail_and_one_with_a_thumbnail():
    data = encoded(RGB, "JPEG")
    assert torch.equal(decode_image(data + b"trailing"), decode_image(data))
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
    with_thumbnail = data[:2] + thumbnail + data[2:]
    assert torch.equal(decode_image(with_thumbnail), decode_image(data))
    assert cause(with_thumbnail[: len(with_thumbnail) - 300]) == "truncated"


def drawn(mode):
    """A picture of a mode, with everything that open_clip and we see differently."""
    image = Image.fromarray(
        np.concatenate([colours(60, 90), np.tile(np.arange(90, dtype=np.uint8) * 2, (60, 1))[..., None]], -1)
    )
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGBA", "PNG"),
        ("P", "PNG"),
        ("LA", "PNG"),
        ("1", "PNG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "JPEG"),
        ("P", "GIF"),
        ("RGBA", "WEBP"),
    ],
)
@pytest.mark.parametrize("train", [False, True])
def test_open_clips_rules_give_what_its_transform_gives(mode, kind, train, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side: ignored
    data = encoded(drawn(mode), kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
    decoded = decode(data, Decode(policy="open_clip")).pixels
    box = (3, 5, 41, 52)
    monkeypatch.setattr(RandomResizedCrop, "get_params", staticmethod(lambda *_: box))
    theirs = image_transform(32, is_train=train, mean=(0.0,) * 3, std=(1.0,) * 3)(Image.open(io.BytesIO(data))) * 255
    ours = crop_resized(decoded, box, (32, 32), "bicubic") if train else Preprocess((32, 32))(decoded)
    assert (ours - theirs).abs().max() <= 1.001
    if mode == "RGBA" or kind == "JPEG":
        assert decode_image(data).shape == (3, 90, 60)  # ours turn it


def test_the_two_policies_differ_where_they_say():
    data = encoded(Image.new("RGBA", (8, 8), (10, 20, 30, 0)), "PNG")
    assert Preprocess((8, 8))(decode(data).pixels)[:, 0, 0].tolist() == [255, 255, 255]
    assert Preprocess((8, 8))(decode(data, Decode(policy="open_clip")).pixels)[:, 0, 0].tolist() == [10, 20, 30]
    with pytest.raises(ValueError, match="'pil'"):
        Decode(policy="pil")


@pytest.mark.parametrize("policy", ["clipkit", "open_clip"])
def test_caps_and_refusals_hold_under_both_policies(policy):
    for data, why in ((b"", "empty"), (b"<svg/>", "format"), (encoded(RGB, "JPEG")[:400], "truncated")):
        with pytest.raises(BadSample, match=why):
            decode(data, Decode(policy=policy))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_noted_and_still_images_are_not(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for policy in ("clipkit", "open_clip"):
        assert decode(encoded(frames[0], kind), Decode(policy=policy)).noted == ()
        moving = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), Decode(policy=policy))
        assert moving.noted == ("animated",)


def photograph(width, height):
    y, x = np.mgrid[:height, :width]
    waves = [127 + 60 * np.sin(x / (17 + 5 * c)) + 60 * np.cos(y / (23 - 4 * c)) for c in range(3)]
    return Image.fromarray(np.stack(waves, -1).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("size", "reduced"), [((401, 603), 4), ((300, 401), 2), ((127, 300), 1)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_decoded_at_a_fraction_keeps_its_geometry(size, reduced, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(*size), "JPEG", quality=95, exif=exif)
    whole = decode(data).pixels
    fast = decode(data, Decode(shrink_to=100)).pixels
    assert size_of(fast) == size_of(whole)
    if reduced == 1:
        assert torch.equal(fast, whole)
        return
    assert isinstance(fast, PillowImage)
    assert min(fast.image.size) >= 100
    assert fast.step == reduced
    height, width = size_of(whole)
    for box in ((0, 0, height, width), (13, 31, height - 50, width - 77), (height - 101, width - 103, 101, 103)):
        found, expected = (crop_resized(pixels, box, (32, 32), "bicubic").float() for pixels in (fast, whole))
        assert (found - expected).abs().mean() < 1
        assert (found - expected).abs().max() < 12


def test_only_plain_jpegs_are_shrunk():
    how = Decode(shrink_to=16)
    picture = photograph(200, 200)
    for data in (encoded(picture, "PNG"), encoded(picture.convert("CMYK"), "JPEG")):
        assert torch.equal(decode(data, how).pixels, decode(data).pixels)
    with pytest.raises(BadSample, match="truncated"):
        decode(encoded(picture, "JPEG")[:-300], how)
