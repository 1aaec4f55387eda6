//! A world in which each path of a request is taken on purpose, and what arrives at providers is kept.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ondine_hybrid::cloud::{
    Event, Fault, Health, HealthOptions, Line, Output, Request, World, conduct,
};
use ondine_hybrid::egress::{Cleared, Conversation, Gate, Message};
use ondine_hybrid::policy::Policy;
use ondine_hybrid::route::LatencyProfile;
use serde::Deserialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

const CASES: &str = include_str!("../../tests/data/presidio_cases.jsonl");

const POLICY: &str = r#"
version = 1
default = "placeholder"
[scanner]
min_confidence = 0.01
[[providers]]
name = "first"
endpoint = "https://first.example/v1"
model = "m"
region = "eu"
[[providers]]
name = "second"
endpoint = "https://second.example/v1"
model = "m"
region = "eu"
"#;

#[derive(Deserialize)]
struct Case {
    text: String,
    #[serde(default)]
    spans: Vec<(String, usize, usize, f32)>,
}

/// How a request comes to its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Path {
    Answer,
    /// The first attempt is refused for the moment.
    Retry,
    /// The first provider refuses for good.
    Fallback,
    /// The first provider says nothing.
    Silent,
    /// The device begins, repeats what it was told, and is unsure.
    Unsure,
    /// As above, and too slow for the deadline.
    Slow,
    /// The first provider repeats what it was told and breaks off.
    Broken,
}

const PATHS: [Path; 7] = [
    Path::Answer,
    Path::Retry,
    Path::Fallback,
    Path::Silent,
    Path::Unsure,
    Path::Slow,
    Path::Broken,
];

/// What is counted.
#[derive(Debug, Default)]
pub struct Figures {
    pub requests: u64,
    pub sent: u64,
    pub bytes: u64,
    /// Requests sent, by path.
    pub by_path: BTreeMap<String, u64>,
    /// Requests with personal data that were sent twice at once, and public ones.
    pub hedged: u64,
    pub public_hedged: u64,
    pub leaks: Vec<String>,
}

/// Takes every `every`th case, and at most `most_splits` places of a handover in each text.
pub fn run(every: usize, most_splits: usize) -> Figures {
    let gate = Gate::new(Policy::parse(POLICY).expect("a policy")).expect("a gate");
    let health = Mutex::new(Health::new(HealthOptions::default(), 1));
    let mut world = Sink::default();
    let mut figures = Figures::default();
    for line in CASES.lines().step_by(every.max(1)) {
        let case: Case = serde_json::from_str(line).expect("a case");
        let secrets: Vec<&str> = case
            .spans
            .iter()
            .map(|(_, start, end, _)| &case.text[*start..*end])
            // What is shorter, such as «5/21», is part of many numbers, and in base64 of most words.
            .filter(|secret| secret.len() >= 7)
            .collect();
        if secrets.is_empty() {
            continue;
        }
        for (number, spelling) in spellings(&case.text).into_iter().enumerate() {
            let spelt: Vec<String> = secrets
                .iter()
                .map(|secret| match number {
                    // Base64 shifts with what stands before, so the whole text counts there.
                    6 => spelling.clone(),
                    _ => spellings(secret).swap_remove(number),
                })
                .collect();
            let ends: Vec<usize> = spelling.char_indices().map(|(at, _)| at).skip(1).collect();
            let stride = ends.len().div_ceil(most_splits.max(1)).max(1);
            for path in PATHS {
                let splits: Vec<usize> = match path {
                    Path::Unsure | Path::Slow | Path::Broken => {
                        ends.iter().copied().step_by(stride).collect()
                    }
                    _ => vec![spelling.len()],
                };
                for split in splits {
                    world.begin(path, spelling[..split].to_owned());
                    let fresh = Mutex::new(Health::new(HealthOptions::default(), 1));
                    // What breaks off again and again would open the breaker and close the path.
                    let health = match path {
                        Path::Unsure | Path::Slow | Path::Broken => &fresh,
                        _ => &health,
                    };
                    one(&gate, health, &mut world, &spelling, path);
                    figures.requests += 1;
                    figures.sent += world.opened;
                    figures.bytes += world.sent.len() as u64;
                    *figures.by_path.entry(format!("{path:?}")).or_default() += world.opened;
                    judge(&world, &spelt, path, split, &mut figures);
                }
            }
        }
    }
    figures.hedged = health.lock().expect("nobody failed").hedges().0;
    // As a control: what is public is sent twice in the same state.
    world.begin(Path::Silent, String::new());
    one(
        &gate,
        &health,
        &mut world,
        "Explain rivers to me.",
        Path::Silent,
    );
    figures.public_hedged = health.lock().expect("nobody failed").hedges().0 - figures.hedged;
    figures
}

fn one(gate: &Gate, health: &Mutex<Health>, world: &mut Sink, text: &str, path: Path) {
    let conversation = Conversation {
        messages: vec![Message {
            role: "user".into(),
            content: text.to_owned(),
        }],
        ..Conversation::default()
    };
    let profile = |token| LatencyProfile {
        start_ms: 10.0,
        prompt_ms_per_token: 0.0,
        answer_ms_per_token: token,
    };
    let places = match path {
        Path::Unsure | Path::Slow => vec![
            ("device".into(), profile(50.0)),
            ("first".into(), profile(1.0)),
        ],
        _ => vec![
            ("first".into(), profile(1.0)),
            ("second".into(), profile(1.0)),
        ],
    };
    let deadline = (path == Path::Slow).then(|| world.now() + Duration::from_secs(3));
    conduct(
        gate,
        health,
        Request {
            label: gate.label(&conversation),
            conversation: &conversation,
            places,
            deadline,
            prompt_tokens: 20,
            answer_tokens: 400,
        },
        world,
        &mut |_: Output| true,
    );
}

/// Whether a secret arrived, or the beginning of one at which the answer was handed over.
fn judge(world: &Sink, spelt: &[String], path: Path, split: usize, figures: &mut Figures) {
    let arrived = String::from_utf8_lossy(&world.sent);
    for secret in spelt {
        let whole = escaped(secret);
        let begun = (7..secret.len())
            .rev()
            .filter(|&at| secret.is_char_boundary(at))
            .find(|&at| world.beginning.ends_with(&secret[..at]))
            // What was repeated ends within the secret, and arrived in the role of what is already answered.
            .map(|at| format!("{}\"", escaped(&secret[..at])));
        if arrived.contains(&whole) || begun.is_some_and(|begun| arrived.contains(&begun)) {
            figures
                .leaks
                .push(format!("{path:?} at {split}: {secret:?} in {arrived}"));
        }
    }
}

/// As it stands in JSON.
fn escaped(text: &str) -> String {
    let json = serde_json::to_string(text).expect("JSON");
    json[1..json.len() - 1].to_owned()
}

/// Clock and providers; the clock jumps.
#[derive(Default)]
struct Sink {
    now: Duration,
    next: u64,
    path: Option<Path>,
    /// What the device, or the first provider, writes before it fails.
    beginning: String,
    opened: u64,
    sent: Vec<u8>,
    events: VecDeque<(Duration, Line, Event)>,
}

impl Sink {
    fn begin(&mut self, path: Path, beginning: String) {
        self.path = Some(path);
        self.beginning = beginning;
        self.opened = 0;
        self.sent.clear();
        self.events.clear();
        self.now += Duration::from_secs(1);
    }

    fn line(&mut self, events: Vec<Event>, step: Duration) -> Line {
        self.next += 1;
        let line = Line(self.next);
        let mut at = self.now;
        for event in events {
            at += step;
            self.events.push_back((at, line, event));
        }
        line
    }
}

impl World for Sink {
    fn now(&self) -> Duration {
        self.now
    }

    fn wait(&mut self, until: Duration) -> Option<(Line, Event)> {
        let first = (0..self.events.len()).min_by_key(|&index| self.events[index].0);
        match first.filter(|&index| self.events[index].0 <= until) {
            Some(index) => {
                let (at, line, event) = self.events.remove(index)?;
                self.now = self.now.max(at);
                Some((line, event))
            }
            None => {
                self.now = self.now.max(until);
                None
            }
        }
    }

    fn start_device(&mut self, prefix: &str) -> Line {
        let (last, step) = match self.path {
            Some(Path::Slow) => (Event::Text(" and so on".into()), 60),
            _ => (Event::Unsure, 10),
        };
        if !prefix.is_empty() {
            return self.line(
                vec![Event::Text(" the end".into()), Event::Done],
                Duration::from_millis(1),
            );
        }
        // As the beginning in few pieces, so that the speed is known when it is whole.
        let characters: Vec<char> = self.beginning.chars().collect();
        let size = characters.len().div_ceil(5).max(1);
        let mut events: Vec<Event> = characters
            .chunks(size)
            .map(|piece| Event::Text(piece.iter().collect()))
            .collect();
        while events.len() < 6 {
            events.push(Event::Text(String::new()));
        }
        events.push(last);
        events.push(Event::Text(" the end".into()));
        events.push(Event::Done);
        self.line(events, Duration::from_millis(step))
    }

    fn open(&mut self, request: Cleared<'_>) -> Line {
        self.sent.extend_from_slice(request.bytes());
        self.sent.push(b'\n');
        self.opened += 1;
        let is_first = request.provider().name == "first";
        let refused = |status| {
            vec![Event::Failed(Fault::Refused {
                status,
                retry_after: None,
            })]
        };
        let answer = vec![Event::Text("Very well.".into()), Event::Done];
        let events = match self.path {
            Some(Path::Retry) if self.opened == 1 => refused(503),
            Some(Path::Fallback) if is_first => refused(400),
            Some(Path::Silent) if is_first => Vec::new(),
            Some(Path::Broken) if is_first => vec![
                Event::Text(self.beginning.clone()),
                Event::Failed(Fault::Broken),
            ],
            _ => answer,
        };
        self.line(events, Duration::from_millis(10))
    }

    fn close(&mut self, line: Line) {
        self.events.retain(|event| event.1 != line);
    }
}

/// The spellings that a program at the other end would undo.
fn spellings(text: &str) -> Vec<String> {
    let percent: String = text.bytes().map(|b| format!("%{b:02X}")).collect();
    let json: String = text
        .encode_utf16()
        .map(|unit| format!("\\u{unit:04x}"))
        .collect();
    let html: String = text
        .chars()
        .map(|c| format!("&#{};", u32::from(c)))
        .collect();
    let wide = |c: char| match c {
        '!'..='~' => char::from_u32(u32::from(c) + 0xfee0).unwrap_or(c),
        c => c,
    };
    let invisible: String = text.chars().flat_map(|c| [c, '\u{200b}']).collect();
    let hexadecimal: String = text.bytes().map(|b| format!("{b:02x}")).collect();
    vec![
        text.to_owned(),
        percent,
        json,
        html,
        text.chars().map(wide).collect(),
        invisible,
        BASE64_STANDARD.encode(text),
        hexadecimal,
    ]
}
