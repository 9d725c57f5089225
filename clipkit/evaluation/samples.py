"""What an evaluation set is once it is open: where its images lie, and what belongs to each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import crop_image

from clipkit.data.images import decode_image

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
"""In CLIP_benchmark's order: the first that a sample has is its image."""


@dataclass(frozen=True)
class ImageFile:
    """Where the bytes of one image lie: a whole file, or a stretch of a tar.

    Args:
        path: The file or the tar.
        key: The sample's name in the tar, or None for a whole file.
        offset: First byte.
        length: Number of bytes, or None for a whole file.
        box: Left, top, right and bottom edge of the part that counts, in pixels of the decoded image; None for all of it.
    """

    path: Path
    key: str | None = None
    offset: int = 0
    length: int | None = None
    box: tuple[int, int, int, int] | None = None

    def __str__(self) -> str:
        return str(self.path) if self.key is None else f"{self.path}, sample {self.key!r}"

    def decode(self) -> Tensor:
        """The pixels that count, uint8 (3, H, W); black where the box reaches over the image's edge, as with Pillow.

        Raises:
            OSError: If the file cannot be read.
            BadSample: If it is no image that is read here.
        """
        pixels = decode_image(self.read())
        if self.box is None:
            return pixels
        left, top, right, bottom = self.box
        part: Tensor = crop_image(pixels, top, left, bottom - top, right - left)
        return part

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            OSError: If the file cannot be read.
        """
        return self.path.read_bytes() if self.length is None else read_span(self.path, self.offset, self.length)


def read_span(path: Path, offset: int, length: int) -> bytes:
    """Some bytes of a file, all of them or an OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(fd, length, offset)
    finally:
        os.close(fd)
    if len(data) != length:
        raise OSError(f"{path}: {len(data)} of {length} bytes at {offset}")
    return data


@dataclass(frozen=True)
class ClassificationSet:
    """Images with one label each.

    Args:
        name: What results call it.
        images: Where the images lie (N).
        labels: Class of each image (N,), int64.
        classnames: Name of each class, by label.
        templates: Prompts with ``{c}`` for the class name, or None where the set brings none.
    """

    name: str
    images: Sequence[ImageFile]
    labels: Tensor
    classnames: tuple[str, ...]
    templates: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class RetrievalSet:
    """Images with one or more captions each.

    Args:
        name: What results call it.
        images: Where the images lie (N).
        captions: Captions of each image (N).
    """

    name: str
    images: Sequence[ImageFile]
    captions: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def texts(self) -> list[str]:
        """All captions (M), image by image."""
        return [caption for captions in self.captions for caption in captions]

    @cached_property
    def owner(self) -> Tensor:
        """For each caption the number of its image (M,), int64."""
        return torch.arange(len(self)).repeat_interleave(torch.tensor([len(captions) for captions in self.captions]))


def split_captions(text: str) -> tuple[str, ...]:
    r"""The captions of one image: one a line, a line feed inside a caption written ``\n``, blank lines passed over.

    >>> split_captions("a red bicycle\nleft\\nright\n\n")
    ('a red bicycle', 'left\nright')
    """
    # Not str.splitlines: it also cuts at U+2028 and vertical tabs, which captions from the web hold.
    lines = (line.strip() for line in text.split("\n"))
    return tuple(line.replace("\\n", "\n") for line in lines if line)


def check_templates(templates: Sequence[str], place: str) -> tuple[str, ...]:
    """The templates, each with its ``{c}``.

    Args:
        templates: Prompts.
        place: Where they stand, for the message.

    Raises:
        ValueError: If there is none, or one has no ``{c}``.
    """
    if isinstance(templates, str):
        raise ValueError(f"{place}: templates are a list of prompts, got the text {templates!r}; write [{templates!r}]")
    if not templates:
        raise ValueError(f"{place}: no templates; give at least one, such as 'a photo of a {{c}}.'")
    for number, template in enumerate(templates, start=1):
        if "{c}" not in template:
            cure = "write {c} where the class name goes, such as 'a photo of a {c}.'"
            raise ValueError(f"{place}: template {number} has no {{c}}: {template!r}; {cure}")
    return tuple(templates)


def read_lines(path: Path) -> tuple[str, ...]:
    """The stripped lines of a text file whose line numbers mean something.

    Raises:
        ValueError: If the file is no UTF-8, is empty, or has a blank line before its end.
    """
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if lines == [""]:
        raise ValueError(f"{path}: empty; write one entry a line")
    if "" in lines:
        number = lines.index("") + 1
        raise ValueError(f"{path}:{number}: blank line; it would shift every entry after it: remove it")
    return tuple(lines)


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises:
        ValueError: If it cannot be read or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 at byte {error.start}; save it as UTF-8") from error
