"""Weights and what is known of their run -> a Hugging Face folder with its model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mats_ds.exporting.hub.card import CardFacts, check_license, find_run
from mats_ds.exporting.hub.folder import write_hub
from mats_ds.exporting.hub.measured import read_measured
from mats_ds.exporting.network import describe_network, list_costs, open_network
from mats_ds.models.weights.model_weights import Weights


def export_hub(
    folder: Path,
    weights: Weights,
    *,
    source: Path,
    keep_ratio: float | None,
    results: Sequence[Path] = (),
    license: str | None = None,
    data: str | None = None,
) -> list[str]:
    """Write the folder of weights that were read from `source`; returns notes for the user.

    results: folders of `evaluate` and `probe` beside the run's own. license: an identifier of the
    Hub. data: what the card calls the training data. Raises ValueError as `write_hub` does, and for
    options that cannot be.
    """
    check_license(license)
    for path in results:
        if not path.is_dir():
            raise ValueError(f"--results {path} is no folder: name the folders that evaluate or probe wrote")
    network = describe_network(open_network(weights, keep_ratio=keep_ratio), weights.spec)
    run_folder, run = find_run(source)
    measured = read_measured([*([] if run_folder is None else [run_folder]), *results], weights.origin)
    facts = CardFacts(
        spec=network,
        source_kind=weights.spec.kind,
        origin=weights.origin,
        costs=list_costs(network),
        measured=measured,
        run=run,
        license=license,
        data=data,
    )
    notes = [*measured.notes, *write_hub(folder, weights, network=network, facts=facts)]
    if license is None:
        notes.append("the card says license: other, not stated; name one with --license before you publish")
    if not data:
        notes.append("the card says data: not stated; name the training data with --data-name before you publish")
    return notes
