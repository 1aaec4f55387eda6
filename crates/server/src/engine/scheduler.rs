//! Continuous batching: each step computes one token of every running answer and a bounded part of the prompts that are new.
//!
//! - A prompt is computed in parts between the tokens of the others, so that a long one delays nobody by more than
//!   [`PREFILL_TIME`] a step; several new prompts share that part.
//! - Interactive work begins first, and background answers get a token only every [`BACKGROUND_EVERY`] steps while
//!   interactive ones run.
//! - A prompt that begins like another one waits until the common part is computed, and shares it.
//! - Memory is bounded: kept conversations go first, then the youngest running one goes back into the queue. Its tokens are the
//!   truth; they are computed again later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use ondine_runtime::backend::{Decoder, Run, Scored, Scores, SequenceId, Wanted};
use ondine_runtime::model::Mixer;
use ondine_runtime::sample::Needs;
use ondine_runtime::{GenerateError, Piece, StopReason};

use super::prefix_cache::{PrefixCache, common};
use super::{
    EngineError, EngineOptions, Event, EventSender, Job, Outcome, Priority, Shared, Stopped, Work,
};

/// Time that prompts may take of a step while answers wait for their next token.
const PREFILL_TIME: Duration = Duration::from_millis(80);

/// Steps of which background answers take part in one while interactive ones run.
const BACKGROUND_EVERY: u64 = 4;

/// Tokens in common for which a prompt waits until another one is computed.
const WORTH_WAITING: usize = 32;

/// Prompt tokens a step at least, however slow the machine is.
const LEAST_PREFILL: usize = 8;

/// A job on its way in.
pub(super) struct Admission {
    pub(super) job: Job,
    pub(super) events: EventSender,
}

/// A conversation, waiting or running.
struct Task {
    /// The prompt and what was generated so far.
    tokens: Vec<u32>,
    prompt: usize,
    work: Work,
    priority: Priority,
    deadline: Option<Instant>,
    events: EventSender,
    submitted: Instant,
    /// Time in the queue; none while it waits for the first time.
    queued: Option<Duration>,
    /// Sum of the hidden states so far, of an embedding.
    hidden: Vec<f32>,
    last_token: Option<Instant>,
}

struct Running {
    task: Task,
    sequence: SequenceId,
    /// Tokens that the decoder holds.
    computed: usize,
    began: Instant,
}

impl Running {
    fn pending(&self) -> usize {
        self.task.tokens.len() - self.computed
    }

    /// Whether only the last token is to be computed; else a part of the prompt is.
    fn is_decoding(&self) -> bool {
        self.task.tokens.len() > self.task.prompt && self.pending() == 1
    }
}

pub(super) struct Scheduler {
    decoder: Box<dyn Decoder>,
    options: EngineOptions,
    arrivals: Receiver<Admission>,
    shared: Arc<Shared>,
    /// Interactive, background.
    waiting: [VecDeque<Task>; 2],
    running: Vec<Running>,
    cache: PrefixCache,
    /// Whether sequences cannot be cut back far, so that prompts are kept besides whole conversations.
    cuts_are_lossy: bool,
    kv_per_position: u64,
    /// Prompt tokens computed per second, a moving mean.
    prefill_rate: f64,
    steps: u64,
}

impl Scheduler {
    pub(super) fn new(
        decoder: Box<dyn Decoder>,
        options: EngineOptions,
        arrivals: Receiver<Admission>,
        shared: Arc<Shared>,
    ) -> Self {
        let cuts_are_lossy = decoder
            .spec()
            .layers
            .iter()
            .any(|layer| match &layer.mixer {
                Mixer::Attention(attention) => attention.window.is_some(),
                Mixer::ShortConvolution(_) => true,
            });
        let decoder_memory = decoder.memory();
        Scheduler {
            kv_per_position: decoder_memory.kv_per_position,
            decoder,
            options,
            arrivals,
            shared,
            waiting: Default::default(),
            running: Vec::new(),
            cache: PrefixCache::new(
                options.prefix_bytes.min(options.kv_bytes),
                decoder_memory.kv_per_position,
            ),
            cuts_are_lossy,
            prefill_rate: 200.0,
            steps: 0,
        }
    }

    /// Works until nobody can submit any more and everything is done.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.drop_gone_and_late();
            self.admit();
            self.make_room();
            self.step();
            let figures = &self.shared.figures;
            figures.running.set(self.running.len() as u64);
            figures.prefix_bytes.set(self.cache.bytes());
        }
        let left = self.running.drain(..).map(|running| running.task);
        for task in left.chain(self.waiting.into_iter().flatten()) {
            task.events.send(Event::Failed(EngineError::ShuttingDown));
        }
    }

    /// Takes what arrived; waits for it when there is nothing else to do. False at the end.
    fn receive(&mut self) -> bool {
        loop {
            if self.shared.abort.load(Ordering::Acquire) {
                return false;
            }
            let is_idle = self.running.is_empty() && self.waiting.iter().all(VecDeque::is_empty);
            let arrival = match is_idle {
                true => self.arrivals.recv().map_err(|_| TryRecvError::Disconnected),
                false => self.arrivals.try_recv(),
            };
            match arrival {
                Ok(Admission { job, events }) => {
                    self.waiting[job.priority as usize].push_back(Task {
                        prompt: job.prompt.len(),
                        tokens: job.prompt,
                        work: job.work,
                        priority: job.priority,
                        deadline: job.deadline,
                        events,
                        submitted: Instant::now(),
                        queued: None,
                        hidden: Vec::new(),
                        last_token: None,
                    })
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !is_idle,
            }
        }
    }

    /// Gives up what nobody wants any more and what comes too late.
    fn drop_gone_and_late(&mut self) {
        let now = Instant::now();
        let shared = &self.shared;
        for queue in &mut self.waiting {
            queue.retain_mut(|task| {
                let keep = task.is_wanted(now, shared);
                if !keep && task.queued.is_none() {
                    shared.waiting.fetch_sub(1, Ordering::AcqRel);
                }
                keep
            });
        }
        let (keep, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.running)
            .into_iter()
            .partition_map(|mut running| (running.task.is_wanted(now, shared), running));
        self.running = keep;
        for running in gone {
            self.retire(running);
        }
    }

    /// Begins what waits, as far as there is room.
    fn admit(&mut self) {
        for priority in 0..self.waiting.len() {
            let mut index = 0;
            while index < self.waiting[priority].len() && self.running.len() < self.options.parallel
            {
                let task = &self.waiting[priority][index];
                if self.will_be_shared(&task.tokens) {
                    index += 1;
                    continue;
                }
                let needed = task.tokens.len() as u64 * self.kv_per_position;
                if !self.free_for(needed) {
                    return;
                }
                if let Some(task) = self.waiting[priority].remove(index) {
                    self.begin(task);
                }
            }
        }
    }

    /// Whether a prompt that is being computed shares so much with `tokens` that waiting for it pays.
    fn will_be_shared(&self, tokens: &[u32]) -> bool {
        let now = self.cache.best_common(tokens);
        self.running.iter().any(|running| {
            let soon = common(&running.task.tokens, tokens);
            running.computed < soon && soon >= now.max(running.computed) + WORTH_WAITING
        })
    }

    /// Forgets kept conversations until `needed` bytes fit. False when they do not while others run.
    fn free_for(&mut self, needed: u64) -> bool {
        // What runs will still need for its prompt is as good as taken.
        let promised: usize = self.running.iter().map(Running::pending).sum();
        let needed = needed + promised as u64 * self.kv_per_position;
        while self.decoder.memory().kv + needed > self.options.kv_bytes {
            if !self.cache.drop_oldest(self.decoder.as_mut()) {
                return self.running.is_empty();
            }
        }
        true
    }

    fn begin(&mut self, mut task: Task) {
        let running: Vec<(SequenceId, &[u32])> = self
            .running
            .iter()
            .map(|running| (running.sequence, &running.task.tokens[..running.computed]))
            .collect();
        // An embedding needs the states of all its tokens.
        let (sequence, computed) = match task.work {
            Work::Generate(_) => self
                .cache
                .begin(self.decoder.as_mut(), &running, &task.tokens),
            Work::Embed => (self.decoder.start(), 0),
        };
        if task.queued.is_none() {
            let queued = task.submitted.elapsed();
            task.queued = Some(queued);
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            let figures = &self.shared.figures;
            figures.prompt_tokens.add(task.prompt as u64);
            figures.reused_tokens.add(computed as u64);
            if let Work::Generate(answer) = &mut task.work {
                answer.stats_mut().reused_tokens = computed;
            }
            task.events.send(Event::Started { queued });
        }
        self.running.push(Running {
            task,
            sequence,
            computed,
            began: Instant::now(),
        });
    }

    /// Keeps memory within its bound: kept conversations go first, then the youngest running one waits again.
    fn make_room(&mut self) {
        let mut held = self.decoder.memory().kv;
        while held > self.options.kv_bytes {
            if !self.cache.drop_oldest(self.decoder.as_mut()) {
                let youngest = |index: &usize| {
                    let running = &self.running[*index];
                    (running.task.priority, running.began)
                };
                let Some(index) = (0..self.running.len()).max_by_key(youngest) else {
                    break;
                };
                if self.running.len() == 1 {
                    break;
                }
                let mut running = self.running.remove(index);
                self.decoder.stop(running.sequence);
                running.task.hidden.clear();
                self.shared.figures.preempted.add(1);
                self.waiting[running.task.priority as usize].push_front(running.task);
            }
            held = self.decoder.memory().kv;
        }
        self.shared.figures.kv_bytes.set(held);
    }

    /// Computes one token of every answer and a part of the prompts.
    fn step(&mut self) {
        let plan = self.plan();
        if plan.is_empty() {
            return;
        }
        let tokens: Vec<Vec<u32>> = plan
            .iter()
            .map(|&(index, count)| {
                let running = &self.running[index];
                running.task.tokens[running.computed..running.computed + count].to_vec()
            })
            .collect();
        let needs: Vec<Needs> = plan
            .iter()
            .map(|&(index, _)| match &self.running[index].task.work {
                Work::Generate(answer) => answer.needs(&[]),
                Work::Embed => Needs::All,
            })
            .collect();
        let batch: Vec<Run<'_>> = plan
            .iter()
            .zip(&tokens)
            .zip(&needs)
            .map(|((&(index, count), tokens), needs)| Run {
                sequence: self.running[index].sequence,
                tokens,
                wanted: match &self.running[index].task.work {
                    Work::Embed => Wanted::Hidden,
                    Work::Generate(_) if count == self.running[index].pending() => Wanted::Last,
                    Work::Generate(_) => Wanted::Nothing,
                },
                select: needs.select(),
            })
            .collect();
        let begun = Instant::now();
        let mut pieces: Vec<Option<Result<Piece, GenerateError>>> = Vec::new();
        pieces.resize_with(plan.len(), || None);
        let vocabulary = self.decoder.spec().vocabulary;
        let running = &mut self.running;
        let result = self.decoder.forward(&batch, &mut |scored: Scored<'_>| {
            let task = &mut running[plan[scored.run].0].task;
            match (scored.scores, &mut task.work) {
                (Scores::All(logits), Work::Generate(answer)) => {
                    pieces[scored.run] = Some(answer.choose(logits));
                }
                (Scores::Candidates(best), Work::Generate(answer)) => {
                    pieces[scored.run] = Some(answer.choose_among(best, vocabulary));
                }
                (Scores::Hidden(hidden), Work::Embed) => {
                    task.hidden.resize(hidden.len(), 0.0);
                    task.hidden
                        .iter_mut()
                        .zip(hidden)
                        .for_each(|(sum, x)| *sum += x);
                }
                _ => (),
            }
        });
        drop(batch);
        self.steps += 1;
        self.shared.figures.steps.add(1);
        let context = self.decoder.context_length();
        let mut ended = Vec::new();
        match result {
            Ok(()) => {
                self.note_rate(&plan, begun.elapsed());
                for (&(index, count), piece) in plan.iter().zip(pieces) {
                    let running = &mut self.running[index];
                    running.computed += count;
                    if running.pending() == 0 && !running.advance(piece, context, &self.shared) {
                        ended.push(index);
                    } else if self.cuts_are_lossy
                        && running.task.tokens.len() == running.task.prompt + 1
                        && let Ok(fork) = self.decoder.fork(running.sequence)
                    {
                        let prompt = running.task.tokens[..running.computed].to_vec();
                        self.cache.keep(self.decoder.as_mut(), fork, prompt);
                    }
                }
            }
            Err(error) => {
                for &(index, _) in &plan {
                    self.shared.figures.failed.add(1);
                    let error = EngineError::Failed(error.to_string());
                    self.running[index].task.events.send(Event::Failed(error));
                    ended.push(index);
                }
            }
        }
        ended.sort_unstable();
        for index in ended.into_iter().rev() {
            let running = self.running.remove(index);
            self.retire(running);
        }
    }

    /// Which running tasks take part in the next step, and with how many tokens.
    fn plan(&mut self) -> Vec<(usize, usize)> {
        let is_interactive = |running: &Running| running.task.priority == Priority::Interactive;
        let any_interactive = self.running.iter().any(is_interactive);
        let background = !any_interactive || self.steps.is_multiple_of(BACKGROUND_EVERY);
        let takes_part = |running: &Running| background || is_interactive(running);
        let mut plan: Vec<(usize, usize)> = Vec::new();
        let mut prompts: Vec<usize> = Vec::new();
        for (index, running) in self.running.iter().enumerate() {
            match takes_part(running) {
                true if running.is_decoding() => plan.push((index, 1)),
                true => prompts.push(index),
                false => (),
            }
        }
        let mut budget = match plan.is_empty() {
            true => self.decoder.chunk(),
            false => (self.prefill_rate * PREFILL_TIME.as_secs_f64()) as usize,
        }
        .clamp(LEAST_PREFILL, self.decoder.chunk().max(LEAST_PREFILL));
        // Short rests first, so that what a short prompt leaves over goes to the long ones.
        prompts.sort_by_key(|&index| {
            (
                self.running[index].task.priority,
                self.running[index].pending(),
            )
        });
        let mut left = prompts.len();
        for index in prompts {
            let share = budget.div_ceil(left.max(1));
            let count = self.running[index].pending().min(share);
            if count > 0 {
                plan.push((index, count));
            }
            budget -= count;
            left -= 1;
        }
        plan
    }

    /// Learns how quickly prompts are computed, from steps that are mostly prompt.
    fn note_rate(&mut self, plan: &[(usize, usize)], elapsed: Duration) {
        let rows: usize = plan.iter().map(|(_, count)| count).sum();
        if rows >= 2 * plan.len() && rows >= LEAST_PREFILL {
            let rate = rows as f64 / elapsed.as_secs_f64().max(1e-6);
            self.prefill_rate += (rate - self.prefill_rate) * 0.2;
            let rate = (self.prefill_rate * 1000.0) as u64;
            self.shared.figures.prompt_rate.set(rate);
        }
    }

    /// Keeps what an ended task leaves behind for those that begin like it.
    fn retire(&mut self, running: Running) {
        let mut tokens = running.task.tokens;
        tokens.truncate(running.computed);
        match running.task.work {
            Work::Generate(_) => self
                .cache
                .keep(self.decoder.as_mut(), running.sequence, tokens),
            Work::Embed => self.decoder.stop(running.sequence),
        }
        // What is kept must fit as well.
        let _ = self.free_for(0);
    }
}

impl Task {
    /// Whether somebody still waits for it and it can be in time. Says so to who waits otherwise.
    fn is_wanted(&mut self, now: Instant, shared: &Shared) -> bool {
        if self.events.is_closed() {
            shared.figures.cancelled.add(1);
            return false;
        }
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return true;
        }
        shared.figures.late.add(1);
        match &mut self.work {
            Work::Generate(answer) if answer.stats().generated_tokens > 0 => {
                let last = answer.end(StopReason::Cancelled, None);
                self.events.send(Event::Piece(last));
                self.finish(Stopped::Deadline, shared);
            }
            _ => {
                self.events.send(Event::Failed(EngineError::Deadline));
            }
        }
        false
    }

    fn finish(&mut self, stopped: Stopped, shared: &Shared) {
        let Work::Generate(answer) = &mut self.work else {
            return;
        };
        shared.figures.finished.add(1);
        shared.figures.service.observe(self.submitted.elapsed());
        let outcome = Outcome {
            stopped,
            is_complete: answer.is_complete(),
            stats: *answer.stats(),
            queued: self.queued.unwrap_or_default(),
        };
        self.events.send(Event::Done(outcome));
    }
}

impl Running {
    /// Takes the piece that followed from the last token. False when the task is at its end.
    fn advance(
        &mut self,
        piece: Option<Result<Piece, GenerateError>>,
        context: usize,
        shared: &Shared,
    ) -> bool {
        let task = &mut self.task;
        let Work::Generate(answer) = &mut task.work else {
            if task.hidden.is_empty() {
                let message = "the backend gives no hidden states; embed with another one";
                shared.figures.failed.add(1);
                task.events
                    .send(Event::Failed(EngineError::Failed(message.into())));
                return false;
            }
            let length = task.hidden.iter().map(|x| x * x).sum::<f32>().sqrt();
            let scale = 1.0 / length.max(f32::MIN_POSITIVE);
            let embedding = task.hidden.iter().map(|x| x * scale).collect();
            shared.figures.finished.add(1);
            task.events.send(Event::Embedding(embedding));
            return false;
        };
        let piece = match piece {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                shared.figures.failed.add(1);
                task.events
                    .send(Event::Failed(EngineError::Failed(error.to_string())));
                return false;
            }
            None => return true,
        };
        let now = Instant::now();
        shared.figures.generated_tokens.add(1);
        match task.last_token.replace(now) {
            Some(last) => shared.figures.between_tokens.observe(now - last),
            None => {
                answer.stats_mut().prefill = self.began.elapsed();
                shared
                    .figures
                    .time_to_first_token
                    .observe(task.submitted.elapsed());
            }
        }
        let token = piece.token.as_ref().map(|sampled| sampled.token);
        let mut goes_on = task.events.send(Event::Piece(piece));
        if answer.stop_reason().is_none() {
            if let Some(last) = answer.finish_early() {
                task.events.send(Event::Piece(last));
            } else if task.tokens.len() == context {
                let last = answer.end(StopReason::ContextFull, None);
                task.events.send(Event::Piece(last));
            } else if let Some(token) = token {
                task.tokens.push(token);
            }
        }
        if let Some(reason) = answer.stop_reason() {
            task.finish(Stopped::By(reason), shared);
            goes_on = false;
        }
        goes_on
    }
}

trait PartitionMap<T> {
    /// Those with `true`, those with `false`.
    fn partition_map(self, judge: impl FnMut(T) -> (bool, T)) -> (Vec<T>, Vec<T>);
}

impl<T, I: Iterator<Item = T>> PartitionMap<T> for I {
    fn partition_map(self, mut judge: impl FnMut(T) -> (bool, T)) -> (Vec<T>, Vec<T>) {
        let (mut yes, mut no) = (Vec::new(), Vec::new());
        for item in self {
            let (is_kept, item) = judge(item);
            if is_kept { &mut yes } else { &mut no }.push(item);
        }
        (yes, no)
    }
}
