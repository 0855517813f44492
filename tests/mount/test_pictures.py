"""The pictures of the README are what `tools/render-pictures` makes of the code as it is."""

from pathlib import Path
from xml.etree import ElementTree

import pictures

README = Path(__file__).parents[2] / "README.md"
AGAIN = "tools/render-pictures, and look at them"


def test_the_drawing_is_as_it_is_drawn() -> None:
    assert pictures.PROCESSES.read_text() == pictures.processes(), AGAIN


def test_the_recording_is_what_the_commands_print_today() -> None:
    steps = pictures.recorded()
    assert pictures.RECORDED.read_text() == pictures.terminal(steps), AGAIN
    assert [command for command, _ in steps] == pictures.SESSION.splitlines()


def test_they_are_svg_and_the_readme_opens_with_them() -> None:
    begin = README.read_text().partition("## Two commands")[0]
    for picture in (pictures.PROCESSES, pictures.RECORDED):
        assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert f"](docs/{picture.name})" in begin
