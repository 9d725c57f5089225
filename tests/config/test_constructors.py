"""A spec's fields are the arguments of what it builds: neither side may gain one alone."""

import inspect

import pytest

from clipkit.config import (
    AffineSpec,
    AugmentSpec,
    DistillationSpec,
    InfoNCESpec,
    LinearProbeSpec,
    MutualInformationSpec,
    NearestNeighboursSpec,
    OptimSpec,
    PackSpec,
    RetrievalSpec,
    SigmoidSpec,
    SLIPSpec,
    SogCLRSpec,
    SourceSpec,
    TimmAugmentSpec,
    TripletSpec,
    ZeroShotSpec,
)
from clipkit.config.data import RepeatSpec
from clipkit.data.augment import Affine, Augment
from clipkit.data.pack import PackOptions
from clipkit.data.source import DEFAULT_FIELDS, Repeat, Source
from clipkit.data.timm_augment import TimmAugment
from clipkit.evaluation.knn import NearestNeighbours
from clipkit.evaluation.linear_probe import LinearProbe
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.zero_shot import ZeroShot
from clipkit.losses.distillation import Distillation
from clipkit.losses.infonce import InfoNCE
from clipkit.losses.mutual_information import MutualInformation
from clipkit.losses.sigmoid import Sigmoid
from clipkit.losses.slip import SLIP
from clipkit.losses.sogclr import SogCLR
from clipkit.losses.triplet import Triplet
from clipkit.optim import Optim

PAIRS = [
    # spec, what it builds, arguments that come from elsewhere, fields that go elsewhere
    (AugmentSpec, Augment, {"size", "interpolation"}, {"kind"}),
    (TimmAugmentSpec, TimmAugment, {"size", "mean", "std", "interpolation"}, {"kind"}),
    (AffineSpec, Affine, set(), set()),
    (SourceSpec, Source, {"name"}, {"loose"}),
    (PackSpec, PackOptions, {"shard_size"}, set()),
    (RepeatSpec, Repeat, set(), set()),
    (InfoNCESpec, InfoNCE, {"scale", "tile"}, {"kind", "weight", "scale"}),
    (SigmoidSpec, Sigmoid, {"scale", "tile", "bias"}, {"kind", "weight", "scale", "bias"}),
    (DistillationSpec, Distillation, {"scale", "tile"}, {"kind", "weight", "scale", "teacher_model"}),
    (TripletSpec, Triplet, set(), {"kind", "weight"}),
    (MutualInformationSpec, MutualInformation, {"scale"}, {"kind", "weight", "scale"}),
    (SLIPSpec, SLIP, {"width"}, {"kind", "weight"}),
    (SogCLRSpec, SogCLR, {"scale"}, {"kind", "weight", "scale"}),
    (OptimSpec, Optim, {"steps", "layers"}, {"clip_norm", "ema"}),
    (ZeroShotSpec, ZeroShot, set(), {"kind"}),
    (RetrievalSpec, Retrieval, set(), {"kind"}),
    (LinearProbeSpec, LinearProbe, set(), {"kind"}),
    (NearestNeighboursSpec, NearestNeighbours, set(), {"kind"}),
]


@pytest.mark.parametrize(("spec", "built", "from_elsewhere", "to_elsewhere"), PAIRS)
def test_fields_are_the_constructors_arguments(spec, built, from_elsewhere, to_elsewhere):
    arguments = set(inspect.signature(built).parameters)
    assert set(spec.model_fields) - to_elsewhere == arguments - from_elsewhere


@pytest.mark.parametrize(
    ("spec", "built"),
    [pair[:2] for pair in PAIRS if pair[0] not in (SourceSpec, PackSpec, OptimSpec, ZeroShotSpec, RetrievalSpec)],
)
def test_defaults_agree(spec, built):
    for name, parameter in inspect.signature(built).parameters.items():
        if name in spec.model_fields and parameter.default is not parameter.empty and name != "exchange":
            assert spec.model_fields[name].default == parameter.default, name


def test_the_default_fields_are_the_sources():
    assert {name: tuple(values) for name, values in SourceSpec(shards="x").fields.items()} == DEFAULT_FIELDS
