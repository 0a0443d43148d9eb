// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
/* Net guard: where sockets lead, and where they listen.
 *
 *   hook  socket_connect               the address, as the kernel has copied it
 *         socket_sendmsg               of a message that names one
 *         socket_bind, socket_listen   the socket's own
 *         unix_stream_connect          the socket that listens there, by its file's place: whatever path leads to it
 *         unix_may_send                the same of datagrams
 *   in, out, and which way it fails    guard.h
 *
 * IPv4 addresses count as ::ffff:a.b.c.d, and such an IPv6 address as IPv4. */
#include "guard.h"

#define AF_UNSPEC 0
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10

#define MAPPED 0xffff0000    /* ::ffff:, its third 32 bits as they stand in memory */

struct net_address {
        __u16 family;
        __u16 port;
        __u8 rest[24];
};

/* What an address in the kernel's memory says. IPv4 sockets take one without a family for one of theirs, except where it ends a
 * connection: unspecified is the family that it then has, 0 if it has none. */
static __noinline int tell_address(struct desk *desk, __u64 address, __u32 len, __u32 unspecified)
{
        struct net_address a = {};
        __u32 words[4];

        if (!desk)
                return 0;
        if (len > sizeof(a))
                len = sizeof(a);
        if (len < 8 || bpf_probe_read_kernel(&a, len & 31, (void *)address)) {
                if (len >= sizeof(a.family) && !bpf_probe_read_kernel(&a.family, sizeof(a.family), (void *)address) &&
                    a.family == AF_UNIX)
                        desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_UNIX;
                return 0;
        }
        if (a.family == AF_UNSPEC)
                a.family = unspecified;
        if (a.family == AF_UNIX)
                desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_UNIX;
        if (a.family == AF_INET) {
                desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_IPV4;
                desk->denial.address[10] = desk->denial.address[11] = 0xff;
                __builtin_memcpy(&desk->denial.address[12], &a.rest[0], 4);
        } else if (a.family == AF_INET6) {
                __builtin_memcpy(words, &a.rest[4], sizeof(words));
                __builtin_memcpy(desk->denial.address, words, sizeof(words));
                desk->holds[KS_WORD_TRAITS] |= words[0] | words[1] | (words[2] ^ MAPPED) ? KS_TRAIT_IPV6 : KS_TRAIT_IPV4;
        } else {
                return 0;
        }
        desk->denial.addressed = 1;
        number_is(desk, KS_NUMBER_PORT, a.port >> 8 | (a.port & 0xff) << 8);
        return 0;
}

static __always_inline __u16 family_of(struct socket *socket)
{
        return BPF_CORE_READ(socket, sk, __sk_common.skc_family);
}

static __always_inline void trait_of_family(struct desk *desk, __u16 family)
{
        if (family == AF_UNIX)
                desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_UNIX;
        else if (family == AF_INET)
                desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_IPV4;
        else if (family == AF_INET6)
                desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_IPV6;
}

static __always_inline int to_address(__u32 hook, struct socket *socket, __u64 address, __u32 len, enum quarantine quarantine)
{
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(hook, task, &policy);
        __u32 unspecified = 0;

        if (!desk)
                return 0;
        if (hook != KS_HOOK_SOCKET_CONNECT && family_of(socket) == AF_INET)
                unspecified = AF_INET;
        tell_address(desk, address, len, unspecified);
        return decide(desk, policy, task, quarantine);
}

SEC("lsm/socket_connect")
int on_socket_connect(__u64 *ctx)
{
        REFUSE_IF(to_address(KS_HOOK_SOCKET_CONNECT, (void *)ctx[0], ctx[1], ctx[2], CONFINED));
        return 0;
}

SEC("lsm/socket_bind")
int on_socket_bind(__u64 *ctx)
{
        REFUSE_IF(to_address(KS_HOOK_SOCKET_BIND, (void *)ctx[0], ctx[1], ctx[2], FREE));
        return 0;
}

SEC("lsm/socket_listen")
int on_socket_listen(__u64 *ctx)
{
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(KS_HOOK_SOCKET_LISTEN, task, &policy);

        if (!desk)
                return 0;
        trait_of_family(desk, family_of((void *)ctx[0]));
        REFUSE_IF(decide(desk, policy, task, FREE));
        return 0;
}

SEC("lsm/socket_sendmsg")
int on_socket_sendmsg(__u64 *ctx)
{
        struct msghdr *message = (void *)ctx[1];

        if (!message->msg_name)
                return 0; /* on a connection: its connect was asked about */
        REFUSE_IF(to_address(KS_HOOK_SOCKET_SENDMSG, (void *)ctx[0], (__u64)message->msg_name, message->msg_namelen,
                             CONFINED));
        return 0;
}

/* The other end of a unix socket, by its file; those without one (abstract, unnamed) have no place. */
static __always_inline int to_unix(__u32 hook, struct sock *other)
{
        struct task_struct *task = bpf_get_current_task_btf();
        const struct ks_policy *policy;
        struct desk *desk = begin_guard(hook, task, &policy);
        struct dentry *dentry;

        if (!desk)
                return 0;
        desk->holds[KS_WORD_TRAITS] |= KS_TRAIT_UNIX;
        dentry = BPF_CORE_READ((struct unix_sock *)other, path.dentry);
        if (dentry)
                file_at(desk, 0, BPF_CORE_READ((struct unix_sock *)other, path.mnt), dentry);
        return decide(desk, policy, task, CONFINED);
}

SEC("lsm/unix_stream_connect")
int on_unix_stream_connect(__u64 *ctx)
{
        struct sock *other = (void *)ctx[1];

        if (other)
                REFUSE_IF(to_unix(KS_HOOK_UNIX_STREAM_CONNECT, other));
        return 0;
}

SEC("lsm/unix_may_send")
int on_unix_may_send(__u64 *ctx)
{
        struct socket *socket = (void *)ctx[1];
        struct sock *other = socket->sk;

        if (other)
                REFUSE_IF(to_unix(KS_HOOK_UNIX_MAY_SEND, other));
        return 0;
}
