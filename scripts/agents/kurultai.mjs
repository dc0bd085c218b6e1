// Agent side of the Kurultai worker protocol, version 1 (kurultai-protocol(7)), for persistent Node agents.
//
//     import * as kurultai from './kurultai.mjs';
//
//     kurultai.serve(async (task) => {
//       for (const [i, row] of task.payload.entries()) {
//         task.check();                                          // throws Cancelled or Preempted
//         task.progress(i / task.payload.length, {checkpoint: {row: i}});
//         await store(row, {signal: task.signal});
//       }
//       return {rows: task.payload.length};
//     });
//
// Node 18 or later, no packages. Handlers may be sync or async. A sync handler keeps Node from reading its pipe, so there
// task.check(), task.cancelled and task.preempted look at the pipe themselves; the rest needs the handler to await.

import {Console} from 'node:console';
import fs from 'node:fs';
import net from 'node:net';

const MAX_LINE = 1 << 20; // a line of the protocol is under 1 MiB, both ways
const MAX_CHECKPOINT = 256 << 10;
const TEXT_PIECE = 128 << 10; // UTF-16 units a CHUNK: JSON makes at most 6 bytes of one, so 768 KiB a line
const BYTES_PIECE = 576 << 10; // a multiple of 3: padding only in the last one
const MAX_ERROR = 8 << 10; // the daemon cuts `error` and `stack` here
const PROGRESS_EVERY_MS = 30_000;
const MEMORY_EVERY_MS = 1_000;
const LOOK_EVERY_MS = 10; // a look at an empty pipe costs an exception, some 10 µs
const NEWLINE = 10;
const TASK_STARTS = '{"type":"TASK","taskId":"'; // how the daemon begins every TASK, whatever the rest of the line is

/** Throw it (or a subclass) where trying again may help: the task fails with `retryable: true`. */
export class Retryable extends Error {
  constructor(message, options) {
    super(message, options);
    this.name = this.constructor.name;
  }
}

/** The breaker refused a permit; `retryAfterMs` says when to ask again. */
export class BreakerOpen extends Retryable {
  constructor(name, retryAfterMs) {
    super(`breaker ${name} is open, retry in ${retryAfterMs} ms`);
    this.breaker = name;
    this.retryAfterMs = retryAfterMs;
  }
}

/** Thrown by task.check() after a CANCEL. */
export class Cancelled extends Error {
  constructor(reason) {
    super(`cancelled: ${reason}`);
    this.name = 'Cancelled';
    this.reason = reason;
  }
}

/** Thrown by task.check() after a PREEMPT, or by a handler that wants to give its own checkpoint. */
export class Preempted extends Error {
  constructor(checkpoint) {
    super('preempted');
    this.name = 'Preempted';
    this.checkpoint = checkpoint;
  }
}

let pendingInput = []; // buffers of an unfinished line
const lines = []; // read, not yet taken: a sync handler may be called from the middle of them
const pendingTasks = [];
const breakerWaiters = new Map(); // name → resolvers, oldest first
const gcCallbacks = [];
let handler;
let capabilities;
let current = null;
let serving = false;
let shuttingDown = false;
let memoryAt = -Infinity;
let lookedAt = 0;
let stdioTaken = false;

class Task {
  #payload;
  #hasPayload;
  #controller = null;
  #onPreempt = null;
  #decile = 0;
  #sentAt = null;

  constructor(message) {
    this.id = message.taskId;
    this.priority = message.priority;
    this.attempt = message.attempt ?? 1;
    this.requestId = message.requestId;
    this.timeoutMs = message.timeoutMs;
    /** What the last preempted run left, or undefined. */
    this.checkpoint = message.checkpoint ?? undefined;
    this.payloadType = message.payloadType ?? 'json';
    /** A read-only file, or undefined. */
    this.payloadPath = message.payloadPath;
    this.#payload = message.payload;
    this.#hasPayload = this.payloadPath === undefined;
    this.cancelReason = null;
    this.preemptReason = null;
    this.cancelCallbacks = [];
    this.latest = this.checkpoint;
    this.seq = 0;
  }

  /**
   * The JSON value; for a raw payload a string where it is UTF-8, else a Buffer. Read from the file at the first use; a
   * large raw payload is better streamed from stream().
   */
  get payload() {
    if (!this.#hasPayload) {
      const data = fs.readFileSync(this.payloadPath);
      if (this.payloadType === 'json') this.#payload = JSON.parse(data.toString());
      else this.#payload = isUtf8(data) ? data.toString() : data;
      this.#hasPayload = true;
    }
    return this.#payload;
  }

  /** The payload as an async iterable of Buffers, read from the file piece by piece. JSON comes as JSON text. */
  stream() {
    if (this.payloadPath !== undefined) return fs.createReadStream(this.payloadPath);
    const text = this.payloadType === 'raw' ? String(this.#payload) : JSON.stringify(this.#payload);
    return (async function* () {
      yield Buffer.from(text);
    })();
  }

  get cancelled() {
    look();
    return this.cancelReason !== null;
  }

  get preempted() {
    look();
    return this.preemptReason !== null;
  }

  /** An AbortSignal for fetch and the like, aborted with a Cancelled by a CANCEL. */
  get signal() {
    if (this.#controller === null) {
      const controller = new AbortController();
      this.#controller = controller;
      this.onCancel((reason) => controller.abort(new Cancelled(reason)));
    }
    return this.#controller.signal;
  }

  /** Throws Cancelled or Preempted if the daemon asked for it; the latter with onPreempt's or progress's checkpoint. */
  check() {
    look();
    if (this.cancelReason !== null) throw new Cancelled(this.cancelReason);
    if (this.preemptReason !== null) throw new Preempted(this.#onPreempt?.());
  }

  /** Calls `callback(reason)` as soon as a CANCEL comes. */
  onCancel(callback) {
    if (this.cancelReason !== null) callback(this.cancelReason);
    else this.cancelCallbacks.push(callback);
  }

  /** Lets check() take the checkpoint from `callback()`, at a point where the handler can stop. */
  onPreempt(callback) {
    this.#onPreempt = callback;
  }

  /**
   * Reports progress; sent when another 10 % is reached or 30 s have passed, so it may be called at every step. `done`
   * from 0 to 1 is a fraction, above 1 a percentage; percent() has no such border. The latest checkpoint is remembered
   * whether sent or not.
   */
  progress(done, options) {
    this.percent(done <= 1 ? done * 100 : done, options);
  }

  /** As progress(), with a percentage from 0 to 100. */
  percent(percent, {message, checkpoint} = {}) {
    if (checkpoint !== undefined) this.latest = checkpoint;
    percent = Math.min(Math.max(percent, 0), 100);
    const decile = Math.floor(percent / 10);
    const now = performance.now();
    this.#sentAt ??= now; // the 30 s count from the first report
    if (decile === this.#decile && now - this.#sentAt < PROGRESS_EVERY_MS) return;
    this.#decile = decile;
    this.#sentAt = now;
    const fields = {type: 'PROGRESS', taskId: this.id, percent: Math.round(percent * 10) / 10};
    if (message !== undefined) fields.message = String(message).slice(0, 1024);
    if (this.latest !== undefined) {
      checkCheckpoint(this.latest);
      fields.checkpoint = this.latest;
    }
    send(fields);
  }

  /** Appends a string or bytes to the result, split as the protocol needs. The handler then returns nothing. */
  chunk(data) {
    if (typeof data === 'string') {
      for (let at = 0; at < data.length;) {
        let end = Math.min(at + TEXT_PIECE, data.length);
        // Why: half a surrogate pair is no character.
        if (end < data.length && (data.charCodeAt(end - 1) & 0xfc00) === 0xd800) end -= 1;
        this.#sendChunk(data.slice(at, end), 'utf8');
        at = end;
      }
      return;
    }
    const bytes = ArrayBuffer.isView(data) ? Buffer.from(data.buffer, data.byteOffset, data.byteLength) : Buffer.from(data);
    for (let at = 0; at < bytes.length; at += BYTES_PIECE) {
      this.#sendChunk(bytes.toString('base64', at, Math.min(at + BYTES_PIECE, bytes.length)), 'base64');
    }
  }

  #sendChunk(data, encoding) {
    send({type: 'CHUNK', taskId: this.id, seq: this.seq, data, encoding});
    this.seq += 1;
  }
}

class Breaker {
  #permit = null;

  constructor(name) {
    this.name = name;
  }

  /** Resolves to the permit, or rejects with BreakerOpen. */
  async acquire() {
    const answer = await new Promise((resolve) => {
      if (!breakerWaiters.has(this.name)) breakerWaiters.set(this.name, []);
      breakerWaiters.get(this.name).push(resolve);
      send({type: 'BREAKER', name: this.name, op: 'acquire'});
    });
    if (answer.permit === undefined) throw new BreakerOpen(this.name, answer.retryAfterMs ?? 0);
    this.#permit = answer.permit;
    return this.#permit;
  }

  success() {
    this.#report('success');
  }

  failure() {
    this.#report('failure');
  }

  /** Acquires, calls `call()`, reports its outcome and hands it on. */
  async run(call) {
    await this.acquire();
    try {
      const result = await call();
      this.success();
      return result;
    } catch (error) {
      // Why: a preemption says nothing against the other side; a cancelled call (a timeout, mostly) does.
      if (error instanceof Preempted) this.success();
      else this.failure();
      throw error;
    }
  }

  #report(op) {
    const permit = this.#permit;
    if (permit === null) throw new Error(`breaker ${this.name}: ${op} without acquire`);
    this.#permit = null;
    send({type: 'BREAKER', name: this.name, op, permit});
  }
}

/** The daemon's circuit breaker `name`. */
export function breaker(name) {
  return new Breaker(name);
}

/** A line in the daemon's log; level is error, warn, info, debug or trace. */
export function log(level, message) {
  send({type: 'LOG', level, message: String(message).slice(0, MAX_ERROR)});
}

/** Calls `callback()` when the daemon asks to free memory, before the collector runs: to drop caches. */
export function onGc(callback) {
  gcCallbacks.push(callback);
}

/**
 * Sends console and process.stdout to stderr, so that a stray print does not reach into the protocol. serve() does it;
 * call it before loading something that talks a lot. fs.writeSync(1, …) still hits the pipe, Node cannot move it.
 */
export function takeStdio() {
  if (stdioTaken) return;
  stdioTaken = true;
  Object.defineProperty(process, 'stdout', {get: () => process.stderr, configurable: true});
  // Why one by one: modules may hold the console object, or have made it bind the old stdout already.
  const quiet = new Console({stdout: process.stderr, stderr: process.stderr});
  for (const name of Object.keys(console)) {
    if (typeof quiet[name] === 'function') console[name] = quiet[name].bind(quiet);
  }
}

/**
 * Answers HELLO, then calls `handler(task)` for one task after the other; exits 0 at SHUTDOWN or end of input. What the
 * handler returns (or resolves to) is the result: a JSON value, or bytes. An exception fails the task, not the worker.
 */
export function serve(taskHandler, options = {}) {
  if (process.env.KURULTAI_TASK_ID !== undefined) {
    // Only a oneshot's environment has it: no HELLO would come, and an empty result would pass for success.
    const agent = process.env.KURULTAI_AGENT ?? 'NAME';
    fs.writeSync(2, 'kurultai.serve() is for agents that are kept, and this one was started for one task: ' +
      `set mode = "persistent" in [agents.${agent}]\n`);
    process.exit(1);
  }
  takeStdio();
  handler = taskHandler;
  capabilities = options.capabilities ?? ['checkpoint', 'cancel'];
  serving = true;
  process.stdin.on('data', takeBytes);
  process.stdin.on('end', endOfInput);
  process.stdin.on('error', endOfInput);
}

// --- output

const out = Buffer.alloc(8192);

function send(fields) {
  let line = JSON.stringify(fields);
  // JSON.stringify writes half a surrogate pair as an escape that strict parsers refuse. Checked on the text, because
  // looking into every value is dear and the match hardly ever there.
  if (line.includes('\\ud')) line = JSON.stringify(fields, (_, value) => (typeof value === 'string' ? wellFormed(value) : value));
  writeLine(line + '\n');
}

function writeLine(line) {
  if (!serving) return; // the module is being tried out by hand
  if (line.length * 3 <= out.length) {
    writeAll(out, out.write(line, 0));
    return;
  }
  const bytes = Buffer.from(line);
  if (bytes.length > MAX_LINE) {
    throw new RangeError(`a message of ${bytes.length} bytes is over the protocol's 1 MiB: use chunk()`);
  }
  writeAll(bytes, bytes.length);
}

function writeAll(bytes, length) {
  for (let at = 0; at < length;) {
    try {
      at += fs.writeSync(1, bytes, at, length - at);
    } catch (error) {
      if (error.code === 'EAGAIN') {
        // Somebody made the pipe non-blocking; wait for the daemon to read.
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
      } else if (error.code === 'EPIPE') {
        process.exit(1); // the daemon has gone and nobody is left to tell
      } else {
        throw error;
      }
    }
  }
}

function wellFormed(text) {
  return /\p{Surrogate}/u.test(text) ? Buffer.from(text).toString() : text;
}

function isUtf8(data) {
  try {
    new TextDecoder('utf-8', {fatal: true}).decode(data);
    return true;
  } catch {
    return false;
  }
}

function checkCheckpoint(checkpoint) {
  const size = Buffer.byteLength(JSON.stringify(checkpoint));
  if (size > MAX_CHECKPOINT) throw new RangeError(`a checkpoint of ${size} bytes is over the protocol's 256 KiB`);
}

function sendMemory() {
  memoryAt = performance.now();
  const {heapUsed, heapTotal, rss, external, arrayBuffers} = process.memoryUsage();
  send({type: 'MEMORY', heapUsed, heapTotal, rss, external, arrayBuffers});
}

// --- input

function takeBytes(bytes) {
  let from = 0;
  for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, from)) {
    let line = bytes.toString('utf8', from, end);
    if (pendingInput.length > 0) {
      pendingInput.push(bytes.subarray(from, end));
      line = Buffer.concat(pendingInput).toString();
      pendingInput = [];
    }
    from = end + 1;
    lines.push(line);
  }
  if (from < bytes.length) pendingInput.push(Buffer.from(bytes.subarray(from)));
  takeLines();
}

function takeLines() {
  while (lines.length > 0) takeLine(lines.shift());
}

function takeLine(line) {
  let message;
  try {
    message = JSON.parse(line);
  } catch (error) {
    // The daemon speaks JSON; but what Node cannot read may still be some, and then somebody waits for the answer.
    if (line.startsWith(TASK_STARTS)) refuse(line.slice(TASK_STARTS.length).split('"', 1)[0], error);
    return;
  }
  switch (message?.type) {
    case 'HELLO':
      send({type: 'READY', protocol: 1, capabilities});
      break;
    case 'TASK':
      if (current === null) start(message);
      else pendingTasks.push(message);
      break;
    case 'CANCEL':
      if (current?.id === message.taskId && current.cancelReason === null) {
        current.cancelReason = String(message.reason ?? 'cancelled');
        for (const callback of current.cancelCallbacks) callOut(callback, current.cancelReason);
      }
      break;
    case 'PREEMPT':
      if (current?.id === message.taskId) current.preemptReason = String(message.reason ?? 'preempted');
      break;
    case 'GC':
      for (const callback of gcCallbacks) callOut(callback);
      globalThis.gc?.(); // there with --expose-gc
      sendMemory();
      break;
    case 'BREAKER_STATE':
      breakerWaiters.get(message.name)?.shift()?.(message);
      break;
    case 'SHUTDOWN':
      endOfInput();
      break;
  }
}

/** Reads the pipe from within a handler that keeps the event loop from doing it. */
function look() {
  takeLines();
  const now = performance.now();
  // Why the instance: only a pipe or socket has been made non-blocking by Node; anything else could hang here.
  if (!serving || now - lookedAt < LOOK_EVERY_MS || !(process.stdin instanceof net.Socket)) return;
  lookedAt = now;
  const bytes = Buffer.allocUnsafe(65536);
  for (;;) {
    let length;
    try {
      length = fs.readSync(0, bytes, 0, bytes.length, null);
    } catch (error) {
      if (error.code === 'EAGAIN') return;
      throw error;
    }
    if (length === 0) {
      endOfInput();
      return;
    }
    takeBytes(bytes.subarray(0, length));
  }
}

function callOut(callback, argument) {
  try {
    callback(argument);
  } catch (error) {
    console.error(error); // an agent's callback; the handler goes on
  }
}

function endOfInput() {
  shuttingDown = true;
  if (current === null) process.exit(0);
}

// --- the task

function start(message) {
  const task = new Task(message);
  current = task;
  let result;
  try {
    result = handler(task);
    if (typeof result?.then !== 'function') {
      complete(task, result);
      finish();
      return;
    }
  } catch (error) {
    fail(task, error);
    finish();
    return;
  }
  result.then((value) => complete(task, value)).catch((error) => fail(task, error)).then(finish);
}

function finish() {
  current = null;
  if (performance.now() - memoryAt >= MEMORY_EVERY_MS) sendMemory();
  if (pendingTasks.length > 0) start(pendingTasks.shift());
  else if (shuttingDown) process.exit(0);
}

function complete(task, result) {
  if (task.seq > 0) {
    if (result !== undefined) log('warn', `${task.id}: the handler's return value is dropped, its result went out in chunks`);
    send({type: 'COMPLETE', taskId: task.id});
    return;
  }
  if (result instanceof ArrayBuffer || ArrayBuffer.isView(result)) {
    task.chunk(result);
    send({type: 'COMPLETE', taskId: task.id});
    return;
  }
  const text = JSON.stringify(result) ?? 'null';
  if (text.length * 3 + 256 > MAX_LINE && Buffer.byteLength(text) + 256 > MAX_LINE) {
    task.chunk(text);
    send({type: 'COMPLETE', taskId: task.id});
  } else if (text.includes('\\ud')) {
    send({type: 'COMPLETE', taskId: task.id, result});
  } else {
    writeLine(`{"type":"COMPLETE","taskId":"${task.id}","result":${text}}\n`);
  }
}

function fail(task, error) {
  if (error instanceof Preempted) {
    preempted(task, error.checkpoint ?? task.latest);
    return;
  }
  if (task.cancelReason !== null && (error instanceof Cancelled || error?.name === 'AbortError')) {
    send({type: 'FAILED', taskId: task.id, error: `cancelled: ${task.cancelReason}`, retryable: false});
    return;
  }
  const isError = error instanceof Error;
  const text = isError ? `${error.name}: ${error.message}` : String(error);
  const fields = {type: 'FAILED', taskId: task.id, error: text.slice(0, MAX_ERROR).replace(/\s+/g, ' ').trim(),
    retryable: error instanceof Retryable};
  if (isError && error.stack) fields.stack = error.stack.slice(0, MAX_ERROR);
  send(fields);
}

function refuse(taskId, {name, message}) {
  const error = `Node cannot read this task (${name}: ${message}): nest less deeply, or submit the payload as text instead of JSON`;
  send({type: 'FAILED', taskId, error, retryable: false});
}

function preempted(task, checkpoint) {
  const fields = {type: 'PREEMPTED', taskId: task.id};
  if (checkpoint !== undefined) {
    try {
      checkCheckpoint(checkpoint);
      fields.checkpoint = checkpoint;
    } catch (error) {
      // Why not a failure: starting again from the beginning is still right, only slower.
      log('error', `${task.id}: preempted without checkpoint: ${error.message}`);
    }
  }
  send(fields);
}
