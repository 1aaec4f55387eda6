//! `ondine detokenize`: token ids to text.

use super::load::ModelArgs;
use crate::error::CliError;
use crate::output::Output;
use ondine_runtime::Limits;
use ondine_runtime::tokenizer::Tokenizer;
use serde_json::json;
use std::io::{Read, stdin};

/// Arguments of `ondine detokenize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine detokenize 19556 28 905 17
  echo '[19556, 28, 905, 17]' | ondine detokenize --json")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids; read from standard input when there are none
    ids: Vec<u32>,
    /// Leave out special tokens
    #[arg(long)]
    no_special: bool,
}

/// Prints the text of the ids.
///
/// # Errors
/// `Failed` when the vocabulary or the ids cannot be used.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let path = args.model.path(output)?;
    let tokenizer = Tokenizer::open(&path, &Limits::default())
        .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?;
    let mut ids = args.ids.clone();
    if ids.is_empty() {
        let mut text = String::new();
        stdin()
            .lock()
            .read_to_string(&mut text)
            .map_err(|error| CliError::Failed(format!("standard input: {error}")))?;
        for word in text.split(|c: char| c.is_whitespace() || ",[]".contains(c)) {
            if !word.is_empty() {
                ids.push(word.parse().map_err(|_| {
                    CliError::Failed(format!("standard input: `{word}` is not a token id"))
                })?);
            }
        }
    }
    let vocabulary = tokenizer.vocab_len();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        return Err(CliError::Failed(format!(
            "token {id} is not in the vocabulary of {vocabulary} tokens"
        )));
    }
    let text = tokenizer.decode(&ids, !args.no_special);
    if output.is_json() {
        return output.json(&json!({"text": text}));
    }
    output.line(&text)
}
