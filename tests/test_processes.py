"""The example over two processes: their batch is that of one device."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "examples" / "processes.py"


def run(*args):
    return subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True, timeout=240)


def test_two_processes_of_two_devices_agree_with_one_device():
    done = run("--feeder", "ieee13", "--scenarios", "32", "--devices", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(
        r"process (\d) of 2: 16 of 32 scenarios on 2 of 4 devices.*?all ([\d.]+) pu; .*?([\d.e-]+) pu", done.stdout
    )
    assert sorted(process for process, _, _ in found) == ["0", "1"]
    assert len({lowest for _, lowest, _ in found}) == 1  # found together
    assert all(float(worst) <= 1e-10 for _, _, worst in found)


def test_refuses_what_cannot_be_spread():
    done = run("--scenarios", "30", "--devices", "4")
    assert done.returncode == 2 and "cannot be spread evenly over 8 devices" in done.stderr
