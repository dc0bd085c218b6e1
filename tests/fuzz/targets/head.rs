#![no_main]
//! The head of an HTTP request, from its bytes to what it asks for.

#[path = "../invariants.rs"]
#[allow(dead_code)]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::head(bytes));
