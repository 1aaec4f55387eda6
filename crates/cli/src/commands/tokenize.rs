//! `ondine tokenize`: text to token ids.

use super::load::ModelArgs;
use crate::error::CliError;
use crate::output::Output;
use ondine_runtime::Limits;
use ondine_runtime::tokenizer::{EncodeOptions, Tokenizer};
use serde::Deserialize;
use serde_json::json;
use std::io::{BufRead, Read, stdin};

/// Arguments of `ondine tokenize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  echo -n 'Hello, world!' | ondine tokenize --json
  ondine tokenize -m vocabulary.gguf --no-special < text.txt
  ondine tokenize --jsonl < lines.jsonl     one {\"text\":…} a line gives one {\"ids\":…} a line

A vocabulary alone (a GGUF file without tensors) is enough.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Add no beginning-of-text token and read special tokens as plain text
    #[arg(long)]
    no_special: bool,
    /// One JSON object with `text` a line in, one with `ids` a line out
    #[arg(long)]
    jsonl: bool,
}

#[derive(Deserialize)]
struct Line {
    text: String,
}

/// Tokenises standard input.
///
/// # Errors
/// `Failed` when the vocabulary or the input cannot be used.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let path = args.model.path(output)?;
    let tokenizer = Tokenizer::open(&path, &Limits::default())
        .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?;
    let options = EncodeOptions {
        add_special: !args.no_special,
        parse_special: !args.no_special,
    };
    let input = |error: std::io::Error| CliError::Failed(format!("standard input: {error}"));
    if args.jsonl {
        for (index, line) in stdin().lock().lines().enumerate() {
            let line = line.map_err(input)?;
            if line.trim().is_empty() {
                continue;
            }
            let line: Line = serde_json::from_str(&line).map_err(|error| {
                CliError::Failed(format!("standard input, line {}: {error}", index + 1))
            })?;
            output.json(&json!({"ids": tokenizer.encode(&line.text, options)}))?;
        }
        return Ok(());
    }
    let mut text = String::new();
    stdin().lock().read_to_string(&mut text).map_err(input)?;
    let ids = tokenizer.encode(&text, options);
    if output.is_json() {
        let pieces: Vec<String> = ids
            .iter()
            .map(|&id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned())
            .collect();
        return output.json(&json!({"ids": ids, "pieces": pieces}));
    }
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    output.line(&ids.join(" "))
}
