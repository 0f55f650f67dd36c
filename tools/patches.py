"""The patch stack: insert-only, zero-context patches on a pinned upstream.

A patch holds our own lines and the numbers of the pristine lines they follow, never a line of
upstream's. Hunks of all patches are numbered against the *pristine* file, so a patch can be added
or dropped without touching its neighbours.

    python tools/patches.py apply DIR            patch an unpacked wheel in place
    python tools/patches.py check [--wheel W]    is the stack sound, does it apply, does it undo
    python tools/patches.py export SLUG DIR      write patches/SLUG.patch from an edited tree
    python tools/patches.py pin                  rewrite the file hashes in UPSTREAM.toml
    python tools/patches.py report               hooks, files, lines; also writes patches/README.md
    python tools/patches.py bump VERSION         try the stack on another upstream release
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from upstream import (
    PATCHES,
    UpstreamError,
    download_wheel,
    fetch_wheel,
    load_upstream,
    sha256_of,
    unpack_wheel,
)

HEADERS = ("Subject", "Why", "Calls", "Helium-off", "Drop-when")
_HUNK = re.compile(r"^@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@$")


class PatchError(Exception):
    """The stack is malformed or does not fit the tree it is applied to."""


@dataclass(frozen=True)
class Hunk:
    """Lines inserted after line ``after`` (1-based; 0 is the top) of a pristine file."""

    slug: str
    path: str
    after: int
    lines: tuple[str, ...]


@dataclass
class Patch:
    """One hook: its rationale and its hunks."""

    slug: str
    headers: dict[str, str] = field(default_factory=dict)
    hunks: list[Hunk] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return sorted({hunk.path for hunk in self.hunks})

    @property
    def num_inserted(self) -> int:
        return sum(len(hunk.lines) for hunk in self.hunks)


def parse_patch(slug: str, text: str) -> Patch:
    """Parses one patch file.

    Raises:
        PatchError: A header is missing, a hunk removes or quotes a line, or a count is off.
    """
    patch = Patch(slug)
    lines = text.splitlines()
    index, key = 0, ""
    while index < len(lines) and not lines[index].startswith("--- "):
        line = lines[index]
        index += 1
        if line.startswith(" ") and key:
            patch.headers[key] += " " + line.strip()
        elif line.strip():
            key, colon, value = line.partition(":")
            if not colon:
                raise PatchError(f"{slug}: line {index} is no 'Key: value' header: {line!r}")
            patch.headers[key] = value.strip()
    missing = [name for name in HEADERS if not patch.headers.get(name)]
    if missing:
        raise PatchError(f"{slug}: headers missing or empty: {', '.join(missing)}")
    path = ""
    while index < len(lines):
        line = lines[index]
        if line.startswith("--- a/"):
            path = line.removeprefix("--- a/")
            if lines[index + 1] != f"+++ b/{path}":
                raise PatchError(f"{slug}: '--- a/{path}' is not followed by '+++ b/{path}'")
            index += 2
            continue
        found = _HUNK.match(line)
        if not found or not path:
            raise PatchError(
                f"{slug}: line {index + 1} is no zero-context insertion hunk: {line!r}; hunks read "
                "'@@ -N,0 +M,K @@' and are followed by K lines that start with '+'"
            )
        count = int(found[3] or 1)
        body = lines[index + 1 : index + 1 + count]
        if len(body) != count or not all(row.startswith("+") for row in body):
            raise PatchError(f"{slug}: hunk at line {index + 1} does not hold {count} '+' lines")
        patch.hunks.append(Hunk(slug, path, int(found[1]), tuple(row[1:] for row in body)))
        index += 1 + count
    if not patch.hunks:
        raise PatchError(f"{slug}: no hunk")
    return patch


def format_patch(patch: Patch) -> str:
    """Writes a patch back; ``parse_patch`` of the result equals the input."""
    out = []
    for key, value in patch.headers.items():
        words, line = value.split(), f"{key}:"
        for word in words:
            if len(line) + 1 + len(word) > 100:
                out.append(line)
                line = " "
            line += f" {word}"
        out.append(line)
    out.append("")
    for path in patch.paths:
        out += [f"--- a/{path}", f"+++ b/{path}"]
        shift = 0
        for hunk in sorted((h for h in patch.hunks if h.path == path), key=lambda h: h.after):
            count = len(hunk.lines)
            size = f",{count}" if count != 1 else ""
            out.append(f"@@ -{hunk.after},0 +{hunk.after + shift + 1}{size} @@")
            out += [f"+{line}" for line in hunk.lines]
            shift += count
    return "\n".join(out) + "\n"


def load_series(folder: Path = PATCHES) -> list[Patch]:
    """Reads every patch of the stack in series order.

    Raises:
        PatchError: The series and the patch files do not match one to one.
    """
    lines = (folder / "series").read_text().splitlines()
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    files = {path.name for path in folder.glob("*.patch")}
    if len(set(names)) != len(names) or set(names) != files:
        odd = sorted(set(names) ^ files) or sorted(n for n in names if names.count(n) > 1)
        raise PatchError(f"series and patch files differ: {', '.join(odd)}")
    stack = []
    for name in names:
        text = (folder / name).read_text()
        patch = parse_patch(name.removesuffix(".patch"), text)
        if format_patch(patch) != text:
            raise PatchError(f"{name}: not in canonical form; run 'report --format' to rewrite it")
        stack.append(patch)
    return stack


def hunks_by_path(stack: list[Patch]) -> dict[str, list[Hunk]]:
    """Returns the hunks of each file in order of place, ties in series order."""
    grouped: dict[str, list[Hunk]] = defaultdict(list)
    for patch in stack:
        for hunk in patch.hunks:
            grouped[hunk.path].append(hunk)
    return {path: sorted(grouped[path], key=lambda hunk: hunk.after) for path in sorted(grouped)}


def insert_hunks(pristine: str, hunks: list[Hunk]) -> str:
    """Returns the text with every hunk's lines inserted; hunks must be in order of place."""
    lines = pristine.splitlines(keepends=True)
    out, at = [], 0
    for hunk in hunks:
        if hunk.after > len(lines):
            raise PatchError(f"{hunk.slug}: {hunk.path} has {len(lines)} lines, not {hunk.after}")
        out += lines[at : hunk.after]
        out += [line + "\n" for line in hunk.lines]
        at = hunk.after
    return "".join(out + lines[at:])


def remove_hunks(patched: str, hunks: list[Hunk]) -> str:
    """Undoes ``insert_hunks``; raises PatchError where the lines found are not ours."""
    lines = patched.splitlines(keepends=True)
    out, at, shift = [], 0, 0
    for hunk in hunks:
        start = hunk.after + shift
        found = [line.rstrip("\n") for line in lines[start : start + len(hunk.lines)]]
        if found != list(hunk.lines):
            raise PatchError(f"{hunk.slug}: {hunk.path}:{start + 1} is not what was inserted")
        out += lines[at:start]
        at = start + len(hunk.lines)
        shift += len(hunk.lines)
    return "".join(out + lines[at:])


def apply_stack(tree: Path, stack: list[Patch], pins: dict[str, str]) -> None:
    """Patches an unpacked upstream wheel in place; nothing is written unless everything fits.

    Raises:
        PatchError: A file is missing, is not the pinned one, or would not compile.
    """
    results = {}
    for path, hunks in hunks_by_path(stack).items():
        target = tree / path
        if not target.is_file():
            raise PatchError(f"{path}: not in {tree}; is it an unpacked upstream wheel?")
        found = sha256_of(target)
        if found != pins.get(path):
            raise PatchError(
                f"{path}: sha256 {found[:12]}… is not the pinned {str(pins.get(path))[:12]}…; the "
                "stack fits only the pristine file of the pinned release (already patched?)"
            )
        text = insert_hunks(target.read_text(), hunks)
        try:
            compile(text, path, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise PatchError(f"{path}: does not compile after patching: {error}") from None
        results[target] = text
    for target, text in results.items():
        target.write_text(text)


def check(tree: Path) -> None:
    """Applies the stack to a pristine tree and undoes it again; raises PatchError on any flaw."""
    pins = load_upstream().files
    stack = load_series()
    grouped = hunks_by_path(stack)
    unpinned = sorted(set(grouped) ^ set(pins))
    if unpinned:
        raise PatchError(f"UPSTREAM.toml [files] and the patches differ: {', '.join(unpinned)}")
    if (PATCHES / "README.md").read_text() != readme(stack):
        raise PatchError("patches/README.md is stale; run 'python tools/patches.py report'")
    apply_stack(tree, stack, pins)
    for path, hunks in grouped.items():
        undone = remove_hunks((tree / path).read_text(), hunks)
        if hashlib.sha256(undone.encode()).hexdigest() != pins[path]:
            raise PatchError(f"{path}: undoing the stack does not give the pristine file back")
        (tree / path).write_text(undone)


def export_patch(slug: str, edited: Path, pristine: Path) -> Patch:
    """Builds one patch from the difference between a pristine tree and an edited one.

    The edited tree must differ by this one hook only. Headers are taken over from an existing
    patch of that name, or left to be filled in.
    """
    target = PATCHES / f"{slug}.patch"
    patch = Patch(slug, dict.fromkeys(HEADERS, "(to be written)"))
    if target.exists():
        patch.headers = parse_patch(slug, target.read_text()).headers
    for path in sorted(edited.rglob("*.py")):
        name = path.relative_to(edited).as_posix()
        old, new = (pristine / name).read_text(), path.read_text()
        if old == new:
            continue
        matcher = difflib.SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False)
        for kind, first, _, start, stop in matcher.get_opcodes():
            if kind == "insert":
                lines = tuple(new.splitlines()[start:stop])
                patch.hunks.append(Hunk(slug, name, first, lines))
            elif kind != "equal":
                raise PatchError(f"{name}:{first + 1}: the edit changes or removes upstream lines")
    if not patch.hunks:
        raise PatchError(f"{slug}: {edited} does not differ from the pristine tree")
    target.write_text(format_patch(patch))
    return patch


def readme(stack: list[Patch]) -> str:
    """Generates patches/README.md from the headers."""
    upstream = load_upstream()
    out = [
        "# The patch stack",
        "",
        "Generated by `python tools/patches.py report` from the headers of the patches.",
        "",
        f"Upstream: vLLM {upstream.version}. Insert-only, zero context: a patch holds our lines",
        "and the numbers of the pristine lines they follow, never a line of upstream's. Every file",
        "is pinned by SHA-256 in `UPSTREAM.toml`, and one series serves both upstream wheels.",
        "",
        summary(stack),
        "",
    ]
    for patch in stack:
        out += [f"## {patch.slug}", "", patch.headers["Subject"], ""]
        out += [f"- **{key}**: {patch.headers[key]}" for key in HEADERS[1:]]
        where = ", ".join(f"`{path}`" for path in patch.paths)
        out += [f"- **Touches**: {where} ({patch.num_inserted} lines)", ""]
    return "\n".join(out)


def summary(stack: list[Patch]) -> str:
    """One line: patches, files, hunks, lines inserted and removed."""
    hunks = [hunk for patch in stack for hunk in patch.hunks]
    inserted = sum(len(hunk.lines) for hunk in hunks)
    files = len({hunk.path for hunk in hunks})
    return (
        f"{len(stack)} patches, {files} files, {len(hunks)} hunks, {inserted} lines inserted, "
        "0 removed."
    )


@dataclass(frozen=True)
class Moved:
    """Where one hunk lands in another release; ``after`` is None where it does not."""

    hunk: Hunk
    after: int | None
    why: str


def bump_file(path: str, hunks: list[Hunk], old: Path, new: Path) -> list[Moved]:
    """Three-way merges one file's hunks onto another release, tracking each by a marker line."""
    if not (new / path).is_file():
        return [Moved(hunk, None, "the file is gone") for hunk in hunks]
    marked = [
        Hunk(hunk.slug, path, hunk.after, (f"#@hunk {index}@",)) for index, hunk in enumerate(hunks)
    ]
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "ours"
        ours.write_text(insert_hunks((old / path).read_text(), marked))
        done = subprocess.run(
            ["git", "merge-file", "-p", "--diff3", str(ours), str(old / path), str(new / path)],
            capture_output=True,
            text=True,
        )
    if done.returncode < 0 or done.returncode > 127:
        raise PatchError(f"git merge-file failed on {path}: {done.stderr.strip()}")
    moved: dict[int, Moved] = {}
    after, side = 0, ""
    for line in done.stdout.splitlines():
        if line[:7] in ("<<<<<<<", "|||||||", "=======", ">>>>>>>") and (side or line[0] == "<"):
            side = {"<": "ours", "|": "base", "=": "theirs", ">": ""}[line[0]]
        elif found := re.match(r"#@hunk (\d+)@$", line):
            index = int(found[1])
            why = "upstream changed the lines around it" if side else ""
            moved[index] = Moved(hunks[index], None if side else after, why)
        elif side in ("", "theirs"):
            after += 1
    return [moved[index] for index in range(len(hunks))]


def bump(version: str, old: Path, new: Path, new_name: str) -> tuple[list[Moved], str]:
    """Tries the stack on another release.

    Returns:
        Where each hunk lands, and a Markdown report.
    """
    upstream = load_upstream()
    stack = load_series()
    moved, broken = [], []
    for path, hunks in hunks_by_path(stack).items():
        landed = bump_file(path, hunks, old, new)
        moved += landed
        if all(move.after is not None for move in landed):
            placed = [Hunk(m.hunk.slug, path, m.after or 0, m.hunk.lines) for m in landed]
            try:
                compile(insert_hunks((new / path).read_text(), placed), path, "exec")
            except SyntaxError as error:
                broken.append(f"`{path}` does not compile after the move: {error}")
    failed = [move for move in moved if move.after is None]
    out = [
        f"# The stack of {upstream.version} on {version}",
        "",
        f"Command: `python tools/patches.py bump {version}` ({new_name}, Python tree).",
        "",
        f"{len(moved) - len(failed)} of {len(moved)} hunks land, {len(failed)} fail; "
        f"{len({m.hunk.path for m in moved})} files, "
        f"{len({m.hunk.path for m in failed})} with a failing hunk, {len(broken)} that do not "
        "compile. A hunk that lands was merged by `git merge-file`; its drift guard in "
        "`tests/patches/` still has to pass on the new release.",
        "",
        f"| patch | file | after line, {upstream.version} | after line, {version} | lines |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for move in moved:
        where = move.after if move.after is not None else f"**fails**: {move.why}"
        hunk = move.hunk
        out.append(f"| {hunk.slug} | {hunk.path} | {hunk.after} | {where} | {len(hunk.lines)} |")
    out += ["", *(f"- {line}" for line in broken)]
    return moved, "\n".join(out).rstrip() + "\n"


def write_bumped(version: str, moved: list[Moved], new: Path) -> None:
    """Rewrites the patches for another release; refused while a hunk fails."""
    failed = [move for move in moved if move.after is None]
    if failed:
        raise PatchError(f"{len(failed)} hunks fail on {version}; mend them by hand, then export")
    places = {id(move.hunk): move.after for move in moved}
    stack = load_series()
    by_key = {(m.hunk.slug, m.hunk.path, m.hunk.after): places[id(m.hunk)] for m in moved}
    for patch in stack:
        patch.hunks = [
            Hunk(h.slug, h.path, by_key[h.slug, h.path, h.after] or 0, h.lines) for h in patch.hunks
        ]
        (PATCHES / f"{patch.slug}.patch").write_text(format_patch(patch))
    pin(new)


def pin(tree: Path) -> None:
    """Rewrites the ``[files]`` table of UPSTREAM.toml from a pristine tree."""
    path = PATCHES / "UPSTREAM.toml"
    head = path.read_text().partition("[files]")[0]
    rows = [f'"{name}" = "{sha256_of(tree / name)}"' for name in hunks_by_path(load_series())]
    path.write_text(head + "[files]\n" + "\n".join(rows) + "\n")


def pristine_tree(folder: str, wheel: str | None = None) -> Path:
    """Unpacks the Python files of the pinned wheel (or of another one) into a folder."""
    upstream = load_upstream()
    source = Path(wheel) if wheel else fetch_wheel(upstream.wheels["cpu"])
    unpack_wheel(source, Path(folder), python_only=True)
    return Path(folder)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("apply").add_argument("tree", type=Path)
    commands.add_parser("check").add_argument("--wheel", help="a wheel file; default: pinned CPU")
    exporting = commands.add_parser("export")
    exporting.add_argument("slug")
    exporting.add_argument("tree", type=Path)
    commands.add_parser("pin")
    commands.add_parser("report").add_argument("--format", action="store_true")
    bumping = commands.add_parser("bump")
    bumping.add_argument("version")
    bumping.add_argument("--write", action="store_true", help="rewrite the patches")
    bumping.add_argument("--report", type=Path, help="write the Markdown report to this file")
    options = parser.parse_args(argv)
    try:
        return run(options)
    except (PatchError, UpstreamError) as error:
        print(f"patches: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Runs one command."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        if options.command == "apply":
            apply_stack(options.tree, load_series(), load_upstream().files)
        elif options.command == "check":
            check(pristine_tree(folder, options.wheel))
            print(f"ok: {summary(load_series())}")
        elif options.command == "export":
            patch = export_patch(options.slug, options.tree, pristine_tree(folder))
            print(f"{patch.slug}: {len(patch.hunks)} hunks, {patch.num_inserted} lines")
        elif options.command == "pin":
            pin(pristine_tree(folder))
        elif options.command == "report":
            if options.format:
                for path in PATCHES.glob("*.patch"):
                    path.write_text(format_patch(parse_patch(path.stem, path.read_text())))
            stack = load_series()
            (PATCHES / "README.md").write_text(readme(stack))
            for patch in stack:
                print(f"{patch.slug:32} {len(patch.hunks):3} hunks {patch.num_inserted:4} lines")
            print(summary(stack))
        else:
            wheel = download_wheel("vllm", options.version)
            new = pristine_tree(other, str(wheel))
            moved, text = bump(options.version, pristine_tree(folder), new, wheel.name)
            if options.report:
                options.report.write_text(text)
            print(text)
            if options.write:
                write_bumped(options.version, moved, new)
            return int(any(move.after is None for move in moved))
    return 0


if __name__ == "__main__":
    sys.exit(main())
