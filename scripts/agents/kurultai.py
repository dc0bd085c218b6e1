"""Agent side of the Kurultai worker protocol, version 1 (kurultai-protocol(7)), for persistent Python agents.

    import kurultai

    def handle(task):
        for i, row in enumerate(task.payload):
            task.check()                                  # raises Cancelled or Preempted
            task.progress(i / len(task.payload), checkpoint={"row": i})
        return {"rows": len(task.payload)}

    kurultai.serve(handle)

Python 3.9 or later, standard library only.

One thread owns stdin at a time, whoever holds `_Worker._stdin`. While idle that is the main thread, so a short task costs
no thread switch. A task that lasts longer than WATCH_AFTER_S hands stdin to the watcher thread, so that CANCEL, PREEMPT
and GC are heard although the handler is busy.
"""

import binascii
import gc
import io
import json
import os
import select
import sys
import threading
import time

__all__ = [
    "BreakerOpen", "Cancelled", "Preempted", "Retryable", "Task", "breaker", "log", "on_gc", "serve", "take_stdio",
]

MAX_LINE = 1 << 20
"""A line of the protocol is under 1 MiB, both ways."""
MAX_CHECKPOINT = 256 << 10
TEXT_PIECE = 128 << 10
"""Characters a CHUNK: JSON makes at most 6 bytes of one (a control character), so 768 KiB a line."""
BYTES_PIECE = 576 << 10
"""Bytes a base64 CHUNK, a multiple of 3: 768 KiB a line, and padding only in the last one."""
MAX_ERROR = 8 << 10
"""The daemon cuts `error` and `stack` here; the end of a Python stack is the part worth keeping, so it is cut here first."""
WATCH_AFTER_S = 0.05
"""How long a task runs before the watcher listens for it; short against every grace the daemon grants (seconds)."""
PROGRESS_EVERY_S = 30.0
MEMORY_EVERY_S = 1.0
TASK_STARTS = b'{"type":"TASK","taskId":"'
"""How the daemon begins every TASK, whatever the rest of the line is."""
UNREADABLE = object()
"""The type of what stands for a TASK that is JSON, but not for Python. An object, so that no message can have it."""

_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Retryable(Exception):
    """Raise it (or a subclass) where trying again may help: the task fails with `retryable: true`."""


class BreakerOpen(Retryable):
    """The breaker refused a permit; `retry_after_ms` says when to ask again."""

    def __init__(self, name, retry_after_ms):
        super().__init__("breaker %s is open, retry in %s ms" % (name, retry_after_ms))
        self.name = name
        self.retry_after_ms = retry_after_ms


class Cancelled(BaseException):
    """Raised by Task.check() after a CANCEL. Not an Exception, so that `except Exception` in a handler lets it through."""


class Preempted(BaseException):
    """Raised by Task.check() after a PREEMPT, or by a handler that wants to give its own checkpoint."""

    def __init__(self, checkpoint=None):
        super().__init__("preempted")
        self.checkpoint = checkpoint


class Task:
    """One task. Attributes: `id`, `priority`, `attempt` (from 1), `request_id`, `timeout_ms`, `checkpoint` (what the last
    preempted run left, or None), `payload_type` ("json" or "raw"), `payload_path` (a read-only file, or None)."""

    __slots__ = (
        "id", "priority", "attempt", "request_id", "timeout_ms", "checkpoint", "payload_type", "payload_path",
        "_worker", "_inline", "_has_inline", "_cancel", "_preempt", "_on_cancel", "_on_preempt", "_latest", "_seq",
        "_decile", "_sent_at",
    )

    def __init__(self, worker, message):
        get = message.get
        self.id = message["taskId"]
        self.priority = get("priority")
        self.attempt = get("attempt", 1)
        self.request_id = get("requestId")
        self.timeout_ms = get("timeoutMs")
        self.checkpoint = get("checkpoint")
        self.payload_type = get("payloadType", "json")
        self.payload_path = get("payloadPath")
        self._worker = worker
        self._inline = get("payload")
        self._has_inline = self.payload_path is None
        self._cancel = None
        self._preempt = None
        self._on_cancel = None
        self._on_preempt = None
        self._latest = self.checkpoint
        self._seq = 0
        self._decile = 0
        self._sent_at = None

    @property
    def payload(self):
        """The JSON value; for a raw payload str where it is UTF-8, else bytes. Read from the file at the first use.

        A large raw payload is better read piecemeal through open()."""
        if not self._has_inline:
            with open(self.payload_path, "rb") as file:
                data = file.read()
            if self.payload_type == "json":
                self._inline = json.loads(data)
            else:
                try:
                    self._inline = data.decode()
                except UnicodeDecodeError:
                    self._inline = data
            self._has_inline = True
        return self._inline

    def open(self):
        """The payload as a seekable binary stream: the file itself, or the inline text. JSON comes as JSON text."""
        if self.payload_path is not None:
            return open(self.payload_path, "rb")
        if self.payload_type == "raw" and isinstance(self._inline, str):
            return io.BytesIO(self._inline.encode("utf-8", "replace"))
        return io.BytesIO(_encode_json(self._inline).encode("utf-8", "replace"))

    @property
    def cancelled(self):
        """True once a CANCEL has come."""
        self._worker._listen_briefly()
        return self._cancel is not None

    @property
    def preempted(self):
        """True once a PREEMPT has come."""
        self._worker._listen_briefly()
        return self._preempt is not None

    def check(self):
        """Raises Cancelled or Preempted if the daemon asked for it. Cheap: call it wherever the handler can stop.

        A Preempted carries what on_preempt() returns, else the latest checkpoint given to progress()."""
        self._worker._listen_briefly()
        if self._cancel is not None:
            raise Cancelled(self._cancel)
        if self._preempt is not None:
            raise Preempted(self._on_preempt() if self._on_preempt is not None else None)

    def on_cancel(self, callback):
        """Calls `callback(reason)` as soon as a CANCEL comes, mostly on another thread: to kill a child, to close a socket."""
        self._on_cancel = callback
        if self._cancel is not None:
            callback(self._cancel)

    def on_preempt(self, callback):
        """Lets check() take the checkpoint from `callback()`, on the handler's own thread, at a point where it can stop."""
        self._on_preempt = callback

    def progress(self, done, message=None, checkpoint=None):
        """Reports progress; sent when another 10 % is reached or 30 s have passed, so it may be called at every step.

        `done` from 0 to 1 is a fraction, above 1 a percentage; percent() has no such border. The latest checkpoint is
        remembered whether sent or not."""
        self.percent(done * 100 if done <= 1 else done, message, checkpoint)

    def percent(self, percent, message=None, checkpoint=None):
        """As progress(), with a percentage from 0 to 100."""
        if checkpoint is not None:
            self._latest = checkpoint
        percent = min(max(percent, 0), 100)
        decile = percent // 10
        now = time.monotonic()
        if self._sent_at is None:
            self._sent_at = now  # the 30 s count from the first report
        if decile == self._decile and now - self._sent_at < PROGRESS_EVERY_S:
            return
        self._decile = decile
        self._sent_at = now
        fields = {"type": "PROGRESS", "taskId": self.id, "percent": round(percent, 1)}
        if message is not None:
            fields["message"] = str(message)[:1024]
        if self._latest is not None:
            self._worker.check_checkpoint(self._latest)
            fields["checkpoint"] = self._latest
        self._worker.send(fields)

    def chunk(self, data):
        """Appends str or bytes to the result, split as the protocol needs. The handler then returns None."""
        if isinstance(data, str):
            for at in range(0, len(data), TEXT_PIECE):
                self._send_chunk(data[at:at + TEXT_PIECE], "utf8")
        else:
            view = memoryview(data).cast("B")
            for at in range(0, len(view), BYTES_PIECE):
                piece = binascii.b2a_base64(view[at:at + BYTES_PIECE], newline=False).decode("ascii")
                self._send_chunk(piece, "base64")

    def _send_chunk(self, text, encoding):
        self._worker.send(
            {"type": "CHUNK", "taskId": self.id, "seq": self._seq, "data": text, "encoding": encoding})
        self._seq += 1


class Breaker:
    """A circuit breaker of the daemon. As a context manager it reports an exception as failure, else success."""

    def __init__(self, worker, name):
        self._worker = worker
        self.name = name
        self.permit = None

    def acquire(self):
        """Waits for the daemon's answer; returns the permit or raises BreakerOpen. Only inside a handler."""
        answer = self._worker.ask_breaker(self.name)
        if "permit" not in answer:
            raise BreakerOpen(self.name, answer.get("retryAfterMs", 0))
        self.permit = answer["permit"]
        return self.permit

    def success(self):
        self._report("success")

    def failure(self):
        self._report("failure")

    def _report(self, op):
        permit, self.permit = self.permit, None
        if permit is None:
            raise RuntimeError("breaker %s: %s without acquire" % (self.name, op))
        self._worker.send({"type": "BREAKER", "name": self.name, "op": op, "permit": permit})

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, kind, error, trace):
        if self.permit is None:
            return
        # Why: a preemption says nothing against the other side; a cancelled call (a timeout, mostly) does.
        if kind is None or issubclass(kind, Preempted):
            self.success()
        else:
            self.failure()


class _Worker:
    def __init__(self):
        self._out = None
        self._in = None
        self._out_lock = threading.Lock()
        self._stdin = threading.Lock()
        self._buffer = bytearray()
        self._eof = False
        self._shutdown = False
        self._pending = []  # messages read while a task ran that belong to the idle loop
        self._answers = {}
        self._task = None
        self._serial = 0
        self._watcher_sleeps = True
        self._wake = threading.Lock()  # held: nothing to wake up for
        self._wake.acquire()
        self._statm = None
        self._memory_at = float("-inf")
        self.gc_callbacks = []

    def take_stdio(self):
        if self._out is not None:
            return
        self._in, self._out = os.dup(0), os.dup(1)
        # Why: a print of the agent, or a child that reads stdin, must not reach into the protocol.
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(line_buffering=True)
        self._ready_to_read = select.poll()
        self._ready_to_read.register(self._in, select.POLLIN)
        self._poke_read, self._poke_write = os.pipe()
        self._read_or_poke = select.poll()
        self._read_or_poke.register(self._in, select.POLLIN)
        self._read_or_poke.register(self._poke_read, select.POLLIN)

    # --- output

    def send(self, fields):
        self._write(_encode_json(fields).encode("utf-8", "replace") + b"\n")

    def _write(self, line):
        if len(line) > MAX_LINE:
            raise ValueError("a message of %d bytes is over the protocol's 1 MiB: use chunk()" % len(line))
        if self._out is None:
            return  # not serving (the module is being tried out by hand)
        with self._out_lock:
            written = os.write(self._out, line)
            while written < len(line):
                line = line[written:]
                written = os.write(self._out, line)

    def check_checkpoint(self, checkpoint):
        size = len(_encode_json(checkpoint).encode("utf-8", "replace"))
        if size > MAX_CHECKPOINT:
            raise ValueError("a checkpoint of %d bytes is over the protocol's 256 KiB" % size)

    def send_memory(self):
        if self._statm is None:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY)
            self._page = os.sysconf("SC_PAGE_SIZE")
        self._memory_at = time.monotonic()
        self.send({"type": "MEMORY", "rss": int(os.pread(self._statm, 128, 0).split()[1]) * self._page})

    # --- input; whoever calls these holds self._stdin

    def _line(self):
        """The next buffered line without its newline, or None."""
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[:end + 1]
        return line

    def _read_line(self):
        """The next line, waiting for it; None at the end of input."""
        buffer = self._buffer
        if not buffer:
            # The usual case: one read is one line.
            data = os.read(self._in, 65536)
            if data.find(b"\n") == len(data) - 1 and data:
                return data
            if not data:
                self._eof = True
                return None
            buffer += data
        searched = 0
        while True:
            end = buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(buffer[:end])
                del buffer[:end + 1]
                return line
            searched = len(buffer)
            data = os.read(self._in, 1 << 18)
            if not data:
                self._eof = True
                return None
            buffer += data

    def _take_in(self):
        """Reads what is there into the buffer."""
        data = os.read(self._in, 1 << 18)
        if data:
            self._buffer += data
        else:
            self._eof = True

    def _drain(self, due):
        """Takes every buffered line; what is to be called goes on `due`."""
        line = self._line()
        while line is not None:
            self._take(self._parse(line), due)
            line = self._line()

    def _parse(self, line):
        try:
            message = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:
            if not line.startswith(TASK_STARTS):
                return {}
            # Why: a number of over 4,300 digits and a thousand nested arrays are valid JSON. Somebody waits for the answer.
            task = line[len(TASK_STARTS):line.find(b'"', len(TASK_STARTS))].decode("utf-8", "replace")
            return {"type": UNREADABLE, "taskId": task, "error": "%s: %s" % (type(error).__name__, error)}
        return message if isinstance(message, dict) else {}

    def _take(self, message, due):
        """Notes one message. Why `due`: agents' callbacks run after stdin is free again, they may want it themselves."""
        kind = message.get("type")
        task = self._task
        if kind == "TASK" or kind is UNREADABLE:
            self._pending.append(message)
        elif kind == "CANCEL":
            if task is not None and message.get("taskId") == task.id and task._cancel is None:
                task._cancel = str(message.get("reason") or "cancelled")
                if task._on_cancel is not None:
                    due.append(lambda: task._on_cancel(task._cancel))
        elif kind == "PREEMPT":
            if task is not None and message.get("taskId") == task.id:
                task._preempt = str(message.get("reason") or "preempted")
        elif kind == "GC":
            due.append(self.collect)
        elif kind == "BREAKER_STATE":
            self._answers[message.get("name")] = message
        elif kind == "SHUTDOWN":
            self._shutdown = True

    # --- while a task runs

    def _listen_briefly(self):
        """Takes what has come, unless another thread is listening already."""
        if self._out is None or not self._stdin.acquire(False):
            return
        due = []
        try:
            self._drain(due)
            while not self._eof and self._ready_to_read.poll(0):
                self._take_in()
                self._drain(due)
        finally:
            self._stdin.release()
        self._call(due)

    def _seize(self):
        """Takes stdin from whoever listens."""
        if not self._stdin.acquire(False):
            os.write(self._poke_write, b"x")
            self._stdin.acquire()

    def ask_breaker(self, name):
        if self._task is None:
            raise RuntimeError("breaker %s: acquire only inside a handler" % name)
        due = []
        self._seize()
        try:
            self._answers.pop(name, None)
            self.send({"type": "BREAKER", "name": name, "op": "acquire"})
            while name not in self._answers:
                line = self._read_line()
                if line is None:
                    raise Retryable("breaker %s: the daemon has gone" % name)
                self._take(self._parse(line), due)
            answer = self._answers.pop(name)
        finally:
            self._stdin.release()
        self._call(due)
        return answer

    def _call(self, due):
        for callback in due:
            try:
                callback()
            except BrokenPipeError:
                os._exit(1)
            except Exception:  # an agent's callback; the handler goes on
                import traceback
                traceback.print_exc()

    def _watch(self):
        while True:
            # Why in this order: a task that starts in between either is seen here or sees that it has to wake us. A wake-up
            # too many costs a turn of this loop.
            self._watcher_sleeps = True
            if self._task is None:
                self._wake.acquire()
            serial = self._serial
            time.sleep(WATCH_AFTER_S)
            if self._task is not None and serial == self._serial and not self._eof:
                self._listen(serial)

    def _listen(self, serial):
        """Listens until the task ends or somebody else wants stdin."""
        while self._task is not None and serial == self._serial and not self._eof:
            due = []
            if not self._stdin.acquire(False):
                return
            try:
                self._drain(due)
                if not due:
                    ready = dict(self._read_or_poke.poll())
                    if self._poke_read in ready:
                        os.read(self._poke_read, 4096)
                        return
                    self._take_in()
                    self._drain(due)
            finally:
                self._stdin.release()
                self._call(due)

    def collect(self):
        for callback in self.gc_callbacks:
            callback()
        gc.collect()
        try:
            import ctypes  # here, because few agents ever need it and it costs memory
            ctypes.CDLL(None).malloc_trim(0)
        except (ImportError, OSError, AttributeError):
            pass  # no glibc
        self.send_memory()

    # --- the loop

    def serve(self, handler, capabilities):
        self.take_stdio()
        threading.Thread(target=self._watch, name="kurultai-watch", daemon=True).start()
        self._stdin.acquire()
        while True:
            if self._pending:
                message = self._pending.pop(0)
            elif self._shutdown:
                return
            else:
                line = self._read_line()
                if line is None:
                    return
                message = self._parse(line)
            kind = message.get("type")
            if kind == "TASK":
                self._run(handler, message)
            elif kind is UNREADABLE:
                self._refuse(message)
            elif kind == "HELLO":
                self.send({"type": "READY", "protocol": 1, "capabilities": capabilities})
            else:
                due = []
                self._take(message, due)
                if due:
                    self._stdin.release()
                    self._call(due)
                    self._stdin.acquire()

    def _run(self, handler, message):
        task = Task(self, message)
        self._serial += 1
        self._task = task
        if self._watcher_sleeps:
            self._watcher_sleeps = False
            try:
                self._wake.release()
            except RuntimeError:
                pass  # released already, and the watcher has not come to it yet
        self._stdin.release()
        try:
            result = handler(task)
            self._complete(task, result)
        except Preempted as preempted:
            self._preempted(task, preempted)
        except Cancelled as cancelled:
            self._failed(task, "cancelled: %s" % cancelled, None, False)
        except BrokenPipeError:
            raise
        except Exception as error:
            import traceback
            self._failed(task, "%s: %s" % (type(error).__name__, error), traceback.format_exc(),
                         isinstance(error, Retryable))
        finally:
            self._task = None
            self._seize()
        if time.monotonic() - self._memory_at >= MEMORY_EVERY_S:
            self.send_memory()

    def _refuse(self, message):
        error = ("Python cannot read this task (%s): nest less deeply, write very long numbers as strings, or submit the "
                 "payload as text instead of JSON" % message["error"])
        self.send({"type": "FAILED", "taskId": message["taskId"], "error": error, "retryable": False})

    def _complete(self, task, result):
        if task._seq:
            if result is not None:
                log("warn", "%s: the handler's return value is dropped, its result went out in chunks" % task.id)
            self.send({"type": "COMPLETE", "taskId": task.id})
        elif isinstance(result, (bytes, bytearray, memoryview)):
            task.chunk(result)
            self.send({"type": "COMPLETE", "taskId": task.id})
        else:
            text = _encode_json(result)
            line = ('{"type":"COMPLETE","taskId":"%s","result":%s}\n' % (task.id, text)).encode("utf-8", "replace")
            if len(line) > MAX_LINE:
                task.chunk(text)
                self.send({"type": "COMPLETE", "taskId": task.id})
            else:
                self._write(line)

    def _preempted(self, task, preempted):
        checkpoint = preempted.checkpoint if preempted.checkpoint is not None else task._latest
        fields = {"type": "PREEMPTED", "taskId": task.id}
        if checkpoint is not None:
            try:
                self.check_checkpoint(checkpoint)
                fields["checkpoint"] = checkpoint
            except (TypeError, ValueError) as error:
                # Why not a failure: starting again from the beginning is still right, only slower.
                log("error", "%s: preempted without checkpoint: %s" % (task.id, error))
        self.send(fields)

    def _failed(self, task, error, stack, retryable):
        fields = {"type": "FAILED", "taskId": task.id, "error": " ".join(error[:MAX_ERROR].split()),
                  "retryable": retryable}
        if stack:
            fields["stack"] = stack[-MAX_ERROR:]
        self.send(fields)


_worker = _Worker()


def serve(handler, capabilities=("checkpoint", "cancel")):
    """Answers HELLO, then calls `handler(task)` for one task after the other; exits 0 at SHUTDOWN or end of input.

    What the handler returns is the result: a JSON value, or bytes. An exception fails the task, not the worker."""
    if "KURULTAI_TASK_ID" in os.environ:
        # Only a oneshot's environment has it: no HELLO would come, and an empty result would pass for success.
        print("kurultai.serve() is for agents that are kept, and this one was started for one task: set mode = \"persistent\" "
              "in [agents.%s]" % os.environ.get("KURULTAI_AGENT", "NAME"), file=sys.stderr)
        sys.exit(1)
    try:
        _worker.serve(handler, list(capabilities))
    except BrokenPipeError:
        # The daemon has gone and nobody is left to tell.
        os._exit(1)
    sys.stdout.flush()
    sys.exit(0)


def take_stdio():
    """Moves the protocol away from fd 0 and 1 (print goes to stderr, stdin is empty). serve() does it; call it before
    loading something that talks a lot."""
    _worker.take_stdio()


def breaker(name):
    """The daemon's circuit breaker `name`: acquire(), then success() or failure(); or `with kurultai.breaker(name):`."""
    return Breaker(_worker, name)


def log(level, message):
    """A line in the daemon's log; level is error, warn, info, debug or trace."""
    _worker.send({"type": "LOG", "level": level, "message": str(message)[:MAX_ERROR]})


def on_gc(callback):
    """Calls `callback()` when the daemon asks to free memory, before the collector runs: to drop caches."""
    _worker.gc_callbacks.append(callback)
