//! The fuzz targets without an engine: the seeds of tests/fuzz/corpus and mutations of them, under the same invariants.
//! `make fuzz` goes further. A failure prints its seed; `KURULTAI_SEED=n cargo test --test fuzz` takes that one again.

#[path = "fuzz/invariants.rs"]
mod invariants;

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use invariants::step;
use kurultai::spool::Files;

/// Mutations of each seed: a second or two for all of them in a debug build, in which a long one counts for many.
fn mutations(seed: &[u8]) -> usize {
    if seed.len() > 1024 { 2 } else { 12 }
}

/// What is put in besides single bytes: where parsers turn.
const MORSELS: [&[u8]; 16] = [
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b" ",
    b":",
    b"%",
    b"\0",
    b"\xff\xa0x",
    b"\xf0\x9f",
    b"{",
    b"\"",
    b"\\u",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"\"taskId\":\"t-1\",",
    b"99999999999999999999",
];

#[test]
fn any_head_is_read_the_same_way_however_it_comes() {
    each_input("head", invariants::head);
}

#[test]
fn any_output_of_a_worker_is_heard_the_same_way_however_it_comes() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = Files::open(directory.path(), false).expect("a spool");
    each_input("protocol", |bytes| invariants::protocol(bytes, &files));
}

/// Every seed of a target and its mutations.
fn each_input(target: &str, holds: impl Fn(&[u8])) {
    let mut seeds: Vec<(String, Vec<u8>)> = fs::read_dir(corpus().join(target))
        .expect("a corpus")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a seed")))
        .collect();
    seeds.sort();
    assert!(seeds.len() >= 20, "{} seeds of {target}", seeds.len());
    let number = match std::env::var("KURULTAI_SEED") {
        Ok(number) => number.parse().expect("KURULTAI_SEED is a number"),
        Err(_) => RandomState::new().hash_one(target),
    };
    println!("KURULTAI_SEED={number}");
    let mut dice = number;
    for (name, seed) in &seeds {
        let mut input = Input { name, bytes: seed.clone() };
        holds(&input.bytes);
        for _ in 0..mutations(seed) {
            let other = &seeds[(step(&mut dice) as usize) % seeds.len()].1;
            input.bytes = mutate(seed, other, &mut dice);
            holds(&input.bytes);
        }
    }
}

fn corpus() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus"))
}

/// Prints what did not hold.
struct Input<'a> {
    name: &'a str,
    bytes: Vec<u8>,
}

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("from seed {}: b\"{}\"", self.name, self.bytes.escape_ascii());
        }
    }
}

/// One to four changes.
fn mutate(seed: &[u8], other: &[u8], dice: &mut u64) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + step(dice) % 4 {
        let at = (step(dice) as usize) % (bytes.len() + 1);
        let end = (at + 1 + (step(dice) as usize) % 8).min(bytes.len());
        let morsel = MORSELS[(step(dice) as usize) % MORSELS.len()];
        match step(dice) % 6 {
            0 => drop(bytes.drain(at..end)),
            1 => drop(bytes.splice(at..at, morsel.iter().copied())),
            2 => drop(bytes.splice(at..end, morsel.iter().copied())),
            3 if at < bytes.len() => bytes[at] = step(dice) as u8,
            4 => bytes.extend_from_within(at..end),
            _ => {
                let from = (step(dice) as usize) % (other.len() + 1);
                drop(bytes.splice(at.., other[from..].iter().copied()));
            }
        }
    }
    bytes
}
