//! The real clock and real connections for [`ondine_hybrid::cloud::conduct`]: providers by HTTP, the device by its engine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ondine_hybrid::cloud::{Event, Fault, Line, World};
use ondine_hybrid::egress::Cleared;
use ondine_runtime::sample::SamplingOptions;
use ondine_runtime::tokenizer::EncodeOptions;
use ondine_runtime::{Continuation, GenerateOptions};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::client::{Client, Ended};
use crate::engine::{self, Engine, EngineError, Job, Priority, Ticket, Work};

/// What the device needs to answer, or to go on.
#[derive(Clone)]
pub(crate) struct OnDevicePart {
    pub(crate) engine: Arc<Engine>,
    pub(crate) prompt: Vec<u32>,
    pub(crate) sampling: SamplingOptions,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Instant>,
}

/// Tokens over which the device's certainty is averaged.
const CERTAINTY: usize = 16;

/// What the tasks of a world share with it.
#[derive(Clone)]
struct Mail {
    events: Sender<(Line, Event)>,
    ended: Arc<Mutex<BTreeMap<u64, Ended>>>,
}

impl Mail {
    fn tell(&self, line: Line, event: Event) {
        // Nobody reads any more when the request is at its end.
        let _ = self.events.send((line, event));
    }

    fn end(&self, line: Line, ended: Ended) {
        self.lock().insert(line.0, ended);
        self.tell(line, Event::Done);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Ended>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Connections {
    runtime: Handle,
    client: Arc<Client>,
    device: OnDevicePart,
    /// Mean log-probability of the device's tokens below which it is unsure.
    unsure_below: Option<f32>,
    epoch: Instant,
    mail: Mail,
    arrivals: Receiver<(Line, Event)>,
    tasks: BTreeMap<u64, JoinHandle<()>>,
    next: u64,
    is_gone: Arc<AtomicBool>,
    /// The last line that came to its end, whose answer is the one that is shown.
    last_done: Option<Line>,
    /// Bytes of requests that left.
    pub(super) sent_bytes: usize,
}

impl Connections {
    pub(super) fn new(
        runtime: Handle,
        client: Arc<Client>,
        device: OnDevicePart,
        unsure_below: Option<f32>,
        epoch: Instant,
    ) -> Self {
        let (events, arrivals) = channel();
        Connections {
            runtime,
            client,
            device,
            unsure_below,
            epoch,
            mail: Mail {
                events,
                ended: Arc::default(),
            },
            arrivals,
            tasks: BTreeMap::new(),
            next: 0,
            is_gone: Arc::default(),
            last_done: None,
            sent_bytes: 0,
        }
    }

    /// Ends the waiting when `gone` comes to its end.
    pub(super) fn watch(&mut self, gone: impl Future<Output = ()> + Send + 'static) {
        let (flag, mail) = (self.is_gone.clone(), self.mail.clone());
        let task = self.runtime.spawn(async move {
            gone.await;
            flag.store(true, Ordering::Release);
            mail.tell(Line(u64::MAX), Event::Done);
        });
        self.tasks.insert(u64::MAX, task);
    }

    /// How the answer that is shown ended.
    pub(super) fn ended(&self) -> Option<Ended> {
        let line = self.last_done?;
        self.mail.lock().get(&line.0).copied()
    }

    pub(super) fn is_late(&self) -> bool {
        self.device.deadline.is_some_and(|at| Instant::now() >= at)
    }

    fn line(&mut self) -> Line {
        self.next += 1;
        Line(self.next)
    }

    /// The device's work after `prefix`, or why there is none.
    fn submit(&self, prefix: &str) -> Result<Ticket, EngineError> {
        let OnDevicePart { engine, prompt, .. } = &self.device;
        let tokenizer = engine.model().tokenizer();
        let mut tokens = prompt.clone();
        tokens.extend(tokenizer.encode(
            prefix,
            EncodeOptions {
                add_special: false,
                parse_special: false,
            },
        ));
        let written = tokens.len() - prompt.len();
        if tokens.len() >= engine.context_length() {
            return Err(EngineError::Failed("the context is full".into()));
        }
        let mut sampling = self.device.sampling.clone();
        if self.unsure_below.is_some() {
            sampling.top_logprobs = sampling.top_logprobs.max(1);
        }
        let options = GenerateOptions {
            max_tokens: self
                .device
                .max_tokens
                .map(|most| most.saturating_sub(written).max(1)),
            sampling,
            stop: self.device.stop.clone(),
            ..GenerateOptions::default()
        };
        let answer = Continuation::new(tokenizer, &tokens, options)
            .map_err(|error| EngineError::Failed(error.to_string()))?;
        engine.submit(vec![Job {
            work: Work::Generate(Box::new(answer)),
            prompt: tokens,
            priority: self.device.priority,
            deadline: self.device.deadline,
        }])
    }
}

impl World for Connections {
    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn wait(&mut self, until: Duration) -> Option<(Line, Event)> {
        let mut patience = until.saturating_sub(self.now());
        if let Some(deadline) = self.device.deadline {
            patience = patience.min(deadline.saturating_duration_since(Instant::now()));
        }
        let (line, event) = match self.arrivals.recv_timeout(patience) {
            Ok(arrival) => arrival,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        };
        if event == Event::Done && line.0 != u64::MAX {
            self.last_done = Some(line);
        }
        Some((line, event))
    }

    fn start_device(&mut self, prefix: &str) -> Line {
        let line = self.line();
        let mail = self.mail.clone();
        match self.submit(prefix) {
            Ok(ticket) => {
                let unsure_below = self.unsure_below;
                let task = self.runtime.spawn(listen(ticket, line, mail, unsure_below));
                self.tasks.insert(line.0, task);
            }
            Err(error) => mail.tell(line, Event::Failed(fault(&error))),
        }
        line
    }

    fn open(&mut self, request: Cleared<'_>) -> Line {
        let line = self.line();
        let mail = self.mail.clone();
        self.sent_bytes += request.bytes().len();
        match self.client.call(&request) {
            Some(call) => {
                let task = self.runtime.spawn(async move {
                    let told = call.run(&|event| mail.tell(line, event)).await;
                    match told {
                        Ok(ended) => mail.end(line, ended),
                        Err(fault) => mail.tell(line, Event::Failed(fault)),
                    }
                });
                self.tasks.insert(line.0, task);
            }
            None => mail.tell(line, Event::Failed(Fault::Unreachable)),
        }
        line
    }

    fn close(&mut self, line: Line) {
        if let Some(task) = self.tasks.remove(&line.0) {
            task.abort();
        }
    }

    fn is_wanted(&self) -> bool {
        !self.is_gone.load(Ordering::Acquire) && !self.is_late()
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

/// Tells what the device writes. Dropping the ticket, when the task is aborted, cancels the work.
async fn listen(mut ticket: Ticket, line: Line, mail: Mail, unsure_below: Option<f32>) {
    let mut certainty: Vec<f32> = Vec::new();
    while let Some((_, event)) = ticket.next().await {
        match event {
            engine::Event::Piece(piece) => {
                if !piece.text.is_empty() {
                    mail.tell(line, Event::Text(piece.text));
                }
                let Some((sampled, below)) = piece.token.zip(unsure_below) else {
                    continue;
                };
                certainty.push(sampled.logprob);
                let last = &certainty[certainty.len().saturating_sub(CERTAINTY)..];
                let mean = last.iter().sum::<f32>() / last.len() as f32;
                if last.len() == CERTAINTY && mean < below {
                    mail.tell(line, Event::Unsure);
                    certainty.clear();
                }
            }
            engine::Event::Done(outcome) => {
                let ended = Ended {
                    stopped: outcome.stopped,
                    tokens: Some(outcome.stats.generated_tokens),
                };
                return mail.end(line, ended);
            }
            engine::Event::Failed(error) => return mail.tell(line, Event::Failed(fault(&error))),
            engine::Event::Started { .. } | engine::Event::Embedding(_) => (),
        }
    }
    mail.tell(line, Event::Failed(Fault::Broken));
}

fn fault(error: &EngineError) -> Fault {
    match error {
        EngineError::Busy { retry_after, .. } => Fault::Refused {
            status: 429,
            retry_after: Some(*retry_after),
        },
        EngineError::ShuttingDown => Fault::Unreachable,
        EngineError::Deadline => Fault::TimedOut,
        EngineError::Failed(reason) => Fault::Garbled(reason.clone()),
    }
}
