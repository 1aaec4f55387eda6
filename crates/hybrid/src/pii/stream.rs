//! Text in pieces. Where the text is cut for scanning depends on its bytes only, never on how they arrived, so the findings of a
//! stream are those of the whole text.

use super::{Finding, Scanner};

/// Scans text that arrives in pieces, with bounded memory.
///
/// Findings come when their window is complete (64 KiB, or the end); they are the same for every way of cutting the text.
pub struct StreamScanner {
    scanner: Scanner,
    /// What is still needed: the look-back of the next window, then text not yet scanned.
    buffer: String,
    /// Bytes of the buffer that belong to earlier windows.
    look_back: usize,
    /// Offset of the buffer's first byte in the stream.
    offset: usize,
}

/// New text in a window, in bytes.
const WINDOW: usize = 64 << 10;
/// Text behind a window that is scanned with it, so that whatever begins in the window is whole: the longest finding.
const LOOK_AHEAD: usize = 8 << 10;
/// Text before a window that is scanned with it, for context words and word edges.
const LOOK_BACK: usize = 512;

impl StreamScanner {
    /// A scanner at the beginning of a text.
    pub fn new(scanner: Scanner) -> Self {
        Self {
            scanner,
            buffer: String::new(),
            look_back: 0,
            offset: 0,
        }
    }

    /// Takes the next piece and answers the findings of the windows that it completes, with offsets in the whole text.
    pub fn push(&mut self, piece: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut rest = piece;
        loop {
            // The buffer never holds more than one window with its surroundings, however long the piece is.
            let room = (self.look_back + WINDOW + LOOK_AHEAD + 4).saturating_sub(self.buffer.len());
            let take = floor(rest, room);
            let take = if take == 0 { rest.len().min(4) } else { take };
            let take = floor(rest, take).max(rest.chars().next().map_or(0, char::len_utf8));
            self.buffer.push_str(&rest[..take]);
            rest = &rest[take..];
            if self.buffer.len() >= self.look_back + WINDOW + LOOK_AHEAD {
                let scanned_to = floor(&self.buffer, self.look_back + WINDOW + LOOK_AHEAD);
                let cut = floor(&self.buffer, self.look_back + WINDOW);
                findings.extend(self.window(scanned_to, cut));
                let keep_from = floor(&self.buffer, cut - LOOK_BACK);
                self.buffer.drain(..keep_from);
                self.offset += keep_from;
                self.look_back = cut - keep_from;
            }
            if rest.is_empty() {
                return findings;
            }
        }
    }

    /// Answers the findings of what is left.
    pub fn finish(mut self) -> Vec<Finding> {
        let end = self.buffer.len();
        self.window(end, end)
    }

    /// The findings of the buffer up to `scanned_to` that begin in the window, which ends at `cut`.
    fn window(&mut self, scanned_to: usize, cut: usize) -> Vec<Finding> {
        let mut findings = self.scanner.window(&self.buffer[..scanned_to]);
        findings.retain(|finding| finding.start >= self.look_back && finding.start < cut);
        for finding in &mut findings {
            finding.start += self.offset;
            finding.end += self.offset;
        }
        findings
    }
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (at.saturating_sub(3)..=at)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}
