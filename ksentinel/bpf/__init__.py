# SPDX-License-Identifier: Apache-2.0
"""BPF without a framework: `libbpf` is a thin typed binding, `ring` reads a ring buffer, `abi` mirrors the C header."""
