"""Takes the pictures of docs/dashboard.md, from a store that real studies filled.

    python docs/build/screenshots.py --storage sqlite:///expertune.db --study demo

Starts `tune dashboard` on a free port of this machine, opens its pages in headless Chromium and
writes docs/screenshots/*.png, each at most 200 kB.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.folders import SOURCE

MOST_BYTES = 200_000
FLAGS = ["--no-sandbox", "--enable-unsafe-swiftshader", "--disable-background-networking"]


@dataclass(frozen=True)
class Shot:
    """One picture. scroll_to: a text that is brought to its top; choices: more of the address."""

    name: str
    page: str
    width: int = 1280
    height: int = 900
    dark: bool = False
    scroll_to: str = ""
    choices: str = ""


SHOTS = (
    Shot("studies", ""),
    Shot("front", "front"),
    Shot("front-three-objectives", "front", choices="&view=three"),
    Shot("front-trial", "front", scroll_to="Where the time of a token goes", height=1000),
    Shot("front-dark", "front", dark=True),
    Shot("front-phone", "front", width=390, height=844),
    Shot("trials", "trials"),
    Shot("predictions", "trials", scroll_to="Predicted against measured"),
    Shot("settings", "trials", scroll_to="Settings and what they gave", height=1000),
    Shot("experts", "experts", height=1100),
    Shot("compare", "compare", height=1000),
)


def main() -> None:
    """Parse the arguments and take every picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", required=True)
    parser.add_argument("--study", default="demo")
    parser.add_argument("--experts-study", help="another study, for the page of experts")
    parser.add_argument("--only", nargs="*", help="names of pictures, all by default")
    parser.add_argument("--folder", type=Path, default=SOURCE / "docs" / "screenshots")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with serving(arguments.storage) as address, browser() as opened:
        for shot in SHOTS:
            if arguments.only and shot.name not in arguments.only:
                continue
            study = arguments.study
            if shot.page == "experts" and arguments.experts_study:
                study = arguments.experts_study
            path = arguments.folder / f"{shot.name}.png"
            take(opened, f"{address}/{shot.page}?study={study}{shot.choices}", shot, path)
            size = path.stat().st_size
            print(f"{path}: {size} bytes")
            if size > MOST_BYTES:
                sys.exit(f"{path} is larger than {MOST_BYTES} bytes: make the window smaller")


@contextlib.contextmanager
def serving(storage: str) -> Iterator[str]:
    """The address of `tune dashboard` on this store; it ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tuner", "dashboard", "--storage", storage]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=SOURCE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until_up(f"http://127.0.0.1:{port}/_stcore/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless; WebGL without a GPU, which the charts of three axes need."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        sys.exit("chromium is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield opened
        finally:
            opened.close()


def take(opened: Any, address: str, shot: Shot, path: Path) -> None:
    """One picture of one page, once nothing moves any more."""
    page = opened.new_page(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme="dark" if shot.dark else "light",
    )
    page.goto(address)
    settle(page)
    if shot.scroll_to:
        page.get_by_text(shot.scroll_to, exact=True).first.evaluate(
            "element => element.scrollIntoView()"
        )
        page.wait_for_timeout(1000)
    page.screenshot(path=path)
    page.close()


def settle(page: Any) -> None:
    """Wait until the program has run and the charts are drawn."""
    page.locator("h1").first.wait_for(timeout=60_000)
    page.wait_for_function(
        "() => document.querySelector('[data-test-script-state=\"notRunning\"]') !== null",
        timeout=60_000,
    )
    page.wait_for_timeout(2500)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.stPlotlyChart')]"
        ".every(chart => chart.querySelector('.main-svg'))",
        timeout=60_000,
    )
    page.wait_for_timeout(500)


def wait_until_up(url: str) -> None:
    """Ask until it answers; TimeoutError after a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("the dashboard did not come up")


if __name__ == "__main__":
    main()
