//! Requests that may run elsewhere: the policy's gate and the router decide, [`ondine_hybrid::cloud::conduct`] drives the answer
//! over real connections (`world.rs`, `client.rs`), on a thread of its own.

mod battery;
mod client;
mod events;
mod world;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ondine_hybrid::cloud::{Health, HealthOptions, Output, Request, Step, StepKind, conduct};
use ondine_hybrid::egress::{Conversation, Gate, Message};
use ondine_hybrid::policy::Policy;
use ondine_hybrid::route::{
    Calibration, Candidate, CapabilityModel, Conditions, LatencyProfile, Lost, MovingQuantile,
    Needs, Receipt, Router, Task, Tier,
};
use ondine_runtime::{GenerationStats, StopReason};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub use client::CloudError;
use client::{Client, Ended};
use world::Connections;
pub(crate) use world::OnDevicePart;

use crate::engine::{Outcome, Stopped};
use crate::error::ApiError;
use crate::placement::{Decision, Place, Placed, Placement, Question};

/// Requests that are conducted at the same time at most; each has a thread that mostly waits.
const MOST_CONDUCTED: usize = 256;

/// How requests are routed.
#[derive(Debug, Clone, Default)]
pub struct HybridOptions {
    /// Retries, hedges and patience.
    pub health: HealthOptions,
    /// Mean log-probability of the device's last tokens below which a provider takes over, if the policy lets it; none never.
    pub unsure_below: Option<f32>,
    /// Certificates (X.509 in DER) of those who vouch for providers; the system's where there are none.
    pub authorities: Vec<Vec<u8>>,
}

/// Decides by a policy, and asks its providers.
pub struct Hybrid {
    shared: Arc<Shared>,
}

struct Shared {
    gate: Gate,
    router: Mutex<Router>,
    health: Mutex<Health>,
    client: Arc<Client>,
    options: HybridOptions,
    epoch: Instant,
    /// Milliseconds between two pieces of an answer, by provider.
    gaps: Mutex<BTreeMap<String, MovingQuantile>>,
    /// Day since 1970, and the money spent on it.
    spent: Mutex<(u64, f64)>,
    conducted: AtomicUsize,
    counts: Mutex<BTreeMap<(String, &'static str), u64>>,
}

impl Hybrid {
    /// A router for a policy; keys come from the environment.
    ///
    /// # Errors
    /// When a key is missing, or a dictionary of the policy cannot be used.
    pub fn new(policy: Policy, options: HybridOptions) -> Result<Self, CloudError> {
        Self::with_keys(policy, options, &|name| std::env::var(name).ok())
    }

    /// As [`Hybrid::new`], with keys from elsewhere.
    ///
    /// # Errors
    /// As [`Hybrid::new`].
    pub fn with_keys(
        policy: Policy,
        options: HybridOptions,
        keys: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, CloudError> {
        let parts = |error: &dyn std::fmt::Display| CloudError::Parts(error.to_string());
        let capability = CapabilityModel::shipped().map_err(|error| parts(&error))?;
        let client = Arc::new(Client::new(&policy, keys, &options.authorities)?);
        let seed = ondine_runtime::sample::SamplingOptions::random_seed();
        Ok(Hybrid {
            shared: Arc::new(Shared {
                router: Mutex::new(Router::new(policy.clone(), capability)),
                gate: Gate::new(policy).map_err(|error| parts(&error))?,
                health: Mutex::new(Health::new(options.health.clone(), seed)),
                client,
                options,
                epoch: Instant::now(),
                gaps: Mutex::default(),
                spent: Mutex::default(),
                conducted: AtomicUsize::new(0),
                counts: Mutex::default(),
            }),
        })
    }
}

impl Placement for Hybrid {
    fn place(&self, question: &Question<'_>) -> Result<Placed, ApiError> {
        let shared = &self.shared;
        let conversation = Conversation {
            messages: question
                .messages
                .iter()
                .map(|message| Message {
                    role: message.role().to_owned(),
                    content: message.content().unwrap_or_default().to_owned(),
                })
                .collect(),
            local_prefix: None,
            extra: question.remote.cloned().unwrap_or_default(),
        };
        let label = shared.gate.label(&conversation);
        let prompt = question
            .messages
            .iter()
            .rev()
            .find(|message| message.role() == "user")
            .and_then(|message| message.content())
            .unwrap_or_default();
        let prompt_tokens = u32::try_from(question.prompt_tokens).unwrap_or(u32::MAX);
        let allowed = question.deadline.map(|time| time.as_millis() as u64);
        let usual = shared.gate.policy().budgets.deadline_ms;
        let deadline_ms = [allowed, usual].into_iter().flatten().min();
        let candidates = shared.candidates(question);
        let task = Task {
            prompt,
            class: question.task,
            label: &label,
            prompt_tokens,
            most_tokens: question
                .max_tokens
                .map(|most| u32::try_from(most).unwrap_or(u32::MAX)),
            deadline_ms,
            needs: Needs {
                // Tools are called on the device: their results would have to be carried over a handover.
                tools: question.needs_tools,
                vision: false,
            },
        };
        let conditions = Conditions {
            online: question.remote.is_some(),
            battery: battery::charge(),
            throttled: false,
            spent_today: shared.spent_today(),
        };
        let receipt = lock(&shared.router).decide(&task, &candidates, &conditions);
        let barred = |lost: Option<Lost>| {
            let is_closed = |lost| {
                matches!(
                    lost,
                    Lost::Policy
                        | Lost::Offline
                        | Lost::BreakerOpen
                        | Lost::ContextLength
                        | Lost::Capability
                        | Lost::Budget
                )
            };
            lost.is_some_and(is_closed)
        };
        let mut places: Vec<(String, LatencyProfile)> = receipt
            .candidates
            .iter()
            .zip(&candidates)
            .filter(|(judged, _)| !barred(judged.lost))
            .map(|(judged, candidate)| (judged.name.clone(), candidate.latency.clone()))
            .collect();
        places.sort_by_key(|(name, _)| Some(name) != receipt.chosen.as_ref());
        let Some(chosen) = receipt.chosen.clone() else {
            return Err(ApiError::no_place(&receipt));
        };
        let is_here = chosen == Request::DEVICE;
        let reason = match question.stays {
            Some(why) if is_here => format!("{why} stays on the device"),
            _ => reason(&receipt, is_here),
        };
        let is_only_here = places.iter().all(|(name, _)| name == Request::DEVICE);
        let answer_tokens = receipt.task.answer_tokens[1];
        shared.count(&chosen, "chosen");
        let decision = Decision {
            place: match is_here {
                true => Place::Device,
                false => Place::Provider(chosen),
            },
            reason,
            route: Some(Box::new(receipt)),
        };
        let plan = (!is_only_here).then(|| {
            Box::new(Plan {
                shared: shared.clone(),
                conversation,
                label,
                places,
                prompt_tokens,
                answer_tokens,
                task: question.task.to_owned(),
            })
        });
        Ok(Placed { decision, plan })
    }

    fn figures(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "# HELP ondine_route_total Decisions and what happened on the way to an answer, by place.\n# TYPE ondine_route_total counter"
        );
        for ((place, what), count) in lock(&self.shared.counts).iter() {
            let _ = writeln!(
                out,
                "ondine_route_total{{place=\"{place}\",what=\"{what}\"}} {count}"
            );
        }
        let _ = writeln!(
            out,
            "# HELP ondine_money_today Money spent today, in the policy's currency.\n# TYPE ondine_money_today gauge\nondine_money_today {}",
            self.shared.spent_today()
        );
    }
}

/// Why a place was chosen, in a few words.
fn reason(receipt: &Receipt, is_here: bool) -> String {
    let lost: Vec<Lost> = receipt.candidates.iter().filter_map(|c| c.lost).collect();
    let first = |wanted: &[Lost]| lost.iter().any(|lost| wanted.contains(lost));
    let words = match is_here {
        true if first(&[Lost::Policy]) => "the policy keeps it on the device",
        true if first(&[Lost::Offline, Lost::BreakerOpen]) => "no provider can be reached",
        true if first(&[Lost::Budget]) => "the budget is used up",
        true => "good enough, in time, and the cheapest",
        false if first(&[Lost::Quality]) => "the device would probably not answer well enough",
        false if first(&[Lost::Deadline]) => "the device would be too slow",
        false => "the best place that is open",
    };
    words.to_owned()
}

impl Shared {
    fn candidates(&self, question: &Question<'_>) -> Vec<Candidate> {
        let device = Candidate {
            name: Request::DEVICE.into(),
            local: true,
            latency: LatencyProfile {
                // No network, and the queue is counted by the load.
                start_ms: 5.0,
                prompt_ms_per_token: question
                    .prompt_token_ms
                    .unwrap_or(LatencyProfile::ASSUMED_DEVICE.prompt_ms_per_token),
                answer_ms_per_token: question
                    .token_ms
                    .unwrap_or(LatencyProfile::ASSUMED_DEVICE.answer_ms_per_token),
            },
            tier: Tier::Weak,
            calibration: Calibration::default(),
            context_tokens: u32::try_from(question.context).unwrap_or(u32::MAX),
            offers: Needs {
                tools: true,
                vision: false,
            },
            prices: [0.0; 2],
            joules_per_token: 0.3,
            breaker_open: false,
            load: 1.0 + question.waiting as f32,
        };
        let mut candidates = vec![device];
        let now = self.epoch.elapsed();
        let mut health = lock(&self.health);
        let gaps = lock(&self.gaps);
        for provider in self.gate.policy().providers() {
            let gap = gaps.get(&provider.name).and_then(|gaps| gaps.quantile(0.9));
            let assumed = LatencyProfile::ASSUMED_PROVIDER;
            let latency = LatencyProfile {
                start_ms: health
                    .first_text_ms(&provider.name, 0.95)
                    .unwrap_or(assumed.start_ms),
                // The time to the first text holds it.
                prompt_ms_per_token: 0.0,
                answer_ms_per_token: gap.unwrap_or(assumed.answer_ms_per_token),
            };
            candidates.push(Candidate {
                breaker_open: health.breaker(&provider.name).is_open(now),
                offers: Needs::default(),
                ..Candidate::of(provider, latency)
            });
        }
        candidates
    }

    fn spent_today(&self) -> f64 {
        let spent = lock(&self.spent);
        match spent.0 == today() {
            true => spent.1,
            false => 0.0,
        }
    }

    fn spend(&self, place: &str, prompt: u32, answer: usize) {
        let providers = self.gate.policy().providers();
        let Some(provider) = providers.iter().find(|provider| provider.name == place) else {
            return;
        };
        let price =
            f64::from(prompt) * provider.input_price + answer as f64 * provider.output_price;
        let mut spent = lock(&self.spent);
        if spent.0 != today() {
            *spent = (today(), 0.0);
        }
        spent.1 += price / 1e6;
    }

    fn count(&self, place: &str, what: &'static str) {
        *lock(&self.counts)
            .entry((place.to_owned(), what))
            .or_default() += 1;
    }
}

fn today() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs() / 86_400)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request that may run in several places.
pub(crate) struct Plan {
    shared: Arc<Shared>,
    conversation: Conversation,
    label: ondine_hybrid::egress::Label,
    places: Vec<(String, LatencyProfile)>,
    prompt_tokens: u32,
    answer_tokens: u32,
    task: String,
}

/// News of a conducted answer.
#[derive(Debug)]
pub(crate) enum News {
    /// Who writes what follows: place, model and region.
    From {
        place: String,
        model: Option<String>,
        region: Option<String>,
    },
    Text(String),
    /// It is at its end, or failed.
    Ended(Box<Ending>),
}

/// How a conducted answer ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) result: Result<Outcome, ApiError>,
    pub(crate) steps: Vec<Step>,
}

impl Plan {
    /// Begins, on a thread of its own; dropping the receiver gives up.
    pub(crate) fn begin(
        self: Box<Self>,
        device: OnDevicePart,
    ) -> Result<UnboundedReceiver<News>, ApiError> {
        let shared = self.shared.clone();
        if shared.conducted.fetch_add(1, Ordering::AcqRel) >= MOST_CONDUCTED {
            shared.conducted.fetch_sub(1, Ordering::AcqRel);
            return Err(ApiError::busy());
        }
        let runtime = Handle::current();
        let (sender, receiver) = unbounded_channel();
        let thread = std::thread::Builder::new().name("route".into());
        let spawned = thread.spawn(move || {
            let shared = self.shared.clone();
            self.run(runtime, device, &sender);
            shared.conducted.fetch_sub(1, Ordering::AcqRel);
        });
        match spawned {
            Ok(_) => Ok(receiver),
            Err(_) => {
                shared.conducted.fetch_sub(1, Ordering::AcqRel);
                Err(ApiError::busy())
            }
        }
    }

    fn run(&self, runtime: Handle, device: OnDevicePart, sender: &UnboundedSender<News>) {
        let shared = &self.shared;
        let begun = Instant::now();
        let deadline = device
            .deadline
            .map(|at| at.saturating_duration_since(shared.epoch));
        let mut world = Connections::new(
            runtime,
            shared.client.clone(),
            device,
            shared.options.unsure_below,
            shared.epoch,
        );
        let gone = sender.clone();
        world.watch(async move { gone.closed().await });
        let mut writer = String::new();
        let mut pieces: Vec<(Instant, bool)> = Vec::new();
        let mut writers = 0;
        let outcome = conduct(
            &shared.gate,
            &shared.health,
            Request {
                conversation: &self.conversation,
                label: self.label.clone(),
                places: self.places.clone(),
                deadline,
                prompt_tokens: self.prompt_tokens,
                answer_tokens: self.answer_tokens,
            },
            &mut world,
            &mut |output| match output {
                Output::From { place } => {
                    let providers = shared.gate.policy().providers();
                    let provider = providers.iter().find(|provider| provider.name == place);
                    writer.clone_from(&place);
                    writers += 1;
                    let news = News::From {
                        place,
                        model: provider.map(|provider| provider.model.clone()),
                        region: provider.map(|provider| provider.region.clone()),
                    };
                    sender.send(news).is_ok()
                }
                Output::Text(text) => {
                    pieces.push((Instant::now(), writer != Request::DEVICE));
                    sender.send(News::Text(text)).is_ok()
                }
            },
        );
        let ended = world.ended().filter(|_| outcome.is_whole);
        self.learn(&outcome.steps, &outcome.place, &pieces, ended);
        let mut result = self.result(&world, begun, &pieces, ended);
        if let (Ok(outcome), 1, Some(tokens)) = (&mut result, writers, ended.and_then(|e| e.tokens))
        {
            // Who wrote it all knows how many tokens it was.
            outcome.stats.generated_tokens = tokens;
        }
        let ending = Ending {
            result,
            steps: outcome.steps,
        };
        // Whoever went away does not want to know.
        let _ = sender.send(News::Ended(Box::new(ending)));
    }

    fn result(
        &self,
        world: &Connections,
        begun: Instant,
        pieces: &[(Instant, bool)],
        ended: Option<Ended>,
    ) -> Result<Outcome, ApiError> {
        let stopped = match ended {
            Some(ended) => ended.stopped,
            None if world.is_late() && !pieces.is_empty() => Stopped::Deadline,
            None if world.is_late() => return Err(crate::engine::EngineError::Deadline.into()),
            None => return Err(ApiError::all_failed()),
        };
        let first = pieces.first().map_or_else(Instant::now, |piece| piece.0);
        let last = pieces.last().map_or(first, |piece| piece.0);
        Ok(Outcome {
            stopped,
            stats: GenerationStats {
                prompt_tokens: self.prompt_tokens as usize,
                generated_tokens: pieces.len(),
                time_to_first_token: first - begun,
                prefill: first - begun,
                decode: last - first,
                ..GenerationStats::default()
            },
            queued: Duration::ZERO,
            is_complete: stopped != Stopped::By(StopReason::Length),
        })
    }

    /// Lengths, speeds, money and counts, for the decisions to come.
    fn learn(&self, steps: &[Step], place: &str, pieces: &[(Instant, bool)], ended: Option<Ended>) {
        let shared = &self.shared;
        for step in steps {
            shared.count(&step.place, name(&step.kind));
        }
        let asked = steps.iter().filter(|step| {
            matches!(
                step.kind,
                StepKind::Asked | StepKind::Hedged | StepKind::TookOver
            )
        });
        for step in asked {
            shared.spend(&step.place, self.prompt_tokens, 0);
        }
        let remote = pieces.iter().filter(|piece| piece.1).count();
        shared.spend(place, 0, remote);
        if let Some(ended) = ended.filter(|ended| !ended.stopped.is_cut()) {
            let tokens = ended.tokens.unwrap_or(0).max(pieces.len());
            let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
            lock(&shared.router).lengths.add(&self.task, tokens);
        }
        let times: Vec<Instant> = pieces.iter().filter(|p| p.1).map(|p| p.0).collect();
        if let ([first, .., last], count @ 4..) = (times.as_slice(), times.len()) {
            let gap = (*last - *first).as_secs_f32() * 1000.0 / (count - 1) as f32;
            let mut gaps = lock(&shared.gaps);
            gaps.entry(place.to_owned()).or_default().add(gap);
        }
    }
}

fn name(kind: &StepKind) -> &'static str {
    match kind {
        StepKind::Asked => "asked",
        StepKind::Hedged => "hedged",
        StepKind::Insured => "insured",
        StepKind::TookOver => "took_over",
        StepKind::Failed(_) => "failed",
        StepKind::Kept(_) => "kept",
        StepKind::BreakerOpen => "breaker_open",
        StepKind::TooSlow => "too_slow",
        StepKind::Unsure => "unsure",
        StepKind::Cancelled => "cancelled",
        StepKind::Finished => "finished",
    }
}
