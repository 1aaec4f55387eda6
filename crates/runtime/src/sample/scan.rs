//! One pass over the logits that says what is in them.

/// Logits of a block.
const BLOCK: usize = 64;

/// The largest logit of each block, and what is damaged.
#[derive(Debug, Clone, Default)]
pub(super) struct Scan {
    /// Shape [blocks]. NaN is smaller than anything.
    maxima: Vec<f32>,
    /// Copy of `maxima` to select in.
    selection: Vec<f32>,
    /// The largest logit; minus infinity if there is none.
    pub(super) largest: f32,
    /// Some logit is NaN or infinite (minus infinity, a forbidden token, is fine).
    pub(super) is_damaged: bool,
}

impl Scan {
    pub(super) fn read(&mut self, logits: &[f32]) {
        self.maxima.clear();
        let mut unordered = [0; LANES];
        let (blocks, rest) = logits.as_chunks::<BLOCK>();
        let mut last = [f32::NEG_INFINITY; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        let maxima = blocks.iter().chain([&last]);
        self.maxima
            .extend(maxima.map(|block| maximum(block, &mut unordered)));
        let maxima = self.maxima.iter().copied();
        self.largest = maxima.fold(f32::NEG_INFINITY, f32::max);
        self.is_damaged = self.largest == f32::INFINITY || unordered != [0; LANES];
    }

    /// The first of the largest logits.
    pub(super) fn argmax(&self, logits: &[f32]) -> Option<u32> {
        let block = self.maxima.iter().position(|&x| x == self.largest)?;
        let start = block * BLOCK;
        let inside = logits[start..].iter().position(|&x| x == self.largest)?;
        Some((start + inside) as u32)
    }

    /// Calls `visit` with each token that can be among the `count` of the largest logits, in the order of the ids,
    /// and with few others. Logits of minus infinity are left out.
    ///
    /// The `count`-th largest of the maxima is a bound: `count` logits at least reach it.
    pub(super) fn for_each_of_top(
        &mut self,
        logits: &[f32],
        count: usize,
        mut visit: impl FnMut(u32, f32),
    ) {
        let mut bound = f32::MIN;
        if (1..self.maxima.len()).contains(&count) {
            self.selection.clone_from(&self.maxima);
            let largest_first = |a: &f32, b: &f32| b.total_cmp(a);
            let (_, nth, _) = self
                .selection
                .select_nth_unstable_by(count - 1, largest_first);
            bound = nth.max(f32::MIN);
        }
        for (block, (logits, &largest)) in logits.chunks(BLOCK).zip(&self.maxima).enumerate() {
            if largest >= bound {
                for (inside, &logit) in logits.iter().enumerate() {
                    if logit >= bound {
                        visit((block * BLOCK + inside) as u32, logit);
                    }
                }
            }
        }
    }
}

/// Numbers that are compared at once; the compiler makes vector code of loops over this many.
const LANES: usize = 16;

fn maximum(block: &[f32; BLOCK], unordered: &mut [u32; LANES]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    for x in block.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            unordered[lane] |= u32::from(x[lane].is_nan());
            largest[lane] = if x[lane] > largest[lane] {
                x[lane]
            } else {
                largest[lane]
            };
        }
    }
    largest.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_largest_and_the_damage() {
        let mut scan = Scan::default();
        for length in [0_usize, 1, 63, 64, 65, 200] {
            let mut logits: Vec<f32> = (0..length).map(|i| ((i * 37) % 101) as f32).collect();
            scan.read(&logits);
            assert!(!scan.is_damaged);
            assert_eq!(
                scan.argmax(&logits).map(|token| token as usize),
                ondine_kernels::ops::argmax(&logits)
            );
            for place in [0, length / 2, length.saturating_sub(1)] {
                for damage in [f32::NAN, -f32::NAN, f32::INFINITY] {
                    if let Some(logit) = logits.get_mut(place) {
                        let before = std::mem::replace(logit, damage);
                        scan.read(&logits);
                        assert!(scan.is_damaged);
                        logits[place] = before;
                    }
                }
            }
        }
    }

    #[test]
    fn the_top_is_among_the_visited() {
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 4999) as f32).collect();
        let mut scan = Scan::default();
        scan.read(&logits);
        let mut sorted = logits.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for count in [1, 2, 40, 78, 79, 80, 5000] {
            let mut visited = Vec::new();
            scan.for_each_of_top(&logits, count, |token, logit| {
                assert_eq!(logits[token as usize], logit);
                visited.push(logit);
            });
            visited.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(visited[..count], sorted[..count]);
            assert!(visited.len() <= count * BLOCK);
        }
    }
}
