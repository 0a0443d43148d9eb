# SPDX-License-Identifier: Apache-2.0
"""Commands: a file a subject, a function a subcommand: parse, call, print. `cli` gives them their names."""
