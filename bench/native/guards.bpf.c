// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* Empty guards: what it costs that any LSM program stands at a hook.
 *
 *   hook  where the operations of guards.c come by
 *   in    nothing
 *   out   nothing
 *
 * What a guard costs beyond these is its own doing. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define EMPTY(hook_)                                                  \
        SEC("lsm/" #hook_)                                            \
        int on_##hook_(void *ctx __attribute__((unused)))             \
        {                                                             \
                return 0;                                             \
        }

EMPTY(bprm_check_security)
EMPTY(bprm_creds_from_file)
EMPTY(mmap_file)
EMPTY(file_open)
EMPTY(socket_connect)
