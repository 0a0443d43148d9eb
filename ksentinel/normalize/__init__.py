# SPDX-License-Identifier: Apache-2.0
"""
From the kernel's words to ours: audit records and BPF records become events.

The parts: `processes` (who is who, and who started whom), `audit`, `bpf`, `redact` (secrets in arguments).
"""
