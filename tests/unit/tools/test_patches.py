"""The patch tool: insert-only, exact, undoable, and honest about what does not fit."""

import hashlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
import patches as tool

HEAD = "Subject: s\nWhy: w\nCalls: c\nHelium-off: o\nDrop-when: d\n\n"
BODY = (
    "--- a/pkg/mod.py\n+++ b/pkg/mod.py\n@@ -1,0 +2 @@\n+x = 1\n@@ -2,0 +4,2 @@\n+y = 2\n+z = 3\n"
)
PRISTINE = "a = 0\nb = 0\nc = 0\n"
PATCHED = "a = 0\nx = 1\nb = 0\ny = 2\nz = 3\nc = 0\n"


def make_tree(folder: Path, text: str = PRISTINE) -> dict[str, str]:
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg/mod.py").write_text(text)
    return {"pkg/mod.py": hashlib.sha256(text.encode()).hexdigest()}


def test_parse_and_format_are_inverse():
    patch = tool.parse_patch("hook", HEAD + BODY)
    assert tool.format_patch(patch) == HEAD + BODY
    assert (len(patch.hunks), patch.num_inserted, patch.paths) == (2, 3, ["pkg/mod.py"])


def test_apply_inserts_and_undo_gives_the_pristine_text_back(tmp_path):
    pins = make_tree(tmp_path)
    stack = [tool.parse_patch("hook", HEAD + BODY)]
    tool.apply_stack(tmp_path, stack, pins)
    assert (tmp_path / "pkg/mod.py").read_text() == PATCHED
    assert tool.remove_hunks(PATCHED, tool.hunks_by_path(stack)["pkg/mod.py"]) == PRISTINE


def test_patches_on_one_file_are_independent_of_each_other(tmp_path):
    first = tool.parse_patch("first", HEAD + BODY)
    second = tool.parse_patch(
        "second", HEAD + "--- a/pkg/mod.py\n+++ b/pkg/mod.py\n@@ -1,0 +2 @@\n+w = 4\n"
    )
    pins = make_tree(tmp_path)
    tool.apply_stack(tmp_path, [first, second], pins)
    assert (tmp_path / "pkg/mod.py").read_text() == PATCHED.replace("x = 1\n", "x = 1\nw = 4\n")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (HEAD + BODY.replace("+x = 1", "-x = 1"), "does not hold 1"),
        (HEAD + BODY.replace("+x = 1", " x = 1"), "does not hold 1"),
        (HEAD + BODY.replace("@@ -1,0 +2 @@", "@@ -1,1 +2 @@"), "zero-context"),
        (HEAD + BODY.replace("@@ -1,0 +2 @@", "@@ -1,0 +2 @@ def f():"), "zero-context"),
        (HEAD + BODY.replace("+4,2", "+4,3"), "does not hold 3"),
        (HEAD.replace("Why: w\n", "") + BODY, "Why"),
        (HEAD.replace("Drop-when: d", "Drop-when:") + BODY, "Drop-when"),
        (HEAD, "no hunk"),
        (HEAD + BODY.replace("+++ b/pkg/mod.py", "+++ b/pkg/other.py"), "not followed"),
    ],
)
def test_a_malformed_patch_is_refused(text, named):
    with pytest.raises(tool.PatchError, match=named):
        tool.parse_patch("hook", text)


def test_nothing_is_written_unless_everything_fits(tmp_path):
    stack = [tool.parse_patch("hook", HEAD + BODY)]
    make_tree(tmp_path)
    with pytest.raises(tool.PatchError, match="not the pinned"):
        tool.apply_stack(tmp_path, stack, {"pkg/mod.py": "0" * 64})
    with pytest.raises(tool.PatchError, match="not in"):
        tool.apply_stack(tmp_path / "pkg", stack, {})
    assert (tmp_path / "pkg/mod.py").read_text() == PRISTINE


def test_applying_twice_is_refused(tmp_path):
    pins = make_tree(tmp_path)
    stack = [tool.parse_patch("hook", HEAD + BODY)]
    tool.apply_stack(tmp_path, stack, pins)
    with pytest.raises(tool.PatchError, match="already patched"):
        tool.apply_stack(tmp_path, stack, pins)


def test_a_result_that_does_not_compile_is_refused(tmp_path):
    pins = make_tree(tmp_path)
    stack = [tool.parse_patch("hook", HEAD + BODY.replace("+x = 1", "+x = ("))]
    with pytest.raises(tool.PatchError, match="does not compile"):
        tool.apply_stack(tmp_path, stack, pins)


def test_undo_refuses_lines_that_are_not_ours():
    stack = [tool.parse_patch("hook", HEAD + BODY)]
    with pytest.raises(tool.PatchError, match="not what was inserted"):
        tool.remove_hunks(
            PATCHED.replace("x = 1", "x = 9"), tool.hunks_by_path(stack)["pkg/mod.py"]
        )


def test_series_and_files_must_match_one_to_one(tmp_path):
    (tmp_path / "hook.patch").write_text(HEAD + BODY)
    (tmp_path / "series").write_text("# none\n")
    with pytest.raises(tool.PatchError, match=r"hook\.patch"):
        tool.load_series(tmp_path)
    (tmp_path / "series").write_text("hook.patch\nhook.patch\n")
    with pytest.raises(tool.PatchError, match=r"hook\.patch"):
        tool.load_series(tmp_path)
    (tmp_path / "series").write_text("hook.patch\n")
    assert [patch.slug for patch in tool.load_series(tmp_path)] == ["hook"]


def bump_places(tmp_path, new_text):
    make_tree(tmp_path / "old")
    make_tree(tmp_path / "new", new_text)
    hunks = tool.hunks_by_path([tool.parse_patch("hook", HEAD + BODY)])["pkg/mod.py"]
    moved = tool.bump_file("pkg/mod.py", hunks, tmp_path / "old", tmp_path / "new")
    return [move.after for move in moved], moved


def test_bump_follows_lines_that_moved(tmp_path):
    places, _ = bump_places(tmp_path, "p = 0\nq = 0\n" + PRISTINE)
    assert places == [3, 4]


def test_bump_says_which_hunk_fails_and_why(tmp_path):
    places, moved = bump_places(tmp_path, "a = 0\nb = 0\nr = 7\nc = 9\n")
    assert places == [1, None]
    assert "around it" in moved[1].why


def test_bump_onto_a_tree_without_the_file_fails_every_hunk(tmp_path):
    make_tree(tmp_path / "old")
    hunks = tool.hunks_by_path([tool.parse_patch("hook", HEAD + BODY)])["pkg/mod.py"]
    moved = tool.bump_file("pkg/mod.py", hunks, tmp_path / "old", tmp_path / "new")
    assert [move.why for move in moved] == ["the file is gone"] * 2


def test_export_writes_what_was_inserted_and_refuses_other_edits(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "PATCHES", tmp_path)
    make_tree(tmp_path / "old")
    make_tree(tmp_path / "new", PATCHED)
    patch = tool.export_patch("hook", tmp_path / "new", tmp_path / "old")
    assert [(hunk.after, hunk.lines) for hunk in patch.hunks] == [
        (1, ("x = 1",)),
        (2, ("y = 2", "z = 3")),
    ]
    (tmp_path / "new/pkg/mod.py").write_text(PATCHED.replace("c = 0", "c = 1"))
    with pytest.raises(tool.PatchError, match="changes or removes"):
        tool.export_patch("hook", tmp_path / "new", tmp_path / "old")


def test_the_committed_stack_is_sound_and_applies_to_the_pinned_wheel(tmp_path):
    tool.check(tool.pristine_tree(str(tmp_path)))


def test_the_stack_is_small():
    stack = tool.load_series()
    assert sum(patch.num_inserted for patch in stack) <= 130
