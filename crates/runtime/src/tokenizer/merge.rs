//! Merging neighbours in order of preference, shared by both models.
//!
//! Short sequences are scanned for the best pair each time; long ones use a heap over a linked list, so
//! that the time is n log n whatever the text.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A pair that may merge: smaller `order` first, then further left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Merge {
    pub order: u32,
    /// Id of the merged piece.
    pub id: u32,
}

/// One piece of the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Symbol {
    pub id: u32,
    /// Byte range of the piece in the text that is encoded.
    pub start: u32,
    pub end: u32,
}

/// Buffers that are kept between words.
#[derive(Default)]
pub(super) struct Merger {
    /// The sequence: filled by the caller, merged in place.
    pub symbols: Vec<Symbol>,
    pairs: Vec<Option<Merge>>,
    links: Vec<Link>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    order: u32,
    left: u32,
    left_end: u32,
    right_end: u32,
    id: u32,
}

const NONE: u32 = u32::MAX;
/// Above this many pieces the heap is faster than scanning.
const SCAN_LIMIT: usize = 48;

impl Merger {
    /// Merges until `find` knows no more pair. `find` answers for two neighbours.
    pub(super) fn run(&mut self, find: impl FnMut(Symbol, Symbol) -> Option<Merge>) {
        if self.symbols.len() <= SCAN_LIMIT {
            self.scan(find);
        } else {
            self.heap(find);
        }
    }

    fn scan(&mut self, mut find: impl FnMut(Symbol, Symbol) -> Option<Merge>) {
        let symbols = &mut self.symbols;
        let pairs = &mut self.pairs;
        pairs.clear();
        pairs.extend(symbols.windows(2).map(|pair| find(pair[0], pair[1])));
        loop {
            let mut best: Option<(usize, Merge)> = None;
            for (index, pair) in pairs.iter().enumerate() {
                if let Some(merge) = *pair
                    && best.is_none_or(|(_, least)| merge.order < least.order)
                {
                    best = Some((index, merge));
                }
            }
            let Some((left, merge)) = best else { return };
            symbols[left] = joined(symbols[left], symbols[left + 1], merge.id);
            symbols.remove(left + 1);
            pairs.remove(left);
            if left > 0 {
                pairs[left - 1] = find(symbols[left - 1], symbols[left]);
            }
            if left < pairs.len() {
                pairs[left] = find(symbols[left], symbols[left + 1]);
            }
        }
    }

    fn heap(&mut self, mut find: impl FnMut(Symbol, Symbol) -> Option<Merge>) {
        let symbols = &mut self.symbols;
        let links = &mut self.links;
        let heap = &mut self.heap;
        let count = symbols.len() as u32;
        links.clear();
        links.extend((0..count).map(|index| Link {
            previous: index.wrapping_sub(1),
            next: if index + 1 < count { index + 1 } else { NONE },
        }));
        heap.clear();
        let mut offer = |heap: &mut BinaryHeap<_>, symbols: &[Symbol], left: u32, right: u32| {
            let (first, second) = (symbols[left as usize], symbols[right as usize]);
            if let Some(merge) = find(first, second) {
                heap.push(Reverse(Candidate {
                    order: merge.order,
                    left,
                    left_end: first.end,
                    right_end: second.end,
                    id: merge.id,
                }));
            }
        };
        for left in 0..count - 1 {
            offer(heap, symbols, left, left + 1);
        }
        while let Some(Reverse(candidate)) = heap.pop() {
            let left = candidate.left;
            let Link {
                previous,
                next: right,
            } = links[left as usize];
            // A symbol that was merged away has an empty range.
            let current = symbols[left as usize];
            if right == NONE
                || current.start == current.end
                || current.end != candidate.left_end
                || symbols[right as usize].end != candidate.right_end
            {
                continue;
            }
            let gone = symbols[right as usize];
            symbols[left as usize] = joined(current, gone, candidate.id);
            symbols[right as usize].start = gone.end;
            let next = links[right as usize].next;
            links[left as usize].next = next;
            if next != NONE {
                links[next as usize].previous = left;
                offer(heap, symbols, left, next);
            }
            if previous != NONE {
                offer(heap, symbols, previous, left);
            }
        }
        symbols.retain(|symbol| symbol.start < symbol.end);
    }
}

fn joined(left: Symbol, right: Symbol, id: u32) -> Symbol {
    Symbol {
        id,
        start: left.start,
        end: right.end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both algorithms give the same pieces on sequences of every length around the limit.
    #[test]
    fn scan_and_heap_agree() {
        let find = |left: Symbol, right: Symbol| {
            let id = left.id.wrapping_mul(31).wrapping_add(right.id) % 97;
            (!id.is_multiple_of(3)).then_some(Merge { order: id % 11, id })
        };
        let mut state = 1u32;
        for length in 0..300u32 {
            let symbols: Vec<Symbol> = (0..length)
                .map(|start| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    Symbol {
                        id: state >> 26,
                        start,
                        end: start + 1,
                    }
                })
                .collect();
            let mut scanned = Merger {
                symbols: symbols.clone(),
                ..Merger::default()
            };
            scanned.scan(find);
            let mut heaped = Merger {
                symbols,
                ..Merger::default()
            };
            if length > 0 {
                heaped.heap(find);
            }
            assert_eq!(scanned.symbols, heaped.symbols, "length {length}");
        }
    }
}
