"""Find videos unlike those of an index: ``python jobs/anomalies.py jobs/anomalies.yaml --output s3://anomalies/v1/``.

The same as ``raypipe anomalies``, as a script for ``ray job submit -- python jobs/anomalies.py …``.
"""

import sys

from raypipe.cli import app

if __name__ == "__main__":
    app(["anomalies", *sys.argv[1:]])
