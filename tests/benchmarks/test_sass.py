"""What is read from a listing as nvdisasm writes it: loops, and whether a kernel waits first."""

import pytest

pytest.importorskip("triton")

from benchmarks.sass import count_loops, waits_first

LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_1:
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_2:
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0040*/                   FADD R1, R1, R4 ;
        /*0050*/              @!P0 BRA `(.L_x_2) ;
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/               @P2 BRA `(.L_x_3) ;
        /*0090*/                   STG.E desc[UR4][R2.64], R1 ;
.L_x_3:
        /*00a0*/                   EXIT ;
.L_x_4:
        /*00b0*/                   BRA `(.L_x_4) ;
        /*00c0*/                   NOP ;
"""


def test_instructions_of_loops_count_once_and_branches_ahead_are_no_loops():
    """A loop in a loop of six instructions and its branch; the trap at the end is none."""
    loops = count_loops(LISTING)
    assert loops.barriers == 2
    assert loops.instructions == 5


@pytest.mark.parametrize(("at", "first"), [("0000", True), ("0060", False)])
def test_a_wait_counts_if_no_memory_is_touched_before_it(at, first):
    before = LISTING.index(f"        /*{at}*/")
    listing = f"{LISTING[:before]}        /*1000*/                   ACQBULK ;\n{LISTING[before:]}"
    assert waits_first(listing) is first
    assert not waits_first(LISTING)
