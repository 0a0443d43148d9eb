/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Each token's surprise, each thread's and process' scores, and which windows are worth sending: the arithmetic of
 * docs/kernel-scoring.md, where every constant stands. */
#ifndef KSENTINEL_SCORE_H
#define KSENTINEL_SCORE_H

#include "state.h"

#define MIX1 0xff51afd7ed558ccdULL
#define MIX2 0xc4ceb9fe1a85ec53ULL
#define TOKEN_BITS 12
#define HALF 5               /* tokens in each word of a history */
#define DEEPEST 10
#define TRIES 4              /* to change a process' score while other threads change it */

#define LENGTH_SHIFT 8

enum found { NOWHERE = 0xffffffff };

static __always_inline __u64 tokens_mask(__u32 tokens)
{
        return (1ULL << (TOKEN_BITS * tokens)) - 1;
}

/* The surprise of the n-gram of length k that ends a history. */
static __always_inline __u32 look_up(const struct ks_profile *row, __u64 low, __u64 high, __u32 k)
{
        __u64 x;

        if (k > HALF) {
                high &= tokens_mask(k - HALF);
        } else {
                high = 0;
                low &= tokens_mask(k);
        }
        x = (low ^ row->seed0) * MIX1;
        x ^= x >> 32;
        x += high + ((__u64)k << 60);
        x = (x ^ row->seed1) * MIX2;
        return row->surprise[(x >> 48) & row->mask & (KS_ENTRIES - 1)];
}

static __always_inline __u32 at_most(__u32 value, __u32 most)
{
        return value > most ? most : value;
}

/* What a row finds, from the longest context down, and the length of what it found in the bits above; the caller has
 * tried the first lengths already, in vain. */
static __noinline __u32 back_off(const struct ks_profile *row, __u64 low, __u64 high, __u32 k, __u32 tried)
{
        for (__u32 i = 0; i < KS_ORDER; i++) {
                __u32 found;

                if (i < tried)
                        continue;
                if (i >= k)
                        break;
                found = look_up(row, low, high, k - i);
                if (found != KS_NEVER)
                        return at_most(found + row->penalty[i & (KS_ORDER - 1)], KS_SURPRISE) | (k - i) << LENGTH_SHIFT;
        }
        return NOWHERE;
}

/* The surprise of a thread's last token where its row doesn't know the longest n-gram, of length k: seldom. */
static __noinline __u32 surprise_beyond(const struct ks_profile *row, const struct ks_config *cfg,
                                        struct thread *thread, __u32 k)
{
        __u32 base = cfg->base, depth = thread->depth, found = back_off(row, thread->low, thread->high, k, 1);
        struct ks_profile *host;

        thread->level = found == NOWHERE ? 0 : found >> LENGTH_SHIFT;
        if (found != NOWHERE)
                return found & ((1 << LENGTH_SHIFT) - 1);
        if (thread->row == base)
                return row->never;
        host = bpf_map_lookup_elem(&models, &base);
        if (!host)
                return row->never;
        found = back_off(host, thread->low, thread->high, depth < host->order ? depth : host->order, 0);
        found = found == NOWHERE ? host->never : found & ((1 << LENGTH_SHIFT) - 1);
        return at_most(found + row->outside, KS_SURPRISE);
}

static __always_inline void accumulate(struct thread *thread, const struct ks_profile *row, __u32 surprise)
{
        __s64 step = ((__s64)surprise << 16) - (__s64)(__u64)thread->mean;
        __u32 cusum = thread->cusum + surprise, mean;

        mean = thread->mean + (__u32)(step >> (row->decay & 31));
        cusum = cusum > row->drift ? cusum - row->drift : 0;
        cusum = at_most(cusum, KS_SCORE);
        thread->mean = mean;
        thread->cusum = cusum;
        if (mean > thread->peak_mean)
                thread->peak_mean = mean;
        if (cusum > thread->peak_cusum)
                thread->peak_cusum = cusum;
        thread->sum += surprise;
        thread->scored++;
}

/* Adds what a window brings to its process' score, by any of its threads, none of them waiting; returns the score. */
static __always_inline __u32 add_to_process(struct ks_counters *c, struct ks_process *process, __u32 sum, __u64 off)
{
        for (int i = 0; i < TRIES; i++) {
                __u32 old = *(volatile __u32 *)&process->score, new;
                __u64 next = (__u64)old + sum;

                next = next > off ? next - off : 0;
                new = next > KS_SCORE ? KS_SCORE : next;
                if (__sync_val_compare_and_swap(&process->score, old, new) == old)
                        return new;
        }
        c->process_missed++;
        return process->score;
}

/* How many times over its limit a score is, at least 1. */
static __always_inline __u32 times_over(__u32 score, __u32 limit)
{
        return score / (limit ? limit : 1);
}

/* A thread that begins something new: a program, or itself. */
static __always_inline void forget_history(struct thread *thread)
{
        thread->low = thread->high = 0;
        thread->depth = thread->level = 0;
        thread->epoch = 0;
}

/* Sends the thread's tokens so far, or keeps them in the kernel. The caller holds the thread. */
static __noinline int close_window(__u32 program, struct ks_counters *c, struct task_struct *task,
                                   struct thread *thread, __u16 cause)
{
        __u32 missed = *(volatile __u32 *)&thread->missed, worst = 0, score = 0, sequence, row_number = thread->row;
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        struct ks_process *process;
        struct ks_profile *row;
        __u16 count = thread->count;
        __u8 over = 0, choice = KS_CHOICE_UNGATED;
        struct ks_window *w;

        if (!count || !cfg || !c)
                return 0;
        if (missed != thread->missed_told)
                thread->flags |= KS_FLAG_LOSSY;
        thread->missed_told = missed;
        if (cause < KS_CAUSES)
                c->closed[cause]++;
        c->scored += thread->scored_calls;
        c->unscored += thread->unscored_calls;

        row = bpf_map_lookup_elem(&models, &row_number);
        if (thread->scored && row) {
                process = bpf_task_storage_get(&processes, task->group_leader, 0, 0);
                if (process)
                        score = add_to_process(c, process, thread->sum, (__u64)thread->scored * row->drift);
                if (thread->peak_mean > row->mean_limit) {
                        over |= KS_OVER_MEAN;
                        worst = times_over(thread->peak_mean, row->mean_limit);
                }
                if (thread->peak_cusum > row->cusum_limit) {
                        __u32 times = times_over(thread->peak_cusum, row->cusum_limit);

                        over |= KS_OVER_CUSUM;
                        worst = times > worst ? times : worst;
                }
                if (score > row->process_limit) {
                        __u32 times = times_over(score, row->process_limit);

                        over |= KS_OVER_PROCESS;
                        worst = times > worst ? times : worst;
                }
                if (over && process)
                        process->over_ns = bpf_ktime_get_boot_ns();
        }
        if (cfg->gate && thread->scored && !thread->unscored_calls)
                choice = over ? KS_CHOICE_FLAGGED
                              : bpf_get_prandom_u32() < cfg->sample ? KS_CHOICE_SAMPLED : KS_CHOICE_GATED;
        c->choices[choice & (KS_CHOICES - 1)]++;

        if (choice == KS_CHOICE_GATED) {
                c->tokens_gated += count;
                goto done;
        }
        /* Under a flood chance has to wait, then what is just over its limit. */
        sequence = c->records++;
        if ((choice == KS_CHOICE_SAMPLED && crowded(4)) || (choice == KS_CHOICE_FLAGGED && worst < 2 && crowded(5)) ||
            (choice == KS_CHOICE_FLAGGED && worst < 4 && crowded(6))) {
                c->windows_shed++;
                w = 0;
        } else {
                w = crowded(7) ? 0 : bpf_ringbuf_reserve(&ring, sizeof(*w), 0);
        }
        if (!w) {
                c->windows_dropped++;
                c->tokens_dropped += count;
                thread->flags |= KS_FLAG_LOSSY;
                goto done;
        }
        fill_header(program, &w->header, KS_KIND_WINDOW, sizeof(*w), task, sequence);
        w->header.flags = thread->flags;
        w->header.tid = thread->tid;
        w->first_ns = thread->first_ns;
        w->last_ns = w->header.time_ns;
        /* A full window closes at its last call, an exec is one; the others may come long after it. A tick is coarse,
         * so never before the first call. */
        if (cause != KS_CAUSE_FULL && cause != KS_CAUSE_EXEC) {
                __u64 silent = silent_ns(thread), span = w->last_ns - w->first_ns;

                w->last_ns -= silent < span ? silent : span;
        }
        w->sequence = thread->sequence;
        w->count = count;
        w->cause = cause;
        w->epoch = thread->epoch;
        w->row = thread->scored ? row_number - cfg->base : KS_ROW_NONE;
        w->begin_mean = thread->begin_mean;
        w->begin_cusum = thread->begin_cusum;
        w->mean = thread->mean;
        w->cusum = thread->cusum;
        w->peak_mean = thread->peak_mean;
        w->peak_cusum = thread->peak_cusum;
        w->process = score;
        w->scored = thread->scored;
        w->choice = choice;
        w->over = over;
        __builtin_memcpy(w->tokens, thread->tokens, sizeof(w->tokens));
        bpf_ringbuf_submit(w, 0);
        c->windows_sent++;
        c->tokens_sent += count;
        thread->flags = 0;
done:
        thread->sequence++;
        thread->count = 0;
        thread->sum = 0;
        thread->scored = thread->scored_calls = thread->unscored_calls = 0;
        thread->peak_mean = thread->peak_cusum = 0;
        thread->over_told = 0;
        return 0;
}

/* The process remembers that one of its threads is over a limit: at once, for guards ask at any time. */
static __noinline int tell_over(struct task_struct *task, struct thread *thread)
{
        struct ks_process *process = bpf_task_storage_get(&processes, task->group_leader, 0, 0);

        if (process)
                process->over_ns = bpf_ktime_get_boot_ns();
        thread->over_told = 1;
        return 0;
}

/* Whether the thread has just come over a limit, for the first time in this window. */
static __always_inline int is_over(const struct thread *thread, const struct ks_profile *row)
{
        return (thread->mean > row->mean_limit || thread->cusum > row->cusum_limit) && !thread->over_told;
}

/* Adds a token; tells whether the window is full by then. */
static __always_inline int append(struct thread *thread, __u32 token)
{
        __u16 n = thread->count;

        thread->last_tick = bpf_jiffies64();
        if (!n) {
                thread->first_ns = bpf_ktime_get_boot_ns();
                thread->begin_mean = thread->mean;
                thread->begin_cusum = thread->cusum;
        }
        thread->tokens[n & (KS_WINDOW - 1)] = token;
        thread->count = n + 1;
        thread->high = (thread->high << TOKEN_BITS | thread->low >> (TOKEN_BITS * (HALF - 1))) & tokens_mask(HALF);
        thread->low = (thread->low << TOKEN_BITS | (token & (KS_TOKENS - 1))) & tokens_mask(HALF);
        if (thread->depth < DEEPEST)
                thread->depth++;
        return n + 1 >= KS_WINDOW;
}

enum scored { UNSCORED, SCORED, SCORED_OVER };

/* Scores the token that was appended last; tells whether there was a model to do so. */
static __always_inline enum scored score(const struct ks_config *cfg, struct thread *thread)
{
        __u32 at = thread->row, k = thread->level + 1, found;
        struct ks_profile *row;

        if (!cfg->scoring)
                return 0;
        row = bpf_map_lookup_elem(&models, &at);
        if (!row || row->epoch != thread->epoch)
                return 0;
        /* An n-gram that was seen begins with one that was seen: what the last token's search found bounds this one's. */
        k = k < thread->depth ? k : thread->depth;
        k = k < row->order ? k : row->order;
        found = look_up(row, thread->low, thread->high, k);
        if (found == KS_NEVER) {
                found = surprise_beyond(row, cfg, thread, k);
        } else {
                thread->level = k;
                found = at_most(found + row->penalty[0], KS_SURPRISE);
        }
        accumulate(thread, row, found);
        return is_over(thread, row) ? SCORED_OVER : SCORED;
}

/* The surprise of a lineage: to, what it was before, and before that. */
static __always_inline __u32 lineage_surprise(const struct ks_profile *row, const struct ks_process *process)
{
        __u32 n = 1 + process->known;

        n = n < row->order ? n : row->order;
        for (__u32 i = 0; i < 1 + KS_BEFORE; i++) {
                __u32 j = n - i, found;
                __u64 x;

                if (i >= n)
                        break;
                x = (row->seed0 ^ process->program) * MIX1;
                x ^= x >> 32;
                for (__u32 b = 0; b < KS_BEFORE; b++) {
                        if (b + 1 >= j)
                                break;
                        x = (x ^ process->before[b]) * MIX1;
                        x ^= x >> 32;
                }
                x = ((x + ((__u64)j << 60)) ^ row->seed1) * MIX2;
                found = row->surprise[(x >> 48) & row->mask & (KS_ENTRIES - 1)];
                if (found != KS_NEVER)
                        return at_most(found + row->penalty[i & (KS_ORDER - 1)], KS_SURPRISE);
        }
        return row->never;
}

static __always_inline int wanted(__u32 kind, __u64 value)
{
        struct ks_filter key = {.value = value, .kind = kind};

        return bpf_map_lookup_elem(&filters, &key) != 0;
}

/* Whether the thread that runs has become somebody else's since it was identified, where that makes a difference: a daemon gives
 * up its rights without an exec. */
static __noinline int changed_sides(const struct ks_config *cfg, const struct thread *thread)
{
        if (cfg->filters & KS_FILTER_UID && thread->uid != (__u32)bpf_get_current_uid_gid())
                return 1;
        return cfg->filters & KS_FILTER_CGROUP && thread->cgroup != bpf_get_current_cgroup_id();
}

/* Whether the running thread must be identified (anew). */
static __always_inline int is_stranger(const struct ks_config *cfg, const struct thread *thread)
{
        return thread->epoch != cfg->epoch ||
               (cfg->filters & (KS_FILTER_UID | KS_FILTER_CGROUP) && changed_sides(cfg, thread));
}

/* Finds out who the running thread is: its row, and whether anybody wants it. */
static __noinline int identify(const struct ks_config *cfg, struct task_struct *task, struct thread *thread)
{
        struct ks_process *process = bpf_task_storage_get(&processes, task->group_leader, 0, 0);
        struct ks_profile_key key = {.epoch = cfg->epoch};
        __u32 *row = 0;
        int excluded = 0;

        thread->tid = task->pid;
        thread->epoch = cfg->epoch;
        if (cfg->filters & (KS_FILTER_UID | KS_FILTER_CGROUP)) {
                thread->uid = bpf_get_current_uid_gid();
                thread->cgroup = bpf_get_current_cgroup_id();
        }
        if ((__u32)task->tgid == cfg->own_tgid) {
                thread->ignored = OWN;
                thread->row = KS_ROW_NONE;
                return 0;
        }
        if (process) {
                key.program = process->program;
                key.service = process->flags & KS_PROCESS_SERVED ? process->service : process->program;
        }
        if (cfg->scoring && key.program) {
                row = bpf_map_lookup_elem(&profiles, &key);
                if (!row) {
                        key.service = 0;
                        row = bpf_map_lookup_elem(&profiles, &key);
                }
        }
        if (cfg->filters) {
                excluded = 1;
                if (cfg->filters & KS_FILTER_PROGRAM && wanted(KS_FILTER_PROGRAM, key.program))
                        excluded = 0;
                if (cfg->filters & KS_FILTER_UID && wanted(KS_FILTER_UID, thread->uid))
                        excluded = 0;
                if (cfg->filters & KS_FILTER_CGROUP && wanted(KS_FILTER_CGROUP, thread->cgroup))
                        excluded = 0;
                if (cfg->filters & KS_FILTER_FAMILY && process && process->flags & KS_PROCESS_FAMILY)
                        excluded = 0;
        }
        thread->row = !cfg->scoring ? KS_ROW_NONE : row ? *row : cfg->base;
        if (process)
                process->row = thread->row;
        thread->ignored = excluded ? EXCLUDED : WATCHED;
        return 0;
}

/* Lets the counters know of calls that were made while the thread was excluded. */
static __always_inline void settle(struct ks_counters *c, struct thread *thread)
{
        __u64 calls = *(volatile __u64 *)&thread->excluded_calls;

        c->excluded += calls - thread->excluded_told;
        thread->excluded_told = calls;
}

#endif
