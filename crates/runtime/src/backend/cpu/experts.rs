//! Experts of mixture models that are read when they are routed to; the often used ones are kept.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

use super::streaming::{Resident, moved};
use super::weights::{FeedForwardWeights, GatedWeights, LayerWeights};
use crate::packed_cache::disk::{Buffer, Disk, whole_blocks};

/// Uses after which all counts are halved, so that what was hot long ago goes.
const MEMORY_OF_USES: u64 = 4096;

/// Experts read from the disk, with a bounded number of bytes kept.
pub(super) struct ExpertCache {
    disk: Arc<Disk>,
    /// Most bytes kept.
    capacity: u64,
    state: Mutex<State>,
    failure: Mutex<Option<io::Error>>,
}

/// What an [`ExpertCache`] did so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ExpertCounts {
    /// Bytes kept.
    pub(super) held: u64,
    /// Bytes read.
    pub(super) read: u64,
    /// Experts asked for.
    pub(super) used: u64,
    /// Of these, those that were in memory.
    pub(super) found: u64,
}

/// (layer, expert)
type Name = (usize, usize);

#[derive(Default)]
struct State {
    kept: HashMap<Name, Kept>,
    /// Uses of every expert ever used, halved now and then.
    uses: HashMap<Name, u32>,
    counts: ExpertCounts,
}

struct Kept {
    weights: Arc<GatedWeights>,
    bytes: u64,
}

impl ExpertCache {
    /// Keeps at most `capacity` bytes.
    pub(super) fn new(disk: Arc<Disk>, capacity: u64) -> Self {
        ExpertCache {
            disk,
            capacity,
            state: Mutex::default(),
            failure: Mutex::new(None),
        }
    }

    /// Calls `compute` with the index in `wanted` and the weights of each wanted expert; the next one is read while one
    /// computes. After a failure, which [`take_failure`](Self::take_failure) tells, the rest is left out.
    pub(super) fn with_experts(
        &self,
        layer: usize,
        wanted: &[usize],
        experts: &[GatedWeights],
        compute: &mut dyn FnMut(usize, &GatedWeights),
    ) {
        let in_memory: Vec<Option<Arc<GatedWeights>>> = wanted
            .iter()
            .map(|&expert| self.find((layer, expert)))
            .collect();
        let missing: Vec<usize> = (0..wanted.len())
            .filter(|&index| in_memory[index].is_none())
            .collect();
        let result = std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            if !missing.is_empty() {
                scope.spawn(move || {
                    for index in missing {
                        let expert = wanted[index];
                        let read = self.read((layer, expert), &experts[expert]);
                        let failed = read.is_err();
                        if sender.send(read).is_err() || failed {
                            return;
                        }
                    }
                });
            }
            for (index, found) in in_memory.iter().enumerate() {
                match found {
                    Some(weights) => compute(index, weights),
                    None => {
                        let gone = |_| io::Error::other("the reading thread ended");
                        compute(index, &*receiver.recv().map_err(gone)??);
                    }
                }
            }
            Ok(())
        });
        if let Err(error) = result {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert(error);
        }
    }

    /// Why an expert could not be read since the last call, if so.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(super) fn counts(&self) -> ExpertCounts {
        self.state().counts
    }

    /// An expert that is in memory; counts the use.
    fn find(&self, name: Name) -> Option<Arc<GatedWeights>> {
        let mut state = self.state();
        let found = state.kept.get(&name).map(|kept| kept.weights.clone());
        state.counts.used += 1;
        state.counts.found += u64::from(found.is_some());
        *state.uses.entry(name).or_default() += 1;
        if state.counts.used.is_multiple_of(MEMORY_OF_USES) {
            state.uses.values_mut().for_each(|uses| *uses /= 2);
        }
        found
    }

    /// Reads an expert, and keeps it if it is used more than those it would push out.
    fn read(&self, name: Name, expert: &GatedWeights) -> io::Result<Arc<GatedWeights>> {
        let ranges = [&expert.gate, &expert.up, &expert.down].map(|m| m.packed.storage_range());
        let start = ranges.iter().map(|range| range.start).min().unwrap_or(0);
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        let blocks = whole_blocks(start..end);
        let mut buffer = Buffer::new(blocks.len())?;
        self.disk.read(blocks.start as u64, &mut buffer)?;
        let storage = Arc::new(buffer);
        let weights = Arc::new(expert.exchanged(&mut |matrix| {
            let range = matrix.storage_range();
            let range = range.start - blocks.start..range.end - blocks.start;
            moved(matrix, storage.clone(), range)
        })?);
        let bytes = blocks.len() as u64;
        let mut state = self.state();
        state.counts.read += bytes;
        if state.make_room(name, bytes, self.capacity) {
            state.counts.held += bytes;
            let kept = Kept {
                weights: weights.clone(),
                bytes,
            };
            state.kept.insert(name, kept);
        }
        Ok(weights)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether `bytes` fit for the expert `name`, after less used ones went.
    fn make_room(&mut self, name: Name, bytes: u64, capacity: u64) -> bool {
        let uses = |state: &State, name: &Name| state.uses.get(name).copied().unwrap_or(0);
        let mine = uses(self, &name);
        while self.counts.held + bytes > capacity {
            let least = self
                .kept
                .keys()
                .copied()
                .min_by_key(|name| uses(self, name));
            match least {
                Some(least) if uses(self, &least) <= mine => {
                    if let Some(gone) = self.kept.remove(&least) {
                        self.counts.held -= gone.bytes;
                    }
                }
                _ => return false,
            }
        }
        true
    }
}

impl LayerWeights {
    /// Reads all experts of the layer, to stay.
    pub(super) fn keep_experts(&mut self, reader: &Resident<'_>) -> io::Result<()> {
        if let FeedForwardWeights::Experts { experts, .. } = &mut self.feed_forward {
            let kept: io::Result<Vec<_>> = experts
                .iter()
                .map(|expert| expert.exchanged(&mut |matrix| reader.read(matrix)))
                .collect();
            *experts = kept?.into();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_by_dropping_the_least_used() {
        let mut state = State::default();
        let weights = || {
            let packed =
                ondine_kernels::PackedMatrix::pack(ondine_kernels::TensorType::F32, 1, 1, &[0; 4]);
            let matrix = super::super::weights::Matrix {
                packed: Arc::new(packed.unwrap()),
                bias: None,
            };
            Arc::new(GatedWeights {
                gate: matrix.clone(),
                up: matrix.clone(),
                down: matrix,
            })
        };
        for (expert, uses) in [(0, 5), (1, 2), (2, 3), (3, 1)] {
            state.uses.insert((0, expert), uses);
        }
        for expert in [0, 1] {
            assert!(state.make_room((0, expert), 10, 20));
            state.counts.held += 10;
            let kept = Kept {
                weights: weights(),
                bytes: 10,
            };
            state.kept.insert((0, expert), kept);
        }
        assert!(!state.make_room((0, 3), 10, 20), "it is used less");
        assert!(state.make_room((0, 2), 10, 20));
        assert!(state.kept.contains_key(&(0, 0)) && !state.kept.contains_key(&(0, 1)));
        assert!(!state.make_room((0, 0), 30, 20), "it never fits");
    }
}
