"""Build an index: ``python jobs/index.py jobs/index.yaml --embeddings s3://embeddings/v1/ --output s3://index/v1/``.

The same as ``raypipe index``, as a script for ``ray job submit -- python jobs/index.py …``.
"""

import sys

from raypipe.cli import app

if __name__ == "__main__":
    app(["index", *sys.argv[1:]])
