//! The loop that drives one request from its first attempt to the end of its answer.
//!
//! Long, since attempts, hedges and handovers are states of one request that change each other.

use super::{Event, Fault, Health, Line, Overlap, World};
use crate::egress::{Cleared, Conversation, Gate, Kept, Label, Transport};
use crate::redact::Restorer;
use crate::route::LatencyProfile;
use serde::Serialize;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is wanted, and where it may run.
#[derive(Debug)]
pub struct Request<'a> {
    /// The conversation.
    pub conversation: &'a Conversation,
    /// What the gate found in it.
    pub label: Label,
    /// Places in the order in which they are tried, and what each takes for an answer: names of providers, or
    /// [`Request::DEVICE`].
    pub places: Vec<(String, LatencyProfile)>,
    /// When the answer must be whole, by the world's clock.
    pub deadline: Option<Duration>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of a long answer.
    pub answer_tokens: u32,
}

impl Request<'_> {
    /// The place that is this device.
    pub const DEVICE: &'static str = "device";
}

/// What the receiver of the answer is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// More of the answer. What was given stays valid.
    Text(String),
    /// Who writes what follows: before the first text, and whenever another place goes on.
    From {
        /// The place.
        place: String,
    },
}

/// How it went. Labels and numbers, never text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// True if the answer is whole.
    pub is_whole: bool,
    /// The place that finished it, or failed last.
    pub place: String,
    /// What happened, in order.
    pub steps: Vec<Step>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// Milliseconds since the request came.
    pub at_ms: u64,
    /// The place that it happened to.
    pub place: String,
    /// What happened.
    #[serde(flatten)]
    pub kind: StepKind,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "step", content = "why", rename_all = "snake_case")]
pub enum StepKind {
    /// It was asked.
    Asked,
    /// It is asked besides another one that is slow to begin.
    Hedged,
    /// The device begins besides a provider, so that the deadline is met whatever the provider does.
    Insured,
    /// It goes on where another one stopped.
    TookOver,
    /// It failed.
    Failed(String),
    /// The request may not go there.
    Kept(Kept),
    /// Its breaker is open.
    BreakerOpen,
    /// It was too slow for the deadline.
    TooSlow,
    /// The device's model did not trust its answer.
    Unsure,
    /// Another one was quicker, or the receiver went away.
    Cancelled,
    /// It finished the answer.
    Finished,
}

/// Answers a request. `give` gets the answer piece by piece and says whether anybody still listens.
pub fn conduct<W: World>(
    gate: &Gate,
    health: &Mutex<Health>,
    request: Request<'_>,
    world: &mut W,
    give: &mut dyn FnMut(Output) -> bool,
) -> Outcome {
    let began = world.now();
    let conductor = Conductor {
        places: request
            .places
            .iter()
            .map(|(name, _)| name.clone())
            .collect(),
        label: request.label.clone(),
        gate,
        health,
        request,
        world,
        give,
        began,
        shown: String::new(),
        pieces_shown: 0,
        steps: Vec::new(),
        attempts: 0,
        retry_at: None,
        failed: BTreeSet::new(),
        may_hedge: true,
        active: None,
        rival: None,
        last_place: String::new(),
        has_given: None,
        is_heard: true,
    };
    conductor.run()
}

/// A running attempt.
struct Attempt {
    line: Line,
    place: String,
    began: Duration,
    /// When its first and its last text came.
    first_text: Option<Duration>,
    last_text: Option<Duration>,
    /// Pieces so far.
    pieces: u32,
    /// Bytes that were shown when it began.
    base: usize,
    /// What came and is not shown, while another one is shown.
    buffer: String,
    is_done: bool,
    restorer: Option<Restorer>,
    overlap: Overlap,
}

struct Conductor<'a, W> {
    gate: &'a Gate,
    health: &'a Mutex<Health>,
    request: Request<'a>,
    world: &'a mut W,
    give: &'a mut dyn FnMut(Output) -> bool,
    began: Duration,
    places: VecDeque<String>,
    label: Label,
    shown: String,
    /// Pieces of which that consists, about as many as tokens.
    pieces_shown: u32,
    steps: Vec<Step>,
    /// At the place in front.
    attempts: u32,
    retry_at: Option<Duration>,
    /// Places that failed.
    failed: BTreeSet<String>,
    /// False once the budget refused a hedge.
    may_hedge: bool,
    active: Option<Attempt>,
    rival: Option<Attempt>,
    last_place: String,
    /// The place whose text was shown last.
    has_given: Option<String>,
    is_heard: bool,
}

/// Makes the world a transport, so that the gate alone sends.
struct Opening<'a, W>(&'a mut W);

impl<W: World> Transport for Opening<'_, W> {
    type Answer = Line;

    fn send(&mut self, request: Cleared<'_>) -> Line {
        self.0.open(request)
    }
}

/// What an event means for the request.
enum Turn {
    GoOn,
    Finished,
}

/// Share of the device's estimated time that is kept as a reserve.
const RESERVE: f64 = 0.15;

/// A short answer is this part of a long one.
const SHORT: u32 = 8;

/// Probability that a provider that is asked answers to the end, and as quickly as usual.
const RELIABILITY: f64 = 0.9;

/// Pieces after which a line's speed is believed.
const ENOUGH_PIECES: u32 = 6;

impl<W: World> Conductor<'_, W> {
    fn run(mut self) -> Outcome {
        self.health().begin();
        loop {
            if !self.is_heard || !self.world.is_wanted() {
                return self.end(false, StepKind::Cancelled);
            }
            if self.active.is_none() && self.retry_at.is_none() && !self.begin_next() {
                return self.end(false, StepKind::Failed("nobody is left to ask".into()));
            }
            let until = self.wake();
            let turn = match self.world.wait(until) {
                Some((line, event)) => self.take(line, event),
                None => {
                    self.on_time();
                    Turn::GoOn
                }
            };
            if let Turn::Finished = turn {
                return self.end(true, StepKind::Finished);
            }
        }
    }

    fn end(mut self, is_whole: bool, kind: StepKind) -> Outcome {
        for attempt in [self.active.take(), self.rival.take()]
            .into_iter()
            .flatten()
        {
            if !attempt.is_done {
                self.world.close(attempt.line);
            }
        }
        let place = self.last_place.clone();
        self.note(&place, kind);
        Outcome {
            is_whole,
            place,
            steps: self.steps,
        }
    }

    /// Starts the next place that lets itself be asked; false when none is left.
    fn begin_next(&mut self) -> bool {
        while let Some(place) = self.places.front().cloned() {
            if let Some(attempt) = self.start(&place) {
                let kind = match self.shown.is_empty() {
                    true => StepKind::Asked,
                    false => StepKind::TookOver,
                };
                self.note(&place, kind);
                self.last_place.clone_from(&place);
                self.active = Some(attempt);
                return true;
            }
            self.next_place();
        }
        false
    }

    fn next_place(&mut self) {
        self.places.pop_front();
        self.attempts = 0;
    }

    /// Opens a line, if policy and breaker allow.
    fn start(&mut self, place: &str) -> Option<Attempt> {
        let now = self.world.now();
        let (line, restorer) = if place == Request::DEVICE {
            (self.world.start_device(&self.shown), None)
        } else {
            if !self.health().breaker(place).admit(now) {
                self.note(place, StepKind::BreakerOpen);
                return None;
            }
            let sent = self.send(place);
            match sent {
                Ok(sent) => sent,
                Err(kept) => {
                    self.note(place, StepKind::Kept(kept));
                    return None;
                }
            }
        };
        self.attempts += 1;
        Some(Attempt {
            line,
            place: place.to_owned(),
            began: now,
            first_text: None,
            last_text: None,
            pieces: 0,
            base: self.shown.len(),
            buffer: String::new(),
            is_done: false,
            restorer,
            overlap: match place == Request::DEVICE {
                // The device goes on exactly where the text ends.
                true => Overlap::new(""),
                false => Overlap::new(&self.shown),
            },
        })
    }

    /// The only way to a provider: through the gate, with the label of all earlier attempts.
    fn send(&mut self, place: &str) -> Result<(Line, Option<Restorer>), Kept> {
        let continued;
        let conversation = if self.shown.is_empty() {
            self.request.conversation
        } else {
            let mut extra = self.request.conversation.extra.clone();
            // What is shown is part of the answer that `max_tokens` bounds.
            if let Some(most) = extra.get("max_tokens").and_then(serde_json::Value::as_u64) {
                let left = most.saturating_sub(self.pieces_shown.into()).max(1);
                extra.insert("max_tokens".into(), left.into());
            }
            continued = Conversation {
                local_prefix: Some(self.shown.clone()),
                extra,
                ..self.request.conversation.clone()
            };
            &continued
        };
        let admitted = self.gate.readmit(&self.label, conversation, place)?;
        self.label.classes.extend(&admitted.label().classes);
        let line = self.gate.send(&admitted, &mut Opening(self.world))?;
        let map = admitted.restore_map();
        Ok((line, (!map.is_empty()).then(|| map.restorer())))
    }

    /// When something is to be done though nothing comes.
    fn wake(&mut self) -> Duration {
        let mut wake = self.retry_at.unwrap_or(Duration::MAX);
        if let Some(active) = &self.active {
            wake = wake.min(self.patience_ends(active));
        }
        if self.rival.is_none() {
            wake = wake.min(self.hedge_at().unwrap_or(Duration::MAX));
            wake = wake.min(self.insure_at().unwrap_or(Duration::MAX));
        }
        wake.max(self.world.now())
    }

    /// When an attempt that says nothing counts as failed.
    fn patience_ends(&self, attempt: &Attempt) -> Duration {
        // The device needs its time; nobody else could be more patient.
        if attempt.place == Request::DEVICE {
            return Duration::MAX;
        }
        let (since, limit, usual) = {
            let health = self.health();
            let usual = health.first_text_ms(&attempt.place, 0.95).unwrap_or(0.0);
            match attempt.last_text {
                Some(last) => (last, health.options.between_texts, 0.0),
                None => (attempt.began, health.options.first_text, usual),
            }
        };
        let least = Duration::from_millis(250).max(Duration::from_secs_f32(usual / 1000.0));
        // While the device writes besides, waiting costs nothing.
        let is_insured = attempt.last_text.is_none() && self.is_insurance();
        let limit = match self.request.deadline {
            Some(deadline) if self.may_run_here() && !is_insured => {
                let left = deadline.saturating_sub(since);
                limit.min((left / 8).max(least))
            }
            _ => limit,
        };
        since + limit
    }

    fn may_run_here(&self) -> bool {
        self.places.iter().any(|place| place == Request::DEVICE)
    }

    /// When a second place is asked because the first one says nothing. Only what is public is sent twice.
    fn hedge_at(&self) -> Option<Duration> {
        let active = self.active.as_ref()?;
        let is_silent = active.last_text.is_none() && self.shown.is_empty();
        if !is_silent || !self.may_hedge || !self.label.is_public() {
            return None;
        }
        self.other_place(&active.place)?;
        let usual = self.health().first_text_ms(&active.place, 0.95)?;
        Some(active.began + Duration::from_secs_f32(usual.max(20.0) / 1000.0))
    }

    fn other_place(&self, place: &str) -> Option<String> {
        self.places.iter().find(|other| *other != place).cloned()
    }

    /// When the device must begin so that the deadline is met without the provider.
    fn insure_at(&self) -> Option<Duration> {
        let deadline = self.request.deadline?;
        let is_remote = match &self.active {
            Some(active) => active.place != Request::DEVICE,
            None => true,
        };
        if !is_remote || !self.shown.is_empty() || !self.may_run_here() {
            return None;
        }
        let tokens = self.request.answer_tokens;
        let long = self.seconds(Request::DEVICE, 0, tokens)? * (1.0 + RESERVE);
        let short = self.seconds(Request::DEVICE, 0, tokens / SHORT)?;
        // What not even a short answer could meet any more is not worth the energy.
        let latest = deadline.saturating_sub(Duration::from_secs_f64(short));
        let at = deadline.saturating_sub(Duration::from_secs_f64(long));
        (self.world.now() <= latest).then_some(at)
    }

    /// The time for something has come.
    fn on_time(&mut self) {
        let now = self.world.now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            return;
        }
        if self.rival.is_none() && self.insure_at().is_some_and(|at| at <= now) {
            if let Some(attempt) = self.start(Request::DEVICE) {
                self.note(Request::DEVICE, StepKind::Insured);
                self.rival = Some(attempt);
            }
            return;
        }
        let Some(active) = &self.active else { return };
        if self.patience_ends(active) <= now {
            self.failed(Fault::TimedOut);
            return;
        }
        if self.rival.is_none() && self.hedge_at().is_some_and(|at| at <= now) {
            let other = self.other_place(&active.place);
            let is_affordable = self.health().hedge();
            match other.filter(|_| is_affordable).and_then(|other| {
                let attempt = self.start(&other)?;
                self.note(&other, StepKind::Hedged);
                Some(attempt)
            }) {
                Some(attempt) => self.rival = Some(attempt),
                None => self.may_hedge = false,
            }
        }
    }

    fn take(&mut self, line: Line, event: Event) -> Turn {
        let is_line = |attempt: &Option<Attempt>| attempt.as_ref().is_some_and(|a| a.line == line);
        if is_line(&self.active) {
            self.take_active(event)
        } else if is_line(&self.rival) {
            self.take_rival(event)
        } else {
            Turn::GoOn
        }
    }

    fn take_active(&mut self, event: Event) -> Turn {
        match event {
            Event::Text(text) => {
                self.note_text(true);
                if let Some(active) = &mut self.active {
                    let restored = match &mut active.restorer {
                        Some(restorer) => restorer.push(&text),
                        None => text,
                    };
                    let fresh = active.overlap.push(&restored);
                    self.show(fresh);
                }
                // Who is shown needs no rival; one that is only insurance may still be needed while the overlap is unclear.
                if !self.shown.is_empty()
                    && let Some(rival) = self.rival.take()
                {
                    self.cancel(rival);
                }
                self.hurry();
                Turn::GoOn
            }
            Event::Done => {
                if let Some(mut active) = self.active.take() {
                    let rest = active
                        .restorer
                        .as_mut()
                        .map_or_else(String::new, Restorer::finish);
                    let mut fresh = active.overlap.push(&rest);
                    fresh.push_str(&active.overlap.finish());
                    self.succeeded(&active.place);
                    self.show(fresh);
                    active.is_done = true;
                    self.active = Some(active);
                }
                Turn::Finished
            }
            Event::Failed(fault) => {
                self.failed(fault);
                Turn::GoOn
            }
            Event::Unsure => {
                self.leave_device(StepKind::Unsure);
                Turn::GoOn
            }
        }
    }

    fn take_rival(&mut self, event: Event) -> Turn {
        let is_hedge = !self.is_insurance();
        match event {
            Event::Text(text) => {
                self.note_text(false);
                let Some(rival) = &mut self.rival else {
                    return Turn::GoOn;
                };
                let restored = match &mut rival.restorer {
                    Some(restorer) => restorer.push(&text),
                    None => text,
                };
                let fresh = rival.overlap.push(&restored);
                rival.buffer.push_str(&fresh);
                let is_first = self
                    .active
                    .as_ref()
                    .is_none_or(|active| active.last_text.is_none());
                if is_hedge && is_first {
                    self.promote();
                }
                Turn::GoOn
            }
            Event::Done => {
                if let Some(rival) = &mut self.rival {
                    rival.is_done = true;
                }
                // A whole answer is better than a provider that has not even begun.
                match self.shown.is_empty() {
                    true => self.promote(),
                    false => Turn::GoOn,
                }
            }
            Event::Failed(fault) => {
                if let Some(rival) = self.rival.take() {
                    self.mark_failure(&rival.place, &fault);
                }
                Turn::GoOn
            }
            Event::Unsure => Turn::GoOn,
        }
    }

    fn is_insurance(&self) -> bool {
        let is_device = |attempt: &Attempt| attempt.place == Request::DEVICE;
        self.rival.as_ref().is_some_and(is_device) && self.request.deadline.is_some()
    }

    /// The rival becomes who is shown.
    fn promote(&mut self) -> Turn {
        let Some(mut rival) = self.rival.take() else {
            return Turn::GoOn;
        };
        if let Some(active) = self.active.take() {
            self.cancel(active);
        }
        self.retry_at = None;
        while self
            .places
            .front()
            .is_some_and(|place| *place != rival.place)
        {
            // What failed or was too slow is not asked again before the rival fails, too.
            self.places.rotate_left(1);
        }
        self.last_place.clone_from(&rival.place);
        self.pieces_shown += rival.pieces;
        let text = std::mem::take(&mut rival.buffer);
        let is_done = rival.is_done;
        self.active = Some(rival);
        self.show(text);
        match is_done {
            true => self.take_active(Event::Done),
            false => Turn::GoOn,
        }
    }

    /// The active attempt failed: again, by the rival, or by the next place.
    fn failed(&mut self, fault: Fault) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        active.is_done = true;
        if fault == Fault::TimedOut {
            self.world.close(active.line);
        }
        self.mark_failure(&active.place, &fault);
        // What is held because it may be a repetition was never shown: it is made again.
        if self
            .rival
            .as_ref()
            .is_some_and(|rival| rival.base == self.shown.len())
        {
            self.promote();
            return;
        }
        if let Some(rival) = self.rival.take() {
            self.cancel(rival);
        }
        let asked = match &fault {
            Fault::Refused { retry_after, .. } => *retry_after,
            _ => None,
        };
        let now = self.world.now();
        // A stream that broke is taken over by the device at once, where that is allowed to answer.
        let is_worth_it = fault.is_passing()
            && active.place != Request::DEVICE
            && (self.shown.is_empty() || !self.may_run_here());
        let pause = match is_worth_it {
            true => self.health().retry(self.attempts, asked),
            false => None,
        };
        let latest = self.insure_at().unwrap_or(Duration::MAX);
        match pause.map(|pause| now.saturating_add(pause)) {
            Some(at) if at <= latest && at <= now + self.longest_pause() => {
                self.retry_at = Some(at)
            }
            _ => self.next_place(),
        }
    }

    /// Nobody waits longer for a retry than the device, or another place, would take to begin.
    fn longest_pause(&self) -> Duration {
        match self.places.len() {
            1 => Duration::from_secs(30),
            _ => Duration::from_secs(1),
        }
    }

    fn mark_failure(&mut self, place: &str, fault: &Fault) {
        let now = self.world.now();
        if place != Request::DEVICE {
            self.health()
                .breaker(place)
                .record(now, !fault.is_passing());
        }
        self.failed.insert(place.to_owned());
        self.note(place, StepKind::Failed(fault.to_string()));
    }

    fn succeeded(&mut self, place: &str) {
        let now = self.world.now();
        if place != Request::DEVICE {
            self.health().breaker(place).record(now, true);
        }
    }

    /// Leaves a place that would miss the deadline for one that would come nearer to it.
    fn hurry(&mut self) {
        let (Some(deadline), Some(active)) = (self.request.deadline, &self.active) else {
            return;
        };
        if active.pieces < ENOUGH_PIECES {
            return;
        }
        let now = self.world.now();
        let since_first = now.saturating_sub(active.first_text.unwrap_or(now));
        let left = deadline.saturating_sub(now).as_secs_f64();
        let here = since_first.as_secs_f64() / f64::from(active.pieces - 1);
        let stay = self.chance(left / here.max(1e-6));
        let better = self
            .places
            .iter()
            // Who failed already would probably cost more time than it saves.
            .filter(|place| **place != active.place && !self.failed.contains(*place))
            .filter_map(|place| {
                let reliability = match *place == Request::DEVICE {
                    true => 1.0,
                    false => RELIABILITY,
                };
                let tokens = self.tokens_within(place, left)?;
                Some((self.chance(tokens) * reliability, place.clone()))
            })
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(go, _)| *go > stay);
        if let Some((_, place)) = better {
            self.move_to(&place, StepKind::TooSlow);
        }
    }

    /// The probability that what is left of an answer has no more tokens, if few answers are long: one in a hundred has
    /// `answer_tokens`, and how long it is already says nothing about the rest.
    fn chance(&self, tokens: f64) -> f64 {
        let long = f64::from(self.request.answer_tokens.max(1));
        1.0 - (-(100.0_f64.ln()) * tokens.max(0.0) / long).exp()
    }

    /// Tokens that a place probably writes within some seconds, after the prompt and what is written.
    fn tokens_within(&self, place: &str, seconds: f64) -> Option<f64> {
        let begin = self.seconds(place, self.pieces_shown, 0)?;
        let one = self.seconds(place, self.pieces_shown, 1)? - begin;
        Some((seconds - begin) / one.max(1e-6))
    }

    /// Seconds that a place probably takes to write `left` tokens after the prompt and `written` tokens.
    fn seconds(&self, place: &str, written: u32, left: u32) -> Option<f64> {
        let known = self.request.places.iter().find(|(name, _)| name == place);
        let prompt = self.request.prompt_tokens.saturating_add(written);
        known.map(|(_, latency)| f64::from(latency.answer_ms(prompt, left, 1.0)) / 1000.0)
    }

    /// The cloud goes on where the device's model lost its way, if it may.
    fn leave_device(&mut self, why: StepKind) {
        let Some(active) = &self.active else { return };
        let next = self.other_place(&active.place);
        if let Some(next) = next.filter(|_| active.place == Request::DEVICE) {
            self.move_to(&next, why);
        }
    }

    /// Another place goes on from what is shown. The one that is left is the last resort.
    fn move_to(&mut self, next: &str, why: StepKind) {
        let Some(attempt) = self.start(next) else {
            self.places.retain(|place| place != next);
            return;
        };
        if let Some(left) = self.active.replace(attempt) {
            self.note(&left.place.clone(), why);
            self.world.close(left.line);
            self.places
                .retain(|place| *place != left.place && place != next);
            // The device, which can hardly fail, comes next if this was a mistake.
            match left.place == Request::DEVICE {
                true => self.places.push_front(left.place),
                false => self.places.push_back(left.place),
            }
        }
        self.note(next, StepKind::TookOver);
        self.last_place = next.to_owned();
        self.attempts = 1;
        self.places.push_front(next.to_owned());
    }

    fn note_text(&mut self, is_active: bool) {
        let now = self.world.now();
        let attempt = match is_active {
            true => &mut self.active,
            false => &mut self.rival,
        };
        let Some(attempt) = attempt else { return };
        attempt.pieces += 1;
        self.pieces_shown += u32::from(is_active);
        attempt.last_text = Some(now);
        if attempt.first_text.is_none() {
            attempt.first_text = Some(now);
            let (place, time) = (attempt.place.clone(), now.saturating_sub(attempt.began));
            self.health().note_first_text(&place, time);
        }
    }

    fn show(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        let place = self.last_place.clone();
        if self.has_given.as_ref() != Some(&place) {
            let place = place.clone();
            self.is_heard &= (self.give)(Output::From { place });
        }
        self.has_given = Some(place);
        self.shown.push_str(&text);
        self.is_heard &= (self.give)(Output::Text(text));
    }

    fn cancel(&mut self, attempt: Attempt) {
        if !attempt.is_done {
            self.world.close(attempt.line);
        }
        if attempt.place != Request::DEVICE {
            // A trial of a half-open breaker that was cut short says nothing against the provider.
            let now = self.world.now();
            if attempt.last_text.is_some() {
                self.health().breaker(&attempt.place).record(now, true);
            }
        }
        self.note(&attempt.place, StepKind::Cancelled);
    }

    fn note(&mut self, place: &str, kind: StepKind) {
        let at = self.world.now().saturating_sub(self.began);
        self.steps.push(Step {
            at_ms: at.as_millis().try_into().unwrap_or(u64::MAX),
            place: place.to_owned(),
            kind,
        });
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
