"""An index in memory with a random ranker, and events of users who walk through its videos."""

import numpy as np

from raypipe.search.ann import Ann
from raypipe.search.index import VideoIndex
from raypipe.search.projection import Projection, unit_length
from raypipe.search.successors import count_successors
from raypipe.search.tower import Tower, TowerWeights
from raypipe.search.watch_events import Events
from raypipe.search.watched import Watched
from support.vectors import clustered, index_of, settings_of

NUM_VIDEOS, DIM, WIDTH = 150, 8, 6


def random_weights(random: np.random.Generator) -> TowerWeights:
    sizes = {
        "content.weight": (WIDTH, DIM),
        "gpt2.wpe.weight": (10, WIDTH),
        "gpt2.h.0.ln_1.weight": (WIDTH,),
        "gpt2.h.0.ln_1.bias": (WIDTH,),
        "gpt2.h.0.attn.c_attn.weight": (WIDTH, 3 * WIDTH),
        "gpt2.h.0.attn.c_attn.bias": (3 * WIDTH,),
        "gpt2.h.0.attn.c_proj.weight": (WIDTH, WIDTH),
        "gpt2.h.0.attn.c_proj.bias": (WIDTH,),
        "gpt2.h.0.ln_2.weight": (WIDTH,),
        "gpt2.h.0.ln_2.bias": (WIDTH,),
        "gpt2.h.0.mlp.c_fc.weight": (WIDTH, 4 * WIDTH),
        "gpt2.h.0.mlp.c_fc.bias": (4 * WIDTH,),
        "gpt2.h.0.mlp.c_proj.weight": (4 * WIDTH, WIDTH),
        "gpt2.h.0.mlp.c_proj.bias": (WIDTH,),
        "gpt2.ln_f.weight": (WIDTH,),
        "gpt2.ln_f.bias": (WIDTH,),
    }
    tensors = {name: random.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    return TowerWeights(tensors, {"n_layer": 1, "n_head": 2, "n_embd": WIDTH, "max_events": 10, "scale": 14.0})


def watched_index(*, weight: float, kind: str = "flat") -> VideoIndex:
    """Return an index with a random ranker, and events of users who mostly watch the next video of a circle."""
    random = np.random.default_rng(3)
    groups = [row // 3 * 3 if row < 30 else None for row in range(NUM_VIDEOS)]
    columns = {
        "category": [("music", "news", "sport")[row % 3] for row in range(NUM_VIDEOS)],
        "duplicate_group": groups,
        "popularity": random.uniform(0, 9, NUM_VIDEOS).tolist(),
    }
    index = index_of(clustered(NUM_VIDEOS, dim=DIM, seed=1), columns, kind=kind)
    starts = random.integers(0, NUM_VIDEOS, 400)
    events = Events.of_histories([[int(start + step) % NUM_VIDEOS for step in range(6)] for start in starts])
    weights = random_weights(random)
    vectors = random.standard_normal((NUM_VIDEOS, WIDTH))
    unit = unit_length(vectors).astype(np.float16)
    tower = Tower(
        weights,
        vectors=unit,
        lengths=np.linalg.norm(vectors, axis=1).astype(np.float32),
        ann=Ann.build(unit, settings=settings_of(kind)),
        projection=Projection(np.zeros(DIM, np.float32), np.eye(DIM, dtype=np.float32)),
    )
    successors = count_successors("transitions", events, num_items=NUM_VIDEOS)
    views = np.bincount(events.items, minlength=NUM_VIDEOS).astype(np.float32)
    index.watched = Watched(successors, views, tower, weight, "r1")
    return index
