import signal
import subprocess
import sys

import psutil
import pytest

from tests.cluster.machines import obstacle, wait_for
from tests.cluster.nodes import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

OWNER = """\
import pathlib, sys, time
from tests.cluster.machines import Machine
with Machine("a", pathlib.Path(sys.argv[1]), ["sleep", "300"]) as a:
    inside = a.start(["sleep", "301"])
    print(a.pid, a._process.pid, inside.pid, flush=True)
    time.sleep(300)
"""


def test_nothing_is_left_of_a_machine_whose_owner_is_killed(tmp_path):
    if reason := obstacle():
        pytest.skip(reason)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    family = [psutil.Process(pid) for pid in pids]
    family += [child for process in family for child in process.children(recursive=True)]
    assert {"300", "301"} <= {process.cmdline()[-1] for process in family}
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    wait_for(lambda: not any(process.is_running() for process in family), 20)
