/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* System calls as tokens, and their arguments, whatever ABI they came by. */
#ifndef KSENTINEL_CALLS_H
#define KSENTINEL_CALLS_H

#include "state.h"

#define X32_BIT 0x40000000
#define TS_COMPAT 0x0002     /* x86: this call came through the 32-bit entry */
#define TIF_32BIT_ARM64 22

/* Whether this call came through the 32-bit entry. Only the task tells: what stands in the registers a program can choose. */
static __always_inline int is_compat(const struct task_struct *task)
{
#if defined(__TARGET_ARCH_x86)
        return !!(task->thread_info.status & TS_COMPAT);
#elif defined(__TARGET_ARCH_arm64)
        return !!(task->thread_info.flags & (1UL << TIF_32BIT_ARM64));
#else
        return 0;
#endif
}

static __always_inline __u32 token_by_abi(long id, __u32 abi)
{
#if defined(__TARGET_ARCH_x86)
        if (!abi && id > 0 && (id & X32_BIT)) {
                abi = KS_TOKEN_X32;
                id &= ~X32_BIT;
        }
#endif
        return id < 0 || id >= KS_NUMBERS ? KS_TOKEN_INVALID : abi | (__u32)id;
}

/* The six arguments, from the registers of the ABI that the call came through. */
static __always_inline void read_args(__u64 *args, struct pt_regs *regs, __u32 token)
{
#if defined(__TARGET_ARCH_x86)
        if ((token & 0x0c00) == KS_TOKEN_COMPAT) {
                args[0] = (__u32)BPF_CORE_READ(regs, bx);
                args[1] = (__u32)BPF_CORE_READ(regs, cx);
                args[2] = (__u32)BPF_CORE_READ(regs, dx);
                args[3] = (__u32)BPF_CORE_READ(regs, si);
                args[4] = (__u32)BPF_CORE_READ(regs, di);
                args[5] = (__u32)BPF_CORE_READ(regs, bp);
                return;
        }
        args[0] = BPF_CORE_READ(regs, di);
        args[1] = BPF_CORE_READ(regs, si);
        args[2] = BPF_CORE_READ(regs, dx);
        args[3] = BPF_CORE_READ(regs, r10);
        args[4] = BPF_CORE_READ(regs, r8);
        args[5] = BPF_CORE_READ(regs, r9);
#elif defined(__TARGET_ARCH_arm64)
        for (int i = 0; i < 6; i++)
                args[i] = BPF_CORE_READ(regs, user_regs.regs[i]);
#endif
}

#endif
