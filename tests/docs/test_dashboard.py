"""docs/dashboard.md names every page, and its pictures are there and small."""

import re

from dashboard.app import PAGES
from tuner.folders import SOURCE

TEXT = (SOURCE / "docs" / "dashboard.md").read_text()
MOST_BYTES = 200_000


def test_every_page_is_described():
    for _, title, _ in PAGES:
        assert f"| {title} |" in TEXT


def test_every_picture_is_there_and_small():
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", TEXT)
    assert len(shown) > 5
    for path in shown:
        assert 0 < (SOURCE / "docs" / path).stat().st_size <= MOST_BYTES
