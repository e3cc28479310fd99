"""The main job from nothing: draw, train, measure, predict, report."""
