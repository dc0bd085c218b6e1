//! Every child process.
