# SPDX-License-Identifier: Apache-2.0
"""io_uring without its library: one request at a time."""

import ctypes
import mmap
import os
import struct
import time

from vm.guest.calls import syscall

SETUP_SQPOLL = 2
ENTER_GETEVENTS, ENTER_SQ_WAKEUP = 1, 2
IOSQE_ASYNC = 1 << 4
OFF_SQ, OFF_CQ, OFF_SQES = 0, 0x8000000, 0x10000000
(
    SENDMSG, CONNECT, OPENAT, SEND, OPENAT2, RENAMEAT, UNLINKAT, MKDIRAT, SYMLINKAT, LINKAT, SEND_ZC, FTRUNCATE, BIND, LISTEN,
) = 9, 16, 18, 26, 28, 35, 36, 37, 38, 39, 47, 55, 56, 57  # fmt: skip
_SQE = struct.Struct("=BBHiQQIIQHHIQQ")
_COMPLETED = struct.Struct("=Qii")


class Ring:
    """A ring for one request, for as long as the with block."""

    def __init__(self, *, polled=False):
        parameters = ctypes.create_string_buffer(120)
        struct.pack_into("=IIIII", parameters, 0, 0, 0, SETUP_SQPOLL if polled else 0, 0, 1000)
        self.fd = syscall("io_uring_setup", 4, parameters)
        entries, completions = struct.unpack_from("=II", parameters, 0)
        self.sq_at = dict(zip("head tail mask entries flags dropped array".split(), struct.unpack_from("=7I", parameters, 40), strict=True))  # fmt: skip
        self.cq_at = dict(zip("head tail mask entries overflow cqes".split(), struct.unpack_from("=6I", parameters, 80), strict=True))  # fmt: skip
        self.sq = self._map(self.sq_at["array"] + 4 * entries, OFF_SQ)
        self.cq = self._map(self.cq_at["cqes"] + 16 * completions, OFF_CQ)
        self.requests = self._map(64 * entries, OFF_SQES)

    def _map(self, size, offset):
        return mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in (self.sq, self.cq, self.requests):
            one.close()
        os.close(self.fd)

    def ask(self, opcode, fd, address=0, length=0, offset=0, more=0, *, asynchronous=False, address_length=0):
        """Have a request done; raises OSError if its completion says so."""
        flags = IOSQE_ASYNC if asynchronous else 0
        _SQE.pack_into(
            self.requests,
            0,
            opcode,
            flags,
            0,
            fd,
            offset,
            address,
            length,
            more,
            1,
            0,
            0,
            address_length,
            0,
            0,
        )
        struct.pack_into("=I", self.sq, self.sq_at["array"], 0)
        struct.pack_into("=I", self.sq, self.sq_at["tail"], 1)
        syscall("io_uring_enter", self.fd, 1, 1, ENTER_GETEVENTS | ENTER_SQ_WAKEUP, None, 0)
        end = time.monotonic() + 20
        while struct.unpack_from("=I", self.cq, self.cq_at["tail"])[0] == 0:
            assert time.monotonic() < end, "no completion"
            time.sleep(0.001)
        _, result, _ = _COMPLETED.unpack_from(self.cq, self.cq_at["cqes"])
        if result < 0:
            raise OSError(-result, os.strerror(-result))
