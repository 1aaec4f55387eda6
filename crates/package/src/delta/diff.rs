//! Two files → a delta.

use super::block::Layout;
use super::coder::{Coder, Encoder, Numbers};
use super::layout::{FileLayout, Tensor};
use super::plain::is_short;
use super::plan::{Change, Head, Origin, Plan, StreamModels, into_streams};
use super::quantised::Quantised;
use super::{DeltaError, file_error, general};
use crate::Limits;
use crate::digest::{Algorithms, Digest, hash_file};
use crate::source::{ByteSource, FileSource};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// What [`diff`] made.
#[derive(Clone, Debug)]
pub struct Made {
    /// Bytes of the delta.
    pub size: u64,
    /// Bytes of the new file.
    pub result_size: u64,
    /// BLAKE3 of the new file.
    pub result: Digest,
    /// Tensors of the new file that are in the old one, byte for byte.
    pub same_tensors: usize,
    /// Tensors that changed or are new.
    pub changed_tensors: usize,
}

/// Writes to `out` what turns `old` into `new`.
///
/// # Errors
/// [`DeltaError::File`] when a file cannot be read or written.
pub fn diff(old: &Path, new: &Path, out: &Path, limits: &Limits) -> Result<Made, DeltaError> {
    let digest = |path: &Path| {
        hash_file(path, Algorithms::Blake3).map_err(|error| DeltaError::File {
            path: error.path,
            source: error.source,
        })
    };
    let (old_digest, new_digest) = (digest(old)?, digest(new)?);
    let old_source = FileSource::open(old).map_err(file_error(old))?;
    let new_source = FileSource::open(new).map_err(file_error(new))?;
    let old_layout = FileLayout::read(&old_source, limits).map_err(file_error(old))?;
    let new_layout = FileLayout::read(&new_source, limits).map_err(file_error(new))?;
    let mut made = Made {
        size: 0,
        result_size: new_digest.size,
        result: new_digest.blake3,
        same_tensors: 0,
        changed_tensors: 0,
    };
    let (tensors, streams) = match (old_layout, new_layout) {
        (Some(old_layout), Some(new_layout)) => {
            let pair = Pair {
                old: &old_source,
                new: &new_source,
                old_layout: &old_layout,
                new_layout: &new_layout,
            };
            (true, pair.encode(&mut made).map_err(file_error(new))?)
        }
        _ => {
            let (old, new) = (
                whole(&old_source).map_err(file_error(old))?,
                whole(&new_source).map_err(file_error(new))?,
            );
            let mut coder = Encoder::new();
            general::encode(&mut coder, &old, &new, true);
            (false, vec![coder.finish()])
        }
    };
    let head = Head {
        result: new_digest.blake3,
        base: Head::base_of(old_digest.blake3),
        base_length: old_digest.size,
        result_length: new_digest.size,
        tensors,
        streams: streams.iter().map(|stream| stream.len() as u64).collect(),
    };
    let mut bytes = head.write();
    streams
        .iter()
        .for_each(|stream| bytes.extend_from_slice(stream));
    made.size = bytes.len() as u64;
    fs::write(out, bytes).map_err(file_error(out))?;
    Ok(made)
}

fn whole(source: &dyn ByteSource) -> io::Result<Vec<u8>> {
    let mut out = vec![0; usize::try_from(source.len()).map_err(|_| io::ErrorKind::OutOfMemory)?];
    source.read_at(0, &mut out)?;
    Ok(out)
}

type Parsed = (FileLayout, Vec<u8>);

struct Pair<'a> {
    old: &'a dyn ByteSource,
    new: &'a dyn ByteSource,
    old_layout: &'a Parsed,
    new_layout: &'a Parsed,
}

impl Pair<'_> {
    fn encode(&self, made: &mut Made) -> io::Result<Vec<Vec<u8>>> {
        let ((old_layout, old_header), (new_layout, new_header)) =
            (self.old_layout, self.new_layout);
        let mut coder = Encoder::new();
        code_length(&mut coder, new_header.len() as u64);
        general::encode(&mut coder, old_header, new_header, false);
        let mut plan = Plan::new(old_layout);
        let mut finder = Finder {
            pair: self,
            digests: HashMap::new(),
        };
        let mut changes = Vec::new();
        let mut end = new_layout.header;
        for tensor in &new_layout.tensors {
            self.gap(&mut coder, &mut plan, end, tensor.offset)?;
            end = tensor.offset + tensor.size;
            let origin = finder.origin(&plan, tensor)?;
            plan.origin(&mut coder, tensor, origin);
            if origin.same {
                made.same_tensors += 1;
            } else {
                made.changed_tensors += 1;
                changes.push(Change::new(tensor, old_layout, origin));
            }
        }
        self.gap(&mut coder, &mut plan, end, self.new.len())?;
        let mut streams = vec![coder.finish()];
        streams.extend(self.encode_streams(&into_streams(changes))?);
        Ok(streams)
    }

    fn gap(&self, coder: &mut Encoder, plan: &mut Plan<'_>, from: u64, to: u64) -> io::Result<()> {
        let mut bytes = vec![0; (to - from) as usize];
        self.new.read_at(from, &mut bytes)?;
        bytes
            .chunks_mut(GAP_BYTES)
            .for_each(|bytes| plan.gap(coder, bytes));
        Ok(())
    }

    fn encode_streams(&self, streams: &[Vec<Change>]) -> io::Result<Vec<Vec<u8>>> {
        let next = AtomicUsize::new(0);
        let threads = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(streams.len());
        let mut done: Vec<(usize, io::Result<Vec<u8>>)> = thread::scope(|scope| {
            let worker = || {
                let mut mine = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(stream) = streams.get(index) else {
                        return mine;
                    };
                    mine.push((index, self.encode_stream(stream)));
                }
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap_or_default())
                .collect()
        });
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, stream)| stream).collect()
    }

    fn encode_stream(&self, changes: &[Change]) -> io::Result<Vec<u8>> {
        let mut coder = Encoder::new();
        let mut models = StreamModels::default();
        for change in changes {
            models.code(
                &mut coder,
                change,
                &mut |offset, window| self.old.read_at(offset, window),
                &mut |offset, window, coded| {
                    if coded {
                        Ok(())
                    } else {
                        self.new.read_at(offset, window)
                    }
                },
            )?;
        }
        Ok(coder.finish())
    }
}

/// Codes the length of the header.
pub(super) fn code_length<C: Coder>(coder: &mut C, length: u64) -> u64 {
    Numbers::new(1, 1).unsigned(coder, 0, length)
}

/// Bytes between tensors are coded in pieces of this size.
pub(super) const GAP_BYTES: usize = 64 << 10;
/// A tensor without a namesake is taken for a changed version of one that shares this many of its sampled bytes.
const SIMILAR: f32 = 0.35;

struct Finder<'a> {
    pair: &'a Pair<'a>,
    digests: HashMap<usize, Digest>,
}

impl Finder<'_> {
    fn origin(&mut self, plan: &Plan<'_>, tensor: &Tensor) -> io::Result<Origin> {
        let new = self.read(self.pair.new, tensor)?;
        let namesake = plan.namesake(tensor);
        if let Some(index) = namesake
            && self.read_old(index)? == new
        {
            return Ok(Origin {
                old: Some(index),
                same: true,
                hint: false,
            });
        }
        let digest = Digest::blake3(&new);
        let mut similar = namesake;
        let mut best = SIMILAR;
        for index in
            (0..self.pair.old_layout.0.tensors.len()).filter(|index| plan.fits(tensor, *index))
        {
            if self.old_digest(index)? == digest {
                return Ok(Origin {
                    old: Some(index),
                    same: true,
                    hint: false,
                });
            }
            if namesake.is_none() {
                let old = self.read_old(index)?;
                let share = shared(&old, &new);
                if share > best {
                    (best, similar) = (share, Some(index));
                }
            }
        }
        let hint = match (similar, Layout::of_type(tensor.kind)) {
            (Some(old), Some(layout)) => Quantised::marks_pay(layout, &self.read_old(old)?, &new),
            (Some(old), None) if tensor.kind == 0 => {
                is_short(&self.read_old(old)?) && is_short(&new)
            }
            _ => false,
        };
        Ok(Origin {
            old: similar,
            same: false,
            hint,
        })
    }

    fn old_digest(&mut self, index: usize) -> io::Result<Digest> {
        if let Some(found) = self.digests.get(&index) {
            return Ok(*found);
        }
        let digest = Digest::blake3(&self.read_old(index)?);
        self.digests.insert(index, digest);
        Ok(digest)
    }

    fn read_old(&self, index: usize) -> io::Result<Vec<u8>> {
        self.read(self.pair.old, &self.pair.old_layout.0.tensors[index])
    }

    fn read(&self, source: &dyn ByteSource, tensor: &Tensor) -> io::Result<Vec<u8>> {
        let mut out = vec![0; tensor.size as usize];
        source.read_at(tensor.offset, &mut out)?;
        Ok(out)
    }
}

fn shared(old: &[u8], new: &[u8]) -> f32 {
    let stride = (old.len() / 4096).max(1) | 1;
    let (mut same, mut all) = (0, 1);
    for (a, b) in old.iter().zip(new).step_by(stride) {
        same += i32::from(a == b);
        all += 1;
    }
    same as f32 / all as f32
}
