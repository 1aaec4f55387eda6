//! Structured output on a corpus of schemas: asks a running server for one answer to each and judges it by a validator.
//!
//! `schema_corpus ADDRESS FOLDER [COUNT] [SEED] [STREAMS]`: ADDRESS as `127.0.0.1:8080`; FOLDER holds files that are a schema, or an
//! object with the field `schema`, of which COUNT (600) are drawn. Fails when one answer does not conform. What is refused must be
//! refused with 400; the reasons are counted.
//!
//! `schema_corpus ADDRESS FOLDER speed [COUNT] [SEED]` compares instead the speed of decoding under COUNT (12) of these schemas with
//! the speed without, in turn, one stream; the answers of both are of the same length at most.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, folder, rest @ ..] = arguments.as_slice() else {
        return Err("schema_corpus ADDRESS FOLDER [COUNT] [SEED] [STREAMS]".into());
    };
    let number = |index: usize, usual: usize| -> Result<usize, String> {
        let given = rest.get(index).map(|text| text.parse());
        given
            .unwrap_or(Ok(usual))
            .map_err(|error| error.to_string())
    };
    if rest.first().is_some_and(|word| word == "speed") {
        return speed(address, folder, number(1, 12)?, number(2, 1)? as u64);
    }
    let (count, seed, streams) = (number(0, 600)?, number(1, 1)?, number(2, 16)?);
    let schemas = draw(folder, count, seed as u64)?;
    let next = AtomicUsize::new(0);
    let judged = Mutex::new(Vec::new());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..streams {
            scope.spawn(|| {
                while let Some((name, schema)) = schemas.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = ask(address, schema);
                    if let Verdict::Wrong(what) = &verdict {
                        eprintln!("{name}: {what}");
                    }
                    if let Ok(mut judged) = judged.lock() {
                        judged.push(verdict);
                    }
                }
            });
        }
    });
    let judged = judged.into_inner().map_err(|_| "a stream failed")?;
    report(&judged, begun.elapsed().as_secs_f64())
}

/// Tokens of an answer whose speed is measured, at most and at least.
const MOST_TOKENS: usize = 128;
const LEAST_TOKENS: f64 = 24.0;

/// Medians of tokens per second, with each schema and without.
fn speed(address: &str, folder: &str, count: usize, seed: u64) -> Result<(), String> {
    let mut pairs: Vec<(f64, f64)> = Vec::new();
    for (name, schema) in draw(folder, usize::MAX, seed)? {
        if pairs.len() == count {
            break;
        }
        let ask = |format: Value| -> Result<Option<f64>, String> {
            let body = json!({
                "messages": [{"role": "user", "content": "Tell a long story about a river and its fish, as an object."}],
                "max_tokens": MOST_TOKENS, "temperature": 0, "response_format": format,
            });
            let (status, answer) = post(address, &body.to_string())?;
            let timings = &answer["ondine"]["timings"];
            let is_long = timings["generated_tokens"].as_f64() >= Some(LEAST_TOKENS);
            let is_models = timings["stopped_by"] != "made";
            let speed = timings["tokens_per_second"].as_f64();
            Ok(speed.filter(|_| status == 200 && is_long && is_models))
        };
        let format =
            json!({"type": "json_schema", "json_schema": {"name": "example", "schema": schema}});
        let Some(first) = ask(format.clone())? else {
            continue;
        };
        let (mut with, mut without) = (vec![first], Vec::new());
        for _ in 0..3 {
            without.extend(ask(Value::Null)?);
            with.extend(ask(format.clone())?);
        }
        // The first one compiled the schema.
        with.remove(0);
        let pair = (median(&mut with), median(&mut without));
        println!("{name}: {:.1} tokens/s, {:.1} without", pair.0, pair.1);
        pairs.push(pair);
    }
    let mut shares: Vec<f64> = pairs.iter().map(|(with, without)| with / without).collect();
    println!(
        "{} schemas: decoding at {:.1} % of the speed without (median; lowest {:.1} %)",
        shares.len(),
        100.0 * median(&mut shares),
        100.0 * shares.first().copied().unwrap_or(f64::NAN)
    );
    Ok(())
}

/// Sorts them, too.
fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

enum Verdict {
    /// Tokens, and why it ended.
    Conforms(u64, String),
    Refused(String),
    /// The other validator does not take the schema.
    NotJudged,
    Wrong(String),
}

fn report(judged: &[Verdict], seconds: f64) -> Result<(), String> {
    let (mut conform, mut wrong, mut not_judged, mut tokens) = (0, 0, 0, 0);
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ended: BTreeMap<&str, usize> = BTreeMap::new();
    for verdict in judged {
        match verdict {
            Verdict::Conforms(count, reason) => {
                conform += 1;
                tokens += count;
                *ended.entry(reason).or_default() += 1;
            }
            Verdict::Refused(reason) => *refused.entry(reason).or_default() += 1,
            Verdict::NotJudged => not_judged += 1,
            Verdict::Wrong(_) => wrong += 1,
        }
    }
    println!(
        "{} schemas in {seconds:.0} s: {conform} answers conform ({tokens} tokens, ended by {ended:?}), {wrong} do not, {} refused, {not_judged} not judged",
        judged.len(),
        refused.values().sum::<usize>(),
    );
    let mut reasons: Vec<_> = refused.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (reason, count) in reasons.iter().take(40) {
        println!("{count:5} × {reason}");
    }
    match wrong {
        0 => Ok(()),
        wrong => Err(format!("{wrong} answers do not conform")),
    }
}

fn ask(address: &str, schema: &Value) -> Verdict {
    let body = json!({
        "messages": [{"role": "user", "content": "Give an example, as JSON."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}},
    });
    let (status, answer) = match post(address, &body.to_string()) {
        Ok(answer) => answer,
        Err(error) => return Verdict::Wrong(format!("no answer: {error}")),
    };
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    match status {
        200 => (),
        400 => return Verdict::Refused(message.chars().take(140).collect()),
        _ => return Verdict::Wrong(format!("status {status}: {message}")),
    }
    let text = answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap_or_default();
    let reason = answer["ondine"]["timings"]["stopped_by"].as_str();
    let instance: Value = match serde_json::from_str(text) {
        Ok(instance) => instance,
        Err(error) => return Verdict::Wrong(format!("{error} ({reason:?}): {}", tail(text))),
    };
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(schema);
    let Ok(validator) = validator else {
        return Verdict::NotJudged;
    };
    match validator.validate(&instance) {
        Ok(()) => Verdict::Conforms(
            answer["usage"]["completion_tokens"].as_u64().unwrap_or(0),
            reason.unwrap_or_default().to_owned(),
        ),
        Err(error) => {
            let what: String = error.to_string().chars().take(400).collect();
            Verdict::Wrong(format!(
                "{} at {}: {what}",
                error.schema_path(),
                error.instance_path()
            ))
        }
    }
}

fn tail(text: &str) -> String {
    let length = text.chars().count();
    text.chars().skip(length.saturating_sub(200)).collect()
}

fn post(address: &str, body: &str) -> Result<(u16, Value), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).map_err(text)?;
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .map_err(text)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(text)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no head")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let value = serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))?;
    Ok((status.ok_or("no status")?, value))
}

/// `count` of the schemas in `folder`, the same for the same seed.
fn draw(folder: &str, count: usize, seed: u64) -> Result<Vec<(String, Value)>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{folder}: {error}"))?;
    let mut paths: Vec<_> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .collect();
    paths.sort();
    let mut state = seed;
    for index in (1..paths.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        paths.swap(index, (state >> 33) as usize % (index + 1));
    }
    let mut schemas = Vec::new();
    for path in paths.into_iter().take(count) {
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        let mut value: Value =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        if value["tests"].is_array() && value["schema"].is_object() {
            value = value["schema"].take();
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        schemas.push((name.into_owned(), value));
    }
    Ok(schemas)
}
