// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* Empty probe: what it costs that anybody looks at all.
 *
 *   hook  raw_tp/sys_enter   every system call of every thread
 *   in    nothing
 *   out   nothing
 *
 * What any other program on that hook costs beyond this one is its own doing. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("raw_tp/sys_enter")
int empty(void *ctx __attribute__((unused)))
{
        return 0;
}
