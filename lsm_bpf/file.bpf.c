// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* File guard: files that are opened, made, removed, renamed, linked, cut, or given another mode or owner.
 *
 *   hook  file_open                    what an open leads to, after links; not asked for O_PATH
 *         path_mknod, path_mkdir       a new file, a new directory, before its name is there
 *         path_rename, path_link       both names; of a link's the new one alone has a path
 *         path_symlink                 the link's own name
 *         path_truncate, path_chmod, path_chown
 *         path_unlink, path_rmdir      a name that goes
 *   in, out, and which way it fails    guard.h
 *
 * A file's place is told by device and inode of itself and of every directory above it, across mount points, and above what of a
 * file system is mounted there: other names (a hard link to one of the directory's files is none) lead to the same places. Its path is told by names, from the root of the mount
 * namespace. */
#include "guard.h"

#define O_ACCMODE 3
#define O_TRUNC 01000
#define FMODE_EXEC 0x20      /* in f_flags: the kernel opens it for an execution */

SEC("lsm/file_open")
int on_file_open(__u64 *ctx)
{
        struct file *file = (void *)ctx[0];
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(KS_HOOK_FILE_OPEN, task, &policy);
        __u32 flags, traits = 0, access;

        if (!desk)
                return 0;
        flags = file->f_flags;
        access = flags & O_ACCMODE;
        if (access == 0 || access == 2)
                traits |= KS_TRAIT_READ;
        if (access || flags & O_TRUNC)
                traits |= KS_TRAIT_WRITE;
        if (flags & FMODE_EXEC)
                traits = KS_TRAIT_FORCED;
        desk->holds[KS_WORD_TRAITS] |= traits;
        traits_of(desk, file->f_inode);
        number_is(desk, KS_NUMBER_FLAGS, flags);
        file_is(desk, policy, 0, file->f_path.mnt, file->f_path.dentry);
        REFUSE_IF(decide(desk, policy, task, traits & KS_TRAIT_WRITE ? CONFINED : FREE));
        return 0;
}

/* A name in a directory: one that isn't there yet, or one that goes. */
static __always_inline int in_directory(__u32 hook, const struct path *dir, struct dentry *dentry)
{
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(hook, task, &policy);

        if (!desk)
                return 0;
        tell_flags(desk, task);
        traits_of(desk, dentry->d_inode);
        file_is(desk, policy, 0, dir->mnt, dentry);
        desk->first_unseen = hook == KS_HOOK_PATH_SYMLINK; /* what the link says */
        return decide(desk, policy, task, CONFINED);
}

#define IN_DIRECTORY(hook_, name_)                                              \
        SEC("lsm/" #name_)                                                      \
        int on_##name_(__u64 *ctx)                                              \
        {                                                                       \
                REFUSE_IF(in_directory(hook_, (void *)ctx[0], (void *)ctx[1])); \
                return 0;                                                       \
        }

IN_DIRECTORY(KS_HOOK_PATH_MKNOD, path_mknod)
IN_DIRECTORY(KS_HOOK_PATH_MKDIR, path_mkdir)
IN_DIRECTORY(KS_HOOK_PATH_SYMLINK, path_symlink)
IN_DIRECTORY(KS_HOOK_PATH_UNLINK, path_unlink)
IN_DIRECTORY(KS_HOOK_PATH_RMDIR, path_rmdir)

SEC("lsm/path_rename")
int on_path_rename(__u64 *ctx)
{
        const struct path *old_dir = (void *)ctx[0], *new_dir = (void *)ctx[2];
        struct dentry *old_dentry = (void *)ctx[1], *new_dentry = (void *)ctx[3];
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(KS_HOOK_PATH_RENAME, task, &policy);

        if (!desk)
                return 0;
        tell_flags(desk, task);
        traits_of(desk, old_dentry->d_inode);
        file_is(desk, policy, 0, old_dir->mnt, old_dentry);
        file_is(desk, policy, 1, new_dir->mnt, new_dentry);
        REFUSE_IF(decide(desk, policy, task, CONFINED));
        return 0;
}

SEC("lsm/path_link")
int on_path_link(__u64 *ctx)
{
        struct dentry *old_dentry = (void *)ctx[0], *new_dentry = (void *)ctx[2];
        const struct path *new_dir = (void *)ctx[1];
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(KS_HOOK_PATH_LINK, task, &policy);

        if (!desk)
                return 0;
        tell_flags(desk, task);
        traits_of(desk, old_dentry->d_inode);
        file_is(desk, policy, 0, new_dir->mnt, old_dentry); /* a link never leads from one mount to another */
        file_is(desk, policy, 1, new_dir->mnt, new_dentry);
        desk->first_unseen = 1;
        REFUSE_IF(decide(desk, policy, task, CONFINED));
        return 0;
}

/* An existing file by its whole path; what more the hook is told is a number. */
static __always_inline int by_path(__u32 hook, const struct path *path, __u32 traits, __u32 first, __u32 value, __u32 second,
                                   __u32 value2)
{
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(hook, task, &policy);

        if (!desk)
                return 0;
        desk->holds[KS_WORD_TRAITS] |= traits;
        traits_of(desk, path->dentry->d_inode);
        if (first < KS_NUMBERS_ASKED)
                number_is(desk, first, value);
        if (second < KS_NUMBERS_ASKED)
                number_is(desk, second, value2);
        file_is(desk, policy, 0, path->mnt, path->dentry);
        return decide(desk, policy, task, CONFINED);
}

SEC("lsm/path_truncate")
int on_path_truncate(__u64 *ctx)
{
        REFUSE_IF(by_path(KS_HOOK_PATH_TRUNCATE, (void *)ctx[0], KS_TRAIT_WRITE, KS_NUMBERS_ASKED, 0, KS_NUMBERS_ASKED, 0));
        return 0;
}

SEC("lsm/path_chmod")
int on_path_chmod(__u64 *ctx)
{
        REFUSE_IF(by_path(KS_HOOK_PATH_CHMOD, (void *)ctx[0], 0, KS_NUMBER_MODE, (__u16)ctx[1], KS_NUMBERS_ASKED, 0));
        return 0;
}

SEC("lsm/path_chown")
int on_path_chown(__u64 *ctx)
{
        REFUSE_IF(by_path(KS_HOOK_PATH_CHOWN, (void *)ctx[0], 0, KS_NUMBER_UID, (__u32)ctx[1], KS_NUMBER_GID, (__u32)ctx[2]));
        return 0;
}
