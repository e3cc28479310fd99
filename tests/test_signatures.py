"""One way to call: like arguments have like names, order, types and defaults, in Python and on the command line."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from signatures import ORDER, default, keyword, options, signatures, table  # noqa: E402

SIGNATURES, OPTIONS = signatures(), list(options())

# What stands apart from the others of its name, and why: (function, parameter), and (class that defines it, option).
LIVE = "changes or reads the model that is given"
PARAMETERS_APART = {
    ("Localiser", "model"): "its file holds more than a video model",
    ("load_weights", "model"): LIVE,
    ("map_head", "model"): LIVE,
    ("optimize", "model"): LIVE,
    ("save_model", "model"): LIVE,
    ("LiveFrames", "name"): "what is pushed has no file name",
    ("LiveFrames.take", "timeout_seconds"): "waits for whoever pushes",
    ("Predictor", "batch_size"): "None is 1 on a CPU, where batching adds latency and little throughput",
    ("Predictor.timeline", "window_seconds"): "a whole video is one window where None is the default",
    ("StreamLocaliser", "model"): "its file holds more than a video model",
    ("StreamLocaliser.run", "threshold"): "each span that reaches it is told",
    ("evaluate", "split"): "a model is measured on videos that it was not trained on",
    ("evaluate_multilabel", "split"): "a model is measured on videos that it was not trained on",
    ("evaluate_localiser", "model"): "its file holds more than a video model",
    ("evaluate_localiser", "split"): "a model is measured on videos that it was not trained on",
    ("score_spans", "protocol"): "files in ActivityNet's form are scored as ActivityNet by default",
    ("score_labels", "protocol"): "of labels, several at a time",
    ("extract_features", "data"): "videos need no labels, so that single files will do",
}
OPTIONS_APART = {
    ("Benchmark", "layout"): "the one that most published figures are of; a recipe's suits data of one's own",
    ("ClipRecipe", "num-frames"): "None stands for those of the checkpoint that goes on",
    ("Convert", "dataset"): "tells what a checkpoint does not; of models, the option chooses some",
    ("Convert", "global-after"): "tells what a checkpoint does not",
    ("Demo", "seed"): "of videos too",
    ("Evaluate", "split"): PARAMETERS_APART["evaluate", "split"],
    ("Export", "format"): "of one file that is written, by default the one that its suffix says",
    ("Import", "split"): "may tell which split a file is of",
    ("Order", "split"): PARAMETERS_APART["evaluate", "split"],
    ("Kinetics710", "videos"): "lists may do without files",
    ("Optimization", "batch-size"): "of a training step",
    ("Optimization", "precision"): "of training, which has other number formats",
    ("ProbeRecipe", "batch-size"): "of a training step, and larger, as each is taken by all settings",
    ("ProbeRecipe", "cache-features"): "a probe always caches them",
    ("ProbeRecipe", "epochs"): "cheap, as the videos are encoded once",
    ("ProbeRecipe", "fixed-views"): "new views in each epoch would be encoded in each",
    ("ProbeRecipe", "global-after"): "few, as all that they see is kept on disk",
    ("ProbeRecipe", "num-frames"): "as of ClipRecipe, in its words",
    ("ProbeRecipe", "size"): "an image transformer's own where ClipRecipe has 224",
    ("LocaliserRecipe", "batch-size"): "films of a training step",
    ("LocaliserRecipe", "ema"): "the head is small, and few films make noisy steps",
    ("LocaliserRecipe", "epochs"): "cheap, as the films are embedded once",
    ("LocaliserRecipe", "evaluate-every"): "whole films are measured",
    ("LocaliserRecipe", "lr"): "of a new head alone",
    ("LocaliserRecipe", "seed"): "of films",
    ("Timeline", "threshold"): "all spans that reach it are drawn",
    ("Stream", "threshold"): PARAMETERS_APART["StreamLocaliser.run", "threshold"],
    ("LocaliserRecipe", "stride-seconds"): "a localiser has both, as part of what it is",
    ("LocaliserRecipe", "warmup-epochs"): "a tenth of its epochs",
    ("LocaliserRecipe", "window-seconds"): "a localiser has both, as part of what it is",
    ("DryRunLocaliser", "checkpoint"): "embeds windows, and is no start among others",
    ("DryRunLocaliser", "task"): "behind the name of another command, for this task alone",
    ("TrainLocaliser", "checkpoint"): "embeds windows, and is no start among others",
    ("TrainLocaliser", "task"): "behind the name of another command, for this task alone",
    ("PyramidConfig", "heads"): "of what finds spans",
    ("Predict", "batch-size"): PARAMETERS_APART["Predictor", "batch_size"],
    ("Predict", "backend"): "exported graphs give logits alone, which is all that it needs",
    ("Predict", "precision"): "int8 is for it alone, since it needs videos to calibrate on",
    ("ScoreLabels", "protocol"): PARAMETERS_APART["score_labels", "protocol"],
    ("Score", "protocol"): "whose subset too; a localiser is measured as in its training by default",
    ("Score", "json"): "the scores of all classes are many for a terminal, so that it takes a file too",
    ("Timeline", "window-seconds"): PARAMETERS_APART["Predictor.timeline", "window_seconds"],
}
# parameters with a default that may be given in order, by function
IN_ORDER = {"named_config": "size and layout are one name, as in B/16 temporal"}


def apart(
    found: Iterable[tuple[str, str, Hashable]], exceptions: Mapping[tuple[str, str], str]
) -> set[tuple[str, str]]:
    """(owner, name) of everything that is not as with most owners of the name, the exceptions not counted."""
    values: dict[str, dict[str, Hashable]] = defaultdict(dict)
    for owner, name, value in found:
        values[name][owner] = value
    different = set()
    for name, of in values.items():
        counts = Counter(value for owner, value in of.items() if (owner, name) not in exceptions)
        usual = counts.most_common(1)[0][0]
        different |= {(owner, name) for owner, value in of.items() if value != usual}
    return different


# --- Python


def test_a_name_has_one_type_and_one_default() -> None:
    found = [
        (function, one.name, (str(one.annotation), default(one)))
        for function, signature in SIGNATURES.items()
        for one in signature.parameters.values()
        if keyword(one) or one.name in ("model", "data")
    ]
    assert apart(found, PARAMETERS_APART) == PARAMETERS_APART.keys()


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_model_comes_first_and_then_the_data(name: str) -> None:
    names = list(SIGNATURES[name].parameters)
    given = [one for one in ("model", "data") if one in names]
    assert names[: len(given)] == given


@pytest.mark.parametrize("name", SIGNATURES)
def test_what_has_a_default_is_given_by_name(name: str) -> None:
    parameters = SIGNATURES[name].parameters.values()
    in_order = [one.name for one in parameters if not keyword(one) and one.default is not one.empty]
    assert not in_order or name in IN_ORDER


@pytest.mark.parametrize("name", SIGNATURES)
def test_keywords_stand_in_one_order(name: str) -> None:
    known = [one for one in SIGNATURES[name].parameters if one in ORDER]
    assert known == sorted(known, key=ORDER.index)


def test_names_say_their_units() -> None:
    bare = {"window", "stride", "timeout", "duration", "interval", "save_every", "num_clips", "num_crops", "console"}
    assert not [(name, bare & set(one.parameters)) for name, one in SIGNATURES.items() if bare & set(one.parameters)]


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    """`python tools/signatures.py` prints it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- signatures -->\n")[2].partition("\n<!-- /signatures -->")[0]
    assert shown.strip() == table()


# --- the command line


def test_an_option_has_one_meaning_type_and_default() -> None:
    found = [(one.owner, one.name, (one.type, one.default, one.help)) for one in OPTIONS if one.name != "output"]
    assert apart(found, OPTIONS_APART) == OPTIONS_APART.keys()


def test_an_option_has_one_short_form() -> None:
    assert not apart([(one.owner, one.name, one.aliases) for one in OPTIONS], {})
    shorts = {(short, one.name) for one in OPTIONS for short in one.aliases}
    assert len({short for short, _ in shorts}) == len(shorts)


def test_options_say_their_units_and_what_they_are() -> None:
    assert not {"window", "stride", "timeout", "save-every", "frames"} & {one.name for one in OPTIONS}
    assert not [(one.command, one.name) for one in OPTIONS if not one.help]
