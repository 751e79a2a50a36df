"""The TensorRT plugin of the pruning nodes: whether it is used, where its library lies, how it takes their
place.

A node of the language graph has a function body of standard operators, and TensorRT may have a plugin of that
name. Which one TensorRT takes differs between versions (10.0 to 10.6 and 10.15 on: the body; between: the
plugin), so nothing is left to it: with the plugin the body is taken out of the graph before parsing, and the
parsed network must then hold the plugin's layer; without it no library is loaded and the body stays.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeprune.errors import BackendError, InputError
from edgeprune.interface import OP_NAME, OP_VERSION
from edgeprune.runtime.backends.tensorrt.flavours import Flavour, numbers

if TYPE_CHECKING:
    import onnx

Wish = Literal["auto", "on", "off"]

LIBRARY = "libedgeprune_plugins.so"
ENVIRONMENT = "EDGEPRUNE_PLUGINS"

# The plugin's version, which is that of the operator.
_VERSION = str(OP_VERSION)

# IPluginV3 as the library implements it; older ones would need the sources of another interface.
_OLDEST = (10, 3)

# Built beside the package: the folders of `cmake -S plugins -B build/plugins`, and of an installation.
_REPOSITORY = Path(__file__).resolve().parents[4]
_PLACES = (
    _REPOSITORY / "build" / "plugins",
    _REPOSITORY / "plugins" / "build",
    _REPOSITORY / "build",
    Path("/usr/local/lib"),
    Path("/usr/lib/aarch64-linux-gnu"),
    Path("/usr/lib/x86_64-linux-gnu"),
)


def find_library() -> Path | None:
    """The plugin's library: what EDGEPRUNE_PLUGINS names, or else the one built beside the package or
    installed.

    Raises:
        InputError: EDGEPRUNE_PLUGINS names something that is not there.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        path = Path(named)
        path = path / LIBRARY if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"{ENVIRONMENT} names {named}, where there is no {LIBRARY}: correct or unset it")
        return path
    for place in _PLACES:
        if (place / LIBRARY).is_file():
            return place / LIBRARY
    found = ctypes.util.find_library("edgeprune_plugins")
    return Path(found) if found and Path(found).is_file() else None


def choose(wish: Wish, flavour: Flavour, version: str, prunes: bool) -> Path | None:
    """Decides between plugin and function body.

    Returns:
        The plugin's library; None for the function body.

    Raises:
        InputError: the plugin was asked for and cannot be had.
    """
    if wish not in ("auto", "on", "off"):
        raise InputError(f"`plugin` is {wish!r}: expected auto, on or off")
    if wish == "off" or not prunes:
        return None
    why_not = None
    library = None
    if not flavour.has_plugins:
        why_not = f"{flavour.title} has no plugins"
    elif numbers(version) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        why_not = f"the plugin needs TensorRT {oldest} or later, and {version} is installed"
    else:
        library = find_library()
        if library is None:
            why_not = (
                f"{LIBRARY} was not found: build it (cmake -S plugins -B build/plugins -DTensorRT_ROOT=...) "
                f"or set {ENVIRONMENT} to it"
            )
    if wish == "on" and why_not is not None:
        raise InputError(f"`plugin='on'`: {why_not}; `plugin='off'` takes the function body instead")
    return library


# What only `tensorrt` has is below, and nowhere else: loading the library, and the nodes that become its
# layers.


def load_library(trt: Any, library: Path) -> None:
    """Registers the plugin, once per process.

    Raises:
        BackendError: the library cannot be loaded, was built for another major version of TensorRT, or holds
            the plugin in another version.
    """
    registry = trt.get_plugin_registry()
    if _is_registered(registry):
        return
    # Interfaces of another major version have another layout; the library then offers no plugin, and TensorRT
    # would only say later that it found none.
    built_for = _built_for(library)
    if built_for is not None and numbers(built_for)[:1] != numbers(trt.__version__)[:1]:
        raise BackendError(
            f"the plugin library {library} was built for TensorRT {built_for}, and {trt.__version__} is "
            f"installed: build it again with -DTensorRT_ROOT of that version, or set {ENVIRONMENT} to a "
            "library that was"
        )
    if registry.load_library(str(library)) is None:
        raise BackendError(
            f"TensorRT cannot load the plugin library {library}: build it again with the headers of the "
            f"TensorRT that is installed ({trt.__version__})"
        )
    if not _is_registered(registry):
        raise BackendError(
            f"the plugin library {library} does not hold version {_VERSION} of {OP_NAME}, which this "
            f"edgeprune needs: build it again from plugins/ of the same edgeprune, or set {ENVIRONMENT} to a "
            "library that was"
        )


def _is_registered(registry: Any) -> bool:
    return any(
        creator.name == OP_NAME and creator.plugin_version == _VERSION for creator in registry.all_creators
    )


def _built_for(library: Path) -> str | None:
    """The version of the TensorRT headers it was compiled with; None where it does not tell. Opening it runs
    nothing: only the registry makes it register.
    """
    try:
        version = ctypes.CDLL(str(library)).edgeprune_plugins_tensorrt_version
    except (OSError, AttributeError):
        return None
    version.restype = ctypes.c_char_p
    return str(version().decode())


def remove_function_body(model: onnx.ModelProto) -> None:
    """Takes the body of the pruning nodes out of a language graph; they name the plugin's version instead."""
    from onnx import helper

    for body in [function for function in model.functions if function.name == OP_NAME]:
        model.functions.remove(body)
    for node in model.graph.node:
        if node.op_type == OP_NAME:
            # The parser looks for version 1 of a plugin unless the node names another one.
            node.attribute.append(helper.make_attribute("plugin_version", _VERSION))


def check_layers(trt: Any, network: Any, stages: int) -> None:
    """Makes sure that every pruning node has become a layer of the plugin.

    Raises:
        BackendError: it has not.
    """
    layers = (network.get_layer(number) for number in range(network.num_layers))
    found = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
    if found != stages:
        raise BackendError(
            f"the graph has {stages} pruning nodes, and TensorRT made {found} plugin layers of them: build "
            "with `plugin='off'`, and report it"
        )
