"""The check library, built once per test session where a C++ compiler and CMake are."""

from __future__ import annotations

import pytest

from plugins.check.prune_check import CheckLibrary, build, missing_tools


@pytest.fixture(scope="session")
def check_library(tmp_path_factory: pytest.TempPathFactory) -> CheckLibrary:
    if missing := missing_tools():
        pytest.skip(f"the C++ reference was not compared: {' and '.join(missing)} not found")
    return CheckLibrary(build(tmp_path_factory.mktemp("check")))
