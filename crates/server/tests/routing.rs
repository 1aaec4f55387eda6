//! Requests that are answered elsewhere, by another server of this kind and by one that fails in every way.

#[path = "support/provider.rs"]
mod provider;
mod support;
#[path = "support/tls.rs"]
mod tls;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ondine_hybrid::cloud::HealthOptions;
use ondine_hybrid::policy::Policy;
use ondine_server::engine::EngineOptions;
use ondine_server::{Hybrid, HybridOptions, ServerOptions};
use provider::{Act, Provider, words};
use serde_json::{Value, json};
use support::Running;

const STORY: &str = "The river is long and the water in it is cold. ";

/// Providers in this order; everything private but addresses stays, and these leave as placeholders.
fn policy(providers: &[(&str, SocketAddr)], target: f32) -> Policy {
    let mut text = format!(
        "version = 1\nname = \"test\"\ndefault = \"local_only\"\nquality_target = {target}\n\
        [classes]\ncontact = \"placeholder\"\nnetwork = \"placeholder\"\n[tasks]\ndiary = \"local\"\nresearch = \"cloud\"\n"
    );
    for (name, address) in providers {
        text.push_str(&format!(
            "[[providers]]\nname = \"{name}\"\nendpoint = \"http://{address}/v1\"\nmodel = \"tiny\"\nregion = \"here\"\n\
            key_env = \"KEY\"\noutput_price = 1.0\n"
        ));
    }
    Policy::parse(&text).expect("a policy")
}

/// A server that prefers its providers.
fn routed(providers: &[(&str, SocketAddr)]) -> Running {
    routed_with(
        policy(providers, 1.0),
        HybridOptions {
            health: HealthOptions {
                first_text: Duration::from_millis(1500),
                between_texts: Duration::from_millis(1500),
                pause: Duration::from_millis(10),
                ..HealthOptions::default()
            },
            ..HybridOptions::default()
        },
    )
}

fn routed_with(policy: Policy, options: HybridOptions) -> Running {
    let hybrid = Hybrid::with_keys(policy, options, &|name| Some(format!("the {name}")));
    Running::routed(Box::new(hybrid.expect("a scanner")))
}

fn ask(content: &str, stream: bool) -> Value {
    // A question of the kind that the router expects a large model to answer better.
    let content = format!("Tell me a story. {content}");
    json!({"messages": [{"role": "user", "content": content}], "max_tokens": 24, "temperature": 0,
        "stream": stream, "logit_bias": {}})
}

/// The whole text of a stream, the place and steps of its last chunk, and where it was handed over.
fn streamed(server: &Running, body: &Value) -> (String, Value, Vec<String>) {
    streamed_with(server, &[], body)
}

fn streamed_with(server: &Running, headers: &[&str], body: &Value) -> (String, Value, Vec<String>) {
    let answer = server.post_with("/v1/chat/completions", headers, body);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{answer:?}");
    let mut text = String::new();
    let mut receipt = Value::Null;
    let mut handovers = Vec::new();
    for event in answer.events() {
        text.push_str(
            event["choices"][0]["delta"]["content"]
                .as_str()
                .unwrap_or_default(),
        );
        if let Some(to) = event["ondine"]["handover"]["to"].as_str() {
            handovers.push(to.to_owned());
        } else if !event["ondine"].is_null() {
            receipt = event["ondine"].clone();
        }
    }
    (text, receipt, handovers)
}

fn steps(receipt: &Value) -> Vec<String> {
    let steps = receipt["steps"].as_array().expect("steps").iter();
    steps
        .map(|step| {
            format!(
                "{} {}",
                step["place"].as_str().unwrap(),
                step["step"].as_str().unwrap()
            )
        })
        .collect()
}

#[test]
fn a_public_request_is_answered_by_another_server_of_this_kind() {
    let cloud = Running::tiny(EngineOptions::default(), ServerOptions::default());
    let server = routed(&[("near", cloud.address)]);
    let alone = cloud.post(
        "/v1/chat/completions",
        &json!({"messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 24, "temperature": 0}),
    );
    let expected = alone.json()["choices"][0]["message"]["content"].clone();
    let before = cloud.metric("ondine_requests_finished_total");
    let whole = server.post("/v1/chat/completions", &ask("hello", false));
    assert_eq!(whole.status, 200, "{whole:?}");
    let body = whole.json();
    assert_eq!(body["choices"][0]["message"]["content"], expected);
    assert_eq!(
        body["choices"][0]["finish_reason"],
        alone.json()["choices"][0]["finish_reason"]
    );
    assert_eq!(body["ondine"]["place"], "near");
    assert_eq!(body["ondine"]["model"], "tiny");
    assert_eq!(steps(&body["ondine"]), ["near asked", "near finished"]);
    let header: Value =
        serde_json::from_str(whole.header("x-ondine-receipt").expect("a header")).expect("JSON");
    assert_eq!(header["place"], "near");
    assert_eq!(header["route"]["chosen"], "near");
    let (text, receipt, handovers) = streamed(&server, &ask("hello", true));
    assert_eq!(json!(text), expected);
    assert_eq!(
        (receipt["place"].as_str(), handovers.len()),
        (Some("near"), 0)
    );
    assert_eq!(cloud.metric("ondine_requests_finished_total"), before + 2);
}

#[test]
fn what_must_stay_stays_and_placeholders_come_back() {
    let cloud = Provider::new(|_, body| {
        let asked = body["messages"][0]["content"].as_str().unwrap_or_default();
        Act::Answer(words(&format!("You said: {asked}")))
    });
    let server = routed(&[("near", cloud.address)]);
    let place = |content: &str, header: &[&str]| {
        let answer = server
            .post_with("/v1/chat/completions", header, &ask(content, false))
            .json();
        answer["ondine"]["place"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    };
    assert_eq!(place("My card is 4111 1111 1111 1111", &[]), "device");
    assert_eq!(place("Dear diary", &["x-ondine-task: diary"]), "device");
    let tools =
        json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "n": 2});
    assert_eq!(
        server.post("/v1/chat/completions", &tools).json()["ondine"]["place"],
        "device"
    );
    assert_eq!(cloud.count(), 0, "{:?}", cloud.bodies());
    let (text, receipt, _) = streamed(&server, &ask("Write to jane@example.org today", true));
    assert_eq!(receipt["place"], "near", "{receipt}");
    assert_eq!(
        text,
        "You said: Tell me a story. Write to jane@example.org today"
    );
    let sent = cloud.requests.lock().expect("nobody failed")[0].clone();
    assert!(
        !sent.1.contains("jane") && sent.1.contains("<EMAIL_ADDRESS_1>"),
        "{}",
        sent.1
    );
    assert!(
        sent.0
            .to_lowercase()
            .contains("authorization: bearer the key"),
        "{}",
        sent.0
    );
    assert!(
        sent.0.starts_with("POST /v1/chat/completions "),
        "{}",
        sent.0
    );
    let body: Value = serde_json::from_str(&sent.1).expect("JSON");
    assert_eq!(
        (&body["model"], &body["stream"], &body["max_tokens"]),
        (&json!("tiny"), &json!(true), &json!(24))
    );
}

#[test]
fn the_device_finishes_what_a_dying_stream_began() {
    let cloud = Provider::new(|_, _| Act::Break(words(STORY)));
    let server = routed(&[("near", cloud.address)]);
    let (text, receipt, handovers) = streamed(&server, &ask("Tell me a story", true));
    assert!(
        text.starts_with(STORY) && text.len() > STORY.len(),
        "{text}"
    );
    assert_eq!(handovers, ["device"]);
    assert_eq!(receipt["place"], "device");
    assert_eq!(receipt["backend"], "cpu");
    let steps = steps(&receipt);
    assert_eq!(
        steps[..3],
        ["near asked", "near failed", "device took_over"],
        "{steps:?}"
    );
    assert_eq!(cloud.count(), 1);
}

#[test]
fn every_fault_ends_in_a_whole_answer() {
    let redirect = "302 Found\r\nLocation: http://127.0.0.1:9/v1";
    let acts = [
        Act::Refuse("429 Too Many Requests\r\nRetry-After: 60"),
        Act::Refuse("500 Internal Server Error"),
        Act::Refuse("400 Bad Request"),
        Act::Refuse(redirect),
        Act::Hang(Vec::new()),
        Act::Hang(words(STORY)),
        Act::Break(Vec::new()),
        Act::Raw("nonsense".into()),
        Act::Raw(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {nonsense\n\n".into(),
        ),
        Act::Raw(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
                .into(),
        ),
    ];
    for act in acts {
        let shown = matches!(&act, Act::Hang(texts) if !texts.is_empty());
        let failing = act.clone();
        let cloud = Provider::new(move |_, _| failing.clone());
        let server = routed(&[("near", cloud.address)]);
        let (text, receipt, _) = streamed(&server, &ask("Tell me a story", true));
        assert_eq!(receipt["place"], "device", "{act:?}");
        assert_eq!(text.starts_with(STORY), shown, "{act:?}: {text}");
        assert!(
            steps(&receipt).contains(&"near failed".to_owned()),
            "{act:?}"
        );
        assert!(cloud.count() <= 3, "{act:?}");
    }
}

#[test]
fn a_closed_port_opens_the_breaker_and_nobody_waits_for_it_any_more() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("bound");
    let server = routed(&[("near", closed)]);
    let reasons: Vec<Value> = (0..6)
        .map(|_| {
            server
                .post("/v1/chat/completions", &ask("hello", false))
                .json()["ondine"]
                .take()
        })
        .collect();
    assert!(
        reasons.iter().all(|receipt| receipt["place"] == "device"),
        "{reasons:?}"
    );
    let last = &reasons[5];
    let lost = last["route"]["candidates"][1]["lost"].as_str();
    assert_eq!(lost, Some("breaker_open"), "{last}");
    let metrics = server.get("/metrics").body;
    assert!(
        metrics.contains("ondine_route_total{place=\"near\",what=\"failed\"}"),
        "{metrics}"
    );
}

#[test]
fn only_what_is_public_is_sent_twice() {
    let near = Provider::new(|number, _| match number {
        0..20 => Act::Answer(words("from near")),
        _ => Act::Hang(Vec::new()),
    });
    let far = Provider::new(|_, _| Act::Answer(words("from far")));
    let server = routed(&[("near", near.address), ("far", far.address)]);
    // The usual time is known after some answers, and a budget for hedges is saved up.
    for _ in 0..20 {
        assert_eq!(
            streamed_with(&server, &["x-ondine-task: research"], &ask("hello", true)).1["place"],
            "near"
        );
    }
    let (text, receipt, _) =
        streamed_with(&server, &["x-ondine-task: research"], &ask("hello", true));
    assert_eq!(
        (text.as_str(), receipt["place"].as_str()),
        ("from far", Some("far")),
        "{receipt}"
    );
    assert!(steps(&receipt).contains(&"far hedged".to_owned()));
    assert_eq!(far.count(), 1);
    let (_, receipt, _) = streamed_with(
        &server,
        &["x-ondine-task: research"],
        &ask("Write to jane@example.org", true),
    );
    assert!(
        !steps(&receipt).iter().any(|step| step.ends_with("hedged")),
        "{receipt}"
    );
    assert!(
        steps(&receipt).contains(&"near failed".to_owned()),
        "{receipt}"
    );
    assert!(far.bodies().iter().all(|body| !body.contains("jane")));
}

#[test]
fn a_provider_goes_on_where_the_device_is_unsure() {
    let cloud = Provider::new(|_, body| {
        let messages = body["messages"].as_array().cloned().unwrap_or_default();
        let prefix = messages.last().filter(|last| last["role"] == "assistant");
        let prefix = prefix
            .and_then(|last| last["content"].as_str())
            .unwrap_or_default();
        // Repeats the end of what it goes on from.
        let from = prefix.len()
            - prefix
                .chars()
                .rev()
                .take(12)
                .map(char::len_utf8)
                .sum::<usize>();
        Act::Answer(vec![prefix[from..].to_owned(), " and goes on".to_owned()])
    });
    // Good enough and the cheapest is the device, and it is always unsure.
    let options = HybridOptions {
        unsure_below: Some(0.0),
        ..HybridOptions::default()
    };
    let server = routed_with(policy(&[("near", cloud.address)], 0.0), options);
    let mut body = ask("Tell me a story", true);
    body["max_tokens"] = json!(60);
    body["temperature"] = json!(1.5);
    for seed in 0..20 {
        body["seed"] = json!(seed);
        let (text, receipt, handovers) = streamed(&server, &body);
        // A random model may end its answer before it can be unsure.
        if handovers.is_empty() {
            continue;
        }
        assert_eq!(handovers, ["near"]);
        assert_eq!(receipt["place"], "near");
        let sent: Value =
            serde_json::from_str(cloud.bodies().last().expect("a request")).expect("JSON");
        let prefix = sent["messages"][1]["content"].as_str().expect("a prefix");
        assert_eq!(text, format!("{prefix} and goes on"));
        assert!(
            sent["max_tokens"].as_u64().expect("a number") < 60,
            "{sent}"
        );
        return;
    }
    panic!("the device never was unsure");
}

#[test]
fn who_goes_away_ends_the_request_at_the_provider() {
    let cloud = Provider::new(|_, _| Act::Hang(words(STORY)));
    let options = HybridOptions::default();
    let server = routed_with(policy(&[("near", cloud.address)], 1.0), options);
    let stream = server.send(
        "POST",
        "/v1/chat/completions",
        &[],
        &ask("hello", true).to_string(),
    );
    let begun = Instant::now();
    while cloud.count() == 0 && begun.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(stream);
    while *cloud.left.lock().expect("nobody failed") == 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "it still listens"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_deadline_ends_what_the_provider_drags_out_and_a_pinned_task_fails_without_it() {
    let cloud = Provider::new(|_, _| Act::Hang(Vec::new()));
    let server = routed(&[("near", cloud.address)]);
    let headers = ["x-ondine-task: research", "x-ondine-deadline-ms: 300"];
    let late = server.post_with("/v1/chat/completions", &headers, &ask("hello", false));
    assert_eq!(late.status, 504, "{late:?}");
    let refusing = Provider::new(|_, _| Act::Refuse("400 Bad Request"));
    let server = routed(&[("near", refusing.address)]);
    let failed = server.post_with("/v1/chat/completions", &headers[..1], &ask("hello", false));
    assert_eq!(failed.status, 502, "{failed:?}");
    assert_eq!(failed.json()["error"]["code"], "no_answer");
    let private = server.post_with(
        "/v1/chat/completions",
        &headers[..1],
        &ask("My card is 4111 1111 1111 1111", false),
    );
    assert_eq!(private.status, 403, "{private:?}");
    assert_eq!(refusing.count(), 1);
}

#[test]
fn an_encrypted_provider_is_asked_only_where_its_certificate_is_vouched_for() {
    let provider = Provider::new(|_, _| Act::Answer(words(STORY)));
    let known = tls::Certificate::new("localhost");
    let stranger = tls::Certificate::new("localhost");
    let misnamed = tls::Certificate::new("elsewhere.example");
    for (shown, trusted, is_asked) in [
        (&known, &known, true),
        (&stranger, &known, false),
        (&misnamed, &misnamed, false),
    ] {
        let before = provider.count();
        let front = tls::front(shown, provider.address);
        let text = format!(
            "version = 1\nname = \"test\"\ndefault = \"local_only\"\nquality_target = 1.0\n\
            [[providers]]\nname = \"far\"\nendpoint = \"https://localhost:{}/v1\"\nmodel = \"tiny\"\nregion = \"here\"\n\
            key_env = \"KEY\"\noutput_price = 1.0\n",
            front.port()
        );
        let server = routed_with(
            Policy::parse(&text).expect("a policy"),
            HybridOptions {
                authorities: vec![trusted.der.clone()],
                ..HybridOptions::default()
            },
        );
        let (text, receipt, _) = streamed(&server, &ask("", true));
        assert!(!text.is_empty());
        let place = if is_asked { "far" } else { "device" };
        assert_eq!(receipt["place"], place, "{receipt}");
        assert_eq!(provider.count() - before, usize::from(is_asked));
    }
}
