"""The package mats_ds, for a Python that stands in the folder above a clone.

`git clone` names the folder of a clone as the package, and Python then takes the folder for the
package: `import mats_ds` found no name in it, and `python -m mats_ds` nothing to run. This file
hands over to the package: an installed one, or the one in this clone. It is in no wheel.
"""

import importlib.util
import os
import sys
from importlib.machinery import PathFinder

if __name__ == "mats_ds":  # pytest imports this file too, by the name of the folder
    _clone = os.path.dirname(os.path.abspath(__file__))
    _others = [path for path in sys.path if os.path.abspath(path) != os.path.dirname(_clone)]
    _spec = PathFinder.find_spec(__name__, [*_others, _clone])
    if _spec is None or _spec.loader is None:
        raise ImportError(f"{_clone} lies in a folder that Python searches, and holds no package mats_ds: is it a whole clone?")
    sys.modules[__name__] = importlib.util.module_from_spec(_spec)  # `import` takes what stands here
    _spec.loader.exec_module(sys.modules[__name__])
