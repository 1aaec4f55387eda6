//! The cheapest way to a file: whole, by one delta, or by a chain of them.

use super::index::DeltaEntry;
use crate::digest::Digest;
use std::collections::BTreeMap;

/// Longest chain of deltas: each step reads the old file and writes the new one.
const LONGEST_CHAIN: usize = 8;

/// The deltas to apply in turn to a file that `is_here`, when they are fewer bytes than the `whole` file.
pub(super) fn cheapest<'a>(
    wanted: Digest,
    whole: u64,
    deltas: &'a [DeltaEntry],
    is_here: &dyn Fn(Digest) -> bool,
) -> Option<Vec<&'a DeltaEntry>> {
    // Bellman and Ford from the wanted file backwards, a chain's length at most: bytes from a file to the wanted one, and the
    // first delta on the way.
    let mut cost: BTreeMap<Digest, (u64, &DeltaEntry)> = BTreeMap::new();
    for _ in 0..LONGEST_CHAIN {
        let mut better = false;
        for delta in deltas.iter().filter(|delta| delta.from != wanted) {
            let rest = match delta.to == wanted {
                true => Some(0),
                false => cost.get(&delta.to).map(|(rest, _)| *rest),
            };
            let Some(total) = rest.and_then(|rest| rest.checked_add(delta.delta.size)) else {
                continue;
            };
            if total < whole
                && cost
                    .get(&delta.from)
                    .is_none_or(|(known, _)| total < *known)
            {
                cost.insert(delta.from, (total, delta));
                better = true;
            }
        }
        if !better {
            break;
        }
    }
    let (start, _) = cost
        .iter()
        .filter(|(from, _)| is_here(**from))
        .min_by_key(|(_, (total, _))| *total)?;
    let mut chain = Vec::new();
    let mut at = *start;
    while at != wanted && chain.len() < LONGEST_CHAIN {
        let (_, delta) = cost.get(&at)?;
        chain.push(*delta);
        at = delta.to;
    }
    (at == wanted).then_some(chain)
}

#[cfg(test)]
mod tests {
    use super::super::index::Blob;
    use super::*;

    fn file(number: u8) -> Digest {
        Digest([number; 32])
    }

    fn delta(from: u8, to: u8, size: u64) -> DeltaEntry {
        let sha256 = Digest([from ^ to << 4; 32]);
        DeltaEntry {
            from: file(from),
            to: file(to),
            to_size: 100,
            delta: Blob { sha256, size },
        }
    }

    fn sizes(deltas: &[DeltaEntry], here: u8, whole: u64) -> Option<Vec<u64>> {
        let chain = cheapest(file(3), whole, deltas, &|digest| digest == file(here));
        chain.map(|chain| chain.iter().map(|delta| delta.delta.size).collect())
    }

    #[test]
    fn size_decides() {
        let deltas = [delta(1, 2, 10), delta(2, 3, 10), delta(1, 3, 25)];
        assert_eq!(sizes(&deltas, 1, 100), Some(vec![10, 10]));
        assert_eq!(sizes(&deltas, 2, 100), Some(vec![10]));
        assert_eq!(sizes(&deltas, 1, 20), None, "the whole file is no larger");
        assert_eq!(sizes(&deltas, 9, 100), None);
        let deltas = [delta(1, 2, 10), delta(2, 3, 10), delta(1, 3, 15)];
        assert_eq!(sizes(&deltas, 1, 100), Some(vec![15]));
    }

    #[test]
    fn circles_end() {
        let deltas = [
            delta(1, 2, 1),
            delta(2, 1, 1),
            delta(3, 1, 1),
            delta(2, 3, 1),
            delta(3, 3, 0),
        ];
        assert_eq!(sizes(&deltas, 1, 100), Some(vec![1, 1]));
        let overflow = [delta(1, 2, u64::MAX), delta(2, 3, u64::MAX)];
        assert_eq!(sizes(&overflow, 1, u64::MAX), None);
    }
}
