"""RACE_PAGE_MAP=on or off: scenarios with page maps in every VM, or in none, instead of as they say."""

import os

from kvmsim.instruments.race.scenario import Scenario, load, with_page_maps

PAGE_MAP = os.environ.get("RACE_PAGE_MAP", "")
assert PAGE_MAP in ("", "on", "off"), f"RACE_PAGE_MAP={PAGE_MAP}: write on or off"


def chosen(name: str) -> Scenario:
    """A shipped scenario, as the environment wants it."""
    scenario = load(name)
    return with_page_maps(scenario, on=PAGE_MAP == "on") if PAGE_MAP else scenario
