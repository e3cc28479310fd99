"""`uniformerv2 probe`."""

from __future__ import annotations

from pathlib import Path

from helpers import Run, assert_refused


def test_prints_every_setting_and_leaves_a_model_that_predicts(
    uniformerv2: Run, colours: Path, image_model: Path, video: Path, tmp_path: Path
) -> None:
    command = ["probe", colours, "--arm", image_model, "-o", tmp_path / "probe", "--size", 32, "--num-frames", 4]
    command += ["--workers", 0, "--epochs", 2, "--batch-size", 4, "--weight-decays", 0.1]
    status, output, errors = uniformerv2(*command, "--learning-rates", 1e-3, 1e-2, 1e30)
    assert status == 0, errors
    assert "12 training videos of 3 classes, 3 held out" in errors
    assert "features of 24 of 24 views" in errors
    assert "3 settings, 2 epochs" in errors
    assert "0.001" in output
    assert "0.01" in output
    assert output.count("diverged") == 1
    assert "by which it was chosen of 3 settings" in " ".join(output.split())
    assert uniformerv2("predict", tmp_path / "probe", video)[0] == 0
    assert_refused(uniformerv2(*command), "has a probe", "--overwrite")
    assert_refused(uniformerv2(*command, "--overwrite", "--checkpoint", "x"), "choose one of an image transformer")
