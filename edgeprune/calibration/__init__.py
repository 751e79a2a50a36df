"""Calibration: a bias curve that is fitted to a model's own attention.

    from edgeprune.calibration import calibrate

    found = calibrate("llava", "images", "curve.json")
    print(found.curve.describe(), found.fit.slope.significant)

| module | what it holds |
|---|---|
| `samples` | which images are shown, and what is asked about them |
| `measure` | the model, watched where its method scores; the only part that needs torch |
| `attention`, `state` | what was gathered, in memory and on the disk |
| `fit` | trends, their errors, and whether there is one |
| `report`, `plot` | every figure, and a drawing |
| `outputs` | the files that are written |
| `run` | all of it in order |

Importing this package loads neither torch nor matplotlib.
"""

from __future__ import annotations

from edgeprune.calibration.outputs import Outputs
from edgeprune.calibration.report import Calibration, StageCalibration
from edgeprune.calibration.run import calibrate

__all__ = ["Calibration", "Outputs", "StageCalibration", "calibrate"]
