"""Which alias a page is, and when: by the conversions that were asked for. Of ABIs with attributes."""

import contextlib
import errno
from collections.abc import Iterator

from memfsd.uapi.abi import Abi, Attributes
from memfsd.uapi.errors import Refused

from .history import History, Page
from .shown import SlotHistory

_WORDS = {True: b"private", False: bytes(7)}
"""What the history has of a page's attribute. All are shared that nobody has converted."""


class Aliases:
    """Of the pages of files, or of the GFNs of VMs, as the ABI keeps them."""

    def __init__(self, abi: Abi, history: History, shown: SlotHistory) -> None:
        self._kept = abi.attributes
        self._history = history
        self._shown = shown

    @property
    def keeps_file(self) -> bool:
        """Files keep the attributes."""
        return self._kept is Attributes.FILE

    def born_private(self, file: str, page_count: int) -> None:
        if self.keeps_file:
            pages = self.of_file(file, 0, page_count)
            self._history.end(self._history.begin(pages, _WORDS[True]))

    def of_file(self, file: str, start: int, page_count: int) -> list[Page]:
        return [(f"attribute of {file}", start + index) for index in range(page_count)]

    def of_vm(self, vm: str, gfn: int, page_count: int) -> list[Page]:
        return [(f"attribute of {vm}", gfn + index) for index in range(page_count)]

    def shown(self, vm: str, gfn: int, since: int) -> list[Page]:
        """Whose attribute decides about this GFN. [] where none does."""
        if self._kept is Attributes.VM:
            return self.of_vm(vm, gfn, 1)
        if self.keeps_file:
            return [self.of_file(file, pgoff, 1)[0] for file, pgoff in self._shown.at(vm, gfn, since)]
        return []

    @contextlib.contextmanager
    def converting(self, pages: list[Page], *, private: bool) -> Iterator[None]:
        """EAGAIN has changed nothing; another failure may have."""
        changes = self._history.begin(pages, _WORDS[private])
        try:
            yield
        except Refused as refused:
            if refused.errno == errno.EAGAIN:
                self._history.end(changes, happened=False)
            raise
        self._history.end(changes)

    def may_be(self, pages: list[Page], since: int, *, private: bool) -> bool:
        """One of them may have been of this alias at some time since then."""
        return any(not self._history.check(page, _WORDS[private], since) for page in pages)
