"""Settings: flags and a YAML file become one validated set of values."""

from cnncompress.config.merging import merge, read_yaml, validate
from cnncompress.config.parsing import parse_arguments, parse_budget, parse_floats, parse_rank, parse_size
from cnncompress.config.settings import (
    DEFAULT_BUDGET,
    DecomposeSettings,
    ExploreSettings,
    LayerRule,
    ModelSettings,
    Settings,
    TuneSettings,
)

__all__ = [
    "DEFAULT_BUDGET",
    "DecomposeSettings",
    "ExploreSettings",
    "LayerRule",
    "ModelSettings",
    "Settings",
    "TuneSettings",
    "merge",
    "parse_arguments",
    "parse_budget",
    "parse_floats",
    "parse_rank",
    "parse_size",
    "read_yaml",
    "validate",
]
