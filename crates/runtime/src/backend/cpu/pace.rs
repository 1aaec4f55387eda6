//! Which of two ways to the same result is quicker on this machine at this moment: measured while both are in use.

/// Positions between two trials of the slower way, and before the first one.
const TRIAL_EVERY: u32 = 32;
const FIRST_TRIAL: u32 = 8;
/// Weight of a new time in the average.
const NEWS: f64 = 0.3;
/// A time counts at most as so many averages: a thread may have lost its core.
const OUTLIER: f64 = 2.0;

/// The times of two ways, the first of which is taken until the other is known to be quicker.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Average times, s; unknown before the first use.
    first: Option<f64>,
    other: Option<f64>,
    since_trial: u32,
}

impl Pace {
    /// Whether to take the first way now.
    pub(super) fn takes_first(&mut self) -> bool {
        self.since_trial += 1;
        let first_is_quicker = match (self.first, self.other) {
            (None, _) => return true,
            (Some(_), None) => return self.since_trial <= FIRST_TRIAL,
            (Some(first), Some(other)) => first <= other,
        };
        let is_trial = self.since_trial > TRIAL_EVERY;
        if is_trial {
            self.since_trial = 0;
        }
        first_is_quicker != is_trial
    }

    /// Notes what a way took.
    pub(super) fn note(&mut self, first: bool, seconds: f64) {
        let average = if first {
            &mut self.first
        } else {
            &mut self.other
        };
        *average = Some(match *average {
            None => seconds,
            Some(known) => known + NEWS * (seconds.min(OUTLIER * known) - known),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Share of `count` positions that take the first way while the two take these times.
    fn share(pace: &mut Pace, first: f64, other: f64, count: u32) -> f64 {
        let mut firsts = 0;
        for _ in 0..count {
            let is_first = pace.takes_first();
            firsts += u32::from(is_first);
            pace.note(is_first, if is_first { first } else { other });
        }
        f64::from(firsts) / f64::from(count)
    }

    #[test]
    fn the_quicker_way_is_taken_and_the_other_tried() {
        let mut pace = Pace::default();
        let mostly = share(&mut pace, 1.0, 1.3, 1000);
        assert!((0.95..1.0).contains(&mostly), "{mostly}");
        // The machine changes.
        let rarely = share(&mut pace, 1.0, 0.6, 1000);
        assert!((0.0..0.3).contains(&rarely), "{rarely}");
        let again = share(&mut pace, 0.5, 0.6, 1000);
        assert!((0.8..1.0).contains(&again), "{again}");
    }

    #[test]
    fn one_interruption_changes_nothing() {
        let mut pace = Pace::default();
        share(&mut pace, 1.0, 1.4, 20);
        pace.note(true, 1000.0);
        assert!(pace.takes_first());
    }
}
