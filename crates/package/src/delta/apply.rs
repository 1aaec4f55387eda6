//! Old file and delta → new file.

use super::coder::Decoder;
use super::diff::GAP_BYTES;
use super::general::{self, Memory, Workplace};
use super::layout::FileLayout;
use super::plan::{Change, Head, Origin, Plan, StreamModels, into_streams};
use super::{DeltaError, file_error};
use crate::Limits;
use crate::digest::{Algorithms, Digest, hash_file};
use crate::source::{ByteSource, FileSource, read_exact_at};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// What [`apply`] did.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Bytes of the result.
    pub size: u64,
    /// BLAKE3 of the result, which is what the delta promised.
    pub result: Digest,
    /// Streams that an earlier, interrupted run had finished.
    pub resumed: usize,
}

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// Bytes after which the disk is asked to begin.
const FLUSH_BYTES: u64 = 8 << 20;
/// Bytes of a delta's head that are read: enough for the lengths of all streams.
const HEAD_BYTES: u64 = 1 << 20;

/// Makes `out` from `old` and `delta`. `out` appears only when its hash is what the delta promises; until then the work is in
/// `out` with `.part` added, and a second call after an interruption takes it up again.
///
/// # Errors
/// [`DeltaError`]; nothing is left at `out`.
pub fn apply(old: &Path, delta: &Path, out: &Path, limits: &Limits) -> Result<Applied, DeltaError> {
    let delta_source = FileSource::open(delta).map_err(file_error(delta))?;
    let mut start = vec![0; delta_source.len().min(HEAD_BYTES) as usize];
    delta_source
        .read_at(0, &mut start)
        .map_err(file_error(delta))?;
    let (head, used) = Head::parse(&start, delta_source.len())
        .ok_or_else(|| DeltaError::NotADelta(delta.display().to_string()))?;
    if head.result_length > limits.file_bytes {
        return Err(DeltaError::TooLarge(head.result_length, limits.file_bytes));
    }
    let old_source = FileSource::open(old).map_err(file_error(old))?;
    let other_base = || DeltaError::OtherBase(old.display().to_string());
    if old_source.len() != head.base_length {
        return Err(other_base());
    }
    let digest = |path: &Path| {
        hash_file(path, Algorithms::Blake3).map_err(|error| DeltaError::File {
            path: error.path,
            source: error.source,
        })
    };
    if Head::base_of(digest(old)?.blake3) != head.base {
        return Err(other_base());
    }

    let part = Part::open(out, &head)?;
    let job = Job {
        head: &head,
        delta,
        first_stream: used,
        old: &old_source,
        old_path: old,
        part: &part,
        limits,
    };
    let done = if head.tensors {
        job.tensors()
    } else {
        job.bytes()
    };
    let finished = done.and_then(|()| {
        part.file.sync_all().map_err(file_error(&part.path))?;
        let found = digest(&part.path)?;
        match found.blake3 == head.result && found.size == head.result_length {
            true => Ok(()),
            false => Err(DeltaError::Damaged(
                "the result is not what it promises".into(),
            )),
        }
    });
    match finished {
        Ok(()) => {
            fs::rename(&part.path, out).map_err(file_error(out))?;
            let _ = fs::remove_file(&part.journal);
            Ok(Applied {
                size: head.result_length,
                result: head.result,
                resumed: part.finished.len(),
            })
        }
        Err(error) => {
            // Damage is not cured by trying again; an interruption is.
            if error.is_refusal() {
                let _ = fs::remove_file(&part.path);
                let _ = fs::remove_file(&part.journal);
            }
            Err(error)
        }
    }
}

/// The result while it is made, and which streams of it are safely on the disk.
struct Part {
    path: PathBuf,
    journal: PathBuf,
    file: File,
    finished: Vec<usize>,
    log: Mutex<File>,
    /// Bytes that were written, and whether there will be no more.
    written: AtomicU64,
    done: AtomicBool,
}

impl Part {
    fn open(out: &Path, head: &Head) -> Result<Self, DeltaError> {
        let named = |extension: &str| {
            let mut name = out.as_os_str().to_owned();
            name.push(extension);
            PathBuf::from(name)
        };
        let (path, journal) = (named(".part"), named(".part.journal"));
        // The first line names the delta; each further line is a finished stream.
        let title = format!(
            "{} {}\n",
            head.result.to_hex(),
            Digest::blake3(&head.write()).to_hex()
        );
        let before = fs::read_to_string(&journal).unwrap_or_default();
        let finished: Vec<usize> = match before.strip_prefix(&title) {
            Some(lines) if path.exists() => lines
                .split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n')?.parse().ok())
                .collect(),
            _ => Vec::new(),
        };
        let fresh = finished.is_empty();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(fresh)
            .open(&path)
            .map_err(file_error(&path))?;
        file.set_len(head.result_length)
            .map_err(file_error(&path))?;
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&journal)
            .map_err(file_error(&journal))?;
        if fresh {
            log.set_len(0)
                .and_then(|()| log.write_all(title.as_bytes()))
                .map_err(file_error(&journal))?;
        }
        Ok(Part {
            path,
            journal,
            file,
            finished,
            log: Mutex::new(log),
            written: AtomicU64::new(0),
            done: AtomicBool::new(false),
        })
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        write_all_at(&self.file, offset, bytes)?;
        self.written
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the disk begin early, so that little is left to wait for at the end. What goes wrong here goes wrong there, too.
    fn flush_meanwhile(&self) {
        let mut flushed = 0;
        while !self.done.load(Ordering::Relaxed) {
            let written = self.written.load(Ordering::Relaxed);
            if written - flushed >= FLUSH_BYTES {
                let _ = self.file.sync_data();
                flushed = written;
            }
            thread::park_timeout(Duration::from_millis(10));
        }
    }

    fn finish_stream(&self, index: usize) -> io::Result<()> {
        self.file.sync_data()?;
        let mut log = self
            .log
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        log.write_all(format!("{index}\n").as_bytes())?;
        log.sync_data()
    }
}

struct Job<'a> {
    head: &'a Head,
    delta: &'a Path,
    first_stream: u64,
    old: &'a FileSource,
    old_path: &'a Path,
    part: &'a Part,
    limits: &'a Limits,
}

impl Job<'_> {
    fn stream(&self, index: usize) -> Result<Decoder<impl Read>, DeltaError> {
        let before: u64 = self.head.streams[..index].iter().sum();
        let mut file = File::open(self.delta).map_err(file_error(self.delta))?;
        file.seek(SeekFrom::Start(self.first_stream + before))
            .map_err(file_error(self.delta))?;
        Ok(Decoder::new(file.take(self.head.streams[index])))
    }

    fn bytes(&self) -> Result<(), DeltaError> {
        let mut place = Files {
            old: self.old,
            new: self.part,
            written: 0,
            waiting: Vec::new(),
        };
        let mut coder = self.stream(0)?;
        general::decode(&mut coder, &mut place, self.head.result_length)
            .map_err(file_error(self.old_path))?;
        place.flush().map_err(file_error(&self.part.path))?;
        coder
            .error()
            .map_or(Ok(()), |error| Err(file_error(self.delta)(error)))
    }

    fn tensors(&self) -> Result<(), DeltaError> {
        let damaged = |reason: &str| DeltaError::Damaged(reason.to_owned());
        let (old_layout, old_header) = FileLayout::read(self.old, self.limits)
            .map_err(file_error(self.old_path))?
            .ok_or_else(|| damaged("the base is not a model file"))?;
        let mut coder = self.stream(0)?;
        let header = self.header(&mut coder, &old_header)?;
        drop(old_header);
        let layout = FileLayout::parse(&header, self.head.result_length, self.limits);
        let layout = layout
            .filter(|layout| layout.header == header.len() as u64)
            .ok_or_else(|| damaged("the header makes no sense"))?;
        self.part
            .write(0, &header)
            .map_err(file_error(&self.part.path))?;
        drop(header);

        let mut plan = Plan::new(&old_layout);
        let (mut copies, mut changes) = (Vec::new(), Vec::new());
        let mut end = layout.header;
        for tensor in &layout.tensors {
            self.gap(&mut coder, &mut plan, end, tensor.offset)?;
            end = tensor.offset + tensor.size;
            let nothing = Origin {
                old: None,
                same: false,
                hint: false,
            };
            let origin = plan
                .origin(&mut coder, tensor, nothing)
                .ok_or_else(|| damaged("a tensor's origin makes no sense"))?;
            let change = Change::new(tensor, &old_layout, origin);
            if origin.same {
                copies.push(change)
            } else {
                changes.push(change)
            }
        }
        self.gap(&mut coder, &mut plan, end, self.head.result_length)?;
        if let Some(error) = coder.error() {
            return Err(file_error(self.delta)(error));
        }
        let streams = into_streams(changes);
        if streams.len() + 1 != self.head.streams.len() {
            return Err(damaged("the number of streams is wrong"));
        }
        self.run(&copies, &streams)
    }

    fn header(
        &self,
        coder: &mut Decoder<impl Read>,
        old_header: &[u8],
    ) -> Result<Vec<u8>, DeltaError> {
        let length = super::diff::code_length(coder, 0);
        if length > self.limits.model_header_bytes || length > self.head.result_length {
            return Err(DeltaError::TooLarge(length, self.limits.model_header_bytes));
        }
        let mut place = Memory {
            old: old_header,
            new: Vec::new(),
        };
        general::decode(coder, &mut place, length).map_err(file_error(self.old_path))?;
        Ok(place.new)
    }

    fn gap(
        &self,
        coder: &mut Decoder<impl Read>,
        plan: &mut Plan<'_>,
        from: u64,
        to: u64,
    ) -> Result<(), DeltaError> {
        let mut bytes = vec![0; ((to - from) as usize).min(GAP_BYTES)];
        let mut at = from;
        while at < to {
            let bytes = &mut bytes[..(to - at).min(GAP_BYTES as u64) as usize];
            bytes.fill(0);
            plan.gap(coder, bytes);
            self.part
                .write(at, bytes)
                .map_err(file_error(&self.part.path))?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn run(&self, copies: &[Change], streams: &[Vec<Change>]) -> Result<(), DeltaError> {
        let next = AtomicUsize::new(0);
        let jobs = streams.len() + 1;
        let threads = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(jobs)
            .min(MOST_THREADS);
        let worker = || -> Result<(), DeltaError> {
            loop {
                // Copies come first: the disk writes them while the streams are decoded.
                match next.fetch_add(1, Ordering::Relaxed).checked_sub(1) {
                    None => self.copy(copies)?,
                    Some(index) if index >= streams.len() => return Ok(()),
                    Some(index) if self.part.finished.contains(&index) => {}
                    Some(index) => {
                        self.decode_stream(index + 1, &streams[index])?;
                        self.part
                            .finish_stream(index)
                            .map_err(file_error(&self.part.path))?;
                    }
                }
            }
        };
        thread::scope(|scope| {
            let flusher = scope.spawn(|| self.part.flush_meanwhile());
            let workers: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
            let mine = worker();
            let result = workers.into_iter().fold(mine, |result, worker| {
                let ended = || DeltaError::Damaged("a thread ended".into());
                result.and(worker.join().unwrap_or_else(|_| Err(ended())))
            });
            self.part.done.store(true, Ordering::Relaxed);
            flusher.thread().unpark();
            result
        })
    }

    fn copy(&self, copies: &[Change]) -> Result<(), DeltaError> {
        let mut buffer = vec![0; COPY_BYTES];
        for copy in copies {
            let from = copy.old_offset.unwrap_or(0);
            let mut at = 0;
            while at < copy.size {
                let bytes = &mut buffer[..(copy.size - at).min(COPY_BYTES as u64) as usize];
                self.old
                    .read_at(from + at, bytes)
                    .map_err(file_error(self.old_path))?;
                self.part
                    .write(copy.new_offset + at, bytes)
                    .map_err(file_error(&self.part.path))?;
                at += bytes.len() as u64;
            }
        }
        Ok(())
    }

    fn decode_stream(&self, index: usize, changes: &[Change]) -> Result<(), DeltaError> {
        let mut coder = self.stream(index)?;
        let mut models = StreamModels::default();
        for change in changes {
            models
                .code(
                    &mut coder,
                    change,
                    &mut |offset, window| self.old.read_at(offset, window),
                    &mut |offset, window, coded| {
                        if coded {
                            self.part.write(offset, window)
                        } else {
                            Ok(())
                        }
                    },
                )
                .map_err(file_error(&self.part.path))?;
        }
        coder
            .error()
            .map_or(Ok(()), |error| Err(file_error(self.delta)(error)))
    }
}

/// Each thread has windows and models of about a megabyte.
const MOST_THREADS: usize = 8;

/// Both sides in files; what is new waits in memory until there is enough to write.
struct Files<'a> {
    old: &'a FileSource,
    new: &'a Part,
    written: u64,
    waiting: Vec<u8>,
}

impl Files<'_> {
    fn flush(&mut self) -> io::Result<()> {
        self.new.write(self.written, &self.waiting)?;
        self.written += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }
}

impl Workplace for Files<'_> {
    fn old_len(&self) -> u64 {
        self.old.len()
    }

    fn written(&self) -> u64 {
        self.written + self.waiting.len() as u64
    }

    fn push(&mut self, byte: u8) -> io::Result<()> {
        self.waiting.push(byte);
        if self.waiting.len() >= COPY_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn copy_old(&mut self, from: u64, length: u64) -> io::Result<()> {
        let mut at = 0;
        while at < length {
            let count = (length - at).min(COPY_BYTES as u64) as usize;
            let start = self.waiting.len();
            self.waiting.resize(start + count, 0);
            self.old.read_at(from + at, &mut self.waiting[start..])?;
            if self.waiting.len() >= COPY_BYTES {
                self.flush()?;
            }
            at += count as u64;
        }
        Ok(())
    }

    fn copy_new(&mut self, from: u64, length: u64) -> io::Result<()> {
        self.flush()?;
        let distance = self.written - from;
        let mut at = 0;
        while at < length {
            let count = (length - at).min(distance).min(COPY_BYTES as u64) as usize;
            let mut bytes = vec![0; count];
            read_exact_at(&self.new.file, from + at, &mut bytes)?;
            self.waiting.extend_from_slice(&bytes);
            self.flush()?;
            at += count as u64;
        }
        Ok(())
    }

    fn read_old(&mut self, from: u64, out: &mut [u8]) -> io::Result<()> {
        self.old.read_at(from, out)
    }
}

#[cfg(unix)]
fn write_all_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        offset += count as u64;
        bytes = &bytes[count..];
    }
    Ok(())
}
