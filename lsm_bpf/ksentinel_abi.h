/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What the kernel side and ksentinel/bpf/abi.py say to each other.
 *
 * Fixed-width fields, no implicit padding; a test compares this header with its
 * ctypes mirror through BTF. A change of meaning raises KS_ABI_VERSION. */
#ifndef KSENTINEL_ABI_H
#define KSENTINEL_ABI_H

#include <linux/types.h>

#define KS_ABI_VERSION 2

#define KS_WINDOW 64          /* tokens in a full window */
#define KS_TOKENS 4096        /* size of the alphabet */
#define KS_TOKEN_COMPAT 0x0400
#define KS_TOKEN_X32 0x0800
#define KS_TOKEN_HOOK 0x0c00  /* + LSM hook, for guards */
#define KS_TOKEN_CLASS 0x0d00 /* + enum ks_class, right behind the call it belongs to */
#define KS_TOKEN_EXEC 0x0e00  /* a program begins */
#define KS_TOKEN_INVALID 0x0fff
#define KS_NUMBERS 0x03ff     /* system call numbers at or above this are invalid */

#define KS_TEXT 4096          /* longest string or argument vector, in bytes */
#define KS_DATA 16384         /* room for the parts of one record */
#define KS_NAME 256           /* longest name of a file in its directory, with its NUL */
#define KS_COMPONENTS 256     /* deepest directory that is named in full; mounts on the way count too */

#define KS_ENTRIES 65536      /* of a profile, at most */
#define KS_NEVER 255          /* nothing was seen that hashes to this entry */
#define KS_SURPRISE 254       /* the largest surprise, in eighths of a bit */
#define KS_SCORE 0x1000000    /* the largest CUSUM */
#define KS_ORDER 8            /* longest n-grams */
#define KS_ROW_HOST 0
#define KS_ROW_LINEAGE 1
#define KS_ROWS 66            /* of a model: host-wide, lineage, 64 profiles */
#define KS_ROW_NONE 0xffffffff
#define KS_PREFIX 64          /* bytes of a path that its class is decided by */
#define KS_BEFORE 2           /* how many earlier programs of a process are known */

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

/* Why a window goes to user space, or doesn't. */
enum ks_choice {
        KS_CHOICE_UNGATED = 0, /* every window is wanted, or part of it could not be scored */
        KS_CHOICE_FLAGGED = 1, /* a score was above its limit */
        KS_CHOICE_SAMPLED = 2, /* chance */
        KS_CHOICE_GATED = 3,   /* stays in the kernel */
        KS_CHOICES = 4,
};

/* What was over its limit. */
enum ks_over {
        KS_OVER_MEAN = 1,
        KS_OVER_CUSUM = 2,
        KS_OVER_PROCESS = 4,
};

/* Classes of what a call is about; user space says which path prefixes belong to which. */
enum ks_class {
        KS_CLASS_SECRET = 0,
        KS_CLASS_HOME = 1,
        KS_CLASS_TMP = 2,
        KS_CLASS_DEVICE = 3,
        KS_CLASS_PROC = 4,
        KS_CLASS_SYSTEM = 5,   /* configuration and programs of the host */
        KS_CLASS_LOOPBACK = 6,
        KS_CLASS_PRIVATE = 7,
        KS_CLASS_PUBLIC = 8,
        KS_CLASSES = 16,
        KS_CLASS_NONE = 255,
};

enum ks_flag {
        KS_FLAG_TRUNCATED = 1,  /* an argument was longer than KS_TEXT, a path deeper than KS_COMPONENTS */
        KS_FLAG_UNREADABLE = 2, /* an argument was not in memory (or no valid pointer) */
        KS_FLAG_LOSSY = 4,      /* an earlier record or token of this thread was lost */
        KS_FLAG_UNLINKED = 8,   /* the executed file has no name left (deleted, memfd) */
        KS_FLAG_LATE = 16,      /* arguments read at the thread's next call: they weren't in memory at this one */
        KS_FLAG_SCRIPT = 32,    /* the kernel executed a script: the file is its interpreter, the name the script */
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
        __u32 sequence;       /* of this program on this CPU, counted whether or not the record finds room */
        __u16 cpu;
        __u8 program;
        __u8 unused;
};

struct ks_window {
        struct ks_header header;
        __u64 first_ns;
        __u64 last_ns;
        __u32 sequence;       /* of this thread, windows that stay in the kernel included */
        __u16 count;
        __u16 cause;
        __u32 epoch;          /* of the model that scored it */
        __u32 row;            /* of that model, from 0; KS_ROW_NONE if it wasn't scored */
        __u32 begin_mean;
        __u32 begin_cusum;
        __u32 mean;
        __u32 cusum;
        __u32 peak_mean;
        __u32 peak_cusum;
        __u32 process;        /* score of the process, after this window */
        __u16 scored;         /* tokens that moved the scores */
        __u8 choice;          /* enum ks_choice */
        __u8 over;            /* enum ks_over */
        __u16 tokens[KS_WINDOW];
};

struct ks_fork {
        struct ks_header header; /* the child */
        __u64 parent_start_ns;
        __u64 cgroup;
        __u32 parent_tgid;
        __u32 session;
        __u32 uid;
        __u32 euid;
        __u32 mean;           /* what the child begins with */
        __u32 cusum;
        __u32 process;
        __u32 unused;
};

struct ks_exec {
        struct ks_header header;
        __u32 uid;
        __u32 euid;
        __u32 auid;
        __u32 session;
        __u64 cgroup;
        __u64 program;        /* path hash; 0: no name, or one that says nothing */
        __u64 before[KS_BEFORE];
        __u64 service;
        __u32 epoch;
        __u32 row;
        __u32 mean;           /* after carrying over, before the exec token */
        __u32 cusum;
        __u16 known;          /* how many of before are known */
        __u16 surprise;       /* of the exec token; KS_NEVER if it wasn't scored */
        __u32 process;
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
        __u64 path_seed;
        __u32 stopping;       /* sweep everything */
        __u32 epoch;          /* raised whenever threads must look anew who they are: model, filters */
        __u32 base;           /* the model's first row */
        __u32 scoring;        /* there is a model */
        __u32 gate;           /* only flagged and sampled windows go out */
        __u32 sample;         /* chance of a window that isn't flagged, in 2^-32 */
        __u32 filters;        /* bits of enum ks_filter_kind in use; 0: everything is watched */
        __u32 calls_a_second; /* argument events of one process; 0: no limit */
        __u32 compat;         /* this kernel serves a 32-bit ABI, too */
        __u32 unused;
};

/* One profile of a model in the kernel: docs/kernel-scoring.md. */
struct ks_profile {
        __u64 seed0;
        __u64 seed1;
        __u32 epoch;
        __u32 mask;
        __u32 drift;
        __u32 mean_limit;
        __u32 cusum_limit;
        __u32 process_limit;
        __u16 carry_fork;
        __u16 carry_exec;
        __u8 order;
        __u8 decay;
        __u8 never;
        __u8 outside;
        __u8 penalty[KS_ORDER];
        __u64 unused;
        __u8 surprise[KS_ENTRIES];
};

/* Who has which row. */
struct ks_profile_key {
        __u64 program;        /* path hash */
        __u64 service;        /* path hash; 0 for any */
        __u32 epoch;
        __u32 unused;
};

enum ks_process_flag {
        KS_PROCESS_SERVED = 1,       /* it belongs to the service below; without it, it is one itself */
        KS_PROCESS_BY_TERMINAL = 2,  /* that service is a terminal's program: setsid leaves it */
        KS_PROCESS_LAUNCHER = 4,     /* it starts services */
        KS_PROCESS_TERMINAL = 8,     /* it is a shell, a multiplexer */
        KS_PROCESS_FAMILY = 16,      /* it descends from a process that is wanted */
};

/* What the kernel side knows of a process; user space enters those that ran before. */
struct ks_process {
        __u64 program;        /* path hash; 0: unknown */
        __u64 before[KS_BEFORE];
        __u64 service;
        __u32 known;          /* how many of before are known */
        __u32 flags;          /* enum ks_process_flag */
        __u32 score;
        __u32 calls;          /* argument events since second_tick */
        __u64 second_tick;
        __u64 over_ns;        /* when one of its windows was last flagged */
        __u32 gone;           /* its exit has been told */
        __u32 unused;
};

/* Bits of ks_config.filters, and kinds of ks_filter. */
enum ks_filter_kind {
        KS_FILTER_PROGRAM = 1,
        KS_FILTER_UID = 2,
        KS_FILTER_CGROUP = 4,
        KS_FILTER_FAMILY = 8,
};

struct ks_filter {
        __u64 value;          /* path hash, user id, cgroup id */
        __u32 kind;
        __u32 unused;
};

/* What a program's name makes of it; keys are hashes of single names. */
enum ks_name_flag {
        KS_NAME_LAUNCHER = 1,
        KS_NAME_TERMINAL = 2,
        KS_NAME_SYSTEM = 4,   /* a directory at the root where a package manager puts programs */
};

struct ks_prefix {
        __u32 bits;
        __u8 path[KS_PREFIX];
};

/* One a program and CPU; user space adds them up.
 *
 *   seen   = scored + unscored + own + excluded + no_storage + contended
 *   tokens of closed windows = scored + unscored + class tokens + exec tokens = sent + dropped + gated
 *   closed = ungated + flagged + sampled + gated,  ungated + flagged + sampled = windows sent + dropped
 *
 * Calls are added when their window closes. */
struct ks_counters {
        __u64 seen;
        __u64 scored;
        __u64 unscored;       /* no model was there to score them */
        __u64 own;
        __u64 excluded;
        __u64 no_storage;     /* no memory for the thread's history */
        __u64 contended;      /* the call came in the microseconds in which its thread was being swept: no token, no
                               * arguments */
        __u64 closed[KS_CAUSES];
        __u64 choices[KS_CHOICES];
        __u64 classes[KS_CLASSES];
        __u64 exec_tokens;
        __u64 windows_sent;
        __u64 windows_dropped;
        __u64 windows_shed;   /* of those dropped: given up on purpose, to leave room for worse ones */
        __u64 tokens_sent;
        __u64 tokens_dropped;
        __u64 tokens_gated;
        __u64 calls;          /* argument events: calls = calls_sent + calls_dropped */
        __u64 calls_sent;
        __u64 calls_dropped;
        __u64 calls_limited;  /* of those dropped: beyond what one process may send in a second */
        __u64 calls_truncated;
        __u64 calls_unreadable;
        __u64 calls_late;
        __u64 lifecycle;      /* fork, exec, exit */
        __u64 lifecycle_sent;
        __u64 lifecycle_dropped;
        __u64 records;        /* the next record's sequence number: all sent and all dropped */
        __u64 process_missed; /* windows that a process' score doesn't know: too many threads changed it at once */
        __u64 no_inheritance; /* children that began without their parent's scores or program: no memory */
};

#endif
