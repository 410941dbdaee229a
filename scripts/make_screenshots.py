"""Make docs/tensorboard.png and docs/report.png: a run's dashboards as a person sees them.

    python scripts/make_screenshots.py RUN [--out docs]

TensorBoard's custom scalars and `worldloop report --html`, both in a headless Chromium on this machine alone.
"""

from __future__ import annotations

import argparse
import io
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import Browser
from PIL import Image

from worldloop.reporting.html import write_html_report

DOCS = Path(__file__).resolve().parents[1] / "docs"
START_S, DRAW_S = 60.0, 8.0


def save(page: Browser, path: Path, colours: int = 128) -> None:
    """A palette keeps the file small."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(colours).save(path, optimize=True)
    print(f"{path} {picture.size[0]}x{picture.size[1]}, {path.stat().st_size // 1024} KiB")


def show_tensorboard(run: Path, out: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir=tensorboard", "--host=127.0.0.1", f"--port={port}"]
    server = subprocess.Popen(command, cwd=run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with Browser(1500, 2150) as page:
            end = time.monotonic() + START_S
            while time.monotonic() < end:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.5)
            page.open(f"http://127.0.0.1:{port}/#custom_scalars")
            page.wait_for("document.querySelector('tb-webapp') !== null", START_S)
            time.sleep(DRAW_S)
            save(page, out / "tensorboard.png")
    finally:
        server.terminate()
        server.wait(20)


def show_report(run: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, Browser(1100, 2300) as page:
        html = Path(folder) / "report.html"
        write_html_report(run, html)
        page.open(html.as_uri())
        page.wait_for("document.readyState === 'complete' && document.images.length > 0", START_S)
        time.sleep(1)
        save(page, out / "report.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    show_tensorboard(options.run, options.out)
    show_report(options.run, options.out)


if __name__ == "__main__":
    main()
