"""Embed a folder of videos, and print what to watch after each of the first videos.

python examples/recommend_folder.py ~/Videos work
"""

import argparse
from pathlib import Path

import raypipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="a folder of videos")
    parser.add_argument("work", type=Path, help="where the embeddings and the index go")
    parser.add_argument("--weights", default="default", help="of the ResNet: default, random, or a file")
    options = parser.parse_args()

    backbone = {"name": "resnet18", "weights": options.weights}
    print(raypipe.embed(options.videos, options.work / "embeddings", backbone=backbone))
    print(raypipe.index(options.work / "embeddings", options.work / "index"))
    index = raypipe.VideoIndex.open(options.work / "index")
    dataset = raypipe.open_dataset(options.work / "embeddings")
    for video_id in sorted(dataset.to_arrow(columns=["video_id"])["video_id"].to_pylist())[:5]:
        found = index.recommend([video_id], top_k=3)
        print(f"After {video_id}: {', '.join(one.video_id for one in found)}")


if __name__ == "__main__":
    main()
