"""`python -m engine.train`: one JSON request on stdin, one JSON answer on stdout.

Request: {"what": predictor | pregates | eviction, "trace": path, "output": path, ...options}
Answer: the result, or {"error": sentence, "exit_code": n}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from engine.derived.arrays import adopt_arrays, save_arrays
from engine.errors import EngineError, StorageError
from engine.policy.learned import LEARNED
from engine.trace.trace import load_trace


def run(what: str, trace: str, output: str | None = None, **options: Any) -> dict[str, Any]:
    """Train one kind; returns the answer to print. Raises EngineError."""
    recorded = load_trace(Path(trace))
    if what == "eviction":
        from engine.train.eviction import fit_eviction

        return fit_eviction(recorded, **options)
    if what == "predictor":
        from engine.train.predictor import train_predictor

        found = train_predictor(recorded, **options)
    else:
        from engine.train.pregates import distill_pregates

        found = distill_pregates(recorded, **options)
    assert output is not None
    path = Path(output)
    add_arrays(path, found.arrays)
    return {"output": str(path), "arrays": len(found.arrays), "accuracies": found.accuracies}


def add_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write learned arrays; arrays of another predictor in the same file stay, a damaged file is
    moved aside. Raises StorageError."""
    own = {name.split(".")[0] for name in arrays}
    try:
        former = adopt_arrays(path, LEARNED) or {}
        kept = {name: array for name, array in former.items() if name.split(".")[0] not in own}
        save_arrays(path, LEARNED, {**kept, **arrays})
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from None


def main() -> int:
    request = json.load(sys.stdin)
    try:
        answer, code = run(**request), 0
    except EngineError as error:
        answer, code = {"error": str(error), "exit_code": error.exit_code}, error.exit_code
    sys.stdout.write(json.dumps(answer) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
