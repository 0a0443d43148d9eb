# SPDX-License-Identifier: Apache-2.0
"""The collector's scoring is the same number under this kernel, too: tests of tests/bpf, a part of them, run here."""

import pytest
from bpf import test_scoring as scoring

TAKES = 20

test_lineage = scoring.test_lineage
test_live = scoring.test_live


@pytest.mark.parametrize(("seed", "order", "count"), [(1, 5, 1000), (2, 8, 500)])
def test_equal_to_the_bit(seed, order, count):
    """Kernel, twin and reference agree."""
    scoring.test_equal_to_the_bit(seed, order, count)
