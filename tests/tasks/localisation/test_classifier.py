"""The video model's own classifier beside the head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from drawn_films import Trained
from uniformerv2.tasks.localisation.checkpoint import LocaliserModel, build_head, load_localiser, save_localiser
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
from uniformerv2.weights.loading import load_model


def with_classifier(trained: Trained) -> LocaliserRecipe:
    return trained.recipe.vary(head=replace(trained.recipe.head, classifier_share=0.25))


def test_it_says_what_the_video_model_says(trained: Trained, tmp_path: Path) -> None:
    video, recipe = load_model(trained.model), with_classifier(trained)
    embeddings, valid = torch.randn(1, 6, video.config.width), torch.ones(1, 6, dtype=torch.bool)
    expected = video.probabilities(video.head(embeddings))[..., [video.labels.index("red"), video.labels.index("blue")]]
    built = LocaliserModel(video, build_head(video, recipe, ("red", "blue")), ("red", "blue"), recipe)
    save_localiser(built, tmp_path / "model.safetensors")
    for head in (built.head, load_localiser(tmp_path / "model.safetensors").head):
        assert head.train()(embeddings, valid).in_windows is None
        assert torch.equal(head.eval()(embeddings, valid).in_windows, expected)
        assert not any(parameter.requires_grad for parameter in head.classifier.parameters())
    video.thresholds = (0.5,) * len(video.labels)  # a clip may have several labels: each is likely by itself
    several = build_head(video, recipe, ("red",)).eval()(embeddings, valid).in_windows
    assert torch.equal(several, video.head(embeddings).sigmoid()[..., [video.labels.index("red")]])


def test_it_is_asked_only_where_it_knows_the_labels_and_its_embeddings_stay(trained: Trained) -> None:
    video, recipe = load_model(trained.model), with_classifier(trained)
    assert build_head(video, recipe, ("blue", "red")).classifier is not None
    assert build_head(video, recipe, ("blue", "jump")).classifier is None
    assert build_head(video, recipe.vary(video_lr=1e-5), ("blue", "red")).classifier is None
    assert build_head(video, trained.recipe, ("blue", "red")).classifier is None  # its share is 0
