// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* Privilege guard: what makes a process more than it was, or gives it power over others and over the kernel.
 *
 *   hook  ptrace_access_check          a process takes hold of another, or reaches into its memory
 *         kernel_load_data             code for the kernel out of memory: modules, images to boot, firmware
 *         kernel_read_file             the same out of a file
 *         bpf                          any command of bpf(2)
 *         sb_mount, move_mount, sb_umount
 *         userns_create                a user namespace (since 6.1)
 *         task_kill                    a signal
 *         task_fix_setuid, task_fix_setgid, capset
 *         task_prctl
 *   in, out, and which way it fails    guard.h
 *
 * A change of user is asked about when it is made; what a set-user-id program is executed as, the exec guard sees. */
#include "guard.h"

#define PTRACE_MODE_ATTACH 2
#define ENOSYS 38

SEC("lsm/ptrace_access_check")
int on_ptrace_access_check(__u64 *ctx)
{
        struct task_struct *task = bpf_get_current_task_btf(), *child = (void *)ctx[0];
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(KS_HOOK_PTRACE_ACCESS_CHECK, task, &policy);
        int attach = ctx[1] & PTRACE_MODE_ATTACH;

        if (!desk)
                return 0;
        if (attach)
                desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_ATTACH;
        number_is(desk, KS_NUMBER_ANOTHER, child->pid != task->tgid && child->pid != task->pid);
        if (!in_io_uring(desk))
                number_is(desk, KS_NUMBER_REQUEST, call_argument(task, desk->denial.token, 0));
        REFUSE_IF(decide(desk, policy, task, attach ? CONFINED : FREE));
        return 0;
}

#define IS(kind, what, name) (bpf_core_enum_value_exists(enum kind, name) && (what) == bpf_core_enum_value(enum kind, name))

static __always_inline int by_kernel(__u32 hook, __u32 trait, struct file *file)
{
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(hook, task, &policy);

        if (!desk)
                return 0;
        desk->holds[KS_WORD_TRAITS] |= trait;
        if (file) {
                traits_of(desk, file->f_inode);
                file_is(desk, policy, 0, file->f_path.mnt, file->f_path.dentry);
        }
        return decide(desk, policy, task, FREE);
}

SEC("lsm/kernel_load_data")
int on_kernel_load_data(__u64 *ctx)
{
        __u32 what = ctx[0], trait = 0;

        if (IS(kernel_load_data_id, what, LOADING_MODULE))
                trait = KS_TRAIT_MODULE;
        else if (IS(kernel_load_data_id, what, LOADING_FIRMWARE))
                trait = KS_TRAIT_FIRMWARE;
        else if (IS(kernel_load_data_id, what, LOADING_KEXEC_IMAGE) || IS(kernel_load_data_id, what, LOADING_KEXEC_INITRAMFS))
                trait = KS_TRAIT_KEXEC;
        REFUSE_IF(by_kernel(KS_HOOK_KERNEL_LOAD_DATA, trait, 0));
        return 0;
}

SEC("lsm/kernel_read_file")
int on_kernel_read_file(__u64 *ctx)
{
        __u32 what = ctx[1], trait = 0;

        if (IS(kernel_read_file_id, what, READING_MODULE) || IS(kernel_read_file_id, what, READING_MODULE_COMPRESSED))
                trait = KS_TRAIT_MODULE;
        else if (IS(kernel_read_file_id, what, READING_FIRMWARE))
                trait = KS_TRAIT_FIRMWARE;
        else if (IS(kernel_read_file_id, what, READING_KEXEC_IMAGE) || IS(kernel_read_file_id, what, READING_KEXEC_INITRAMFS))
                trait = KS_TRAIT_KEXEC;
        REFUSE_IF(by_kernel(KS_HOOK_KERNEL_READ_FILE, trait, (void *)ctx[0]));
        return 0;
}

/* Operations that one number tells. */
static __always_inline int by_number(__u32 hook, __u32 number, __u32 value)
{
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(hook, task, &policy);

        if (!desk)
                return 0;
        if (number < KS_NUMBERS_ASKED)
                number_is(desk, number, value);
        else
                tell_flags(desk, task);
        return decide(desk, policy, task, FREE);
}

SEC("lsm/bpf")
int on_bpf(__u64 *ctx)
{
        REFUSE_IF(by_number(KS_HOOK_BPF, KS_NUMBER_CMD, ctx[0]));
        return 0;
}

SEC("lsm/userns_create")
int on_userns_create(__u64 *ctx __attribute__((unused)))
{
        REFUSE_IF(by_number(KS_HOOK_USERNS_CREATE, KS_NUMBERS_ASKED, 0));
        return 0;
}

SEC("lsm/task_kill")
int on_task_kill(__u64 *ctx)
{
        REFUSE_IF(by_number(KS_HOOK_TASK_KILL, KS_NUMBER_SIGNAL, ctx[2]));
        return 0;
}

SEC("lsm/capset")
int on_capset(__u64 *ctx __attribute__((unused)))
{
        REFUSE_IF(by_number(KS_HOOK_CAPSET, KS_NUMBERS_ASKED, 0));
        return 0;
}

/* Of this hook -ENOSYS means "go on", and 0 "it is done": then the call would do nothing, and say that it has. */
SEC("lsm/task_prctl")
int on_task_prctl(__u64 *ctx __attribute__((unused)))
{
        REFUSE_IF(by_number(KS_HOOK_TASK_PRCTL, KS_NUMBERS_ASKED, 0));
        return -ENOSYS;
}

/* The ids as they were asked for: what comes of them, the kernel decides afterwards. */
static __always_inline int change_of_id(__u32 hook, __u32 number, __u32 to_root)
{
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(hook, task, &policy);

        if (!desk)
                return 0;
        if (to_root)
                desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_TO_ROOT;
        if (!in_io_uring(desk))
                number_is(desk, number, call_argument(task, desk->denial.token, 0));
        return decide(desk, policy, task, FREE);
}

SEC("lsm/task_fix_setuid")
int on_task_fix_setuid(__u64 *ctx)
{
        struct cred *new = (void *)ctx[0];
        const struct cred *old = (void *)ctx[1];

        REFUSE_IF(change_of_id(KS_HOOK_TASK_FIX_SETUID, KS_NUMBER_UID,
                               (!new->euid.val && old->euid.val) || (!new->uid.val && old->uid.val) ||
                                       (!new->fsuid.val && old->fsuid.val)));
        return 0;
}

SEC("lsm/task_fix_setgid")
int on_task_fix_setgid(__u64 *ctx __attribute__((unused)))
{
        REFUSE_IF(change_of_id(KS_HOOK_TASK_FIX_SETGID, KS_NUMBER_GID, 0));
        return 0;
}

static __always_inline int about_mount(__u32 hook, const struct path *from, const struct path *to, __u32 flagged, __u32 flags)
{
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(hook, task, &policy);

        if (!desk)
                return 0;
        if (flagged)
                number_is(desk, KS_NUMBER_FLAGS, flags);
        if (from) {
                file_is(desk, policy, 0, from->mnt, from->dentry);
                file_is(desk, policy, 1, to->mnt, to->dentry);
        } else {
                file_is(desk, policy, 0, to->mnt, to->dentry);
        }
        desk->first_unseen = hook != KS_HOOK_SB_UMOUNT; /* what is mounted may be a device, or nothing */
        return decide(desk, policy, task, FREE);
}

SEC("lsm/sb_mount")
int on_sb_mount(__u64 *ctx)
{
        REFUSE_IF(about_mount(KS_HOOK_SB_MOUNT, 0, (void *)ctx[1], 1, ctx[3]));
        return 0;
}

SEC("lsm/move_mount")
int on_move_mount(__u64 *ctx)
{
        REFUSE_IF(about_mount(KS_HOOK_MOVE_MOUNT, (void *)ctx[0], (void *)ctx[1], 0, 0));
        return 0;
}

SEC("lsm/sb_umount")
int on_sb_umount(__u64 *ctx)
{
        struct task_struct *task = bpf_get_current_task_btf();
        struct vfsmount *mnt = (void *)ctx[0];
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(KS_HOOK_SB_UMOUNT, task, &policy);

        if (!desk)
                return 0;
        number_is(desk, KS_NUMBER_FLAGS, ctx[1]);
        file_is(desk, policy, 0, mnt, mnt->mnt_root);
        REFUSE_IF(decide(desk, policy, task, FREE));
        return 0;
}
