"""Stands in for ``sparsebench.runtime.rank`` in the tests of groups: does what the spec tells its rank to do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sparsebench.children import die_with_parent
from sparsebench.runtime import watch
from sparsebench.runtime.channel import Channel
from sparsebench.runtime.launch import CHANNEL, PARENT
from sparsebench.sources import Cache

die_with_parent(int(os.environ[PARENT]))
watch.answer_requests()
spec, rank = json.loads(Path(sys.argv[1]).read_text())["job"], int(sys.argv[2])
channel = Channel(int(os.environ[CHANNEL]))
action = spec["actions"][rank]
# Nobody acts before all of this machine have started: how long a process takes to start says nothing about who failed first.
started = Path(sys.argv[1]).parent
(started / f"started-{rank}").touch()
while len(list(started.glob("started-*"))) < int(os.environ["LOCAL_SIZE"]):
    Path(sys.argv[1]).read_bytes()  # one that waits for the others is not idle
    time.sleep(0.01)
print(f"this is rank {rank}", flush=True)
channel.send("hello", True, rank=rank, pid=os.getpid(), environment=dict(os.environ))
if action == "buffer":
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{rank}"
    (Path(spec["buffers"]) / name).touch()
elif action == "sigkill":
    os.kill(os.getpid(), signal.SIGKILL)
elif action == "abort":  # as NCCL does once another rank has failed
    while "error" in spec["actions"] and not (started / "failed").exists():
        time.sleep(0.01)
    os.abort()
elif action == "hang":
    time.sleep(600)
elif action == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
elif action == "lock":
    with Cache(Path(spec["cache"])).lock("kernels"):
        pass
elif action == "baton":  # as torch does while another loads what was compiled
    while Path(spec["lock"]).exists():
        time.sleep(0.05)
elif action == "work":
    until = time.monotonic() + 4
    while time.monotonic() < until:
        pass
elif action == "leave a child":
    child = subprocess.Popen(["sleep", "600"])
    channel.send("child", True, pid=child.pid)
    os.kill(os.getpid(), signal.SIGKILL)
elif action == "error":
    channel.send("error", type="UnsupportedError", message="this cannot be", hint="do otherwise")
    (started / "failed").touch()
    sys.exit(3)
elif action == "echo":
    channel.send("error", type="MeasureError", message="lost another rank", hint=None, echo=True)
    sys.exit(3)
elif action == "crash":
    raise ValueError("something unforeseen")
