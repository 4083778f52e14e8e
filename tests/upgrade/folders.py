"""Where the fixtures lie, and which there must be: one folder for each kind of file and version.

A change of a version needs a fixture of the new one, which `python -m tests.upgrade.make` writes; a
folder that is there is never written again, since no later program could make it as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.derived.file import DerivedKind
from engine.experts.tiers.pack import MANIFEST, PACK_JOURNAL, PACK_VERSION
from tests.engine.derived.subjects import SUBJECTS
from tuner.cli.output import JSON_SCHEMA
from tuner.deployment.document import VERSION as DEPLOYMENT_SCHEMA
from tuner.store.database import _head
from tuner.study.displays import PROGRESS_SCHEMA

FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINT = FIXTURES / "checkpoint"
MAKE = "python -m tests.upgrade.make"
PACKS = ("manifest", "pack journal")
# A description is two files, of which the other is config.json as the hub sent it.
FILES = {
    name.replace(" ", "-"): name for name in SUBJECTS if name not in (*PACKS, "described file")
}
DEFINITION_VERSION = "1"  # of a study's YAML, which names none: count it up if a key goes


def versions_now(kinds: Mapping[str, DerivedKind]) -> dict[str, str]:
    """The version that this program writes, by kind of file. kinds: those of FILES."""
    pack = (PACK_VERSION, MANIFEST.version, PACK_JOURNAL.version)
    return {
        "store": _head(),
        "pack": ".".join(map(str, pack)),
        "deployment": last_part(DEPLOYMENT_SCHEMA),
        "definition": DEFINITION_VERSION,
        "json": last_part(JSON_SCHEMA),
        "progress": last_part(PROGRESS_SCHEMA),
        **{name: str(kind.version) for name, kind in kinds.items()},
    }


def last_part(schema: str) -> str:
    return schema.rpartition("/")[2]


def fixture(kind: str, version: str) -> Path:
    return FIXTURES / kind / version


def versions_of(kind: str) -> list[str]:
    """The versions that there are fixtures of, oldest first."""
    return sorted(path.name for path in (FIXTURES / kind).glob("*"))


def missing(now: Mapping[str, str]) -> list[str]:
    """A sentence for each version that this program writes and no fixture is of."""
    return [
        f"there is no fixture of {kind} {version}: run `{MAKE}` and commit what it wrote"
        for kind, version in now.items()
        if not fixture(kind, version).is_dir()
    ]
