"""The configuration of each command, as frozen pydantic models that reject unknown keys."""

from raypipe.config.anomalies import AnomaliesConfig
from raypipe.config.classify import ClassifyConfig, ClassifyResourcesConfig
from raypipe.config.compress import CompressConfig, DistillConfig
from raypipe.config.embed import DecodeConfig, EmbedConfig, ResourcesConfig, Retry, SamplingConfig
from raypipe.config.evaluate import EvaluateConfig
from raypipe.config.index import IndexConfig, IndexSettings
from raypipe.config.load import load_config
from raypipe.config.recommend import RankingConfig, RecommendConfig
from raypipe.config.serve import ServeConfig
from raypipe.config.suggest import SuggestConfig
from raypipe.config.train import (
    CheckpointConfig,
    ClassifierConfig,
    Gpt2Size,
    OptimizerConfig,
    RankerConfig,
    TrainConfig,
)

__all__ = [
    "AnomaliesConfig",
    "CheckpointConfig",
    "ClassifierConfig",
    "ClassifyConfig",
    "ClassifyResourcesConfig",
    "CompressConfig",
    "DecodeConfig",
    "DistillConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "Gpt2Size",
    "IndexConfig",
    "IndexSettings",
    "OptimizerConfig",
    "RankerConfig",
    "RankingConfig",
    "RecommendConfig",
    "ResourcesConfig",
    "Retry",
    "SamplingConfig",
    "ServeConfig",
    "SuggestConfig",
    "TrainConfig",
    "load_config",
]
