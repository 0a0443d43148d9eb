/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What the collector's programs share: each thread's state, each process' state, maps. */
#ifndef KSENTINEL_STATE_H
#define KSENTINEL_STATE_H

#include "kernel_types.h"
#include "ksentinel_abi.h"

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* A program never interrupts itself on one CPU (the kernel counts the attempt as a missed run), but one may interrupt
 * another: so each has counters and scratch space of its own, and plain additions are exact. */
enum program { SYS_ENTER, FORK, EXEC, EXIT, SWEEP, GUARD, PROGRAMS };

#define SLOT_BITS 14
#define SLOTS (1 << SLOT_BITS)

enum ignored {
        WATCHED,
        EXCLUDED,            /* nobody wants it */
        OWN,                 /* ksentinel itself */
};

struct thread {
        __u64 low;           /* the last five tokens, 12 bits each, the newest lowest */
        __u64 high;          /* the five before them */
        __u32 busy;          /* who sets it from 0 to 1 may change the rest, except missed and excluded_calls */
        __u32 epoch;         /* of who it is: excluded, row */
        __u32 row;           /* among all rows of all models; KS_ROW_NONE */
        __u16 count;
        __u8 depth;          /* tokens in low and high, at most 10 */
        __u8 level;          /* length of the n-gram that was found for the last token */
        __u32 mean;
        __u32 cusum;
        __u32 peak_mean;     /* of this window, and so to sum */
        __u32 peak_cusum;
        __u32 begin_mean;
        __u32 begin_cusum;
        __u32 sum;
        __u16 scored;        /* tokens that moved the scores */
        __u16 scored_calls;  /* of these, system calls */
        __u64 last_tick;
        __u64 first_ns;
        __u16 unscored_calls;
        __u16 flags;
        __u16 call_token;
        __u8 postponed;      /* the call below is still to be sent */
        __u8 ignored;        /* enum ignored */
        __u32 sequence;
        __u32 tid;           /* when it was identified: an exec gives a thread its leader's id */
        __u32 missed;        /* what was lost while someone else was busy here; only the thread itself counts it */
        __u32 missed_told;   /* how many of them a window has told of */
        __u64 excluded_calls; /* calls while it was excluded; only the thread itself counts them */
        __u64 excluded_told; /* how many of them the counters know */
        __u16 tokens[KS_WINDOW];
        __u64 call_ns;
        __u64 call_args[6];  /* of the last call whose arguments are wanted */
        __u64 cgroup;        /* when it was identified, where somebody is wanted by such */
        __u32 uid;           /* likewise */
        __u32 over_told;     /* its process knows that it is over a limit; once a window */
        __u32 unused;
        __u32 hook;          /* the guard that spoke last in the call that ends */
};

struct hashing {
        __u64 seed;
        __u64 name;          /* hash of the name so far */
        __u64 path;          /* of the names before it */
        __u64 leaf;          /* of the first name */
        __u64 top;           /* of the last name */
        __u32 at;
        __u32 end;
        __u32 names;
};

struct scratch {
        union {
                struct ks_header header;
                struct ks_call call;
                struct ks_exec exec;
        };
        /* The last part may start just below KS_DATA and be KS_TEXT long. */
        __u8 data[KS_DATA + KS_TEXT + 256];
        struct ks_prefix prefix;
        struct hashing hashing;
};

struct {
        __uint(type, BPF_MAP_TYPE_RINGBUF);
        __uint(max_entries, 16 * 1024 * 1024);
} ring SEC(".maps");

/* Where a thread's state is: in a slot or, if another thread has that one, in its task storage. A slot is found by a few
 * instructions, where task storage costs calls into the kernel, and on processors with mitigated returns these are what
 * costs most here.
 *
 * A slot belongs to a kernel stack, known by where the registers of the thread's system calls are saved: always the same
 * place as long as it lives. A stack goes from thread to thread, so a slot is given back at a thread's end, and one that is
 * left over (nobody saw that end) at the next one's birth. */
struct slot {
        __u64 stack;         /* 0: nobody's */
        __u64 task;          /* the thread's task_struct; 0: not told */
        struct thread thread;
};

struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, SLOTS);
        __type(key, __u32);
        __type(value, struct slot);
} slots SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, int);
        __type(value, struct thread);
} threads SEC(".maps");

/* On group leaders. */
struct {
        __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, int);
        __type(value, struct ks_process);
} processes SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
        __uint(max_entries, PROGRAMS);
        __type(key, __u32);
        __type(value, struct ks_counters);
} counters SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, 1);
        __type(key, __u32);
        __type(value, struct ks_config);
} config SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, KS_TOKENS);
        __type(key, __u32);
        __type(value, struct ks_capture);
} captures SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
        __uint(max_entries, PROGRAMS);
        __type(key, __u32);
        __type(value, struct scratch);
} scratches SEC(".maps");

/* Room for two models: a new one is written beside the old one, then `config` changes over. */
struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, 2 * KS_ROWS);
        __type(key, __u32);
        __type(value, struct ks_profile);
} models SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 4096);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, struct ks_profile_key);
        __type(value, __u32);
} profiles SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 4096);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, struct ks_filter);
        __type(value, __u32);
} filters SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 1024);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, __u64);
        __type(value, __u32);
} names SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_LPM_TRIE);
        __uint(max_entries, 4096);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, struct ks_prefix);
        __type(value, __u32);
} prefixes SEC(".maps");

/* Types that only travel through the ring buffer: named here so that BTF has them. */
const struct ks_window *unused_window __attribute__((unused));
const struct ks_fork *unused_fork __attribute__((unused));
const struct ks_exit *unused_exit __attribute__((unused));
const struct ks_part *unused_part __attribute__((unused));

static const __u32 zero = 0;

/* Jiffies cost a load where a clock costs 20 ns; how long one is, sweep() finds out by comparing two passes. Until
 * then: HZ=250, what most distributions choose. */
static __u64 first_sweep_ns, first_sweep_tick;
static __u64 tick_ns = 4000000;

/* From the lower end of a kernel stack to where a system call saves the registers: found out at the first call. */
static __u64 registers_at;

static __always_inline struct ks_counters *counters_of(__u32 program)
{
        return bpf_map_lookup_elem(&counters, &program);
}

static __always_inline struct scratch *scratch_of(__u32 program)
{
        return bpf_map_lookup_elem(&scratches, &program);
}

/* The sequence is the record's place among all of its program on this CPU, whether or not it finds room. */
static __always_inline void fill_header(__u32 program, struct ks_header *h, __u16 kind, __u32 size,
                                        struct task_struct *task, __u32 sequence)
{
        h->kind = kind;
        h->flags = 0;
        h->size = size;
        h->time_ns = bpf_ktime_get_boot_ns();
        h->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
        h->tgid = BPF_CORE_READ(task, tgid);
        h->tid = BPF_CORE_READ(task, pid);
        h->sequence = sequence;
        h->cpu = bpf_get_smp_processor_id();
        h->program = program;
        h->unused = 0;
}

/* How long the thread has made no call. The last call is read before the clock: the other way round, one that comes
 * in between would lie in the future, and so look very old. */
static __always_inline __u64 silent_ns(struct thread *thread)
{
        __u64 last = *(volatile __u64 *)&thread->last_tick;

        return (bpf_jiffies64() - last) * tick_ns;
}

/* Under a flood arguments go first, then windows: the last eighth is for fork, exec and exit, without which nobody
 * knows any more who does what. */
static __always_inline int crowded(__u64 eighths)
{
        return bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) * 8 > bpf_ringbuf_query(&ring, BPF_RB_RING_SIZE) * eighths;
}

/* Whoever gets 0 has the thread. */
static __always_inline __u32 take(struct thread *thread)
{
        return __sync_lock_test_and_set(&thread->busy, 1);
}

static __always_inline void give_back(struct thread *thread)
{
#if defined(__TARGET_ARCH_x86)
        /* Stores aren't reordered with earlier ones on x86: no need to pay for a second locked instruction. */
        __asm__ volatile("" ::: "memory");
        *(volatile __u32 *)&thread->busy = 0;
#else
        __sync_lock_test_and_set(&thread->busy, 0);
#endif
}

static __always_inline struct slot *slot_of(__u64 stack)
{
        __u32 index = stack * 0x9e3779b97f4a7c15ULL >> (64 - SLOT_BITS);

        return bpf_map_lookup_elem(&slots, &index);
}

static __always_inline __u64 stack_of(struct task_struct *task)
{
        __u64 at = *(volatile __u64 *)&registers_at;

        return at ? (__u64)task->stack + at : 0;
}

/* The state of a thread, if it has one. Who isn't that thread must take() it and then ask is_of(): a slot that was
 * found may be another thread's by then. */
static __always_inline struct thread *thread_of(struct task_struct *task)
{
        __u64 stack = stack_of(task);
        struct slot *slot = slot_of(stack);

        if (slot && stack && slot->stack == stack)
                return &slot->thread;
        return bpf_task_storage_get(&threads, task, 0, 0);
}

static __always_inline int is_of(struct thread *thread, struct task_struct *task)
{
        __u64 stack = stack_of(task);
        struct slot *slot = slot_of(stack);

        return !slot || &slot->thread != thread || *(volatile __u64 *)&slot->stack == stack;
}

/* The state of a thread that has none yet: called by the thread itself, or by its maker before it runs. */
static __noinline __attribute__((unused)) struct thread *new_thread(struct task_struct *task)
{
        __u64 stack = stack_of(task), owner;
        struct slot *slot = slot_of(stack);

        if (slot && stack) {
                /* A slot with this very stack is left over. */
                owner = slot->stack == stack ? stack : __sync_val_compare_and_swap(&slot->stack, 0, stack);
                if (!owner || owner == stack) {
                        if (!take(&slot->thread)) {
                                __builtin_memset(&slot->thread, 0, offsetof(struct thread, busy));
                                __builtin_memset((void *)&slot->thread + offsetof(struct thread, epoch), 0,
                                                 sizeof(slot->thread) - offsetof(struct thread, epoch));
                                give_back(&slot->thread);
                                return &slot->thread;
                        }
                        *(volatile __u64 *)&slot->stack = 0; /* its last owner is being swept this very moment */
                }
        }
        return bpf_task_storage_get(&threads, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

/* The thread has ended. The caller has taken it, and hereby gives it back. */
static __always_inline void free_thread(struct thread *thread, struct task_struct *task)
{
        struct slot *slot = slot_of(stack_of(task));

        if (slot && &slot->thread == thread)
                *(volatile __u64 *)&slot->stack = 0;
        give_back(thread);
}

#endif
