"""The JSON schema of the manifest: `python -m edgeprune.manifest_schema > docs/edgeprune.schema.json`.

It says which fields there are, their types and bounds. What ties fields together, such as the graphs' inputs
that follow from model and plan, no JSON schema can say; docs/bundle.md does.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from edgeprune.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest


def manifest_schema() -> dict[str, Any]:
    """The schema of `edgeprune.json`, by JSON Schema's draft 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{MANIFEST_NAME}, schema version {SCHEMA_VERSION}",
        **_plain(Manifest.model_json_schema()),
    }


def schema_text() -> str:
    """The file's content."""
    return json.dumps(manifest_schema(), indent=2) + "\n"


def _plain(schema: Any, names: bool = False) -> Any:
    """Without what pydantic's versions write differently, and of descriptions the first paragraph.

    Args:
        schema: a part of pydantic's schema.
        names: whether its keys are names of fields or definitions, none of which is left out.
    """
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if names:
        return {name: _plain(part) for name, part in schema.items()}
    left_out = {"title", "enum", "type"} if "const" in schema else {"title"}
    found = {
        key: _plain(value, key in ("properties", "$defs"))
        for key, value in schema.items()
        if key not in left_out and key not in ("default", "discriminator")
    }
    # A default is a value, and its keys are no keywords.
    found |= {key: schema[key] for key in ("default", "discriminator") if key in schema}
    if "description" in found:
        found["description"] = " ".join(found["description"].split("\n\n")[0].split())
    return found


if __name__ == "__main__":
    sys.stdout.write(schema_text())
