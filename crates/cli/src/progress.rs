//! What the hub reports, as bars and notes on standard error.

use crate::interrupt;
use crate::output::Output;
use ondine_hub::{Event, Progress};
use std::io::Write;

/// Bars when standard error is a terminal; notes unless the user asked for silence.
pub struct TerminalProgress {
    #[cfg(feature = "pull")]
    bar: Option<indicatif::ProgressBar>,
    notes: bool,
}

impl TerminalProgress {
    /// Draws as the output allows.
    pub fn new(output: &Output) -> Self {
        Self {
            #[cfg(feature = "pull")]
            bar: output.shows_progress().then(indicatif::ProgressBar::hidden),
            notes: !output.is_quiet(),
        }
    }

    fn note(&self, text: &str) {
        if !self.notes {
            return;
        }
        let print = || {
            let _ = writeln!(std::io::stderr(), "{text}");
        };
        #[cfg(feature = "pull")]
        if let Some(bar) = &self.bar {
            return bar.suspend(print);
        }
        print();
    }
}

impl Progress for TerminalProgress {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Trying { source } => self.note(&format!("from {source}")),
            Event::Retrying { reason, after } => self.note(&format!(
                "{reason}; once more in {:.1} s",
                after.as_secs_f32()
            )),
            Event::SourceFailed { source, reason } => {
                self.note(&format!("{source} failed: {reason}"))
            }
            Event::Waiting => {
                self.note("another process is downloading this model; waiting for it")
            }
            Event::Note(text) => self.note(text),
            _ => {}
        }
        #[cfg(feature = "pull")]
        if let Some(bar) = &self.bar {
            draw(bar, event);
        }
    }

    fn is_cancelled(&self) -> bool {
        interrupt::is_interrupted()
    }
}

#[cfg(feature = "pull")]
fn draw(bar: &indicatif::ProgressBar, event: Event<'_>) {
    use indicatif::{ProgressDrawTarget, ProgressStyle};
    use ondine_hub::Phase;
    match event {
        Event::Started { phase, total, done } => {
            let template = match total {
                Some(_) => {
                    "{prefix:9} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
                }
                None => "{prefix:9} {spinner} {binary_bytes} {binary_bytes_per_sec}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(match phase {
                Phase::Download => "download",
                Phase::Unpack => "unpack",
                _ => "verify",
            });
            if let Some(total) = total {
                bar.set_length(total);
            }
            bar.reset();
            bar.set_draw_target(ProgressDrawTarget::stderr());
            // What was already here counts as done but not as speed.
            bar.set_position(done);
            bar.reset_eta();
        }
        Event::Advanced { done } => bar.set_position(done),
        Event::Finished => bar.finish_and_clear(),
        _ => {}
    }
}

/// A bar for work that is counted; nothing where progress is not shown.
pub struct Bar {
    #[cfg(feature = "pull")]
    bar: Option<indicatif::ProgressBar>,
}

impl Bar {
    /// A bar that counts `what`.
    pub fn new(output: &Output, what: &str) -> Self {
        #[cfg(not(feature = "pull"))]
        let _ = (output, what);
        Self {
            #[cfg(feature = "pull")]
            bar: output.shows_progress().then(|| {
                let style = format!("{{bar:30}} {{pos}}/{{len}} {what} {{eta}} left {{msg}}");
                let bar = indicatif::ProgressBar::new(0);
                if let Ok(style) = indicatif::ProgressStyle::with_template(&style) {
                    bar.set_style(style);
                }
                bar
            }),
        }
    }

    /// Shows that `done` of `all` is done.
    pub fn set(&self, done: usize, all: usize, message: &str) {
        #[cfg(not(feature = "pull"))]
        let _ = (done, all, message);
        #[cfg(feature = "pull")]
        if let Some(bar) = &self.bar {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
            bar.set_message(message.to_owned());
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        #[cfg(feature = "pull")]
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
