# SPDX-License-Identifier: Apache-2.0
"""What this kernel lets us load: each program type tried for real, with a program that does nothing."""

import ctypes
import errno
import os
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass

from ksentinel.bpf.libbpf import library
from ksentinel.errors import HostError

_RAW_TRACEPOINT, _TRACING, _LSM = 17, 26, 29
_TRACE_RAW_TP, _LSM_MAC, _TRACE_ITER = 23, 27, 28
_MAP_RINGBUF = 27

# Two instructions: set the result to 0, and end.
_NOTHING = bytes.fromhex("b7000000000000009500000000000000")


class _LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts (bpf/bpf.h), up to what is set."""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_uint32),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("fd_array", c_void_p),
        ("func_info", c_void_p),
        ("func_info_cnt", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_char_p),
    )


@dataclass(frozen=True, slots=True)
class ProgramType:
    """A kind of program, and the kernel function a trial attaches it to."""

    name: str
    type: int
    attach: int = 0
    target: str = ""


RAW_TP = ProgramType("raw_tp", _RAW_TRACEPOINT)
TP_BTF = ProgramType("tp_btf", _TRACING, _TRACE_RAW_TP, "sched_process_fork")
ITER = ProgramType("iter/task", _TRACING, _TRACE_ITER, "task")
LSM = ProgramType("lsm", _LSM, _LSM_MAC, "bprm_check_security")


def try_program(kind: ProgramType) -> int:
    """
    Load a program of that *kind* and let it go again.

    Returns
    -------
    0, or the errno with which the kernel (or libbpf, looking for the hook) refused.

    Raises
    ------
    HostError
        If there is no libbpf.
    """
    found = library()
    options = _LoadOptions(sz=ctypes.sizeof(_LoadOptions), attempts=1, expected_attach_type=kind.attach)
    if kind.target:
        number = found.lib.libbpf_find_vmlinux_btf_id(kind.target.encode(), kind.attach)
        if number <= 0:
            return abs(number) or errno.ENOENT
        options.attach_btf_id = number
    code = found.lib.bpf_prog_load(
        kind.type, b"ks_probe", b"GPL", _NOTHING, len(_NOTHING) // 8, ctypes.byref(options)
    )
    found.log.clear()
    return _close(code)


def try_ring_buffer() -> int:
    """Make a ring buffer and let it go; returns 0 or an errno."""
    return _close(library().lib.bpf_map_create(_MAP_RINGBUF, b"ks_probe", 0, 0, 4096, None))


def why_no_libbpf() -> HostError | None:
    """Return why libbpf can't be used, or None."""
    try:
        library()
    except HostError as error:
        return error
    return None


def _close(code: int) -> int:
    if code < 0:
        return abs(code)
    os.close(code)
    return 0
