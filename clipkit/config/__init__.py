"""Configuration of runs: what may stand in a file, how it is read, and what is said when it is wrong."""

from clipkit.config.augment import (
    AffineSpec,
    AnyAugmentSpec,
    AugmentSpec,
    EvalAugmentSpec,
    OpenClipAugmentSpec,
    TimmAugmentSpec,
)
from clipkit.config.base import Spec
from clipkit.config.catalog import shipped
from clipkit.config.checkpoint import CheckpointSpec
from clipkit.config.data import DataSpec, PackSpec, SourceSpec, StageSpec
from clipkit.config.evaluate import (
    EvaluateSpec,
    LinearProbeSpec,
    NearestNeighboursSpec,
    RetrievalSpec,
    TaskSpec,
    ZeroShotSpec,
)
from clipkit.config.guard import GuardSpec
from clipkit.config.loader import Loaded, load_config, load_with_sources
from clipkit.config.logs import LoggingSpec, WandbSpec
from clipkit.config.losses import (
    DistillationSpec,
    InfoNCESpec,
    LossSpec,
    MutualInformationSpec,
    SigmoidSpec,
    SLIPSpec,
    SogCLRSpec,
    TripletSpec,
)
from clipkit.config.model import ModelSpec, split_model
from clipkit.config.names import DISTRIBUTION
from clipkit.config.optim import OptimSpec
from clipkit.config.report import ConfigError, Place, Problem
from clipkit.config.run import RunConfig
from clipkit.config.trainer import TrainerSpec
from clipkit.config.units import Duration, parse_count
from clipkit.config.write import as_yaml, describe_difference, flatten, json_schema, with_sources, write_config

__all__ = [
    "DISTRIBUTION",
    "AffineSpec",
    "AnyAugmentSpec",
    "AugmentSpec",
    "CheckpointSpec",
    "ConfigError",
    "DataSpec",
    "DistillationSpec",
    "Duration",
    "EvalAugmentSpec",
    "EvaluateSpec",
    "GuardSpec",
    "InfoNCESpec",
    "LinearProbeSpec",
    "Loaded",
    "LoggingSpec",
    "LossSpec",
    "ModelSpec",
    "MutualInformationSpec",
    "NearestNeighboursSpec",
    "OpenClipAugmentSpec",
    "OptimSpec",
    "PackSpec",
    "Place",
    "Problem",
    "RetrievalSpec",
    "RunConfig",
    "SLIPSpec",
    "SigmoidSpec",
    "SogCLRSpec",
    "SourceSpec",
    "Spec",
    "StageSpec",
    "TaskSpec",
    "TimmAugmentSpec",
    "TrainerSpec",
    "TripletSpec",
    "WandbSpec",
    "ZeroShotSpec",
    "as_yaml",
    "describe_difference",
    "flatten",
    "json_schema",
    "load_config",
    "load_with_sources",
    "parse_count",
    "shipped",
    "split_model",
    "with_sources",
    "write_config",
]
