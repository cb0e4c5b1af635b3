"""The configuration of ``raypipe embed`` and ``raypipe plan``."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from raypipe.config.load import BatchConfig, Count, Gpus, Section, Uri

SamplingMode = Literal["uniform", "fps", "keyframes", "all"]
DecoderName = Literal["auto", "pyav", "decord", "torchcodec"]
Retry = Literal["none", "transient", "all"]
Gone = Literal["auto", "keep", "mark"]


class SamplingConfig(Section):
    """The choice of the frames to embed from each video. Every mode is limited to ``max_frames`` frames."""

    mode: SamplingMode = "uniform"
    num_frames: int = Field(default=16, ge=1)
    fps: float = Field(default=1.0, gt=0)
    max_frames: int = Field(default=256, ge=1, le=65_536)
    nearest_keyframe: bool = False
    loop_filter: bool = True

    @model_validator(mode="after")
    def _num_frames_fits(self) -> Self:
        if self.num_frames > self.max_frames:
            msg = f"num_frames {self.num_frames} is more than max_frames {self.max_frames}; raise max_frames"
            raise ValueError(msg)
        return self

    @property
    def frames_per_video(self) -> int:
        """Return the number of frames to expect per video.

        For the mode ``uniform`` this is ``num_frames``. For other modes it is the upper limit, ``max_frames``.
        """
        return self.num_frames if self.mode == "uniform" else self.max_frames


class DecodeConfig(Section):
    """The limits for decoding an untrusted video."""

    decoder: DecoderName = "auto"
    timeout_seconds: float = Field(default=60, gt=0)
    memory_bytes: int = Field(default=2_147_483_648, ge=268_435_456)
    max_pixels: int = Field(default=33_177_600, ge=1)
    max_duration_seconds: float = Field(default=43_200, gt=0)
    max_size_bytes: int = Field(default=21_474_836_480, ge=1)


class BackboneConfig(Section):
    """The network that turns frames into vectors."""

    name: str = "resnet50"
    weights: str = "default"
    engine: Literal["auto", "torch", "openvino"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    batch_size: int = Field(default=256, ge=1)
    compile: Literal["auto"] | bool = "auto"

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        if self.compile is True and (self.engine == "openvino" or self.dtype == "int8"):
            msg = "compile is true, but OpenVINO does not compile; set compile: auto, or engine: torch"
            raise ValueError(msg)
        if self.engine == "torch" and self.dtype == "int8":
            msg = "dtype int8 needs OpenVINO; set engine: auto"
            raise ValueError(msg)
        return self

    @property
    def wanted_engine(self) -> Literal["auto", "torch", "openvino"]:
        """Return the engine, which is PyTorch instead of ``auto`` if the network must be compiled."""
        return "torch" if self.compile is True else self.engine


class ShardConfig(Section):
    """The maximum size of a shard. A shard is the unit of work and of commit, and is redone if its worker dies."""

    max_videos: int = Field(default=64, ge=1)
    max_frames: int = Field(default=1024, ge=1)


class ResourcesConfig(Section):
    """The number of actors, the resources that each reserves, and the nodes on which they run."""

    decode_cpus: float = Field(default=1, gt=0)
    embed_gpus: Gpus = "auto"
    concurrency: Count = "auto"
    decode_on: dict[str, str] = Field(default_factory=dict)  # labels of the nodes that may decode
    embed_on: dict[str, str] = Field(default_factory=dict)  # labels of the nodes that may embed
    wait_seconds: float = Field(default=0, ge=0)

    @field_validator("decode_on", "embed_on")
    @classmethod
    def _labels_are_plain(cls, labels: dict[str, str]) -> dict[str, str]:
        if operators := [value for value in labels.values() if value.startswith("!") or "(" in value]:
            msg = f"{operators[0]!r} is not a label value; give the value that the nodes have"
            raise ValueError(msg)
        return labels


class EmbedConfig(BatchConfig):
    """The whole configuration of ``raypipe embed`` and ``raypipe plan``."""

    input: Uri
    output: Uri
    sampling: SamplingConfig = SamplingConfig()
    decode: DecodeConfig = DecodeConfig()
    backbone: BackboneConfig = BackboneConfig()
    shard: ShardConfig = ShardConfig()
    resources: ResourcesConfig = ResourcesConfig()
    vectors: Literal["auto", "float32", "float16"] = "auto"
    retry: Retry = "none"
    gone: Gone = "auto"
    max_gone_fraction: float = Field(default=0.2, ge=0, le=1)
    max_failed_fraction: float = Field(default=1.0, ge=0, le=1)
