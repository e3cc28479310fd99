"""What a result depends on, who runs it, and what is never mixed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evidence import running
from evidence.cells import Cell, Plan, Result, Results, cells_of, model_config, recipe_of
from evidence.claims import CLAIMS, Claim, Variant
from evidence.data import DATA_SETS, DataSet, Sources
from evidence.running import work_through
from evidence.tables import conclusion, make_tables
from helpers import kill_this_process, start_process
from uniformerv2 import arm
from uniformerv2.errors import CheckpointError, VideoError
from uniformerv2.train.recipe import Optimization
from uniformerv2.train.recipes import find_recipe

MOTIONS = DATA_SETS["motions"]
LAYOUTS = CLAIMS["layouts"]


def one_cell(variant: Variant = LAYOUTS.variants[0], rows: str = "drawn", seed: int = 0) -> Cell:
    (cell,) = cells_of(variant, MOTIONS, rows, seed=seed)
    return cell


def result_of(cell: Cell, right: int, videos: int = 20) -> Result:
    """So many of the videos are right."""
    answers = tuple(0 if number < right else 1 for number in range(videos))
    return Result(cell, ("a", "b"), (0,) * videos, answers, (1,) * videos, 1_100_000, 90_000_000, 60.0, "a machine")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path


def test_the_digest_changes_with_every_field() -> None:
    cell = one_cell()
    paths = list(leaves(asdict(cell)))
    assert {("model", "width"), ("recipe", "lr"), ("recipe", "epochs"), ("version",)} < set(paths)
    digests = {cell.digest}
    for path in paths:
        fields = json.loads(json.dumps(asdict(cell)))
        inner = fields
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = "something else"
        digests.add(Cell(**fields).digest)
    assert len(digests) == len(paths) + 1


def test_a_cell_has_what_differs_from_the_defaults(tmp_path: Path) -> None:
    """What it leaves out is meant to stay: a default that changes needs another PROTOCOL in evidence/cells.py."""
    cell = one_cell(Variant("frozen", LAYOUTS.variants[0].model, recipe={"frozen_backbone": True, "num_frames": 4}))
    recipe, config = recipe_of(cell, tmp_path / "start.safetensors"), model_config(cell, 12)
    assert (recipe.model.frozen_backbone, recipe.clip.num_frames, recipe.augmentation.crop_area) == (True, 4, (1, 1))
    assert recipe.model.checkpoint == str(tmp_path / "start.safetensors")
    assert (config.width, config.depth, config.temporal_downsample, config.num_classes) == (96, 4, True, 12)
    left_out = recipe.optimization
    assert (Optimization().epochs, Optimization().lr) == (20, 3e-4)  # cells of other data sets leave these out too
    assert (left_out.weight_decay, left_out.betas, left_out.layer_decay, left_out.ema) == (0.05, (0.9, 0.999), 1.0, 0.0)
    assert (config.local_kernel, config.local_reduction, config.num_queries, config.fusion) == (3, 1.5, 1, "sequential")


def test_claims_share_equal_cells_and_no_others() -> None:
    by_digest: dict[str, set[str]] = {}
    for claim in CLAIMS.values():
        for variant in claim.rows:
            by_digest.setdefault(one_cell(variant).digest, set()).add(variant.name)
    shared = sorted(map(sorted, (names for names in by_digest.values() if len(names) > 1)))
    assert shared == [
        ["0 stages", "class token alone"],
        sorted(
            [
                "temporal",
                "attention+mlp, kernel 3, reduction 1.5",
                "3 stages, 1 query",
                "sequential",
                "mixed",
                "8 frames",
                "all trained",
                "convolution",
                "supervised, 8 times as many stills",
                "as usual",
                "as filmed",
                "stills alone",
            ]
        ),
    ]


def test_seeds_and_quick_trainings_are_other_cells() -> None:
    variant = LAYOUTS.variants[0]
    cells = [one_cell(), one_cell(seed=1), *cells_of(variant, MOTIONS, "drawn", seed=0, quick=True)]
    assert len({cell.digest for cell in cells}) == 3
    assert [cell.fold for cell in cells_of(variant, DATA_SETS["room_transitions"], "r", seed=0)] == [0, 1, 2, 3, 4]


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    result = result_of(one_cell(), right=13)
    Results(tmp_path).add(result)
    assert Results(tmp_path).find(one_cell()) == result
    assert result.correct.sum() == 13
    assert list(tmp_path.iterdir()) == [tmp_path / f"{result.cell.digest}.json"]  # nothing partial is left


def test_other_versions_and_videos_are_counted_and_not_mixed(tmp_path: Path) -> None:
    results, plan = Results(tmp_path), Plan((LAYOUTS,), {"motions": MOTIONS}, {"motions": "drawn"})
    wanted = plan.all()
    for number, cell in enumerate([wanted[0], replace(wanted[0], version="9.9"), replace(wanted[1], rows="others")]):
        results.add(result_of(cell, right=10 + number))
    assert results.others(wanted) == 2
    (table,) = make_tables(plan, results)
    assert table.reference.accuracy is not None
    assert table.reference.accuracy.mean == 10 / 20
    assert [row.missing for row in table.rows] == [2, 3, 3, 3, 3]
    assert results.rows_of("motions") == ""  # of two sets of videos, none is taken
    results.path(replace(wanted[1], rows="others")).unlink()
    assert results.rows_of("motions") == "drawn"


def test_a_seed_counts_once_all_of_its_folds_are_there(tmp_path: Path) -> None:
    room = DATA_SETS["room_transitions"]
    results, plan = Results(tmp_path), Plan((LAYOUTS,), {room.name: room}, {room.name: "r"})
    cells = plan.cells(LAYOUTS.variants[0], room)
    for cell in [*cells[0], *cells[1][:4]]:
        results.add(result_of(cell, right=cell.fold, videos=10))
    (table,) = make_tables(plan, results)
    assert table.reference.accuracy is not None
    assert table.reference.accuracy.mean == pytest.approx(10 / 50)
    assert list(table.reference.correct) == [0]
    assert table.reference.missing == 6
    assert conclusion([table]) == "4 of 4 comparisons are not measured."


def test_conclusions_follow_the_intervals(tmp_path: Path) -> None:
    results, plan = Results(tmp_path), Plan((LAYOUTS,), {"motions": MOTIONS}, {"motions": "drawn"})
    for name, right in (("temporal", 90), ("scene", 30), ("image only", 89), ("from scratch", 99)):
        for cell in plan.all():
            if cell in [one_cell(row, seed=cell.seed) for row in LAYOUTS.rows if row.name == name]:
                results.add(result_of(cell, right, videos=100))
    text = conclusion(make_tables(plan, results))
    assert "Contradicted: motions: temporal better than from scratch (-9.0 [" in text
    assert "Confirmed: motions: temporal better than scene (+60.0 [" in text
    assert "Not seen at this scale: motions: temporal better than image only (+1.0 [" in text


@pytest.mark.parametrize("content", ["", "[]", '{"cell": {}}', "{"])
def test_what_is_no_result_is_refused_in_a_line(tmp_path: Path, content: str) -> None:
    (tmp_path / f"{one_cell().digest}.json").write_text(content)
    with pytest.raises(CheckpointError, match="delete it, and run again"):
        Results(tmp_path).find(one_cell())


def test_a_result_under_another_name_is_refused(tmp_path: Path) -> None:
    results, other = Results(tmp_path), one_cell(seed=1)
    results.add(result_of(one_cell(), right=3))
    results.path(one_cell()).rename(results.path(other))
    with pytest.raises(CheckpointError, match=f"has the digest {one_cell().digest}"):
        results.find(other)


# --- who runs a cell


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Cells are done at once; returns those that were."""
    done: list[Cell] = []

    def run_cell(cell: Cell, rows: object, work: Path, image: Path | None, device: str) -> Result:
        done.append(cell)
        return result_of(cell, right=5)

    monkeypatch.setattr(running, "run_cell", run_cell)
    monkeypatch.setattr(running, "split_into_folds", lambda data, rows: [[]])
    monkeypatch.setattr(Sources, "small_rows", lambda self, data, size: [])
    return done


def work(cells: list[Cell], root: Path) -> int:
    data: dict[str, DataSet] = {"motions": MOTIONS}
    return work_through(cells, data, Sources({}, root / "cache"), root)


def test_what_is_done_is_not_done_again(tmp_path: Path, instant: list[Cell]) -> None:
    cells = [one_cell(), one_cell(seed=1)]
    Results(tmp_path).add(result_of(cells[0], right=5))
    assert work(cells, tmp_path) == 0
    assert instant == cells[1:]


def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path: Path, instant: list[Cell]) -> None:
    cells = [one_cell(), one_cell(seed=1)]
    theirs = tmp_path / "cache" / "runs" / cells[0].digest
    theirs.mkdir(parents=True)
    with Results(tmp_path).lock(cells[0]):
        assert work(cells, tmp_path) == 0
    assert instant == cells[1:]
    assert theirs.is_dir()


def test_a_killed_process_blocks_nothing(tmp_path: Path, instant: list[Cell]) -> None:
    cell = one_cell()

    def begin_and_die() -> None:
        Results(tmp_path).lock(cell).acquire()
        kill_this_process()

    process = start_process(begin_and_die)
    process.join()
    assert process.exitcode == -9
    assert (tmp_path / f".{cell.digest}.lock").exists()
    assert work([cell], tmp_path) == 0
    assert instant == [cell]


def test_a_cell_that_fails_is_told_and_the_others_are_run(
    tmp_path: Path, instant: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = running.run_cell

    def first_fails(cell: Cell, rows: Any, work: Path, image: Path | None, device: str) -> Result:
        if cell.seed == 0:
            raise VideoError("a.mp4: cannot be read")
        return done(cell, rows, work, image, device)

    monkeypatch.setattr(running, "run_cell", first_fails)
    assert work([one_cell(), one_cell(seed=1)], tmp_path) == 1
    assert instant == [one_cell(seed=1)]
    assert "failed: a.mp4: cannot be read" in capsys.readouterr().err


def test_claims_name_variants_that_exist() -> None:
    with pytest.raises(ValueError, match="no variant other"):
        Claim("c", "", "", (Variant("this"),), "other", ())
    assert np.all([claim.reference in {row.name for row in claim.rows} for claim in CLAIMS.values()])


def test_a_recipe_for_own_data_is_trained_as_it_is() -> None:
    variants = {variant.name: variant for variant in CLAIMS["own_data"].variants}
    cell = cells_of(variants["own-medium-vit"], DATA_SETS["weizmann"], "drawn", seed=3)[0]
    named, found = find_recipe("own-medium-vit").recipe, recipe_of(cell, Path("start.safetensors"))
    changed = {"precision": "fp32", "compile": False, "seed": 3, "evaluate_every": named.optimization.epochs}
    assert found.optimization == replace(named.optimization, **changed)
    assert found.augmentation == named.augmentation
    assert found.model == replace(named.model, arm=None, checkpoint="start.safetensors")


def test_the_architecture_of_own_data_is_that_of_its_transformer(shared: Path) -> None:
    variants = {variant.name: variant for variant in CLAIMS["own_data"].variants}
    file = shared / "data/vit_tiny_p16_224/vit_tiny_patch16_224.safetensors"
    for name, layout in (("own-small-vit", "temporal"), ("image only", "scene")):
        (cell, *_) = cells_of(variants[name], DATA_SETS["weizmann"], "drawn", seed=0)
        armed = arm(file, num_classes=10, layout=layout, size=144).config
        expected = armed if name != "image only" else replace(armed, global_after=())
        assert model_config(cell, 10) == expected
