//! A watchdog for backends that foreign code drives: every step has a deadline.
//!
//! The backend lives on a thread of its own and is talked to through a channel. When it does not answer in time it
//! is given up: the thread is left to itself (a call into a driver cannot be interrupted), what it still answers is
//! not heard, and it ends when the call returns.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::{
    Backend, BackendError, Decoder, DeviceReport, LoadOptions, MemoryReport, Run, Scored, Scores,
    Select, SequenceId, Unavailable,
};
use crate::model::ModelSpec;
use crate::model_file::Model;

/// Scores that wait to be received: few, since those of a large vocabulary are a megabyte each.
const SCORES_IN_FLIGHT: usize = 4;

/// How long a backend may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For loading a model, which on an accelerator includes compiling it.
    pub load: Duration,
    /// For one step: at most [`Decoder::chunk`] tokens.
    pub step: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            load: Duration::from_secs(600),
            step: Duration::from_secs(60),
        }
    }
}

/// A decoder on a thread of its own, given up when it takes too long or answers what cannot be.
pub struct WatchedDecoder {
    spec: Arc<ModelSpec>,
    device: DeviceReport,
    context: usize,
    chunk: usize,
    state_form: String,
    notes: Vec<String>,
    deadlines: Deadlines,
    lengths: BTreeMap<SequenceId, usize>,
    worker: RefCell<Worker>,
}

type Job = Box<dyn FnOnce(&mut dyn Decoder) + Send>;

/// The way to the thread, and why it is not used any more.
struct Worker {
    jobs: Option<Sender<Job>>,
    lost: Option<Unavailable>,
}

/// What the thread says when the model is loaded.
struct Loaded {
    device: DeviceReport,
    context: usize,
    chunk: usize,
    state_form: String,
    notes: Vec<String>,
}

enum Message {
    Scored {
        run: usize,
        token: usize,
        scores: OwnedScores,
    },
    Done(Result<(), BackendError>),
}

enum OwnedScores {
    All(Vec<f32>),
    Candidates(Vec<(u32, f32)>),
    Hidden(Vec<f32>),
}

impl WatchedDecoder {
    /// Loads `model` on `backend`, on a thread that is watched from the beginning.
    ///
    /// # Errors
    /// What the backend says, or [`Unavailable::Timeout`].
    pub fn load(
        model: &Arc<Model>,
        backend: &Arc<dyn Backend>,
        options: &LoadOptions,
        deadlines: Deadlines,
    ) -> Result<Self, BackendError> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (answer, loaded) = mpsc::channel();
        let (model_there, backend_there, options) =
            (model.clone(), backend.clone(), options.clone());
        thread::Builder::new()
            .name(format!("backend {}", backend.name()))
            .spawn(move || {
                let decoder = model_there.load(backend_there.as_ref(), &options);
                drop(model_there);
                work(decoder, &answer, &todo);
            })
            .map_err(|error| {
                Unavailable::OutOfMemory(format!("no thread for the backend: {error}"))
            })?;
        let what = || format!("loading the model on {}", backend.name());
        let loaded: Loaded = wait(&loaded, deadlines.load, deadlines.load, what)
            .map_err(BackendError::Unavailable)??;
        Ok(WatchedDecoder {
            spec: model.spec().clone(),
            device: loaded.device,
            context: loaded.context,
            chunk: loaded.chunk.max(1),
            state_form: loaded.state_form,
            notes: loaded.notes,
            deadlines,
            lengths: BTreeMap::new(),
            worker: RefCell::new(Worker {
                jobs: Some(jobs),
                lost: None,
            }),
        })
    }

    /// Runs `work` on the thread and waits for its answer within the deadline of a step.
    fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut dyn Decoder) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        let (answer, answered) = mpsc::channel();
        self.send(Box::new(move |decoder| {
            let _ = answer.send(work(decoder));
        }))?;
        let limit = self.deadlines.step;
        self.keep(wait(&answered, limit, limit, || {
            format!("{what} on {}", self.device.backend)
        }))
    }

    fn send(&self, job: Job) -> Result<(), Unavailable> {
        let worker = self.worker.borrow();
        if let Some(reason) = &worker.lost {
            return Err(reason.clone());
        }
        let sent = worker.jobs.as_ref().map(|jobs| jobs.send(job));
        drop(worker);
        match sent {
            Some(Ok(())) => Ok(()),
            _ => self.keep(Err(thread_ended(&self.device.backend))),
        }
    }

    /// Remembers a reason, so that nothing is asked of the backend again.
    fn keep<T>(&self, result: Result<T, Unavailable>) -> Result<T, Unavailable> {
        if let Err(reason) = &result {
            let mut worker = self.worker.borrow_mut();
            worker.jobs = None;
            worker.lost = Some(reason.clone());
        }
        result
    }

    /// One step: at most a chunk of tokens.
    fn step(
        &mut self,
        runs: Vec<OwnedRun>,
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        let (answer, answered) = mpsc::sync_channel(SCORES_IN_FLIGHT);
        let grown: Vec<(SequenceId, usize)> = runs
            .iter()
            .map(|run| (run.sequence, run.tokens.len()))
            .collect();
        let origins: Vec<(usize, usize)> = runs.iter().map(|run| (run.index, run.first)).collect();
        self.send(Box::new(move |decoder| {
            let batch: Vec<Run<'_>> = runs.iter().map(OwnedRun::borrow).collect();
            let done = decoder.forward(&batch, &mut |scored| {
                let scores = match scored.scores {
                    Scores::All(logits) => OwnedScores::All(logits.to_vec()),
                    Scores::Candidates(best) => OwnedScores::Candidates(best.to_vec()),
                    Scores::Hidden(state) => OwnedScores::Hidden(state.to_vec()),
                };
                let _ = answer.send(Message::Scored {
                    run: scored.run,
                    token: scored.token,
                    scores,
                });
            });
            let _ = answer.send(Message::Done(done));
        }))?;
        // The time that the receiver takes with the scores is not the backend's.
        let mut until = Instant::now() + self.deadlines.step;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let message = self.keep(wait(&answered, left, self.deadlines.step, || {
                format!("a step on {}", self.device.backend)
            }))?;
            let (run, token, mut owned) = match message {
                Message::Done(done) => {
                    done?;
                    break;
                }
                Message::Scored { run, token, scores } => (run, token, scores),
            };
            let received = Instant::now();
            let (run, first) = origins[run];
            if !owned.are_numbers() {
                self.keep(Err(Unavailable::BadResult(format!(
                    "{} gave scores that are not numbers",
                    self.device.backend
                ))))?;
            }
            scores(Scored {
                run,
                token: first + token,
                scores: owned.borrow(),
            });
            until += received.elapsed();
        }
        for (sequence, tokens) in grown {
            *self.lengths.entry(sequence).or_default() += tokens;
        }
        Ok(())
    }

    fn check(&self, batch: &[Run<'_>]) -> Result<(), BackendError> {
        let vocabulary = self.spec.vocabulary;
        let mut lengths = self.lengths.clone();
        for run in batch {
            let length = lengths
                .get_mut(&run.sequence)
                .ok_or(BackendError::UnknownSequence(run.sequence))?;
            *length += run.tokens.len();
            if *length > self.context {
                return Err(BackendError::ContextFull {
                    wanted: *length,
                    context: self.context,
                });
            }
            if let Some(&token) = run.tokens.iter().find(|&&t| t as usize >= vocabulary) {
                return Err(BackendError::UnknownToken { token, vocabulary });
            }
        }
        Ok(())
    }
}

/// A part of a run that is handed to the thread.
struct OwnedRun {
    sequence: SequenceId,
    tokens: Vec<u32>,
    wanted: super::Wanted,
    /// Which run of the batch it is of, and its first token there.
    index: usize,
    first: usize,
}

impl OwnedRun {
    fn borrow(&self) -> Run<'_> {
        Run {
            sequence: self.sequence,
            tokens: &self.tokens,
            wanted: self.wanted,
            // Foreign runtimes give all scores anyway.
            select: Select::All,
        }
    }

    /// `run` in parts of at most `chunk` tokens.
    fn parts(run: &Run<'_>, index: usize, chunk: usize) -> Vec<OwnedRun> {
        use super::Wanted;
        let length = run.tokens.len();
        let parts = run.tokens.chunks(chunk).enumerate();
        parts
            .map(|(part, tokens)| {
                let first = part * chunk;
                OwnedRun {
                    sequence: run.sequence,
                    tokens: tokens.to_vec(),
                    wanted: match run.wanted {
                        Wanted::Hidden => Wanted::Hidden,
                        Wanted::Last if first + tokens.len() == length => Wanted::Last,
                        Wanted::From(from) if from < first + tokens.len() => {
                            Wanted::From(from.saturating_sub(first))
                        }
                        _ => Wanted::Nothing,
                    },
                    index,
                    first,
                }
            })
            .collect()
    }
}

impl OwnedScores {
    fn are_numbers(&self) -> bool {
        let fine = |score: f32| !score.is_nan() && score != f32::INFINITY;
        match self {
            OwnedScores::All(logits) => logits.iter().all(|&score| fine(score)),
            OwnedScores::Candidates(best) => best.iter().all(|&(_, score)| fine(score)),
            OwnedScores::Hidden(state) => state.iter().all(|&x| fine(x)),
        }
    }

    fn borrow(&mut self) -> Scores<'_> {
        match self {
            OwnedScores::All(logits) => Scores::All(logits),
            OwnedScores::Candidates(best) => Scores::Candidates(best),
            OwnedScores::Hidden(state) => Scores::Hidden(state),
        }
    }
}

impl Decoder for WatchedDecoder {
    fn spec(&self) -> &Arc<ModelSpec> {
        &self.spec
    }

    fn device(&self) -> &DeviceReport {
        &self.device
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn chunk(&self) -> usize {
        self.chunk
    }

    fn start(&mut self) -> SequenceId {
        // A backend that was given up answers no more; whoever goes on with the sequence hears why.
        let id = self.call("beginning a sequence", |decoder| decoder.start());
        let id = id.unwrap_or(SequenceId(u64::MAX));
        self.lengths.insert(id, 0);
        id
    }

    fn stop(&mut self, sequence: SequenceId) {
        self.lengths.remove(&sequence);
        let _ = self.send(Box::new(move |decoder| decoder.stop(sequence)));
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.lengths.get(&sequence).copied().unwrap_or(0)
    }

    fn forward(
        &mut self,
        batch: &[Run<'_>],
        scores: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), BackendError> {
        self.check(batch)?;
        let all: usize = batch.iter().map(|run| run.tokens.len()).sum();
        if all <= self.chunk {
            let runs = batch.iter().enumerate();
            let runs = runs
                .flat_map(|(index, run)| OwnedRun::parts(run, index, self.chunk))
                .collect();
            return self.step(runs, scores);
        }
        for (index, run) in batch.iter().enumerate() {
            for part in OwnedRun::parts(run, index, self.chunk) {
                self.step(vec![part], scores)?;
            }
        }
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> usize {
        let kept = self.call("shortening a sequence", move |decoder| {
            decoder.truncate(sequence, length)
        });
        let kept = kept.unwrap_or(0);
        self.lengths.insert(sequence, kept);
        kept
    }

    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, BackendError> {
        let fork = self.call("forking a sequence", move |decoder| decoder.fork(sequence))??;
        self.lengths.insert(fork, self.length(sequence));
        Ok(fork)
    }

    fn state_form(&self) -> String {
        self.state_form.clone()
    }

    fn save(&self, sequence: SequenceId, out: &mut dyn io::Write) -> Result<(), BackendError> {
        let bytes = self.call("saving a sequence", move |decoder| {
            let mut bytes = Vec::new();
            decoder.save(sequence, &mut bytes).map(|()| bytes)
        })??;
        Ok(out.write_all(&bytes)?)
    }

    fn restore(
        &mut self,
        length: usize,
        input: &mut dyn io::Read,
    ) -> Result<SequenceId, BackendError> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        let id = self.call("restoring a sequence", move |decoder| {
            decoder.restore(length, &mut bytes.as_slice())
        })??;
        self.lengths.insert(id, length);
        Ok(id)
    }

    fn memory(&self) -> MemoryReport {
        self.call("counting its memory", |decoder| decoder.memory())
            .unwrap_or_default()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// The thread: says that the model is loaded, then does what it is asked until nobody can ask any more.
fn work(
    decoder: Result<Box<dyn Decoder>, BackendError>,
    answer: &Sender<Result<Loaded, BackendError>>,
    todo: &Receiver<Job>,
) {
    let mut decoder = match decoder {
        Ok(decoder) => decoder,
        Err(error) => {
            let _ = answer.send(Err(error));
            return;
        }
    };
    let heard = answer.send(Ok(Loaded {
        device: decoder.device().clone(),
        context: decoder.context_length(),
        chunk: decoder.chunk(),
        state_form: decoder.state_form(),
        notes: decoder.notes().to_vec(),
    }));
    if heard.is_err() {
        return;
    }
    while let Ok(job) = todo.recv() {
        job(decoder.as_mut());
    }
}

/// The next message within `left` of the time `limit`.
fn wait<T>(
    from: &Receiver<T>,
    left: Duration,
    limit: Duration,
    what: impl Fn() -> String,
) -> Result<T, Unavailable> {
    from.recv_timeout(left).map_err(|error| match error {
        RecvTimeoutError::Timeout => Unavailable::Timeout {
            what: what(),
            limit,
        },
        RecvTimeoutError::Disconnected => thread_ended(&what()),
    })
}

fn thread_ended(what: &str) -> Unavailable {
    Unavailable::DeviceLost(format!("{what}: the backend's thread ended"))
}
