#!/usr/bin/env python3
"""Drives the agent libraries, the examples and the misbehaving agents through a fake daemon.

    python3 tests/agents/test_agents.py [-v] [TEST…]

KURULTAI_EXAMPLE_AGENT names a built examples/agent.rs to be driven as well. Every wait is for a condition, with a limit far
beyond what it takes; no test asserts a time."""

import base64
import collections
import contextlib
import http.server
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
BAD = os.path.join(HERE, "bad")
AGENTS = os.path.normpath(os.path.join(HERE, "..", "..", "scripts", "agents"))
LIMIT_S = float(os.environ.get("KURULTAI_TEST_LIMIT_S", "60"))
MAX_LINE = 1 << 20
MAX_CHECKPOINT = 256 << 10


def environment(**extra):
    """What the daemon gives a worker, and nothing else."""
    env = {"PATH": os.environ["PATH"], "KURULTAI_WORKER_ID": "w-1", "WORKER_ID": "w-1", "KURULTAI_AGENT": "test",
           "PYTHONDONTWRITEBYTECODE": "1"}
    env.update(extra)
    return env


def wait_for(condition, what):
    end = time.monotonic() + LIMIT_S
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError("waited %g s in vain for %s" % (LIMIT_S, what))
        time.sleep(0.01)


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class ProtocolError(Exception):
    """What the daemon would fail the task and replace the worker for."""


class FakeDaemon:
    """One persistent worker. Everything it sends is checked as strictly as interfaces, section 3, says."""

    def __init__(self, command, ready=True, cwd=None, **env):
        self.stderr_file = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr_file, bufsize=0,
            env=environment(**env), cwd=cwd)
        self.received = queue.Queue()
        self.task = None
        self.seq = 0
        self.counts = collections.Counter()  # messages by type
        self.seen = []  # everything but the message waited for
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if ready:
            self.hello()

    def _read(self):
        buffer = b""
        with contextlib.suppress(OSError, ValueError):
            for data in iter(lambda: self.process.stdout.read(1 << 16), b""):
                buffer += data
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    self.received.put(line)
                if len(buffer) > MAX_LINE:
                    self.received.put(buffer)
                    self.process.stdout.close()
                    return
        self.received.put(None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.reader.join(LIMIT_S)  # output has ended with its last writer
        self.process.stdout.close()
        self.stderr_file.close()

    def stderr(self):
        self.stderr_file.seek(0)
        return self.stderr_file.read().decode("utf-8", "replace")

    def send(self, **fields):
        self.send_bytes(json.dumps(fields).encode() + b"\n")

    def send_bytes(self, data):
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view):]

    def hello(self):
        self.send(type="HELLO", protocol=[1], workerId="w-1", agent="test", softMemoryLimitMB=300, hardMemoryLimitMB=512)
        ready = self.expect("READY")
        assert ready["protocol"] == 1, ready
        return ready

    def task_line(self, number, payload=None, raw=None, path=None, checkpoint=None, attempt=1):
        """A TASK as the daemon writes it: the payload is the last field."""
        fields = {"type": "TASK", "taskId": "t-%d" % number, "priority": "normal", "timeoutMs": 600000,
                  "attempt": attempt, "requestId": "req-%d" % number}
        if checkpoint is not None:
            fields["checkpoint"] = checkpoint
        fields["payloadType"] = "json" if raw is None and not (path or "").endswith(".raw") else "raw"
        if path is not None:
            fields["payloadPath"] = path
        else:
            fields["payload"] = payload if raw is None else raw
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    def start(self, number, **kinds):
        self.task, self.seq = "t-%d" % number, 0
        self.send_bytes(self.task_line(number, **kinds))

    def next(self):
        """The next message, or None at the end of output."""
        line = self.received.get(timeout=LIMIT_S)
        if line is None:
            return None
        if len(line) >= MAX_LINE:
            raise ProtocolError("a line over 1 MiB: %r" % line[:40])
        try:
            message = json.loads(line.decode())
        except ValueError as error:
            raise ProtocolError("%s: %r" % (error, line[:80])) from error
        if not isinstance(message, dict):
            raise ProtocolError("no object: %r" % line[:80])
        if message.get("taskId", self.task) != self.task:
            raise ProtocolError("not its task: %r" % line[:80])
        self.counts[message.get("type")] += 1
        if message.get("type") == "CHUNK":
            if message["seq"] != self.seq:
                raise ProtocolError("seq %s instead of %d" % (message["seq"], self.seq))
            self.seq += 1
        if len(json.dumps(message.get("checkpoint"), ensure_ascii=False, separators=(",", ":")).encode()) > MAX_CHECKPOINT:
            raise ProtocolError("a checkpoint over 256 KiB")
        return message

    def expect(self, *types):
        """The next message of one of the types; others are kept in `seen`."""
        while True:
            message = self.next()
            if message is None:
                raise AssertionError("output ended, waiting for %s; seen %.2000r; stderr: %s"
                                     % (types, self.seen, self.stderr()[-2000:]))
            if message.get("type") in types:
                return message
            self.seen.append(message)

    def finish(self):
        """How the running task ends: (message, result bytes of the chunks or None, the progress messages)."""
        self.seen = []
        end = self.expect("COMPLETE", "FAILED", "PREEMPTED")
        chunks = [m for m in self.seen if m["type"] == "CHUNK"]
        progress = [m for m in self.seen if m["type"] == "PROGRESS"]
        body = None
        if chunks:
            assert "result" not in end, end
            body = b"".join(
                m["data"].encode() if m["encoding"] == "utf8" else base64.b64decode(m["data"], validate=True) for m in chunks)
        return end, body, progress

    def run(self, number, **kinds):
        self.start(number, **kinds)
        return self.finish()

    def result(self, number, **kinds):
        end, body, _ = self.run(number, **kinds)
        assert end["type"] == "COMPLETE", end
        return body if body is not None else end["result"]

    def stop(self, how="SHUTDOWN"):
        """The exit status after SHUTDOWN or the end of input."""
        if how == "SHUTDOWN":
            self.send(type="SHUTDOWN")
        self.process.stdin.close()
        return self.process.wait(LIMIT_S)


class Scratch(unittest.TestCase):
    maxDiff = 4000

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="kurultai-agents-test.")
        self.addCleanup(shutil.rmtree, self.dir)

    def file(self, name, data):
        path = os.path.join(self.dir, name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def path(self, name):
        return os.path.join(self.dir, name)


TEXT = 'a "quoted" \\ line\nü €\t😀\x01\x7f end'

# One agent a library, all doing the same by the payload's "do".

PYTHON_AGENT = r'''
import os, subprocess, sys, threading, time
sys.path.insert(0, %(agents)r)
import kurultai
caches = []
kurultai.on_gc(lambda: caches.append(1))
def until(condition):
    while not condition():
        time.sleep(0.005)
def handle(task):
    payload = task.payload
    do = payload.get("do", "echo") if isinstance(payload, dict) else "echo"
    if do == "echo":
        return payload
    if do == "about":
        return {"id": task.id, "attempt": task.attempt, "requestId": task.request_id, "priority": task.priority,
                "timeoutMs": task.timeout_ms, "checkpoint": task.checkpoint}
    if do == "progress":
        for i in range(payload["steps"] + 1):
            task.progress(i / payload["steps"], "step %%d" %% i, {"i": i})
        return None
    if do == "chunk":
        for _ in range(payload["times"]):
            task.chunk(payload["text"] * payload["repeat"])
        return None
    if do == "bytes":
        return bytes(range(256)) * payload["repeat"]
    if do == "large":
        return payload["text"] * payload["repeat"]
    if do == "check":
        task.percent(1, "listening")
        kurultai.log("info", "started")
        until(lambda: task.check())
    if do == "callback":
        told = []
        task.on_cancel(told.append)
        kurultai.log("info", "started")
        until(lambda: told)           # never looks at the task itself
        raise RuntimeError("told: " + told[0])
    if do == "preempt":
        i = (task.checkpoint or {}).get("i", 0)
        if payload["by"] == "callback":
            task.on_preempt(lambda: {"i": i})
        kurultai.log("info", "started")
        while i < payload["steps"]:
            i += 1
            if payload["by"] == "progress":
                task.percent(0, checkpoint={"i": i})
            if task.attempt == 1 or i < payload["steps"]:
                time.sleep(0.005)
            if i == payload["steps"] and payload["hold"] and task.attempt == 1:
                i = 1
            task.check()
        return {"i": i}
    if do == "busy":
        kurultai.log("info", "started")
        until(lambda: caches)
        return len(caches)
    if do == "fail":
        raise (kurultai.Retryable if payload["retryable"] else ValueError)(payload["text"])
    if do == "breaker":
        if payload["outcome"] == "acquire":
            return kurultai.breaker("api").acquire()
        with kurultai.breaker("api"):
            if payload["outcome"] == "failure":
                raise ValueError("the other side")
        return "ok"
    if do == "print":
        print("a stray print")
        sys.stdout.write("another, no newline")
        os.write(1, b"and one to fd 1\n")
        subprocess.run(["sh", "-c", "echo from a child; cat"], check=True)
        return "clean"
    if do == "stream":
        with task.open() as file:
            return sum(len(piece) for piece in iter(lambda: file.read(1000), b""))
    if do == "nan":
        return float("nan")
    if do == "exit":
        sys.exit(7)
    raise ValueError("do what? " + str(do))
print("before serve")
kurultai.serve(handle)
'''

NODE_AGENT = r'''
import fs from 'node:fs';
import {spawnSync} from 'node:child_process';
import * as kurultai from %(url)s;
const caches = [];
kurultai.onGc(() => caches.push(1));
const tick = (ms = 5) => new Promise((resolve) => setTimeout(resolve, ms));
const spin = (ms) => { const end = performance.now() + ms; while (performance.now() < end); };
const actions = {
  echo: (task) => task.payload,
  about: (task) => ({id: task.id, attempt: task.attempt, requestId: task.requestId, priority: task.priority,
    timeoutMs: task.timeoutMs, checkpoint: task.checkpoint ?? null}),
  progress: (task, {steps}) => {
    for (let i = 0; i <= steps; i += 1) task.progress(i / steps, {message: `step ${i}`, checkpoint: {i}});
  },
  chunk: (task, {times, text, repeat}) => { for (let i = 0; i < times; i += 1) task.chunk(text.repeat(repeat)); },
  bytes: (task, {repeat}) => Buffer.concat(Array(repeat).fill(Buffer.from([...Array(256).keys()]))),
  large: (task, {text, repeat}) => text.repeat(repeat),
  check: async (task) => {
    task.percent(1, {message: 'listening'});
    kurultai.log('info', 'started');
    for (;;) { task.check(); await tick(); }
  },
  checkSync: (task) => { kurultai.log('info', 'started'); for (;;) { task.check(); spin(1); } },
  callback: (task) => new Promise((_, reject) => {
    task.onCancel((reason) => reject(new Error(`told: ${reason}`)));
    kurultai.log('info', 'started');
  }),
  signal: (task) => new Promise((_, reject) => {
    task.signal.addEventListener('abort', () => reject(task.signal.reason));
    kurultai.log('info', 'started');
  }),
  preempt: async (task, {by, steps, hold}) => {
    let i = task.checkpoint?.i ?? 0;
    if (by === 'callback') task.onPreempt(() => ({i}));
    kurultai.log('info', 'started');
    while (i < steps) {
      i += 1;
      if (by === 'progress') task.percent(0, {checkpoint: {i}});
      await tick(1);
      if (i === steps && hold && task.attempt === 1) i = 1;
      task.check();
    }
    return {i};
  },
  busy: async () => { kurultai.log('info', 'started'); while (caches.length === 0) await tick(); return caches.length; },
  fail: (task, {text, retryable}) => { throw retryable ? new kurultai.Retryable(text) : new RangeError(text); },
  failAsync: async (task, {text}) => { await tick(); throw new RangeError(text); },
  breaker: async (task, {outcome}) => {
    if (outcome === 'acquire') return kurultai.breaker('api').acquire();
    return kurultai.breaker('api').run(() => { if (outcome === 'failure') throw new Error('the other side'); return 'ok'; });
  },
  print: () => {
    console.log('a stray print');
    console.table([{a: 1}]);
    process.stdout.write('another, no newline');
    spawnSync('sh', ['-c', 'echo from a child >&2; cat'], {stdio: ['ignore', 2, 2]});
    return 'clean';
  },
  stream: async (task) => { let size = 0; for await (const piece of task.stream()) size += piece.length; return size; },
  surrogate: () => 'half \ud83d of it',
  nothing: () => undefined,
};
kurultai.serve((task) => {
  const payload = task.payload;
  const act = actions[payload?.do] ?? actions.echo;
  return act(task, payload);
});
'''

SH_AGENT = r'''#!/bin/sh
. %(agents)s/kurultai.sh
handle_task() {
    payload=$(cat; echo .)
    payload=${payload%%.}
    case $payload in
    *'"do":"about"'*)
        printf '%%s|%%s|%%s|%%s|%%s' "$KURULTAI_TASK_ID" "$KURULTAI_ATTEMPT" "$KURULTAI_REQUEST_ID" "$KURULTAI_PRIORITY" \
            "$KURULTAI_CHECKPOINT" ;;
    *'"do":"progress"'*)
        i=0
        while [ $i -le 100 ]; do kurultai_progress $i "step $i" "{\"i\":$i}"; i=$((i + 5)); done ;;
    *'"do":"bytes"'*) head -c 1500000 %(blob)s ;;
    *'"do":"hang"'*)
        kurultai_progress 0 '' '{"i":3}'
        sh -c 'echo $$ >%(pids)s.new; mv %(pids)s.new %(pids)s; exec sleep 1000'
        echo not reached ;;
    *'"do":"stubborn"'*)
        trap '' TERM
        sh -c 'echo $$ >%(pids)s.new; mv %(pids)s.new %(pids)s; while :; do sleep 1000; done' ;;
    *'"do":"fail"'*)
        echo 'first line' >&2
        printf 'it is "broken" \\ \377 \303\274\n\n' >&2
        exit 3 ;;
    *'"do":"tempfail"'*) return 75 ;;
    *'"do":"print"'*) echo 'to the log' >&2; kurultai_log warn 'a "log" line'; printf clean ;;
    *'"do":"breaker"'*)
        if permit=$(kurultai_breaker_acquire api); then
            kurultai_breaker_%(outcome)s api "$permit"
            printf 'permit %%s' "$permit"
        else
            printf 'wait %%s' "$permit"
        fi ;;
    *) printf '%%s' "$payload" ;;
    esac
}
kurultai_serve
'''


class LibraryTests:
    """What every library does alike. Subclasses give `command()`."""

    def can_read(self, text):
        """Whether the library's language can read this valid JSON."""
        return True

    def daemon(self, **kinds):
        return FakeDaemon(self.command(), **kinds)

    def test_it_answers_hello_once_and_exits_0_at_shutdown(self):
        with self.daemon(ready=False) as daemon:
            ready = daemon.hello()
            self.assertIn("cancel", ready["capabilities"])
            self.assertEqual(daemon.stop(), 0)
            self.assertIsNone(daemon.next())

    def test_started_for_one_task_it_says_which_mode_it_needs(self):
        environ = environment(KURULTAI_TASK_ID="t-1", TMPDIR=self.dir)
        ran = subprocess.run(self.command(), input=b"[1,2]", env=environ, capture_output=True, timeout=LIMIT_S)
        self.assertEqual((ran.returncode, ran.stdout.replace(b"before serve\n", b"")), (1, b""))
        self.assertRegex(ran.stderr.decode(), r'\A[^\n]*: set mode = "persistent" in \[agents\.test\]\n\Z')

    def test_it_exits_0_at_the_end_of_input(self):
        with self.daemon() as daemon:
            self.assertEqual(daemon.stop("EOF"), 0)

    def test_it_finishes_its_task_before_a_shutdown(self):
        with self.daemon() as daemon:
            daemon.start(1, payload={"do": "about"})
            self.assertEqual(daemon.stop(), 0)
            end, _, _ = daemon.finish()
            self.assertEqual(end["type"], "COMPLETE")

    def test_a_stale_cancel_and_unknown_messages_change_nothing(self):
        with self.daemon() as daemon:
            daemon.send(type="CANCEL", taskId="t-77", reason="late")
            daemon.send(type="PREEMPT", taskId="t-77", reason="priority", checkpointTimeoutMs=5000)
            daemon.send(type="HOROSCOPE", sign="aries", nested={"type": "SHUTDOWN"})
            self.assertEqual(daemon.run(1, payload=[1])[0]["type"], "COMPLETE")

    def test_json_that_a_language_may_not_read_is_answered_and_the_worker_lives_on(self):
        payloads = {"digits": "[" + "7" * 5000 + "]", "nested": "[" * 1100 + "]" * 1100, "deep": "[" * 30_000 + "]" * 30_000}
        with self.daemon() as daemon:
            for number, (what, text) in enumerate(payloads.items(), 1):
                line = daemon.task_line(number, payload={"do": "about", "what": "HERE"}).replace(b'"HERE"', text.encode())
                daemon.task, daemon.seq = "t-%d" % number, 0
                daemon.send_bytes(line)
                end, _, _ = daemon.finish()
                if self.can_read(text):
                    self.assertEqual(end["type"], "COMPLETE", what)
                else:
                    self.assertEqual((end["type"], end["retryable"]), ("FAILED", False), what)
                    self.assertRegex(end["error"], "cannot read this task .*Error.*: nest less deeply, .* as text", what)
            self.assertEqual(daemon.run(9, payload=[1])[0]["type"], "COMPLETE")
            self.assertEqual(daemon.stop(), 0)

    def test_gc_while_idle_is_answered_with_memory(self):
        with self.daemon() as daemon:
            daemon.send(type="GC")
            memory = daemon.expect("MEMORY")
            with open("/proc/%d/statm" % daemon.process.pid) as statm:
                now = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self.assertTrue(now / 4 < memory["rss"] < now * 4, (memory, now))


class SameApiTests(LibraryTests):
    """What Python and Node do alike."""

    def test_a_payload_comes_back_whatever_its_way_in(self):
        value = {"text": TEXT, "list": [1, 2.5, None, True, {"payload": "}"}], "": {}}
        with self.daemon() as daemon:
            self.assertEqual(daemon.result(1, payload=value), value)
            self.assertEqual(daemon.result(2, raw=TEXT), TEXT)
            self.assertEqual(daemon.result(3, path=self.file("p.json", json.dumps(value).encode())), value)
            self.assertEqual(daemon.result(4, path=self.file("text.raw", TEXT.encode())), TEXT)
            self.assertEqual(daemon.result(5, path=self.file("bytes.raw", b"\xff\x00\xfe")), b"\xff\x00\xfe")
            self.assertIsNone(daemon.result(6, payload=None))
            self.assertEqual(daemon.result(7, raw=""), "")

    def test_a_task_that_cannot_be_read_at_all_is_failed_in_its_turn(self):
        with self.daemon() as daemon:
            daemon.send_bytes(b'{"type":"TASK","taskId":"t-1","attempt":1,"payload":[}\n' + daemon.task_line(2, payload=1))
            daemon.task = "t-1"
            end, _, _ = daemon.finish()
            self.assertEqual((end["type"], end["retryable"]), ("FAILED", False))
            daemon.task = "t-2"
            self.assertEqual(daemon.finish()[0]["result"], 1)

    def test_a_task_carries_its_fields(self):
        with self.daemon() as daemon:
            about = daemon.result(1, payload={"do": "about"}, attempt=3, checkpoint={"payload": "}\""})
            self.assertEqual(about, {"id": "t-1", "attempt": 3, "requestId": "req-1", "priority": "normal",
                                     "timeoutMs": 600000, "checkpoint": {"payload": "}\""}})
            self.assertIsNone(daemon.result(2, payload={"do": "about"})["checkpoint"])

    def test_many_lines_in_one_read_and_one_line_in_many(self):
        with self.daemon() as daemon:
            line = daemon.task_line(1, payload={"do": "echo", "text": TEXT * 1000})
            for at in range(0, len(line), 1009):
                daemon.send_bytes(line[at:at + 1009])
            daemon.task = "t-1"
            self.assertEqual(daemon.finish()[0]["type"], "COMPLETE")
            daemon.send_bytes(daemon.task_line(2, payload={"do": "check"})
                              + b'{"type":"CANCEL","taskId":"t-2","reason":"at once"}\n')
            daemon.task = "t-2"
            self.assertEqual(daemon.finish()[0]["error"], "cancelled: at once")

    def test_progress_goes_out_at_every_tenth_with_its_checkpoint(self):
        for steps in (1000, 20, 10, 4):
            with self.daemon() as daemon:
                _, _, progress = daemon.run(1, payload={"do": "progress", "steps": steps})
                expected = [p for p in (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)] if steps >= 10 else [25, 50, 75, 100]
                self.assertEqual([m["percent"] for m in progress], expected, steps)
                for message in progress:
                    i = steps * message["percent"] // 100
                    self.assertEqual((message["message"], message["checkpoint"]), ("step %d" % i, {"i": i}))

    def test_chunks_are_the_result_bytes(self):
        # "x" first, so that the pieces' borders fall within the surrogate pair of Node's strings.
        for text, repeat, times in (("ü€😀", 50, 3), ("😀", 300_000, 1), ("x" + "😀" * 200_000, 1, 2), ("\x01", 500_000, 1),
                                    ('"\\', 300_000, 1), ("", 1, 1)):
            with self.daemon() as daemon:
                end, body, _ = daemon.run(1, payload={"do": "chunk", "text": text, "repeat": repeat, "times": times})
                self.assertEqual(end["type"], "COMPLETE")
                self.assertTrue((body or b"").decode() == text * repeat * times, text[:9])

    def test_bytes_and_large_results_go_out_in_chunks(self):
        with self.daemon() as daemon:
            self.assertTrue(daemon.result(1, payload={"do": "bytes", "repeat": 6000}) == bytes(range(256)) * 6000)
            large = daemon.result(2, payload={"do": "large", "text": "\u00e9\"\x02", "repeat": 400_000})
            self.assertTrue(json.loads(large) == "\u00e9\"\x02" * 400_000)
            small = daemon.result(3, payload={"do": "large", "text": "s", "repeat": 900_000})
            self.assertTrue((json.loads(small) if isinstance(small, bytes) else small) == "s" * 900_000)

    def test_a_cancel_reaches_check_and_callback_and_the_worker_lives_on(self):
        with self.daemon() as daemon:
            for number, do in enumerate(self.cancellable, 1):
                daemon.start(number, payload={"do": do})
                daemon.expect("LOG")
                daemon.send(type="CANCEL", taskId=daemon.task, reason="the client asked")
                end, _, _ = daemon.finish()
                self.assertEqual(end["type"], "FAILED", do)
                self.assertIn("the client asked", end["error"], do)
                self.assertFalse(end["retryable"])
            self.assertEqual(daemon.result(99, payload="still here"), "still here")

    def test_a_preempted_task_goes_on_from_its_checkpoint_to_the_same_result(self):
        for by in ("callback", "progress"):
            with self.daemon() as daemon:
                payload = {"do": "preempt", "by": by, "steps": 40, "hold": False}
                whole = daemon.result(1, payload=payload)
                payload["hold"] = True  # the first attempt goes round until it is preempted
                daemon.start(2, payload=payload)
                daemon.expect("LOG")
                daemon.send(type="PREEMPT", taskId="t-2", reason="memory_pressure", checkpointTimeoutMs=5000)
                end, _, _ = daemon.finish()
                self.assertEqual(end["type"], "PREEMPTED", by)
                self.assertGreaterEqual(end["checkpoint"]["i"], 1)
                self.assertEqual(daemon.result(2, payload=payload, checkpoint=end["checkpoint"], attempt=2), whole)

    def test_gc_is_answered_while_a_handler_runs(self):
        with self.daemon() as daemon:
            daemon.start(1, payload={"do": "busy"})
            daemon.expect("LOG")
            daemon.send(type="GC")
            # The handler may end before the collector does.
            self.assertEqual(daemon.finish()[0]["result"], 1)
            if not daemon.counts["MEMORY"]:
                daemon.expect("MEMORY")

    def test_memory_follows_the_first_task_but_not_every_one(self):
        with self.daemon() as daemon:
            for number in range(1, 51):
                daemon.result(number, payload=number)
            daemon.process.stdin.close()
            while daemon.next() is not None:
                pass
            memory = daemon.counts["MEMORY"]
            # Fewer than one a task, however slow the host: at most one a second.
            self.assertTrue(1 <= memory < 50, memory)

    def test_a_failure_carries_error_stack_and_retryable(self):
        with self.daemon() as daemon:
            end, _, _ = daemon.run(1, payload={"do": "fail", "text": "line one\nline two ü", "retryable": False})
            self.assertEqual((end["type"], end["retryable"]), ("FAILED", False))
            self.assertRegex(end["error"], r"^\w+Error: line one line two ü$")
            self.assertIn(self.name, end["stack"])
            end, _, _ = daemon.run(2, payload={"do": "fail", "text": "x" * 50_000, "retryable": True})
            self.assertTrue(end["retryable"])
            self.assertLessEqual(len(end["error"]), 8192)
            self.assertLessEqual(len(end["stack"]), 8192)
            self.assertEqual(daemon.result(3, payload="still here"), "still here")

    def test_a_breaker_is_acquired_reported_and_respected(self):
        with self.daemon() as daemon:
            for number, (outcome, ends) in enumerate((("success", "COMPLETE"), ("failure", "FAILED")), 1):
                daemon.start(number, payload={"do": "breaker", "outcome": outcome})
                asked = daemon.expect("BREAKER")
                self.assertEqual(asked, {"type": "BREAKER", "name": "api", "op": "acquire"})
                daemon.send(type="BREAKER_STATE", name="api", permit="p-%d" % number)
                told = daemon.expect("BREAKER")
                self.assertEqual(told, {"type": "BREAKER", "name": "api", "op": outcome, "permit": "p-%d" % number})
                self.assertEqual(daemon.finish()[0]["type"], ends)
            daemon.start(3, payload={"do": "breaker", "outcome": "acquire"})
            daemon.expect("BREAKER")
            daemon.send(type="BREAKER_STATE", name="api", retryAfterMs=4000)
            end, _, _ = daemon.finish()
            self.assertEqual((end["type"], end["retryable"]), ("FAILED", True))
            self.assertIn("4000 ms", end["error"])

    def test_a_cancel_is_heard_while_waiting_for_a_breaker(self):
        with self.daemon() as daemon:
            daemon.start(1, payload={"do": "breaker", "outcome": "success"})
            daemon.expect("BREAKER")
            daemon.send(type="CANCEL", taskId="t-1", reason="late")
            daemon.send(type="GC")
            daemon.send(type="BREAKER_STATE", name="api", permit="p-1")
            self.assertEqual(daemon.expect("BREAKER")["op"], "success")
            daemon.expect("COMPLETE", "FAILED")

    def test_stray_prints_go_to_stderr(self):
        with self.daemon() as daemon:
            self.assertEqual(daemon.result(1, payload={"do": "print"}), "clean")
            daemon.stop()
            for text in ("a stray print", "another, no newline", "from a child"):
                self.assertIn(text, daemon.stderr())

    def test_a_large_payload_is_streamed_from_its_file(self):
        path = self.file("large.json", json.dumps({"do": "stream", "text": "x" * 3_000_000}).encode())
        with self.daemon() as daemon:
            self.assertEqual(daemon.result(1, path=path), os.path.getsize(path))

    def test_a_missing_payload_file_fails_the_task_only(self):
        with self.daemon() as daemon:
            end, _, _ = daemon.run(1, path=self.path("gone.json"))
            self.assertEqual(end["type"], "FAILED")
            self.assertIn("gone.json", end["error"])
            self.assertEqual(daemon.result(2, payload=1), 1)

    def test_the_daemons_death_ends_the_worker(self):
        with self.daemon() as daemon:
            daemon.process.stdin.close()
            self.assertEqual(daemon.process.wait(LIMIT_S), 0)


class PythonLibrary(SameApiTests, Scratch):
    name = "agent.py"
    cancellable = ("check", "callback")

    def command(self):
        return [sys.executable, self.file(self.name, (PYTHON_AGENT % {"agents": AGENTS}).encode())]

    def can_read(self, text):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return False
        return True

    def test_a_result_that_is_no_json_fails_the_task(self):
        with self.daemon() as daemon:
            self.assertEqual(daemon.run(1, payload={"do": "nan"})[0]["type"], "FAILED")
            self.assertEqual(daemon.result(2, payload=1), 1)

    def test_an_exit_in_a_handler_ends_the_worker_with_its_status(self):
        with self.daemon() as daemon:
            daemon.start(1, payload={"do": "exit"})
            self.assertEqual(daemon.process.wait(LIMIT_S), 7)

    def test_interrupts_are_not_lost_between_short_tasks(self):
        # Tasks that end at once, each with a CANCEL on its heels: it hits the task or finds it gone, never the next one.
        with self.daemon() as daemon:
            for number in range(1, 301):
                daemon.start(number, payload=number)
                daemon.send(type="CANCEL", taskId=daemon.task, reason="race")
                self.assertEqual(daemon.finish()[0]["result"], number)


class NodeLibrary(SameApiTests, Scratch):
    name = "agent.mjs"
    cancellable = ("check", "checkSync", "callback", "signal")

    def command(self):
        url = json.dumps("file://" + AGENTS + "/kurultai.mjs")
        return ["node", self.file(self.name, (NODE_AGENT.replace("%(url)s", url)).encode())]

    def test_memory_has_the_heap(self):
        with self.daemon() as daemon:
            daemon.send(type="GC")
            memory = daemon.expect("MEMORY")
            self.assertEqual(set(memory), {"type", "heapUsed", "heapTotal", "rss", "external", "arrayBuffers"})
            self.assertLess(memory["heapUsed"], memory["rss"])

    def test_half_a_surrogate_pair_and_undefined_are_made_json(self):
        with self.daemon() as daemon:
            self.assertEqual(daemon.result(1, payload={"do": "surrogate"}), "half \ufffd of it")
            self.assertIsNone(daemon.result(2, payload={"do": "nothing"}))

    def test_an_async_failure_fails_the_task(self):
        with self.daemon() as daemon:
            end, _, _ = daemon.run(1, payload={"do": "failAsync", "text": "later"})
            self.assertEqual((end["type"], end["error"]), ("FAILED", "RangeError: later"))


class ShLibrary(LibraryTests, Scratch):
    outcome = "success"

    def command(self):
        self.blob = random.Random(1).randbytes(2_000_000)
        names = {"agents": AGENTS, "blob": self.file("blob", self.blob), "pids": self.path("pids"), "outcome": self.outcome}
        path = self.file("agent.sh", (SH_AGENT % names).encode())
        return ["sh", path]

    def daemon(self, **kinds):
        return FakeDaemon(self.command(), TMPDIR=self.dir, **kinds)

    def left_over(self):
        return [name for name in os.listdir(self.dir) if name.startswith("kurultai-agent.")]

    def test_a_payload_comes_back_whatever_its_way_in(self):
        value = {"text": TEXT, "list": [1, 2.5, None, True, {"payload": "}"}], "": {}}
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        with self.daemon() as daemon:
            self.assertEqual(daemon.result(1, payload=value).decode(), text)
            self.assertEqual(daemon.result(2, raw=TEXT).decode(), TEXT)
            self.assertEqual(daemon.result(3, path=self.file("p.json", text.encode())).decode(), text)
            self.assertEqual(daemon.result(4, raw="escaped \\ud83d\\ude00 \\n \"x\" \b\f\r/ \n"),
                             b"escaped \\ud83d\\ude00 \\n \"x\" \b\f\r/ \n")
            self.assertEqual(daemon.result(5, raw="x" * 60_000), b"x" * 60_000)
            # Escapes the daemon need not use are decoded as well.
            daemon.task, daemon.seq = "t-6", 0
            daemon.send_bytes(b'{"type":"TASK","taskId":"t-6","attempt":1,"payloadType":"raw","payload":"\\u00fc\\ud83d\\ude00\\/\\u20ac"}\n')
            self.assertEqual(daemon.finish()[1].decode(), "ü😀/€")
            daemon.stop()
        self.assertEqual(self.left_over(), [])

    def test_a_task_carries_its_fields(self):
        checkpoint = {"payload": ["}\"", {"a b": "\\"}], "taskId": "t-9"}
        with self.daemon() as daemon:
            about = daemon.result(1, payload={"do": "about"}, attempt=3, checkpoint=checkpoint).decode().split("|")
            self.assertEqual(about[:4], ["t-1", "3", "req-1", "normal"])
            self.assertEqual(json.loads(about[4]), checkpoint)
            self.assertEqual(daemon.result(2, payload={"do": "about"}), b"t-2|1|req-2|normal|")

    def test_progress_goes_out_at_every_tenth_with_its_checkpoint(self):
        with self.daemon() as daemon:
            end, body, progress = daemon.run(1, payload={"do": "progress"})
            self.assertEqual((end["type"], body), ("COMPLETE", None))
            self.assertEqual([(m["percent"], m["message"], m["checkpoint"]) for m in progress],
                             [(p, "step %d" % p, {"i": p}) for p in range(10, 101, 10)])

    def test_a_binary_result_is_split_into_chunks(self):
        with self.daemon() as daemon:
            self.assertTrue(daemon.result(1, payload={"do": "bytes"}) == self.blob[:1_500_000])

    def test_a_json_result_where_the_agent_says_so(self):
        command = self.command()
        with FakeDaemon(command, KURULTAI_RESULT="json", TMPDIR=self.dir) as daemon:
            self.assertEqual(daemon.result(1, payload={"a": [1, TEXT]}), {"a": [1, TEXT]})

    def test_cancel_and_preempt_end_the_handler_and_its_children(self):
        with self.daemon() as daemon:
            for number, (do, request, answer) in enumerate((
                    ("hang", "CANCEL", "FAILED"), ("hang", "PREEMPT", "PREEMPTED"), ("stubborn", "CANCEL", "FAILED")), 1):
                daemon.start(number, payload={"do": do})
                wait_for(lambda: os.path.exists(self.path("pids")), "the handler's child")
                with open(self.path("pids")) as file:
                    child = int(file.read())
                os.unlink(self.path("pids"))
                daemon.send(type=request, taskId=daemon.task, reason="priority", checkpointTimeoutMs=5000)
                end, _, _ = daemon.finish()
                self.assertEqual(end["type"], answer, do)
                if answer == "PREEMPTED":
                    self.assertEqual(end["checkpoint"], {"i": 3})
                wait_for(lambda: not alive(child), "the death of the handler's child (%s, %s)" % (do, request))
            self.assertEqual(daemon.result(9, raw="still here"), b"still here")

    def test_a_failure_carries_the_last_line_of_stderr(self):
        with self.daemon() as daemon:
            end, _, _ = daemon.run(1, payload={"do": "fail"})
            self.assertEqual((end["type"], end["error"], end["retryable"]), ("FAILED", 'it is "broken" \\ ? ü', False))
            end, _, _ = daemon.run(2, payload={"do": "tempfail"})
            self.assertEqual((end["type"], end["error"], end["retryable"]), ("FAILED", "handle_task returned 75", True))
            self.assertIn("first line", daemon.stderr())

    def test_stray_prints_go_to_stderr_and_log_is_a_message(self):
        with self.daemon() as daemon:
            self.assertEqual(daemon.result(1, payload={"do": "print"}), b"clean")
            self.assertIn({"type": "LOG", "level": "warn", "message": 'a "log" line'}, daemon.seen)
            self.assertIn("to the log", daemon.stderr())

    def test_a_breaker_is_acquired_reported_and_respected(self):
        for self.outcome in ("success", "failure"):
            with self.daemon() as daemon:
                daemon.start(1, payload={"do": "breaker"})
                self.assertEqual(daemon.expect("BREAKER"), {"type": "BREAKER", "name": "api", "op": "acquire"})
                daemon.send(type="BREAKER_STATE", name="api", permit="p-1")
                self.assertEqual(daemon.expect("BREAKER"),
                                 {"type": "BREAKER", "name": "api", "op": self.outcome, "permit": "p-1"})
                self.assertEqual(daemon.finish()[1], b"permit p-1")
                daemon.start(2, payload={"do": "breaker"})
                daemon.expect("BREAKER")
                daemon.send(type="BREAKER_STATE", name="api", retryAfterMs=4000)
                self.assertEqual(daemon.finish()[1], b"wait 4000")
                # Cancelled while it waits: the answer that comes too late is nobody's.
                daemon.start(3, payload={"do": "breaker"})
                daemon.expect("BREAKER")
                daemon.send(type="CANCEL", taskId="t-3", reason="late")
                self.assertEqual(daemon.finish()[0]["type"], "FAILED")
                daemon.start(4, payload={"do": "breaker"})
                daemon.expect("BREAKER")
                daemon.send(type="BREAKER_STATE", name="api", permit="p-4")
                self.assertEqual(daemon.finish()[1], b"permit p-4")


class Examples(Scratch):
    def agent(self, name, **env):
        return FakeDaemon([os.path.join(AGENTS, name)], **env)

    def test_echo_returns_its_payload(self):
        with self.agent("echo.py") as daemon:
            self.assertEqual(daemon.result(1, payload={"a": TEXT}), {"a": TEXT})
            self.assertEqual(daemon.stop(), 0)

    LOG = ('10.0.0.{i} - - [10/Oct/2000:13:55:36 -0700] "GET /page/{page}?q={i} HTTP/1.1" {status} {size}'
           ' "http://ref/" "agent \\"quoted\\" {i}"\n')

    def access_log(self, lines, urls=40):
        chosen = random.Random(7)
        for i in range(lines):
            if i % 1000 == 17:
                yield "this is no log line\n".encode()
            elif i % 1000 == 18:
                yield b'1.2.3.4 - - [x] "-" 408 -\n'
            else:
                page = min(chosen.randrange(urls), chosen.randrange(urls))
                yield self.LOG.format(i=i, page=page, status=chosen.choice((200, 200, 304, 404, 500)),
                                      size=chosen.randrange(10_000)).encode()

    def count(self, lines):
        """The same figures by other means."""
        urls, statuses, size = {}, {}, 0
        for line in lines:
            match = re.search(r'"(?:GET (?P<url>[^ ?"]+).*?|-)" (?P<status>\d+) (?P<size>\d+|-)', line.decode())
            if match:
                statuses[match["status"]] = statuses.get(match["status"], 0) + 1
                size += 0 if match["size"] == "-" else int(match["size"])
                if match["url"]:
                    urls[match["url"]] = urls.get(match["url"], 0) + 1
        top = sorted(urls.items(), key=lambda item: (-item[1], item[0]))[:10]
        return {"bytes": size, "status": statuses, "topUrls": [{"url": u, "count": c} for u, c in top]}

    def test_logstats_counts_inline_and_from_a_file(self):
        lines = list(self.access_log(3000))
        with self.agent("logstats") as daemon:
            for number, way in ((1, {"raw": b"".join(lines[:200]).decode()}),
                                (2, {"path": self.file("log.raw", b"".join(lines))})):
                result = daemon.result(number, **way)
                expected = self.count(lines[:200] if "raw" in way else lines)
                self.assertEqual({key: result[key] for key in expected}, expected)
                self.assertEqual(result["topUrlsTooLowBy"], 0)
            self.assertEqual((result["lines"], result["unparsed"]), (3000, 3))
            self.assertEqual(daemon.result(3, raw="")["lines"], 0)
            odd = daemon.result(4, path=self.file("odd.raw", b"\xff\xfe\n" + b"x" * 200_000 + b"\nno newline"))
            self.assertEqual(odd["unparsed"], odd["lines"])

    def test_logstats_preempted_again_and_again_ends_in_the_same_result(self):
        # 5,000 different URLs, so that the bounded counters are at work too.
        path = self.file("log.raw", b"".join(self.access_log(120_000, urls=5_000)))
        with self.agent("logstats") as daemon:
            whole = daemon.result(1, path=path)
            self.assertGreater(whole["topUrlsTooLowBy"], 0)
            checkpoint, preempted, offsets = None, 0, []
            for attempt in range(1, 100):
                daemon.start(2, path=path, checkpoint=checkpoint, attempt=attempt)
                if preempted < 3:
                    daemon.expect("PROGRESS", "COMPLETE")
                    daemon.send(type="PREEMPT", taskId="t-2", reason="memory_pressure", checkpointTimeoutMs=5000)
                end, _, _ = daemon.finish()
                if end["type"] == "COMPLETE":
                    break
                preempted += 1
                checkpoint = end["checkpoint"]
                offsets.append(checkpoint["offset"])
            self.assertEqual(end["result"], whole)
            self.assertGreaterEqual(preempted, 1)
            self.assertEqual(offsets, sorted(set(offsets)))

    MARKDOWN = """# One *& two*
text with `<code>` and <b>, [good](https://e.org/?a=1&b=2), [bad](javascript:alert)

```js
# no heading
let x = '<&>';
```

## Same
## Same
## `Same`
#### Deep ####
Under
line
====
- item one
- item **two**

~~~
``` not the end
"""

    def test_render_makes_contents_and_html(self):
        with self.agent("render") as daemon:
            for number, payload in enumerate(({"raw": self.MARKDOWN}, {"payload": {"markdown": self.MARKDOWN}},
                                              {"path": self.file("m.raw", self.MARKDOWN.encode())}), 1):
                html = daemon.result(number, **payload).decode()
                self.assertEqual(re.findall(r'<h(\d) id="([^"]+)">', html),
                                 [("1", "one--two"), ("2", "same"), ("2", "same-1"), ("2", "same-2"), ("4", "deep"),
                                  ("1", "under-line")])
                nav = html[:html.index("</nav>")]
                self.assertEqual(re.findall(r'href="#([^"]+)"', nav),
                                 ["one--two", "same", "same-1", "same-2", "deep", "under-line"])
                self.assertEqual((nav.count("<ul>"), nav.count("<li>")), (nav.count("</ul>"), nav.count("</li>")))
                for part in ('<pre><code class="language-js"># no heading\nlet x = \'&lt;&amp;&gt;\';\n</code></pre>',
                             "<code>&lt;code&gt;</code> and &lt;b&gt;", '<a href="https://e.org/?a=1&amp;b=2">good</a>, bad',
                             "<li>item one</li>\n<li>item <strong>two</strong></li>", "<pre><code>``` not the end\n"):
                    self.assertIn(part, html)
            end, _, _ = daemon.run(9, payload=[1])
            self.assertEqual(end["type"], "FAILED")
            self.assertIn("TypeError", end["stack"])

    def test_render_splits_a_large_document_and_can_be_cancelled(self):
        text = "".join("## Heading %d\n\nsome text ü😀 %d\n\n" % (i % 7, i) for i in range(30_000))
        path = self.file("large.raw", text.encode())
        with self.agent("render") as daemon:
            end, body, progress = daemon.run(1, path=path)
            self.assertEqual(end["type"], "COMPLETE")
            self.assertEqual(body.decode().count("<h2 id="), 30_000)
            self.assertEqual(len(set(re.findall(r'<h2 id="([^"]+)"', body.decode()))), 30_000)
            self.assertEqual([int(m["percent"] // 10) for m in progress], list(range(1, 10)))
            daemon.start(2, path=path)
            daemon.send(type="CANCEL", taskId="t-2", reason="no longer wanted")
            end, _, _ = daemon.finish()
            self.assertEqual((end["type"], end["error"]), ("FAILED", "cancelled: no longer wanted"))

    def oneshot(self, name, payload=b"", **env):
        return subprocess.run([os.path.join(AGENTS, name)], input=payload, capture_output=True, timeout=LIMIT_S,
                              env=environment(**env), cwd=self.dir)

    def test_heartbeat_reports_the_host(self):
        done = self.oneshot("heartbeat")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        beat = json.loads(done.stdout)
        self.assertEqual(len(beat["loadavg"]), 3)
        self.assertTrue(0 < beat["memAvailableBytes"] < beat["memTotalBytes"])
        self.assertGreater(beat["uptimeS"], 0)
        self.assertEqual(beat["disk"]["path"], "/")
        self.assertTrue(0 < beat["disk"]["availableBytes"] <= beat["disk"]["sizeBytes"])
        done = self.oneshot("heartbeat", HEARTBEAT_DISK="/no/such/place")
        self.assertEqual((done.returncode, done.stdout), (1, b""))
        self.assertIn(b"/no/such/place", done.stderr)

    def test_sync_fetches_and_says_what_failed(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                found = self.path == "/good[1]?a=1&b=2"
                self.send_response(200 if found else 503)
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"hello")

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        base = "http://127.0.0.1:%d" % server.server_port
        good = base + "/good[1]?a=1&b=2"
        for payload, env in ((json.dumps({"x": 1, "url": good}, indent=1).encode(), {}),
                             (json.dumps({"url": good}).replace("/", "\\/").encode(), {}),
                             (b"{}", {"SYNC_URL": good}), (b"", {"SYNC_URL": good})):
            done = self.oneshot("sync", payload, **env)
            self.assertEqual((done.returncode, done.stderr), (0, b""), payload)
            result = json.loads(done.stdout)
            self.assertEqual((result["url"], result["code"], result["bytes"]), (good, 200, 5))
            self.assertGreaterEqual(result["seconds"], 0)
        kept = self.file("kept", b"old")
        for url, error in ((base + "/bad", b"503"), ("ftp://127.0.0.1/", b"not an http"), ("http://a b/", b"percent-encode"),
                           ("file:///etc/passwd", b"not an http"), ("", b"no URL")):
            done = self.oneshot("sync", json.dumps({"url": url}).encode(), SYNC_FILE=kept)
            self.assertEqual((done.returncode, done.stdout), (1, b""), url)
            self.assertIn(error, done.stderr)
            self.assertTrue(done.stderr.splitlines()[-1].startswith(b"sync: "), done.stderr)
        with open(kept, "rb") as file:
            self.assertEqual(file.read(), b"old")
        self.assertEqual(self.oneshot("sync", b"", SYNC_URL=good, SYNC_FILE=kept).returncode, 0)
        with open(kept, "rb") as file:
            self.assertEqual(file.read(), b"hello")
        self.assertEqual(os.listdir(self.dir), ["kept"])


@unittest.skipUnless(os.environ.get("KURULTAI_EXAMPLE_AGENT"), "KURULTAI_EXAMPLE_AGENT names no built example")
class RustExample(Scratch):
    BLOCK = 64 * 1024

    def daemon(self):
        return FakeDaemon([os.environ["KURULTAI_EXAMPLE_AGENT"]])

    def signature(self, data):
        return b"".join(zlib.crc32(data[at:at + self.BLOCK]).to_bytes(4, "little") for at in range(0, len(data), self.BLOCK))

    def test_the_result_is_each_blocks_crc(self):
        data = random.Random(3).randbytes(10 * self.BLOCK + 123)
        with self.daemon() as daemon:
            end, body, progress = daemon.run(1, path=self.file("data.raw", data))
            self.assertEqual((end, body), ({"type": "COMPLETE", "taskId": "t-1"}, self.signature(data)))
            self.assertEqual([m["percent"] for m in progress], [18, 27, 36, 45, 54, 63, 72, 81, 90, 100])
            self.assertEqual(daemon.result(2, raw=TEXT), self.signature(TEXT.encode()))
            self.assertEqual(daemon.result(3, payload={"a": 1}), self.signature(b'{"a":1}'))
            daemon.send(type="GC")
            daemon.expect("MEMORY")
            end, _, _ = daemon.run(4, path=self.path("gone.raw"))
            self.assertEqual((end["type"], end["retryable"]), ("FAILED", True))
            self.assertEqual(daemon.stop(), 0)

    def test_cancel_preempt_and_resume(self):
        # A file with a hole is large at once, and long enough to be interrupted in.
        path = self.path("sparse.raw")
        with open(path, "wb") as file:
            file.truncate(64 << 20)
        block = zlib.crc32(bytes(self.BLOCK)).to_bytes(4, "little")
        with self.daemon() as daemon:
            daemon.start(1, path=path)
            daemon.expect("PROGRESS")
            daemon.send(type="CANCEL", taskId="t-1", reason="enough")
            end, _, _ = daemon.finish()
            self.assertEqual((end["type"], end["error"]), ("FAILED", "cancelled: enough"))
            daemon.start(2, path=path)
            daemon.expect("PROGRESS")
            daemon.send(type="PREEMPT", taskId="t-2", reason="priority", checkpointTimeoutMs=5000)
            end, _, _ = daemon.finish()
            self.assertEqual(end["type"], "PREEMPTED")
            self.assertTrue(0 < len(end["checkpoint"]["sums"]) < 1024)
            self.assertEqual(daemon.result(2, path=path, checkpoint=end["checkpoint"], attempt=2), block * 1024)
            daemon.start(3, raw="x")
            self.assertEqual(daemon.stop("EOF"), 0)
            self.assertEqual(daemon.finish()[0]["type"], "COMPLETE")


class Helpers(Scratch):
    def test_sleeper_sleeps_fails_and_resumes(self):
        with FakeDaemon([os.path.join(HERE, "sleeper")]) as daemon:
            end, _, progress = daemon.run(1, payload={"ms": 20, "steps": 4})
            self.assertEqual(end["result"], {"slept": 20, "steps": 4, "resumedAt": 0, "attempt": 1})
            self.assertEqual([(m["percent"], m["checkpoint"]["step"]) for m in progress],
                             [(25, 1), (50, 2), (75, 3), (100, 4)])
            self.assertEqual(daemon.result(2, payload={"result": {"any": [1]}, "mb": 1}), {"any": [1]})
            end, _, _ = daemon.run(3, payload={"fail": "as told", "retryable": True, "failAttempts": 1})
            self.assertEqual((end["error"], end["retryable"]), ("Retryable: as told", True))
            self.assertEqual(daemon.run(3, payload={"fail": "x", "failAttempts": 1}, attempt=2)[0]["type"], "COMPLETE")
            for request, answer in (("CANCEL", "FAILED"), ("PREEMPT", "PREEMPTED")):
                daemon.start(4, payload={"ms": 1_000_000, "steps": 1})
                daemon.send(type=request, taskId="t-4", reason="priority", checkpointTimeoutMs=5000)
                end, _, _ = daemon.finish()
                self.assertEqual(end["type"], answer)
            self.assertEqual(end["checkpoint"], {"step": 0})
            self.assertEqual(daemon.result(5, payload={"steps": 4}, checkpoint={"step": 3})["resumedAt"], 3)
            self.assertEqual(daemon.stop(), 0)

    def test_effects_notes_start_and_end(self):
        path = self.path("effects")
        with FakeDaemon([os.path.join(HERE, "effects")], EFFECTS_FILE=path) as daemon:
            daemon.result(1, payload={"ms": 1})
            daemon.start(2, payload={"ms": 1_000_000}, attempt=2)
            pid = daemon.process.pid

            def lines():
                with open(path) as file:
                    return [line.split() for line in file]

            wait_for(lambda: len(lines()) == 3, "the second start")
            runs = [["start", "t-1", "1"], ["end", "t-1", "1"], ["start", "t-2", "2"]]
            self.assertEqual([line[:4] for line in lines()], [run + [str(pid)] for run in runs])
            times = [int(line[4]) for line in lines()]
            self.assertEqual(times, sorted(times))

    def test_env_dump_shows_what_it_got(self):
        done = subprocess.run([os.path.join(HERE, "env-dump")], input=b"12345", capture_output=True, timeout=LIMIT_S,
                              env=environment(KURULTAI_TASK_ID="t-1"), cwd=self.dir, start_new_session=True)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        dump = json.loads(done.stdout)
        self.assertEqual(dump["env"]["KURULTAI_TASK_ID"], "t-1")
        self.assertNotIn("HOME", dump["env"])
        self.assertEqual((dump["cwd"], dump["payloadBytes"]), (os.path.realpath(self.dir), 5))
        self.assertEqual((dump["pgid"], dump["sid"], dump["ppid"]), (dump["pid"], dump["pid"], os.getpid()))
        self.assertLessEqual(set(dump["fds"]), {"0", "1", "2", "3"})


class BadAgents(Scratch):
    """Each misbehaves as its name says."""

    def bad(self, name, **kinds):
        return FakeDaemon([os.path.join(BAD, name)], **kinds)

    def oneshot(self, name):
        return subprocess.run([os.path.join(BAD, name)], input=b"payload", capture_output=True, timeout=LIMIT_S,
                              env=environment())

    def test_every_bad_agent_has_a_test(self):
        names = {name for name in os.listdir(BAD) if not name.startswith("_")}
        tested = {name[len("test_"):].replace("_", "-") for name in dir(self) if name.startswith("test_")}
        self.assertEqual(names - tested, set())

    def test_exit3(self):
        done = self.oneshot("exit3")
        self.assertEqual((done.returncode, done.stdout), (3, b""))
        self.assertTrue(done.stderr.endswith(b"exit3: the disk is on fire\n"))

    def test_die_by_signal(self):
        with self.bad("die-by-signal") as daemon:
            daemon.start(1)
            self.assertEqual(daemon.process.wait(LIMIT_S), -signal.SIGSEGV)

    def protocol_error(self, name, pattern):
        with self.bad(name) as daemon:
            daemon.start(1)
            with self.assertRaisesRegex(ProtocolError, pattern):
                daemon.finish()
            if name != "endless-line":
                self.assertIsNone(daemon.process.poll())  # it lives on: to be replaced
                self.assertEqual(daemon.stop(), 0)

    def test_garbage(self):
        self.protocol_error("garbage", "Traceback")

    def test_not_object(self):
        self.protocol_error("not-object", "no object")

    def test_invalid_utf8(self):
        self.protocol_error("invalid-utf8", "utf-8")

    def test_endless_line(self):
        self.protocol_error("endless-line", "over 1 MiB")

    def test_wrong_task(self):
        self.protocol_error("wrong-task", "t-999999")

    def test_bad_seq(self):
        self.protocol_error("bad-seq", "seq 2 instead of 1")

    def test_big_checkpoint(self):
        self.protocol_error("big-checkpoint", "256 KiB")

    def test_silent_spawn(self):
        with self.bad("silent-spawn", ready=False) as daemon:
            daemon.send(type="HELLO", protocol=[1])
            daemon.send(type="GC")
            self.assertEqual(daemon.stop(), 0)
            self.assertIsNone(daemon.next())

    def test_silent_cancel(self):
        with self.bad("silent-cancel") as daemon:
            daemon.start(1, payload={"ms": 300})
            daemon.send(type="CANCEL", taskId="t-1", reason="asked")
            self.assertEqual(daemon.finish()[0]["type"], "COMPLETE")  # not FAILED: nobody listened

    def test_close_stdout(self):
        with self.bad("close-stdout") as daemon:
            daemon.start(1)
            daemon.expect("PROGRESS")
            self.assertIsNone(daemon.next())
            self.assertIsNone(daemon.process.poll())

    def grandchildren(self, crash):
        path = self.path("pids.json")
        with self.bad("grandchildren") as daemon:
            daemon.start(1, payload={"pidFile": path, "crash": crash})
            if crash:
                self.assertEqual(daemon.process.wait(LIMIT_S), -signal.SIGKILL)
            else:
                self.assertEqual(len(daemon.finish()[0]["result"]["pids"]), 3)
                self.assertEqual(daemon.stop(), 0)
            with open(path) as file:
                pids = json.load(file)["pids"]
            try:
                for pid in pids:
                    self.assertTrue(alive(pid))
                    self.assertNotEqual(os.getsid(pid), os.getsid(0))
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not any(map(alive, pids)), "the grandchildren's death")

    def test_grandchildren(self):
        self.grandchildren(crash=False)

    def test_grandchildren_of_a_crash(self):
        self.grandchildren(crash=True)

    def test_ignore_term(self):
        process = subprocess.Popen([os.path.join(BAD, "ignore-term")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, env=environment())
        try:
            self.assertIn(b"ignoring", process.stderr.readline())
            for number in (signal.SIGTERM, signal.SIGINT):
                process.send_signal(number)
            # Delivered and dropped: nothing is pending, nothing has died.
            wait_for(lambda: "SigIgn" in self.status(process.pid), "its status")
            ignored = int(self.status(process.pid)["SigIgn"], 16)
            self.assertTrue(ignored >> (signal.SIGTERM - 1) & 1 and ignored >> (signal.SIGINT - 1) & 1)
            self.assertIsNone(process.poll())
        finally:
            process.kill()
            process.wait()
            process.stderr.close()

    @staticmethod
    def status(pid):
        with open("/proc/%d/status" % pid) as file:
            return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)

    def test_flood_stderr(self):
        done = self.oneshot("flood-stderr")
        self.assertEqual((done.returncode, done.stdout, len(done.stderr)), (0, b"done\n", 50_000_000))

    def test_flood_stdout(self):
        done = self.oneshot("flood-stdout")
        self.assertEqual((done.returncode, len(done.stdout), done.stderr), (0, 50_000_000, b""))

    def test_unknown_type(self):
        with self.bad("unknown-type") as daemon:
            daemon.start(1)
            self.assertEqual(daemon.finish()[0]["result"], "fine")
            self.assertEqual([m["type"] for m in daemon.seen], ["HOROSCOPE", "PROGRESS", "horoscope"])

    def test_exit_clean_midtask(self):
        with self.bad("exit-clean-midtask") as daemon:
            daemon.start(1)
            daemon.expect("PROGRESS")
            self.assertIsNone(daemon.next())
            self.assertEqual(daemon.process.wait(LIMIT_S), 0)

    def test_exit_after_ready(self):
        with self.bad("exit-after-ready") as daemon:
            self.assertEqual(daemon.process.wait(LIMIT_S), 1)
            self.assertIsNone(daemon.next())

    def test_slow_ready(self):
        with self.bad("slow-ready", SLOW_READY_MS="50") as daemon:
            self.assertEqual(daemon.result(1), "ready")


if __name__ == "__main__":
    program = unittest.main(exit=False)
    result = program.result
    bad = len(result.failures) + len(result.errors)
    print("agents: %d tests, %d passed, %d failed, %d skipped"
          % (result.testsRun, result.testsRun - bad - len(result.skipped), bad, len(result.skipped)))
    sys.exit(1 if bad else 0)
