// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* Exec guard: what is executed, and what becomes executable memory of a program that runs.
 *
 *   hook  bprm_check_security          the file at hand: of a script the script, then (a second time) its interpreter
 *         bprm_creds_from_file         once, when the file that will run has been found, and there still is a way back
 *         mmap_file                    of files mapped to be executed: libraries, and what is handed to the loader as if it were one
 *   in, out, and which way it fails    guard.h
 *
 * A file handed to an interpreter (sh FILE, python FILE) is opened like any other: that is the file guard's. */
#include "guard.h"

#define PROT_EXEC 4

static __always_inline int executed(__u32 hook, struct linux_binprm *bprm, __u32 if_script)
{
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(hook, task, &policy);
        struct file *file;

        if (!desk)
                return 0;
        file = bprm->file;
        if (bprm->interp != bprm->filename)
                desk->holds[KS_WORD_TRAITS] |= if_script;
        traits_of(desk, file->f_inode);
        number_is(desk, KS_NUMBER_EUID, BPF_CORE_READ(bprm, cred, euid.val));
        file_is(desk, policy, 0, file->f_path.mnt, file->f_path.dentry);
        desk->asked = (__u64)bprm->filename;
        return decide(desk, policy, task, CONFINED);
}

SEC("lsm/bprm_check_security")
int on_bprm_check_security(__u64 *ctx)
{
        REFUSE_IF(executed(KS_HOOK_BPRM_CHECK_SECURITY, (void *)ctx[0], KS_TRAIT_INTERPRETER));
        return 0;
}

SEC("lsm/bprm_creds_from_file")
int on_bprm_creds_from_file(__u64 *ctx)
{
        REFUSE_IF(executed(KS_HOOK_BPRM_CREDS_FROM_FILE, (void *)ctx[0], KS_TRAIT_SCRIPT));
        return 0;
}

SEC("lsm/mmap_file")
int on_mmap_file(__u64 *ctx)
{
        struct file *file = (void *)ctx[0];
        struct task_struct *task;
        const struct ks_policy *policy;
        struct desk *desk;

        /* The kernel may be asked for less than it then gives (READ_IMPLIES_EXEC): both count. */
        if (!file || !((ctx[1] | ctx[2]) & PROT_EXEC))
                return 0;
        task = bpf_get_current_task_btf();
        desk = begin_guard(KS_HOOK_MMAP_FILE, task, &policy);
        if (!desk)
                return 0;
        desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_MAPPED;
        traits_of(desk, file->f_inode);
        file_is(desk, policy, 0, file->f_path.mnt, file->f_path.dentry);
        REFUSE_IF(decide(desk, policy, task, FREE));
        return 0;
}
