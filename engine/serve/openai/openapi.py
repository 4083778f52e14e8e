"""Adds the served model's limits to the OpenAPI document: name, max_model_len, vocabulary."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from engine.serve.openai.tokenization import ServedModel

_REQUESTS = ("CompletionRequest", "ChatRequest")
_LIMITS = ("max_tokens", "max_completion_tokens", "min_tokens")


def describe_api(app: FastAPI, served: ServedModel) -> None:
    """Make the application's document state what this server accepts."""
    document = app.openapi()
    schemas = document["components"]["schemas"]
    for name in _REQUESTS:
        properties = schemas[name]["properties"]
        properties["model"]["enum"] = [served.name]
        for limit in _LIMITS:
            for branch in properties.get(limit, {}).get("anyOf", ()):
                if branch.get("type") == "integer":
                    branch["maximum"] = served.max_model_len
    for branch in schemas["CompletionRequest"]["properties"]["prompt"]["anyOf"]:
        _bound_ids(branch, served)
    _drop_unused_errors(document)


def _bound_ids(branch: dict[str, Any], served: ServedModel) -> None:
    """Add limits to a schema branch that is a list of token ids, or of such lists."""
    items = branch.get("items", {})
    if items.get("type") == "integer":
        items["maximum"] = served.vocabulary - 1
        branch["maxItems"] = served.max_model_len - 1
    elif items.get("type") == "array":
        _bound_ids(items, served)


def _drop_unused_errors(document: dict[str, Any]) -> None:
    """Remove FastAPI's own 422, which this server answers as 400."""
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
