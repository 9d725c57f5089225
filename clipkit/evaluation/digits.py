"""scikit-learn's 1,797 handwritten digits (8 x 8 pixels, BSD-3-Clause) as class folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from clipkit.config.names import DISTRIBUTION

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_digits(cache: Path) -> Path:
    """Class folders of the digits, written at first use.

    Args:
        cache: The cache folder.

    Raises:
        ValueError: If scikit-learn is not installed.
    """
    folder = cache / "evaluation" / "digits"
    if folder.is_dir():
        return folder
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            f"sklearn:digits needs scikit-learn; pip install scikit-learn beside {DISTRIBUTION}"
        ) from error
    digits = load_digits()
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = made / str(label)
        place.mkdir(exist_ok=True)
        grey = np.uint8(np.clip(pixels * 16, 0, 255))
        Image.fromarray(grey).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(
            place / f"{number:04d}.png"
        )
    (made / "classnames.txt").write_text("".join(f'the number "{name}"\n' for name in NAMES))
    try:
        os.rename(made, folder)  # whole at once; another rank may have been first
    except OSError:
        shutil.rmtree(made)
        if not folder.is_dir():
            raise
    return folder
