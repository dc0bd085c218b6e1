"""The protocol by hand for agents that break it: correct up to the point where they misbehave."""

import json
import os
import sys


def send(**fields):
    send_bytes(json.dumps(fields).encode() + b"\n")


def send_bytes(data):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]


def receive():
    """The next message; the process ends, as it should, at SHUTDOWN and at the end of input."""
    line = sys.stdin.buffer.readline()
    message = json.loads(line) if line else {"type": "SHUTDOWN"}
    if message["type"] == "SHUTDOWN":
        sys.exit(0)
    return message


def ready():
    while receive()["type"] != "HELLO":
        pass
    send(type="READY", protocol=1, capabilities=["cancel", "checkpoint"])


def tasks():
    """Every task's id; other messages pass by."""
    while True:
        message = receive()
        if message["type"] == "TASK":
            yield message["taskId"]


def complete(task, result=None):
    send(type="COMPLETE", taskId=task, result=result)
