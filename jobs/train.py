"""Train a classifier: ``python jobs/train.py jobs/train.yaml --embeddings s3://embeddings/v1/ --labels labels.csv``.

The same as ``raypipe train``, as a script for ``ray job submit -- python jobs/train.py …``.
"""

import sys

from raypipe.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
