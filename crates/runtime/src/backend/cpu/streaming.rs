//! Weights larger than the memory they may take: what pays most stays in memory, the rest is read from the packed file
//! for every pass, the next layer while the current one computes.
//!
//! All that a pass reads pays the same per byte, so that the output head and whole layers stay as far as they fit;
//! embeddings are read row by row, and of experts only those that are used, with the often used ones kept.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ondine_kernels::{PackedMatrix, SharedBytes};

use super::experts::ExpertCache;
use super::weights::{GatedWeights, LayerWeights, Matrix, Weights};
use crate::backend::StreamingReport;
use crate::packed_cache::disk::{Buffer, Disk, whole_blocks};

/// Layers that are in memory at once: one computes, one is read.
const BUFFERS: usize = 2;
/// Experts that may be in memory beside the kept ones: one computes, one waits, one is read.
const EXPERTS_UNDER_WAY: u64 = 3;
/// Rows that lie together in a packed matrix.
const GROUP: usize = 16;
/// How long the disk is measured for a report.
const MEASURED: Duration = Duration::from_millis(400);

/// The part of a model's weights that is not in memory.
pub(super) struct Streaming {
    disk: Arc<Disk>,
    /// Parts of the file that a pass reads in turn: layers, then slabs of the head. In bytes.
    units: Vec<Range<usize>>,
    /// Which unit holds a layer's streamed matrices. [layers]
    unit_of_layer: Vec<Option<usize>>,
    /// The head's parts (first row, matrix, unit) where it is streamed.
    head: Vec<(usize, PackedMatrix, usize)>,
    ring: Option<Mutex<Ring>>,
    experts: Option<ExpertCache>,
    failure: Mutex<Option<io::Error>>,
    /// Bytes of matrices in memory all the time.
    resident: u64,
    /// Bytes of the layers' and experts' buffers.
    buffers: u64,
    file_bytes: u64,
    taken: AtomicU64,
    passes: AtomicU64,
    nanoseconds: AtomicU64,
}

/// Why a model cannot be streamed.
pub(super) enum StreamingError {
    Io(io::Error),
    /// Bytes of weights that must be in memory at once.
    TooSmall(u64),
}

impl From<io::Error> for StreamingError {
    fn from(error: io::Error) -> Self {
        StreamingError::Io(error)
    }
}

impl Streaming {
    /// Chooses what of `weights`, which lie in the mapped file `map`, stays in memory within `budget` bytes, reads that,
    /// and begins to read the first layer.
    pub(super) fn begin(
        weights: &mut Weights,
        map: &SharedBytes,
        disk: Disk,
        budget: u64,
    ) -> Result<(), StreamingError> {
        let disk = Arc::new(disk);
        let mut plan = Plan::new(weights, budget)?;
        let reader = Resident { disk: &disk };
        let tied = Arc::ptr_eq(&weights.token_embedding, &weights.output.packed);
        let mut units = Vec::new();
        let mut unit_of_layer = Vec::new();
        for layer in &mut weights.layers {
            let mut streamed: Option<Range<usize>> = None;
            *layer = layer.exchanged(&mut |matrix| {
                if plan.keep(matrix) {
                    return reader.read(matrix);
                }
                let range = matrix.storage_range();
                streamed = Some(match streamed.take() {
                    Some(all) => all.start.min(range.start)..all.end.max(range.end),
                    None => range,
                });
                Ok(matrix.clone())
            })?;
            unit_of_layer.push(streamed.map(|range| {
                units.push(whole_blocks(range));
                units.len() - 1
            }));
        }
        let mut head = Vec::new();
        if plan.keeps_head {
            weights.output = weights
                .output
                .exchanged(&mut |matrix| reader.read(matrix))?;
            if tied {
                weights.token_embedding = weights.output.packed.clone();
            }
        } else {
            head = slabs(&weights.output, map, plan.slab_bytes, &mut units)?;
        }
        let capacity = plan.left;
        let mut experts = None;
        if plan.keeps_experts {
            for layer in &mut weights.layers {
                layer.keep_experts(&reader)?;
            }
        } else if plan.expert_bytes > 0 {
            experts = Some(ExpertCache::new(disk.clone(), capacity));
        }
        let largest = units.iter().map(|unit| unit.len()).max().unwrap_or(0);
        let ring = match units.is_empty() {
            true => None,
            false => Some(Mutex::new(Ring::new(&disk, &units, largest)?)),
        };
        let under_way = match experts {
            Some(_) => EXPERTS_UNDER_WAY * plan.expert_bytes,
            None => 0,
        };
        weights.streaming = Some(Streaming {
            file_bytes: (**map).as_ref().len() as u64,
            disk,
            buffers: (BUFFERS * largest) as u64 + under_way,
            units,
            unit_of_layer,
            head,
            ring,
            experts,
            failure: Mutex::new(None),
            resident: plan.resident,
            taken: AtomicU64::new(0),
            passes: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
        });
        Ok(())
    }

    pub(super) fn streams_layer(&self, index: usize) -> bool {
        self.unit_of_layer[index].is_some()
    }

    /// Layer `index` with its streamed matrices in memory.
    pub(super) fn layer(&self, index: usize, layer: &LayerWeights) -> io::Result<StreamedLayer> {
        let Some(unit) = self.unit_of_layer[index] else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let lease = self.take(unit)?;
        let storage = lease.storage();
        let start = self.units[unit].start;
        let within = self.units[unit].clone();
        let weights = layer.exchanged(&mut |matrix| {
            let range = matrix.storage_range();
            // A matrix that stays has storage of its own, where it begins in the first block; the file's is its header.
            if !within.contains(&range.start) {
                return Ok(matrix.clone());
            }
            let range = range.start - start..range.end - start;
            moved(matrix, storage.clone(), range)
        })?;
        Ok(StreamedLayer {
            weights: Some(weights),
            _lease: lease,
        })
    }

    /// The head's parts, read in turn; `None` where the head is in memory.
    pub(super) fn head_slabs(&self) -> Option<impl Iterator<Item = io::Result<HeadSlab>>> {
        (!self.head.is_empty()).then(|| {
            self.head.iter().map(|(first_row, matrix, unit)| {
                let lease = self.take(*unit)?;
                let range = matrix.storage_range();
                let start = self.units[*unit].start;
                let range = range.start - start..range.end - start;
                let matrix = moved(matrix, lease.storage(), range)?;
                Ok(HeadSlab {
                    first_row: *first_row,
                    matrix: Some(matrix),
                    _lease: lease,
                })
            })
        })
    }

    pub(super) fn experts(&self) -> Option<&ExpertCache> {
        self.experts.as_ref()
    }

    /// Remembers why something that had no way to say so failed.
    pub(super) fn fail(&self, error: io::Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    }

    pub(super) fn take_failure(&self) -> Option<io::Error> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let experts = self.experts.as_ref().and_then(ExpertCache::take_failure);
        failure.take().or(experts)
    }

    /// Counts a pass that took `elapsed`.
    pub(super) fn count_pass(&self, elapsed: Duration) {
        self.passes.fetch_add(1, Relaxed);
        self.nanoseconds
            .fetch_add(elapsed.as_nanos() as u64, Relaxed);
    }

    /// What was streamed so far.
    pub(super) fn report(&self) -> StreamingReport {
        let experts = self.experts.as_ref().map(ExpertCache::counts);
        let experts = experts.unwrap_or_default();
        StreamingReport {
            resident_bytes: self.resident + experts.held,
            buffer_bytes: self.buffers,
            bytes: self.taken.load(Relaxed) + experts.read,
            passes: self.passes.load(Relaxed),
            seconds: self.nanoseconds.load(Relaxed) as f64 / 1e9,
            experts_used: experts.used,
            experts_kept: experts.found,
        }
    }

    /// Bytes per second of reading the file from its beginning, with the best of several numbers of requests at once.
    pub(super) fn measure_disk(&self) -> io::Result<f64> {
        const WAYS: [usize; 3] = [2, 4, 8];
        const PIECE: usize = 16 << 20;
        let piece = PIECE.min(self.file_bytes as usize);
        let mut buffer = Buffer::new(piece)?;
        let mut best = 0.0f64;
        let mut offset = 0;
        for requests in WAYS {
            let started = Instant::now();
            let mut read = 0;
            while read == 0 || started.elapsed() < MEASURED / WAYS.len() as u32 {
                if offset + piece as u64 > self.file_bytes {
                    offset = 0;
                }
                self.disk.read_with(offset, &mut buffer, requests)?;
                offset += piece as u64;
                read += piece;
            }
            best = best.max(read as f64 / started.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    fn take(&self, unit: usize) -> io::Result<Lease> {
        let Some(ring) = &self.ring else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = ring.take(unit)?;
        self.taken.fetch_add(self.units[unit].len() as u64, Relaxed);
        Ok(lease)
    }
}

/// A layer whose streamed matrices are in memory until it is dropped.
pub(super) struct StreamedLayer {
    /// Dropped before the lease, whose buffer it refers to.
    weights: Option<LayerWeights>,
    _lease: Lease,
}

impl StreamedLayer {
    pub(super) fn weights(&self) -> &LayerWeights {
        self.weights.as_ref().expect("held until the drop")
    }
}

impl Drop for StreamedLayer {
    fn drop(&mut self) {
        self.weights = None;
    }
}

/// Consecutive rows of the output head, in memory until it is dropped.
pub(super) struct HeadSlab {
    pub(super) first_row: usize,
    matrix: Option<Arc<PackedMatrix>>,
    _lease: Lease,
}

impl HeadSlab {
    pub(super) fn matrix(&self) -> &PackedMatrix {
        self.matrix.as_ref().expect("held until the drop")
    }
}

impl Drop for HeadSlab {
    fn drop(&mut self) {
        self.matrix = None;
    }
}

/// Which matrices stay in memory.
struct Plan {
    keeps_all: bool,
    keeps_dense: bool,
    keeps_head: bool,
    keeps_experts: bool,
    /// Bytes of the largest expert, with the blocks that it shares; 0 without experts.
    expert_bytes: u64,
    /// Bytes of a part of the head.
    slab_bytes: usize,
    /// Bytes that may still be kept.
    left: u64,
    /// Whether something did not fit.
    full: bool,
    /// Bytes that are kept.
    resident: u64,
}

impl Plan {
    fn new(weights: &Weights, budget: u64) -> Result<Self, StreamingError> {
        let dense: Vec<u64> = weights
            .layers
            .iter()
            .map(|layer| layer.dense_matrices().iter().map(held_bytes).sum())
            .collect();
        let experts = || weights.layers.iter().flat_map(LayerWeights::experts);
        let all_experts: u64 = experts().map(expert_bytes).sum();
        let largest_expert = experts().map(expert_bytes).max().unwrap_or(0);
        let head = held_bytes(&weights.output.packed);
        let all_dense = dense.iter().sum::<u64>() + head;
        let largest = dense.iter().copied().max().unwrap_or(0);
        let mut plan = Plan {
            keeps_all: false,
            keeps_dense: false,
            keeps_head: true,
            keeps_experts: false,
            expert_bytes: largest_expert,
            slab_bytes: largest as usize,
            left: budget,
            full: false,
            resident: 0,
        };
        if all_dense + all_experts <= budget {
            plan.keeps_all = true;
            plan.keeps_experts = all_experts > 0;
            plan.spend(head);
            plan.spend(all_experts);
            return Ok(plan);
        }
        let under_way = EXPERTS_UNDER_WAY * largest_expert;
        if all_dense + under_way <= budget {
            plan.keeps_dense = true;
            plan.left -= under_way;
            plan.spend(head);
            return Ok(plan);
        }
        let least = under_way + BUFFERS as u64 * largest;
        plan.left = budget
            .checked_sub(least)
            .ok_or(StreamingError::TooSmall(least))?;
        plan.keeps_head = head <= plan.left;
        if plan.keeps_head {
            plan.spend(head);
        }
        Ok(plan)
    }

    /// Whether a layer's matrix is kept, which then is counted. Matrices are asked for in order, and none is kept after
    /// the first that does not fit, so that what is read of a layer lies together.
    fn keep(&mut self, matrix: &Arc<PackedMatrix>) -> bool {
        let bytes = held_bytes(matrix);
        self.full |= !(self.keeps_all || self.keeps_dense) && bytes > self.left;
        if self.full {
            return false;
        }
        self.spend(bytes);
        true
    }

    fn spend(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        self.resident += bytes;
    }
}

/// Bytes that a matrix takes in a buffer.
fn held_bytes(matrix: &Arc<PackedMatrix>) -> u64 {
    whole_blocks(matrix.storage_range()).len() as u64
}

fn expert_bytes(expert: &GatedWeights) -> u64 {
    let matrices = [&expert.gate, &expert.up, &expert.down];
    matrices.iter().map(|m| held_bytes(&m.packed)).sum()
}

/// Reads matrices that stay.
pub(super) struct Resident<'a> {
    disk: &'a Disk,
}

impl Resident<'_> {
    pub(super) fn read(&self, matrix: &Arc<PackedMatrix>) -> io::Result<Arc<PackedMatrix>> {
        let range = matrix.storage_range();
        let blocks = whole_blocks(range.clone());
        let mut buffer = Buffer::new(blocks.len())?;
        self.disk.read(blocks.start as u64, &mut buffer)?;
        let start = range.start - blocks.start;
        moved(matrix, Arc::new(buffer), start..start + range.len())
    }
}

/// `matrix` at another place.
pub(super) fn moved(
    matrix: &PackedMatrix,
    storage: SharedBytes,
    range: Range<usize>,
) -> io::Result<Arc<PackedMatrix>> {
    let matrix = matrix.with_storage(storage, range);
    matrix.map(Arc::new).map_err(io::Error::other)
}

/// Cuts the head into parts of at most `bytes` bytes (but whole groups of rows), each a unit of its own.
fn slabs(
    head: &Matrix,
    map: &SharedBytes,
    bytes: usize,
    units: &mut Vec<Range<usize>>,
) -> io::Result<Vec<(usize, PackedMatrix, usize)>> {
    let (rows, columns) = (head.packed.rows(), head.packed.cols());
    let all = head.packed.storage_range();
    let group_bytes = all.len() / rows.div_ceil(GROUP).max(1);
    // A part that begins within a block shares it, and one at its end.
    let usable = bytes.saturating_sub(2 * crate::packed_cache::disk::DISK_BLOCK);
    let groups = (usable / group_bytes.max(1)).max(1);
    let mut slabs = Vec::new();
    for first_row in (0..rows).step_by(groups * GROUP) {
        let rows = (groups * GROUP).min(rows - first_row);
        let start = all.start + first_row / GROUP * group_bytes;
        let range = start..start + rows.div_ceil(GROUP) * group_bytes;
        let ty = head.packed.tensor_type();
        let matrix = PackedMatrix::from_bytes(ty, rows, columns, map.clone(), range.clone());
        slabs.push((first_row, matrix.map_err(io::Error::other)?, units.len()));
        units.push(whole_blocks(range));
    }
    Ok(slabs)
}

/// Two buffers: one computes while the other is filled by a thread that reads all units in turn, again and again.
struct Ring {
    free: Sender<Buffer>,
    ready: Receiver<Filled>,
    reader: Option<JoinHandle<()>>,
}

struct Filled {
    unit: usize,
    buffer: Buffer,
    result: io::Result<()>,
}

impl Ring {
    fn new(disk: &Arc<Disk>, units: &[Range<usize>], largest: usize) -> io::Result<Self> {
        let (free, empty) = channel::<Buffer>();
        let (full, ready) = channel();
        for _ in 0..BUFFERS {
            // Cannot fail: this function holds the other end.
            let _ = free.send(Buffer::new(largest)?);
        }
        let (disk, units) = (disk.clone(), units.to_vec());
        let read_all = move || {
            for (unit, range) in units.iter().enumerate().cycle() {
                let Ok(mut buffer) = empty.recv() else {
                    return;
                };
                buffer.resize(range.len());
                let result = disk.read(range.start as u64, &mut buffer);
                let filled = Filled {
                    unit,
                    buffer,
                    result,
                };
                if full.send(filled).is_err() {
                    return;
                }
            }
        };
        let reader = std::thread::Builder::new()
            .name("ondine-read".into())
            .spawn(read_all)?;
        Ok(Ring {
            free,
            ready,
            reader: Some(reader),
        })
    }

    /// The content of `unit`. Units that were read in vain (a head whose scores nobody wants) are passed over.
    fn take(&self, unit: usize) -> io::Result<Lease> {
        loop {
            let gone = || io::Error::other("the reading thread ended");
            let filled = self.ready.recv().map_err(|_| gone())?;
            if filled.unit == unit && filled.result.is_ok() {
                return Ok(Lease {
                    buffer: Some(Arc::new(filled.buffer)),
                    free: self.free.clone(),
                });
            }
            self.free.send(filled.buffer).map_err(|_| gone())?;
            filled.result?;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The reader ends when nobody gives it buffers: this is the last sender.
        self.free = channel().0;
        while self.ready.recv().is_ok() {}
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A filled buffer, which goes back to the reader when it is dropped.
struct Lease {
    buffer: Option<Arc<Buffer>>,
    free: Sender<Buffer>,
}

impl Lease {
    fn storage(&self) -> SharedBytes {
        self.buffer.clone().expect("held until the drop")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take().and_then(Arc::into_inner) {
            // The reader is gone only when everything is.
            let _ = self.free.send(buffer);
        }
    }
}
