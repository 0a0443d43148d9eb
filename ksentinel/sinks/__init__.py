# SPDX-License-Identifier: Apache-2.0
"""Sinks: where alerts go besides the store."""
