"""What a command found or did."""

import argparse
import json
from typing import Any


def show(asked: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    """One JSON object with --json, and otherwise the text."""
    print(json.dumps(facts) if asked.json else text)
