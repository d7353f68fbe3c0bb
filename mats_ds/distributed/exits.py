"""Why a run ends before its last step, as exceptions that every rank raises alike, and the exit statuses of the scripts."""

from __future__ import annotations

FINISHED, RUN_ERROR, USAGE_ERROR = 0, 1, 2
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, to be started again
KILLED_BY_USER = 130  # as a shell has it after Ctrl-C


class TrainingStopped(RuntimeError):
    """The run cannot go on, on any rank; the message says why and what to do."""


class FolderLost(TrainingStopped):
    """What the run writes does not arrive any more, on one rank at least. `why`: FileWatch's sentence."""

    def __init__(self, why: str, *, step: int) -> None:
        super().__init__(
            f"{why}, noticed after step {step}; what came after its newest checkpoint is not saved. If it was moved, put it back "
            "or name its new place with --out, and go on with --resume auto; if it was deleted, begin again with another --out"
        )


class TrainingInterrupted(RuntimeError):
    """The run was asked to end and has saved the step that it was at; the message says who asked."""


class AlreadyFinished(RuntimeError):
    """All steps were done before, so there is nothing to do; the message says how to go further."""


class RanksLost(RuntimeError):
    """Other ranks have died or do not answer; the message says which, if that is known."""
