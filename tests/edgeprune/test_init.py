"""The package's public names, and what importing it costs."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from types import ModuleType

import pytest

import edgeprune
from edgeprune.errors import EdgepruneError, InputError, MissingDependencyError

HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "onnxscript", "optimum"}


def run(code: str) -> str:
    """What `code` prints in a fresh interpreter, where nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_by(statement: str) -> set[str]:
    """Top-level names of all modules that a statement imports, as `-X importtime` lists them."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines if line.startswith("import time:")}


def test_importing_the_package_loads_the_standard_library_alone() -> None:
    loaded = imported_by("import edgeprune")
    assert "edgeprune" in loaded
    assert not loaded & {*HEAVY, "numpy", "pydantic", "typer", "rich", "PIL"}


def test_importing_the_exporters_package_loads_nothing_heavy() -> None:
    assert not imported_by("import edgeprune.exporter") & HEAVY


def test_every_public_name_is_there() -> None:
    for name in set(edgeprune.__all__) - {"load"}:
        assert getattr(edgeprune, name) is not None
    assert set(edgeprune.__all__) <= set(dir(edgeprune))
    assert edgeprune.EdgepruneError is EdgepruneError


def test_load_is_a_function() -> None:
    assert callable(edgeprune.load)
    assert not isinstance(edgeprune.load, ModuleType)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'exprot'"):
        _ = edgeprune.exprot


def test_export_is_a_function_that_says_what_it_takes() -> None:
    """Without anything heavy: its help is read where the exporter's packages are missing, too."""
    blocked = dict.fromkeys(["torch", "transformers", "onnx", "numpy", "pydantic"])
    code = (
        f"import sys; sys.modules.update({blocked}); import edgeprune, inspect\n"
        "print(inspect.signature(edgeprune.export)); print(inspect.getdoc(edgeprune.export))"
    )
    signature, *documentation = run(code).splitlines()
    assert "keep: 'Keep' = None" in signature
    assert signature.endswith("-> 'Path'")
    described = "\n".join(documentation)
    for name in inspect.signature(edgeprune.export).parameters:
        assert re.search(rf"^    {name}: |^    {name}, |, {name}: ", described, re.MULTILINE), name


def test_every_option_of_an_export_is_a_parameter() -> None:
    from edgeprune.exporter.pipeline import ExportOptions

    fields = [field.name for field in dataclasses.fields(ExportOptions)]
    parameters = inspect.signature(edgeprune.export).parameters
    assert set(fields) <= set(parameters)
    defaults = ExportOptions()
    assert all(getattr(defaults, name) == parameters[name].default for name in fields)


def test_the_call_reaches_the_real_exporter() -> None:
    with pytest.raises(InputError, match="opset 1 is not supported"):
        edgeprune.export("nowhere", keep=0.3, opset=1)


def test_exporting_without_its_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgeprune.exporter.pipeline", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"exporting .* torch.*edgeprune\[export\]"):
        edgeprune.export("nowhere", keep=0.3)


def test_a_broken_import_inside_the_exporter_stays_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "edgeprune.exporter.pipeline", None)
    with pytest.raises(ModuleNotFoundError):
        edgeprune.export("nowhere", keep=0.3)


def test_errors_of_the_user_have_one_base() -> None:
    assert issubclass(InputError, EdgepruneError)
    assert not issubclass(EdgepruneError, (ValueError, OSError))
