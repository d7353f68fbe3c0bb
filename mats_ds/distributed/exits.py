"""The reasons that a run ends before its last step, as exceptions that every rank raises alike."""

from __future__ import annotations

from mats_ds.core.cli import FINISHED, INTERRUPTED, ProgramEnd


class TrainingStopped(ProgramEnd):
    """The run cannot go on, on any rank; the message says why and what to do."""


class FolderLost(TrainingStopped):
    """The files that the run writes are lost, on one rank at least. `why`: FileWatch's sentence."""

    def __init__(self, why: str, *, step: int) -> None:
        super().__init__(
            f"{why}, noticed after step {step}; what came after its newest checkpoint is not saved. If it was moved, put it back "
            "or name its new path with --out, and go on with --resume auto; if it was deleted, begin again with another --out"
        )


class TrainingInterrupted(ProgramEnd):
    """The run was asked to end and has saved the step that it was at; the message says who
    asked."""

    status, label = INTERRUPTED, "interrupted"


class AlreadyFinished(ProgramEnd):
    """All steps were done before, so there is nothing to do; the message says how to go further.

    A job that is queued again after its end ends well.
    """

    status, label = FINISHED, "nothing to do"


class RanksLost(ProgramEnd):
    """Other ranks have died or do not answer; the message says which, if that is known."""

    is_local = True
