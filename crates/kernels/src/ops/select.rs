//! The largest elements of a row.

/// The index of the largest element, the first of equals; NaN is smaller than anything. `None` for an empty row.
///
/// Blocks of 64 are searched for a new largest value first, so that the search for its index is rare.
pub fn argmax(x: &[f32]) -> Option<usize> {
    let mut best = (f32::NEG_INFINITY, 0);
    for (block_index, block) in x.chunks(64).enumerate() {
        let largest = block.iter().fold(
            f32::NEG_INFINITY,
            |largest, &x| if x > largest { x } else { largest },
        );
        if largest > best.0 {
            let inside = block.iter().position(|&x| x == largest).unwrap_or(0);
            best = (largest, block_index * 64 + inside);
        }
    }
    (!x.is_empty()).then_some(best.1)
}

/// Writes the indices of the `out.len()` largest elements of `scores`, largest first, of equals the first one first;
/// NaN is smaller than anything. For the few experts that a router chooses: costs `scores.len() * out.len()`.
///
/// # Panics
/// If `out` is longer than `scores`.
pub fn top_k(scores: &[f32], out: &mut [usize]) {
    assert!(
        out.len() <= scores.len(),
        "{} of {} elements",
        out.len(),
        scores.len()
    );
    let rank = |index: usize| {
        if scores[index].is_nan() {
            f32::NEG_INFINITY
        } else {
            scores[index]
        }
    };
    let mut filled = 0;
    for index in 0..scores.len() {
        let place = out[..filled]
            .iter()
            .position(|&other| rank(other) < rank(index))
            .unwrap_or(filled);
        if place == out.len() {
            continue;
        }
        filled = (filled + 1).min(out.len());
        out[place..filled].rotate_right(1);
        out[place] = index;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::{lengths, numbers};

    #[test]
    fn argmax_matches_a_plain_search() {
        for length in lengths() {
            let mut x = numbers(length, 11, 2.0);
            for _ in 0..2 {
                let expected = (0..length).reduce(|best, i| if x[i] > x[best] { i } else { best });
                assert_eq!(argmax(&x), expected);
                // Equal elements: the first one counts.
                x.iter_mut().for_each(|x| *x = x.round());
            }
        }
        assert_eq!(argmax(&[f32::NAN, -3.0, f32::NAN]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), Some(0));
    }

    #[test]
    fn top_k_matches_a_sort() {
        for length in lengths() {
            let scores: Vec<f32> = numbers(length, 12, 4.0).iter().map(|x| x.round()).collect();
            let mut sorted: Vec<usize> = (0..length).collect();
            sorted.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            // -0.0 and 0.0 are equal here.
            sorted.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap().then(a.cmp(&b)));
            for k in [0, 1, 2, 4, 8] {
                if k <= length {
                    let mut out = vec![0; k];
                    top_k(&scores, &mut out);
                    assert_eq!(out, sorted[..k]);
                }
            }
        }
        let mut out = [0; 2];
        top_k(&[f32::NAN, -1.0, f32::NAN, 3.0], &mut out);
        assert_eq!(out, [3, 1]);
    }
}
