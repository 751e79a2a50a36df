"""Makes the package `samples` importable: it lies beside the library and is never installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
