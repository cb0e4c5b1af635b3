"""Embed a bucket of videos: ``python jobs/embed.py jobs/embed.yaml --input s3://videos/ --output s3://embeddings/v1/``.

The same as ``raypipe embed``, as a script for ``ray job submit -- python jobs/embed.py …``.
"""

import sys

from raypipe.cli import app

if __name__ == "__main__":
    app(["embed", *sys.argv[1:]])
