//! A server under load, in this process: `load MODEL [SECONDS] [STREAMS]`.
//!
//! One stream for half a minute, then as many as are wanted for the time that is wanted; in the last fifth of it slow readers,
//! half-closed connections and 10,000 garbage requests besides. Prints the figures of each minute, and fails when the streams
//! together are not 2.5 times as quick as one, when an answer is lost or cut off, or when memory grows after the first minute by
//! more than 64 MB.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ondine_runtime::backend::LoadOptions;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::{Limits, Model};
use ondine_server::engine::{Engine, EngineOptions};
use ondine_server::{App, Models, Offer, OnDevice, Server, ServerOptions};
use serde_json::{Value, json};

/// Seconds of one stream alone.
const ALONE: u64 = 30;
const GARBAGE: u64 = 10_000;
const TOKENS: u64 = 160;

fn main() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let model = PathBuf::from(arguments.next().ok_or("load MODEL [SECONDS] [STREAMS]")?);
    let mut number = |usual: u64| arguments.next().map_or(Ok(usual), |text| text.parse());
    let seconds = number(300).map_err(|_| "SECONDS is no number")?;
    let streams = number(16).map_err(|_| "STREAMS is no number")?;
    let server = Server::bind(([127, 0, 0, 1], 0).into(), app(model)?).map_err(text)?;
    let address = server.address().map_err(text)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.run(&|| stop.load(Ordering::Relaxed)));
        let result = measure(address, seconds, streams);
        stop.store(true, Ordering::Relaxed);
        let served = serving.join().map_err(|_| "the server fell over")?;
        served.map_err(text)?;
        result
    })
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn app(path: PathBuf) -> Result<App, String> {
    let offer = Offer {
        name: "model".into(),
        modified: SystemTime::UNIX_EPOCH,
        bytes: 1,
        loader: Box::new(move || {
            let model = Arc::new(Model::open(&path, &Limits::default()).map_err(text)?);
            let backend = CpuBackend::from_environment().map_err(text)?;
            let options = LoadOptions {
                context: Some(2048),
                ..LoadOptions::default()
            };
            let decoder = model.load(&backend, &options).map_err(text)?;
            Engine::start(model, decoder, EngineOptions::default()).map_err(text)
        }),
    };
    let models = Models::new(vec![offer]);
    App::new(models, Box::new(OnDevice), ServerOptions::default()).map_err(text)
}

/// What all streams of a phase did.
#[derive(Default)]
struct Tally {
    tokens: AtomicU64,
    answers: AtomicU64,
    lost: AtomicU64,
    /// Milliseconds between two tokens of one stream.
    gaps: Mutex<Vec<f32>>,
}

fn measure(address: SocketAddr, seconds: u64, streams: u64) -> Result<(), String> {
    // Loads the model.
    let _ = ask(address, &body(0, 4), &Tally::default());
    let alone = Tally::default();
    let until = Instant::now() + Duration::from_secs(ALONE);
    stream(address, 1000, until, &alone);
    let one = alone.tokens.load(Ordering::Relaxed) as f64 / ALONE as f64;
    println!("1 stream: {one:.1} tokens/s");
    let tally = Tally::default();
    let begun = Instant::now();
    let until = begun + Duration::from_secs(seconds);
    let worst_from = begun + Duration::from_secs(seconds * 4 / 5);
    let mut minutes = Vec::new();
    let garbage = std::thread::scope(|scope| {
        for own in 0..streams {
            let tally = &tally;
            scope.spawn(move || stream(address, own * 1_000_000, until, tally));
        }
        let hardships = scope.spawn(move || {
            std::thread::sleep(worst_from.saturating_duration_since(Instant::now()));
            hardships(address, until)
        });
        let mut before = 0;
        let minute = Duration::from_secs(60.min(seconds.div_ceil(5)));
        println!("after s  tokens/s  ratio  between tokens p50 p95 max (ms)  RSS (MB)");
        while Instant::now() < until {
            std::thread::sleep(minute.min(until.saturating_duration_since(Instant::now())));
            let now = tally.tokens.load(Ordering::Relaxed);
            let rate = (now - before) as f64 / minute.as_secs_f64();
            before = now;
            let mut gaps = std::mem::take(&mut *tally.gaps.lock().expect("nobody failed"));
            gaps.sort_by(f32::total_cmp);
            let quantile = |q: f64| gaps.get(((gaps.len().max(1) - 1) as f64 * q) as usize);
            let [p50, p95, most] = [0.5, 0.95, 1.0].map(|q| quantile(q).copied().unwrap_or(0.0));
            println!(
                "{:7.0}  {rate:8.1}  {:5.2}  {p50:.0} {p95:.0} {most:.0}  {}",
                begun.elapsed().as_secs_f64(),
                rate / one,
                resident()
            );
            minutes.push((rate, p95, resident()));
        }
        hardships.join().expect("hardships end")
    });
    let metrics = get(address, "/metrics");
    for name in [
        "kv_bytes",
        "prefix_cache_bytes",
        "requests_finished_total",
        "requests_failed_total",
    ] {
        let found = metrics
            .lines()
            .find(|line| line.starts_with(&format!("ondine_{name}")));
        println!("{}", found.unwrap_or(name));
    }
    let (answers, lost) = (
        tally.answers.load(Ordering::Relaxed),
        tally.lost.load(Ordering::Relaxed),
    );
    println!("{answers} answers, {lost} lost; {garbage}");
    // Without the part with hardships.
    let clean = &minutes[..(minutes.len() * 4 / 5).max(1)];
    let mean = clean.iter().map(|minute| minute.0).sum::<f64>() / clean.len() as f64;
    let growth = minutes
        .iter()
        .map(|m| m.2)
        .max()
        .unwrap_or(0)
        .saturating_sub(minutes[0].2);
    println!(
        "together {:.2} times one stream; memory grew by {growth} MB after the first part",
        mean / one
    );
    match mean >= 2.5 * one && lost == 0 && growth <= 64 {
        true => Ok(()),
        false => Err("the bounds do not hold".into()),
    }
}

/// Asks again and again.
fn stream(address: SocketAddr, first: u64, until: Instant, tally: &Tally) {
    for round in first.. {
        if Instant::now() >= until {
            return;
        }
        let counter = match ask(address, &body(round, TOKENS), tally) {
            true => &tally.answers,
            false => &tally.lost,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn body(round: u64, tokens: u64) -> String {
    let topics = [
        "rivers",
        "bread",
        "chess",
        "volcanoes",
        "tax law",
        "graph colouring",
        "wool",
    ];
    let topic = topics[(round % 7) as usize];
    let content = format!("Letter number {round}. Tell me a long story about {topic}, please.");
    json!({"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "stream": true, "seed": round})
        .to_string()
}

fn connection(address: SocketAddr, body: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes())?;
    Ok(stream)
}

/// One answer; true if it is whole.
fn ask(address: SocketAddr, body: &str, tally: &Tally) -> bool {
    let Ok(stream) = connection(address, body) else {
        return false;
    };
    let mut last: Option<Instant> = None;
    let mut gaps = Vec::new();
    let mut is_whole = false;
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { break };
        is_whole |= line.contains("data: [DONE]");
        let Some(event) = line.strip_prefix("data: ") else {
            continue;
        };
        let event: Value = serde_json::from_str(event).unwrap_or_default();
        let content = event["choices"][0]["delta"]["content"].as_str();
        if content.is_some_and(|content| !content.is_empty()) {
            let now = Instant::now();
            if let Some(last) = last.replace(now) {
                gaps.push((now - last).as_secs_f32() * 1000.0);
            }
            tally.tokens.fetch_add(1, Ordering::Relaxed);
        }
    }
    tally.gaps.lock().expect("nobody failed").extend(gaps);
    is_whole
}

/// Slow readers, half-closed connections and garbage, until all garbage is sent or the time is over.
fn hardships(address: SocketAddr, until: Instant) -> String {
    let mut slow: Vec<TcpStream> = (0..4)
        .filter_map(|n| connection(address, &body(n, TOKENS)).ok())
        .collect();
    let half: Vec<TcpStream> = (0..4)
        .filter_map(|n| {
            let stream = connection(address, &body(100 + n, 16)).ok()?;
            stream.shutdown(Shutdown::Write).ok()?;
            Some(stream)
        })
        .collect();
    let mut refused = 0;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..GARBAGE {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        refused += u64::from(garbage(address, number, random));
        if number % 50 == 0 {
            for stream in &mut slow {
                let _ = stream.read(&mut [0; 16]);
            }
        }
        if Instant::now() > until + Duration::from_secs(60) {
            return format!("only {number} garbage requests were sent");
        }
    }
    let whole = |stream: &mut TcpStream| {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        rest.windows(6).any(|window| window == b"[DONE]")
    };
    let slow = slow
        .iter_mut()
        .filter_map(|stream| whole(stream).then_some(()))
        .count();
    let half = half
        .into_iter()
        .filter_map(|mut stream| whole(&mut stream).then_some(()))
        .count();
    format!(
        "{slow} of 4 slow readers and {half} of 4 half-closed ones got all; {refused} of {GARBAGE} garbage requests were refused in form, the others cut off"
    )
}

/// True if it was answered with a status of 400 and above.
fn garbage(address: SocketAddr, number: u64, random: u64) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
    let post = |body: &[u8]| {
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let bytes: Vec<u8> = (0..64)
        .map(|at| (random >> (at % 57)) as u8 ^ at as u8)
        .collect();
    let sent = match number % 6 {
        0 => [bytes.as_slice(), b"\r\n\r\n"].concat(),
        1 => post(&bytes),
        2 => post(b"{\"messages\":[{\"role\":\"user\",\"content\":"),
        3 => post(b"{\"messages\":[],\"max_tokens\":-1}"),
        4 => b"GET /v1/nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".to_vec(),
        // The body never comes; the other side is told that there is no more.
        _ => format!(
            "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: 99\r\n\r\n{{"
        )
        .into_bytes(),
    };
    if stream.write_all(&sent).is_err() {
        return false;
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer.starts_with(b"HTTP/1.1 4")
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let _ = stream.write_all(
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        );
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

/// Memory of this process that is in use, in MB (Linux).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) / 1000
}
