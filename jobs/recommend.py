"""Recommend to many users: ``python jobs/recommend.py jobs/recommend.yaml --history s3://users/history.parquet``.

The same as ``raypipe recommend``; a file of its own, so that ``ray job submit -- python jobs/recommend.py …`` runs it.
"""

import sys

from raypipe.cli import app

if __name__ == "__main__":
    app(["recommend", *sys.argv[1:]])
