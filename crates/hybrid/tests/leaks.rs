//! No personal data reaches the other side: every recorded case, in every spelling, on every path that a request can take.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ondine_hybrid::egress::{Cleared, Conversation, Egress, Gate, Kept, Message, Transport};
use ondine_hybrid::policy::Policy;
use serde::Deserialize;

/// Keeps what arrives.
#[derive(Default)]
struct Sink(Vec<u8>);

impl Transport for Sink {
    type Answer = ();
    fn send(&mut self, request: Cleared<'_>) {
        self.0.extend_from_slice(request.bytes());
        self.0.push(b'\n');
    }
}

#[derive(Deserialize)]
struct Case {
    text: String,
    #[serde(default)]
    spans: Vec<(String, usize, usize, f32)>,
}

const PROVIDERS: &str = r#"
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

fn gate(default: &str) -> Gate {
    Gate::new(
        Policy::parse(&format!(
            "version = 1\ndefault = \"{default}\"\n{PROVIDERS}"
        ))
        .unwrap(),
    )
    .unwrap()
}

fn user(content: &str) -> Conversation {
    Conversation {
        messages: vec![Message {
            role: "user".into(),
            content: content.into(),
        }],
        ..Conversation::default()
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
    let wide: String = text
        .chars()
        .map(|c| {
            if ('!'..='~').contains(&c) {
                char::from_u32(u32::from(c) + 0xfee0).unwrap()
            } else {
                c
            }
        })
        .collect();
    let invisible: String = text.chars().flat_map(|c| [c, '\u{200b}']).collect();
    vec![
        text.to_string(),
        percent,
        json,
        html,
        wide,
        invisible,
        BASE64_STANDARD.encode(text),
        hex(text),
    ]
}

fn hex(text: &str) -> String {
    text.bytes().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn no_recorded_case_in_any_spelling_arrives() {
    let mut leaks = Vec::new();
    let mut sent = 0;
    for line in include_str!("data/presidio_cases.jsonl").lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let secrets: Vec<&str> = case
            .spans
            .iter()
            .map(|(_, s, e, _)| &case.text[*s..*e])
            .collect();
        // Seven characters and more: what is shorter, such as «5/21», is part of many numbers, and in base64 of most words.
        for secret in secrets.into_iter().filter(|secret| secret.len() >= 7) {
            for (number, spelling) in spellings(&case.text).into_iter().enumerate() {
                let mut egress = Egress::new(gate("placeholder"), Sink::default());
                if let Ok(request) = egress.gate().admit(&user(&spelling), "first") {
                    sent += usize::from(egress.send(&request).is_ok());
                }
                let arrived = String::from_utf8_lossy(&egress.transport().0).into_owned();
                let spelt = &spellings(secret)[number];
                // The JSON around it escapes backslashes; base64 shifts with what stands before, so the whole text counts there.
                let spelt = match number {
                    6 => spelling.clone(),
                    _ => serde_json::to_string(spelt)
                        .unwrap()
                        .trim_matches('"')
                        .to_string(),
                };
                if arrived.contains(&spelt) {
                    leaks.push(format!("{:?} as {spelt:?}", case.text));
                }
            }
        }
    }
    assert!(
        sent > 1000,
        "only {sent} requests were sent: the test shows nothing"
    );
    assert!(
        leaks.is_empty(),
        "{} leaks:\n{}",
        leaks.len(),
        leaks[..leaks.len().min(40)].join("\n")
    );
}

#[test]
fn every_path_inherits_the_label() {
    let private = user("My card is 4111 1111 1111 1111");
    let gate = gate("local_only");
    let label = gate.label(&private);
    assert!(label.local_only && !label.is_public());
    assert!(matches!(gate.admit(&private, "first"), Err(Kept::Rule(_))));
    // Retry, hedge, fallback and handover are all admissions with the first label, whatever their text looks like then.
    for provider in ["first", "second"] {
        assert_eq!(
            gate.readmit(&label, &user("harmless"), provider),
            Err(Kept::Label)
        );
    }
    let public = gate.label(&user("What is the capital of France?"));
    assert!(public.is_public());
    let mut handover = user("What is the capital of France?");
    assert!(gate.readmit(&public, &handover, "second").is_ok());
    handover.local_prefix = Some("Ask jane@example.org".into());
    assert!(matches!(
        gate.readmit(&public, &handover, "second"),
        Err(Kept::Rule(_))
    ));
}

#[test]
fn history_system_tools_prefix_and_numbers_are_all_read() {
    let mut conversation = user("hello");
    conversation.messages.insert(
        0,
        Message {
            role: "system".into(),
            content: "The user is jane@example.org".into(),
        },
    );
    conversation.messages.push(Message {
        role: "tool".into(),
        content: "{\"iban\":\"GB33BUKB20201555555555\"}".into(),
    });
    conversation.local_prefix = Some("Her number is +1 415 555 0132".into());
    conversation.extra.insert(
        "metadata".into(),
        serde_json::json!({"card": 4111111111111111_u64, "x": ["b@example.org"]}),
    );
    let mut egress = Egress::new(gate("placeholder"), Sink::default());
    let request = egress.gate().admit(&conversation, "first").unwrap();
    egress.send(&request).unwrap();
    let arrived = String::from_utf8_lossy(&egress.transport().0).into_owned();
    for secret in ["jane@", "GB33", "415", "411111", "b@example"] {
        assert!(!arrived.contains(secret), "{secret} in {arrived}");
    }
    assert_eq!(
        request.restore_map().restore("<EMAIL_ADDRESS_1>"),
        "jane@example.org"
    );
}

#[test]
fn no_policy_no_provider_offline_and_too_slow_all_mean_local() {
    let nothing = Gate::new(Policy::local_only()).unwrap();
    assert!(matches!(
        nothing.admit(&user("hello"), "first"),
        Err(Kept::Provider(_))
    ));
    let offline =
        format!("version = 1\ndefault = \"placeholder\"\n[offline]\nalways = true\n{PROVIDERS}");
    let offline = Gate::new(Policy::parse(&offline).unwrap()).unwrap();
    assert!(matches!(
        offline.admit(&user("hello"), "first"),
        Err(Kept::Provider(_))
    ));
    let mut policy = Policy::parse(&format!(
        "version = 1\ndefault = \"placeholder\"\n{PROVIDERS}"
    ))
    .unwrap();
    policy.scanner.timeout_ms = 0;
    let slow = Gate::new(policy).unwrap();
    assert!(matches!(
        slow.admit(&user(&"4111 ".repeat(100_000)), "first"),
        Err(Kept::Scan(_))
    ));
}
