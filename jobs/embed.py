"""Embed a bucket of videos: ``python jobs/embed.py jobs/embed.yaml --input s3://videos/ --output s3://embeddings/v1/``.

The same as ``raypipe embed``; a file of its own, so that ``ray job submit -- python jobs/embed.py …`` can run it.
"""

import sys

from raypipe.cli import app

if __name__ == "__main__":
    app(["embed", *sys.argv[1:]])
