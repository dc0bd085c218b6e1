//! The daemon's command line. Exit status: 0 clean stop, 2 usage, 78 invalid configuration, 71 the system says no, 70 a
//! bug.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use kurultai::daemon::{self, Options};

const USAGE: &str = "\
Usage: kurultaid [--config PATH] [--pid-file PATH]
       kurultaid --check | --print-config [--config PATH]

Takes tasks over HTTP, runs them in a bounded pool of worker processes, and keeps the host alive.
It stays in the foreground and logs to standard error.

  --config PATH     the configuration (default /etc/kurultai/kurultai.toml)
  --check           read and check the configuration, print every problem, start nothing
  --print-config    print the effective configuration with the origin of each value
  --pid-file PATH   written once the gateway listens, removed on exit
  --version         print the version
  --help            print this

See kurultaid(8) and kurultai.toml(5).
";

const USAGE_ERROR: u8 = 2;
const BUG: u8 = 70;
const INVALID_CONFIG: u8 = 78;

enum Mode {
    Run,
    Check,
    Print,
    Say(String),
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        // Why: a daemon that lost a thread is half dead. Ending here takes its workers with it.
        let _ = writeln!(std::io::stderr(), "kurultaid: this is a bug, please report it: {panic}");
        kurultai::sys::process::exit_now(i32::from(BUG));
    }));
    match arguments() {
        Ok((Mode::Say(text), _)) => say(&text),
        Ok((mode, options)) => work(&mode, &options),
        Err(error) => {
            complain(&format!("{error}; see kurultaid --help"));
            ExitCode::from(USAGE_ERROR)
        }
    }
}

fn arguments() -> Result<(Mode, Options), lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options { config: PathBuf::from("/etc/kurultai/kurultai.toml"), pid_file: None };
    let mut mode = Mode::Run;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") => options.config = PathBuf::from(parser.value()?),
            Long("pid-file") => options.pid_file = Some(PathBuf::from(parser.value()?)),
            Long("check") => mode = Mode::Check,
            Long("print-config") => mode = Mode::Print,
            Long("version") => mode = Mode::Say(format!("kurultaid {}\n", env!("CARGO_PKG_VERSION"))),
            Long("help") | Short('h') => mode = Mode::Say(USAGE.to_string()),
            other => return Err(other.unexpected()),
        }
        if matches!(mode, Mode::Say(_)) {
            break;
        }
    }
    Ok((mode, options))
}

fn work(mode: &Mode, options: &Options) -> ExitCode {
    let loaded = match daemon::load(&options.config) {
        Ok(loaded) => loaded,
        Err(error) => {
            // One problem a line, as compilers write them, so that editors can jump to each.
            let _ = writeln!(std::io::stderr(), "{error}");
            return ExitCode::from(INVALID_CONFIG);
        }
    };
    match mode {
        Mode::Check => {
            let host = daemon::check_host(&loaded);
            for found in loaded.warnings.iter().chain(&host.warnings).chain(&host.problems) {
                let _ = writeln!(std::io::stderr(), "{found}");
            }
            if !host.problems.is_empty() {
                return ExitCode::from(INVALID_CONFIG);
            }
            say(&format!("{}: the configuration is valid\n", options.config.display()))
        }
        Mode::Print => say(&loaded.print()),
        Mode::Say(text) => say(text),
        Mode::Run => match daemon::run(options, loaded) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error.to_string());
                ExitCode::from(error.exit_status())
            }
        },
    }
}

fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("cannot write to standard output: {error}"));
            ExitCode::from(1)
        }
    }
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "kurultaid: {text}");
}
