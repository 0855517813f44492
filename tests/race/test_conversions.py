"""Scenarios with guest_memfds: what they can say, and what it comes to where nothing races."""

import pytest

from kvmsim.instruments.race import diagram, explore
from kvmsim.instruments.race.scenario import ScenarioError, parse


def ends(text: str) -> list[str]:
    """What each command of the one actor came to. Nothing may fail."""
    result = next(explore.seeded(parse("quiet", text), 1, 1))
    assert result.failures == [], "\n" + diagram.draw(result)
    return [note for step in result.steps for note in step.note.split("; ") if note]


INPLACE = "store frames=16 abi=gmem-inplace\nfile mem 4{}\nvm vm0\nbefore vmm: slot 0 mem 0 0 4\n"
OF_THE_VM = "store frames=16 abi={}\nfile mem 4\nvm vm0\nbefore vmm: slot 0 mem 0 0 4\n"


def test_the_host_and_the_guest_see_the_same_bytes_of_a_shared_page() -> None:
    text = INPLACE.format(" init-shared") + 'before vcpu0: write-shared 1 "guest"\n'
    assert ends(text + 'host: load mem 1; store mem 1 "host"; private mem 1 1; load mem 1; store mem 1 "no"\n') == [
        "load mem 1: read 'guest'",
        "store mem 1 host: done",
        "private mem 1 1: done",
        "load mem 1: SIGBUS (EIO)",
        "store mem 1 no: SIGBUS (EIO)",
    ]
    assert ends(INPLACE.format("") + 'vcpu0: write 1 "a"; read-shared 1; read 1\n') == [
        'write 1 "a": done',
        "read-shared 1: exit MEMORY_FAULT shared",
        "read 1: read 'a'",
    ]


def test_what_a_mapping_stored_is_written_back_or_punched() -> None:
    text = INPLACE.format(" init-shared") + 'before host: store mem 1 "stored"; store mem 2 "stored"\n'
    assert ends(text + "before host: punch mem 2 1; private mem 1 2\nvcpu0: read 1; read 2\n") == [
        "read 1: read 'stored'",
        "read 2: read ''",
    ]


@pytest.mark.parametrize("abi", ["gmem-6.18", "gmem-7.2"])
def test_attributes_of_a_vm_choose_between_two_memories(abi: str) -> None:
    text = OF_THE_VM.format(abi) + 'before vcpu0: write-shared 1 "user"\nbefore vmm: private 1 1\n'
    assert ends(text + 'before vcpu0: write 1 "file"\nvcpu0: read 1; read-shared 1; read-shared 2\n') == [
        "read 1: read 'file'",
        "read-shared 1: exit MEMORY_FAULT shared",
        "read-shared 2: read ''",
    ]


def test_a_file_that_can_be_mapped_is_the_guests_shared_memory_too() -> None:
    text = OF_THE_VM.format("gmem-6.18").replace("file mem 4", "file mem 4 mmap") + 'before vcpu0: write-shared 1 "a"\n'
    assert ends(text + "before vmm: private 1 1\nvcpu0: read 1; read-shared 1; read-shared 2\n") == [
        "read 1: read 'a'",
        "read-shared 1: exit MEMORY_FAULT shared",
        "read-shared 2: read ''",
    ]


def test_a_file_that_is_released_is_shown_by_nobody() -> None:
    text = OF_THE_VM.format("gmem-6.18") + 'before vmm: private 0 4\nbefore vcpu0: write 1 "old"\n'
    assert ends(text + "before vmm: release mem\nvcpu0: read 1\n") == ["read 1: exit MEMORY_FAULT private"]


def test_what_an_abi_lacks_is_said() -> None:
    with pytest.raises(ScenarioError, match="write 'store abi=gmem-inplace' first"):
        parse("born", "file mem 4 init-shared\nvm vm0\nvcpu0: read 0\n")
    with pytest.raises(ScenarioError, match=r"write 'store abi=gmem-6\.18' first"):
        parse("mapped", "file mem 4 mmap\nvm vm0\nvcpu0: read 0\n")
    with pytest.raises(ScenarioError, match=r"choose thread, gmem-6\.18"):
        parse("abi", "store abi=none\n")
    assert ends("store frames=8\nfile mem 4\nvm vm0\nhost: shared mem 0 1\n") == ["shared mem 0 1: ENOTTY"]
