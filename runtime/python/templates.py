"""Chat templates: programs from a bundle, run in a sandbox and within bounds.

Jinja's sandbox keeps a template away from everything but its variables. It does not keep it from running
without end or from making texts of gigabytes. So here everything that takes time or memory is paid for from a
budget: each round of a loop, each call, each piece of output, and each text or list that a template makes, by
its length. What could cost more than it shows (padding to a width, repeating, formatting, powers) is checked
before it runs; filters that no chat template needs and that cannot be foreseen are left out.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from edgeprune.errors import BundleError, InputError
from edgeprune.files import read_regular

# Characters, list entries and steps, all together: some hundred times the longest prompt.
MAX_WORK = 1 << 26
# For what costs little by itself and is done often; no honest template takes a hundredth of it.
MAX_SECONDS = 10.0
MAX_TEMPLATE_LENGTH = 1 << 18
# What a step costs beside what it makes, so that the whole budget stands for some seconds.
_STEP = 64
_ENTRY = 16
# The widest padding, indent or field, and the most bits of a whole number.
_MAX_WIDTH = 1 << 12
_MAX_BITS = 1 << 13
# The longest text that may stand between texts whose number is not known.
_MAX_SEPARATOR = 64
_FILTERS = (
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float"),
    *("forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list"),
    *("lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "safe", "select"),
    *("selectattr", "sort", "string", "sum", "title", "trim", "truncate", "unique", "upper", "wordcount"),
)


class TooMuchWorkError(Exception):
    """A template goes on without end, or makes texts that are far too long."""


class Template:
    """A chat template that is ready to be rendered; any thread may do so.

    Args:
        source: the Jinja program.
        name: names it in messages.

    Raises:
        BundleError: it cannot be parsed, is too long, or does too much while it is compiled.
    """

    def __init__(self, source: str, name: str) -> None:
        self._name = name
        if len(source) > MAX_TEMPLATE_LENGTH:
            raise BundleError(
                f"{name} has {len(source)} characters: expected at most {MAX_TEMPLATE_LENGTH}; use another "
                "bundle"
            )
        try:
            with _budget():
                self._template = _Environment().from_string(source)
        except Exception as error:  # besides syntax errors, RecursionError, MemoryError, nested blocks
            raise BundleError(f"{name} cannot be read ({_reason(error)}): copy the bundle again") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text.

        Raises:
            BundleError: it does not end within bounds.
            Exception: whatever the program raises.
        """
        try:
            with _budget():
                return "".join(self._template.generate(**variables))
        except TooMuchWorkError as error:
            raise BundleError(
                f"{self._name} {error}: do not use this bundle, or correct its template"
            ) from error


def read_template(path: Path) -> Template:
    """The template in a file.

    Raises:
        BundleError: it cannot be read; see `Template`.
    """
    name = f"the chat template {path}"
    try:
        source = read_regular(path, "the chat template", 4 * MAX_TEMPLATE_LENGTH).decode("utf-8")
    except (OSError, ValueError, InputError) as error:
        raise BundleError(f"{name} cannot be read ({error}): copy the bundle again") from error
    return Template(source, name)


class _Budget:
    def __init__(self) -> None:
        self._left = MAX_WORK
        self._until = monotonic() + MAX_SECONDS

    def spend(self, work: int) -> None:
        self._left -= max(work, 0) + _STEP
        if self._left < 0:
            raise TooMuchWorkError(
                f"does not end within {MAX_WORK} steps, or makes more than so many characters"
            )
        if monotonic() > self._until:
            raise TooMuchWorkError(f"does not end within {MAX_SECONDS:g} seconds")


_CURRENT: ContextVar[_Budget] = ContextVar("edgeprune_template_budget")


@contextmanager
def _budget() -> Iterator[None]:
    token = _CURRENT.set(_Budget())
    try:
        yield
    finally:
        _CURRENT.reset(token)


def _spend(work: int) -> None:
    _CURRENT.get().spend(work)


def _paid(value: Any) -> Any:
    """A value that was just made, paid for by its length: of a list, with all that is in it."""
    _spend(_size(value))
    return value


def _size(value: Any) -> int:
    """Characters in a value and `_ENTRY` for each entry, a list counted as often as it would be written."""
    total, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, (str, bytes)):
            total += len(one)
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, KeysView, ValuesView, ItemsView)):
            waiting += list(one)
        if waiting:
            total += _ENTRY
            if total + len(waiting) * _ENTRY > MAX_WORK:
                raise TooMuchWorkError(f"makes a list of more than {MAX_WORK // _ENTRY} entries")
    return total


def _check_width(width: Any, what: str) -> None:
    if isinstance(width, (int, float)) and width > _MAX_WIDTH:
        raise TooMuchWorkError(f"asks for a {what} of {width:g}, expected at most {_MAX_WIDTH}")


def _check_format(form: str | bytes, values: Any) -> None:
    """Refuses fields as wide as a template likes: "%1000000000d", or "%*d" with the width as a value."""
    text = form.decode("latin-1") if isinstance(form, bytes) else form
    _check_spec(text)
    if "*" in text:
        for value in values if isinstance(values, tuple) else (values,):
            _check_width(value, "field width")


def _check_spec(spec: str) -> None:
    for number in re.findall(r"\d+", spec):
        _check_width(int(number.lstrip("0")[:9] or 0), "field width")


def _check_call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Looks at calls of methods whose result may be far longer than what they are given."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(owner, int) and name == "to_bytes":
        _check_width(next(iter((*args, *kwargs.values())), 1), "number of bytes")
    if not isinstance(owner, (str, bytes)):
        return
    given = (*args, *kwargs.values())
    if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        for width in given:
            _check_width(width, "width")
        if name == "expandtabs":
            tabs = owner.count("\t") if isinstance(owner, str) else owner.count(b"\t")
            _spend(len(owner) * 8 + tabs * _MAX_WIDTH)
    elif name == "replace" and len(given) >= 2:
        _check_replace(owner, given[0], given[1])
    elif name == "join" and given:
        _check_join(owner, given[0])
    elif name == "translate" and isinstance(owner, str) and given:
        longest = max(map(_size, given[0].values()), default=1) if isinstance(given[0], dict) else 1
        _spend(len(owner) * longest)


def _check_replace(text: Any, old: Any, new: Any) -> None:
    times = len(text) + 1 if not len(old) else text.count(old)
    _spend(len(text) + times * len(new))


def _check_join(separator: Any, values: Any) -> None:
    if isinstance(values, (str, list, tuple, dict)):
        _spend(len(values) * len(separator) + _size(values))
    elif len(separator) > _MAX_SEPARATOR:
        raise TooMuchWorkError("joins an unknown number of texts by a long one")


class _Pays(NodeTransformer):
    """Makes a template pay where Jinja offers no hook: in bodies, by lists, slices, comparisons and `~`."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        node = super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.Concat):
            return _filter("_concat", nodes.List(node.nodes, lineno=node.lineno))
        sliced = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        made = isinstance(node, nodes.Tuple) and node.ctx == "load"
        if sliced or made or isinstance(node, (nodes.List, nodes.Dict, nodes.Compare)):
            return _filter("_paid", node)
        for name in ("body", "else_"):
            body = getattr(node, name, None)
            if isinstance(body, list) and not isinstance(node, nodes.Template):
                # The text that stands in a body is written in every round.
                length = nodes.Const(sum(len(data.data) for data in _data(body)), lineno=node.lineno)
                body.insert(0, nodes.ExprStmt(_filter("_step", length), lineno=node.lineno))
        return node


def _data(body: list[nodes.Node]) -> Iterator[nodes.TemplateData]:
    for node in body:
        yield from [node] if isinstance(node, nodes.TemplateData) else node.find_all(nodes.TemplateData)


def _filter(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


# With a context Jinja does not run it once and for all while it compiles.
@jinja2.pass_context
def _step(_context: Any, work: int) -> str:
    _spend(work)
    return ""


def _concat(values: list[Any]) -> str:
    return "".join(str(value) for value in values)


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        _check_spec(format_spec)
        return _paid(super().format_field(value, format_spec))


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it, with the names and the white space rules of transformers."""

    intercepted_binops = frozenset({"+", "-", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=_written,
            cache_size=0,
        )
        known = {name: self.filters[name] for name in _FILTERS}
        known |= {"tojson": _to_json, "indent": _indent}
        self.filters = {name: _counted(name, function) for name, function in known.items()}
        self.filters |= {"_step": _step, "_paid": _paid, "_concat": _counted("_concat", _concat)}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "cycler", "joiner")}
        self.globals |= {"namespace": _Namespace, "raise_exception": _raise_exception, "strftime_now": _now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Pays().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)  # type: ignore[return-value]

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063  # as jinja2 has it, which calls it by position
        _spend(_size(args) + _size(getattr(__obj, "__self__", None)))
        _check_call(__obj, args, kwargs)
        return _paid(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, (str, bytes)):
            _check_format(left, right)
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int):
                    _spend(_size(one) * max(other, 0))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1)
            if max(bits, right.bit_length()) > _MAX_BITS:
                raise TooMuchWorkError("makes a whole number of thousands of digits")
        return _paid(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text, is_map = value.__self__, value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            values = ((), args[0]) if is_map else (args, kwargs)
            return str(_Formatter(self).vformat(text, *values))

        return formatted


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is paid for by what it is given and by what it makes."""

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        _spend(_size(args))
        values = args[1:] if hasattr(function, "jinja_pass_arg") else args
        if name == "replace" and len(values) >= 3:
            _check_replace(str(values[0]), str(values[1]), str(values[2]))
        elif name == "join":
            separator = values[1] if len(values) > 1 else kwargs.get("d", "")
            _check_join(str(separator), values[0] if values else ())
        elif name == "format":
            _check_format(str(values[0]), (*values[1:], *kwargs.values()))
        elif name == "sum" and not isinstance(kwargs.get("start", (*values, 0, 0)[2]), (int, float)):
            raise TypeError("sum adds numbers; lists it would copy again and again")
        return _paid(function(*args, **kwargs))

    return counted


@jinja2.pass_context
def _written(_context: Any, value: Any) -> Any:
    """What Jinja puts into its output, paid for."""
    if not isinstance(value, (str, jinja2.Undefined)):
        _spend(_size(value))
        value = str(value)
    return _paid(value)


class _Generation(Extension):
    """{% generation %} marks the model's words for training; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """One that does not print what is in it, which may be others."""

    def __repr__(self) -> str:
        return "<namespace>"


def _now(form: str) -> str:
    if len(form) > _MAX_WIDTH:
        raise TooMuchWorkError("writes the date in a format of thousands of characters")
    return datetime.now().strftime(form)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, this one does not escape HTML."""
    _check_width(len(indent) if isinstance(indent, str) else indent, "indent")
    # Each entry may stand on a line of its own, as far in as lists are nested.
    _spend(_size(value) * (_size(separators) + (len(indent) if isinstance(indent, str) else indent or 0)))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    length = len(width) if isinstance(width, str) else width
    _check_width(length, "indent")
    _spend(len(text) + (str(text).count("\n") + 1) * length)
    return jinja2.filters.do_indent(text, width, first, blank)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
