"""Stands in for DeepSpeed's launcher: ranks that do what the spec says, and what the launcher prints and returns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from sparsebench.runtime import heartbeat, nodes
from sparsebench.runtime.rank import Channel

words = sys.argv[1:]
if words[0] != "rank":
    ranks, *call = words
    if ranks == "0":
        sys.exit("pdsh: node-7: no route to host")
    started = [
        subprocess.Popen([sys.executable, __file__, "rank", *call], env=os.environ | {"RANK": str(rank)})
        for rank in range(int(ranks))
    ]
    while None in (codes := [process.poll() for process in started]) and not any(codes):
        time.sleep(0.05)
    if signals := [code for code in codes if code and code < 0]:
        print(f"[launch.py:259:sigkill_handler] {call} exits with return code = {signals[0]}", flush=True)
    sys.exit(max(process.wait() & 0xFF for process in started))

descriptor, spec, rank = nodes.call(words[1], int(words[2]), words[3])
nodes.end_with_parent(descriptor)
channel = Channel(descriptor)
heartbeat.LOOK_SECONDS = spec.get("heartbeat", heartbeat.LOOK_SECONDS)
heartbeat.start(channel.send)
print(f"this is rank {rank}", flush=True)
channel.send("hello", True, rank=rank, pid=os.getpid(), environment=spec["environment"])
match spec["actions"][rank]:
    case "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    case "hang":
        time.sleep(600)
    case "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    case "work":
        until = time.monotonic() + spec.get("working", 30)
        while time.monotonic() < until:
            pass
    case "error":
        channel.send("error", type="UnsupportedError", message="this cannot be", hint="do otherwise")
        channel.send("end", code=3)
        sys.exit(3)
channel.send("end", code=0)
