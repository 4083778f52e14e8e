"""Writes the JSON Schema of deployments from the code: `python docs/build/deployment_schema.py`."""

import json

from tuner.deployment.document import SCHEMA_FILE, deployment_schema


def main() -> None:
    """Replace the shipped schema."""
    SCHEMA_FILE.write_text(json.dumps(deployment_schema(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
