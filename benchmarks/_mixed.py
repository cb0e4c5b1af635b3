"""The options of the scripts that embed the mixed catalogue, and that catalogue."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from _clips import MIXED, make_catalogue
from _common import videos_folder


def parse_options(
    description: str | None, *, videos: int, repeats: int, backbones: Sequence[str], quick_videos: int = 40
) -> argparse.Namespace:
    """Those of the command line, with these defaults; the quick form is one repeat of the first backbone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=videos)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--backbones", nargs="+", default=list(backbones))
    parser.add_argument("--videos-folder", type=Path, default=videos_folder(), help="where the next run finds them")
    quick = f"once, {quick_videos} videos of 8 clips, {backbones[0]}"
    parser.add_argument("--quick", action="store_true", help=quick)
    options = parser.parse_args()
    options.clips = MIXED[:8] if options.quick else MIXED
    if options.quick:
        options.videos, options.repeats, options.backbones = quick_videos, 1, [backbones[0]]
    return options


def mixed_catalogue(options: argparse.Namespace) -> list[Path]:
    """The videos that the options ask for."""
    return make_catalogue(options.videos_folder, options.videos, clips=options.clips)
