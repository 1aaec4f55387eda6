//! The two streams: results on standard output, everything else on standard error.

use crate::cli::Common;
use crate::error::CliError;
use std::io::{self, BufWriter, StdoutLock, Write};

/// Where a verb writes.
pub struct Output {
    stdout: BufWriter<StdoutLock<'static>>,
    json: bool,
    quiet: bool,
}

impl Output {
    /// Standard output, buffered: a verb that streams calls [`Output::flush`].
    pub fn new(common: &Common) -> Self {
        Self {
            stdout: BufWriter::new(io::stdout().lock()),
            json: common.json,
            quiet: common.quiet,
        }
    }

    /// True if the result is to be one JSON object.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// True if the user asked for silence on standard error.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// True if progress may be drawn: standard error is a terminal and the user did not ask for silence.
    #[cfg(feature = "pull")]
    pub fn shows_progress(&self) -> bool {
        !self.quiet && io::IsTerminal::is_terminal(&io::stderr())
    }

    /// Writes text as it is.
    ///
    /// # Errors
    /// [`CliError::OutputClosed`] when the reader went away, so that `?` ends the verb quietly.
    pub fn write(&mut self, text: &str) -> Result<(), CliError> {
        Ok(self.stdout.write_all(text.as_bytes())?)
    }

    /// Writes a line.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub fn line(&mut self, text: &str) -> Result<(), CliError> {
        Ok(writeln!(self.stdout, "{text}")?)
    }

    /// Writes a JSON value as one line.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub fn json(&mut self, value: &serde_json::Value) -> Result<(), CliError> {
        self.line(&value.to_string())
    }

    /// Sends what is buffered on its way.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub fn flush(&mut self) -> Result<(), CliError> {
        Ok(self.stdout.flush()?)
    }

    /// Flushes; the last call of a verb.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub fn finish(&mut self) -> Result<(), CliError> {
        self.flush()
    }

    /// A remark for the user on standard error.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// The one sentence of an error on standard error.
    pub fn error(&mut self, error: &CliError) {
        if !matches!(error, CliError::OutputClosed) {
            let _ = self.stdout.flush();
            let _ = writeln!(io::stderr(), "ondine: {error}");
        }
    }
}
