"""Repeat the paper's claims: run the cells that are missing, then write the report (docs/evidence.md)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import constants

from evidence.cells import QUICK_SEEDS, SEEDS, Plan, Results
from evidence.claims import CLAIMS
from evidence.data import DataSet, Sources, find_data_sets, split_into_folds
from evidence.report import write_report
from evidence.running import run_all
from evidence.tables import conclusion, make_tables
from uniformerv2 import RecipeError, UniFormerV2Error
from uniformerv2.machine import available_cores
from uniformerv2.progress import say

HERE = Path(__file__).parent
ON_REQUEST = [claim.name for claim in CLAIMS.values() if claim.on_request]
RESULTS, QUICK_RESULTS = HERE / "results", HERE / "results-quick"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 where cells failed, 2 for what a user can put right, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except UniFormerV2Error as error:
        say(f"error: {error}", style="red")
        return 2
    except KeyboardInterrupt:
        say("stopped; what is done stays, run again to go on")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evidence", description=__doc__)
    usual = f"default: all but {', '.join(ON_REQUEST)}"
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=f"of {', '.join(CLAIMS)}; {usual}")
    parser.add_argument(
        "--quick", action="store_true", help="short trainings, one seed, drawn sets and those of --data"
    )
    parser.add_argument(
        "--data", nargs="+", action="extend", default=[], metavar="NAME=MANIFEST",
        help="a manifest or folder of a known set, or of one of your own",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="SET", help="these data sets alone")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: evidence/results, or results-quick there")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", default=Path(constants.HF_HUB_CACHE, "uniformerv2/evidence")
    )
    parser.add_argument("--jobs", type=int, default=available_cores(), help="processes of one thread each")
    parser.add_argument("--device", default="cpu", help="that they compute on, such as cuda; default: cpu")
    parser.add_argument("--report", action="store_true", help="write the report of what is there, run nothing")
    parser.add_argument("--list", action="store_true", help="print claims, variants, data sets and cells, run nothing")
    return parser


def _run(options: argparse.Namespace) -> int:
    given = dict(_named(text) for text in options.data)
    sources = Sources.find(given, options.cache)
    sets = find_data_sets(list(sources.given))
    results = Results(options.results or (QUICK_RESULTS if options.quick else RESULTS))
    seeds = QUICK_SEEDS if options.quick else SEEDS
    everything = Plan(tuple(CLAIMS.values()), sets, all_rows(sets, sources, results), seeds, options.quick)
    named = options.claims or [name for name in CLAIMS if name not in ON_REQUEST]
    claims = [CLAIMS[name] for name in _known("claim", named, CLAIMS)]
    wanted = _known("data set", options.only or (), sets)
    if options.quick and not options.only:
        wanted = [name for name, data in sets.items() if data.draw is not None or data.given_as in given]
    chosen = {name: sets[name] for name in wanted}
    plan = Plan(tuple(claims), chosen, {name: everything.rows[name] for name in chosen}, seeds, options.quick)
    if options.list:
        print(listing(plan, sources, results))
        return 0
    wrong = [] if options.report else run_missing(plan, sources, results, jobs=options.jobs, device=options.device)
    if not results.folder.is_dir():
        raise RecipeError(f"{results.folder}: no results to report; run without --report, or name another --results")
    tables = make_tables(plan, results)
    for claim in plan.claims:
        print(f"{claim.name}: {conclusion([table for table in tables if table.claim is claim])}")
    print(*write_report(plan, tables, results.folder, others=results.others(everything.all())), sep="\n")
    for line in wrong:
        say(line, style="red")
    return 1 if wrong else 0


def all_rows(sets: Mapping[str, DataSet], sources: Sources, results: Results) -> dict[str, str]:
    """The videos of each data set: those that are here, else those that the results were measured on, else "".

    Raises:
        AnnotationError: a data set that is here cannot be read or split.
    """
    rows = {}
    for name, data in sets.items():
        if data in sources and data.draw is None:
            split_into_folds(data, sources.rows(data))
        rows[name] = sources.digest(data) if data in sources else results.rows_of(name)
    return rows


def run_missing(plan: Plan, sources: Sources, results: Results, *, jobs: int, device: str = "cpu") -> list[str]:
    """Run the cells that have no result and whose data are here. Returns what went wrong, a line each."""
    cells = plan.all()
    here = [cell for cell in cells if plan.data[cell.data] in sources]
    todo = [cell for cell in here if not results.path(cell).is_file()]
    if absent := [name for name, data in plan.data.items() if data not in sources]:
        say(f"not here: {', '.join(absent)} ({len(cells) - len(here)} cells); docs/evidence.md says where to get them")
    say(f"{len(todo)} of {len(cells)} cells to run, {jobs} at a time")
    for name, size in sorted({(cell.data, cell.recipe["size"]) for cell in todo}):
        sources.small_rows(plan.data[name], size)  # drawn or packed before the processes start
    jobs = min(jobs, len(todo))
    return run_all(todo, dict(plan.data), sources, results.folder, jobs=jobs, device=device) if todo else []


def listing(plan: Plan, sources: Sources, results: Results) -> str:
    """Claims with their variants, data sets with their cells."""
    lines = []
    for claim in plan.claims:
        lines += [f"{claim.name}: {claim.sentence}", f"  {', '.join(variant.name for variant in claim.rows)}"]
    cells = plan.all()
    for name, data in plan.data.items():
        own = [cell for cell in cells if cell.data == name]
        done = sum(results.path(cell).is_file() for cell in own)
        place = "drawn" if data.draw is not None else "here" if data in sources else "not here"
        lines.append(f"{name} ({place}; {data.about}): {done} of {len(own)} cells done")
    return "\n".join(lines)


def _known(what: str, names: Sequence[str], known: Mapping[str, object]) -> list[str]:
    """The names, all where none is given. Raises RecipeError for one that is none."""
    for name in names:
        if name not in known:
            raise RecipeError(f"no {what} {name!r}; there are {', '.join(known)}")
    return list(names or known)


def _named(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    if not sign or not path:
        raise RecipeError(f"--data {text}: give NAME=MANIFEST, such as weizmann=/data/weizmann")
    return name, Path(path)


if __name__ == "__main__":
    sys.exit(main())
