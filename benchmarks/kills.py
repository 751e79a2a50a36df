"""What is left when a write is killed: kill -9 at every single file operation of every kind of write.

    python benchmarks/kills.py                    # some seconds
    python benchmarks/kills.py --export samples/tiny-llava --every 3     # a real export too: some minutes

Each write is done in a process of its own that kills itself in front of its n-th file operation, for every n
until it comes to its end. Then the output is looked at, and the same write is done again, whole. Prints a
table: how many moments were tried; how often the output was as before (nothing, or the earlier one), as
after, or broken; how often nothing stood where an earlier one was replaced, which may only be where the
system cannot exchange folders; and what was left behind after the next write.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune import files, replacing
from edgeprune.evaluation import predictions
from edgeprune.evaluation.predictions import Prediction, PredictionFile
from edgeprune.ownership import ENGINE_FOLDER, Kind
from edgeprune.questions.question import Question
from edgeprune.scratch import is_scratch

OLD, NEW, NOTHING, BROKEN = "as before", "as after", "nothing", "broken"
# Python's audit events of what changes a file or a folder, or looks at one.
_EVENTS = {
    "open",
    "os.listdir",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.truncate",
}
# Removing a tree names what is in a folder that is open.
_BY_NAME = {"os.remove", "os.rmdir"}
_PARTS = ("one", "two", "sub/three")
_QUESTIONS = [Question(id=number, where="", prompt="?") for number in range(4)]


@dataclass(frozen=True)
class Write:
    """A kind of write.

    Attributes:
        name: in the table.
        prepare: makes what is there before, in an empty folder.
        write: does it, in that folder; also where it was done before.
        state: what is there: one of the words above. None of them may be `BROKEN`.
        exchange: whether the system's exchange of folders is used, where there is one.
    """

    name: str
    prepare: Callable[[Path], None]
    write: Callable[[Path], None]
    state: Callable[[Path], str]
    exchange: bool = True


@dataclass
class Found:
    """What came of killing one kind of write at every moment."""

    name: str
    moments: int
    states: dict[str, int]
    left: int


# Kinds of writes


def _parts(folder: Path, word: str) -> None:
    for part in _PARTS:
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / part).write_text(word * 1000)


def _listed(folder: Path, word: str, kind: Kind) -> None:
    """A folder of a kind, as short as it can be."""
    _parts(folder, word)
    listed: dict[str, Any] = {"schema_version": 1, "files": [{"path": part} for part in _PARTS]}
    if kind is ENGINE_FOLDER:
        listed = {"schema_version": 1, "engines": {part: {"path": part} for part in _PARTS}}
    files.write_text(folder / kind.marker, json.dumps(listed))


def _folder_state(folder: Path, kind: Kind) -> str:
    if not folder.exists():
        return NOTHING
    if kind.files(folder) is None:
        return BROKEN
    found = {(folder / part).read_text() if (folder / part).is_file() else "" for part in _PARTS}
    return {"old" * 1000: OLD, "new" * 1000: NEW}.get(found.pop(), BROKEN) if len(found) == 1 else BROKEN


def _bundle(folder: Path, force: bool, engines: bool = False) -> None:
    output = folder / "out"
    with replacing.writing_to(output, force=force or output.exists()) as partial:
        _listed(partial, "old" if engines else "new", replacing.BUNDLE_FOLDER)
        if engines:
            _engines(partial, "old")


def _engines(bundle: Path, word: str) -> None:
    with replacing.writing_to(bundle / "engines" / "rtx", force=True, kind=ENGINE_FOLDER) as partial:
        _listed(partial, word, ENGINE_FOLDER)


def _new_state(folder: Path) -> str:
    found = _folder_state(folder / "out", replacing.BUNDLE_FOLDER)
    return OLD if found == NOTHING else found


def _small(folder: Path) -> None:
    files.write_text(folder / "curve.json", "new" * 1000)


def _small_state(folder: Path) -> str:
    text = (folder / "curve.json").read_text()
    return {"old" * 1000: OLD, "new" * 1000: NEW}.get(text, BROKEN)


_appended = mmap.mmap(-1, 1)
"""How many answers the killed process was told are on the disk; shared with it."""


def _answers(folder: Path) -> None:
    _appended[0] = 0
    with PredictionFile(folder / "answers.jsonl", {"a": 1}, _QUESTIONS) as file:
        for number in file.missing:
            file.append([(number, Prediction("blé" * 100, 9, (3,), 0, 1))])
            _appended[0] = number + 1


def _answers_state(folder: Path) -> str:
    told = _appended[0]
    try:
        with PredictionFile(folder / "answers.jsonl", {"a": 1}, _QUESTIONS) as file:
            texts = [found.text for found in file.done.values()]
    except files.InputError:
        return BROKEN
    if len(texts) < told or set(texts) - {"blé" * 100}:
        return BROKEN
    return NEW if len(texts) == len(_QUESTIONS) else OLD


def writes() -> list[Write]:
    """Every kind that needs no model."""

    def earlier(folder: Path) -> None:
        _bundle(folder, force=False, engines=True)

    def replaced(folder: Path) -> str:
        return _folder_state(folder / "out", replacing.BUNDLE_FOLDER)

    def built(folder: Path) -> str:
        return _folder_state(folder / "out" / "engines" / "rtx", ENGINE_FOLDER)

    return [
        Write("new bundle", lambda folder: None, lambda folder: _bundle(folder, False), _new_state),
        Write("bundle replaced, one step", earlier, lambda folder: _bundle(folder, True), replaced),
        Write("bundle replaced, two steps", earlier, lambda folder: _bundle(folder, True), replaced, False),
        Write("engines replaced", earlier, lambda folder: _engines(folder / "out", "new"), built),
        Write(
            "small file replaced",
            lambda folder: files.write_text(folder / "curve.json", "old" * 1000),
            _small,
            _small_state,
        ),
        Write("answers added", lambda folder: None, _answers, _answers_state),
    ]


def export_of(model: Path, work: Path) -> list[Write]:
    """A real export, new and replacing an earlier one, which lies in `work`."""
    import edgeprune
    from edgeprune.bundle import read_manifest
    from edgeprune.errors import BundleError

    def done(folder: Path, keep: float = 0.3) -> None:
        output = folder / "out"
        edgeprune.export(model, keep=keep, output=output, force=output.exists(), verify=False)

    def state(folder: Path) -> str:
        if not (folder / "out").exists():
            return NOTHING
        try:
            plan = read_manifest(folder / "out", check="hashes").plan.describe()
        except BundleError:
            return BROKEN
        return NEW if plan == new_plan else OLD

    def new_state(folder: Path) -> str:
        return OLD if (found := state(folder)) == NOTHING else found

    for name, keep in (("earlier", 0.6), ("later", 0.3)):
        (work / name).mkdir()
        done(work / name, keep)
    old = work / "earlier" / "out"
    new_plan = read_manifest(work / "later" / "out").plan.describe()
    return [
        Write("export of a new bundle", lambda folder: None, done, new_state),
        Write("export with force", lambda folder: _copied(old, folder / "out"), done, state),
    ]


def _copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


# Killing


class _Clock:
    """Counts the file operations of this process below a folder, and kills it in front of one."""

    def __init__(self, folder: Path, last: int) -> None:
        self._folder, self._left = f"{folder}{os.sep}", last

    def tick(self) -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "fcntl.flock":
            self.tick()
        elif event in _EVENTS:
            values = [value for value in arguments[:2] if isinstance(value, (str, bytes, os.PathLike))]
            names = [os.fsdecode(value) for value in values]
            below = any(name.startswith(self._folder) for name in names)
            if below or (event in _BY_NAME and os.sep not in names[0]):
                self.tick()

    def start(self) -> None:
        """From now on; also where Python tells of nothing by itself."""
        fsync, renaming, clock = os.fsync, replacing._renameat2, self

        class Torn(io.FileIO):
            """Writes in two halves, as a kill in the midst of a write leaves the first."""

            def write(self, content: Any, /) -> int:
                clock.tick()
                half = super().write(bytes(content)[: len(content) // 2])
                clock.tick()
                return half + super().write(bytes(content)[half:])

            def truncate(self, size: int | None = None, /) -> int:
                clock.tick()
                return super().truncate(size)

        def heard_fsync(descriptor: int) -> None:
            clock.tick()
            fsync(descriptor)

        def heard_renaming() -> Callable[..., int] | None:
            found = renaming()

            def rename(*arguments: Any) -> int:
                clock.tick()
                return found(*arguments) if found else -1

            return rename if found else None

        os.fsync = heard_fsync
        replacing._renameat2 = heard_renaming
        predictions.io.FileIO = Torn  # type: ignore[attr-defined, misc]
        sys.addaudithook(self.hear)


def _in_a_process(work: Callable[[], None]) -> int:
    """Does the work in a copy of this process; its exit status, negative where a signal ended it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - its notes and a step's name are of no interest
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(write: Write, work: Path, every: int = 1) -> Found:
    """Kills a write in front of each `every`-th of its file operations, each time in a new folder of `work`.

    Raises:
        RuntimeError: the write fails by itself.
    """
    found = Found(write.name, 0, dict.fromkeys((OLD, NEW, NOTHING, BROKEN), 0), 0)
    while True:
        folder = Path(tempfile.mkdtemp(dir=work))
        write.prepare(folder)

        def killed(folder: Path = folder, last: int = found.moments * every) -> None:
            if not write.exchange:
                replacing._renameat2 = lambda: None
            _Clock(folder, last).start()
            write.write(folder)

        status = _in_a_process(killed)
        if status not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{write.name} failed by itself with status {status}")
        if status == 0:
            return found
        found.moments += 1
        found.states[write.state(folder)] += 1
        if _in_a_process(lambda folder=folder: write.write(folder)) != 0 or write.state(folder) != NEW:
            found.states[BROKEN] += 1
        found.left += sum(is_scratch(path.name) for path in folder.rglob("*"))
        shutil.rmtree(folder)
        print(f"{write.name}: killed {found.moments} times", file=sys.stderr, flush=True)


def table(found: list[Found]) -> str:
    """For a document."""
    rows = [
        "| write | moments killed at | output as before | as after | no output | broken | left behind |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        states = " | ".join(str(one.states[state]) for state in (OLD, NEW, NOTHING, BROKEN))
        rows.append(f"| {one.name} | {one.moments} | {states} | {one.left} |")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 1 where something was broken or left behind."""
    parser = argparse.ArgumentParser(description="kill -9 at every file operation of every kind of write.")
    parser.add_argument("--export", type=Path, metavar="MODEL", help="kill real exports of this model too")
    parser.add_argument("--every", type=int, default=1, help="of a real export, kill at every N-th operation")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="kills-") as work:
        found = [kill_everywhere(write, Path(work)) for write in writes()]
        if options.export is not None:
            real = export_of(options.export, Path(work))
            found += [kill_everywhere(write, Path(work), options.every) for write in real]
    print(table(found))
    return int(any(one.states[BROKEN] or one.left for one in found))


if __name__ == "__main__":
    sys.exit(main())
