"""Memory that is given back is the system's at once."""

import sys

import psutil
import pytest

from engine.device.pages import allocate_pages, give_pages_back

SIZE = 64 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")
def test_pages_that_are_given_back_take_no_memory_and_can_be_written_again():
    pages = allocate_pages(SIZE)
    pages.fill_(7)
    process = psutil.Process()
    before = process.memory_info().rss
    give_pages_back(pages[SIZE // 4 :])
    assert before - process.memory_info().rss > SIZE // 2
    assert int(pages[0]) == 7
    assert int(pages[-1]) == 0
    pages[-1] = 9
    assert int(pages[-1]) == 9
