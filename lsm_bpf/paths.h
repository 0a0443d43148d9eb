/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Paths: told by the names of their directories, leaf first, and known by a hash of them. */
#ifndef KSENTINEL_PATHS_H
#define KSENTINEL_PATHS_H

#include "state.h"

#define FNV 0x100000001b3ULL

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

/* ---- hashes: docs/kernel-scoring.md ---- */

static __always_inline __u64 mixed(__u64 x)
{
        x ^= x >> 33;
        x *= 0xff51afd7ed558ccdULL;
        return x ^ x >> 33;
}

/* What changes from step to step stands in the scratch space: the verifier doesn't follow values there, and so is soon
 * through with the loop. */
struct hashed {
        struct scratch *s;
};

static long hash_byte(__u32 index __attribute__((unused)), struct hashed *h)
{
        struct scratch *s = h->s;
        struct hashing *is = &s->hashing;
        __u8 byte;

        if (is->at >= is->end)
                return 1;
        byte = s->data[is->at & (KS_DATA - 1)];
        is->at++;
        if (byte) {
                is->name = (is->name ^ byte) * FNV;
                return 0;
        }
        is->top = mixed(is->name);
        if (!is->names)
                is->leaf = is->top;
        is->path = (is->path ^ is->top) * 0xc4ceb9fe1a85ec53ULL;
        is->path ^= is->path >> 29;
        is->name = is->seed;
        is->names++;
        return 0;
}

static __always_inline void begin_hash(struct hashing *is, __u64 seed, __u32 at, __u32 end)
{
        is->seed = is->name = is->path = seed;
        is->leaf = is->top = 0;
        is->at = at;
        is->end = end;
        is->names = 0;
}

/* The hash of the names in the scratch space from at on; those of its first and its last name stand there, too. */
__noinline __u64 hash_names(__u32 program, __u32 at, __u32 len)
{
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        struct scratch *s = scratch_of(program);
        struct hashed h = {s};

        if (!s || !cfg)
                return 0;
        begin_hash(&s->hashing, cfg->path_seed, at, at + len);
        bpf_loop(KS_TEXT, hash_byte, &h, 0);
        return s->hashing.names ? s->hashing.path ? s->hashing.path : 1 : 0;
}

static long hash_script_byte(__u32 index __attribute__((unused)), struct hashed *h)
{
        struct scratch *s = h->s;
        struct hashing *is = &s->hashing;
        __u8 byte = s->data[is->at & (KS_DATA - 1)];

        if (!byte)
                return 1;
        is->at++;
        is->name = (is->name ^ byte) * FNV;
        return 0;
}

/* The hash of an absolute path as it was written, NUL at its end; 0 if that names no file of its own. */
__noinline __u64 hash_script(__u32 program, __u32 at)
{
        static const char descriptors[] = "/dev/fd/";
        struct ks_config *cfg = bpf_map_lookup_elem(&config, &zero);
        struct scratch *s = scratch_of(program);
        struct hashed h = {s};
        __u32 same = 0;
        __u64 hash;

        if (!s || !cfg || s->data[at & (KS_DATA - 1)] != '/')
                return 0;
        for (__u32 i = 0; i < sizeof(descriptors) - 1; i++)
                same += s->data[(at + i) & (KS_DATA - 1)] == descriptors[i];
        if (same == sizeof(descriptors) - 1)
                return 0;
        begin_hash(&s->hashing, cfg->path_seed ^ 1, at, 0);
        bpf_loop(KS_TEXT, hash_script_byte, &h, 0);
        hash = mixed(s->hashing.name);
        return hash ? hash : 1;
}

#endif
