# SPDX-License-Identifier: Apache-2.0
"""ksentinel: an explainable syscall security monitor for Linux."""

__version__ = "0.1.0"
