"""What a user can get wrong, as types. Everything else is a programming error and keeps its traceback."""

from __future__ import annotations


class UniFormerV2Error(Exception):
    """Base of every error that a user can cause and mend.

    The message is one line that names the file, the offending value and the way out.
    The command line prints it and ends with status 2.
    """


class VideoError(UniFormerV2Error):
    """A video that cannot be opened, or whose wanted frames cannot be decoded."""


class CheckpointError(UniFormerV2Error):
    """A weight file that cannot be read, or that does not fit the model it is meant for."""


class AnnotationError(UniFormerV2Error):
    """A manifest or folder of videos that does not say what is needed."""


class RecipeError(UniFormerV2Error):
    """Options that contradict each other, or a run directory that must not be touched."""


class ProcessError(UniFormerV2Error):
    """Another process that works on the same thing has ended."""
