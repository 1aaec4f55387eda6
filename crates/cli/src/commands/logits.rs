//! `ondine logits`: the scores of every next token, for comparing engines.

use super::load::{LoadArgs, ModelArgs};
use crate::error::CliError;
use crate::output::Output;
use ondine_runtime::backend::{KvType, Run, Scores, Select, Wanted};
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

/// Arguments of `ondine logits`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine logits --tokens 19556,28,905 --out scores.f32
  ondine logits -m tiny.gguf --tokens 1,2,3 --out scores.f32

The file holds little-endian 32-bit floats, shape [tokens, vocabulary].")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Token ids, separated by commas
    #[arg(long, value_delimiter = ',', required = true, value_name = "IDS")]
    tokens: Vec<u32>,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Computes and writes the scores.
///
/// # Errors
/// `Failed` when the model or the file cannot be used.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let model = args.model.open(output)?;
    let mut options = args.load.options();
    options.screened_head = false;
    if args.load.kv_type.is_none() {
        // Engines are compared here: no rounding that was not asked for.
        options.kv_type = KvType::F32;
    }
    let mut decoder = args.load.load_with(&model, &options, output)?;
    let failed =
        |error: std::io::Error| CliError::Failed(format!("{}: {error}", args.out.display()));
    let mut file = BufWriter::new(File::create(&args.out).map_err(failed)?);
    let sequence = decoder.start();
    let run = Run {
        sequence,
        tokens: &args.tokens,
        wanted: Wanted::From(0),
        select: Select::All,
    };
    let mut written = Ok(());
    decoder
        .forward(&[run], &mut |scored| {
            let Scores::All(logits) = scored.scores else {
                return;
            };
            for logit in logits {
                if written.is_ok() {
                    written = file.write_all(&logit.to_le_bytes());
                }
            }
        })
        .map_err(|error| CliError::Failed(error.to_string()))?;
    written.and_then(|()| file.flush()).map_err(failed)?;
    let shape = [args.tokens.len(), model.spec().vocabulary];
    if output.is_json() {
        return output
            .json(&json!({"out": args.out, "shape": shape, "isa": decoder.device().device}));
    }
    output.line(&format!(
        "{} scores of {} tokens in {}",
        shape[0],
        shape[1],
        args.out.display()
    ))
}
