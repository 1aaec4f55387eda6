//! A world in which everything goes wrong at known rates: a clock that jumps, a device and two providers whose answers are known.
//!
//! Only clock and connections are made up; gate, router, breakers, retries, hedges and handovers are the library's own.

use ondine_hybrid::cloud::{
    Event, Fault, Health, HealthOptions, Line, Output, Request, World, conduct,
};
use ondine_hybrid::egress::{Cleared, Conversation, Gate, Message};
use ondine_hybrid::policy::Policy;
use ondine_hybrid::route::{
    Calibration, Candidate, CapabilityModel, Conditions, LatencyProfile, Lost, Needs, Router, Task,
    Tier,
};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// What is counted.
#[derive(Debug, Default)]
pub struct Figures {
    pub requests: u64,
    pub whole: u64,
    /// Answers with a token too few, too many or in the wrong place.
    pub wrong: u64,
    /// Requests with a deadline that somebody could have met, and those of them that were met.
    pub possible: u64,
    pub met: u64,
    /// Requests with data that must stay, and bytes of it that left.
    pub private: u64,
    pub leaked: u64,
    pub hedged: u64,
    /// How often each step was taken.
    pub steps: BTreeMap<String, u64>,
    /// Missed deadlines by the place that finished.
    pub missed: BTreeMap<String, u64>,
}

const POLICY: &str = r#"
version = 1
name = "simulated"
quality_target = 0.6
default = "placeholder"
[classes]
financial = "local_only"
[[providers]]
name = "near"
endpoint = "https://near.example/v1"
model = "m"
region = "eu"
output_price = 2.0
[[providers]]
name = "far"
endpoint = "https://far.example/v1"
model = "m"
region = "eu"
output_price = 1.0
"#;

const PROVIDERS: [&str; 2] = ["near", "far"];
const EMAIL: &str = "jane.doe@example.org";
const CARD: &str = "4111 1111 1111 1111";
const DEVICE: LatencyProfile = LatencyProfile {
    start_ms: 5.0,
    prompt_ms_per_token: 1.0,
    answer_ms_per_token: 15.0,
};
const LONGEST_ANSWER: u32 = 400;

/// Simulates `count` requests.
pub fn simulate(count: u64, seed: u64) -> Figures {
    let policy = Policy::parse(POLICY).expect("a policy");
    let gate = Gate::new(policy.clone()).expect("a gate");
    let capability = CapabilityModel::shipped().expect("a model");
    let mut router = Router::new(policy.clone(), capability);
    let health = Mutex::new(Health::new(HealthOptions::default(), seed));
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut world = Virtual::new(seed);
    let mut figures = Figures::default();
    for request in 0..count {
        world.next_request(request, &mut random);
        let (prompt, secret) = prompt(&mut random);
        let conversation = Conversation {
            messages: vec![Message {
                role: "user".into(),
                content: prompt.clone(),
            }],
            ..Conversation::default()
        };
        let label = gate.label(&conversation);
        let prompt_tokens = (prompt.len() / 4) as u32;
        let deadline_ms = (random.below(10) < 6).then(|| 1000 + random.below(19_000));
        // Some questions the device answers well, some not.
        let is_easy = random.below(2) == 0;
        let candidates = world.candidates(&policy, &health, is_easy);
        let conditions = Conditions {
            // The system notices most, not all, of the time without a connection.
            online: !(world.is_offline() && random.below(10) < 7),
            battery: Some(world.battery),
            throttled: world.is_throttled(),
            spent_today: 0.0,
        };
        let task = Task {
            prompt: &prompt,
            class: "chat",
            label: &label,
            prompt_tokens,
            most_tokens: None,
            deadline_ms,
            needs: Needs::default(),
        };
        let receipt = router.decide(&task, &candidates, &conditions);
        let open = receipt
            .candidates
            .iter()
            .zip(&candidates)
            .filter(|(judged, _)| {
                !matches!(
                    judged.lost,
                    Some(Lost::Policy | Lost::Offline | Lost::BreakerOpen | Lost::ContextLength)
                )
            });
        let mut places: Vec<(String, LatencyProfile)> = open
            .map(|(judged, candidate)| (judged.name.clone(), candidate.latency.clone()))
            .collect();
        places.sort_by_key(|(name, _)| Some(name) != receipt.chosen.as_ref());
        world.secrets = secret.into_iter().collect();
        world.prompt_tokens = prompt_tokens;
        let begun = world.now();
        let deadline = deadline_ms.map(|allowed| begun + Duration::from_millis(allowed));
        let is_possible =
            deadline.is_some_and(|deadline| world.could_meet(deadline, label.local_only));
        let mut answer = String::new();
        let outcome = conduct(
            &gate,
            &health,
            Request {
                conversation: &conversation,
                label,
                places,
                deadline,
                prompt_tokens,
                answer_tokens: receipt.task.answer_tokens[1],
            },
            &mut world,
            &mut |output| {
                if let Output::Text(text) = output {
                    answer.push_str(&text);
                }
                true
            },
        );
        router.lengths.add("chat", world.length);
        figures.requests += 1;
        figures.whole += u64::from(outcome.is_whole);
        figures.wrong += u64::from(outcome.is_whole && answer != world.text(0, world.length));
        figures.private += u64::from(!world.secrets.is_empty());
        figures.leaked += std::mem::take(&mut world.leaked);
        if is_possible {
            let is_met =
                outcome.is_whole && deadline.is_some_and(|deadline| world.now() <= deadline);
            figures.possible += 1;
            figures.met += u64::from(is_met);
            if !is_met {
                *figures.missed.entry(outcome.place.clone()).or_default() += 1;
            }
        }
        for step in &outcome.steps {
            let value = serde_json::to_value(&step.kind).expect("JSON");
            let name = value["step"].as_str().unwrap_or_default();
            *figures.steps.entry(name.to_owned()).or_default() += 1;
        }
    }
    figures.hedged = health.lock().expect("nobody failed").hedges().0;
    figures
}

fn prompt(random: &mut Random) -> (String, Option<&'static str>) {
    let topics = [
        "rivers",
        "bread",
        "chess",
        "volcanoes",
        "tax law",
        "graph colouring",
    ];
    let topic = topics[random.below(topics.len() as u64) as usize];
    let question = format!(
        "Explain {topic} to me in a few words, number {}.",
        random.below(1000)
    );
    match random.below(10) {
        0 => (format!("{question} Then write to {EMAIL}."), Some(EMAIL)),
        1 => (format!("{question} My card is {CARD}."), Some(CARD)),
        _ => (question, None),
    }
}

pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 33) % bound.max(1)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

struct Virtual {
    seed: u64,
    now: Duration,
    request: u64,
    /// Tokens of the whole answer.
    length: u32,
    prompt_tokens: u32,
    /// How much slower than its profile the device is today.
    device_noise: f64,
    battery: f32,
    offline_until: Duration,
    /// Until when each provider is down.
    down_until: [Duration; 2],
    /// Attempts of this request at each provider.
    attempts: [u64; 2],
    secrets: Vec<&'static str>,
    leaked: u64,
    lines: Vec<Running>,
    next_line: u64,
    tokens: Vec<String>,
}

/// What will happen on a line.
#[derive(Debug, Clone)]
struct Running {
    line: Line,
    /// The next token to write.
    next: u32,
    at: Duration,
    step: Duration,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Whole,
    /// Nothing, then this fault.
    Refused(u16, Option<Duration>),
    Unreachable,
    /// Breaks off before this token.
    Breaks(u32),
    /// Says nothing more from this token on.
    Hangs(u32),
}

impl Virtual {
    fn new(seed: u64) -> Self {
        Virtual {
            seed,
            now: Duration::ZERO,
            request: 0,
            length: 0,
            prompt_tokens: 0,
            device_noise: 1.0,
            battery: 1.0,
            offline_until: Duration::ZERO,
            down_until: [Duration::ZERO; 2],
            attempts: [0; 2],
            secrets: Vec::new(),
            leaked: 0,
            lines: Vec::new(),
            next_line: 0,
            tokens: (0..=LONGEST_ANSWER)
                .map(|index| format!(" w{index}"))
                .collect(),
        }
    }

    fn next_request(&mut self, request: u64, random: &mut Random) {
        self.lines.clear();
        self.request = request;
        self.attempts = [0; 2];
        self.now += Duration::from_millis(random.below(2000));
        self.length = ((-random.unit().max(1e-9).ln() * 35.0) as u32 + 1).min(LONGEST_ANSWER);
        self.device_noise = 0.95 + random.unit() * 0.1;
        self.battery = (self.battery - 0.0005).max(0.05);
        if random.below(500) == 0 {
            self.battery = 1.0;
        }
        if random.below(200) == 0 {
            self.offline_until = self.now + Duration::from_secs(random.below(120));
        }
        for provider in 0..PROVIDERS.len() {
            // Outages of seconds to minutes make breakers flap.
            if random.below(300) == 0 {
                self.down_until[provider] = self.now + Duration::from_secs(random.below(90));
            }
        }
    }

    fn is_offline(&self) -> bool {
        self.now < self.offline_until
    }

    fn is_throttled(&self) -> bool {
        self.battery < 0.1
    }

    fn device_step(&self) -> f64 {
        let slowed = if self.is_throttled() { 2.0 } else { 1.0 };
        f64::from(DEVICE.answer_ms_per_token) * self.device_noise * slowed
    }

    fn candidates(&self, policy: &Policy, health: &Mutex<Health>, is_easy: bool) -> Vec<Candidate> {
        let mut health = health.lock().expect("nobody failed");
        let slowed = if self.is_throttled() { 2.0 } else { 1.0 };
        let mut candidates = vec![Candidate {
            name: Request::DEVICE.into(),
            local: true,
            latency: LatencyProfile {
                answer_ms_per_token: DEVICE.answer_ms_per_token * slowed,
                ..DEVICE
            },
            tier: Tier::Weak,
            calibration: Calibration::starting_at(if is_easy { 1.0 } else { -1.0 }),
            context_tokens: 8192,
            offers: Needs::default(),
            prices: [0.0; 2],
            joules_per_token: 0.1,
            breaker_open: false,
            load: 1.0,
        }];
        for provider in policy.providers() {
            let latency = LatencyProfile {
                start_ms: health.first_text_ms(&provider.name, 0.95).unwrap_or(600.0),
                prompt_ms_per_token: 0.0,
                answer_ms_per_token: 6.0,
            };
            candidates.push(Candidate {
                breaker_open: health.breaker(&provider.name).is_open(self.now),
                ..Candidate::of(provider, latency)
            });
        }
        candidates
    }

    /// What happens on the attempt of this request at a provider, if it is asked now to go on from token `from`.
    fn attempt(&self, provider: usize, attempt: u64, from: u32) -> Running {
        let key = self.seed
            ^ self.request.wrapping_mul(0x9e37_79b9)
            ^ (provider as u64) << 60
            ^ attempt << 50;
        let mut random = Random(key.wrapping_mul(0xd6e8_feb8_6659_fd93) | 1);
        random.next();
        let mut first = 150.0 + random.unit() * 250.0 + 100.0 * provider as f64;
        let mut step = 4.0 + random.unit() * 4.0;
        let breaks_at = from + random.below(u64::from(self.length - from) + 1) as u32;
        let end = match random.below(1000) {
            _ if self.is_offline() => End::Unreachable,
            0..900 if self.now < self.down_until[provider] => End::Refused(503, None),
            0..20 => End::Refused(429, Some(Duration::from_millis(random.below(2000)))),
            20..40 => End::Refused(500, None),
            40..45 => End::Refused(400, None),
            45..65 => End::Breaks(breaks_at),
            65..80 => End::Hangs(breaks_at),
            80..100 => {
                first *= 10.0;
                End::Whole
            }
            100..120 => {
                step *= 10.0;
                End::Whole
            }
            _ => End::Whole,
        };
        Running {
            line: Line(0),
            next: from,
            at: self.now + Duration::from_secs_f64(first / 1000.0),
            step: Duration::from_secs_f64(step / 1000.0),
            end,
        }
    }

    /// Whether the device, or a provider that may be asked and is asked at once, would be in time.
    fn could_meet(&self, deadline: Duration, is_local_only: bool) -> bool {
        let prompt = f64::from(DEVICE.start_ms)
            + f64::from(self.prompt_tokens) * f64::from(DEVICE.prompt_ms_per_token);
        let device = (prompt + self.device_step() * f64::from(self.length)) / 1000.0;
        let device = self.now + Duration::from_secs_f64(device);
        let providers = (0..PROVIDERS.len())
            .filter(|_| !is_local_only)
            .any(|provider| {
                let attempt = self.attempt(provider, 0, 0);
                attempt.end == End::Whole && attempt.at + attempt.step * self.length <= deadline
            });
        device <= deadline || providers
    }

    fn text(&self, from: u32, to: u32) -> String {
        self.tokens[from as usize..to as usize].concat()
    }

    fn add(&mut self, running: Running) -> Line {
        let line = Line(self.next_line);
        self.next_line += 1;
        self.lines.push(Running { line, ..running });
        line
    }

    /// Tokens of a text that someone is to go on from.
    fn count(text: &str) -> u32 {
        text.bytes().filter(|&byte| byte == b' ').count() as u32
    }
}

impl World for Virtual {
    fn now(&self) -> Duration {
        self.now
    }

    fn wait(&mut self, until: Duration) -> Option<(Line, Event)> {
        let next = self
            .lines
            .iter()
            .enumerate()
            .filter(|(_, running)| !matches!(running.end, End::Hangs(at) if running.next >= at))
            .min_by_key(|(_, running)| running.at);
        let Some((index, running)) = next.filter(|(_, running)| running.at <= until) else {
            assert!(until < Duration::MAX, "it waits for ever: {:?}", self.lines);
            self.now = self.now.max(until);
            return None;
        };
        self.now = self.now.max(running.at);
        let (line, next, end) = (running.line, running.next, running.end);
        let event = match end {
            End::Refused(status, retry_after) => Event::Failed(Fault::Refused {
                status,
                retry_after,
            }),
            End::Unreachable => Event::Failed(Fault::Unreachable),
            End::Breaks(at) if next >= at => Event::Failed(Fault::Broken),
            _ if next >= self.length => Event::Done,
            _ => Event::Text(self.tokens[next as usize].clone()),
        };
        match event {
            Event::Text(_) => {
                self.lines[index].next += 1;
                let step = self.lines[index].step;
                self.lines[index].at += step;
            }
            _ => drop(self.lines.swap_remove(index)),
        }
        Some((line, event))
    }

    fn start_device(&mut self, prefix: &str) -> Line {
        let written = Self::count(prefix);
        let prompt =
            f64::from(self.prompt_tokens + written) * f64::from(DEVICE.prompt_ms_per_token);
        let begin = (f64::from(DEVICE.start_ms) + prompt) / 1000.0;
        let step = Duration::from_secs_f64(self.device_step() / 1000.0);
        self.add(Running {
            line: Line(0),
            next: written,
            at: self.now + Duration::from_secs_f64(begin) + step,
            step,
            end: End::Whole,
        })
    }

    fn open(&mut self, request: Cleared<'_>) -> Line {
        let bytes = String::from_utf8_lossy(request.bytes());
        self.leaked += self
            .secrets
            .iter()
            .filter(|secret| bytes.contains(**secret))
            .count() as u64;
        let body: serde_json::Value = serde_json::from_str(&bytes).expect("JSON");
        let last = body["messages"]
            .as_array()
            .and_then(|messages| messages.last());
        let prefix = last.filter(|message| message["role"] == "assistant");
        let written = prefix.map_or(0, |message| {
            Self::count(message["content"].as_str().unwrap_or_default())
        });
        let provider = usize::from(request.provider().name == PROVIDERS[1]);
        let attempt = self.attempts[provider];
        self.attempts[provider] += 1;
        let mut running = self.attempt(provider, attempt, written.min(self.length));
        if written > 0 {
            // Some go on, some repeat the last words, some begin again.
            running.next = match (self.request + attempt) % 4 {
                0 => 0,
                1 => written.saturating_sub(3),
                _ => written,
            };
        }
        self.add(running)
    }

    fn close(&mut self, line: Line) {
        self.lines.retain(|running| running.line != line);
    }
}
