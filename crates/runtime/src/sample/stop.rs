//! Stop texts: found across pieces, and never shown, not even their beginnings.

/// Watches a text that comes in pieces for texts that end it.
///
/// What it lets through and where it stops do not depend on how the text is cut into pieces: the stop text that is
/// complete first counts, the longest of several that end together.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    /// Text that may turn out to be the beginning of a stop text.
    held: String,
    stopped: bool,
}

/// What came out of [`StopMatcher::push`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pushed {
    /// Text that is certainly not part of a stop text.
    pub text: String,
    /// A stop text is complete; nothing comes after `text`.
    pub stopped: bool,
}

/// A stop text and how much of it the end of the text matches (Knuth, Morris and Pratt).
#[derive(Debug, Clone)]
struct Stop {
    text: Vec<u8>,
    /// `fallback[i]`: length of the longest proper prefix of `text[..=i]` that is also its suffix.
    fallback: Vec<usize>,
    matched: usize,
}

impl StopMatcher {
    /// A matcher for `stops`; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        StopMatcher {
            stops: stops
                .iter()
                .filter(|stop| !stop.is_empty())
                .map(|stop| Stop::new(stop))
                .collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next piece. After a stop, everything is swallowed.
    pub fn push(&mut self, piece: &str) -> Pushed {
        if self.stopped {
            return Pushed {
                text: String::new(),
                stopped: true,
            };
        }
        if self.stops.is_empty() {
            return Pushed {
                text: piece.to_owned(),
                stopped: false,
            };
        }
        let before = self.held.len();
        self.held.push_str(piece);
        for (index, &byte) in piece.as_bytes().iter().enumerate() {
            let mut complete = 0;
            for stop in &mut self.stops {
                if stop.advance(byte) {
                    complete = complete.max(stop.text.len());
                }
            }
            if complete > 0 {
                let mut text = std::mem::take(&mut self.held);
                text.truncate(before + index + 1 - complete);
                self.stopped = true;
                return Pushed {
                    text,
                    stopped: true,
                };
            }
        }
        let hold = self.stops.iter().map(|stop| stop.matched).max();
        let certain = self.held.len() - hold.unwrap_or(0);
        let held = self.held.split_off(certain);
        Pushed {
            text: std::mem::replace(&mut self.held, held),
            stopped: false,
        }
    }

    /// The text that was held back, when no more comes.
    pub fn finish(&mut self) -> String {
        for stop in &mut self.stops {
            stop.matched = 0;
        }
        std::mem::take(&mut self.held)
    }
}

impl Stop {
    fn new(text: &str) -> Self {
        let text = text.as_bytes().to_vec();
        let mut fallback = vec![0; text.len()];
        for end in 1..text.len() {
            fallback[end] = extend(&text, &fallback, fallback[end - 1], text[end]);
        }
        Stop {
            text,
            fallback,
            matched: 0,
        }
    }

    /// Whether the text is complete with `byte`.
    fn advance(&mut self, byte: u8) -> bool {
        self.matched = extend(&self.text, &self.fallback, self.matched, byte);
        self.matched == self.text.len()
    }
}

/// Length of the match after `byte`, from a match of `matched` bytes that is not complete.
fn extend(text: &[u8], fallback: &[usize], mut matched: usize, byte: u8) -> usize {
    while matched > 0 && text[matched] != byte {
        matched = fallback[matched - 1];
    }
    matched + usize::from(text[matched] == byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut text = String::new();
        for piece in pieces {
            let pushed = matcher.push(piece);
            text.push_str(&pushed.text);
            if pushed.stopped {
                return (text, true);
            }
        }
        text.push_str(&matcher.finish());
        (text, false)
    }

    #[test]
    fn stops_across_pieces() {
        assert_eq!(run(&["END"], &["go E", "N", "D on"]), ("go ".into(), true));
        assert_eq!(run(&["END"], &["E", "N", "O"]), ("ENO".into(), false));
        assert_eq!(run(&["aab"], &["aa", "ab"]), ("a".into(), true));
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), ("café?".into(), false));
        assert_eq!(run(&["", "\n\n"], &["x\n", "\ny"]), ("x".into(), true));
        // Complete first counts; of those that end together, the longest.
        assert_eq!(run(&["abcd", "c"], &["abcd"]), ("ab".into(), true));
        assert_eq!(run(&["c", "bc"], &["abc"]), ("a".into(), true));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), false));
    }

    #[test]
    fn beginnings_are_held_back() {
        let mut matcher = StopMatcher::new(&["</s>".into()]);
        assert_eq!(matcher.push("hi <").text, "hi ");
        assert_eq!(matcher.push("/").text, "");
        assert_eq!(matcher.push("x").text, "</x");
        assert!(matcher.push("</s>y").stopped);
        assert_eq!(
            matcher.push("z"),
            Pushed {
                text: String::new(),
                stopped: true
            }
        );
        assert_eq!(matcher.finish(), "");
    }

    proptest! {
        /// The definition: cut where the first stop text to be complete begins.
        #[test]
        fn pieces_do_not_matter(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(0_usize..24, 0..6),
        ) {
            let end = (1..=text.len())
                .filter(|&end| text.is_char_boundary(end))
                .find(|&end| stops.iter().any(|stop| text[..end].ends_with(stop.as_str())));
            let expected = end.map(|end| {
                let longest = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max();
                &text[..end - longest.unwrap_or(0)]
            });
            let mut places: Vec<usize> = cuts.into_iter().filter(|&cut| text.is_char_boundary(cut) && cut <= text.len()).collect();
            places.extend([0, text.len()]);
            places.sort_unstable();
            let pieces: Vec<&str> = places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let names: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (got, stopped) = run(&names, &pieces);
            prop_assert_eq!(stopped, expected.is_some());
            prop_assert_eq!(got, expected.unwrap_or(&text));
        }
    }
}
