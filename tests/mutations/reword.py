"""Check that only the golden file depends on the wording of errors: ``python -m mutations.reword`` in ``tests/``.

Every sentence in a copy of raypipe is reworded, and the tests of `make test` run there. The exit code is 1 if any test
except the golden file's fails.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mutations.run import copy_tree, outcomes
from support.messages import SOURCE, files, reworded

_GOLDEN_TEST = "tests/test_messages.py::test_every_sentence_is_in_the_golden_file"


def main() -> int:
    """Reword, run and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tree(folder)
        for path in files():
            copied = folder / "raypipe" / path.relative_to(SOURCE)
            copied.write_text(reworded(path.read_text(encoding="utf-8")), encoding="utf-8")
        # The copy is generated from the syntax tree, so no patch applies to it.
        tier = ["-m", "not slow and not nightly", "--ignore", "tests/test_mutations.py"]
        command = [sys.executable, "-m", "pytest", "-q", "--tb=line", *tier, *sys.argv[1:]]
        results = folder / "results.xml"
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        subprocess.run([*command, f"--junitxml={results}"], cwd=folder, env=environment, check=False)
        found = {test for test, outcome in outcomes(results).items() if outcome in {"failed", "error"}}
    sys.stdout.write(f"failed: {', '.join(sorted(found)) or 'nothing'}\n")
    return int(found != {_GOLDEN_TEST})


if __name__ == "__main__":
    sys.exit(main())
