"""All rules over all journals, record by record; the first that is broken ends it."""

from dataclasses import dataclass, field

from memfsd.common.journal import End, Message, Note, Opening
from memfsd.uapi.errors import one_line

from .conversation import Broken, Conversation
from .reader import Journals, NotAJournal, Process, Record
from .store_rules import StoreRules
from .vm_rules import VmRules


@dataclass
class Verdict:
    """rule is "" when all hold. incomplete: see Journals."""

    message_count: int = 0
    note_count: int = 0
    rule: str = ""
    where: str = ""
    why: str = ""
    incomplete: list[str] = field(default_factory=list)


def check(paths: list[str]) -> Verdict:
    """NotAJournal when a file cannot be read, or a record makes no sense."""
    journals, verdict, rules = Journals(paths), Verdict(), _Rules()
    for record in journals.records():
        verdict.message_count += isinstance(record.entry, Message)
        verdict.note_count += isinstance(record.entry, Note)
        try:
            rules.feed(record)
        except Broken as broken:
            verdict.rule, verdict.where, verdict.why = broken.rule, record.where, one_line(broken.why)
            break
        except (KeyError, TypeError, ValueError) as error:
            raise NotAJournal(f"{record.where}: a field is missing or makes no sense: {one_line(str(error))}") from None
    verdict.incomplete = journals.incomplete
    return verdict


class _Rules:
    def __init__(self) -> None:
        self._number = 0
        self._conversations: dict[tuple[Process, int], Conversation] = {}
        """By process and connection."""
        self._paired: dict[tuple[Process, int], Conversation] = {}
        """By memfsd and inode."""
        self._stores: dict[Process, StoreRules] = {}
        self._vms: dict[tuple[Process, str], VmRules] = {}

    def feed(self, record: Record) -> None:
        self._number += 1
        entry, process = record.entry, record.process
        if isinstance(entry, Message):
            self._message(record, entry)
        elif isinstance(entry, Note):
            self._note(process, entry)
        elif isinstance(entry, Opening) and process.side == "memfsd":
            self._begins(process)
        elif isinstance(entry, End) and entry.why == "closed":
            for (whose, _), conversation in self._conversations.items():
                if whose == process:
                    conversation.finish()

    def _begins(self, store: Process) -> None:
        """Its pid may have been that of a store that died: nothing of that one is in the way of this one."""
        for (process, _), vm in self._vms.items():
            for (whose, conn), conversation in self._conversations.items():
                if whose == process and conversation.peer == store.pid:
                    vm.gone(conn)

    def _message(self, record: Record, message: Message) -> None:
        process = record.process
        conversation = self._conversations.setdefault((process, message.conn), Conversation(message.peer))
        vm = None if process.side == "memfsd" else self._vm(process, message.vm)
        if vm is not None:
            vm.before(message, conversation)
        asked = conversation.message(message, self._number, record.where)
        if message.ino >= 0:
            conversation.ino = message.ino
            if vm is None:
                self._paired[process, message.ino] = conversation
        if asked is None:
            return
        if vm is not None:
            vm.answered(message, asked, conversation)
        else:
            self._store(process).answered(message, asked, conversation)

    def _note(self, process: Process, note: Note) -> None:
        if note.what in ("closed", "unsent"):
            conversation = self._conversations.get((process, note.conn))
            if conversation is not None:
                conversation.excused = True
        elif process.side != "memfsd":
            self._vm(process, note.vm).note(note, self._conversations.get((process, note.conn)))
        elif note.what in ("cut", "gone"):
            conversation = self._paired.get((process, note.ino))
            if conversation is not None:
                conversation.excused = True
            if note.what == "gone":
                self._store(process).gone(note.ino)
                for vm, conn, _ in self._vms_of(process, note.ino):
                    vm.gone(conn)
        elif note.what == "freed":
            self._store(process).freed(note.ino, note.data["runs"])
            for vm, conn, name in self._vms_of(process, note.ino):
                for pfn, count in note.data["runs"]:
                    mapped = vm.still_maps(conn, pfn, count)
                    if mapped is not None:
                        raise Broken("freed", f"frame {mapped:#x} of inode {note.ino} is freed while {name} maps it")

    def _vms_of(self, store: Process, ino: int) -> list[tuple[VmRules, int, str]]:
        """With the journals of both sides: the VM that is paired with the file, and by which of its connections."""
        return [
            (vm, conn, f"VM {name} ({process.pid})")
            for (process, name), vm in self._vms.items()
            for (whose, conn), conversation in self._conversations.items()
            if whose == process and (conversation.peer, conversation.ino) == (store.pid, ino)
        ]

    def _store(self, process: Process) -> StoreRules:
        return self._stores.setdefault(process, StoreRules())

    def _vm(self, process: Process, name: str) -> VmRules:
        return self._vms.setdefault((process, name), VmRules())
