"""The software TLB."""

from kvmsim.kvm.mmu.tlb import Tlb, tlb_key


def test_a_translation_is_found_until_it_is_flushed() -> None:
    tlb: Tlb[str] = Tlb()
    assert tlb.lookup(tlb_key(7, False)) is None
    tlb.insert(tlb_key(7, False), "frame")
    assert tlb.lookup(tlb_key(7, False)) == "frame"
    lookup = tlb.lookup
    tlb.flush()
    assert lookup(tlb_key(7, False)) is None, "a lookup that a vCPU holds on to must see the flush"
    assert (len(tlb), tlb.insert_count, tlb.flush_count) == (0, 1, 1)


def test_the_two_aliases_of_a_gfn_do_not_meet() -> None:
    tlb: Tlb[str] = Tlb()
    tlb.insert(tlb_key(7, False), "private")
    tlb.insert(tlb_key(7, True), "shared")
    assert tlb.lookup(tlb_key(7, False)) == "private"
    assert tlb.lookup(tlb_key(7, True)) == "shared"
    assert tlb.lookup(tlb_key(8, False)) is None


def test_it_never_grows_beyond_its_capacity() -> None:
    tlb: Tlb[int] = Tlb(capacity=4)
    for gfn in range(4):
        tlb.insert(tlb_key(gfn, False), gfn)
    assert (len(tlb), tlb.flush_count) == (4, 0)
    tlb.insert(tlb_key(4, False), 4)
    assert (len(tlb), tlb.flush_count) == (1, 1)
    assert tlb.lookup(tlb_key(4, False)) == 4
    assert tlb.lookup(tlb_key(0, False)) is None


def test_a_ranged_flush_drops_its_keys_and_no_others() -> None:
    tlb: Tlb[str] = Tlb()
    for gfn in range(4):
        tlb.insert(tlb_key(gfn, False), "private")
        tlb.insert(tlb_key(gfn, True), "shared")
    tlb.flush_keys(tlb_key(gfn, False) for gfn in (1, 2, 9))
    assert [gfn for gfn in range(4) if tlb.lookup(tlb_key(gfn, False))] == [0, 3]
    assert [gfn for gfn in range(4) if tlb.lookup(tlb_key(gfn, True))] == [0, 1, 2, 3]
    assert (tlb.flush_count, tlb.ranged_flush_count) == (0, 1)
