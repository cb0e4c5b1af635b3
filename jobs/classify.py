"""Classify embedded videos: ``python jobs/classify.py jobs/classify.yaml --output s3://predictions/v1/``.

The same as ``raypipe classify``; a file of its own, so that ``ray job submit -- python jobs/classify.py …`` can run it.
"""

import sys

from raypipe.cli import app

if __name__ == "__main__":
    app(["classify", *sys.argv[1:]])
