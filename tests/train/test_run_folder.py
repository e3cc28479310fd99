from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from uniformerv2.errors import RecipeError
from uniformerv2.train.run_folder import RunFolder


def started(path: Path, recipe: dict[str, Any]) -> RunFolder:
    run = RunFolder(path)
    run.start({run.recipe: json.dumps(recipe), run.train: "path,label\na,b\n"}, resume=False)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    run = started(tmp_path / "run", {"epochs": 1})
    before = contents(run.path)
    with pytest.raises(RecipeError, match=r"run: not empty.*--resume.*--overwrite"):
        run.check(resume=False, overwrite=False)
    assert contents(run.path) == before


def test_new_and_empty_folders_are_fine_and_made_late(tmp_path: Path) -> None:
    RunFolder(tmp_path).check(resume=False, overwrite=False)
    new = RunFolder(tmp_path / "a" / "b")
    new.check(resume=False, overwrite=False)
    assert not new.path.exists()
    new.start({new.recipe: "{}"}, resume=False)
    assert new.recipe.read_text() == "{}"


def test_only_a_run_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="holds other files and no run"):
        RunFolder(tmp_path).check(resume=False, overwrite=True)


def test_overwriting_removes_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    run = started(tmp_path, {"epochs": 1})
    (tmp_path / "notes.txt").write_text("mine")
    run.best.write_text("old weights")
    (run.states / "000001-00000000").mkdir(parents=True)
    run.check(resume=False, overwrite=True)
    started(tmp_path, {"epochs": 2})
    assert {file.name for file in tmp_path.iterdir()} == {"recipe.json", "train.csv", "notes.txt"}
    assert json.loads(run.recipe.read_text()) == {"epochs": 2}


def test_resume_needs_a_run_and_does_not_go_with_overwrite(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no run to resume"):
        RunFolder(tmp_path / "absent").check(resume=True, overwrite=False)
    with pytest.raises(RecipeError, match="contradict"):
        started(tmp_path, {}).check(resume=True, overwrite=True)


def test_a_file_is_no_folder_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="not a folder"):
        RunFolder(tmp_path / "file").check(resume=False, overwrite=True)


def test_the_parts_of_a_step_may_change(tmp_path: Path) -> None:
    run = started(tmp_path, {"optimization": {"epochs": 20, "accumulate": 1}})
    other = json.dumps({"optimization": {"epochs": 20, "accumulate": 2}})
    run.start({run.recipe: other}, resume=True)
    assert run.recipe.read_text() == other
    with pytest.raises(RecipeError, match="epochs 20 is now 21"):
        run.start({run.recipe: json.dumps({"optimization": {"epochs": 21, "accumulate": 1}})}, resume=True)


def test_resuming_something_else_says_what_changed(tmp_path: Path) -> None:
    run = started(tmp_path, {"optimization": {"epochs": 20, "lr": 0.1}})
    before = contents(tmp_path)
    run.start({run.recipe: json.dumps({"optimization": {"epochs": 20, "lr": 0.1}})}, resume=True)
    with pytest.raises(RecipeError, match=r"\(epochs 20 is now 30\)"):
        run.start({run.recipe: json.dumps({"optimization": {"epochs": 30, "lr": 0.1}})}, resume=True)
    with pytest.raises(RecipeError, match=r"not those of train\.csv"):
        run.start({run.train: "path,label\nother,b\n"}, resume=True)
    assert contents(tmp_path) == before


def test_a_run_that_was_killed_at_its_beginning_can_be_resumed_or_begun_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    texts = {run.recipe: "{}", run.train: "path,label\na,b\n"}
    (tmp_path / ".lock").write_text("process 1")
    (tmp_path / ".recipe.json.0.partial").write_text("{")  # killed while it wrote the first file
    run.check(resume=False, overwrite=False)
    with run.locked():
        run.start({run.recipe: texts[run.recipe]}, resume=False)  # killed after the first file
    run.check(resume=True, overwrite=False)
    run.start(texts, resume=True)
    assert contents(tmp_path) == {file.name: text.encode() for file, text in texts.items()}


def test_a_run_that_is_half_overwritten_is_still_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(tmp_path, {"epochs": 1})
    (run.states / "000001-00000000").mkdir(parents=True)
    unlink = Path.unlink

    def killed_at_the_recipe(file: Path, missing_ok: bool = False) -> None:
        if file == run.recipe:
            raise KeyboardInterrupt
        unlink(file, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed_at_the_recipe)
    with pytest.raises(KeyboardInterrupt):
        started(tmp_path, {"epochs": 2})
    run.check(resume=False, overwrite=True)
    assert list(tmp_path.iterdir()) == [run.recipe]


def test_a_damaged_recipe_is_no_traceback(tmp_path: Path) -> None:
    run = started(tmp_path, {})
    run.recipe.write_text("{")
    with pytest.raises(RecipeError, match=r"recipe\.json: not the recipe of a run"):
        run.start({run.recipe: "{}"}, resume=True)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = RunFolder(tmp_path / "file" / "run")
    run.check(resume=False, overwrite=False)
    with pytest.raises(RecipeError, match=r"file/run: cannot be written to \(Not a directory\)"):
        run.start({run.recipe: "{}"}, resume=False)
