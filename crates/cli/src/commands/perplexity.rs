//! `ondine perplexity`: how well a model predicts a text.

use super::load::{LoadArgs, ModelArgs, streaming_json};
use crate::error::CliError;
use crate::interrupt;
use crate::output::Output;
use crate::progress::Bar;
use ondine_runtime::perplexity::perplexity;
use ondine_runtime::tokenizer::EncodeOptions;
use serde_json::json;
use std::path::PathBuf;

/// Tokens of a window unless `--ctx` says otherwise; the convention of published figures.
const DEFAULT_WINDOW: usize = 512;

/// Arguments of `ondine perplexity`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine perplexity text.txt
  ondine perplexity -m gemma-3-270m wiki.valid.txt --ctx 512 --chunks 20 --json

The text is cut into windows of --ctx tokens; the second half of each is scored (llama.cpp's
convention, so that figures compare).")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Text file, UTF-8
    file: PathBuf,
    /// Windows to score at most; all unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
}

/// Scores the text.
///
/// # Errors
/// `Failed` when the model or the text cannot be used.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let name = args.file.display();
    let bytes =
        std::fs::read(&args.file).map_err(|error| CliError::Failed(format!("{name}: {error}")))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| CliError::Failed(format!("{name}: is not UTF-8; convert it first")))?;
    let model = args.model.open(output)?;
    let tokenizer = model.tokenizer();
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let tokens = tokenizer.encode(
        text,
        EncodeOptions {
            add_special: true,
            parse_special: false,
        },
    );
    let window = args
        .load
        .context
        .map_or(DEFAULT_WINDOW, |tokens| tokens as usize);
    if tokens.len() < window || window < 4 {
        return Err(CliError::Failed(format!(
            "{name}: has {} tokens, too few for a window of {window}; give more text or another --ctx",
            tokens.len()
        )));
    }
    let begin = tokenizer.adds_bos().then(|| tokenizer.bos()).flatten();
    let mut options = args.load.options();
    if options.memory_budget.is_some() {
        // A budget cuts the context where none is asked for.
        options.context = Some(window);
    }
    let mut decoder = args.load.load_with(&model, &options, output)?;
    let bar = Bar::new(output, "windows");
    let most = args.chunks.map(|windows| windows as usize);
    let result = perplexity(
        decoder.as_mut(),
        &tokens,
        window,
        most,
        begin,
        |done, all, so_far| {
            bar.set(done, all, &format!("perplexity {so_far:.4}"));
            !interrupt::is_interrupted()
        },
    );
    bar.finish();
    let result = result.map_err(|error| CliError::Failed(error.to_string()))?;
    if interrupt::is_interrupted() {
        return Err(CliError::Interrupted("interrupted".into()));
    }
    if output.is_json() {
        return output.json(&json!({
            "nll": result.nll,
            "ppl": result.ppl,
            "standard_error": result.standard_error,
            "tokens": result.tokens,
            "chunks": result.windows,
            "ctx": window,
            "isa": decoder.device().device,
            "streaming": streaming_json(decoder.as_ref()),
        }));
    }
    output.line(&format!(
        "perplexity {:.4} ± {:.4} ({} tokens scored in {} windows of {window})",
        result.ppl,
        result.ppl * result.standard_error,
        result.tokens,
        result.windows,
    ))
}
