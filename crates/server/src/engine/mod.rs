//! Many conversations on one decoder.
//!
//! A thread of its own owns the decoder and computes all running conversations together, token by token
//! (`scheduler`). Everything else talks to it through [`Engine::submit`] and reads [`Event`]s from a [`Ticket`]; dropping the
//! ticket cancels the work.

pub mod figures;
mod job;
mod prefix_cache;
mod scheduler;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ondine_runtime::Model;
use ondine_runtime::backend::{Decoder, DeviceReport};
use thiserror::Error;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub use figures::Figures;
pub use job::{Event, Job, Outcome, Priority, Stopped, Work};

/// How many conversations run and wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Conversations computed together at most.
    pub parallel: usize,
    /// Conversations that may wait at most.
    pub queue: usize,
    /// Bytes of keys and values at most, of running conversations and of the prefix cache together. One conversation may
    /// always run, whatever it needs.
    pub kv_bytes: u64,
    /// Bytes of the prefix cache at most: conversations that ended and are kept for those that begin alike.
    pub prefix_bytes: u64,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            parallel: 16,
            queue: 64,
            kv_bytes: 1 << 30,
            prefix_bytes: 256 << 20,
        }
    }
}

/// Why work was not done.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Too many requests wait.
    #[error("{waiting} requests already wait; try again in {} s", retry_after.as_secs())]
    Busy {
        /// How many.
        waiting: usize,
        /// When there is probably room again.
        retry_after: Duration,
    },
    /// The engine is being shut down.
    #[error("the server is shutting down; send the request to another one")]
    ShuttingDown,
    /// The deadline passed before the first token.
    #[error("the deadline passed before the first token; allow more time or send less")]
    Deadline,
    /// Computing failed.
    #[error("{0}")]
    Failed(String),
}

/// A loaded model that answers many requests at once.
pub struct Engine {
    model: Arc<Model>,
    device: DeviceReport,
    context_length: usize,
    queue: usize,
    jobs: Mutex<Option<Sender<scheduler::Admission>>>,
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What the scheduler's thread and the rest both see.
#[derive(Default)]
pub(crate) struct Shared {
    /// Jobs submitted and not yet begun.
    waiting: AtomicUsize,
    /// Set to end: what runs is given up.
    abort: AtomicBool,
    figures: Figures,
}

impl Engine {
    /// Starts the thread that computes on `decoder`, which must have been loaded from `model`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        model: Arc<Model>,
        decoder: Box<dyn Decoder>,
        options: EngineOptions,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let shared = Arc::new(Shared::default());
        let device = decoder.device().clone();
        let context_length = decoder.context_length();
        let scheduler = scheduler::Scheduler::new(decoder, options, receiver, shared.clone());
        let thread = std::thread::Builder::new()
            .name("scheduler".into())
            .spawn(move || scheduler.run())?;
        Ok(Engine {
            model,
            device,
            context_length,
            queue: options.queue,
            jobs: Mutex::new(Some(sender)),
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Where it computes.
    pub fn device(&self) -> &DeviceReport {
        &self.device
    }

    /// Tokens that a conversation can hold.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Counters and distributions, for `/metrics`.
    pub fn figures(&self) -> &Figures {
        &self.shared.figures
    }

    /// Requests that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Hands over work. The events of job `i` come with index `i`.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when too many wait, [`EngineError::ShuttingDown`] at the end.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<Ticket, EngineError> {
        let count = jobs.len();
        let waiting = self.shared.waiting.fetch_add(count, Ordering::AcqRel);
        let refuse = |error| {
            self.shared.waiting.fetch_sub(count, Ordering::AcqRel);
            Err(error)
        };
        // Whoever finds nobody waiting may ask for more answers than the queue is long.
        if waiting > 0 && waiting + count > self.queue {
            self.shared.figures.rejected.add(1);
            let retry_after = self.shared.figures.typical_wait(waiting);
            return refuse(EngineError::Busy {
                waiting,
                retry_after,
            });
        }
        let (sender, receiver) = unbounded_channel();
        let jobs_lock = self.jobs.lock();
        let Some(queue) = jobs_lock.as_ref().ok().and_then(|queue| queue.as_ref()) else {
            return refuse(EngineError::ShuttingDown);
        };
        for (index, job) in jobs.into_iter().enumerate() {
            let events = EventSender {
                index,
                sender: sender.clone(),
            };
            if queue.send(scheduler::Admission { job, events }).is_err() {
                self.shared
                    .waiting
                    .fetch_sub(count - index, Ordering::AcqRel);
                return Err(EngineError::ShuttingDown);
            }
        }
        Ok(Ticket { receiver })
    }

    /// Takes no more work, gives what runs `grace` to finish and then gives it up.
    pub fn shut_down(&self, grace: Duration) {
        if let Ok(mut queue) = self.jobs.lock() {
            *queue = None;
        }
        let Some(thread) = self.thread.lock().ok().and_then(|mut thread| thread.take()) else {
            return;
        };
        let until = std::time::Instant::now() + grace;
        while !thread.is_finished() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.shared.abort.store(true, Ordering::Release);
        let _ = thread.join();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shut_down(Duration::ZERO);
    }
}

/// The way back for one submission.
pub struct Ticket {
    receiver: UnboundedReceiver<(usize, Event)>,
}

impl Ticket {
    /// The next event and the index of its job; none when all jobs ended.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        self.receiver.recv().await
    }

    /// As [`Ticket::next`], for threads.
    pub fn next_blocking(&mut self) -> Option<(usize, Event)> {
        self.receiver.blocking_recv()
    }
}

/// Where the events of one job go.
pub(crate) struct EventSender {
    index: usize,
    sender: UnboundedSender<(usize, Event)>,
}

impl EventSender {
    /// False when nobody listens any more.
    fn send(&self, event: Event) -> bool {
        self.sender.send((self.index, event)).is_ok()
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
