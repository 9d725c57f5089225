"""`loss:` and `losses:`: what is minimised, a closed union by `kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from clipkit.config.base import LocatedErrors, Name, Positive, Spec


class InfoNCESpec(Spec):
    """Symmetric InfoNCE over the global batch (CLIP)."""

    kind: Literal["infonce"] = Field(description="Which loss this is.")
    weight: Positive = Field(1.0, description="Factor of this loss in the total.")
    pair: tuple[Name, Name] = Field(("image", "text"), description="The two fields that are pulled together.")
    duplicates: Literal["negatives", "ignore", "positives"] = Field(
        "negatives", description="What equal captions, images or labels in a batch are to each other."
    )


def short_loss(value: Any) -> Any:
    """`infonce` is `{kind: infonce}`."""
    return {"kind": value} if isinstance(value, str) else value


# One kind so far: the second turns this into a union with `kind` as its discriminator.
LossSpec = Annotated[InfoNCESpec, BeforeValidator(short_loss, json_schema_input_type=str | InfoNCESpec)]


def move_loss(tree: Any) -> Any:
    """Turn `loss: X` into `losses: {KIND: X}`, so that everything behind reads one form.

    Raises:
        LocatedErrors: If both are given.
    """
    if not isinstance(tree, dict) or tree.get("loss") is None:
        return tree
    if tree.get("losses"):
        raise LocatedErrors(
            [(("loss",), "`loss` and `losses` are both given; keep one (`loss` is short for one entry)")]
        )
    loss = short_loss(tree["loss"])
    name = loss.get("kind") if isinstance(loss, dict) else getattr(loss, "kind", None)
    return {key: value for key, value in tree.items() if key != "loss"} | {"losses": {str(name or "loss"): loss}}
