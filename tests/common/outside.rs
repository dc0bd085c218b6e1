//! Other programs: started here and nowhere else in the tests.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ran {
    /// `None`: a signal ended it.
    pub status: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("standard output is text")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub fn expect(self, status: i32) -> Ran {
        assert_eq!(
            self.status,
            Some(status),
            "stdout: {}\nstderr: {}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            status: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A program with nothing in its environment but PATH: what is set where the tests run must not matter.
#[expect(clippy::disallowed_methods, reason = "the one place where the tests start processes")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", path());
    command
}

/// Plain programs before wrappers of them that a developer's machine may have in front.
pub fn path() -> String {
    format!("/usr/local/bin:/usr/bin:/bin:{}", std::env::var("PATH").unwrap_or_default())
}

/// Runs a program to its end with this on standard input.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = A>, input: &[u8]) -> Ran {
    run_command(command(program).args(arguments), input)
}

/// As [`run`], of a command that is made already.
#[track_caller]
pub fn run_command(command: &mut Command, input: &[u8]) -> Ran {
    let name = command.get_program().to_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}; install it", name.display()));
    let mut stdin = child.stdin.take().expect("piped");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that does not read its input is free not to.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().expect("a child can be waited for").into()
    })
}

/// Runs a line of sh.
#[track_caller]
pub fn shell(line: &str) -> Ran {
    run("/bin/sh", ["-c", line], b"")
}
