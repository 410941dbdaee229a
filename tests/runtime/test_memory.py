"""What a stage held at most is its own, not that of a greedier stage before it."""

import sys

import numpy as np
import pytest

from worldloop.runtime.memory import begin_peak, read_peak


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_a_peak_is_that_of_what_came_since() -> None:
    begin_peak()
    big = np.ones(200 * 2**17)  # 200 MiB
    assert big.sum()
    greedy = read_peak()
    del big
    begin_peak()
    small = np.ones(20 * 2**17)
    assert small.sum()
    assert greedy.process_mib - read_peak().process_mib == pytest.approx(180, abs=30)
    assert greedy.gpu_mib >= 0
