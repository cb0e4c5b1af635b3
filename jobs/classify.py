"""Classify embedded videos: ``python jobs/classify.py jobs/classify.yaml --output s3://predictions/v1/``.

The same as ``raypipe classify``, as a script for ``ray job submit -- python jobs/classify.py …``.
"""

import sys

from raypipe.cli import app

if __name__ == "__main__":
    app(["classify", *sys.argv[1:]])
