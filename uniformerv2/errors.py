"""Errors that a user can cause. Any other exception is a programming error and keeps its traceback."""

from __future__ import annotations


class UniFormerV2Error(Exception):
    """Base of every error that a user can cause and fix.

    The message is one line that names the file, the wrong value and the way out.
    The command line prints it and ends with status 2.
    """


class VideoError(UniFormerV2Error):
    """A video that cannot be opened, or whose wanted frames cannot be decoded."""


class CheckpointError(UniFormerV2Error):
    """A weight file that cannot be read or written, or that does not fit its model."""


class AnnotationError(UniFormerV2Error):
    """A manifest or folder of videos that lacks something or contradicts itself."""


class RecipeError(UniFormerV2Error):
    """Options that contradict each other, or an output that must not be touched."""


class ProcessError(UniFormerV2Error):
    """Another process of the same group, or the device that computes, is gone."""
