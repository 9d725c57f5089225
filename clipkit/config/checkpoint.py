"""`checkpoint:`: what is kept of a run's weights."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from clipkit.config.base import Interval, Length, Spec, Text
from clipkit.config.units import Count, Duration


def _as_list(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


def _one_of_each(intervals: list[Duration]) -> list[Duration]:
    if len(intervals) == 2 and sum(interval.unit == "seconds" for interval in intervals) != 1:
        raise ValueError("two intervals are one of samples, epochs or steps and one of time, as [10M samples, 30min]")
    return intervals


Intervals = Annotated[
    list[Interval],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    Field(min_length=1, max_length=2),
    AfterValidator(_one_of_each),
]


COPY_SCHEMES = ("s3", "gs", "file", "memory")


def check_copy_url(url: str) -> str:
    """Whether copies may go to a URL, or come from it.

    Raises:
        ValueError: If not; the message does not repeat it, as it may hold a secret.
    """
    parts = urlsplit(url)
    if parts.scheme not in COPY_SCHEMES or "::" in url:
        raise ValueError("is no place for copies; write s3://BUCKET/PATH, gs://BUCKET/PATH or file:///PATH")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "must hold no user, key or query; credentials belong into the environment or the backend's own files"
        )
    if re.search(r"[\s\x00-\x1f\x7f\\*?\[\]]", url):
        raise ValueError("must hold no blanks, brackets or stars")
    if (parts.scheme == "file") == bool(parts.netloc) or not parts.path.strip("/"):
        raise ValueError("must name a folder: s3://BUCKET/PATH, gs://BUCKET/PATH or file:///PATH")
    return url


class CheckpointSpec(Spec):
    """When to write checkpoints and which to keep."""

    every: Intervals | None = Field(
        None,
        description="Interval: samples, epochs, steps or a time; or one of each, as [10M samples, 30min]. Unset: only at the end "
        "and on a stop.",
    )
    keep_last: Annotated[Count, Field(ge=1)] = Field(2, description="How many of the newest to keep.")
    keep_best: Count = Field(
        0, description="How many of the best by `best` to keep besides; each evaluation is saved then."
    )
    best: Text | None = Field(
        None,
        description="The figure that `keep_best` goes by, such as val/TASK/acc1 or val/loss; unset: the first task's "
        "first figure, else val/loss.",
    )
    keep_every: Length | None = Field(
        None, description="Interval of milestones, such as 100M samples: each is saved and stays for good."
    )
    background: bool = Field(
        False,
        description="Write in a thread while training goes on, from a copy of weights and optimiser in main memory; one at a time.",
    )
    copy_to: Annotated[Text, AfterValidator(check_copy_url)] | None = Field(
        None,
        description="Where checkpoints are copied to once they are written: s3://, gs:// or file:///PATH, one place a run. A run "
        "whose folder has none goes on from there.",
    )

    @property
    def by_data(self) -> Duration | None:
        """The interval that data are counted by; None for none."""
        return next((interval for interval in self.every or () if interval.unit != "seconds"), None)

    @property
    def by_clock(self) -> Duration | None:
        """The interval of the clock; None for none."""
        return next((interval for interval in self.every or () if interval.unit == "seconds"), None)
