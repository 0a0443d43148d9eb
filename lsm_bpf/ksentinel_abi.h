/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What the kernel side and ksentinel/bpf/abi.py say to each other.
 *
 * Fixed-width fields, no implicit padding; a test compares this header with its
 * ctypes mirror through BTF. A change of meaning raises KS_ABI_VERSION. */
#ifndef KSENTINEL_ABI_H
#define KSENTINEL_ABI_H

#include <linux/types.h>

#define KS_ABI_VERSION 1

#define KS_WINDOW 64          /* tokens in a full window */
#define KS_TOKENS 4096        /* size of the alphabet */
#define KS_TOKEN_COMPAT 0x0400
#define KS_TOKEN_X32 0x0800
#define KS_TOKEN_INVALID 0x0fff
#define KS_NUMBERS 0x03ff     /* system call numbers at or above this are invalid */

#define KS_TEXT 4096          /* longest string or argument vector, in bytes */
#define KS_DATA 16384         /* room for the parts of one record */
#define KS_NAME 256           /* longest name of a file in its directory, with its NUL */
#define KS_COMPONENTS 256     /* deepest directory that is named in full; mounts on the way count too */

enum ks_kind {
        KS_KIND_WINDOW = 1,
        KS_KIND_FORK = 2,
        KS_KIND_EXEC = 3,
        KS_KIND_EXIT = 4,
        KS_KIND_CALL = 5,
};

enum ks_cause {
        KS_CAUSE_FULL = 0,
        KS_CAUSE_EXIT = 1,
        KS_CAUSE_EXEC = 2,
        KS_CAUSE_IDLE = 3,
        KS_CAUSE_STOP = 4,
        KS_CAUSES = 5,
};

enum ks_flag {
        KS_FLAG_TRUNCATED = 1,  /* an argument was longer than KS_TEXT, a path deeper than KS_COMPONENTS */
        KS_FLAG_UNREADABLE = 2, /* an argument was not in memory (or no valid pointer) */
        KS_FLAG_LOSSY = 4,      /* an earlier record or token of this thread was lost */
        KS_FLAG_UNLINKED = 8,   /* the executed file has no name left (deleted, memfd) */
        KS_FLAG_LATE = 16,      /* arguments read at the thread's next call: they weren't in memory at this one */
};

/* Parts of a record: struct ks_part, then len bytes, then the next one. */
enum ks_part_kind {
        KS_PART_PATH1 = 1,    /* as the caller wrote it */
        KS_PART_PATH2 = 2,
        KS_PART_BASE1 = 3,    /* where path1 starts from: names, leaf first, NUL after each. The directory if it is
                               * relative; the root if it is absolute and the caller's root isn't the namespace's */
        KS_PART_BASE2 = 4,
        KS_PART_ADDRESS = 5,  /* struct sockaddr */
        KS_PART_ARGV = 6,     /* NUL-separated */
        KS_PART_EXE = 7,      /* executed file: names, leaf first, NUL after each */
        KS_PART_NAME = 8,     /* the file as execve was asked for it */
        KS_PART_CWD = 9,      /* names, leaf first */
        KS_PART_WORDS = 10,   /* 8 bytes behind a pointer argument (openat2's flags) */

        KS_PART_CUT = 0x8000, /* added to a part of names: it ends below the root */
};

struct ks_header {
        __u16 kind;
        __u16 flags;
        __u32 size;           /* of the whole record, parts included */
        __u64 time_ns;        /* CLOCK_BOOTTIME */
        __u64 start_ns;       /* when the process started, CLOCK_BOOTTIME */
        __u32 tgid;           /* in the initial PID namespace */
        __u32 tid;
};

struct ks_window {
        struct ks_header header;
        __u64 first_ns;
        __u64 last_ns;
        __u32 sequence;       /* of this thread: a gap is a dropped window */
        __u16 count;
        __u16 cause;
        __u16 tokens[KS_WINDOW];
};

struct ks_fork {
        struct ks_header header; /* the child */
        __u64 parent_start_ns;
        __u32 parent_tgid;
        __u32 session;
        __u32 uid;
        __u32 euid;
};

struct ks_exec {
        struct ks_header header;
        __u32 uid;
        __u32 euid;
        __u32 auid;
        __u32 session;
};

struct ks_exit {
        struct ks_header header;
};

struct ks_call {
        struct ks_header header;
        __u64 args[6];
        __u32 uid;
        __u32 euid;
        __u16 token;
        __u16 unused;
        __u32 unused2;
};

struct ks_part {
        __u16 kind;
        __u16 len;
};

enum ks_wanted {
        KS_WANT_NOT = 0,
        KS_WANT_PATIENTLY = 1, /* what isn't in memory yet is read at the thread's next call */
        KS_WANT_AT_ONCE = 2,   /* there is no next call in this memory: exec */
};

/* Which arguments of a system call to read: argument numbers from 1, 0 for none. */
struct ks_capture {
        __u8 wanted;          /* enum ks_wanted */
        __u8 path1;
        __u8 dir1;            /* directory descriptor that path1 is relative to */
        __u8 path2;
        __u8 dir2;
        __u8 address;
        __u8 address_len;
        __u8 words;           /* pointer to 8 bytes worth reading */
};

struct ks_config {
        __u32 abi_version;
        __u32 own_tgid;       /* not observed, counted as own */
        __u64 idle_ns;        /* a part-filled window this old is swept */
        __u32 stopping;       /* sweep everything */
        __u32 unused;
};

/* One a program and CPU; user space adds them up. seen = recorded + own + excluded + no_storage + contended. */
struct ks_counters {
        __u64 seen;
        __u64 recorded;
        __u64 own;
        __u64 excluded;
        __u64 no_storage;     /* no memory for the thread's history */
        __u64 contended;      /* the call came in the microseconds in which its thread was being swept: no token, no
                               * arguments */
        __u64 closed[KS_CAUSES];
        __u64 windows_sent;
        __u64 windows_dropped;
        __u64 tokens_sent;
        __u64 tokens_dropped;
        __u64 calls;          /* argument events: calls = calls_sent + calls_dropped */
        __u64 calls_sent;
        __u64 calls_dropped;
        __u64 calls_truncated;
        __u64 calls_unreadable;
        __u64 calls_late;
        __u64 lifecycle;      /* fork, exec, exit */
        __u64 lifecycle_sent;
        __u64 lifecycle_dropped;
};

#endif
