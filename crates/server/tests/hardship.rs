//! Clients that go away, hurry, crowd, dawdle or talk nonsense.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ondine_fixtures::Tiny;
use ondine_server::ServerOptions;
use ondine_server::engine::EngineOptions;
use serde_json::{Value, json};
use support::{Running, read};

/// An answer that takes the tiny model long enough to do something meanwhile.
fn long(stream: bool) -> Value {
    json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 300, "stream": stream,
        "logit_bias": end_never(), "temperature": 0.5})
}

/// The tiny vocabulary's tokens that end an answer never come.
fn end_never() -> Value {
    json!({"268": -100, "269": -100})
}

fn server(parallel: usize, queue: usize) -> Running {
    let engine = EngineOptions {
        parallel,
        queue,
        ..EngineOptions::default()
    };
    // Large enough that an answer takes longer than it takes to notice that nobody wants it.
    let shape = Tiny {
        embedding: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        feed_forward: 512,
        layers: 6,
        ..Tiny::new("llama", 1)
    };
    Running::of(&shape, engine, ServerOptions::default())
}

#[test]
fn answers_of_clients_that_went_away_are_given_up() {
    let server = server(2, 64);
    for (index, stream) in [false, true].into_iter().enumerate() {
        // Many, and few at a time, so that they cannot all be done before it is noticed.
        let connections: Vec<_> = (0..12)
            .map(|_| {
                server.send(
                    "POST",
                    "/v1/chat/completions",
                    &[],
                    &long(stream).to_string(),
                )
            })
            .collect();
        server.wait_for("ondine_requests_waiting", 8);
        drop(connections);
        server.wait_for("ondine_requests_cancelled_total", 1 + index as u64);
    }
    let answer = server.post(
        "/v1/chat/completions",
        &json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
    );
    assert_eq!(answer.status, 200);
}

#[test]
fn a_half_closed_client_gets_its_answer() {
    let server = server(16, 64);
    for stream in [false, true] {
        let connections: Vec<_> = (0..8)
            .map(|_| {
                let connection = server.send(
                    "POST",
                    "/v1/chat/completions",
                    &[],
                    &long(stream).to_string(),
                );
                connection.shutdown(Shutdown::Write).expect("half closed");
                connection
            })
            .collect();
        for connection in connections {
            let answer = read(connection);
            assert_eq!(answer.status, 200, "{answer:?}");
            match stream {
                true => assert!(answer.body.ends_with("data: [DONE]\n\n")),
                false => assert_eq!(answer.json()["usage"]["completion_tokens"], 300),
            }
        }
    }
    assert_eq!(server.metric("ondine_requests_cancelled_total"), 0);
}

#[test]
fn who_comes_when_too_many_wait_is_told_when_to_come_again() {
    let server = server(1, 2);
    // As long as the context allows, so that the first answer outlasts a busy machine's pauses.
    let mut body = long(false);
    body["max_tokens"] = json!(900);
    let body = body.to_string();
    let ask = || server.send("POST", "/v1/chat/completions", &[], &body);
    let first = ask();
    server.wait_for("ondine_requests_running", 1);
    let running = [first, ask(), ask()];
    server.wait_for("ondine_requests_waiting", 2);
    let answer = server.post("/v1/chat/completions", &long(false));
    assert_eq!(answer.status, 429, "{answer:?}");
    let seconds: u64 = answer
        .header("retry-after")
        .expect("a time")
        .parse()
        .expect("a number");
    assert!((1..=60).contains(&seconds));
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
    // Nobody who was let in is lost.
    for connection in running {
        assert_eq!(read(connection).json()["usage"]["completion_tokens"], 900);
    }
}

#[test]
fn deadlines_end_answers() {
    let server = server(1, 8);
    let first = server.send(
        "POST",
        "/v1/chat/completions",
        &[],
        &long(false).to_string(),
    );
    server.wait_for("ondine_requests_running", 1);
    let late = server.post_with(
        "/v1/chat/completions",
        &["x-ondine-deadline-ms: 1"],
        &long(false),
    );
    assert_eq!(late.status, 504, "{late:?}");
    assert_eq!(late.json()["error"]["code"], "deadline_exceeded");
    assert_eq!(read(first).status, 200);
    // The tiny model needs longer than this for so many tokens, but not for the first one.
    let mut body = long(false);
    body["n"] = json!(1);
    let cut = (1..40).map(|step| {
        let deadline = format!("x-ondine-deadline-ms: {}", step * 5);
        server.post_with("/v1/chat/completions", &[&deadline], &body)
    });
    let cut = cut
        .into_iter()
        .find(|answer| answer.status == 200)
        .expect("time for a token");
    let cut = cut.json();
    let stopped = cut["ondine"]["timings"]["stopped_by"]
        .as_str()
        .expect("a reason")
        .to_owned();
    assert!(
        stopped == "deadline" && cut["choices"][0]["finish_reason"] == "length"
            || stopped == "length",
        "{cut}"
    );
    for wrong in [
        "x-ondine-deadline-ms: soon",
        "x-ondine-deadline-ms: 0",
        "x-ondine-priority: first",
    ] {
        assert_eq!(
            server
                .post_with("/v1/chat/completions", &[wrong], &body)
                .status,
            400
        );
    }
}

#[test]
fn interactive_work_comes_first_and_background_work_still_comes() {
    let server = server(2, 64);
    let background: Vec<_> = (0..6)
        .map(|_| {
            server.send(
                "POST",
                "/v1/chat/completions",
                &["x-ondine-priority: background"],
                &long(false).to_string(),
            )
        })
        .collect();
    server.wait_for("ondine_requests_waiting", 3);
    let answer = server.post(
        "/v1/chat/completions",
        &json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
    );
    assert_eq!(answer.status, 200);
    // It passed those that waited before it.
    assert!(
        server.metric("ondine_requests_waiting") >= 1,
        "the background answers were too quick for this test"
    );
    for connection in background {
        assert_eq!(read(connection).json()["usage"]["completion_tokens"], 300);
    }
}

/// Little memory: some must wait, and some are put back, but all get the answer that they would get alone.
#[test]
fn want_of_memory_changes_no_answer() {
    let ask = |index: u64| {
        json!({"messages": [{"role": "user", "content": format!("{index} {}", "word ".repeat(20))}],
        "max_tokens": 150, "temperature": 0, "seed": index, "logit_bias": end_never()})
    };
    let text = |answer: Value| {
        answer["choices"][0]["message"]["content"]
            .as_str()
            .expect("text")
            .to_owned()
    };
    let roomy = Running::tiny(EngineOptions::default(), ServerOptions::default());
    let alone: Vec<String> = (0..6)
        .map(|index| text(roomy.post("/v1/chat/completions", &ask(index)).json()))
        .collect();
    let narrow = Running::tiny(
        EngineOptions {
            kv_bytes: 400_000,
            ..EngineOptions::default()
        },
        ServerOptions::default(),
    );
    let connections: Vec<_> = (0..6)
        .map(|index| narrow.send("POST", "/v1/chat/completions", &[], &ask(index).to_string()))
        .collect();
    let together: Vec<String> = connections
        .into_iter()
        .map(|connection| text(read(connection).json()))
        .collect();
    assert!(
        narrow.metric("ondine_requests_preempted_total") > 0,
        "there was room for all"
    );
    // Rounding differs a little between one query and many, and may once in a while decide.
    let same = alone
        .iter()
        .zip(&together)
        .filter(|(alone, together)| alone == together);
    assert!(same.count() >= 5, "{alone:#?} {together:#?}");
}

#[test]
fn a_slow_reader_holds_up_nobody() {
    let server = server(16, 64);
    let mut slow = server.send("POST", "/v1/chat/completions", &[], &long(true).to_string());
    let begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(
            server.post("/v1/chat/completions", &long(false)).status,
            200
        );
    }
    let elapsed = begun.elapsed();
    // Read slowly, then all: nothing is lost.
    let mut bytes = vec![0; 64];
    let mut all = Vec::new();
    for _ in 0..20 {
        let count = slow.read(&mut bytes).expect("a piece");
        all.extend_from_slice(&bytes[..count]);
        std::thread::sleep(Duration::from_millis(5));
    }
    slow.read_to_end(&mut all).expect("the rest");
    assert!(support::parse(&all).body.ends_with("data: [DONE]\n\n"));
    assert!(elapsed < Duration::from_secs(60));
}

/// Sixteen clients that ask again and again: all are served alike, nothing is lost, memory stays within its bound.
#[test]
fn no_stream_starves() {
    let bound = 1_000_000;
    let engine = EngineOptions {
        kv_bytes: bound,
        ..EngineOptions::default()
    };
    let server = Running::tiny(engine, ServerOptions::default());
    let counts: Vec<AtomicU64> = (0..16).map(|_| AtomicU64::new(0)).collect();
    let first_done: Mutex<Option<Vec<u64>>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for own in &counts {
            let (server, counts, first_done) = (&server, &counts, &first_done);
            scope.spawn(move || {
                for round in 0..4 {
                    let mut body = long(true);
                    body["max_tokens"] = json!(100);
                    body["seed"] = json!(round);
                    let stream =
                        server.send("POST", "/v1/chat/completions", &[], &body.to_string());
                    let mut whole = false;
                    for line in BufReader::new(stream).lines() {
                        let line = line.expect("text");
                        own.fetch_add(u64::from(line.contains("\"content\":")), Ordering::Relaxed);
                        whole |= line.ends_with("[DONE]");
                    }
                    assert!(whole, "a stream was cut off");
                }
                let mut first = first_done.lock().expect("whole");
                first.get_or_insert_with(|| {
                    counts
                        .iter()
                        .map(|count| count.load(Ordering::Relaxed))
                        .collect()
                });
            });
        }
    });
    let at_first_end = first_done
        .into_inner()
        .expect("whole")
        .expect("somebody was first");
    let most = at_first_end.iter().max().expect("sixteen");
    assert!(
        at_first_end.iter().all(|count| count * 2 >= *most),
        "{at_first_end:?}"
    );
    assert!(server.metric("ondine_kv_bytes") <= bound);
    assert_eq!(server.metric("ondine_generated_tokens_total"), 16 * 4 * 100);
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let server = server(4, 8);
    let mut random = ondine_fixtures::Random::new(1);
    let valid =
        json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).to_string();
    let good = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{valid}",
        valid.len()
    );
    for round in 0..600 {
        let mut connection = server.connect();
        let bytes: Vec<u8> = match round % 5 {
            0 => (0..random.below(400)).map(|_| random.below(256) as u8).collect(),
            // A good request with damage, or cut off.
            1 | 2 => {
                let mut bytes = good.clone().into_bytes();
                for _ in 0..1 + random.below(4) {
                    let at = random.below(bytes.len());
                    bytes[at] = random.below(256) as u8;
                }
                bytes
            }
            3 => good.as_bytes()[..random.below(good.len())].to_vec(),
            _ => format!("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{}", "{[\"\\u12".repeat(2)).into_bytes(),
        };
        // A server may close before all was sent.
        let _ = connection.write_all(&bytes);
        let _ = connection.shutdown(Shutdown::Write);
        if round % 3 == 0 {
            let mut answer = Vec::new();
            let _ = connection.read_to_end(&mut answer);
            assert!(
                answer.is_empty() || answer.starts_with(b"HTTP/1.1 "),
                "{answer:?}"
            );
        }
    }
    let deep = format!("{{\"messages\": {}", "[".repeat(100_000));
    assert_eq!(
        read(server.send("POST", "/v1/chat/completions", &[], &deep)).status,
        400
    );
    let answer = server.post(
        "/v1/chat/completions",
        &json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
    );
    assert_eq!(answer.status, 200);
}

#[test]
fn bounds_are_kept() {
    let options = ServerOptions {
        body_bytes: 1000,
        read_timeout: Duration::from_millis(300),
        token: Some("secret".into()),
        ..ServerOptions::default()
    };
    let server = Running::tiny(EngineOptions::default(), options);
    let key = "authorization: Bearer secret";
    let large = json!({"messages": [{"role": "user", "content": "x".repeat(2000)}]});
    assert_eq!(
        server
            .post_with("/v1/chat/completions", &[key], &large)
            .status,
        413
    );
    assert_eq!(server.get("/v1/models").status, 401);
    assert_eq!(server.get("/").status, 200);
    // Heads and bodies that do not come to their end.
    for start in [
        "POST /v1/chat",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 50\r\n\r\n{",
    ] {
        let mut connection = server.connect();
        connection.write_all(start.as_bytes()).expect("sent");
        let begun = Instant::now();
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer);
        assert!(begun.elapsed() < Duration::from_secs(20));
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.contains(" 408 "), "{answer}");
    }
}

#[test]
fn an_end_lets_answers_finish() {
    let server = server(4, 8);
    let connection = server.send(
        "POST",
        "/v1/chat/completions",
        &[],
        &long(false).to_string(),
    );
    server.wait_for("ondine_requests_running", 1);
    server.stop();
    assert_eq!(read(connection).json()["usage"]["completion_tokens"], 300);
}
