"""Two labelled manifests, to fit to and to test on -> the number of their classes, or what does not fit."""

from __future__ import annotations

import numpy as np

from mats_ds.data.manifest import Manifest

SHOWN = 5


def count_shared_classes(train: Manifest, val: Manifest) -> int:
    """One more than the largest label of `train`. Raises ValueError for videos without a label, classes of `val` of which
    `train` has no video, or a single class.
    """
    for manifest in (train, val):
        missing_S = manifest.label_S < 0
        if missing_S.any():
            first = manifest.paths[int(missing_S.argmax())]
            raise ValueError(
                f"{int(missing_S.sum())} of {len(manifest)} videos of {manifest.name} have no label; the first is {first}: "
                "every video needs one"
            )
    unknown = np.setdiff1d(val.label_S, train.label_S).tolist()
    if unknown:
        more = ", ..." if len(unknown) > SHOWN else ""
        raise ValueError(
            f"{val.name} has videos of class {', '.join(map(str, unknown[:SHOWN]))}{more}, {train.name} has none: "
            "number the classes of both alike"
        )
    num_classes = int(train.label_S.max()) + 1
    if num_classes < 2:
        raise ValueError(f"all videos of {train.name} have the label 0: at least two classes are needed")
    return num_classes
