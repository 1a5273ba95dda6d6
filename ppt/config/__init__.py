"""The configuration of a run: its keys with their types, and how it is read from YAML files."""

from ppt.config.curriculum import (
    SOURCES,
    ClipConfig,
    ConfigError,
    Curriculum,
    Data,
    Labels,
    LossWeights,
    MatchCost,
    Model,
    ModelSelection,
    PointGeneratorConfig,
    PointRecipe,
    Resources,
    SamConfig,
    Select,
    SourceName,
    Stage,
    Synthesis,
    Training,
)
from ppt.config.data_formats import DataFormat
from ppt.config.load import load_curriculum, load_row, parse_curriculum
from ppt.config.named import find_curriculum

__all__ = [
    "SOURCES",
    "ClipConfig",
    "ConfigError",
    "Curriculum",
    "Data",
    "DataFormat",
    "Labels",
    "LossWeights",
    "MatchCost",
    "Model",
    "ModelSelection",
    "PointGeneratorConfig",
    "PointRecipe",
    "Resources",
    "SamConfig",
    "Select",
    "SourceName",
    "Stage",
    "Synthesis",
    "Training",
    "find_curriculum",
    "load_curriculum",
    "load_row",
    "parse_curriculum",
]
