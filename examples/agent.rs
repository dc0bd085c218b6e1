//! A persistent Kurultai agent in Rust: the block signature of its payload, as rsync-like tools use it.
//!
//! The result is binary: for each block of 64 KiB its CRC-32 (IEEE 802.3), four bytes, little endian. It shows what an agent
//! does with the worker protocol (kurultai-protocol(7)): HELLO and READY, a payload inline or in a file, progress,
//! a checkpoint to go on from after a preemption, cancellation, CHUNKs, MEMORY, and a clean end.
//!
//! ```toml
//! [agents.signature]
//! command = ["/usr/lib/kurultai/agents/signature"]
//! mode = "persistent"
//! ```
//!
//! Two threads. The reader owns stdin and never does work, so that CANCEL and PREEMPT are heard at once; it hands tasks to
//! the main thread over one bounded channel and interrupts over another. The main thread does the work and looks for an
//! interrupt between two blocks. Both write whole lines to stdout, which std locks for the length of a line; nothing else
//! may print there (`eprintln!` goes to the daemon's log).

use std::fs::File;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

const BLOCK_BYTES: usize = 64 * 1024;

/// Bytes of result a CHUNK: base64 makes 768 KiB of it, well under the protocol's line of 1 MiB.
const CHUNK_BYTES: usize = 576 * 1024;

/// The daemon gives a worker one task at a time; the second place is for one that comes while the last is being answered.
const TASKS_CAPACITY: usize = 2;

/// Parsing JSON as deep as serde_json goes (128 levels) needs a part of it, in an unoptimised build too.
const READER_STACK_BYTES: usize = 512 * 1024;

/// A task is told to stop once or twice; what finds no place is about a task that has been told already.
const INTERRUPTS_CAPACITY: usize = 4;

/// Progress goes out at every 10 % or after this time, whichever comes first.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(30);

/// Why a task does not end by itself.
enum Interrupt {
    Cancel { task_id: String, reason: String },
    Preempt { task_id: String },
}

/// How a task ended other than with a result.
enum Stop {
    Cancelled { reason: String },
    Preempted { checkpoint: Value },
    Failed { error: String, retryable: bool },
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        // Why retryable: reading a file failed, not the arithmetic; the disk may be back next time.
        Self::Failed { error: format!("cannot read the payload: {error}"), retryable: true }
    }
}

fn main() -> ExitCode {
    let (tasks_tx, tasks_rx) = sync_channel(TASKS_CAPACITY);
    let (interrupts_tx, interrupts_rx) = sync_channel(INTERRUPTS_CAPACITY);
    let reader = thread::Builder::new().name("reader".into()).stack_size(READER_STACK_BYTES);
    if let Err(error) = reader.spawn(move || read_messages(&tasks_tx, &interrupts_tx)) {
        eprintln!("signature: cannot start the reader thread: {error}");
        return ExitCode::from(71);
    }
    // Ends when the reader has seen SHUTDOWN or the end of stdin and dropped its end; the task that runs is finished first.
    for task in tasks_rx {
        run(&task, &interrupts_rx);
    }
    ExitCode::SUCCESS
}

/// The reader: one message a line, until SHUTDOWN or the end of stdin (which says that the daemon has gone).
fn read_messages(tasks_tx: &SyncSender<Value>, interrupts_tx: &SyncSender<Interrupt>) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let Ok(message) = serde_json::from_str::<Value>(&line) else {
            eprintln!("signature: not JSON, ignored: {:.80}", line);
            continue;
        };
        let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
        match message["type"].as_str() {
            Some("HELLO") => send(&json!({"type": "READY", "protocol": 1, "capabilities": ["checkpoint", "cancel"]})),
            Some("TASK") => {
                let Ok(()) = tasks_tx.send(message) else { return };
            }
            Some("CANCEL") => {
                interrupt(interrupts_tx, Interrupt::Cancel { task_id: text("taskId"), reason: text("reason") });
            }
            Some("PREEMPT") => interrupt(interrupts_tx, Interrupt::Preempt { task_id: text("taskId") }),
            // There is no cache to drop here; the answer is due all the same.
            Some("GC") => send_memory(),
            Some("SHUTDOWN") => return,
            // A newer daemon may say more.
            _ => {}
        }
    }
}

fn interrupt(interrupts_tx: &SyncSender<Interrupt>, interrupt: Interrupt) {
    match interrupts_tx.try_send(interrupt) {
        Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
    }
}

/// Does one task and answers it, with exactly one of COMPLETE, FAILED and PREEMPTED.
fn run(task: &Value, interrupts_rx: &Receiver<Interrupt>) {
    let id = task["taskId"].as_str().unwrap_or_default();
    match signature(id, task, interrupts_rx) {
        Ok(sums) => {
            // A result in CHUNKs is the bytes of the chunks; COMPLETE then has no `result`.
            let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
            for (seq, piece) in bytes.chunks(CHUNK_BYTES).enumerate() {
                let data = BASE64.encode(piece);
                send(&json!({"type": "CHUNK", "taskId": id, "seq": seq, "data": data, "encoding": "base64"}));
            }
            send(&json!({"type": "COMPLETE", "taskId": id}));
        }
        Err(Stop::Cancelled { reason }) => {
            send(&json!({"type": "FAILED", "taskId": id, "error": format!("cancelled: {reason}"), "retryable": false}));
        }
        Err(Stop::Preempted { checkpoint }) => {
            send(&json!({"type": "PREEMPTED", "taskId": id, "checkpoint": checkpoint}));
        }
        Err(Stop::Failed { error, retryable }) => {
            send(&json!({"type": "FAILED", "taskId": id, "error": error, "retryable": retryable}));
        }
    }
    send_memory();
}

/// The CRC-32 of every block of the payload, in order; empty for an empty payload.
fn signature(id: &str, task: &Value, interrupts_rx: &Receiver<Interrupt>) -> Result<Vec<u32>, Stop> {
    let mut payload = Payload::open(task)?;
    // The checkpoint is the sums so far: their number says where to go on.
    let mut sums: Vec<u32> = match &task["checkpoint"] {
        Value::Null => Vec::new(),
        checkpoint => serde_json::from_value(checkpoint["sums"].clone())
            .map_err(|error| Stop::Failed { error: format!("unusable checkpoint: {error}"), retryable: false })?,
    };
    payload.skip_blocks(sums.len())?;
    let blocks_total = payload.bytes.div_ceil(BLOCK_BYTES as u64).max(1);
    let mut progress = Progress::new();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        if let Some(stop) = interrupted(id, &sums, interrupts_rx) {
            return Err(stop);
        }
        let length = payload.read_block(&mut block)?;
        if length == 0 {
            return Ok(sums);
        }
        sums.push(crc32(&block[..length]));
        let percent = 100 * sums.len() as u64 / blocks_total;
        if progress.is_due(percent) {
            send(&json!({
                "type": "PROGRESS", "taskId": id, "percent": percent.min(100),
                "message": format!("{} of {blocks_total} blocks", sums.len()),
                "checkpoint": {"sums": sums},
            }));
        }
    }
}

/// What the daemon wants of this task; what it wanted of an earlier one is dropped.
fn interrupted(id: &str, sums: &[u32], interrupts_rx: &Receiver<Interrupt>) -> Option<Stop> {
    interrupts_rx.try_iter().find_map(|interrupt| match interrupt {
        Interrupt::Cancel { task_id, reason } => (task_id == id).then_some(Stop::Cancelled { reason }),
        Interrupt::Preempt { task_id } => {
            (task_id == id).then(|| Stop::Preempted { checkpoint: json!({"sums": sums}) })
        }
    })
}

/// The payload's bytes: the inline text, the JSON text of an inline value, or a file.
struct Payload {
    source: Source,
    bytes: u64,
}

enum Source {
    Inline(Cursor<Vec<u8>>),
    File(File),
}

impl Payload {
    fn open(task: &Value) -> Result<Self, Stop> {
        if let Some(path) = task["payloadPath"].as_str() {
            let file = File::open(path)?;
            let bytes = file.metadata()?.len();
            return Ok(Self { source: Source::File(file), bytes });
        }
        let inline = match (&task["payload"], task["payloadType"].as_str()) {
            (Value::String(text), Some("raw")) => text.clone().into_bytes(),
            (value, _) => value.to_string().into_bytes(),
        };
        let bytes = inline.len() as u64;
        Ok(Self { source: Source::Inline(Cursor::new(inline)), bytes })
    }

    fn skip_blocks(&mut self, blocks: usize) -> io::Result<()> {
        let position = SeekFrom::Start(blocks as u64 * BLOCK_BYTES as u64);
        match &mut self.source {
            Source::Inline(cursor) => cursor.seek(position)?,
            Source::File(file) => file.seek(position)?,
        };
        Ok(())
    }

    /// Fills `block` as far as the payload goes; 0 at its end.
    fn read_block(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < block.len() {
            let read = match &mut self.source {
                Source::Inline(cursor) => cursor.read(&mut block[filled..]),
                Source::File(file) => file.read(&mut block[filled..]),
            };
            match read {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// Holds progress down to a message at every 10 % or 30 s: the daemon makes a checkpoint durable with each.
struct Progress {
    decile: u64,
    sent_at: Instant,
}

impl Progress {
    fn new() -> Self {
        Self { decile: 0, sent_at: now() }
    }

    fn is_due(&mut self, percent: u64) -> bool {
        let now = now();
        let due = percent / 10 != self.decile || now.duration_since(self.sent_at) >= PROGRESS_INTERVAL;
        if due {
            self.decile = percent / 10;
            self.sent_at = now;
        }
        due
    }
}

#[expect(clippy::disallowed_methods, reason = "an agent is a program of its own; the daemon's clock is not its clock")]
fn now() -> Instant {
    Instant::now()
}

/// CRC-32 as in IEEE 802.3 and zlib: reflected, polynomial 0xEDB88320.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc32_table();
    !bytes.iter().fold(!0, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const fn crc32_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

/// The resident memory of this process; left out where /proc does not tell.
fn send_memory() {
    // statm counts pages; 4 KiB is the page of every host this example was tried on, a real agent asks sysconf(3).
    const PAGE_BYTES: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    if let Some(pages) = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()) {
        send(&json!({"type": "MEMORY", "rss": pages * PAGE_BYTES}));
    }
}

/// One message, one line, one write.
fn send(message: &Value) {
    let mut line = message.to_string();
    line.push('\n');
    let mut stdout = io::stdout().lock();
    if stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        // The daemon has gone and nobody is left to tell.
        std::process::exit(1);
    }
}
