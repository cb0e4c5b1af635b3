"""Users with the lists that the endpoint would show them."""

from collections.abc import Sequence

import numpy as np

from raypipe.evaluation.protocols import Split
from raypipe.evaluation.rankers import Served
from raypipe.records import ExampleUser, ListedVideo
from raypipe.search.index import VideoIndex
from raypipe.search.items import TITLE

NUM_EXAMPLES, NUM_SHOWN = 12, 6  # users, and videos of their history and list


def example_users(index: VideoIndex, served: Served, split: Split, *, seed: int) -> tuple[ExampleUser, ...]:
    """Draw test users, and return what they watched, what is recommended to them, and what they watched next."""
    count = min(NUM_EXAMPLES, len(split.users))
    drawn = np.sort(np.random.default_rng(seed).choice(split.users, count, replace=False))
    return tuple(_example(index, served, split, user) for user in drawn.tolist())


def _example(index: VideoIndex, served: Served, split: Split, user: int) -> ExampleUser:
    history, targets = split.known.history(user), split.targets.history(user).tolist()
    listed = served.listed(history)

    def videos(positions: Sequence[int]) -> tuple[ListedVideo, ...]:
        return tuple(_video(index, position, is_target=position in targets) for position in positions)

    return ExampleUser(
        history=videos(history[-NUM_SHOWN:].tolist()),
        listed=videos(listed[:NUM_SHOWN]),
        targets=videos(targets[:NUM_SHOWN]),
        place=next((place for place, position in enumerate(listed, start=1) if position in targets), None),
        num_watched=len(history),
        num_listed=len(listed),
    )


def _video(index: VideoIndex, position: int, *, is_target: bool) -> ListedVideo:
    title = index.items.row(position).get(TITLE)
    name = title if isinstance(title, str) and title.strip() else index.items.video_id(position)
    return ListedVideo(name=name, thumbnail=index.items.thumbnail(position), is_target=is_target)
