"""Makes the packages `benchmarks` and `samples` importable: they are never installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
