"""Take the pictures of the README and the docs: run the demo, and open its page and its reports in Chromium."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from playwright.sync_api import Browser, expect
from rich.console import Console
from rich.text import Text

from support import TESTS
from support.browser import chromium

ROOT = TESTS.parent
PICTURES = ROOT / "docs" / "pictures"
DEMO = ROOT / "build" / "pictures"
WIDTH, HEIGHT = 1280, 860
NUM_WATCHED = 2
COLUMNS = 110  # of the terminal


@contextmanager
def running_demo() -> Iterator[str]:
    """Run the demo, yield the address of its page, and then draw what it printed."""
    command = [sys.executable, "-m", "raypipe", "demo", "--folder", str(DEMO.relative_to(ROOT)), "--keep"]
    environment = {**os.environ, "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(COLUMNS)}
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as demo:
        for line in demo.stdout or ():
            sys.stdout.write(line)
            said.append(line)
            if found := re.search(r"The page: \S*(http://[\w.:]+/)", line):
                yield found[1]
                break
        demo.send_signal(signal.SIGINT)
        said.append(demo.communicate()[0])
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi("".join(said).replace(f"{ROOT}/", "")))
    svg = console.export_svg(title="make demo ARGS=--keep")
    fonts_of_others = r"@font-face \{.*?\}"  # rich would load them from another server
    (PICTURES / "demo.svg").write_text(re.sub(fonts_of_others, "", svg, flags=re.DOTALL), encoding="utf-8")


def take(browser: Browser, address: str, name: str) -> None:
    """Open an address, and write a picture of what is visible."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
    page = context.new_page()
    page.goto(address)
    if address.startswith("http"):
        for number in range(NUM_WATCHED):
            page.locator("#grid button.watch").nth(number).click()
        expect(page.locator("#recommended .row").first).to_be_visible()
    page.wait_for_load_state("networkidle")
    png = page.screenshot()
    context.close()
    Image.open(io.BytesIO(png)).save(PICTURES / f"{name}.webp", quality=80, method=6)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with chromium() as browser, running_demo() as address:
        take(browser, address, "page")
        take(browser, (DEMO / "evaluate.html").as_uri(), "report")
    sys.stdout.write(f"{ {path.name: path.stat().st_size for path in sorted(PICTURES.iterdir())} }\n")


if __name__ == "__main__":
    main()
