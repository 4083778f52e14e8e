"""The dashboard as a person meets it: `tune dashboard` in a real headless Chromium."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.requirements import require_program

pytestmark = [pytest.mark.chromium, pytest.mark.alone]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture
def address(storage: str) -> Iterator[str]:
    """A running dashboard."""
    require_program("chromium")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-m", "tuner", "dashboard", "--storage", storage]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env={**os.environ, "PYTHONPATH": source},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(f"{url}/_stcore/health")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_up(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the dashboard did not come up")


def test_a_click_on_a_point_shows_its_trial_and_exports_it(address: str, tmp_path: Path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require_program("chromium"), args=FLAGS
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.goto(f"{address}/?study=small")
        page.get_by_text("(recommended)").wait_for(timeout=60_000)
        before = page.locator("h3", has_text="Trial ").first.inner_text()
        points = page.locator(".js-plotly-plot").first.locator(".scatterlayer .points path")
        points.first.wait_for()
        for number in range(points.count()):
            points.nth(number).click(force=True)
            page.wait_for_timeout(1500)
            after = page.locator("h3", has_text="Trial ").first.inner_text()
            if after != before:
                break
        assert after != before
        with page.expect_download() as download:
            page.get_by_role("button", name="Export as YAML").click()
        path = tmp_path / "picked.yaml"
        download.value.save_as(path)
        browser.close()
    exported = yaml.safe_load(path.read_text())
    assert after.startswith(f"Trial {exported['provenance']['trial']}")
