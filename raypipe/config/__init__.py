"""The configuration of each job: frozen pydantic models whose unknown keys are refused."""

from raypipe.config.embed import DecodeConfig, EmbedConfig, ResourcesConfig, Retry, SamplingConfig
from raypipe.config.load import load_config

__all__ = ["DecodeConfig", "EmbedConfig", "ResourcesConfig", "Retry", "SamplingConfig", "load_config"]
