//! A circuit breaker: a provider that keeps failing is left alone for a while.

use std::time::Duration;

/// Closed while all is well, open after failures in a row, half open for one trial after a pause that doubles.
#[derive(Debug, Clone)]
pub struct Breaker {
    failures: u32,
    /// Until when it is open; none while closed.
    open_until: Option<Duration>,
    pause: Duration,
    /// Whether the one trial is under way, and since when.
    trial: Option<Duration>,
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker {
            failures: 0,
            open_until: None,
            pause: Self::PAUSE,
            trial: None,
        }
    }
}

impl Breaker {
    /// Failures in a row that open it.
    pub const FAILURES: u32 = 5;
    const PAUSE: Duration = Duration::from_secs(5);
    const LONGEST_PAUSE: Duration = Duration::from_secs(120);
    /// A trial that never reports back is forgotten after this.
    const TRIAL: Duration = Duration::from_secs(60);

    /// Whether requests should go elsewhere now.
    pub fn is_open(&self, now: Duration) -> bool {
        let is_trying = self.trial.is_some_and(|since| now < since + Self::TRIAL);
        self.open_until
            .is_some_and(|until| now < until || is_trying)
    }

    /// Asks to send a request; half open, only one is let through.
    pub fn admit(&mut self, now: Duration) -> bool {
        if self.is_open(now) {
            return false;
        }
        if self.open_until.is_some() {
            self.trial = Some(now);
        }
        true
    }

    /// Takes note of how a request went.
    pub fn record(&mut self, now: Duration, is_ok: bool) {
        if is_ok {
            *self = Breaker::default();
            return;
        }
        self.failures += 1;
        if self.trial.take().is_some() {
            self.pause = (self.pause * 2).min(Self::LONGEST_PAUSE);
            self.open_until = Some(now + self.pause);
        } else if self.failures >= Self::FAILURES && self.open_until.is_none() {
            self.open_until = Some(now + self.pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_tries_once_and_closes() {
        let at = Duration::from_secs;
        let mut breaker = Breaker::default();
        for _ in 0..Breaker::FAILURES {
            assert!(breaker.admit(at(0)));
            breaker.record(at(0), false);
        }
        assert!(breaker.is_open(at(4)) && !breaker.admit(at(4)));
        assert!(breaker.admit(at(6)));
        assert!(!breaker.admit(at(6)), "one trial only");
        breaker.record(at(6), false);
        assert!(breaker.is_open(at(15)), "the pause doubles");
        assert!(breaker.admit(at(17)));
        breaker.record(at(17), true);
        assert!(!breaker.is_open(at(17)) && breaker.admit(at(17)) && breaker.admit(at(17)));
    }
}
