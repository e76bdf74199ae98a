"""One root error. Every message states the fact, then the remedy, in one line.

The command line prints the message of any `HnsccQpError` without a traceback. Leaves also
subclass the builtin that a caller would expect to catch.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

_NAMED = 5


class ExitCode(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    NOTHING_USABLE = 1
    SOME_IMAGES_FAILED = 2


class HnsccQpError(Exception):
    """Root of every error that a user can cause or mend."""


class StudyError(HnsccQpError, ValueError):
    """A study file is missing, malformed, or asks for what is not there."""


class ProjectNotFoundError(HnsccQpError, FileNotFoundError):
    """There is no QuPath project at the path."""


class ProjectError(HnsccQpError, ValueError):
    """The path leads to something that is not a readable QuPath project."""


class BackendError(HnsccQpError, RuntimeError):
    """The wanted way into a project is not available."""


class ObjectDataError(HnsccQpError, ValueError):
    """An image's `data.qpdata` is damaged, truncated or of an unknown kind."""


class UnsupportedServerError(HnsccQpError, ValueError):
    """The project shows an image through a server that can't be placed exactly (rotated, cropped, series)."""


class GeoJsonError(HnsccQpError, ValueError):
    """A GeoJSON file can't be read, or an object can't be written without loss."""


class AnnotationError(HnsccQpError, ValueError):
    """The annotations can't be used as the study asks."""


class TangledOutlineError(AnnotationError):
    """An outline crosses itself more often than can be repaired in reasonable time."""


class TruthError(HnsccQpError, ValueError):
    """A mask or an annotation file beside a slide is missing, damaged, or does not fit the slide."""


class CohortError(HnsccQpError, ValueError):
    """Patients, statuses or sides of the split contradict each other or are missing."""


class SealedSplitError(CohortError):
    """Something of a test patient was about to reach training, or a patient would change sides."""


class SlideNotFoundError(HnsccQpError, FileNotFoundError):
    """A slide is not where the project says, nor in the study's slide folders."""


class SlideReadError(HnsccQpError, OSError):
    """A slide can't be opened, or part of it can't be decoded."""


class MissingMppError(HnsccQpError, ValueError):
    """Neither QuPath nor the slide says how large a pixel is."""


class UnusableSlideError(HnsccQpError, ValueError):
    """A slide can be read, but not for this work: too coarse, too small, no tissue."""


class WeightsError(HnsccQpError, OSError):
    """Pretrained weights can't be had, or do not fit the network."""


class CheckpointError(HnsccQpError, ValueError):
    """A model file is damaged, is not ours, or is of another network."""


class TrainingError(HnsccQpError, ValueError):
    """There is nothing to train on, or training went astray."""


class ScoreMapError(HnsccQpError, ValueError):
    """A score map is damaged or was made for something else."""


class StorageError(HnsccQpError, OSError):
    """A result can't be written: the disk is full, or the folder is not to be written to."""


class ClusterError(HnsccQpError, RuntimeError):
    """The cluster can't be reached, went away, or its machines don't have what the work needs."""


class ReviewLogError(HnsccQpError, ValueError):
    """The log of verdicts was changed, cut short, or can't be read."""


class ReadersError(HnsccQpError, ValueError):
    """A table of readers' calls is empty, contradicts itself, or names what the project does not have."""


class StepError(HnsccQpError, RuntimeError):
    """A step can't start because an earlier one is not done."""


def listed(names: Sequence[str]) -> str:
    """A few names for a message, and how many more."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
