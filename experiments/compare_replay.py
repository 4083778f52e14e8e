"""Compares our replay with moe-policylang's: `python -m experiments.run compare_replay [TRACE]`.

Feeds the accesses of one routing trace to both and prints hits side by side: LRU per layer and
shared, Belady, LFU. Where both define a policy alike, hits must be equal, else the exit code is 1;
where definitions differ, the difference is stated and, as far as it can be predicted, checked.

Needs moe-policylang (MIT; `pip install -e ".[baselines]"`), of which this calls the functions of
benchmark.replay. Each of its caches starts empty with a prompt; here a whole trace is one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from engine.errors import EngineError
from engine.policy.evict.base import Eviction
from engine.policy.evict.belady import BeladyEviction
from engine.policy.evict.lfu import LfuEviction
from engine.policy.evict.lru import LruEviction
from engine.policy.expert_cache import ExpertCache
from engine.policy.expert_policy import ExpertPolicy
from engine.policy.future import Future
from engine.policy.placement import DevicePlacement
from engine.policy.pools import pools_of_layers
from engine.policy.precision import UniformPrecision
from engine.policy.predict.none import NoPredictor
from engine.replay.bound import best_hits
from engine.replay.walk import walk
from engine.trace.trace import Trace, TracePass, load_trace
from engine.types import ExpertId

Must = Literal["equal", "at least", "-"]
MakeEviction = Callable[[Future], Eviction]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Compared:
    """The hits of a policy in our replay and in theirs. must: the required relation of ours to
    theirs; why: the difference of definition, if any."""

    policy: str
    ours: int
    theirs: int
    must: Must
    why: str = ""

    @property
    def holds(self) -> bool:
        """Whether the required relation holds."""
        if self.must == "equal":
            return self.ours == self.theirs
        return self.must == "-" or self.ours >= self.theirs


class ForgettingLfu(LfuEviction):
    """LFU as moe-policylang defines it: an evicted expert loses its count."""

    def forget(self, expert: ExpertId) -> None:
        """Drops the expert's count."""
        self._keys.pop(expert, None)


def compare_single(trace: Trace, slots: int, theirs: Any) -> list[Compared]:
    """Replays every chosen expert as its own request: definitions coincide except for LFU's memory.

    slots: per layer; theirs: moe_policylang.benchmark.replay.
    """
    single = single_requests(trace)
    layers = [_one_hot(single, layer) for layer in range(single.layers)]

    def all_layers(name: str) -> int:
        return sum(theirs.POLICIES[name](scores, 1, slots)[0] for scores in layers)

    def lfu(future: Future) -> Eviction:
        return LfuEviction(1.0)

    belady, lfu_hits = all_layers("belady"), all_layers("topk_lfu")
    bound = sum(best_hits(single, [slots] * single.layers).hits.values())
    flat = _flat_hits(single, slots * single.layers, theirs)
    return [
        Compared("LRU", our_hits(single, slots, _lru), all_layers("topk_lru"), "equal"),
        Compared("LRU, shared slots", our_hits(single, slots, _lru, shared=True), flat, "equal"),
        Compared("Belady", our_hits(single, slots, BeladyEviction), belady, "equal"),
        Compared(
            "Belady's bound", bound, belady, "at least",
            "our bound may bypass: what is loaded need not stay",
        ),
        Compared(
            "LFU", our_hits(single, slots, lfu), lfu_hits, "-",
            "our counts outlive the stay in a slot, theirs do not",
        ),
        Compared(
            "LFU that forgets", our_hits(single, slots, lambda _: ForgettingLfu(1.0)), lfu_hits,
            "equal",
        ),
    ]  # fmt: skip


def compare_tokens(trace: Trace, slots: int, theirs: Any) -> list[Compared]:
    """Replays every token as one request for all its experts, as moe-policylang replays a trace."""
    tokens = token_requests(trace)
    chosen = tokens.experts.shape[2]
    layers = [_ranked(tokens, layer) for layer in range(tokens.layers)]

    def all_layers(name: str) -> int:
        return sum(theirs.POLICIES[name](scores, chosen, slots)[0] for scores in layers)

    lru, belady = our_hits(tokens, slots, _lru), all_layers("belady")
    bound = sum(best_hits(tokens, [slots] * tokens.layers).hits.values())
    in_turn = "they serve a token's experts in turn, so one may evict the next; ours pin them all"
    bypass = "ours may bypass; theirs serve a token's experts in turn"
    return [
        Compared("LRU", lru, all_layers("topk_lru"), "-", in_turn),
        Compared(
            "LRU, their cache asked for residents first", lru,
            _residents_first(tokens, slots, theirs), "equal",
        ),
        Compared("Belady", our_hits(tokens, slots, BeladyEviction), belady, "-", in_turn),
        Compared("Belady's bound", bound, belady, "at least", bypass),
    ]  # fmt: skip


def single_requests(trace: Trace) -> Trace:
    """Returns the trace with each chosen expert as its own pass (one token, K = 1)."""
    rows, layers, chosen = trace.experts.shape
    experts = trace.experts.transpose(0, 2, 1).reshape(rows * chosen, layers, 1)
    return _one_row_a_pass(trace, np.ascontiguousarray(experts))


def token_requests(trace: Trace) -> Trace:
    """Returns the trace with each token as its own pass."""
    return _one_row_a_pass(trace, trace.experts)


def our_hits(
    trace: Trace, slots: int, make: Callable[[Future], Eviction], *, shared: bool = False
) -> int:
    """Returns the hits of an eviction policy over the whole trace. slots: per layer."""
    future = Future(trace.layers)
    future.load(trace)
    pools = (slots * trace.layers,) if shared else (slots,) * trace.layers
    cache = ExpertCache(pools_of_layers(pools, (16,)), lambda: make(future), layers=trace.layers)
    policy = ExpertPolicy(cache, NoPredictor(), UniformPrecision(16), DevicePlacement(), future)
    walk(trace, policy)
    return sum(policy.counters.hits.values())


def made_trace(tokens: int = 400, layers: int = 3, experts: int = 24, chosen: int = 4) -> Trace:
    """Generates a seeded trace whose uneven expert popularity drifts, so that policies differ."""
    random = np.random.default_rng(0)
    rows = np.empty((tokens, layers, chosen), np.int16)
    for token, layer in np.ndindex(tokens, layers):
        weights = np.exp(-((np.arange(experts) - token / 40 - 5 * layer) % experts) / 4)
        rows[token, layer] = random.choice(
            experts, chosen, replace=False, p=weights / weights.sum()
        )
    return Trace((TracePass(0, "decode", (1,), 0),), rows, None, None, None, None, None, {})


def _lru(future: Future) -> Eviction:
    return LruEviction()


def _one_row_a_pass(trace: Trace, experts: NDArray[np.int16]) -> Trace:
    passes = tuple(TracePass(0, "decode", (1,), row) for row in range(len(experts)))
    return Trace(passes, experts, None, None, None, None, None, trace.facts)


def _width(trace: Trace) -> int:
    return int(trace.experts.max()) + 1


def _one_hot(single: Trace, layer: int) -> Scores:
    """Scores [requests, E] whose top expert is the requested one; rows without a request are
    dropped."""
    column = single.experts[:, layer, 0]
    return np.eye(_width(single), dtype=np.float32)[column[column >= 0]]


def _ranked(tokens: Trace, layer: int) -> Scores:
    """Scores [T, E] whose top K experts are the chosen ones."""
    block = tokens.experts[:, layer].astype(np.int64)
    if block.min() < 0:
        raise typer.BadParameter("tokens with fewer experts than others cannot be ranked for them")
    scores = np.zeros((len(block), _width(tokens)), np.float32)
    ranks = np.arange(block.shape[1], 0, -1, dtype=np.float32)
    np.put_along_axis(scores, block, np.broadcast_to(ranks, block.shape), axis=1)
    return scores


def _flat_hits(single: Trace, slots: int, theirs: Any) -> int:
    requests, layers = single.experts.shape[:2]
    tokens, numbers = np.divmod(np.arange(requests * layers), layers)
    column = single.experts.reshape(-1)
    there = column >= 0
    scores = np.eye(_width(single), dtype=np.float32)[column[there]]
    prompts = np.zeros(len(scores), np.int32)
    hits, _ = theirs.simulate_flat(scores, numbers[there], prompts, tokens[there], 1, slots)
    return int(hits)


def _residents_first(tokens: Trace, slots: int, theirs: Any) -> int:
    """Hits of their LRU cache when each token requests its resident experts before the missing
    ones."""
    hits = 0
    for layer in range(tokens.layers):
        cache = theirs.LRUCache(slots)
        for row in tokens.experts[:, layer].tolist():
            there = [expert for expert in row if expert in cache]
            hits += len(there)
            for expert in (*there, *(e for e in row if e not in there)):
                cache.touch(expert)
    return hits


def _print(title: str, rows: Sequence[Compared]) -> None:
    print(f"\n{title}\n{'policy':44}{'ours':>9}{'theirs':>9}  must be   ")
    for row in rows:
        mark = "" if row.holds else "  DIFFERS"
        note = f"  ({row.why})" if row.why else ""
        print(f"{row.policy:44}{row.ours:9}{row.theirs:9}  {row.must:9}{mark}{note}")


def main(
    trace: Annotated[Path | None, typer.Argument(help="routing trace; default: a made one")] = None,
    fraction: Annotated[float, typer.Option(help="percent of a layer's experts in slots")] = 25.0,
    tokens: Annotated[int, typer.Option(help="use so many tokens, 0: all", min=0)] = 0,
) -> None:
    """Compares the hits of both replays over TRACE; exits 1 if they differ without a stated
    reason."""
    try:
        from moe_policylang.benchmark import replay as theirs
    except ImportError as error:
        raise typer.BadParameter(f'{error}: pip install -e ".[baselines]"') from error
    try:
        found = load_trace(trace) if trace is not None else made_trace()
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error
    if tokens:
        found = _one_row_a_pass(found, found.experts[:tokens])
    chosen = found.experts.shape[2]
    slots = max(chosen, round(_width(found) * fraction / 100))
    print(
        f"{len(found.experts)} tokens, {found.layers} layers, {_width(found)} experts, "
        f"top-{chosen}, {slots} slots a layer"
    )
    single, whole = compare_single(found, slots, theirs), compare_tokens(found, slots, theirs)
    _print("Each expert a request of its own", single)
    _print("Each token a request for all its experts", whole)
    if not all(row.holds for row in (*single, *whole)):
        raise typer.Exit(1)
