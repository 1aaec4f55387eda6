//! `ondine redact`: personal data and secrets, found and replaced by placeholders.

use crate::error::CliError;
use crate::output::Output;
use ondine_hybrid::RestoreMap;
use ondine_hybrid::pii::{
    Dictionary, Entity, Finding, ScanError, ScanOptions, Scanner, Strictness,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Read, stdin};
use std::path::{Path, PathBuf};

/// Arguments of `ondine redact`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  echo 'Call +1 415 555 0132' | ondine redact
  ondine redact --restore-map map.json < letter.txt > safe.txt
  ondine redact --restore map.json < answer.txt
  ondine redact --json --entities EMAIL_ADDRESS,IBAN_CODE < letter.txt
  ondine redact --jsonl < lines.jsonl

With --jsonl each line in is {\"text\":…,\"lang\":…,\"entities\":[…]} and each line out {\"spans\":[{\"entity\",\"start\",\"end\",
\"score\",\"confidence\"}]} with byte offsets. `score` is what format and check digits say, `confidence` what words near it add.")]
pub struct Args {
    /// Read this file instead of standard input
    file: Option<PathBuf>,
    /// Only these kinds, separated by commas
    #[arg(long, value_delimiter = ',', conflicts_with = "all_entities")]
    entities: Vec<String>,
    /// Every kind at every confidence, however unlikely
    #[arg(long)]
    all_entities: bool,
    /// Least confidence, 0 to 1 [default: 0.4; 0 with --all-entities, --entities or --jsonl]
    #[arg(long, value_name = "S")]
    min_score: Option<f32>,
    /// Write what the placeholders stand for into this file, which holds the personal data
    #[arg(long, value_name = "FILE", conflicts_with = "jsonl")]
    restore_map: Option<PathBuf>,
    /// Put the originals of this restore map back instead of redacting
    #[arg(long, value_name = "FILE", conflicts_with_all = ["jsonl", "restore_map", "entities", "all_entities", "min_score"])]
    restore: Option<PathBuf>,
    /// Words of your own, one a line, as KIND=FILE; may be given several times
    #[arg(long, value_name = "KIND=FILE")]
    dictionary: Vec<String>,
    /// Drop numbers that fail a check which not every issuer applies
    #[arg(long)]
    strict: bool,
    /// One JSON request a line in, one JSON answer a line out
    #[arg(long)]
    jsonl: bool,
    /// List the kinds that can be found
    #[arg(long)]
    list: bool,
}

#[derive(Deserialize)]
struct Line {
    text: String,
    #[serde(default)]
    entities: Option<Vec<String>>,
    #[serde(default)]
    min_score: Option<f32>,
    #[serde(default)]
    config: BTreeMap<String, Value>,
}

/// Longest input, in bytes.
const MAX_INPUT: u64 = 1 << 30;

/// Redacts, restores, or answers lines.
///
/// # Errors
/// `Usage` for kinds that do not exist, `Failed` when a file cannot be read or written.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    if let Some(path) = &args.restore {
        let map: RestoreMap = serde_json::from_str(&read(path)?).map_err(|error| {
            CliError::Failed(format!("{}: no restore map: {error}", path.display()))
        })?;
        return output.write(&map.restore(&input(args)?));
    }
    let scanner = scanner(args)?;
    if args.list {
        for entity in scanner.known_entities() {
            output.line(entity.name())?;
        }
        return Ok(());
    }
    if args.jsonl {
        return lines(args, &scanner, output);
    }
    let text = input(args)?;
    let findings = scanner.scan(&text);
    let mut map = RestoreMap::default();
    let redacted = map.redact(&text, &findings);
    if let Some(path) = &args.restore_map {
        write_private(
            path,
            &serde_json::to_string_pretty(&map).unwrap_or_default(),
        )?;
    }
    if output.is_json() {
        output.json(&json!({"text": redacted, "spans": spans(&findings), "placeholders": map.entries().count()}))
    } else {
        output.write(&redacted)
    }
}

fn lines(args: &Args, scanner: &Scanner, output: &mut Output) -> Result<(), CliError> {
    let mut line = String::new();
    let mut number = 0;
    let mut reader: Box<dyn BufRead> = match &args.file {
        Some(path) => Box::new(std::io::BufReader::new(
            std::fs::File::open(path).map_err(|error| failed(path, &error))?,
        )),
        None => Box::new(stdin().lock()),
    };
    loop {
        line.clear();
        number += 1;
        let at =
            |error: &dyn std::fmt::Display| CliError::Failed(format!("line {number}: {error}"));
        if reader
            .by_ref()
            .take(MAX_INPUT)
            .read_line(&mut line)
            .map_err(|error| at(&error))?
            == 0
        {
            return Ok(());
        }
        if line.trim().is_empty() {
            continue;
        }
        let request: Line = serde_json::from_str(&line).map_err(|error| at(&error))?;
        let mut options = scanner.options().clone();
        if let Some(names) = &request.entities {
            options.entities = Some(names.iter().map(|name| Entity::named(name)).collect());
        }
        if let Some(score) = request.min_score {
            options.min_confidence = score;
        }
        if request.config.get("strict_checksum").is_some_and(is_true) {
            options.strictness = Strictness::Strict;
        }
        let findings = scanner.with_options(options).scan(&request.text);
        output.json(&json!({"spans": spans(&findings)}))?;
        output.flush()?;
    }
}

fn is_true(value: &Value) -> bool {
    value.as_bool().unwrap_or(false)
        || value
            .as_str()
            .is_some_and(|text| text.eq_ignore_ascii_case("true"))
}

fn scanner(args: &Args) -> Result<Scanner, CliError> {
    let failed = |error: ScanError| CliError::Failed(error.to_string());
    let everything = args.all_entities || args.jsonl || !args.entities.is_empty();
    let default = if everything {
        0.0
    } else {
        ScanOptions::ORDINARY
    };
    let entities: BTreeSet<Entity> = args
        .entities
        .iter()
        .map(|name| Entity::named(name.trim()))
        .collect();
    let options = ScanOptions {
        entities: (!entities.is_empty()).then(|| entities.clone()),
        min_confidence: args.min_score.unwrap_or(default),
        strictness: if args.strict {
            Strictness::Strict
        } else {
            Strictness::Lenient
        },
    };
    let mut scanner = Scanner::new(options).map_err(failed)?;
    let mut known = scanner.known_entities();
    for dictionary in &args.dictionary {
        let Some((kind, file)) = dictionary.split_once('=') else {
            return Err(CliError::Usage(format!(
                "--dictionary {dictionary}: write KIND=FILE"
            )));
        };
        let words = read(Path::new(file))?;
        known.insert(Entity::named(kind));
        scanner = scanner
            .with_dictionary(Dictionary::new(Entity::named(kind), words.lines()).map_err(failed)?);
    }
    match entities.difference(&known).next() {
        Some(unknown) => Err(CliError::Usage(format!(
            "{unknown} is no known kind; `ondine redact --list` names them"
        ))),
        None => Ok(scanner),
    }
}

/// Spans with scores rounded to what they mean: two places.
fn spans(findings: &[Finding]) -> Vec<Value> {
    let rounded = |score: f32| (f64::from(score) * 100.0).round() / 100.0;
    findings
        .iter()
        .map(|finding| {
            json!({
                "entity": finding.entity,
                "start": finding.start,
                "end": finding.end,
                "score": rounded(finding.score),
                "confidence": rounded(finding.confidence),
            })
        })
        .collect()
}

fn input(args: &Args) -> Result<String, CliError> {
    match &args.file {
        Some(path) => read(path),
        None => {
            let mut text = String::new();
            let error =
                |error: std::io::Error| CliError::Failed(format!("standard input: {error}"));
            stdin()
                .lock()
                .take(MAX_INPUT)
                .read_to_string(&mut text)
                .map_err(error)?;
            Ok(text)
        }
    }
}

fn read(path: &Path) -> Result<String, CliError> {
    let size = std::fs::metadata(path)
        .map_err(|error| failed(path, &error))?
        .len();
    if size > MAX_INPUT {
        return Err(CliError::Failed(format!(
            "{}: larger than 1 GiB; split it",
            path.display()
        )));
    }
    std::fs::read_to_string(path).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> CliError {
    CliError::Failed(format!("{}: {error}", path.display()))
}

/// Writes a file that only its owner can read.
fn write_private(path: &Path, text: &str) -> Result<(), CliError> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(path).map_err(|error| failed(path, &error))?;
    writeln!(file, "{text}").map_err(|error| failed(path, &error))
}
