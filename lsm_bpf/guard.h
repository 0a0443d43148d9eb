/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What all guards do: facts are found out as far as some way asks for them, the strictest way that speaks decides, and a record
 * says so.
 *
 *   in    policies, name_sets, beginnings, networks, places   what is in force; ksentinel/enforce/guards.py
 *         switches                                            mode, release, heartbeat, the canary
 *         calls                                               system call token -> the bits that ways know it by
 *         cgroup_modes, spared, sentences                     modes of control groups, the never-list, verdicts on processes
 *         threads, slots, processes, models                   the collector's: scores, and who is who
 *   out   ring                                                struct ks_denial
 *         guard_counters                                      one a CPU
 *
 * Fails open: without a policy, without working room, where something can't be told, nothing is denied; a policy that is
 * closed turns the last two round. Both are counted. */
#ifndef KSENTINEL_GUARD_H
#define KSENTINEL_GUARD_H

#define KSENTINEL_GUARDS

#include "state.h"
#include "calls.h"
#include "names.h"

#define EPERM 1
#define SIGKILL 9
#define PF_IO_WORKER 0x10
#define S_IFMT 0170000
#define S_ISUID 04000
#define S_ISGID 02000
#define S_IXGRP 010
#define S_IWGRP 020
#define S_IWOTH 02
#define S_IFREG 0100000
#define TMPFS_MAGIC 0x01021994
#define CGROUP_LEVELS 16
#define CLIMBED 16           /* steps */
#define ROOTS 4              /* file systems mounted on each other at the root */
#define PATH_BITS \
        ((1 << KS_WORD_IMAGE) | (1 << KS_WORD_EXECUTED) | (1 << KS_WORD_ASKED) | (1 << KS_WORD_TARGET) | \
         (1 << KS_WORD_PATH) | (1 << KS_WORD_PLACES))
#define PROCESS_BITS \
        ((1 << KS_WORD_PROGRAM) | (1 << KS_WORD_PARENT) | (1 << KS_WORD_SERVICE) | (1 << KS_WORD_ANCESTORS) | \
         (1 << KS_WORD_WHO))
#define NAME_BITS (PATH_BITS & ~(1 << KS_WORD_PLACES))
#define SCORES (1 << 31)     /* beside the words: whether the score is over its threshold */

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Only the literals 0 and -EPERM ever go back to the kernel: what else a verifier lets through, some kernels take for a warning,
 * others for a pointer. */
#define REFUSE_IF(condition)                                    \
        do {                                                    \
                if (condition) {                                \
                        __asm__ volatile("r0 = -1\nexit\n" ::: "r0", "memory"); \
                        __builtin_unreachable(); /* or a jump that nobody takes may follow: the kernel refuses that */ \
                }                                               \
        } while (0)

enum {
        CALL_OTHER = 62,
        CALL_IO_URING = 63,
};

/* ---- the thread, the process ---- */

/* The collector's state of the thread that runs, if it has one: a slot is known by where the registers of the thread's system
 * calls are saved. */
static __always_inline struct thread *thread_now(struct task_struct *task)
{
        struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
        struct slot *slot;
        __u64 stack = 0;

        /* A pointer that the verifier knows can't be reckoned with: copied, it is a number. */
        bpf_probe_read_kernel(&stack, sizeof(stack), &regs);
        slot = slot_of(stack);
        if (slot && stack && slot->stack == stack)
                return &slot->thread;
        return bpf_task_storage_get(&threads, task, 0, 0);
}

static __always_inline __u64 started(struct task_struct *task)
{
        return task->group_leader->start_boottime / START_STEP * START_STEP;
}

/* The file that a process executes; NULL if it is one of the kernel's own threads. */
static __always_inline struct inode *executable(struct task_struct *task)
{
        struct mm_struct *mm = task->mm;
        struct file *exe = mm ? mm->exe_file : 0;

        return exe ? exe->f_inode : 0;
}

/* Whether the thread is known to do another's work, or has entered the ring itself: then its registers say nothing. */
static __always_inline int in_io_uring(const struct desk *desk)
{
        return !!(desk->holds[KS_WORD_TRAITS] & KS_TRAIT_IO_URING);
}

/* A thread with a ring of its own does what is left over there (what waited, what is linked to that) on its way back to user
 * space, from whatever call it happens to be in. So it may be in that call or in io_uring: ways of both may speak. */
static __noinline int tell_call(struct desk *desk, struct task_struct *task)
{
        struct pt_regs *regs;
        __u64 *bits;
        __u32 token;
        long number;

        if (!desk)
                return 0;
        if (task->flags & PF_IO_WORKER) {
                desk->denial.token = KS_TOKEN_INVALID;
                desk->call = 1ULL << CALL_IO_URING;
        } else {
                regs = (struct pt_regs *)bpf_task_pt_regs(task);
#if defined(__TARGET_ARCH_x86)
                number = regs->orig_ax;
#else
                number = regs->syscallno;
#endif
                token = token_by_abi(number, is_compat(task) ? KS_TOKEN_COMPAT : 0);
                desk->denial.token = token;
                bits = bpf_map_lookup_elem(&calls, &token);
                desk->call = bits && *bits ? *bits : 1ULL << CALL_OTHER;
        }
        if (desk->call & 1ULL << CALL_IO_URING) {
                desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_IO_URING;
                desk->denial.flags |= KS_DENIAL_IO_URING;
        } else if (bpf_core_field_exists(task->io_uring) && task->io_uring) {
                desk->call |= 1ULL << CALL_IO_URING;
        }
        return 0;
}

/* An argument of the system call; a call that came through io_uring has none. */
static __noinline __attribute__((unused)) __u64 call_argument(struct task_struct *task, __u32 token, __u32 number)
{
        struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
        __u64 args[6] = {};

        read_args(args, regs, token);
        switch (number) {
        case 0: return args[0];
        case 1: return args[1];
        case 2: return args[2];
        case 3: return args[3];
        case 4: return args[4];
        }
        return args[5];
}

static __always_inline void number_is(struct desk *desk, __u32 number, __u32 value)
{
        desk->denial.numbers[number] = value;
        desk->denial.known |= 1 << number;
}

/* The flags of the system call, where the hook isn't told them. They stand in a register; openat2's and io_uring's stand in memory
 * that anybody can change meanwhile. */
static __noinline __attribute__((unused)) int tell_flags(struct desk *desk, struct task_struct *task)
{
        struct ks_flags_at *where;
        __u32 token;

        if (!desk || in_io_uring(desk))
                return 0;
        token = desk->denial.token;
        where = bpf_map_lookup_elem(&flag_arguments, &token);
        if (where && where->given)
                number_is(desk, KS_NUMBER_FLAGS, where->value);
        else if (where && where->argument)
                number_is(desk, KS_NUMBER_FLAGS, call_argument(task, token, where->argument - 1));
        return 0;
}

/* Whether the sieve has no place among a file and all that its file system has above it: what a hook is handed can be read at a tenth
 * of what it takes elsewhere, and most files lie below no place. */
static __noinline __attribute__((unused)) int climb(struct desk *desk, const struct ks_policy *policy, __u32 index,
                                                    struct vfsmount *mnt, struct dentry *dentry)
{
        struct ks_place place = {};
        struct dentry *parent;

        if (!desk || !policy || index >= FILES)
                return 0;
        place.device = mnt->mnt_sb->s_dev;
        desk->near = 0;
        for (__u32 i = 0; i < CLIMBED; i++) {
                place.inode = dentry->d_inode->i_ino; /* where there is none yet, 0 is read */
                desk->near |= may_be_there(policy, &place);
                parent = dentry->d_parent;
                if (parent == dentry) {
                        desk->clear[index] = !desk->near;
                        break;
                }
                dentry = parent;
        }
        return 0;
}

static __always_inline void file_at(struct desk *desk, __u32 index, struct vfsmount *mnt, struct dentry *dentry)
{
        desk->mnt[index] = (__u64)mnt;
        desk->dentry[index] = (__u64)dentry;
        desk->clear[index] = 0;
        desk->files = index + 1;
}

/* The same of pointers that the verifier knows. */
static __always_inline void file_is(struct desk *desk, const struct ks_policy *policy, __u32 index, struct vfsmount *mnt,
                                    struct dentry *dentry)
{
        file_at(desk, index, mnt, dentry);
        if (desk->with_places)
                climb(desk, policy, index, mnt, dentry);
}

static __always_inline void traits_of(struct desk *desk, const struct inode *inode)
{
        __u32 mode, traits = 0;

        if (!inode)
                return;
        mode = inode->i_mode;
        if (!inode->i_nlink) {
                traits |= KS_TRAIT_DELETED;
                if (inode->i_sb->s_magic == TMPFS_MAGIC)
                        traits |= KS_TRAIT_MEMFD; /* memfd_create's files, and others of tmpfs whose name is gone */
        }
        if ((mode & S_IFMT) == S_IFREG && mode & S_IWOTH)
                traits |= KS_TRAIT_OTHERS_WRITE;
        if (mode & S_ISUID || (mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP))
                traits |= KS_TRAIT_SETUID;
        if (inode->i_uid.val)
                traits |= KS_TRAIT_NOT_ROOTS;
        desk->holds[KS_WORD_TRAITS] |= traits;
}

/* ---- facts ---- */

struct trying {
        struct desk *desk;
        const struct ks_policy *policy;
        __u32 first;
        __u32 end;
};

static long try_number(__u32 index, struct trying *t)
{
        const struct ks_number_test *test;
        struct desk *desk = t->desk;
        __u32 at = (t->first + index) & (KS_NUMBER_TESTS - 1), value;
        __u64 bit;

        if (t->first + index >= t->end)
                return 1;
        test = &t->policy->tests[at];
        if (test->number >= KS_NUMBERS_ASKED || !(desk->denial.known & 1 << test->number))
                return 0;
        value = desk->denial.numbers[test->number];
        bit = 1ULL << (test->bit & 63);
        desk->known[KS_WORD_NUMBERS] |= bit;
        for (__u32 i = 0; i < KS_RANGES; i++) {
                if (i >= test->count)
                        break;
                if (test->bits ? (value & test->first[i]) == test->second[i]
                               : value >= test->first[i] && value <= test->second[i])
                        desk->holds[KS_WORD_NUMBERS] |= bit;
        }
        return 0;
}

static __always_inline void tell_numbers(struct desk *desk, const struct ks_policy *policy, const struct ks_hook_policy *at,
                                         struct task_struct *task)
{
        struct trying t = {.desk = desk, .policy = policy, .first = at->first_test, .end = at->first_test + at->tests};

        if (at->tests && !(desk->denial.known & 1 << KS_NUMBER_EUID)) /* an execution knows the one that it leads to */
                number_is(desk, KS_NUMBER_EUID, BPF_CORE_READ(task, cred, euid.val));
        if (at->tests)
                bpf_loop(KS_NUMBER_TESTS, try_number, &t, 0);
        desk->unasked = desk->denial.addressed ? policy->networked : 0;
}

static __noinline int tell_networks(struct desk *desk, const struct ks_policy *policy)
{
        __u64 *found;

        if (!desk || !policy)
                return 0;
        desk->unasked = 0;
        desk->network.bits = 8 * (sizeof(__u32) + sizeof(desk->network.address));
        desk->network.epoch = policy->epoch;
        __builtin_memcpy(desk->network.address, desk->denial.address, sizeof(desk->network.address));
        desk->known[KS_WORD_NUMBERS] |= policy->networked;
        found = bpf_map_lookup_elem(&networks, &desk->network);
        if (found)
                desk->holds[KS_WORD_NUMBERS] |= *found;
        return 0;
}

static __noinline int tell_process(struct desk *desk, const struct ks_policy *policy, struct task_struct *task)
{
        struct ks_process *process;
        struct inode *inode;

        if (!desk || !policy)
                return 0;
        process = bpf_task_storage_get(&processes, task->group_leader, 0, 0);
        if (process && process->named.epoch == policy->epoch) {
                desk->known[KS_WORD_PROGRAM] = sets_known(policy, process->named.known[0]);
                desk->known[KS_WORD_PARENT] = sets_known(policy, process->named.known[1]);
                desk->known[KS_WORD_SERVICE] = sets_known(policy, process->named.known[2]);
                desk->known[KS_WORD_ANCESTORS] = sets_known(policy, process->named.known[3]);
                desk->holds[KS_WORD_PROGRAM] = process->named.program & desk->known[KS_WORD_PROGRAM];
                desk->holds[KS_WORD_PARENT] = process->named.parent & desk->known[KS_WORD_PARENT];
                desk->holds[KS_WORD_SERVICE] = process->named.service & desk->known[KS_WORD_SERVICE];
                desk->known[KS_WORD_ANCESTORS] |= process->named.ancestors;
                desk->holds[KS_WORD_ANCESTORS] = process->named.ancestors;
                if (desk->hook == KS_HOOK_BPRM_CREDS_FROM_FILE && !(process->flags & KS_PROCESS_SERVED)) {
                        desk->own_service = 1;
                        desk->known[KS_WORD_SERVICE] = desk->holds[KS_WORD_SERVICE] = 0;
                }
        }
        if (process && process->named.epoch == policy->epoch) {
                /* As it was when it was executed: a process may say later that it executes something else (PR_SET_MM_MAP). */
                desk->known[KS_WORD_WHO] = ~0ULL;
                desk->holds[KS_WORD_WHO] = process->named.who;
        } else {
                inode = executable(task);
                if (inode) {
                        struct ks_place key = {.epoch = policy->epoch};
                        struct ks_places *found;

                        key.inode = inode->i_ino;
                        key.device = inode->i_sb->s_dev;
                        desk->known[KS_WORD_WHO] = ~0ULL;
                        found = may_be_there(policy, &key) ? bpf_map_lookup_elem(&places, &key) : 0;
                        if (found)
                                desk->holds[KS_WORD_WHO] = found->who;
                }
        }
        desk->untold &= ~PROCESS_BITS;
        if (desk->own_service)
                desk->untold |= 1 << KS_WORD_SERVICE;
        return 0;
}

/* Whether the thread or its process is over a threshold, and by which scores. Processes remember for a while that one of their
 * threads was: so it can't be shaken off by a fork, an exec, or by letting the kernel's own threads do the work. */
static __noinline int tell_scores(struct desk *desk, struct task_struct *task)
{
        struct ks_process *process;
        struct thread *thread;
        struct ks_profile *row = 0;
        __u32 at = KS_ROW_NONE;
        __u64 now;

        if (!desk)
                return 0;
        desk->untold &= ~SCORES;
        thread = thread_now(task);
        process = bpf_task_storage_get(&processes, task->group_leader, 0, 0);
        if (thread) {
                at = thread->row;
                desk->denial.mean = thread->mean;
                desk->denial.cusum = thread->cusum;
        } else if (process) {
                at = process->row;
        }
        if (process)
                desk->denial.process = process->score;
        now = bpf_ktime_get_boot_ns();
        if (desk->now.two_key_ns && now - desk->now.heartbeat_ns > desk->now.two_key_ns)
                return 0; /* nobody has scored for so long that these numbers say nothing */
        row = bpf_map_lookup_elem(&models, &at);
        if (row && row->epoch && (!thread || row->epoch == thread->epoch)) {
                if (thread && (thread->mean > row->mean_limit || thread->cusum > row->cusum_limit))
                        desk->anomalous = 1;
                if (process && process->score > row->process_limit)
                        desk->anomalous = 1;
        }
        if (process && process->over_ns && now - process->over_ns < desk->now.over_ns)
                desk->anomalous = 1;
        if (desk->anomalous)
                desk->denial.flags |= KS_DENIAL_ANOMALOUS;
        return 0;
}

static __always_inline void path_word(struct desk *desk, const struct ks_policy *policy, __u32 word)
{
        __u64 known = sets_known(policy, desk->told.known);

        desk->known[word] = known;
        desk->holds[word] = desk->told.sets & known;
}

/* Whether the caller's root is everybody's. It may be mounted on others (an initramfs stays below), none of which adds a name. */
static __noinline int at_root(struct task_struct *task)
{
        struct dentry *root = BPF_CORE_READ(task, fs, root.dentry);
        struct mount *mnt, *up;

        mnt = (void *)BPF_CORE_READ(task, fs, root.mnt) - bpf_core_field_offset(struct mount, mnt);
        for (int i = 0; i < ROOTS; i++) {
                if (root != BPF_CORE_READ(mnt, mnt.mnt_root))
                        return 0;
                up = BPF_CORE_READ(mnt, mnt_parent);
                if (up == mnt)
                        return 1;
                root = BPF_CORE_READ(mnt, mnt_mountpoint);
                mnt = up;
        }
        return 0;
}

/* The path that an execution was asked for by. It counts if it is absolute and the caller's root is everybody's. */
static __noinline int tell_asked(struct desk *desk, const struct ks_policy *policy, struct task_struct *task)
{
        long len;

        if (!desk || !policy)
                return 0;
        desk->told.sets = 0;
        desk->told.known = 0;
        len = bpf_probe_read_kernel_str(desk->data, KS_TEXT, (void *)desk->asked);
        if (len > 1 && len < KS_TEXT && desk->data[0] == '/' && at_root(task)) {
                __u32 begin = KS_TEXT - (len - 1), count = (len - 1) & (KS_TEXT - 1);

                bpf_probe_read_kernel(&desk->text[begin & (KS_TEXT - 1)], count & (KS_TEXT - 1), desk->data);
                read_path(desk, begin, policy->epoch, policy->kinds);
        }
        return 0;
}

/* What the paths of the operation's files say, as far as it is wanted. */
static __noinline int tell_paths(struct desk *desk, const struct ks_policy *policy, struct task_struct *task, __u32 wanted)
{
        __u32 what = 0, deep = 0;
        __u64 known = ~0ULL, holds = 0;

        if (!desk || !policy)
                return 0;
        if (wanted & (NAME_BITS | 1 << KS_WORD_SERVICE))
                what |= TELL_SETS;
        if (wanted & 1 << KS_WORD_PLACES)
                what |= TELL_PLACES;
        desk->known[KS_WORD_PLACES] = desk->files ? ~0ULL : 0;
        for (__u32 i = 0; i < FILES; i++) {
                if (i >= desk->files)
                        break;
                /* Text is read from the file on. */
                tell_file(desk, policy, desk->mnt[i], desk->dentry[i],
                          desk->clear[i] && !(what & TELL_SETS) ? what | TELL_BEYOND : what);
                deep |= desk->told.too_deep;
                desk->holds[KS_WORD_PLACES] |= desk->told.is;
                path_word(desk, policy, KS_WORD_TARGET);
                if (desk->first_unseen)
                        known = 0;
                if (desk->first_unseen && !i && desk->files == FILES)
                        continue; /* its place counts, its name doesn't: an event of the rule has it otherwise */
                holds |= desk->holds[KS_WORD_TARGET];
                known &= desk->known[KS_WORD_TARGET];
        }
        if (deep)
                desk->known[KS_WORD_PLACES] = desk->holds[KS_WORD_PLACES];
        if (!desk->files)
                known = 0;
        desk->holds[KS_WORD_PATH] = holds;
        desk->known[KS_WORD_PATH] = known | holds;
        desk->holds[KS_WORD_EXECUTED] = desk->holds[KS_WORD_TARGET];
        desk->known[KS_WORD_EXECUTED] = desk->known[KS_WORD_TARGET];
        if (desk->own_service) {
                desk->holds[KS_WORD_SERVICE] = desk->holds[KS_WORD_TARGET];
                desk->known[KS_WORD_SERVICE] = desk->known[KS_WORD_TARGET];
        }
        if (desk->asked && wanted & (1 << KS_WORD_IMAGE | 1 << KS_WORD_ASKED)) {
                tell_asked(desk, policy, task);
                path_word(desk, policy, KS_WORD_ASKED);
        }
        desk->holds[KS_WORD_IMAGE] = desk->holds[KS_WORD_EXECUTED] | desk->holds[KS_WORD_ASKED];
        desk->known[KS_WORD_IMAGE] =
                (desk->known[KS_WORD_EXECUTED] & desk->known[KS_WORD_ASKED]) | desk->holds[KS_WORD_IMAGE];
        if (deep && policy->closed) {
                desk->untellable = PATH_BITS;
                desk->denial.flags |= KS_DENIAL_UNTOLD;
        }
        desk->untold &= ~(PATH_BITS | 1 << KS_WORD_SERVICE);
        return 0;
}

/* ---- ways ---- */

/* What only notes comes last, whatever its mode is: it mustn't hide what would be denied. */
static __always_inline __u32 rank_of(__u32 mode, __u32 action)
{
        return mode == KS_MODE_OFF ? 0 : action == KS_ACTION_LOG ? 1 : mode << 2 | action;
}

static __noinline __u32 cgroup_mode(struct desk *desk)
{
        __u32 strictest = KS_MODE_UNNAMED;

        if (!desk)
                return strictest;
        if (desk->cgroup_told)
                return desk->cgroup_mode;
        for (int level = 0; level < CGROUP_LEVELS; level++) {
                __u64 id = bpf_get_current_ancestor_cgroup_id(level);
                __u32 *mode;

                if (!id)
                        break;
                mode = bpf_map_lookup_elem(&cgroup_modes, &id);
                if (mode && *mode > strictest)
                        strictest = *mode;
        }
        desk->cgroup_told = 1;
        desk->cgroup_mode = strictest;
        return strictest;
}

/* Of the modes that are named for the rule and for the control group the strictest; otherwise the host's. The canary proves that
 * one. */
static __always_inline __u32 mode_of(struct desk *desk, __u32 named)
{
        if (desk->now.cgroups && !(desk->holds[KS_WORD_TRAITS] & KS_TRAIT_CANARY)) {
                __u32 by_cgroup = cgroup_mode(desk);

                if (by_cgroup > named)
                        named = by_cgroup;
        }
        if (!named)
                named = desk->mode;
        return desk->now.most && named > desk->now.most ? desk->now.most : named;
}

/* The same of numbers, of which it is networks alone that may not have been asked yet. */
static __always_inline __u64 weigh_numbers(struct desk *desk, const struct ks_way *way)
{
        __u64 need = way->need[KS_WORD_NUMBERS], forbid = way->forbid[KS_WORD_NUMBERS];
        __u64 holds = desk->holds[KS_WORD_NUMBERS], known = desk->known[KS_WORD_NUMBERS];

        desk->against |= ((need & ~holds) | (forbid & (holds | ~known))) & ~desk->unasked;
        return (need | forbid) & desk->unasked;
}

/* What of a word speaks against a way; returns what of it has still to be found out. Without branches, and sums in memory: the
 * verifier would follow each word apart. */
static __always_inline __u64 weigh(struct desk *desk, const struct ks_way *way, __u32 word)
{
        __u64 need = way->need[word], forbid = way->forbid[word];
        __u64 untold = -(__u64)(desk->untold >> word & 1), untellable = -(__u64)(desk->untellable >> word & 1);

        desk->against |= ((need & ~desk->holds[word]) | (forbid & (desk->holds[word] | ~desk->known[word]))) &
                         ~(untold | untellable);
        return (need | forbid) & untold & ~untellable;
}

static long try_way(__u32 index, struct trying *t)
{
        __u32 at = t->first + index, mode, rank;
        struct desk *desk = t->desk;
        const struct ks_way *way;

        if (at >= t->end || at >= KS_WAYS)
                return 1;
        __asm__ volatile("" : "+r"(at)); /* the verifier of 6.1 has lost the bound by now */
        at &= KS_WAYS - 1;
        way = &t->policy->ways[at];
        if (!(way->calls & desk->call))
                return 0;
        /* What is known at once goes first: it settles most ways. */
        if ((way->need[KS_WORD_TRAITS] & ~desk->holds[KS_WORD_TRAITS]) |
            (way->forbid[KS_WORD_TRAITS] & desk->holds[KS_WORD_TRAITS]))
                return 0;
        desk->against = 0;
        desk->of_numbers = desk->of_process = desk->of_names = desk->of_places = 0;
        if (way->flags & KS_WAY_OF_NUMBERS)
                desk->of_numbers = weigh_numbers(desk, way);
        if (way->flags & KS_WAY_OF_PLACES)
                desk->of_places = weigh(desk, way, KS_WORD_PLACES);
        if (desk->against)
                return 0;
        if (way->flags & KS_WAY_OF_PROCESS)
                desk->of_process = weigh(desk, way, KS_WORD_PROGRAM) | weigh(desk, way, KS_WORD_PARENT) |
                                   weigh(desk, way, KS_WORD_SERVICE) | weigh(desk, way, KS_WORD_ANCESTORS);
        if (way->flags & KS_WAY_OF_WHO)
                desk->of_process |= weigh(desk, way, KS_WORD_WHO);
        if (way->flags & KS_WAY_OF_NAMES)
                desk->of_names = weigh(desk, way, KS_WORD_IMAGE) | weigh(desk, way, KS_WORD_EXECUTED) |
                                 weigh(desk, way, KS_WORD_ASKED) | weigh(desk, way, KS_WORD_TARGET) |
                                 weigh(desk, way, KS_WORD_PATH);
        if (desk->against)
                return 0;
        if (way->flags & KS_WAY_ANOMALOUS) {
                if (!(desk->untold & SCORES)) {
                        if (!desk->anomalous)
                                return 0;
                } else {
                        desk->wanted |= SCORES;
                        return 0;
                }
        }
        if (desk->of_numbers | desk->of_process | desk->of_names | desk->of_places) {
                desk->wanted_numbers |= desk->of_numbers;
                desk->wanted_process |= desk->of_process;
                desk->wanted_names |= desk->of_names;
                desk->wanted_places |= desk->of_places;
                return 0;
        }
        mode = mode_of(desk, way->mode);
        if (way->flags & KS_WAY_TAKEN_BACK && mode > KS_MODE_PERMISSIVE)
                mode = KS_MODE_PERMISSIVE;
        rank = rank_of(mode, way->action);
        /* Ways are tried more than once, as more becomes known: the first of equals may speak after the others. */
        if (rank > desk->best_rank || (rank == desk->best_rank && at < desk->best)) {
                desk->best = at;
                desk->best_rank = rank;
                desk->best_mode = mode;
        }
        return 0;
}

static __noinline __u32 try_ways(struct desk *desk, const struct ks_policy *policy, __u32 first, __u32 count)
{
        struct trying t = {.desk = desk, .policy = policy, .first = first, .end = first + count};

        if (!desk || !policy)
                return 0;
        desk->wanted = 0;
        desk->wanted_numbers = desk->wanted_process = desk->wanted_names = desk->wanted_places = 0;
        bpf_loop(count, try_way, &t, 0);
        if (desk->wanted_numbers)
                desk->wanted |= 1 << KS_WORD_NUMBERS;
        if (desk->wanted_process)
                desk->wanted |= PROCESS_BITS;
        if (desk->wanted_names)
                desk->wanted |= NAME_BITS;
        if (desk->wanted_places)
                desk->wanted |= 1 << KS_WORD_PLACES;
        return desk->wanted;
}

/* ---- who is spared ---- */

/* The flags of an executable that is spared, and KS_SPARED_EXECUTED; 0 if it isn't.
 *
 * In a user namespace of its own anybody may say which file the process executes (PR_SET_MM_MAP): there nobody is spared for that. A
 * file that others than root could have written isn't spared either: its number may have been another file's. */
static __always_inline __u32 spared_executable(struct task_struct *task)
{
        struct ks_spared key = {.kind = KS_SPARED_EXECUTABLE};
        struct inode *inode = executable(task);
        __u32 *flags;

        if (!inode || BPF_CORE_READ(task, real_cred, user_ns, level))
                return 0;
        if (inode->i_uid.val || inode->i_mode & (S_IWGRP | S_IWOTH))
                return 0;
        key.a = inode->i_sb->s_dev;
        key.b = inode->i_ino;
        flags = bpf_map_lookup_elem(&spared, &key);
        return flags ? *flags | KS_SPARED_EXECUTED : 0;
}

static __noinline int is_spared(struct desk *desk, struct task_struct *task)
{
        struct ks_spared key = {.kind = KS_SPARED_PROCESS};
        __u32 flags, *process, own, above;

        if (!desk)
                return 0;
        if (task->tgid == 1 || (__u32)task->tgid == desk->now.own_tgid)
                return 1;
        key.a = task->tgid;
        key.b = started(task);
        if (bpf_map_lookup_elem(&spared, &key))
                return 1;
        own = BPF_CORE_READ(task, real_cred, uid.val);
        above = BPF_CORE_READ(task, real_parent, real_cred, uid.val);
        flags = spared_executable(task);
        /* Anybody can start a program with a library of his own in it. */
        if (flags && (!(flags & KS_SPARED_ROOTS) || !own || !above))
                return 1;
        flags = spared_executable(task->real_parent);
        if (flags & KS_SPARED_CHILDREN && (!(flags & KS_SPARED_ROOTS) || !above))
                return 1;
        key.a = BPF_CORE_READ(task, real_parent, tgid);
        key.b = BPF_CORE_READ(task, real_parent, group_leader, start_boottime) / START_STEP * START_STEP;
        process = bpf_map_lookup_elem(&spared, &key);
        return process && *process & KS_SPARED_CHILDREN;
}

/* ---- what is said ---- */

/* Whether the process has had its share of records in this second: the count of outcomes goes on. */
static __always_inline int beyond_its_records(struct desk *desk, struct task_struct *task, __u64 now)
{
        struct ks_process *process = bpf_task_storage_get(&processes, task->group_leader, 0, 0);
        __u32 second = now / 1000000000;

        if (!desk->now.denials_a_second || !process)
                return 0;
        if (process->denials_second != second) {
                process->denials_second = second;
                process->denials = 0;
        }
        return process->denials++ >= desk->now.denials_a_second;
}

static __noinline int say(struct desk *desk, const struct ks_policy *policy, struct task_struct *task)
{
        struct ks_guard_counters *c = bpf_map_lookup_elem(&guard_counters, &zero);
        struct thread *thread = thread_now(task);
        __u64 now = bpf_ktime_get_boot_ns();
        __u32 at = 0, sequence;

        if (!desk || !policy || !c)
                return 0;
        __sync_fetch_and_add(&c->outcomes[desk->denial.outcome < KS_OUTCOMES ? desk->denial.outcome : 0], 1);
        if (thread && desk->denial.outcome != KS_OUTCOME_SPARED && !(desk->denial.flags & KS_DENIAL_CANARY))
                thread->hook = desk->hook; /* a token, at the thread's next call */
        if (!(desk->denial.flags & KS_DENIAL_CANARY) && beyond_its_records(desk, task, now)) {
                __sync_fetch_and_add(&c->records_limited, 1);
                return 0;
        }
        if (desk->untold & SCORES)
                tell_scores(desk, task);
        for (__u32 i = 0; i < FILES; i++) {
                __u32 begin, len;

                if (i >= desk->files)
                        break;
                begin = tell_file(desk, policy, desk->mnt[i], desk->dentry[i], TELL_TEXT);
                if (desk->told.too_deep)
                        desk->denial.flags |= KS_DENIAL_CUT;
                begin = begin > KS_TEXT ? KS_TEXT : begin;
                len = KS_TEXT - begin;
                len = len > KS_TEXT ? KS_TEXT : len;
                at &= 2 * KS_TEXT - 1;
                if (at > KS_TEXT)
                        break;
                bpf_probe_read_kernel(&desk->data[at], len, &desk->text[begin & (KS_TEXT - 1)]);
                desk->denial.lengths[i] = len;
                at += len;
        }
        sequence = __sync_fetch_and_add(&c->sequence, 1);
        {
                struct ks_header *h = &desk->denial.header;

                h->kind = KS_KIND_DENIAL;
                h->flags = 0;
                h->time_ns = now;
                h->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
                h->tgid = task->tgid;
                h->tid = task->pid;
                h->sequence = sequence;
                h->cpu = bpf_get_smp_processor_id();
                h->program = GUARD;
                h->unused = 0;
        }
        desk->denial.epoch = policy->epoch;
        desk->denial.hook = desk->hook;
        desk->denial.uid = BPF_CORE_READ(task, cred, uid.val);
        desk->denial.euid = BPF_CORE_READ(task, cred, euid.val);
        desk->denial.traits = desk->holds[KS_WORD_TRAITS];
        desk->denial.cgroup = bpf_get_current_cgroup_id();
        at &= 2 * KS_TEXT - 1;
        at = at > 2 * KS_TEXT - 1 ? 2 * KS_TEXT - 1 : at;
        desk->denial.header.size = sizeof(desk->denial) + at;
        if (bpf_ringbuf_output(&ring, &desk->denial, sizeof(desk->denial) + at, 0))
                __sync_fetch_and_add(&c->records_dropped, 1);
        else
                __sync_fetch_and_add(&c->records_sent, 1);
        return 0;
}

/* What is done, now that the strictest way is known; whether the operation is refused. */
static __noinline int conclude(struct desk *desk, const struct ks_policy *policy, struct task_struct *task)
{
        __u32 action, mode, refused = 0, best;
        struct ks_denial *denial;

        if (!desk || !policy)
                return 0;
        denial = &desk->denial;
        best = desk->best;
        if (desk->sentenced) {
                denial->rule = desk->sentence.rule;
                denial->kind = desk->sentence.kind;
                denial->flags |= KS_DENIAL_SENTENCE;
                action = desk->sentence.kind == KS_SENTENCE_KILL ? KS_ACTION_KILL : KS_ACTION_DENY;
                mode = desk->sentence.mode;
                denial->way = KS_WAYS;
        } else {
                if (best >= KS_WAYS)
                        return 0;
                denial->rule = policy->ways[best].rule;
                denial->way = best;
                if (!(policy->ways[best].calls & desk->call & ~(1ULL << CALL_IO_URING)))
                        denial->flags |= KS_DENIAL_IO_URING; /* of the call that the thread is in it doesn't speak */
                action = policy->ways[best].action;
                mode = desk->best_mode;
        }
        denial->action = action;
        denial->mode = mode;
        if (desk->holds[KS_WORD_TRAITS] & KS_TRAIT_CANARY) {
                denial->flags |= KS_DENIAL_CANARY;
                denial->nonce = desk->now.canary_nonce;
        } else if (action != KS_ACTION_LOG && is_spared(desk, task)) {
                denial->outcome = KS_OUTCOME_SPARED;
                goto say;
        }
        if (action == KS_ACTION_LOG) {
                denial->outcome = KS_OUTCOME_LOGGED;
        } else if (mode != KS_MODE_ENFORCE) {
                denial->outcome = KS_OUTCOME_WOULD_DENY;
        } else if (desk->now.released ||
                   (desk->now.hold_ns && bpf_ktime_get_boot_ns() - desk->now.heartbeat_ns > desk->now.hold_ns)) {
                denial->outcome = KS_OUTCOME_RELEASED;
        } else {
                denial->outcome = KS_OUTCOME_DENIED;
                refused = 1;
                if (action == KS_ACTION_KILL) {
                        if (!bpf_send_signal(SIGKILL))
                                denial->flags |= KS_DENIAL_KILLED;
                }
        }
say:
        say(desk, policy, task);
        return refused;
}

static __always_inline void find_sentence(struct desk *desk, struct task_struct *task)
{
        struct ks_sentenced key = {.start_ns = started(task), .tgid = task->tgid};
        struct ks_sentence *sentence = bpf_map_lookup_elem(&sentences, &key);

        if (!sentence || bpf_ktime_get_boot_ns() >= sentence->until_ns)
                return;
        desk->sentence = *sentence;
        desk->sentence.mode = mode_of(desk, sentence->mode);
        desk->sentenced = desk->sentence.mode != KS_MODE_OFF;
}

/* A process whose sentence ends it doesn't get to do anything. Which operations a quarantine is about, hooks say. */
enum quarantine { FREE, CONFINED };

/* ---- the two ends of every guard ---- */

/* A desk with what is known at once; NULL if there is nothing to decide here. */
static __always_inline struct desk *begin_guard(__u32 hook, struct task_struct *task, const struct ks_policy **policy)
{
        const struct ks_policy *now = policy_now();
        struct ks_switch *sw = switch_now();
        struct desk *desk;
        __u32 canary;

        if (!now || !sw)
                return 0;
        canary = sw->canary_tid == (__u32)task->pid && sw->canary_hook == hook;
        /* The first way at each hook is the canary's: most operations, at most hooks, end here. */
        if (now->hooks[hook].count <= !canary && !sw->sentences)
                return 0;
        desk = sit_down();
        if (!desk)
                return 0;
        *policy = now;
        desk->hook = hook;
        desk->with_places = !!(now->hooks[hook].words & 1 << KS_WORD_PLACES);
        desk->now = *sw;
        desk->mode = desk->now.mode;
        __builtin_memset(desk->holds, 0, sizeof(desk->holds));
        __builtin_memset(desk->known, 0, sizeof(desk->known));
        __builtin_memset(&desk->denial, 0, sizeof(desk->denial));
        desk->known[KS_WORD_TRAITS] = ~0ULL;
        desk->untold = PATH_BITS | PROCESS_BITS | SCORES;
        desk->untellable = desk->files = desk->first_unseen = desk->own_service = 0;
        desk->asked = 0;
        desk->anomalous = desk->cgroup_told = desk->sentenced = 0;
        desk->best = KS_WAYS;
        desk->best_rank = 0;
        if (canary)
                desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_CANARY;
        tell_call(desk, task);
        return desk;
}

/* Whether the operation is refused. */
static __noinline int decide(struct desk *desk, const struct ks_policy *policy, struct task_struct *task,
                             enum quarantine quarantine)
{
        __u32 hook, wanted, first, count, refused = 0;

        if (!desk || !policy)
                return 0;
        hook = desk->hook;
        if (hook >= KS_HOOKS)
                return 0;
        if (desk->now.sentences) {
                find_sentence(desk, task);
                if (desk->sentenced && quarantine == FREE && desk->sentence.kind != KS_SENTENCE_KILL)
                        desk->sentenced = 0;
        }
        first = policy->hooks[hook].first;
        count = policy->hooks[hook].count;
        /* A sentence that is only tried out must not stand before a way that is in earnest. */
        if (count && !(desk->sentenced && desk->sentence.mode == KS_MODE_ENFORCE)) {
                __u32 ordinary = !(desk->holds[KS_WORD_TRAITS] & KS_TRAIT_CANARY);

                COUNT(evaluated);
                first += ordinary; /* the first one is the canary's */
                count -= ordinary;
                tell_numbers(desk, policy, &policy->hooks[hook], task);
                /* From what costs little to what costs more, as long as some way may still speak. A path comes last. */
                wanted = try_ways(desk, policy, first, count);
                if (wanted & SCORES) {
                        tell_scores(desk, task);
                        wanted = try_ways(desk, policy, first, count);
                }
                if (wanted & 1 << KS_WORD_NUMBERS) {
                        tell_networks(desk, policy);
                        wanted = try_ways(desk, policy, first, count);
                }
                if (wanted & PROCESS_BITS && desk->untold & 1 << KS_WORD_PROGRAM) {
                        tell_process(desk, policy, task);
                        /* Places cost hardly more than to ask whether they are still wanted. */
                        if (!(wanted & 1 << KS_WORD_PLACES) || wanted & NAME_BITS)
                                wanted = try_ways(desk, policy, first, count);
                }
                if (wanted) {
                        tell_paths(desk, policy, task, wanted);
                        try_ways(desk, policy, first, count);
                }
        }
        if (desk->sentence.mode != KS_MODE_ENFORCE && desk->best_rank >= KS_MODE_ENFORCE << 2)
                desk->sentenced = 0;
        if (desk->sentenced || desk->best_rank)
                refused = conclude(desk, policy, task);
        stand_up(desk);
        return refused;
}

#endif
