"""Chat templates as programs: what they may do, and the ends of those that would do too much."""

from __future__ import annotations

import threading
from pathlib import Path
from time import monotonic

import pytest

from edgeprune.errors import BundleError
from edgeprune.runtime import templates
from edgeprune.runtime.templates import MAX_TEMPLATE_LENGTH, Template, read_template

MESSAGES = [{"role": "user", "content": "a star"}]


def render(source: str) -> str:
    return Template(source, "the template").render({"messages": MESSAGES})


def grown(step: str, start: str = "'a'") -> str:
    """A value that is doubled sixty times."""
    return (
        "{% set ns = namespace(x=" + start + ") %}{% for i in range(60) %}{% set ns.x = " + step + " %}"
        "{% endfor %}{{ ns.x }}"
    )


TOO_DEEP = {
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "conditions": "{% if 1 %}" * 2000 + "x" + "{% endif %}" * 2000,
    "loops": "{% for i in [1] %}" * 30 + "x" + "{% endfor %}" * 30,
    "length": "a" * (MAX_TEMPLATE_LENGTH + 1),
    "center": "{{ 'a' | center(3000000000) }}",
    "wordwrap": "{{ ('a' * 1000000) | wordwrap(1) }}",
    "batch": "{{ [1] | batch(3000000000, 'x') | list }}",
    "slice": "{{ [1] | slice(3000000000) | list }}",
    "round": "{{ 1.5 | round(1000000000, 'floor') }}",
}
LOOP = "{% for i in range(99999) %}"
ENDLESS = {
    "nested loops": LOOP * 3 + "{% endfor %}" * 3,
    "nested loops with text": LOOP * 2 + "x" + "{% endfor %}" * 2,
    "a loop of calls": LOOP + "{{ range(99999) | select('odd') | list | length }}{% endfor %}",
    "a recursive loop": (
        "{% for i in range(9999) recursive %}{% if loop.depth < 6 %}{{ loop(range(9999)) }}{% endif %}"
        "{% endfor %}"
    ),
    "a macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "more budget": LOOP * 2 + "{{ -100000 | _step }}" + "{% endfor %}" * 2,
    "constant output": LOOP * 2 + "{{ '" + "a" * 1000 + "' }}" + "{% endfor %}" * 2,
}
HUGE = {
    "repeated": "{{ 'a' * 3000000000 }}",
    "repeated and not shown": "{% set x = 'a' * 3000000000 %}",
    "a list": "{{ ([1] * 3000000000) | length }}",
    "center": "{{ 'a'.center(3000000000) }}",
    "ljust": "{{ 'a'.ljust(3000000000) }}",
    "zfill": "{{ '1'.zfill(3000000000) }}",
    "expandtabs": "{{ ('\\t' * 1000).expandtabs(3000000000) }}",
    "indent": "{{ ('a\\n' * 100) | indent(100000000) }}",
    "tojson": "{{ {'a': {'b': 1}} | tojson(indent=100000000) }}",
    "tojson with a text": "{{ [[1]] | tojson(indent='a' * 4000000) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent with zeros": "{{ '%0000000000999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "percent name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "nested format": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "power": "{{ 7 ** 300000000 }}",
    "products": grown("ns.x * ns.x", "3"),
    "sums": grown("ns.x + ns.x"),
    "joined": grown("ns.x ~ ns.x"),
    "lists": grown("[ns.x, ns.x]"),
    "tuples": grown("(ns.x, ns.x)"),
    "views": grown("{'a': ns.x.values(), 'b': ns.x.values()}", "{'a': 1}"),
    "sets": (
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
        "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}"
    ),
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "replace filter": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "replace of nothing": "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "join": "{{ ('b' * 1000000).join('a' * 1000000) }}",
    "join filter": "{{ range(99999) | map('string') | join('b' * 1000000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "bytes": "{{ (5).to_bytes(3000000000, 'big') }}",
    "date": "{{ strftime_now('%p' * 1000000) }}",
}


@pytest.mark.parametrize("source", TOO_DEEP.values(), ids=TOO_DEEP)
def test_templates_that_cannot_be_read(source: str) -> None:
    with pytest.raises(
        BundleError, match=r"the template (cannot be read .*: copy the bundle|has 262145 char)"
    ):
        render(source)


@pytest.mark.parametrize("source", [*ENDLESS.values(), *HUGE.values()], ids=[*ENDLESS, *HUGE])
def test_templates_that_do_too_much(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A smaller budget ends in the same way, only sooner.
    monkeypatch.setattr(templates, "MAX_WORK", 1 << 22)
    started = monotonic()
    with pytest.raises(
        BundleError, match=r"the template .*: do not use this bundle, or correct its template"
    ):
        render(source)
    assert monotonic() - started < templates.MAX_SECONDS / 2


def test_cheap_steps_end_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_SECONDS", 0.3)
    with pytest.raises(BundleError, match=r"does not end within 0\.3 seconds"):
        render(LOOP + "{% for j in range(99999) if false %}{% endfor %}{% endfor %}")


@pytest.mark.parametrize(
    "source", ["{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% block a %}{{ self.a() }}{% endblock %}"]
)
def test_recursion_is_an_ordinary_error(source: str) -> None:
    with pytest.raises(RecursionError):
        render(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a' * 3 ~ 'b' }}{{ [1] * 2 }}{{ 2 ** 10 }}{{ 7 % 4 }}", "aaab[1, 1]10243"),
        ("{{ '%s-%5d%%' % ('a', 3) }}{{ '%s' | format('x') }}", "a-    3%x"),
        ("{{ '{:>5}|{a}'.format(3, a=1) }}{{ '{b}'.format_map({'b': 2}) }}", "    3|12"),
        (
            "{{ 'a'.center(5) }}{{ 'a b'.split() }}{{ ','.join(['x', 'y']) }}{{ 'aa'.replace('a', 'b') }}",
            None,
        ),
        (
            "{{ {'a': [1, {'b': 'é'}]} | tojson(indent=2) }}",
            '{\n  "a": [\n    1,\n    {\n      "b": "é"\n    }\n  ]\n}',
        ),
        ("{{ 'a\nb' | indent(2) }}{{ ['x'] | join('-') }}{{ [1, 2] | sum }}", "a\n  bx3"),
        ("{% for m in messages %}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% endfor %}", "11True"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ (1, 2) }}", "a1(1, 2)"),
        (
            "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') }}{% set y %}{{ f(1) }}{% endset %}{{ y[1:] }}",
            "<a>1>",
        ),
        (
            "{% set n = namespace(n=0) %}{% for i in range(3) %}{% set n.n = n.n + i %}{% endfor %}{{ n.n }}",
            "3",
        ),
        ("{{ messages[0].content[:1] }}{{ 'star' in messages[0].content }}{{ undefined_name }}", "aTrue"),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}",
            "['a star']",
        ),
        ("{{ none }}{{ true }}{{ 1.5 }}{{ messages[0].missing is defined }}", "NoneTrue1.5False"),
    ],
)
def test_what_templates_do_is_as_before(source: str, text: str | None) -> None:
    assert render(source) == (text if text is not None else "  a  ['a', 'b']x,ybb")


def test_a_long_conversation_is_within_bounds() -> None:
    source = (
        "{% for m in messages %}{% if '</think>' in m.content %}{% set c = m.content.split('</think>')[-1] %}"
        "{% else %}{% set c = m.content | trim %}{% endif %}<|{{ m.role }}|>{{ c.strip('\\n') ~ '\\n' }}"
        "{% endfor %}"
    )
    messages = [{"role": "user", "content": "a star " * 700} for _ in range(400)]
    text = Template(source, "the template").render({"messages": messages})
    assert len(text) > 1_900_000


def test_every_thread_has_a_budget_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_WORK", 1 << 18)
    template = Template("{% for i in range(900) %}{{ i }}{% endfor %}", "the template")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(template.render({}))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["".join(map(str, range(900)))] * 4


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("gr\xe9en".encode("latin-1"))
    for name in ("missing", "latin", "."):
        with pytest.raises(
            BundleError, match=r"the chat template .* cannot be read .*: copy the bundle again"
        ):
            read_template(tmp_path / name)
