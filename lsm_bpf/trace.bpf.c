// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* Collector: each thread's system calls as windows, security-relevant arguments, and who started whom.
 *
 *   hook  raw_tp/sys_enter             every system call of every thread
 *         raw_tp/sched_process_fork    a process is born
 *         raw_tp/sched_process_exec    a process has become another program
 *         raw_tp/sched_process_exit    a thread ends
 *         iter/task                    read by user space to flush threads that sleep on a part-filled window
 *   in    config                       own process, idle time
 *         captures                     token -> which arguments to read; written by ksentinel/sources/ringbuf.py
 *   out   ring                         struct ks_window, ks_fork, ks_exec, ks_exit, ks_call
 *         counters                     one struct ks_counters a program and CPU
 *
 * Fails open: it only watches. What doesn't fit the ring buffer is dropped and counted, and the thread's next
 * record says so; the workload is never held up.
 *
 * Arguments of ks_call are read at entry (or, marked late, at the thread's next one), before the kernel copies them:
 * another thread may change them in between (so they are what was asked at that moment, not proof of what was done).
 * Arguments of ks_exec are the new program's own copy, read after the exec succeeded: those can't be raced. */
#include "kernel_types.h"
#include "ksentinel_abi.h"

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#define AT_FDCWD (-100)
#define X32_BIT 0x40000000
#define TS_COMPAT 0x0002     /* x86: this call came through the 32-bit entry */
#define TIF_32BIT_ARM64 22
#define PIDTYPE_SID 3

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* A program never interrupts itself on one CPU (the kernel counts the attempt as a missed run), but one may interrupt
 * another: so each has counters and scratch space of its own, and plain additions are exact. */
enum program { SYS_ENTER, FORK, EXEC, EXIT, SWEEP, PROGRAMS };

struct thread {
        __u64 first_ns;
        __u64 last_tick;
        __u32 sequence;
        __u32 busy;          /* who sets it from 0 to 1 may change the rest, except missed */
        __u32 tid;           /* who made the tokens: an exec gives a thread its leader's id */
        __u32 missed;        /* what was lost while someone else was busy here; only the thread itself counts it */
        __u32 missed_told;   /* how many of them a window has told of */
        __u32 gone;          /* of a group leader: the process' exit has been told */
        __u16 count;
        __u16 flags;
        __u16 call_token;
        __u16 postponed;     /* the call below is still to be sent */
        __u16 tokens[KS_WINDOW];
        __u64 call_ns;
        __u64 call_args[6];  /* of the last call whose arguments are wanted */
};

/* When a call's arguments are read. FIRST: at the call; if a page is not in memory (a string of a program that just
 * started), the kernel is about to bring it in, so the call is postponed. AGAIN: at the thread's next call. BLIND: not
 * at all, because that memory is gone or not this task's. */
enum reading { FIRST, AGAIN, BLIND };

struct scratch {
        union {
                struct ks_header header;
                struct ks_call call;
                struct ks_exec exec;
        };
        /* The last part may start just below KS_DATA and be KS_TEXT long. */
        __u8 data[KS_DATA + KS_TEXT + 256];
};

struct {
        __uint(type, BPF_MAP_TYPE_RINGBUF);
        __uint(max_entries, 16 * 1024 * 1024);
} ring SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, int);
        __type(value, struct thread);
} threads SEC(".maps");

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

static __always_inline struct ks_counters *counters_of(__u32 program)
{
        return bpf_map_lookup_elem(&counters, &program);
}

static __always_inline struct scratch *scratch_of(__u32 program)
{
        return bpf_map_lookup_elem(&scratches, &program);
}

static __always_inline void fill_header(struct ks_header *h, __u16 kind, __u32 size, struct task_struct *task)
{
        h->kind = kind;
        h->flags = 0;
        h->size = size;
        h->time_ns = bpf_ktime_get_boot_ns();
        h->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
        h->tgid = BPF_CORE_READ(task, tgid);
        h->tid = BPF_CORE_READ(task, pid);
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

/* Sends the thread's tokens so far. The caller holds thread->busy. */
static __always_inline void close_window(struct ks_counters *c, struct task_struct *task, struct thread *thread,
                                         __u16 cause)
{
        __u32 missed = *(volatile __u32 *)&thread->missed;
        __u16 count = thread->count;
        struct ks_window *w;

        if (!count)
                return;
        if (missed != thread->missed_told)
                thread->flags |= KS_FLAG_LOSSY;
        thread->missed_told = missed;
        if (cause < KS_CAUSES)
                c->closed[cause]++;

        w = crowded(7) ? 0 : bpf_ringbuf_reserve(&ring, sizeof(*w), 0);
        if (!w) {
                c->windows_dropped++;
                c->tokens_dropped += count;
                thread->flags |= KS_FLAG_LOSSY;
        } else {
                fill_header(&w->header, KS_KIND_WINDOW, sizeof(*w), task);
                w->header.flags = thread->flags;
                w->header.tid = thread->tid;
                w->first_ns = thread->first_ns;
                w->last_ns = w->header.time_ns;
                /* A full window closes at its last call, an exec is one; the others may come long after it. A tick is
                 * coarse, so never before the first call. */
                if (cause != KS_CAUSE_FULL && cause != KS_CAUSE_EXEC) {
                        __u64 silent = silent_ns(thread), span = w->last_ns - w->first_ns;

                        w->last_ns -= silent < span ? silent : span;
                }
                w->sequence = thread->sequence;
                w->count = count;
                w->cause = cause;
                __builtin_memcpy(w->tokens, thread->tokens, sizeof(w->tokens));
                bpf_ringbuf_submit(w, 0);
                c->windows_sent++;
                c->tokens_sent += count;
                thread->flags = 0;
        }
        thread->sequence++;
        thread->count = 0;
}

static __always_inline __u32 token_of(struct task_struct *task, long id)
{
        __u32 abi = 0;

#if defined(__TARGET_ARCH_x86)
        if (task->thread_info.status & TS_COMPAT)
                abi = KS_TOKEN_COMPAT;
        else if (id > 0 && (id & X32_BIT)) {
                abi = KS_TOKEN_X32;
                id &= ~X32_BIT;
        }
#elif defined(__TARGET_ARCH_arm64)
        if (task->thread_info.flags & (1UL << TIF_32BIT_ARM64))
                abi = KS_TOKEN_COMPAT;
#endif
        return id < 0 || id >= KS_NUMBERS ? KS_TOKEN_INVALID : abi | (__u32)id;
}

/* The six arguments, from the registers of the ABI that the call came through. */
static __always_inline void read_args(__u64 *args, struct pt_regs *regs, __u32 token)
{
#if defined(__TARGET_ARCH_x86)
        if ((token & 0x0c00) == KS_TOKEN_COMPAT) {
                args[0] = (__u32)BPF_CORE_READ(regs, bx);
                args[1] = (__u32)BPF_CORE_READ(regs, cx);
                args[2] = (__u32)BPF_CORE_READ(regs, dx);
                args[3] = (__u32)BPF_CORE_READ(regs, si);
                args[4] = (__u32)BPF_CORE_READ(regs, di);
                args[5] = (__u32)BPF_CORE_READ(regs, bp);
                return;
        }
        args[0] = BPF_CORE_READ(regs, di);
        args[1] = BPF_CORE_READ(regs, si);
        args[2] = BPF_CORE_READ(regs, dx);
        args[3] = BPF_CORE_READ(regs, r10);
        args[4] = BPF_CORE_READ(regs, r8);
        args[5] = BPF_CORE_READ(regs, r9);
#elif defined(__TARGET_ARCH_arm64)
        for (int i = 0; i < 6; i++)
                args[i] = BPF_CORE_READ(regs, user_regs.regs[i]);
#endif
}

static __always_inline __u64 arg(const struct ks_call *call, __u8 number)
{
        __u32 index = (number - 1) & 7;

        return call->args[index > 5 ? 5 : index];
}

/* Starts a part; returns where its bytes go, at most KS_DATA - 1 + sizeof(struct ks_part). There are at most four parts
 * of up to KS_TEXT bytes each, so the mask never takes effect: it is what the verifier needs to see. */
static __always_inline __u32 begin(struct scratch *s, __u32 off, __u16 kind)
{
        struct ks_part *part;

        off &= KS_DATA - 1;
        part = (struct ks_part *)&s->data[off];
        part->kind = kind;
        part->len = 0;
        return off + sizeof(*part);
}

static __always_inline __u32 end(struct scratch *s, __u32 at, __u32 len)
{
        __u32 start = at - sizeof(struct ks_part);

        ((struct ks_part *)&s->data[start & (KS_DATA - 1)])->len = len;
        return at + len;
}

struct climb {
        struct scratch *s;
        struct mount *mnt;
        struct dentry *dentry;
        __u32 at;
        __u32 limit;
        __u32 done;          /* there is nothing above */
        __u32 adrift;        /* ... and that is no namespace's root: unmounted since, or a socket, a pipe */
};

/* NULL, or an error number in its place. */
static __always_inline int no_namespace(struct mnt_namespace *ns)
{
        return !ns || (unsigned long)ns >= (unsigned long)-4095;
}

static long climb_one(__u32 index __attribute__((unused)), struct climb *climb)
{
        struct dentry *dentry = climb->dentry, *parent;
        struct mount *mnt = climb->mnt;
        __u32 at = climb->at & (KS_DATA - 1);
        long len;

        if (dentry == BPF_CORE_READ(mnt, mnt.mnt_root)) {
                struct mount *up = BPF_CORE_READ(mnt, mnt_parent);

                if (up == mnt || !up) {
                        climb->done = 1;
                        climb->adrift = no_namespace(BPF_CORE_READ(mnt, mnt_ns));
                        return 1;
                }
                climb->dentry = BPF_CORE_READ(mnt, mnt_mountpoint);
                climb->mnt = up;
                return 0;
        }
        if (climb->at > climb->limit)
                return 1; /* the next name might not fit */
        len = bpf_probe_read_kernel_str(&climb->s->data[at], KS_NAME, BPF_CORE_READ(dentry, d_name.name));
        if (len > 0)
                climb->at = at + len;
        parent = BPF_CORE_READ(dentry, d_parent);
        climb->dentry = parent;
        climb->done = dentry == parent; /* no tree above: a memfd */
        return climb->done ? 1 : 0;
}

/* Names from leaf to root, across mount points. The kernel's own d_path isn't allowed in these programs.
 *
 * The top is that of the mount namespace, not the caller's root: who has called chroot() is seen from outside. Where
 * it is too far away, or not connected any more, the part is marked as cut: what remains must not pass for a path from
 * the root.
 *
 * Not static: so the verifier looks at it once, by itself, and not again for each path through its callers (which ends
 * beyond its million instructions). Such functions take plain numbers only. */
__noinline __u32 add_names(__u32 program, __u32 off, __u64 vfsmnt, __u64 dentry, __u32 kind)
{
        struct scratch *s = scratch_of(program);
        struct climb climb = {};
        __u32 start;

        if (!s)
                return off;
        start = begin(s, off, kind);
        climb.s = s;
        climb.mnt = (void *)vfsmnt - bpf_core_field_offset(struct mount, mnt);
        climb.dentry = (void *)dentry;
        climb.at = start;
        climb.limit = start + KS_TEXT - KS_NAME;
        bpf_loop(KS_COMPONENTS, climb_one, &climb, 0);
        if (!climb.done)
                s->header.flags |= KS_FLAG_TRUNCATED;
        if (!climb.done || climb.adrift)
                begin(s, off, kind | KS_PART_CUT);
        return end(s, start, climb.at > start ? climb.at - start : 0);
}

static __always_inline __u32 add_path_names(__u32 program, __u32 off, const struct path *from, __u16 kind)
{
        struct path path = {};

        bpf_probe_read_kernel(&path, sizeof(path), from);
        return add_names(program, off, (__u64)path.mnt, (__u64)path.dentry, kind);
}

static __always_inline __u32 add_user_string(struct scratch *s, __u32 off, const void *from, __u16 kind)
{
        __u32 at = begin(s, off, kind);
        long len = bpf_probe_read_user_str(&s->data[at & (KS_DATA - 1)], KS_TEXT, from);

        if (len < 0) {
                s->header.flags |= KS_FLAG_UNREADABLE;
                len = 0;
        }
        if (len == KS_TEXT) {
                /* Cut, or just long enough: the byte that was replaced by the terminator tells. */
                char last = 1;

                bpf_probe_read_user(&last, sizeof(last), from + KS_TEXT - 1);
                if (last)
                        s->header.flags |= KS_FLAG_TRUNCATED;
        }
        return end(s, at, len & (2 * KS_TEXT - 1));
}

static __always_inline __u32 add_user_bytes(struct scratch *s, __u32 off, const void *from, __u32 len, __u16 kind)
{
        __u32 at = begin(s, off, kind);

        len = len > 128 ? 128 : len; /* sizeof(struct sockaddr_storage) */
        if (bpf_probe_read_user(&s->data[at & (KS_DATA - 1)], len, from)) {
                s->header.flags |= KS_FLAG_UNREADABLE;
                len = 0;
        }
        return end(s, at, len);
}

/* The directory that a relative path starts from; with an empty path (AT_EMPTY_PATH), the descriptor's file itself. */
static __always_inline __u32 add_base(__u32 program, __u32 off, struct task_struct *task, int has_dir, int fd,
                                      __u16 kind)
{
        if (has_dir && fd != AT_FDCWD) {
                struct files_struct *files = task->files;
                struct file **slots, *file = 0;
                struct fdtable *fdt;

                if (!files)
                        return off;
                fdt = files->fdt;
                slots = fdt->fd;
                if (fd < 0 || (__u32)fd >= fdt->max_fds)
                        return off;
                bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
                if (!file)
                        return off;
                return add_path_names(program, off, &file->f_path, kind);
        }
        return add_path_names(program, off, &task->fs->pwd, kind);
}

/* A path, and where it starts from: the directory for a relative one, the root for an absolute one of a process that
 * has called chroot(). */
static __always_inline __u32 add_path(__u32 program, struct scratch *s, __u32 off, struct task_struct *task,
                                      __u8 path, __u8 dir, __u16 kind, __u16 base_kind)
{
        __u32 at = (off & (KS_DATA - 1)) + sizeof(struct ks_part), base;
        int fd = (int)arg(&s->call, dir);

        off = add_user_string(s, off, (const void *)arg(&s->call, path), kind);
        if (off == at) /* not even its terminator could be read; the directory is worth telling still */
                return dir && fd >= 0 ? add_base(program, off, task, dir, fd, base_kind) : off;
        if (s->data[at & (KS_DATA - 1)] != '/')
                return add_base(program, off, task, dir, fd, base_kind);
        base = add_path_names(program, off, &task->fs->root, base_kind);
        return base > off + sizeof(struct ks_part) ? base : off;
}

/* Sends thread's call. The caller holds thread->busy. */
static __noinline int send_call(__u32 program, struct task_struct *task, struct thread *thread, enum reading reading)
{
        struct ks_counters *c = counters_of(program);
        struct scratch *s = scratch_of(program);
        int full;
        __u32 token = thread->call_token, off = 0;
        struct ks_capture *want = bpf_map_lookup_elem(&captures, &token);

        if (!s || !c || !want)
                return 0;
        thread->postponed = 0;
        fill_header(&s->header, KS_KIND_CALL, 0, task);
        s->header.time_ns = thread->call_ns;
        __builtin_memcpy(s->call.args, thread->call_args, sizeof(s->call.args));
        if (want->address && !arg(&s->call, want->address))
                return 0; /* sendto on a connected socket: nothing to tell */
        s->call.token = token;
        s->call.uid = BPF_CORE_READ(task, cred, uid.val);
        s->call.euid = BPF_CORE_READ(task, cred, euid.val);
        s->call.unused = s->call.unused2 = 0;

        if (reading == BLIND) {
                s->header.flags |= KS_FLAG_UNREADABLE;
                goto send;
        }
        if (reading == AGAIN)
                s->header.flags |= KS_FLAG_LATE;
        if (want->path1)
                off = add_path(program, s, off, task, want->path1, want->dir1, KS_PART_PATH1, KS_PART_BASE1);
        if (want->path2)
                off = add_path(program, s, off, task, want->path2, want->dir2, KS_PART_PATH2, KS_PART_BASE2);
        if (want->address) {
                __u32 len = arg(&s->call, want->address_len);

                off = add_user_bytes(s, off, (void *)arg(&s->call, want->address), len, KS_PART_ADDRESS);
        }
        if (want->words)
                off = add_user_bytes(s, off, (void *)arg(&s->call, want->words), 8, KS_PART_WORDS);
        if (reading == FIRST && want->wanted == KS_WANT_PATIENTLY && s->header.flags & KS_FLAG_UNREADABLE) {
                thread->postponed = 1;
                return 0;
        }
send:
        c->calls++;
        if (s->header.flags & KS_FLAG_TRUNCATED)
                c->calls_truncated++;
        if (s->header.flags & KS_FLAG_UNREADABLE)
                c->calls_unreadable++;
        if (s->header.flags & KS_FLAG_LATE)
                c->calls_late++;
        full = crowded(6); /* before the size: the verifier forgets its bounds over a call */
        if (off > sizeof(s->data))
                off = sizeof(s->data);
        s->header.size = offsetof(struct scratch, data) + off;
        if (full || bpf_ringbuf_output(&ring, s, s->header.size, 0)) {
                c->calls_dropped++;
                thread->flags |= KS_FLAG_LOSSY;
        } else {
                c->calls_sent++;
        }
        return 0;
}

static __always_inline void append(struct ks_counters *c, struct task_struct *task, struct thread *thread, __u32 token)
{
        __u16 n = thread->count;

        thread->last_tick = bpf_jiffies64();
        if (!n) {
                thread->first_ns = bpf_ktime_get_boot_ns();
                thread->tid = task->pid;
        }
        thread->tokens[n & (KS_WINDOW - 1)] = token;
        thread->count = n + 1;
        c->recorded++;
        if (n + 1 >= KS_WINDOW)
                close_window(c, task, thread, KS_CAUSE_FULL);
}

SEC("raw_tp/sys_enter")
int on_sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
        struct ks_counters *c = counters_of(SYS_ENTER);
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        struct task_struct *task = bpf_get_current_task_btf();
        struct ks_capture *want;
        struct thread *thread;
        __u32 token;

        if (!c || !cfg)
                return 0;
        c->seen++;
        if ((__u32)task->tgid == cfg->own_tgid) {
                c->own++;
                return 0;
        }
        thread = bpf_task_storage_get(&threads, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
        if (!thread) {
                c->no_storage++;
                return 0;
        }
        if (__sync_lock_test_and_set(&thread->busy, 1)) {
                c->contended++;
                thread->missed++;
                return 0;
        }
        token = token_of(task, ctx->args[1]);
        if (thread->postponed)
                send_call(SYS_ENTER, task, thread, AGAIN);
        append(c, task, thread, token);

        want = bpf_map_lookup_elem(&captures, &token);
        if (want && want->wanted) {
                thread->call_ns = bpf_ktime_get_boot_ns();
                thread->call_token = token;
                read_args(thread->call_args, (struct pt_regs *)ctx->args[0], token);
                send_call(SYS_ENTER, task, thread, FIRST);
        }
        __sync_lock_test_and_set(&thread->busy, 0);
        return 0;
}

static __always_inline void flush(__u32 program, struct ks_counters *c, struct task_struct *task, __u16 cause)
{
        struct thread *thread = bpf_task_storage_get(&threads, task, 0, 0);

        if (!thread || __sync_lock_test_and_set(&thread->busy, 1))
                return; /* being swept this very moment: the sweep sends it */
        if (thread->postponed)
                send_call(program, task, thread, BLIND);
        close_window(c, task, thread, cause);
        if (thread->tid != (__u32)task->pid)
                thread->sequence = 0; /* an exec outside the leader: from here on it counts as the leader's */
        __sync_lock_test_and_set(&thread->busy, 0);
}

static __always_inline __u32 session_of(struct task_struct *task)
{
        return BPF_CORE_READ(task, signal, pids[PIDTYPE_SID], numbers[0].nr);
}

SEC("raw_tp/sched_process_fork")
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
        struct task_struct *parent = (void *)ctx->args[0], *child = (void *)ctx->args[1];
        struct ks_counters *c = counters_of(FORK);
        struct ks_fork *f;

        if (!c || BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
                return 0; /* a thread, not a process */
        c->lifecycle++;
        f = bpf_ringbuf_reserve(&ring, sizeof(*f), 0);
        if (!f) {
                c->lifecycle_dropped++;
                return 0;
        }
        fill_header(&f->header, KS_KIND_FORK, sizeof(*f), child);
        f->parent_start_ns = BPF_CORE_READ(parent, group_leader, start_boottime);
        f->parent_tgid = BPF_CORE_READ(parent, tgid);
        f->session = session_of(child);
        f->uid = BPF_CORE_READ(child, cred, uid.val);
        f->euid = BPF_CORE_READ(child, cred, euid.val);
        bpf_ringbuf_submit(f, 0);
        c->lifecycle_sent++;
        return 0;
}

SEC("raw_tp/sched_process_exec")
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
        struct task_struct *task = bpf_get_current_task_btf();
        struct linux_binprm *bprm = (void *)ctx->args[2];
        struct ks_counters *c = counters_of(EXEC);
        struct scratch *s = scratch_of(EXEC);
        unsigned long from, to;
        struct thread *thread;
        __u32 off = 0, at, len;
        struct file *exe;
        long got;

        if (!c || !s)
                return 0;
        flush(EXEC, c, task, KS_CAUSE_EXEC);
        c->lifecycle++;
        fill_header(&s->header, KS_KIND_EXEC, 0, task);
        s->exec.uid = BPF_CORE_READ(task, cred, uid.val);
        s->exec.euid = BPF_CORE_READ(task, cred, euid.val);
        s->exec.auid = bpf_core_field_exists(task->loginuid) ? BPF_CORE_READ(task, loginuid.val) : (__u32)-1;
        s->exec.session = session_of(task);

        exe = BPF_CORE_READ(task, mm, exe_file);
        if (exe) {
                if (!BPF_CORE_READ(exe, f_inode, i_nlink))
                        s->header.flags |= KS_FLAG_UNLINKED;
                off = add_path_names(EXEC, off, &exe->f_path, KS_PART_EXE);
        }
        off = add_path_names(EXEC, off, &task->fs->pwd, KS_PART_CWD);

        at = begin(s, off, KS_PART_NAME);
        got = bpf_probe_read_kernel_str(&s->data[at & (KS_DATA - 1)], KS_TEXT, BPF_CORE_READ(bprm, filename));
        off = end(s, at, got > 0 ? got & (2 * KS_TEXT - 1) : 0);

        from = BPF_CORE_READ(task, mm, arg_start);
        to = BPF_CORE_READ(task, mm, arg_end);
        len = to > from ? (to - from > KS_TEXT ? KS_TEXT : to - from) : 0;
        if (to > from && to - from > KS_TEXT)
                s->header.flags |= KS_FLAG_TRUNCATED;
        at = begin(s, off, KS_PART_ARGV);
        len = len > KS_TEXT ? KS_TEXT : len;
        if (bpf_probe_read_user(&s->data[at & (KS_DATA - 1)], len, (void *)from)) {
                s->header.flags |= KS_FLAG_UNREADABLE;
                len = 0;
        }
        off = end(s, at, len);

        if (off > sizeof(s->data))
                off = sizeof(s->data);
        /* The parts follow struct ks_call's room, the larger of the two: user space skips it. */
        s->header.size = offsetof(struct scratch, data) + off;
        if (bpf_ringbuf_output(&ring, s, s->header.size, 0)) {
                c->lifecycle_dropped++;
                thread = bpf_task_storage_get(&threads, task, 0, 0);
                if (thread)
                        thread->missed++;
        } else {
                c->lifecycle_sent++;
        }
        return 0;
}

SEC("raw_tp/sched_process_exit")
int on_exit(void *ctx __attribute__((unused)))
{
        struct task_struct *task = bpf_get_current_task_btf();
        struct ks_counters *c = counters_of(EXIT);
        struct thread *leader;
        struct ks_exit *x;

        if (!c)
                return 0;
        flush(EXIT, c, task, KS_CAUSE_EXIT);
        if (BPF_CORE_READ(task, signal, live.counter) > 0)
                return 0; /* other threads of the process live on */
        /* Threads that end at the same moment have all counted themselves out before the first of them gets here: they
         * all find none alive. One tells; without memory for the mark it is told twice rather than not at all. */
        leader = bpf_task_storage_get(&threads, task->group_leader, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
        if (leader && __sync_lock_test_and_set(&leader->gone, 1))
                return 0;
        c->lifecycle++;
        x = bpf_ringbuf_reserve(&ring, sizeof(*x), 0);
        if (!x) {
                c->lifecycle_dropped++;
                return 0;
        }
        fill_header(&x->header, KS_KIND_EXIT, sizeof(*x), task);
        bpf_ringbuf_submit(x, 0);
        c->lifecycle_sent++;
        return 0;
}

static __always_inline void measure_tick(void)
{
        __u64 now = bpf_ktime_get_ns(), tick = bpf_jiffies64(); /* both stand still while the machine sleeps */

        if (!first_sweep_ns) {
                first_sweep_ns = now;
                first_sweep_tick = tick;
        } else if (tick - first_sweep_tick >= 50) {
                tick_ns = (now - first_sweep_ns) / (tick - first_sweep_tick);
        }
}

SEC("iter/task")
int sweep(struct bpf_iter__task *ctx)
{
        struct ks_counters *c = counters_of(SWEEP);
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        struct task_struct *task = ctx->task;
        struct thread *thread;

        if (!task || !c || !cfg)
                return 0;
        if (!ctx->meta->seq_num)
                measure_tick();
        thread = bpf_task_storage_get(&threads, task, 0, 0);
        if (!thread || (!thread->count && !thread->postponed))
                return 0;
        if (!cfg->stopping && silent_ns(thread) < cfg->idle_ns)
                return 0;
        if (__sync_lock_test_and_set(&thread->busy, 1))
                return 0;
        /* It may have woken up since. */
        if (cfg->stopping || silent_ns(thread) >= cfg->idle_ns) {
                if (thread->postponed)
                        send_call(SWEEP, task, thread, BLIND);
                close_window(c, task, thread, cfg->stopping ? KS_CAUSE_STOP : KS_CAUSE_IDLE);
        }
        __sync_lock_test_and_set(&thread->busy, 0);
        return 0;
}
