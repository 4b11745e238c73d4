"""What a verifier log is made into, and names that are refused before anything is tried."""

from __future__ import annotations

import pytest

from bpf.loader import LoadError, pin_folder
from bpf.objects import summary

REFUSED = """\
libbpf: prog 'xlb_msg': BPF program load failed: Permission denied
libbpf: prog 'xlb_msg': -- BEGIN PROG LOAD LOG --
func#0 @0
0: R1=ctx(off=0,imm=0) R10=fp0
; if (!conn) @ xlb.bpf.c:66
0: (79) r6 = *(u64 *)(r1 +0)          ; R1=ctx() R6_w=scalar()
from 3 to 5: R0=0 R10=fp0
; return conn->role; @ xlb.bpf.c:69
5: (61) r0 = *(u32 *)(r6 +24)
R6 invalid mem access 'scalar'
verification time 12 usec
stack depth 16
processed 5 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --
libbpf: prog 'xlb_msg': failed to load: -13
libbpf: failed to load object '/x/xlb.bpf.o'
"""


def test_last_meaningful_lines_of_a_verifier_log() -> None:
    assert summary(REFUSED.splitlines()) == (
        "xlb_msg: R6 invalid mem access 'scalar' at 5: (61) r0 = *(u32 *)(r6 +24)"
        " in `return conn->role; @ xlb.bpf.c:69`"
    )


def test_complaint_about_size() -> None:
    lines = [
        "libbpf: prog 'p': -- BEGIN PROG LOAD LOG --",
        "7: (05) goto pc+2 BPF program is too large. Processed 1000001 insn",
    ]
    assert summary([*lines, "processed 1000001 insns (limit 1000000)", "-- END PROG LOAD LOG --"]) == (
        "p: BPF program is too large. Processed 1000001 insn at 7: (05) goto pc+2"
    )


def test_without_a_verifier_log() -> None:
    assert summary(["libbpf: a", "libbpf: b", "libbpf: map 'm': failed to create", "libbpf: failed to load"]) == (
        "b; map 'm': failed to create; failed to load"
    )


@pytest.mark.parametrize("name", ["", "a.b", "../up", "a/b", "-x", "a" * 64])
def test_refused_instance_names(name: str) -> None:
    with pytest.raises(LoadError, match="instance name"):
        pin_folder(name)
