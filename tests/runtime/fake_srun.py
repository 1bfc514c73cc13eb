"""Stands in for SLURM's srun: every node is this machine, and a task that a signal ends takes the others along.

With FAKE_RANK the tasks are those of ``fake_launcher``, which do what the spec says.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import dropwhile
from pathlib import Path

options = [word for word in sys.argv[1:] if word.startswith("--")]
command = list(dropwhile(lambda word: word.startswith("--"), sys.argv[1:]))
assert {"--distribution=arbitrary", "--export=ALL", "--kill-on-bad-exit=1"} <= set(options)
if os.environ.get("FAKE_RANK"):
    command = [sys.executable, os.environ["FAKE_RANK"], "rank", *command[-3:]]
nodes = Path(os.environ["SLURM_HOSTFILE"]).read_text().split()
assert f"--ntasks={len(nodes)}" in options and f"--nodes={len(set(nodes))}" in options
tasks = []
for number, node in enumerate(nodes):
    told = {
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(nodes[:number].count(node)),
        "SLURM_NTASKS": str(len(nodes)),
    }
    tasks.append(subprocess.Popen(command, env=os.environ | told))
while None in (codes := [task.poll() for task in tasks]) and not any(codes):
    time.sleep(0.05)
for number, code in enumerate(codes):
    if code and code < 0:
        print(f"srun: error: {nodes[number]}: task {number}: {signal.strsignal(-code)}", file=sys.stderr, flush=True)
if any(codes):
    # As srun with --kill-on-bad-exit: it ends the others with SIGTERM, and says so.
    for number, task in enumerate(tasks):
        if codes[number] is None:
            print(f"srun: error: {nodes[number]}: task {number}: Terminated", file=sys.stderr, flush=True)
        task.kill()
sys.exit(max(task.wait() & 0xFF for task in tasks))
