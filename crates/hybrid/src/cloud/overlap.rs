//! What a continuation repeats of the text that it goes on from.

/// Takes the beginning of a continuation and leaves out what only repeats the end of the text before it.
#[derive(Debug)]
pub struct Overlap {
    before: String,
    held: String,
    is_settled: bool,
}

impl Overlap {
    /// Bytes that must agree to count as repeated.
    const LEAST: usize = 4;
    /// Bytes of the end that are compared.
    const MOST: usize = 512;

    /// For a continuation of `before`; where that is empty, everything passes.
    pub fn new(before: &str) -> Self {
        Overlap {
            before: before.to_owned(),
            held: String::new(),
            is_settled: before.is_empty(),
        }
    }

    /// Takes a piece and answers what is certain.
    pub fn push(&mut self, piece: &str) -> String {
        if self.is_settled {
            return piece.to_owned();
        }
        self.held.push_str(piece);
        // As long as the whole continuation may be a repetition, nothing is certain.
        let may_repeat = |start: usize| self.before[start..].starts_with(self.held.as_str());
        if self.starts().any(may_repeat) {
            return String::new();
        }
        self.finish()
    }

    /// What was held back at the end.
    pub fn finish(&mut self) -> String {
        self.is_settled = true;
        let repeated = self
            .starts()
            .map(|start| &self.before[start..])
            .filter(|end| end.len() >= Self::LEAST.min(self.before.len()))
            .find(|end| self.held.starts_with(end))
            .map_or(0, str::len);
        let held = std::mem::take(&mut self.held);
        held[repeated..].to_owned()
    }

    /// Where the repeated end may begin, the longest first: everything, or a part of the last bytes.
    fn starts(&self) -> impl Iterator<Item = usize> {
        let near = self.before.len().saturating_sub(Self::MOST).max(1);
        let boundaries = (near..self.before.len()).filter(|&at| self.before.is_char_boundary(at));
        std::iter::once(0).chain(boundaries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(before: &str, continuation: &str, cut: usize) -> String {
        let mut overlap = Overlap::new(before);
        let characters: Vec<char> = continuation.chars().collect();
        let mut whole = before.to_owned();
        for piece in characters.chunks(cut) {
            whole.push_str(&overlap.push(&piece.iter().collect::<String>()));
        }
        whole.push_str(&overlap.finish());
        whole
    }

    #[test]
    fn what_is_repeated_appears_once_however_it_is_cut() {
        for cut in 1..9 {
            for (before, continuation, whole) in [
                ("The river ", "is long.", "The river is long."),
                ("The river ", "river is long.", "The river is long."),
                ("The river is", "The river is long.", "The river is long."),
                ("", "The river", "The river"),
                ("One thé", "thé two", "One thé two"),
                ("a b c", "c d", "a b cc d"),
                ("The river is long.", "", "The river is long."),
            ] {
                assert_eq!(join(before, continuation, cut), whole);
            }
        }
    }
}
