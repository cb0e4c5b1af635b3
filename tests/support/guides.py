"""Run the Python of a guide or an example as a user would: from a home directory with videos, labels and histories."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support.videos import make_video

NAMES = [f"{label}/{number}.mp4" for number in range(1, 13) for label in ("cats", "dogs")]


def fill_home(folder: Path) -> None:
    """Write the 24 videos ``Videos/NAME``, ``labels.csv`` and ``history.csv``."""
    for number, name in enumerate(NAMES):
        video = folder / "Videos" / name
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(make_video(shade=10 * number))
    write_labels(folder / "labels.csv", NAMES)
    watched = "".join(f"u{user},{name}\n" for user in range(6) for name in NAMES[user : user + 4])
    (folder / "history.csv").write_text(f"user_id,video_id\n{watched}")


def write_labels(path: Path, names: list[str]) -> None:
    """Label each video with its folder."""
    path.write_text("video_id,label\n" + "".join(f"{name},{name[:4]}\n" for name in names))


def python_of(markdown: str) -> str:
    """Return the Python blocks of a text, in their order."""
    return "\n".join(re.findall(r"```python\n(.*?)```", markdown, re.DOTALL))


def without_download(code: str) -> str:
    """Return code that uses random weights: without the network there are no pretrained ones."""
    changed = re.sub(r'backbone="(\w+)"', r'backbone={"name": "\1", "weights": "random"}', code)
    assert changed != code
    return changed


def indented(code: str) -> str:
    """Return the code as the body of a function."""
    return "".join(f"    {line}\n" for line in code.splitlines())


def run_script(code: str, home: Path, *, timeout_seconds: float) -> None:
    """Run code as a script in the home directory. It must succeed."""
    script = home / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script],
        cwd=home,
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
