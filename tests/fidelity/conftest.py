"""The recorder's package, and kvmsim that answers recorded cases."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
