"""Every parameter of a function has an option of its command, and every option a parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest

import edgeprune
from edgeprune.bench.peers.run import run as bench_peers
from edgeprune.bench.run import run as bench
from edgeprune.calibration import calibrate
from edgeprune.cli.main import COMMANDS
from edgeprune.evaluation import Asking, Grid, Pruning, compare, evaluate
from edgeprune.runtime import Model
from edgeprune.runtime.backends.tensorrt import build
from edgeprune.runtime.sampling import SamplingOptions


def parameters(*sources: Any) -> set[str]:
    found: set[str] = set()
    for source in sources:
        names = getattr(source, "__annotations__", {}) if inspect.isclass(source) else {}
        found |= set(names) or set(inspect.signature(source).parameters)
    return found - {"self", "progress", "sampling", "options"}


# Command -> what it calls, the parameters that no option has, and the options with another name than theirs.
CASES: dict[str, tuple[tuple[Any, ...], set[str], dict[str, str]]] = {
    "export": ((edgeprune.export,), set(), {"no_verify": "verify"}),
    "build": ((build,), set(), {"target": "targets"}),
    "run": (
        (Model.generate, SamplingOptions, Model.conversation),
        # Several prompts at once, and a function that is called, are for programs.
        {"batch_size", "stream"},
        {"image": "images", "video": "videos"},
    ),
    "bench": ((bench, bench_peers), set(), {"baseline": "baselines", "image": "images"}),
    "calibrate": ((calibrate,), set(), {"no_plot": "plot"}),
    "eval": (
        (evaluate, compare, Asking, Grid, Pruning),
        {"target", "grid", "pruning", "asking", "random", "plot"},
        {"metric": "benchmark", "debiases": "debias", "bundle": "model"},
    ),
}
# Of the command itself: how it prints, what it opens before it calls, and ways to ask.
OWN = {
    "as_json", "backend", "bundle", "caches", "chat", "compare", "draw", "max_context", "model", "system",
    "threads", "verbose",
}  # fmt: skip


def options(command: Callable[..., None]) -> set[str]:
    return set(inspect.signature(command).parameters)


@pytest.mark.parametrize("name", CASES)
def test_options_and_parameters_are_the_same(name: str) -> None:
    functions, of_programs, renamed = CASES[name]
    wanted = parameters(*functions)
    given = {renamed.get(option, option) for option in options(COMMANDS[name])}
    assert of_programs <= wanted
    assert wanted - given - of_programs - OWN == set()
    assert given - wanted - OWN == set()


@pytest.mark.parametrize("name", CASES)
def test_every_option_says_what_it_does(name: str) -> None:
    for option, hint in get_type_hints(COMMANDS[name], include_extras=True).items():
        if option != "return":
            assert any(getattr(extra, "help", None) for extra in get_args(hint)), option


def test_the_flagship_function_has_its_signature_and_its_help() -> None:
    found = inspect.signature(edgeprune.export)
    assert list(found.parameters)[:3] == ["model", "keep", "output"]
    assert found.parameters["keep"].default is None
    assert "0 < keep" in (edgeprune.export.__doc__ or "")
