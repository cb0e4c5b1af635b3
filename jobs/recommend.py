"""Recommend to many users: ``python jobs/recommend.py jobs/recommend.yaml --history s3://users/history.parquet``.

The same as ``raypipe recommend``, as a script for ``ray job submit -- python jobs/recommend.py …``.
"""

import sys

from raypipe.cli import app

if __name__ == "__main__":
    app(["recommend", *sys.argv[1:]])
