/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Which sets of names a path is in, and which protected places it lies in: what policies compare. Shared by the guards, which ask
 * it of an operation's files, and the collector, which asks it of each program once, when it is executed. */
#ifndef KSENTINEL_NAMES_H
#define KSENTINEL_NAMES_H

#include "state.h"
#include "paths.h"

#define DESKS 4              /* a CPU: guards may interrupt each other, so each sits at a desk of its own */
#define FILES 2              /* of one operation */
#define START_STEP 10000000ULL /* user space knows when a process started by hundredths of a second */

/* What a path came to. */
struct told {
        __u64 sets;          /* sets of names that it is in */
        __u64 is;            /* places */
        __u64 who;
        __u32 known;         /* enum ks_told */
        __u32 too_deep;
};

/* The way up from a file to the root. */
struct ascent {
        __u64 mnt;
        __u64 dentry;
        __u64 root;          /* of this mount */
        __u64 up;            /* the mount that it is on; where */
        __u64 mountpoint;
        __u32 device;        /* of all that is mounted here */
        __u32 at;            /* where the text begins */
        __u32 epoch;
        __u32 steps;
        __u32 with_text;
        __u32 with_places;
        __u32 done;
        __u32 adrift;
        __u32 beyond;        /* above a mount's root: directories that this mount doesn't show */
};

/* A path, read from its end. */
struct spelling {
        __u64 folded;
        __u64 cased;
        __u32 at;            /* one behind the byte to read next */
        __u32 begin;
        __u32 kinds;
        __u32 slashes;
        __u32 name;          /* bytes of the name so far */
        __u32 dots;
        __u32 odd;           /* it makes detours */
        __u32 wide;          /* it has bytes outside ASCII */
};

/* Where a guard works. It stands in a map: what a task does must survive that another one interrupts it, and a stack is too
 * small for a path. */
struct desk {
        __u32 busy;
        __u32 hook;
        __u64 call;          /* bits of the system call, as in ks_way.calls */
        __u64 holds[KS_WORDS];
        __u64 known[KS_WORDS];
        __u32 untold;        /* bits: words that nobody has looked for yet */
        __u32 wanted;        /* bits: such words that ways which may still speak ask for */
        __u64 unasked;       /* of numbers: what networks decide, while nobody has asked them */
        __u64 against;       /* what speaks against the way being tried */
        __u64 of_numbers;    /* ... and what of it has still to be found out */
        __u64 of_process;
        __u64 of_names;
        __u64 of_places;
        __u64 wanted_numbers; /* the same of all ways that may still speak */
        __u64 wanted_process;
        __u64 wanted_names;
        __u64 wanted_places;
        __u32 untellable;    /* bits: words that can't be told, and the policy is closed */
        __u32 with_places;   /* some way here asks for places */
        __u32 near;          /* there may be one on the way up */
        __u32 clear[FILES];  /* there is none in the file's own file system */
        __u32 files;
        __u32 first_unseen;  /* of two files only the second has a path at this hook */
        __u64 mnt[FILES];
        __u64 dentry[FILES];
        __u64 asked;         /* an execution: the path as it was asked for */
        __u32 own_service;   /* the process is its own service, and about to become the file executed */
        __u32 anomalous;
        __u32 scores_told;
        __u32 mode;          /* of the host, when this run began */
        __u32 best;          /* the way that speaks loudest; KS_WAYS: none */
        __u32 best_rank;
        __u32 best_mode;
        __u32 cgroup_mode;
        __u32 cgroup_told;
        __u32 sentenced;
        struct ks_sentence sentence;
        struct ks_switch now;
        struct told told;
        struct ascent ascent;
        struct spelling spelling;
        struct ks_name_key name;
        struct ks_beginning beginning;
        struct ks_network network;
        /* A path, root first, ending at KS_TEXT; the last name may be written beyond it for a moment. */
        __u8 text[KS_TEXT + KS_NAME];
        struct ks_denial denial;
        __u8 data[FILES * KS_TEXT + KS_NAME];
};

struct {
        __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
        __uint(max_entries, DESKS);
        __type(key, __u32);
        __type(value, struct desk);
} desks SEC(".maps");

struct policy_map {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, 1);
        __type(key, __u32);
        __type(value, struct ks_policy);
} first_policy SEC(".maps"), second_policy SEC(".maps");

/* The policy in force; the other map is free for the next one. They are exchanged as a whole: a program that runs has either the old
 * policy or the new one. Both are made with the object: 6.1 takes none in their place that was made without its BTF. */
struct {
        __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
        __uint(max_entries, 1);
        __type(key, __u32);
        __array(values, struct policy_map);
} policies SEC(".maps") = {.values = {&first_policy}};

struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, 1);
        __uint(map_flags, BPF_F_MMAPABLE);
        __type(key, __u32);
        __type(value, struct ks_switch);
} switches SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 131072);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, struct ks_name_key);
        __type(value, __u64);
} name_sets SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_LPM_TRIE);
        __uint(max_entries, 16384);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, struct ks_beginning);
        __type(value, __u64);
} beginnings SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 131072);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, struct ks_place);
        __type(value, struct ks_places);
} places SEC(".maps");

/* A verdict on a process, and so on those that it forks from then on. */
struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 65536);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, struct ks_sentenced);
        __type(value, struct ks_sentence);
} sentences SEC(".maps");

/* What only guards ask for stands here all the same: so the collector's object has all maps, and all themes share them. */
struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, KS_TOKENS);
        __type(key, __u32);
        __type(value, __u64);
} calls SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_LPM_TRIE);
        __uint(max_entries, 65536);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, struct ks_network);
        __type(value, __u64);
} networks SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 1024);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, __u64);
        __type(value, __u32);
} cgroup_modes SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 4096);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, struct ks_spared);
        __type(value, __u32);
} spared SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, KS_TOKENS);
        __type(key, __u32);
        __type(value, struct ks_flags_at);
} flag_arguments SEC(".maps");

/* Who ran already when the policy came, as user space knows it: whose child each process is, and on whose behalf. */
struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 65536);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, struct ks_sentenced);
        __type(value, struct ks_named);
} introduced SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
        __uint(max_entries, 1);
        __type(key, __u32);
        __type(value, struct ks_guard_counters);
} guard_counters SEC(".maps");

#define COUNT(counter)                                                                     \
        do {                                                                               \
                struct ks_guard_counters *counters_ = bpf_map_lookup_elem(&guard_counters, &zero); \
                if (counters_)                                                             \
                        __sync_fetch_and_add(&counters_->counter, 1);                      \
        } while (0)

static __always_inline const struct ks_policy *policy_now(void)
{
        void *current = bpf_map_lookup_elem(&policies, &zero);

        return current ? bpf_map_lookup_elem(current, &zero) : 0;
}

static __always_inline struct ks_switch *switch_now(void)
{
        return bpf_map_lookup_elem(&switches, &zero);
}

#ifdef KSENTINEL_GUARDS
/* Where the kernel itself may be interrupted, any number of threads can be made to wait in a guard, each with a desk of this
 * CPU. Who finds none left gets one of its own, which it then keeps: otherwise enough threads would open every guard. For the
 * collector, which only names programs, the verifier has no room to look at this. */
struct {
        __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
        __uint(map_flags, BPF_F_NO_PREALLOC);
        __type(key, int);
        __type(value, struct desk);
} own_desks SEC(".maps");
#endif

/* A desk that nobody else sits at; NULL, and counted, if there is none. */
static __always_inline struct desk *sit_down(void)
{
        struct desk *desk;

        for (__u32 i = 0; i < DESKS; i++) {
                __u32 at = i;

                desk = bpf_map_lookup_elem(&desks, &at);
                if (desk && !__sync_lock_test_and_set(&desk->busy, 1))
                        return desk;
        }
#ifdef KSENTINEL_GUARDS
        desk = bpf_task_storage_get(&own_desks, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
        if (desk && !__sync_lock_test_and_set(&desk->busy, 1))
                return desk;
#endif
        COUNT(no_room);
        return 0;
}

static __always_inline void stand_up(struct desk *desk)
{
        __sync_lock_test_and_set(&desk->busy, 0);
}

static __always_inline __u64 sets_known(const struct ks_policy *policy, __u32 known)
{
        return (known & KS_TOLD ? policy->cased : 0) | (known & KS_TOLD_ASCII ? policy->folded : 0);
}

/* ---- from a file to its path ---- */

/* Whether what is mounted there has no path: open_tree() and fsmount() give mounts that are known by a descriptor alone, in a
 * namespace without a number. */
static __always_inline int nowhere(struct mnt_namespace *ns)
{
        if (no_namespace(ns))
                return 1;
        if (bpf_core_field_exists(ns->seq))
                return !BPF_CORE_READ(ns, seq);
        if (bpf_core_field_exists(ns->ns.ns_id))
                return !BPF_CORE_READ(ns, ns.ns_id);
        return 0;
}

/* What changes from step to step stands in the desk: the verifier doesn't follow values there, and so is soon through. */
struct working {
        struct desk *desk;
        const struct ks_policy *policy;
};

/* Where a field lies behind another one. Both are constants to the verifier, and so is what follows from them. */
#define BEHIND(type, first, field) (bpf_core_field_offset(type, field) - bpf_core_field_offset(type, first))

/* Kernels have what is asked of a mount and of a name side by side: then one reading does. */
static __always_inline void enter_mount(struct ascent *a, struct mount *mnt)
{
        __u64 found[4]; /* parent, mountpoint, root, super block */
        struct super_block *block;

        if (BEHIND(struct mount, mnt_parent, mnt_mountpoint) == 8 && BEHIND(struct mount, mnt_parent, mnt.mnt_root) == 16 &&
            BEHIND(struct mount, mnt_parent, mnt.mnt_sb) == 24) {
                bpf_probe_read_kernel(found, sizeof(found), (void *)mnt + bpf_core_field_offset(struct mount, mnt_parent));
        } else {
                found[0] = (__u64)BPF_CORE_READ(mnt, mnt_parent);
                found[1] = (__u64)BPF_CORE_READ(mnt, mnt_mountpoint);
                found[2] = (__u64)BPF_CORE_READ(mnt, mnt.mnt_root);
                found[3] = (__u64)BPF_CORE_READ(mnt, mnt.mnt_sb);
        }
        a->mnt = (__u64)mnt;
        a->up = found[0];
        a->mountpoint = found[1];
        a->root = found[2];
        block = (void *)found[3];
        a->device = BPF_CORE_READ(block, s_dev);
}

struct name_read {
        __u64 parent;
        __u32 hash;
        __u32 len;
        __u64 name;
        __u64 inode;
};

static __always_inline void read_dentry(struct name_read *found, struct dentry *dentry)
{
        if (BEHIND(struct dentry, d_parent, d_name.len) == 12 && BEHIND(struct dentry, d_parent, d_name.name) == 16 &&
            BEHIND(struct dentry, d_parent, d_inode) == 24) {
                bpf_probe_read_kernel(found, sizeof(*found), (void *)dentry + bpf_core_field_offset(struct dentry, d_parent));
        } else {
                found->parent = (__u64)BPF_CORE_READ(dentry, d_parent);
                found->len = BPF_CORE_READ(dentry, d_name.len);
                found->name = (__u64)BPF_CORE_READ(dentry, d_name.name);
                found->inode = (__u64)BPF_CORE_READ(dentry, d_inode);
        }
}

/* Whether the places may have this one: nearly all that are asked for they don't, and a look at one bit is a tenth of a look-up. */
static __always_inline int may_be_there(const struct ks_policy *policy, const struct ks_place *place)
{
        __u64 bit = (place->inode ^ (__u64)place->device << 32) * KS_SIEVE_FACTOR >> KS_SIEVE_SHIFT;
        __u32 at = bit >> 6;

        __asm__ volatile("" : "+r"(at)); /* the mask has to stay: 6.1 follows no shifts */
        at &= KS_SIEVE - 1;
        return policy->sieve[at] >> (bit & 63) & 1;
}

static long ascend(__u32 index __attribute__((unused)), struct working *w)
{
        struct desk *desk = w->desk;
        struct ascent *a = &desk->ascent;
        struct dentry *dentry = (void *)a->dentry;
        struct mount *mnt = (void *)a->mnt;
        struct name_read read = {};

        read_dentry(&read, dentry);
        if (a->with_places) {
                struct inode *inode = (void *)read.inode;

                if (inode) {
                        struct ks_place key = {.epoch = a->epoch};
                        struct ks_places *found;

                        key.inode = BPF_CORE_READ(inode, i_ino);
                        key.device = a->device;
                        found = may_be_there(w->policy, &key) ? bpf_map_lookup_elem(&places, &key) : 0;
                        if (found) {
                                desk->told.is |= found->under;
                                if (!a->steps) {
                                        desk->told.is |= found->is;
                                        desk->told.who |= found->who;
                                }
                        }
                        a->steps++; /* a name that isn't there yet stands for the directory that it comes into */
                }
        }
        if (a->beyond || (__u64)dentry == a->root) {
                __u64 up = a->up;

                /* Only a part may be mounted here: what lies above it is no part of the path, but the file is below it all the
                 * same. Otherwise a bind mount of a directory's subdirectory would lead past the directory. */
                if (a->with_places && (__u64)dentry != read.parent) {
                        a->beyond = 1;
                        a->dentry = read.parent;
                        return 0;
                }
                a->beyond = 0;
                if (up == a->mnt || !up) {
                        a->done = 1;
                        a->adrift = nowhere(BPF_CORE_READ(mnt, mnt_ns));
                        return 1;
                }
                a->dentry = a->mountpoint;
                enter_mount(a, (void *)up);
                return 0;
        }
        if ((__u64)dentry == read.parent) { /* no tree above: a memfd */
                a->done = a->adrift = 1;
                return 1;
        }
        if (a->with_text) {
                __u32 len = read.len & (KS_NAME - 1), at = a->at;

                if (at < len + 1)
                        return 1; /* longer than a path may be */
                at -= len;
                bpf_probe_read_kernel(&desk->text[at & (KS_TEXT - 1)], len, (void *)read.name);
                at--;
                desk->text[at & (KS_TEXT - 1)] = '/';
                a->at = at;
        }
        a->dentry = read.parent;
        return 0;
}

/* ---- from a path to its sets ---- */

/* ASCII letters without regard to case; without a branch, which the verifier would follow for each byte. */
static __always_inline __u32 folded(__u32 byte)
{
        return byte | ((('A' - 1 - byte) & (byte - 'Z' - 1)) >> 31) << 5;
}

static __noinline int find_name(struct desk *desk, __u32 kind)
{
        struct spelling *r = &desk->spelling;
        struct ks_name_key *key = &desk->name;
        __u64 *sets;

        if (r->kinds & 1 << kind) {
                key->hash = mixed(r->folded);
                key->kind = kind;
                sets = bpf_map_lookup_elem(&name_sets, key);
                if (sets)
                        desk->told.sets |= *sets;
        }
        if (r->kinds & 1 << (kind + KS_SPELLED_CASED)) {
                key->hash = mixed(r->cased);
                key->kind = kind + KS_SPELLED_CASED;
                sets = bpf_map_lookup_elem(&name_sets, key);
                if (sets)
                        desk->told.sets |= *sets;
        }
        return 0;
}

static long read_byte(__u32 index __attribute__((unused)), struct working *w)
{
        struct desk *desk = w->desk;
        struct spelling *r = &desk->spelling;
        __u32 byte;

        if (r->at <= r->begin)
                return 1;
        r->at--;
        byte = desk->text[r->at & (KS_TEXT - 1)];
        r->cased = (r->cased ^ byte) * FNV;
        r->folded = (r->folded ^ folded(byte)) * FNV;
        r->wide |= byte & 0x80;
        if (byte != '/') {
                r->dots += byte == '.';
                r->name++;
                return 0;
        }
        r->odd |= r->name == 0 || (r->name == r->dots && r->name < 3);
        r->name = r->dots = 0;
        if (r->slashes < KS_SUFFIXES)
                find_name(desk, r->slashes);
        r->slashes++;
        return 0;
}

/* Of the bytes that aren't ASCII, folding would take tables: such a path is known to cased sets alone. Sets of both kinds are
 * found here, and those of the kind that isn't known are left away by the caller's mask. */
static __always_inline void find_beginning(struct desk *desk, __u32 begin, __u32 epoch, __u32 cased)
{
        __u32 len = KS_TEXT - begin;
        __u64 *sets;

        len = len > KS_PREFIX ? KS_PREFIX : len;
        desk->beginning.epoch = epoch;
        desk->beginning.cased = cased;
        desk->beginning.bits = 8 * (sizeof(__u32) + 1 + len);
        bpf_probe_read_kernel(desk->beginning.path, KS_PREFIX, &desk->text[begin & (KS_TEXT - 1)]);
        if (!cased) {
                for (__u32 i = 0; i < KS_PREFIX; i++)
                        desk->beginning.path[i] = folded(desk->beginning.path[i]);
        }
        sets = bpf_map_lookup_elem(&beginnings, &desk->beginning);
        if (sets)
                desk->told.sets |= *sets;
}

/* The sets of the path in the text from begin on, if it is one without detours. */
static __noinline int read_path(struct desk *desk, __u32 begin, __u32 epoch, __u32 kinds)
{
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        struct working w = {.desk = desk};
        struct spelling *r;

        if (!cfg || !desk || begin >= KS_TEXT)
                return 0;
        r = &desk->spelling;
        r->at = KS_TEXT;
        r->begin = begin;
        r->kinds = kinds;
        r->folded = r->cased = cfg->path_seed;
        r->slashes = r->name = r->dots = r->odd = r->wide = 0;
        desk->name.epoch = epoch;
        bpf_loop(KS_TEXT, read_byte, &w, 0);
        if (r->odd && begin != KS_TEXT - 1)
                return 0;
        find_name(desk, KS_SPELLED_EXACT);
        if (kinds & 1 << KS_SPELLED_PREFIX)
                find_beginning(desk, begin, epoch, 0);
        if (kinds & 1 << (KS_SPELLED_PREFIX + KS_SPELLED_CASED))
                find_beginning(desk, begin, epoch, 1);
        desk->told.known = KS_TOLD | (r->wide ? 0 : KS_TOLD_ASCII);
        return 0;
}

enum telling {
        TELL_TEXT = 1,       /* leave the path in the text */
        TELL_SETS = 2,       /* ... and find the sets of names that it is in */
        TELL_PLACES = 4,
        TELL_BEYOND = 8,     /* places: begin where its file system is mounted */
};

/* What is to be said of a file, enum telling: into desk->told. Returns where its text begins. */
static __noinline __u32 tell_file(struct desk *desk, const struct ks_policy *policy, __u64 vfsmnt, __u64 dentry, __u32 what)
{
        struct working w = {.desk = desk, .policy = policy};
        struct ascent *a;
        struct inode *inode;

        if (!desk || !policy)
                return KS_TEXT;
        desk->told.sets = desk->told.is = desk->told.who = 0;
        desk->told.known = desk->told.too_deep = 0;
        a = &desk->ascent;
        enter_mount(a, (void *)vfsmnt - bpf_core_field_offset(struct mount, mnt));
        a->dentry = dentry;
        a->steps = 0;
        if (what & TELL_BEYOND) {
                if (!a->up || a->up == a->mnt)
                        return KS_TEXT; /* nothing is above */
                a->steps = 1;
                a->dentry = a->mountpoint;
                enter_mount(a, (void *)a->up);
        }
        a->at = KS_TEXT;
        a->epoch = policy->epoch;
        a->done = a->adrift = a->beyond = 0;
        a->with_text = what & (TELL_TEXT | TELL_SETS);
        a->with_places = what & TELL_PLACES;
        bpf_loop(KS_DEPTH, ascend, &w, 0);
        if (!a->done) {
                desk->told.too_deep = 1;
                COUNT(too_deep);
        }
        if (a->at == KS_TEXT && a->done && a->with_text) { /* the root itself */
                desk->text[KS_TEXT - 1] = '/';
                a->at = KS_TEXT - 1;
        }
        if (!(what & TELL_SETS) || !a->done || a->adrift)
                return a->at;
        inode = BPF_CORE_READ((struct dentry *)dentry, d_inode);
        if (!(inode && !BPF_CORE_READ(inode, i_nlink)))
                read_path(desk, a->at, policy->epoch, policy->kinds);
        return a->at;
}

/* ---- what is known of a process ---- */

/* The process has become another program: which sets of names its path is in. Who started it stays who it was. */
static __noinline __attribute__((unused)) int name_program(struct ks_process *process, struct file *exe)
{
        const struct ks_policy *policy = policy_now();
        struct ks_place key = {};
        struct ks_places *place;
        struct desk *desk;

        if (!process || !policy)
                return 0;
        if (process->named.epoch != policy->epoch) {
                __builtin_memset(&process->named, 0, sizeof(process->named));
                process->named.epoch = policy->epoch;
        }
        process->named.program = process->named.who = 0;
        process->named.known[0] = 0;
        if (!exe)
                return 0;
        key.inode = BPF_CORE_READ(exe, f_inode, i_ino);
        key.device = BPF_CORE_READ(exe, f_inode, i_sb, s_dev);
        key.epoch = policy->epoch;
        place = bpf_map_lookup_elem(&places, &key);
        if (place)
                process->named.who = place->who;
        if (!policy->kinds)
                return 0;
        desk = sit_down();
        if (!desk)
                return 0;
        tell_file(desk, policy, (__u64)BPF_CORE_READ(exe, f_path.mnt), (__u64)BPF_CORE_READ(exe, f_path.dentry), TELL_SETS);
        process->named.program = desk->told.sets;
        process->named.known[0] = desk->told.known;
        stand_up(desk);
        if (!(process->flags & KS_PROCESS_SERVED)) {
                process->named.service = process->named.program;
                process->named.known[2] = process->named.known[0];
        }
        return 0;
}

/* A child is born: what its parent is, it has above it. */
static __always_inline void name_child(struct ks_process *parent, struct ks_process *child)
{
        const struct ks_named *above = &parent->named;
        struct ks_named *named = &child->named;

        named->parent = above->program;
        named->known[1] = above->known[0];
        named->ancestors = above->ancestors | above->program;
        named->known[3] = above->known[3] & above->known[0];
        /* The service was settled by inherit_process: the child's own program where it is one itself. */
        if (child->flags & KS_PROCESS_SERVED) {
                named->service = parent->flags & KS_PROCESS_SERVED ? above->service : above->program;
                named->known[2] = parent->flags & KS_PROCESS_SERVED ? above->known[2] : above->known[0];
        } else {
                named->service = named->program;
                named->known[2] = named->known[0];
        }
}

/* A process that runs already gets its names by the policy in force. What it executes is looked at here, because user space may know
 * it late; who is above it was told, or else its parent knows. What it has learnt since the policy came is fresher, and stays. */
static __noinline __attribute__((unused)) int name_task(struct task_struct *task)
{
        const struct ks_policy *policy = policy_now();
        struct ks_sentenced key = {};
        struct ks_process *process, *above;
        struct ks_named *told, *named;
        struct task_struct *parent;

        if (!policy)
                return 0;
        process = bpf_task_storage_get(&processes, task, 0, 0);
        if (!process)
                return 0;
        named = &process->named;
        if (named->epoch != policy->epoch)
                name_program(process, BPF_CORE_READ(task, mm, exe_file));
        if (named->known[1])
                return 0;
        key.start_ns = BPF_CORE_READ(task, start_boottime) / START_STEP * START_STEP;
        key.tgid = BPF_CORE_READ(task, tgid);
        told = bpf_map_lookup_elem(&introduced, &key);
        if (told && told->epoch == policy->epoch) {
                named->parent = told->parent;
                named->known[1] = told->known[1];
                named->ancestors = told->ancestors;
                named->known[3] = told->known[3];
                if (process->flags & KS_PROCESS_SERVED) {
                        named->service = told->service;
                        named->known[2] = told->known[2];
                }
                return 0;
        }
        parent = task->real_parent;
        if (!parent)
                return 0;
        above = bpf_task_storage_get(&processes, parent->group_leader, 0, 0);
        if (above && above->named.epoch == policy->epoch)
                name_child(above, process);
        return 0;
}

/* A child is born under the sentence that its parent has. */
static __always_inline void pass_sentence(struct task_struct *parent, struct task_struct *child)
{
        struct ks_switch *sw = switch_now();
        struct ks_sentenced key = {};
        struct ks_sentence *sentence, copy;

        if (!sw || !sw->sentences)
                return;
        key.start_ns = BPF_CORE_READ(parent, group_leader, start_boottime) / START_STEP * START_STEP;
        key.tgid = BPF_CORE_READ(parent, tgid);
        sentence = bpf_map_lookup_elem(&sentences, &key);
        if (!sentence || bpf_ktime_get_boot_ns() >= sentence->until_ns)
                return;
        copy = *sentence;
        key.start_ns = BPF_CORE_READ(child, start_boottime) / START_STEP * START_STEP;
        key.tgid = BPF_CORE_READ(child, tgid);
        if (bpf_map_update_elem(&sentences, &key, &copy, BPF_ANY))
                COUNT(sentences_lost);
}

#endif
