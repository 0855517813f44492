"""Does in the world what the core's effects say, in their order."""

import logging
import time
from collections.abc import Callable, Sequence

from memfsd.core.effects import (
    Cut,
    Discard,
    DropDevice,
    DropWindow,
    Effect,
    Export,
    Fill,
    Quarantine,
    ReturnSlots,
    Scrub,
    ZeroBytes,
)
from memfsd.core.service import Service
from memfsd.uapi.units import PAGE_SHIFT, Ino

from .windows import Windows

log = logging.getLogger("memfsd.host")

_INLINE_FRAMES = 1024
PAUSE_S = 0.0001
"""Between parts of long work: who waits for Service.lock gets it."""


class EffectRunner:
    """Safe from any thread; takes Service.lock only to report back.

    forget_cache has the kernel drop what it cached of an inode, from an offset on; length 0: to the end. It waits on
    the kernel, so it must not run on the FUSE loop.
    """

    def __init__(self, service: Service, windows: Windows) -> None:
        self._service = service
        self._windows = windows
        self.forget_cache: Callable[[Ino, int, int], None] = lambda ino, offset, length: None
        self.export: Callable[[Export], None] = lambda effect: None
        """The store's Swapper sets it: it asks a VM, and so waits."""

    @staticmethod
    def is_quick(effects: Sequence[Effect]) -> bool:
        """Short enough to do on an event loop (a punch costs about 0.2 us a frame, and never waits)."""
        return all(
            isinstance(e, ZeroBytes | DropWindow | DropDevice)
            or (isinstance(e, Scrub) and e.frame_count <= _INLINE_FRAMES)
            for e in effects
        )

    def _next_of(self, effect: Discard) -> list[Scrub]:
        with self._service.lock:
            return self._service.discard(effect)

    def _quarantine(self, effect: Quarantine) -> bool:
        with self._service.lock:
            return self._service.quarantine(effect)

    def _return_slots(self, effect: ReturnSlots) -> bool:
        with self._service.lock:
            return self._service.return_slots(effect)

    def _cut(self, effect: Cut) -> list[Scrub] | None:
        with self._service.lock:
            return self._service.cut(effect)

    def _fill(self, effect: Fill) -> Sequence[Effect]:
        with self._service.lock:
            return self._service.fill(effect)

    def _scrub(self, effect: Scrub) -> None:
        try:
            self._windows.punch(effect.window, effect.runs)
        except OSError as error:
            log.error("%d frames cannot be given back, and are leaked: %s", effect.frame_count, error.strerror)
            with self._service.lock:
                self._service.leaked(effect)
            return
        with self._service.lock:
            self._service.scrubbed(effect)

    def _drop_window(self, effect: DropWindow) -> None:
        self._windows.drop_window(effect.window)
        if effect.page_map is not None:
            effect.page_map.drop()

    def perform(self, effects: Sequence[Effect]) -> None:
        """Refused when a file cannot be filled after all."""
        for effect in effects:
            if isinstance(effect, Scrub):
                self._scrub(effect)
            elif isinstance(effect, Discard | Quarantine | ReturnSlots | Cut | Fill):
                self._in_parts(effect)
            elif isinstance(effect, Export):
                self.export(effect)
            elif isinstance(effect, ZeroBytes):
                self._windows.zero(effect.offset, effect.length)
            elif isinstance(effect, DropWindow):
                self._drop_window(effect)
            elif isinstance(effect, DropDevice):
                self._windows.drop_device(effect.ino)
            else:
                start, end = effect.start, effect.start if effect.end is None else effect.end
                self.forget_cache(effect.ino, start << PAGE_SHIFT, end - start << PAGE_SHIFT)

    def _in_parts(self, effect: Discard | Quarantine | ReturnSlots | Cut | Fill) -> None:
        if isinstance(effect, Discard):
            while scrubs := self._next_of(effect):
                self.perform(scrubs)
                time.sleep(PAUSE_S)
        elif isinstance(effect, Quarantine):
            while self._quarantine(effect):
                time.sleep(PAUSE_S)
        elif isinstance(effect, ReturnSlots):
            while self._return_slots(effect):
                time.sleep(PAUSE_S)
        elif isinstance(effect, Cut):
            while (cut := self._cut(effect)) is not None:
                self.perform(cut)
                time.sleep(PAUSE_S)
        else:
            while (following := self._fill(effect)) == [effect]:
                time.sleep(PAUSE_S)
            self.perform(following)
            if effect.refused is not None:
                raise effect.refused
