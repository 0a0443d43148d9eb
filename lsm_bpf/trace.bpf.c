// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* Collector: each thread's system calls as windows, scored, security-relevant arguments, and who started whom.
 *
 *   hook  raw_tp/sys_enter             every system call of every thread
 *         tp_btf/sched_process_fork    a process or a thread is born
 *         raw_tp/sched_process_exec    a process has become another program
 *         raw_tp/sched_process_exit    a thread ends
 *         iter/task                    read by user space to flush threads that sleep on a part-filled window; and, when there is
 *                                      another policy, to find out which of its sets of names everybody's programs are in
 *   in    config                       own process, idle time, which model and whether it gates, filters
 *         models, profiles             a model's rows, and who has which; ksentinel/detectors/kerneltable.py
 *         captures, prefixes           token -> which arguments to read; path prefix -> class; ksentinel/sources/ringbuf.py
 *         filters, names               who is watched; programs that start services
 *         processes                    what is known of processes that ran before
 *   out   ring                         struct ks_window, ks_fork, ks_exec, ks_exit, ks_call
 *         counters                     one struct ks_counters a program and CPU
 *
 * Fails open: it only watches. What doesn't fit the ring buffer is dropped and counted, and the thread's next
 * record says so; the workload is never held up.
 *
 * Arguments of ks_call are read at entry (or, marked late, at the thread's next one), before the kernel copies them:
 * another thread may change them in between (so they are what was asked at that moment, not proof of what was done).
 * Arguments of ks_exec are the new program's own copy, read after the exec succeeded: those can't be raced. */
#include "state.h"
#include "calls.h"
#include "paths.h"
#include "names.h"
#include "score.h"

#define AT_FDCWD (-100)
#define PIDTYPE_SID 3
#define AF_INET 2
#define AF_INET6 10

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* When a call's arguments are read. FIRST: at the call; if a page is not in memory (a string of a program that just
 * started), the kernel is about to bring it in, so the call is postponed. AGAIN: at the thread's next call. BLIND: not
 * at all, because that memory is gone or not this task's. */
enum reading { FIRST, AGAIN, BLIND };

/* Kernels from 6.2 on read what an address points to without a call for it. */
extern void *bpf_rdonly_cast(const void *address, __u32 type) __ksym __weak;

/* A call's token, of its number and its ABI. Where the kernel serves no 32-bit programs nobody needs to ask for that. */
static __always_inline __u32 token_of(const struct ks_config *cfg, struct slot *slot, __u64 stack, long id, int direct)
{
        __u32 abi = 0;

        if (cfg->compat) {
                struct task_struct *task = 0;

                if (direct && slot && slot->stack == stack && slot->task) {
                        task = bpf_rdonly_cast((void *)slot->task, bpf_core_type_id_kernel(struct task_struct));
                        if ((__u64)task->stack + registers_at != stack)
                                task = 0; /* left over from another thread */
                }
                if (task ? is_compat(task) : is_compat(bpf_get_current_task_btf()))
                        abi = KS_TOKEN_COMPAT;
        }
        return token_by_abi(id, abi);
}

static __always_inline __u64 arg(const struct ks_call *call, __u8 number)
{
        __u32 index = (number - 1) & 7;

        return call->args[index > 5 ? 5 : index];
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

/* The class of an absolute path, as it was written: a hint for the sequence, not a decision. */
static __noinline __u32 class_of_path(struct scratch *s, __u32 at)
{
        __u32 *class;

        at &= KS_DATA - 1;
        if (s->data[at] != '/')
                return KS_CLASS_NONE;
        /* A plain copy of bytes that may start anywhere would go through the stack, one by one. */
        bpf_probe_read_kernel(s->prefix.path, KS_PREFIX, &s->data[at]);
        s->prefix.bits = 8 * KS_PREFIX;
        class = bpf_map_lookup_elem(&prefixes, &s->prefix);
        return class ? *class : KS_CLASS_NONE;
}

static __always_inline __u32 class_of_ipv4(const __u8 *a)
{
        if (a[0] == 127 || !a[0]) /* 0.0.0.0 leads to this host, too */
                return KS_CLASS_LOOPBACK;
        if (a[0] == 10 || (a[0] == 172 && (a[1] & 0xf0) == 16) || (a[0] == 192 && a[1] == 168) ||
            (a[0] == 169 && a[1] == 254) || (a[0] == 100 && (a[1] & 0xc0) == 64))
                return KS_CLASS_PRIVATE;
        return KS_CLASS_PUBLIC;
}

static __noinline __u32 class_of_address(struct scratch *s, __u32 at)
{
        const __u8 *address = &s->data[at & (KS_DATA - 1)];
        __u16 family = *(__u16 *)address;
        __u32 first = 0, then = 0;

        if (family == AF_INET)
                return class_of_ipv4(address + 4);
        if (family != AF_INET6)
                return KS_CLASS_NONE;
        address += 8;
        /* Gathered, not asked one by one: the verifier would follow each answer. */
        for (__u32 i = 0; i < 10; i++)
                first |= address[i];
        for (__u32 i = 10; i < 15; i++)
                then |= address[i];
        if (!first && address[10] == 0xff && address[11] == 0xff)
                return class_of_ipv4(address + 12);
        if (!first && !then && address[15] < 2)
                return KS_CLASS_LOOPBACK;
        if ((address[0] & 0xfe) == 0xfc || (address[0] == 0xfe && (address[1] & 0xc0) == 0x80))
                return KS_CLASS_PRIVATE;
        return KS_CLASS_PUBLIC;
}

/* What a call is about becomes a token of its own behind the call's. */
static __always_inline void append_class(__u32 program, struct ks_counters *c, struct task_struct *task,
                                         struct thread *thread, __u32 class)
{
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        int full;

        if (class >= KS_CLASSES || !cfg)
                return;
        c->classes[class]++;
        full = append(thread, KS_TOKEN_CLASS | class);
        score(cfg, thread);
        if (full)
                close_window(program, c, task, thread, KS_CAUSE_FULL);
}

/* The guard that spoke last in the call before becomes a token of its own. */
static __noinline int append_hook(__u32 program, struct ks_counters *c, struct task_struct *task, struct thread *thread)
{
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        __u32 hook = __sync_lock_test_and_set(&thread->hook, 0);
        int full;

        if (!cfg || !c)
                return 0;
        c->hook_tokens++;
        full = append(thread, KS_TOKEN_HOOK | (hook & 0xff));
        score(cfg, thread);
        if (full)
                close_window(program, c, task, thread, KS_CAUSE_FULL);
        return 0;
}

/* Whether the process has sent more arguments in this second than one may: its flood must not cost others theirs. */
static __always_inline int beyond_its_share(struct task_struct *task)
{
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        struct ks_process *process;
        __u64 now = bpf_jiffies64();

        if (!cfg || !cfg->calls_a_second)
                return 0;
        process = bpf_task_storage_get(&processes, task->group_leader, 0, 0);
        if (!process)
                return 0;
        if ((now - process->second_tick) * tick_ns >= 1000000000) {
                process->second_tick = now;
                process->calls = 0;
        }
        return process->calls++ >= cfg->calls_a_second;
}

/* Sends thread's call. The caller holds the thread. */
static __noinline int send_call(__u32 program, struct task_struct *task, struct thread *thread, enum reading reading)
{
        struct ks_counters *c = counters_of(program);
        struct scratch *s = scratch_of(program);
        int full, limited;
        __u32 token = thread->call_token, off = 0, class = KS_CLASS_NONE, sequence;
        struct ks_capture *want = bpf_map_lookup_elem(&captures, &token);

        if (!s || !c || !want)
                return 0;
        thread->postponed = 0;
        __builtin_memcpy(s->call.args, thread->call_args, sizeof(s->call.args));
        if (want->address && !arg(&s->call, want->address))
                return 0; /* sendto on a connected socket: nothing to tell */
        s->header.flags = 0;
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
                __u32 len = arg(&s->call, want->address_len), at = off;

                off = add_user_bytes(s, off, (void *)arg(&s->call, want->address), len, KS_PART_ADDRESS);
                if (off >= at + sizeof(struct ks_part) + 8)
                        class = class_of_address(s, at + sizeof(struct ks_part));
        }
        if (want->words)
                off = add_user_bytes(s, off, (void *)arg(&s->call, want->words), 8, KS_PART_WORDS);
        if (reading == FIRST && want->wanted == KS_WANT_PATIENTLY && s->header.flags & KS_FLAG_UNREADABLE) {
                thread->postponed = 1;
                return 0;
        }
        if (want->path1 && ((struct ks_part *)s->data)->len) /* the first part, and it was readable */
                class = class_of_path(s, sizeof(struct ks_part));
send:
        c->calls++;
        if (s->header.flags & KS_FLAG_TRUNCATED)
                c->calls_truncated++;
        if (s->header.flags & KS_FLAG_UNREADABLE)
                c->calls_unreadable++;
        if (s->header.flags & KS_FLAG_LATE)
                c->calls_late++;
        sequence = c->records++;
        limited = beyond_its_share(task);
        full = crowded(6); /* before the size: the verifier forgets its bounds over a call */
        {
                __u16 flags = s->header.flags;

                fill_header(program, &s->header, KS_KIND_CALL, 0, task, sequence);
                s->header.flags = flags;
        }
        s->header.time_ns = thread->call_ns;
        s->call.token = token;
        s->call.uid = BPF_CORE_READ(task, cred, uid.val);
        s->call.euid = BPF_CORE_READ(task, cred, euid.val);
        s->call.unused = s->call.unused2 = 0;
        if (off > sizeof(s->data))
                off = sizeof(s->data);
        s->header.size = offsetof(struct scratch, data) + off;
        if (limited)
                c->calls_limited++;
        if (limited || full || bpf_ringbuf_output(&ring, s, s->header.size, 0)) {
                c->calls_dropped++;
                thread->flags |= KS_FLAG_LOSSY;
        } else {
                c->calls_sent++;
        }
        append_class(program, c, task, thread, class);
        return 0;
}

/* A thread that executes while others of its process run takes their leader's place, and what is known of the process
 * stands with the leader that then is gone: keep it with this one. */
static __noinline int keep_process(struct task_struct *task)
{
        struct ks_process *process = bpf_task_storage_get(&processes, task->group_leader, 0, 0), *own;

        if (!process)
                return 0;
        own = bpf_task_storage_get(&processes, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
        if (own)
                *own = *process;
        return 0;
}

/* The state of the thread that makes this call, where it isn't in its slot. */
static __noinline struct thread *find_thread(__u64 stack)
{
        struct task_struct *task = bpf_get_current_task_btf();
        struct thread *thread;

        if (!registers_at)
                registers_at = stack - (__u64)task->stack;
        thread = thread_of(task);
        return thread ? thread : new_thread(task);
}

/* Who is ignored makes no tokens. */
static __always_inline void count_ignored(struct ks_counters *c, struct thread *thread)
{
        if (thread->ignored == OWN)
                c->own++;
        else
                thread->excluded_calls++;
}

/* Keeps the arguments of a call that is wanted. */
static __noinline int keep_call(struct bpf_raw_tracepoint_args *ctx, struct thread *thread, __u32 token, __u32 wanted)
{
        struct task_struct *task = bpf_get_current_task_btf();

        thread->call_ns = bpf_ktime_get_boot_ns();
        thread->call_token = token;
        read_args(thread->call_args, (struct pt_regs *)ctx->args[0], token);
        if (wanted == KS_WANT_AT_ONCE && task->group_leader != task)
                keep_process(task);
        return 0;
}

static __always_inline int sys_enter(struct bpf_raw_tracepoint_args *ctx, int direct)
{
        struct ks_counters *c = counters_of(SYS_ENTER);
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        __u64 stack = ctx->args[0];
        struct slot *slot = slot_of(stack);
        struct ks_capture *want;
        struct thread *thread;
        int full, stranger;
        enum scored scored;
        __u32 token;

        if (!c || !cfg)
                return 0;
        c->seen++;
        thread = slot && stack && slot->stack == stack ? &slot->thread : find_thread(stack);
        if (!thread) {
                c->no_storage++;
                return 0;
        }
        stranger = is_stranger(cfg, thread);
        if (thread->ignored && !stranger) {
                count_ignored(c, thread);
                return 0;
        }
        if (take(thread)) {
                c->contended++;
                thread->missed++;
                return 0;
        }
        if (stranger) {
                struct task_struct *task = bpf_get_current_task_btf();

                identify(cfg, task, thread);
                if (slot && slot->stack == stack)
                        bpf_probe_read_kernel(&slot->task, sizeof(slot->task), &task);
                if (thread->ignored) {
                        count_ignored(c, thread);
                        give_back(thread);
                        return 0;
                }
        }
        token = token_of(cfg, slot, stack, ctx->args[1], direct);
        if (thread->hook)
                append_hook(SYS_ENTER, c, bpf_get_current_task_btf(), thread);
        if (thread->postponed)
                send_call(SYS_ENTER, bpf_get_current_task_btf(), thread, AGAIN);
        full = append(thread, token);
        scored = score(cfg, thread);
        if (scored)
                thread->scored_calls++;
        else
                thread->unscored_calls++;
        if (scored == SCORED_OVER)
                tell_over(bpf_get_current_task_btf(), thread);
        if (full)
                close_window(SYS_ENTER, c, bpf_get_current_task_btf(), thread, KS_CAUSE_FULL);

        want = bpf_map_lookup_elem(&captures, &token);
        if (want && want->wanted) {
                keep_call(ctx, thread, token, want->wanted);
                send_call(SYS_ENTER, bpf_get_current_task_btf(), thread, FIRST);
        }
        give_back(thread);
        return 0;
}

/* User space loads the one of these that this kernel can run. */
SEC("raw_tp/sys_enter")
int on_sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
        return sys_enter(ctx, 1);
}

SEC("raw_tp/sys_enter")
int on_sys_enter_old(struct bpf_raw_tracepoint_args *ctx)
{
        return sys_enter(ctx, 0);
}

/* Sends what the thread has, as far as nobody else is doing just that. */
static __always_inline void flush(__u32 program, struct ks_counters *c, struct task_struct *task,
                                  struct thread *thread, __u16 cause)
{
        if (thread->hook && !thread->ignored)
                append_hook(program, c, task, thread);
        if (thread->postponed)
                send_call(program, task, thread, BLIND);
        close_window(program, c, task, thread, cause);
        settle(c, thread);
        if (thread->tid != (__u32)task->pid)
                thread->sequence = 0; /* an exec outside the leader: from here on it counts as the leader's */
}

static __always_inline __u32 session_of(struct task_struct *task)
{
        return BPF_CORE_READ(task, signal, pids[PIDTYPE_SID], numbers[0].nr);
}

static __always_inline __u32 carried(__u32 score, __u16 share)
{
        return (__u64)score * share >> 8;
}

/* What a child process is born with. */
static __always_inline int inherit_process(struct ks_process *parent, struct ks_process *child, int first, __u16 share)
{
        *child = *parent;
        child->score = carried(parent->score, share);
        child->calls = 0;
        child->second_tick = 0;
        child->gone = 0;
        child->flags = parent->flags & ~(KS_PROCESS_SERVED | KS_PROCESS_BY_TERMINAL);
        child->service = 0;
        if (!first && !(parent->flags & KS_PROCESS_LAUNCHER)) {
                int served = parent->flags & KS_PROCESS_SERVED;

                child->service = served ? parent->service : parent->program;
                child->flags |= KS_PROCESS_SERVED | (served ? parent->flags & KS_PROCESS_BY_TERMINAL : 0);
                if (!served && parent->flags & KS_PROCESS_TERMINAL)
                        child->flags |= KS_PROCESS_BY_TERMINAL;
        }
        return 0;
}

SEC("tp_btf/sched_process_fork")
int on_fork(__u64 *ctx)
{
        struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
        struct ks_counters *c = counters_of(FORK);
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        int process_born = child->pid == child->tgid, missing = 0;
        struct thread *from, *to;
        __u32 mean = 0, cusum = 0, score = 0, row_number, sequence;
        struct ks_process *above, *below;
        struct ks_profile *row = 0;
        struct slot *left_over;
        __u64 stack;
        __u16 share = 256;
        struct ks_fork *f;

        if (!c || !cfg)
                return 0;
        from = thread_of(parent);
        if (from) {
                if (process_born) {
                        row_number = from->row;
                        row = bpf_map_lookup_elem(&models, &row_number);
                        share = row ? row->carry_fork : 0;
                }
                mean = carried(from->mean, share);
                cusum = carried(from->cusum, share);
        }
        stack = stack_of(child);
        left_over = slot_of(stack);
        if (mean || cusum || (left_over && stack && left_over->stack == stack)) {
                to = new_thread(child);
                if (to) {
                        to->mean = mean;
                        to->cusum = cusum;
                } else {
                        missing = 1;
                }
        }
        if (process_born) {
                above = bpf_task_storage_get(&processes, parent->group_leader, 0, 0);
                below = above ? bpf_task_storage_get(&processes, child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE) : 0;
                if (below) {
                        inherit_process(above, below, parent->tgid <= 1, share);
                        name_child(above, below);
                        score = below->score;
                } else if (above) {
                        missing = 1;
                }
        }
        c->no_inheritance += missing;
        if (!process_born)
                return 0;
        pass_sentence(parent, child);
        c->lifecycle++;
        sequence = c->records++;
        f = bpf_ringbuf_reserve(&ring, sizeof(*f), 0);
        if (!f) {
                c->lifecycle_dropped++;
                return 0;
        }
        fill_header(FORK, &f->header, KS_KIND_FORK, sizeof(*f), child, sequence);
        f->parent_start_ns = BPF_CORE_READ(parent, group_leader, start_boottime);
        f->parent_tgid = BPF_CORE_READ(parent, tgid);
        f->cgroup = bpf_get_current_cgroup_id();
        f->session = session_of(child);
        f->uid = BPF_CORE_READ(child, cred, uid.val);
        f->euid = BPF_CORE_READ(child, cred, euid.val);
        f->mean = mean;
        f->cusum = cusum;
        f->process = score;
        f->unused = 0;
        bpf_ringbuf_submit(f, 0);
        c->lifecycle_sent++;
        return 0;
}

/* The process has become the program whose hash is given; what it was goes into its lineage. */
static __always_inline void become(struct task_struct *task, struct ks_process *process, __u64 program, __u32 flags)
{
        for (int i = KS_BEFORE - 1; i > 0; i--)
                process->before[i] = process->before[i - 1];
        process->before[0] = process->program;
        if (process->known < KS_BEFORE && (process->known || process->program))
                process->known++;
        process->program = program;
        process->flags = (process->flags & ~(KS_PROCESS_LAUNCHER | KS_PROCESS_TERMINAL)) | flags;
        if (process->flags & KS_PROCESS_BY_TERMINAL && session_of(task) == (__u32)task->tgid) {
                process->flags &= ~(KS_PROCESS_SERVED | KS_PROCESS_BY_TERMINAL);
                process->service = 0;
        }
}

static __always_inline __u32 name_flags(struct scratch *s)
{
        __u32 *leaf, *top, flags = 0;

        top = bpf_map_lookup_elem(&names, &s->hashing.top);
        if (!top || !(*top & KS_NAME_SYSTEM))
                return 0; /* by name, but only where a package manager puts programs: /tmp/sshd launches no services */
        leaf = bpf_map_lookup_elem(&names, &s->hashing.leaf);
        if (leaf && *leaf & KS_NAME_LAUNCHER)
                flags |= KS_PROCESS_LAUNCHER;
        if (leaf && *leaf & KS_NAME_TERMINAL)
                flags |= KS_PROCESS_TERMINAL;
        return flags;
}

/* The thread's scores after an exec, its new row, and the exec token. */
static __noinline int begin_program(struct ks_counters *c, struct task_struct *task, struct thread *thread,
                                    struct scratch *s)
{
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        struct ks_process *process = bpf_task_storage_get(&processes, task->group_leader, 0, 0);
        __u32 row_number = thread->row, lineage, surprise;
        struct ks_profile *row = bpf_map_lookup_elem(&models, &row_number), *by;
        __u16 share = row ? row->carry_exec : 0;

        if (!cfg)
                return 0;
        thread->mean = carried(thread->mean, share);
        thread->cusum = carried(thread->cusum, share);
        if (process)
                process->score = carried(process->score, share);
        forget_history(thread);
        identify(cfg, task, thread);
        s->exec.mean = thread->mean;
        s->exec.cusum = thread->cusum;
        s->exec.process = process ? process->score : 0;
        s->exec.epoch = thread->epoch;
        s->exec.row = thread->row == KS_ROW_NONE ? KS_ROW_NONE : thread->row - cfg->base;
        if (thread->ignored || cfg->stopping) /* its last window may have been swept already: this one nobody would send */
                return 0;
        append(thread, KS_TOKEN_EXEC); /* the window was closed: it can't be full */
        thread->level = 1;             /* every program begins with it */
        c->exec_tokens++;
        if (!cfg->scoring || !process)
                return 0;
        lineage = cfg->base + KS_ROW_LINEAGE;
        by = bpf_map_lookup_elem(&models, &lineage);
        row_number = thread->row;
        row = bpf_map_lookup_elem(&models, &row_number);
        if (!by || !row || !by->order || by->epoch != thread->epoch || row->epoch != thread->epoch)
                return 0;
        surprise = lineage_surprise(by, process);
        accumulate(thread, row, surprise);
        s->exec.surprise = surprise;
        return 0;
}

/* What is known of a process that executes. Nothing, if it was born just before the collector was attached and nobody has
 * told of it yet: then what its parent is. */
static __noinline struct ks_process *process_of(struct task_struct *task)
{
        struct ks_process *process = bpf_task_storage_get(&processes, task->group_leader, 0, 0), *above;
        struct task_struct *parent = task->real_parent;

        if (process)
                return process;
        process = bpf_task_storage_get(&processes, task->group_leader, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
        if (!process || !parent)
                return process;
        above = bpf_task_storage_get(&processes, parent->group_leader, 0, 0);
        if (above) {
                inherit_process(above, process, parent->tgid <= 1, 0);
                name_child(above, process);
        }
        return process;
}

SEC("raw_tp/sched_process_exec")
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
        struct task_struct *task = bpf_get_current_task_btf();
        struct linux_binprm *bprm = (void *)ctx->args[2];
        struct ks_counters *c = counters_of(EXEC);
        struct scratch *s = scratch_of(EXEC);
        struct ks_process *process;
        unsigned long from, to;
        struct thread *thread;
        __u32 off = 0, at, len, flags = 0, program_flags = 0, sequence;
        __u64 program = 0;
        struct file *exe;
        int held = 0;
        long got;

        if (!c || !s)
                return 0;
        thread = thread_of(task);
        if (!thread)
                thread = new_thread(task);
        if (thread && !take(thread)) {
                held = 1;
                flush(EXEC, c, task, thread, KS_CAUSE_EXEC);
        }
        c->lifecycle++;
        s->header.flags = 0;
        exe = BPF_CORE_READ(task, mm, exe_file);
        if (exe) {
                if (!BPF_CORE_READ(exe, f_inode, i_nlink))
                        flags |= KS_FLAG_UNLINKED;
                off = add_path_names(EXEC, off, &exe->f_path, KS_PART_EXE);
                if (!flags && !(s->header.flags & KS_FLAG_TRUNCATED) && ((struct ks_part *)s->data)->kind == KS_PART_EXE) {
                        program = hash_names(EXEC, sizeof(struct ks_part), off - sizeof(struct ks_part));
                        program_flags = name_flags(s);
                }
        }
        off = add_path_names(EXEC, off, &task->fs->pwd, KS_PART_CWD);

        at = begin(s, off, KS_PART_NAME);
        got = bpf_probe_read_kernel_str(&s->data[at & (KS_DATA - 1)], KS_TEXT, BPF_CORE_READ(bprm, filename));
        off = end(s, at, got > 0 ? got & (2 * KS_TEXT - 1) : 0);
        if (BPF_CORE_READ(bprm, interp) != BPF_CORE_READ(bprm, filename)) {
                __u64 script = hash_script(EXEC, at);

                flags |= KS_FLAG_SCRIPT;
                if (script) {
                        program = script;
                        program_flags = 0;
                }
        }

        from = BPF_CORE_READ(task, mm, arg_start);
        to = BPF_CORE_READ(task, mm, arg_end);
        len = to > from ? (to - from > KS_TEXT ? KS_TEXT : to - from) : 0;
        if (to > from && to - from > KS_TEXT)
                flags |= KS_FLAG_TRUNCATED;
        at = begin(s, off, KS_PART_ARGV);
        __asm__ volatile("" : "+r"(len)); /* so that the bound stands where the verifier looks for it */
        len = len > KS_TEXT ? KS_TEXT : len;
        if (bpf_probe_read_user(&s->data[at & (KS_DATA - 1)], len, (void *)from)) {
                flags |= KS_FLAG_UNREADABLE;
                len = 0;
        }
        off = end(s, at, len);

        process = process_of(task);
        s->exec.known = 0;
        s->exec.service = s->exec.before[0] = s->exec.before[1] = 0;
        if (process) {
                become(task, process, program, program_flags);
                name_program(process, exe);
                s->exec.known = process->known;
                s->exec.before[0] = process->before[0];
                s->exec.before[1] = process->before[1];
                s->exec.service = process->flags & KS_PROCESS_SERVED ? process->service : process->program;
        } else {
                c->no_inheritance++;
        }
        s->exec.surprise = KS_NEVER;
        s->exec.mean = s->exec.cusum = s->exec.process = s->exec.epoch = 0;
        s->exec.row = KS_ROW_NONE;
        if (held && thread) {
                begin_program(c, task, thread, s);
                give_back(thread);
        }

        sequence = c->records++;
        flags |= s->header.flags;
        fill_header(EXEC, &s->header, KS_KIND_EXEC, 0, task, sequence);
        s->header.flags = flags;
        s->exec.uid = BPF_CORE_READ(task, cred, uid.val);
        s->exec.euid = BPF_CORE_READ(task, cred, euid.val);
        s->exec.auid = bpf_core_field_exists(task->loginuid) ? BPF_CORE_READ(task, loginuid.val) : (__u32)-1;
        s->exec.session = session_of(task);
        s->exec.cgroup = bpf_get_current_cgroup_id();
        s->exec.program = program;
        if (off > sizeof(s->data))
                off = sizeof(s->data);
        /* The parts follow the larger of struct ks_call and ks_exec: user space skips that much. */
        s->header.size = offsetof(struct scratch, data) + off;
        if (bpf_ringbuf_output(&ring, s, s->header.size, 0)) {
                c->lifecycle_dropped++;
                if (thread)
                        thread->missed++;
        } else {
                c->lifecycle_sent++;
        }
        return 0;
}

static __always_inline void lift_sentence(struct task_struct *task)
{
        struct ks_switch *sw = switch_now();
        struct ks_sentenced key = {};

        if (!sw || !sw->sentences)
                return;
        key.start_ns = BPF_CORE_READ(task, group_leader, start_boottime) / START_STEP * START_STEP;
        key.tgid = task->tgid;
        bpf_map_delete_elem(&sentences, &key);
}

SEC("raw_tp/sched_process_exit")
int on_exit(void *ctx __attribute__((unused)))
{
        struct task_struct *task = bpf_get_current_task_btf();
        struct ks_counters *c = counters_of(EXIT);
        struct ks_process *leader;
        struct thread *thread;
        struct ks_exit *x;
        __u32 sequence;

        if (!c)
                return 0;
        thread = thread_of(task);
        if (thread && !take(thread)) {
                flush(EXIT, c, task, thread, KS_CAUSE_EXIT);
                free_thread(thread, task);
        }
        if (BPF_CORE_READ(task, signal, live.counter) > 0)
                return 0; /* other threads of the process live on */
        /* Threads that end at the same moment have all counted themselves out before the first of them gets here: they
         * all find none alive. One tells; without memory for the mark it is told twice rather than not at all. */
        leader = bpf_task_storage_get(&processes, task->group_leader, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
        if (leader && __sync_lock_test_and_set(&leader->gone, 1))
                return 0;
        lift_sentence(task);
        c->lifecycle++;
        sequence = c->records++;
        x = bpf_ringbuf_reserve(&ring, sizeof(*x), 0);
        if (!x) {
                c->lifecycle_dropped++;
                return 0;
        }
        fill_header(EXIT, &x->header, KS_KIND_EXIT, sizeof(*x), task, sequence);
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
        thread = thread_of(task);
        if (!thread || (!thread->count && !thread->postponed && thread->excluded_calls == thread->excluded_told))
                return 0;
        if (!cfg->stopping && silent_ns(thread) < cfg->idle_ns)
                return 0;
        if (take(thread))
                return 0;
        if (!is_of(thread, task)) {
                give_back(thread);
                return 0;
        }
        settle(c, thread);
        /* It may have woken up since. */
        if (cfg->stopping || silent_ns(thread) >= cfg->idle_ns) {
                if (thread->postponed)
                        send_call(SWEEP, task, thread, BLIND);
                close_window(SWEEP, c, task, thread, cfg->stopping ? KS_CAUSE_STOP : KS_CAUSE_IDLE);
        }
        give_back(thread);
        return 0;
}

SEC("iter/task")
int name_running(struct bpf_iter__task *ctx)
{
        struct task_struct *task = ctx->task;

        if (task && task->pid == task->tgid)
                name_task(task);
        return 0;
}
