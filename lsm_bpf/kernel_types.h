/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Kernel types: only the fields we read; CO-RE finds their offsets at load. */
#ifndef KSENTINEL_KERNEL_TYPES_H
#define KSENTINEL_KERNEL_TYPES_H

#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct { __u32 val; } kuid_t;
typedef struct { __u32 val; } kgid_t;
struct user_namespace { int level; };
struct cred { kuid_t uid; kuid_t euid; kuid_t fsuid; struct user_namespace *user_ns; };
struct qstr { __u32 len; const unsigned char *name; };
struct super_block { __u32 s_dev; unsigned long s_magic; };
struct inode { unsigned short i_mode; kuid_t i_uid; unsigned int i_nlink; unsigned long i_ino; struct super_block *i_sb; };
struct dentry { struct dentry *d_parent; struct qstr d_name; struct inode *d_inode; };
struct vfsmount { struct dentry *mnt_root; struct super_block *mnt_sb; };
struct ns_common { __u64 ns_id; };
struct mnt_namespace { struct ns_common ns; __u64 seq; }; /* seq until 6.17, ns_id since */
struct mount {
        struct mount *mnt_parent;
        struct dentry *mnt_mountpoint;
        struct vfsmount mnt;
        struct mnt_namespace *mnt_ns;
};
struct path { struct vfsmount *mnt; struct dentry *dentry; };
struct file { struct path f_path; struct inode *f_inode; unsigned int f_flags; };
struct fdtable { unsigned int max_fds; struct file **fd; };
struct files_struct { struct fdtable *fdt; };
struct fs_struct { struct path root; struct path pwd; };
struct mm_struct { struct file *exe_file; unsigned long arg_start; unsigned long arg_end; };
struct upid { int nr; };
struct pid { struct upid numbers[1]; };
typedef struct { int counter; } atomic_t;
struct signal_struct { atomic_t live; struct pid *pids[4]; };
struct thread_info { unsigned long flags; __u32 status; };
struct task_struct {
        struct thread_info thread_info;
        void *stack;
        int pid;
        int tgid;
        unsigned int flags;
        __u64 start_boottime;
        struct task_struct *group_leader;
        struct task_struct *real_parent;
        const struct cred *real_cred;
        const struct cred *cred;
        void *io_uring;
        struct signal_struct *signal;
        struct mm_struct *mm;
        struct fs_struct *fs;
        struct files_struct *files;
        kuid_t loginuid;
};
/* Newer kernels have more of them: CO-RE finds numbers, too. */
enum kernel_load_data_id { LOADING_FIRMWARE = 1, LOADING_MODULE, LOADING_KEXEC_IMAGE, LOADING_KEXEC_INITRAMFS };
enum kernel_read_file_id {
        READING_FIRMWARE = 1,
        READING_MODULE,
        READING_KEXEC_IMAGE,
        READING_KEXEC_INITRAMFS,
        READING_MODULE_COMPRESSED,
};
struct linux_binprm { struct file *file; struct cred *cred; const char *filename; const char *interp; };
struct sock_common { unsigned short skc_family; };
struct sock { struct sock_common __sk_common; };
struct unix_sock { struct path path; };
struct socket { struct sock *sk; };
struct msghdr { void *msg_name; int msg_namelen; };
union bpf_attr;
struct kernel_siginfo;

struct seq_file;
struct bpf_iter_meta { struct seq_file *seq; __u64 session_id; __u64 seq_num; };
struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; };

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
        unsigned long bp, bx, r10, r9, r8, cx, dx, si, di, orig_ax;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs { __u64 regs[31]; };
struct pt_regs { struct user_pt_regs user_regs; int syscallno; };
#endif

#pragma clang attribute pop

#endif
