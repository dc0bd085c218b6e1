//! The two output streams, standard input, and what is known about the terminal behind them.
//!
//! Owns colour, width, and the rule that text of others reaches a terminal only without control characters. May import
//! std. Must never know what is printed.

use super::error::CtlError;
use super::text::{Cleaner, lines, wrap};
use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::time::Duration;

/// The environment variables the client looks at; empty ones count as unset.
#[derive(Debug, Default)]
pub struct Env {
    pub socket: Option<OsString>,
    pub url: Option<OsString>,
    pub token_file: Option<OsString>,
    pub no_color: Option<OsString>,
    pub term: Option<OsString>,
    pub columns: Option<OsString>,
    /// What says how characters are spelled: the first of LC_ALL, LC_CTYPE and LANG (locale(7)).
    pub locale: Option<OsString>,
}

impl Env {
    pub fn from_process() -> Env {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Env {
            socket: set("KURULTAI_SOCKET"),
            url: set("KURULTAI_URL"),
            token_file: set("KURULTAI_TOKEN_FILE"),
            no_color: set("NO_COLOR"),
            term: set("TERM"),
            columns: set("COLUMNS"),
            locale: set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")),
        }
    }

    fn width(&self) -> usize {
        let columns = self.columns.as_ref().and_then(|columns| columns.to_str()?.parse().ok());
        columns.map_or(DEFAULT_WIDTH, |columns: usize| columns.clamp(40, 1000))
    }

    fn utf8(&self) -> bool {
        let locale = self.locale.as_ref().map(|locale| locale.to_string_lossy().to_ascii_lowercase());
        locale.is_some_and(|locale| locale.contains("utf-8") || locale.contains("utf8"))
    }
}

const DEFAULT_WIDTH: usize = 80;

/// What a word means, for its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Title,
    Good,
    Careful,
    Bad,
}

pub struct Console {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    input: Box<dyn Read>,
    out_terminal: bool,
    err_terminal: bool,
    colour: bool,
    utf8: bool,
    /// Columns a line may take on a terminal.
    pub width: usize,
    /// Between two looks of `status --watch`, and between attempts to follow a task through a restart.
    pub pause: Duration,
}

impl Console {
    pub fn from_process(env: &Env) -> Console {
        let out_terminal = io::stdout().is_terminal();
        let dumb = env.term.as_ref().is_some_and(|term| term == "dumb");
        Console {
            out: Box::new(io::BufWriter::new(io::stdout())),
            err: Box::new(io::stderr()),
            input: Box::new(io::stdin()),
            out_terminal,
            err_terminal: io::stderr().is_terminal(),
            colour: out_terminal && env.no_color.is_none() && !dumb,
            utf8: env.utf8(),
            width: env.width(),
            pause: Duration::from_secs(1),
        }
    }

    pub fn out_is_terminal(&self) -> bool {
        self.out_terminal
    }

    /// Whether characters beyond ASCII are shown as what they are.
    pub fn speaks_utf8(&self) -> bool {
        self.utf8
    }

    pub fn err_is_terminal(&self) -> bool {
        self.err_terminal
    }

    pub fn input(&mut self) -> &mut dyn Read {
        &mut *self.input
    }

    /// Text of our own making, whose foreign parts went through `text::one_line` or `text::lines` already.
    pub fn print(&mut self, text: &str) -> Result<(), CtlError> {
        self.out.write_all(text.as_bytes()).map_err(CtlError::Output)
    }

    /// The daemon's own bytes and a line end, shown at once: as they are in a pipe or file, cleaned on a terminal.
    pub fn print_foreign_line(&mut self, bytes: &[u8]) -> Result<(), CtlError> {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        if self.out_terminal {
            self.print(&lines(&String::from_utf8_lossy(bytes)))?;
        } else {
            self.out.write_all(bytes).map_err(CtlError::Output)?;
        }
        self.print("\n")?;
        self.flush()
    }

    /// Everything from `source`, as it comes. `lost` says what an error of the source means.
    pub fn print_stream(
        &mut self,
        source: &mut impl Read,
        lost: impl Fn(io::Error) -> CtlError,
    ) -> Result<(), CtlError> {
        let mut cleaner = Cleaner::default();
        let mut buffer = vec![0; 64 * 1024];
        let mut last = b'\n';
        loop {
            let read = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(lost(error)),
            };
            last = buffer[read - 1];
            if self.out_terminal {
                self.print(&cleaner.clean(&buffer[..read]))?;
            } else {
                self.out.write_all(&buffer[..read]).map_err(CtlError::Output)?;
            }
            self.flush()?;
        }
        self.print(&cleaner.finish())?;
        if self.out_terminal && last != b'\n' {
            self.print("\n")?;
        }
        self.flush()
    }

    pub fn flush(&mut self) -> Result<(), CtlError> {
        self.out.flush().map_err(CtlError::Output)
    }

    /// A message on standard error, cleaned, and wrapped on a terminal; if nobody reads it, it is lost.
    pub fn complain(&mut self, message: &str) {
        self.note(&format!("kurultaictl: {message}"));
    }

    /// The same without the program's name.
    pub fn note(&mut self, message: &str) {
        for line in lines(message).lines() {
            // Why: an indented line is somebody's own output, whose blanks count.
            let long = self.err_terminal && !line.starts_with(' ') && line.chars().count() > self.width;
            let told = if long { wrap(line, self.width).join("\n") } else { line.to_owned() };
            let _ = writeln!(self.err, "{told}");
        }
        let _ = self.err.flush();
    }

    /// Home and clear, on a terminal only (ECMA-48: CUP, ED).
    pub fn clear_screen(&mut self) -> Result<(), CtlError> {
        if self.out_terminal { self.print("\x1b[H\x1b[2J") } else { Ok(()) }
    }

    pub fn toned(&self, text: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Title => "1",
            Tone::Good => "32",
            Tone::Careful => "33",
            Tone::Bad => "31",
            Tone::Plain => return text.to_owned(),
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    #[expect(clippy::disallowed_methods, reason = "one thread that nothing could wake: a signal ends the program")]
    pub fn wait_a_moment(&self) {
        std::thread::sleep(self.pause);
    }
}

#[cfg(test)]
impl Console {
    /// A console into buffers; `terminal` says what both output streams pretend to be.
    pub fn for_test(out: Box<dyn Write>, err: Box<dyn Write>, input: Box<dyn Read>, terminal: bool) -> Console {
        Console {
            out,
            err,
            input,
            out_terminal: terminal,
            err_terminal: false,
            colour: false,
            utf8: true,
            width: DEFAULT_WIDTH,
            pause: Duration::ZERO,
        }
    }

    /// The same on a terminal that knows ASCII only.
    pub fn ascii(self) -> Console {
        Console { utf8: false, ..self }
    }
}
