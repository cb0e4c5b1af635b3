"""An endpoint with every feature: an index of embedded videos, an embedder for new videos, and a classifier."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ray import serve

from raypipe import schema
from raypipe.client import Client
from raypipe.config import EmbedConfig, ServeConfig, load_config
from raypipe.dataset.read import embeddings_manifests, read_embeddings
from raypipe.endpoint.app import build_app
from raypipe.endpoint.run import base_url
from raypipe.jobs.embed.job import run_embed
from raypipe.storage import Folder
from support.classify_outputs import save_model
from support.fixtures.ray_session import CHEAP
from support.processes import free_port
from support.served_index import make_items, put_version
from support.videos import upload

NUM_EMBEDDED, NUM_MADE_UP = 12, 2000
_DIM = 512
LABELS = ("cat", "dog", "fish", "horse")
FREE_OF_CHARGE = {"min": 1, "max": 1, "num_cpus": 0.0}  # the tests' Ray has two processors, which jobs need too


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint: its address and what it serves."""

    url: str
    config: ServeConfig
    ids: list[str]  # of the embedded videos; the catalogue also has others
    source: "Source"

    @property
    def client(self) -> Client:
        """Return a client of the endpoint."""
        return Client(self.url, timeout_seconds=120)


@dataclass(frozen=True)
class Source:
    """The parts of an index; call ``put`` again for another version of the same videos."""

    index: Folder
    videos: Folder
    items: pa.Table
    embeddings: np.ndarray[Any, np.dtype[np.float32]]
    thumbnails: list[bytes | None]
    about: dict[str, Any]
    model: Path

    def put(self, *, live: bool = True) -> str:
        """Put a version and return its id."""
        return put_version(
            self.index, self.items, self.embeddings, thumbnails=self.thumbnails, about=self.about, live=live
        )


def make_source(work: Path) -> Source:
    """Embed a few real videos in a bucket, and put an index of them and many made-up ones."""
    place = Folder(f"s3://videos/{secrets.token_hex(8)}")
    videos, embeddings, index = (Folder(place.child(name)) for name in ("in", "embeddings", "index"))
    upload(videos, NUM_EMBEDDED)
    run_embed(load_config(EmbedConfig, values={"input": videos.uri, "output": embeddings.uri}, overrides=CHEAP))
    manifest = embeddings_manifests(embeddings)[0]
    table = pa.concat_tables(read_embeddings(embeddings))
    real = np.stack([np.asarray(one, np.float32) for one in table[schema.EMBEDDING].to_pylist()])
    made_up, _ = make_items(NUM_EMBEDDED + NUM_MADE_UP)
    ids = table[schema.VIDEO_ID].to_pylist() + made_up[schema.VIDEO_ID].to_pylist()[NUM_EMBEDDED:]
    uris = [*map(videos.child, ids[:NUM_EMBEDDED]), *made_up[schema.VIDEO_URI].to_pylist()[NUM_EMBEDDED:]]
    items = made_up.set_column(0, schema.VIDEO_ID, pa.array(ids)).set_column(1, schema.VIDEO_URI, pa.array(uris))
    chance = np.random.default_rng(0)
    others = real[chance.integers(len(real), size=NUM_MADE_UP)] + 0.05 * chance.standard_normal((NUM_MADE_UP, _DIM))
    about = {name: manifest[name] for name in ("fingerprint", "settings")} | {"uri": embeddings.uri}
    source = Source(
        index=index,
        videos=videos,
        items=items,
        embeddings=np.concatenate([real, others.astype(np.float32)]),
        thumbnails=[*table[schema.THUMBNAIL].to_pylist(), *([None] * NUM_MADE_UP)],
        about=about,
        model=save_model(work / "model", dim=_DIM, mark=manifest["fingerprint"], names=LABELS),
    )
    source.put()
    return source


def serve_config(source: Source, cache: Path, **keys: Any) -> ServeConfig:  # noqa: ANN401 - of any type
    """Return a configuration that serves all of it on a free port."""
    given: dict[str, Any] = {
        "index": source.index.uri,
        "model": str(source.model),
        "port": free_port(),
        "cache": str(cache),
        "reload_seconds": 0.2,
        "embedder": {"weights": "random", "enabled": True, "allowed_prefixes": [source.videos.uri]},
        "replicas": FREE_OF_CHARGE,
        "model_replicas": FREE_OF_CHARGE,
    }
    return ServeConfig.model_validate(given | keys)


@contextmanager
def served(config: ServeConfig) -> Iterator[str]:
    """Run the application on this process's Ray, behind Serve's own proxy, and yield its address."""
    serve.start(http_options={"host": config.host, "port": config.port})
    try:
        serve.run(build_app(config), name="raypipe", route_prefix="/")
        yield base_url(config)
    finally:
        serve.shutdown()


@contextmanager
def served_here(config: ServeConfig, source: Source) -> Iterator[Endpoint]:
    """Serve a source on this process's Ray."""
    with served(config) as url:
        yield Endpoint(url, config, source.items[schema.VIDEO_ID].to_pylist()[:NUM_EMBEDDED], source)
