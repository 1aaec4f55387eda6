//! Bootstrap intervals (Efron 1979, percentile method) of a mean.

use serde::Serialize;

const RESAMPLES: usize = 2000;

/// A mean and where it may lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// What it lies above with half the confidence left over.
    pub low: f64,
    /// What it lies below.
    pub high: f64,
}

/// The mean of `values`, between the quantiles `tail` and `1 - tail` of resampled means. Differences of paired values make it a
/// paired bootstrap. Equal values give an interval of no width, whatever the seed.
pub fn interval(values: &[f64], tail: f64, seed: u64) -> Interval {
    let count = values.len();
    if count == 0 {
        return Interval {
            mean: 0.0,
            low: 0.0,
            high: 0.0,
        };
    }
    let mean = values.iter().sum::<f64>() / count as f64;
    if values.iter().all(|value| value == &values[0]) {
        return Interval {
            mean: values[0],
            low: values[0],
            high: values[0],
        };
    }
    let mut state = seed;
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let picked = (0..count).map(|_| values[(next(&mut state) % count as u64) as usize]);
            picked.sum::<f64>() / count as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |quantile: f64| means[(quantile * (RESAMPLES - 1) as f64).round() as usize];
    Interval {
        mean,
        low: at(tail),
        high: at(1.0 - tail),
    }
}

/// SplitMix64 (Steele et al. 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_hold_the_mean_as_often_as_they_say() {
        let mut random = ondine_fixtures::Random::new(3);
        let mut held = 0;
        for seed in 0..400 {
            let values: Vec<f64> = (0..60).map(|_| f64::from(random.normal())).collect();
            let found = interval(&values, 0.05, seed);
            held += usize::from(found.low <= 0.0 && 0.0 <= found.high);
        }
        // 360 of 400 are expected, with a deviation of 6.
        assert!((335..=380).contains(&held), "{held}");
    }

    #[test]
    fn equal_values_have_no_spread() {
        let found = interval(&[0.0; 9], 0.05, 1);
        assert_eq!((found.low, found.high), (0.0, 0.0));
    }
}
