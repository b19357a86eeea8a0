"""Judges `solution.py` of a trajectory, which defines `total(numbers)`, by what it answers.

It is run as `exec python3 -I grader.py`, and gets the cases by its standard input: a list of
`{"numbers": […], "expected": …}`. It writes one JSON object to its verdict: `{"score": 0…1}`.

What makes it hard to forge:
- The solution is never imported here. Each case is a process of its own, which gets the input by a
  pipe and gives the answer by another; whatever else it prints or exits with counts for nothing.
- That process has no descriptor of this one's: it is not given the verdict's, and cannot open it,
  since this process cannot be looked into (PR_SET_DUMPABLE) and the verdict is a socket.
- What is expected is known here only. It is in no file, no argument and no variable.
- The interpreter is isolated (-I): it takes nothing from its directory or from PYTHON* variables.
- What has no verdict in the end, for whatever reason, has failed: see `score` in the callers.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys

PR_SET_DUMPABLE = 4
SECONDS = 10
MOST_BYTES = 1 << 20

# What the process of one case runs. It is the solution's to do with as it likes.
RUNNER = """
import json, sys
sys.path.insert(0, "/workspace")
numbers = json.load(sys.stdin)
from solution import total
answer = total(numbers)
sys.stdout.write("\\n" + json.dumps(answer) + "\\n")
"""


def answer_of(numbers):
    """What the solution answers; None if it does not answer in time, or with no JSON."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", RUNNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/workspace",
        env={"PATH": "/usr/bin:/bin", "HOME": "/tmp"},
        close_fds=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(json.dumps(numbers).encode(), timeout=SECONDS)
    except (subprocess.TimeoutExpired, BrokenPipeError):
        return None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.kill()
        process.wait()
    if len(output) > MOST_BYTES:
        return None
    try:
        return json.loads(output.strip().rsplit(b"\n", 1)[-1])
    except ValueError:
        return None


def main():
    # Before anything of the solution runs: no process of its user may look into this one.
    if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit("this process can be looked into")
    verdict = int(os.environ["TOOL_EXECUTOR_VERDICT_FD"])
    os.set_inheritable(verdict, False)
    cases = json.load(sys.stdin)
    passed = 0
    for case in cases:
        answer = answer_of(case["numbers"])
        # `True == 1` in Python.
        if type(answer) is type(case["expected"]) and answer == case["expected"]:
            passed += 1
    os.write(verdict, json.dumps({"score": passed / len(cases)}).encode())


main()
