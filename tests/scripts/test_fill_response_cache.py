"""Every text below the bound is found, the likeliest first, and no other."""

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from scripts.fill_response_cache import Search, likely_prompts

VOCABULARY, END, LONGEST = 4, 3, 3


def logs_of(seed: int, tokens: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(hash((seed, tokens)) % 2**31)
    return torch.log_softmax(3 * torch.randn(VOCABULARY, generator=generator), dim=-1)


def all_texts(seed: int, bound: float) -> dict[tuple[int, ...], float]:
    """By trying all of them."""
    found = {}
    for length in range(1, LONGEST + 1):
        for text in itertools.product(range(VOCABULARY - 1), repeat=length):
            path = (*text, END)
            nll = -sum(
                float(logs_of(seed, (9, *path[:place]))[token]) for place, token in enumerate(path)
            )
            if nll <= bound:
                found[text] = nll
    return found


@given(
    seed=st.integers(0, 10_000),
    bound=st.floats(0.5, 9.0),
    together=st.integers(1, 5),
)
def test_the_search_finds_what_trying_all_finds(seed: int, bound: float, together: int):
    search = Search((9,), {END}, bound, LONGEST, together)
    found = list(likely_prompts(search, lambda asked: [logs_of(seed, one) for one in asked]))
    expected = {t: n for t, n in all_texts(seed, bound).items() if abs(n - bound) > 1e-4}
    near = {one.tokens: one.nll for one in found if abs(one.nll - bound) > 1e-4}
    assert set(near) == set(expected)
    assert all(math.isclose(near[text], expected[text], rel_tol=1e-4) for text in near)
    assert [one.nll for one in found] == sorted(one.nll for one in found)
