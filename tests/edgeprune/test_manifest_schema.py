"""The JSON schema of the manifest: up to date, and true of manifests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeprune.manifest import Manifest
from edgeprune.manifest_schema import manifest_schema, schema_text
from tests.manifests import make_manifest

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "edgeprune.schema.json"
DOCUMENT = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")


def test_the_file_is_up_to_date() -> None:
    assert json.loads(FILE.read_text(encoding="utf-8")) == manifest_schema(), "run `make schema`"


def test_the_command_writes_the_file() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune.manifest_schema"], capture_output=True, text=True, check=True
    )
    assert done.stdout == schema_text()


def test_every_field_of_the_root_is_required_or_has_a_default() -> None:
    schema = manifest_schema()
    assert set(schema["properties"]) == set(Manifest.model_fields)
    assert all(
        name in schema["required"] or "default" in field for name, field in schema["properties"].items()
    )
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "sparsevlm", "illava", "random"])
def test_every_field_that_a_manifest_holds_is_in_the_schema(method: str) -> None:
    schema = manifest_schema()
    _walk(json.loads(make_manifest(method).model_dump_json()), schema, schema["$defs"], "")


def _walk(value: Any, schema: dict[str, Any], definitions: dict[str, Any], where: str) -> None:
    """Follows a value down the schema; of alternatives, the one of its `kind`."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[-1]]
    options = schema.get("anyOf") or schema.get("oneOf")
    if options is not None:
        fitting = [option for option in options if _may_be(value, option, definitions)]
        assert fitting, where
        schema = definitions[fitting[0]["$ref"].rsplit("/", 1)[-1]] if "$ref" in fitting[0] else fitting[0]
    if isinstance(value, dict) and "properties" in schema:
        assert set(value) <= set(schema["properties"]), where
        assert set(schema.get("required", ())) <= set(value), where
        for name, part in value.items():
            _walk(part, schema["properties"][name], definitions, f"{where}.{name}")
    elif isinstance(value, list) and "items" in schema:
        for part in value:
            _walk(part, schema["items"], definitions, where)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), where
    elif isinstance(value, str) and "enum" in schema:
        assert value in schema["enum"], where


def _may_be(value: Any, option: dict[str, Any], definitions: dict[str, Any]) -> bool:
    if "$ref" in option:
        target = definitions[option["$ref"].rsplit("/", 1)[-1]]
        kind = target.get("properties", {}).get("kind", {}).get("const")
        return isinstance(value, dict) and (kind is None or value.get("kind") == kind)
    kinds = {"null": type(None), "string": str, "integer": int, "number": (int, float), "array": list}
    return isinstance(value, kinds.get(option.get("type", ""), object))


@pytest.mark.parametrize("name", sorted(manifest_schema()["properties"]))
def test_the_document_tells_of_every_field_of_the_root(name: str) -> None:
    assert re.search(rf"`{name}`", DOCUMENT)


def _names(schema: dict[str, Any]) -> set[str]:
    return {name for part in schema["$defs"].values() for name in part.get("properties", ())}


@pytest.mark.parametrize("name", sorted(_names(manifest_schema())))
def test_the_document_tells_of_every_field_below(name: str) -> None:
    assert re.search(rf"[`.]{name}`", DOCUMENT)


def _kinds(schema: dict[str, Any]) -> set[str]:
    """Every word that a field may hold: kinds and choices."""
    words = set()
    for part in schema["$defs"].values():
        words |= {word for word in part.get("enum", ()) if isinstance(word, str)}
        for field in part.get("properties", {}).values():
            words |= {word for word in (field.get("const"), *field.get("enum", ())) if isinstance(word, str)}
    return words


@pytest.mark.parametrize("word", sorted(_kinds(manifest_schema())))
def test_the_document_tells_of_every_word(word: str) -> None:
    assert re.search(rf"`{word}`", DOCUMENT)
