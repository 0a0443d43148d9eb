/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What the kernel side and ksentinel/bpf/abi.py say to each other.
 *
 * Fixed-width fields, no implicit padding; a test compares this header with its
 * ctypes mirror through BTF. A change of meaning raises KS_ABI_VERSION. */
#ifndef KSENTINEL_ABI_H
#define KSENTINEL_ABI_H

#include <linux/types.h>

#define KS_ABI_VERSION 3

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
        KS_KIND_DENIAL = 6,
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

/* Which sets of names of a policy the paths of a process and of who started it are in: taken when they were executed. */
struct ks_named {
        __u64 program;
        __u64 parent;
        __u64 service;
        __u64 ancestors;      /* any of them */
        __u64 who;            /* sets of files that its executable was in, when it was executed */
        __u8 known[4];        /* of each: enum ks_told; of ancestors, of all of them */
        __u32 epoch;          /* of the policy's names */
};

enum ks_told {
        KS_TOLD = 1,          /* there is a path */
        KS_TOLD_ASCII = 2,    /* ... of ASCII alone: it can be compared without regard to case */
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
        __u32 row;            /* of the thread of it that was identified last */
        __u32 denials;        /* records of guards in the second below */
        __u32 denials_second;
        struct ks_named named;
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
 *   tokens of closed windows = scored + unscored + class tokens + exec tokens + hook tokens = sent + dropped + gated
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
        __u64 hook_tokens;    /* guards that spoke */
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

/* ---- guards: docs/enforcement.md ---- */

#define KS_WAYS 1024          /* of a policy: each a conjunction of tests at one hook */
#define KS_NUMBER_TESTS 512   /* of a policy: comparisons of numbers */
#define KS_RANGES 8           /* of one comparison */
#define KS_DEPTH 256          /* how many directories and mount points above a file are looked at */
#define KS_SUFFIXES 4         /* names at a path's end that are compared */
#define KS_SIEVE 1024         /* words of 64 bits: which places there may be */
#define KS_SIEVE_FACTOR 0x9e3779b97f4a7c15
#define KS_SIEVE_SHIFT 48

/* Where a guard may stand: LSM hooks. The numbers are part of hook tokens: KS_TOKEN_HOOK + hook. */
enum ks_hook {
        KS_HOOK_NONE = 0,
        KS_HOOK_BPRM_CHECK_SECURITY = 1,
        KS_HOOK_BPRM_CREDS_FROM_FILE = 2,
        KS_HOOK_MMAP_FILE = 3,
        KS_HOOK_FILE_OPEN = 4,
        KS_HOOK_PATH_MKNOD = 5,
        KS_HOOK_PATH_MKDIR = 6,
        KS_HOOK_PATH_RENAME = 7,
        KS_HOOK_PATH_LINK = 8,
        KS_HOOK_PATH_SYMLINK = 9,
        KS_HOOK_PATH_TRUNCATE = 10,
        KS_HOOK_PATH_CHMOD = 11,
        KS_HOOK_PATH_CHOWN = 12,
        KS_HOOK_PATH_UNLINK = 13,
        KS_HOOK_PATH_RMDIR = 14,
        KS_HOOK_SOCKET_CONNECT = 15,
        KS_HOOK_SOCKET_BIND = 16,
        KS_HOOK_SOCKET_LISTEN = 17,
        KS_HOOK_SOCKET_SENDMSG = 18,
        KS_HOOK_UNIX_STREAM_CONNECT = 19,
        KS_HOOK_UNIX_MAY_SEND = 20,
        KS_HOOK_PTRACE_ACCESS_CHECK = 21,
        KS_HOOK_KERNEL_LOAD_DATA = 22,
        KS_HOOK_KERNEL_READ_FILE = 23,
        KS_HOOK_BPF = 24,
        KS_HOOK_SB_MOUNT = 25,
        KS_HOOK_MOVE_MOUNT = 26,
        KS_HOOK_SB_UMOUNT = 27,
        KS_HOOK_USERNS_CREATE = 28,
        KS_HOOK_TASK_KILL = 29,
        KS_HOOK_TASK_FIX_SETUID = 30,
        KS_HOOK_TASK_FIX_SETGID = 31,
        KS_HOOK_CAPSET = 32,
        KS_HOOK_TASK_PRCTL = 33,
        KS_HOOKS = 40,
};

/* Words of facts. A fact is a bit; a second word says of each bit whether it is known. */
enum ks_word {
        KS_WORD_TRAITS = 0,   /* enum ks_trait: what they mean is fixed */
        KS_WORD_NUMBERS = 1,  /* what number tests and networks found */
        KS_WORD_PROGRAM = 2,  /* sets of names: one bit a set, the same in each of these words */
        KS_WORD_PARENT = 3,
        KS_WORD_SERVICE = 4,
        KS_WORD_ANCESTORS = 5,
        KS_WORD_IMAGE = 6,    /* the file executed, or what was asked for */
        KS_WORD_EXECUTED = 7,
        KS_WORD_ASKED = 8,
        KS_WORD_TARGET = 9,   /* of two paths the second */
        KS_WORD_PATH = 10,    /* any of them */
        KS_WORD_PLACES = 11,  /* sets of files and directories that any of the operation's files is in, or is */
        KS_WORD_WHO = 12,     /* sets of files that the process' executable is */
        KS_WORDS = 13,
};

enum ks_trait {
        KS_TRAIT_CANARY = 1 << 0,   /* this thread is the canary, at this very hook */
        KS_TRAIT_IO_URING = 1 << 1,
        KS_TRAIT_READ = 1 << 2,     /* what an open is for */
        KS_TRAIT_WRITE = 1 << 3,    /* ... and whatever changes a file's content */
        KS_TRAIT_MEMFD = 1 << 4,    /* of the file */
        KS_TRAIT_DELETED = 1 << 5,  /* it has no name left; a memfd never had one */
        KS_TRAIT_OTHERS_WRITE = 1 << 6, /* anybody may write to it */
        KS_TRAIT_SETUID = 1 << 7,   /* it runs as its owner or group */
        KS_TRAIT_NOT_ROOTS = 1 << 8, /* it belongs to somebody else than root */
        KS_TRAIT_SCRIPT = 1 << 9,   /* the execution asked for is a script's */
        KS_TRAIT_INTERPRETER = 1 << 10, /* ... and this file is its interpreter */
        KS_TRAIT_MAPPED = 1 << 11,  /* it becomes executable memory, of a program that runs already */
        KS_TRAIT_FORCED = 1 << 12,  /* the kernel opens it for an execution */
        KS_TRAIT_ATTACH = 1 << 13,  /* ptrace: takes hold, or writes; not just reads of /proc */
        KS_TRAIT_MODULE = 1 << 14,  /* what the kernel reads or loads */
        KS_TRAIT_FIRMWARE = 1 << 15,
        KS_TRAIT_KEXEC = 1 << 16,
        KS_TRAIT_UNIX = 1 << 17,    /* of the socket's family */
        KS_TRAIT_IPV4 = 1 << 18,
        KS_TRAIT_IPV6 = 1 << 19,
        KS_TRAIT_TO_ROOT = 1 << 20, /* a change of user: to root */
};

enum ks_number {
        KS_NUMBER_FLAGS = 0,
        KS_NUMBER_MODE = 1,
        KS_NUMBER_PORT = 2,
        KS_NUMBER_REQUEST = 3,
        KS_NUMBER_SIGNAL = 4,
        KS_NUMBER_CMD = 5,
        KS_NUMBER_UID = 6,
        KS_NUMBER_GID = 7,
        KS_NUMBER_ANOTHER = 8,
        KS_NUMBER_EUID = 9,
        KS_NUMBERS_ASKED = 10,
};

enum ks_mode {
        KS_MODE_UNNAMED = 0,
        KS_MODE_OFF = 1,
        KS_MODE_PERMISSIVE = 2,
        KS_MODE_ENFORCE = 3,
};

enum ks_action {
        KS_ACTION_LOG = 1,
        KS_ACTION_DENY = 2,
        KS_ACTION_KILL = 3,
};

enum ks_way_flag {
        KS_WAY_ANOMALOUS = 1 << 0,  /* and only if the score is over its threshold */
        KS_WAY_TAKEN_BACK = 1 << 1, /* no more than permissive, whoever says so */
        /* It asks for a word of these: for others nobody looks. */
        KS_WAY_OF_NUMBERS = 1 << 2,
        KS_WAY_OF_PROCESS = 1 << 3, /* program, parent, service, ancestors */
        KS_WAY_OF_WHO = 1 << 4,
        KS_WAY_OF_NAMES = 1 << 5,   /* image, executed, asked, target, path */
        KS_WAY_OF_PLACES = 1 << 6,
};

/* One way for a rule to speak at a hook: all bits of need hold, none of forbid does, as far as they are known. */
struct ks_way {
        __u64 need[KS_WORDS];
        __u64 forbid[KS_WORDS];
        __u64 calls;          /* bits of the system calls it speaks in; see the map calls */
        __u32 rule;           /* index among the policy's rules */
        __u8 mode;            /* enum ks_mode */
        __u8 action;          /* enum ks_action */
        __u8 flags;           /* enum ks_way_flag */
        __u8 unused;
};

/* A number in one of the ranges, or (bits set) equal to second under the mask first: then bit holds. */
struct ks_number_test {
        __u8 number;          /* enum ks_number */
        __u8 bits;
        __u8 bit;             /* in KS_WORD_NUMBERS */
        __u8 count;           /* of ranges */
        __u32 unused;
        __u32 first[KS_RANGES];
        __u32 second[KS_RANGES];
};

struct ks_hook_policy {
        __u16 first;          /* way */
        __u16 count;
        __u16 first_test;
        __u16 tests;
        __u64 words;          /* bits: words that any of its ways asks for */
};

/* A whole policy: exchanged as one. */
struct ks_policy {
        __u32 epoch;          /* of its names, networks and places */
        __u32 closed;         /* what can't be told speaks against the operation */
        __u64 cased;          /* sets of names that are compared byte by byte */
        __u64 folded;         /* ... without regard to case */
        __u32 kinds;          /* bits: 1 << enum ks_name_kind that are in use */
        __u32 unused;
        __u64 tested;         /* bits in KS_WORD_NUMBERS that number tests decide */
        __u64 networked;      /* ... that networks decide */
        /* Of each place, whatever it is in, one bit is set: that number which the highest 16 bits of
         * (inode ^ device << 32) * KS_SIEVE_FACTOR are. */
        __u64 sieve[KS_SIEVE];
        struct ks_hook_policy hooks[KS_HOOKS];
        struct ks_number_test tests[KS_NUMBER_TESTS];
        struct ks_way ways[KS_WAYS];
};

/* How a path is compared. The hash is taken over its bytes from the last to the first. */
enum ks_name_kind {
        KS_SPELLED_SUFFIX1 = 0,  /* its last name with the slash before it; then its last two, ... */
        KS_SPELLED_SUFFIX4 = 3,
        KS_SPELLED_EXACT = 4,
        KS_SPELLED_PREFIX = 5,
        KS_SPELLED_CASED = 8,    /* added: bytes as they are; otherwise ASCII letters folded */
};

struct ks_name_key {
        __u64 hash;
        __u32 epoch;
        __u32 kind;
};

struct ks_beginning {
        __u32 bits;           /* of what follows */
        __u32 epoch;
        __u8 cased;
        __u8 path[KS_PREFIX];
        __u8 unused[3];
};

/* IPv4 addresses are mapped: ::ffff:a.b.c.d. Each network's value has the bits of all that contain it, too. */
struct ks_network {
        __u32 bits;           /* of what follows */
        __u32 epoch;
        __u8 address[16];
};

/* A file or a directory, wherever it is mounted or linked. */
struct ks_place {
        __u64 inode;
        __u32 device;         /* as in /proc/self/mountinfo: major << 20 | minor */
        __u32 epoch;
};

struct ks_places {
        __u64 is;             /* bits in KS_WORD_PLACES of sets that this very file is in */
        __u64 under;          /* ... that whatever is below it is in */
        __u64 who;            /* bits in KS_WORD_WHO */
};

/* Where a system call's flags stand, for hooks that aren't told them. */
struct ks_flags_at {
        __u8 argument;        /* from 1; 0: nowhere */
        __u8 given;           /* the value is always the same */
        __u16 unused;
        __u32 value;
};

/* Who is never denied anything. */
enum ks_spared_kind {
        KS_SPARED_EXECUTABLE = 1, /* a: device, b: inode */
        KS_SPARED_PROCESS = 2,    /* a: tgid, b: start, as in struct ks_header */
};

enum ks_spared_flag {
        KS_SPARED_CHILDREN = 1,   /* and the processes that it starts, while it is their parent; not theirs */
        KS_SPARED_ROOTS = 2,      /* only as root's, or started by root's */
        KS_SPARED_EXECUTED = 4,   /* always there */
};

struct ks_spared {
        __u64 b;
        __u32 a;
        __u32 kind;
};

/* A verdict on a process; its children are born with it. */
enum ks_sentence_kind {
        KS_SENTENCE_QUARANTINE = 1, /* no execution, no connection, no file opened for writing, no process taken hold of */
        KS_SENTENCE_KILL = 2,
};

struct ks_sentenced {
        __u64 start_ns;
        __u32 tgid;
        __u32 unused;
};

struct ks_sentence {
        __u64 until_ns;       /* CLOCK_BOOTTIME */
        __u32 rule;           /* as user space knows it */
        __u8 kind;            /* enum ks_sentence_kind */
        __u8 mode;            /* enum ks_mode; unnamed: as elsewhere */
        __u16 unused;
};

/* What user space may change at any time, by a store into mapped memory; each run of a program reads it once. */
struct ks_switch {
        __u32 mode;           /* enum ks_mode: where neither rule nor cgroup have one */
        __u32 released;       /* nothing is denied, whatever else says so */
        __u32 sentences;      /* there are some */
        __u32 canary_tid;
        __u32 canary_hook;
        __u32 canary_nonce;   /* comes back in the record */
        __u64 heartbeat_ns;   /* CLOCK_BOOTTIME */
        __u64 hold_ns;        /* a heartbeat older than this opens everything; 0: never asked */
        __u64 two_key_ns;     /* ... than this: scores don't count any more; 0: never asked */
        __u64 over_ns;        /* for how long a process counts as over its threshold after it was */
        __u32 own_tgid;
        __u32 denials_a_second; /* records of one process; 0: no limit */
        __u32 cgroups;        /* there are modes of control groups */
        __u32 most;           /* no mode is more than this, whoever names it; 0: any */
};

enum ks_outcome {
        KS_OUTCOME_DENIED = 1,
        KS_OUTCOME_WOULD_DENY = 2,
        KS_OUTCOME_LOGGED = 3,
        KS_OUTCOME_SPARED = 4,   /* by the never-list */
        KS_OUTCOME_RELEASED = 5, /* by the release, or an old heartbeat */
        KS_OUTCOMES = 6,
};

enum ks_denial_flag {
        KS_DENIAL_ANOMALOUS = 1, /* the score was over its threshold */
        KS_DENIAL_SENTENCE = 2,  /* rule is a sentence's, kind its kind */
        KS_DENIAL_CANARY = 4,
        KS_DENIAL_UNTOLD = 8,    /* something could not be told, and the policy is closed */
        KS_DENIAL_KILLED = 16,
        KS_DENIAL_CUT = 32,      /* the path ends below the root */
        KS_DENIAL_IO_URING = 64,
};

/* A guard has spoken. */
struct ks_denial {
        struct ks_header header;
        __u32 epoch;          /* of the policy */
        __u32 rule;
        __u16 way;
        __u16 hook;
        __u16 token;          /* of the system call */
        __u16 flags;          /* enum ks_denial_flag */
        __u8 outcome;         /* enum ks_outcome */
        __u8 action;
        __u8 mode;            /* that was decisive */
        __u8 kind;            /* enum ks_sentence_kind */
        __u32 nonce;
        __u32 uid;
        __u32 euid;
        __u32 mean;           /* of the thread, then */
        __u32 cusum;
        __u32 process;
        __u32 traits;
        __u32 known;          /* which of the numbers are there: bits */
        __u32 numbers[KS_NUMBERS_ASKED];
        __u8 address[16];
        __u32 unused2;
        __u64 cgroup;
        __u16 addressed;      /* the address is there */
        __u16 lengths[2];     /* of the paths that follow, one after the other */
        __u16 unused;
};

/* One a CPU, changed by atomic additions alone: guards may interrupt each other. */
struct ks_guard_counters {
        __u64 outcomes[KS_OUTCOMES];
        __u64 records_sent;
        __u64 records_dropped; /* no room */
        __u64 records_limited; /* beyond what one process may send in a second */
        __u64 too_deep;        /* a file lies deeper than KS_DEPTH */
        __u64 no_room;         /* all working places were taken, or no policy was there */
        __u64 sequence;
        __u64 sentences_lost;  /* a child was born without its parent's: the map was full */
        __u64 evaluated;       /* operations that some way was tried on */
};

#endif
