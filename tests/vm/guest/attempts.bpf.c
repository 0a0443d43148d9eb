// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* For tests of the canary's attempts: at each hook a program that refuses one thread, and counts.
 *
 *   hook  all that a guard may stand at
 *   in    armed    whom, where, and whether to refuse or only to count
 *   out   asked    how often that thread came by, one entry a hook
 *
 * Fails open: nobody else is refused anything. */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct armed {
        __u32 tid;
        __u32 hook;
        __u32 refuse;
};

struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, 1);
        __type(key, __u32);
        __type(value, struct armed);
} armed SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, 64);
        __type(key, __u32);
        __type(value, __u32);
} asked SEC(".maps");

static __always_inline int refused(__u32 hook)
{
        __u32 zero = 0, *count;
        struct armed *a = bpf_map_lookup_elem(&armed, &zero);

        if (!a || !a->tid || a->tid != (__u32)bpf_get_current_pid_tgid() || a->hook != hook)
                return 0;
        count = bpf_map_lookup_elem(&asked, &hook);
        if (!count)
                return 0;
        __sync_fetch_and_add(count, 1);
        return a->refuse;
}

/* Numbers as in enum ks_hook; literal returns, because verifiers differ about others. */
#define AT(number, hook)                                        \
        SEC("lsm/" #hook)                                       \
        int on_##hook(void *ctx __attribute__((unused)))        \
        {                                                       \
                if (refused(number))                            \
                        return -1;                              \
                return 0;                                       \
        }

AT(1, bprm_check_security)
AT(2, bprm_creds_from_file)
AT(3, mmap_file)
AT(4, file_open)
AT(5, path_mknod)
AT(6, path_mkdir)
AT(7, path_rename)
AT(8, path_link)
AT(9, path_symlink)
AT(10, path_truncate)
AT(11, path_chmod)
AT(12, path_chown)
AT(13, path_unlink)
AT(14, path_rmdir)
AT(15, socket_connect)
AT(16, socket_bind)
AT(17, socket_listen)
AT(18, socket_sendmsg)
AT(19, unix_stream_connect)
AT(20, unix_may_send)
AT(21, ptrace_access_check)
AT(22, kernel_load_data)
AT(23, kernel_read_file)
AT(24, bpf)
AT(25, sb_mount)
AT(26, move_mount)
AT(27, sb_umount)
AT(28, userns_create)
AT(29, task_kill)
AT(30, task_fix_setuid)
AT(31, task_fix_setgid)
AT(32, capset)
AT(33, task_prctl)
