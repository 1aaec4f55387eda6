//! `ondine run`: one prompt, one answer.

use super::generate::{GenerateArgs, answer, speculation_json};
use super::load::{
    LoadArgs, ModelArgs, head_json, peak_resident_bytes, step_downs_json, streaming_json,
};
use crate::error::CliError;
use crate::output::Output;
use ondine_runtime::chat_template::{ChatRequest, Message};
use ondine_runtime::speculate::DraftModel;
use ondine_runtime::tokenizer::EncodeOptions;
use ondine_runtime::{Session, Speculation};
use serde_json::json;
use std::io::{IsTerminal, Read, stdin};
use std::path::PathBuf;
use std::time::Duration;

/// How long a pipe may stay silent before it is taken to hold nothing.
const SILENCE: Duration = Duration::from_millis(300);

/// Arguments of `ondine run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine run 'Why is the sky blue?'
  ondine run -m gemma-3-270m --raw 'The capital of France is' -n 20
  cat notes.txt | ondine run 'Summarise this:'
  ondine run 'A person, as JSON' --json-schema person.json --temp 0
  ondine run 'Hello' --system 'You are a pirate.' --prefix-cache pirate.prefix --json")]
pub struct Args {
    /// The prompt; standard input is added to it, or is the prompt, when it is not a terminal
    prompt: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Instruction for the whole conversation
    #[arg(short, long, value_name = "TEXT")]
    system: Option<String>,
    /// Give the prompt to the model as it is, without its chat template
    #[arg(long, conflicts_with = "system")]
    raw: bool,
    /// Keep the computed beginning of the prompt in this file, and use it if it is there
    #[arg(long, value_name = "FILE")]
    prefix_cache: Option<PathBuf>,
    /// Model that guesses tokens ahead, of the same vocabulary: a name, a .gguf file, or a directory. The text is the
    /// same, it may come sooner
    #[arg(long, value_name = "MODEL", conflicts_with = "no_speculation")]
    draft: Option<String>,
    #[command(flatten)]
    generate: GenerateArgs,
}

/// Answers the prompt.
///
/// # Errors
/// `Failed` when the model, the prompt or the constraint cannot be used.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    args.generate.sampling()?;
    let prompt = prompt(args)?;
    let model = args.model.open(output)?;
    let tokenizer = model.tokenizer().clone();
    let encode = |text: &str, add_special| {
        let options = EncodeOptions {
            add_special,
            parse_special: true,
        };
        tokenizer.encode(text, options)
    };
    let (tokens, shared) = if args.raw {
        let tokens = encode(&prompt, true);
        let length = tokens.len();
        (tokens, length)
    } else {
        let template = model.chat_template().map_err(failed)?;
        if template.is_fallback() {
            output.note(&format!("{} is used", template.origin()));
        }
        let render = |user: &str| {
            let system = args
                .system
                .iter()
                .map(|text| Message::system(text.as_str()));
            let messages = system.chain([Message::user(user)]).collect();
            template.render(&ChatRequest::new(messages)).map_err(failed)
        };
        // Templates write the beginning-of-text token themselves where the model wants one.
        let tokens = model.encode_rendered(&render(&prompt)?);
        let other = model.encode_rendered(&render(&format!("\u{1}{prompt}"))?);
        let shared = tokens
            .iter()
            .zip(&other)
            .take_while(|(a, b)| a == b)
            .count();
        (tokens, shared)
    };
    let mut options = args.generate.options(&model)?;
    let mut session = Session::new(model.clone(), args.load.load(&model, output)?);
    if let Some(name) = &args.draft {
        options.speculation = draft(args, name, &session, output)?;
    }
    if let Some(path) = &args.prefix_cache {
        session
            .use_prefix_file(path, &tokens[..shared])
            .map_err(failed)?;
    }
    let answer = answer(&mut session, &tokens, options, output)?;
    let simulations = args.load.simulations(output);
    if output.is_json() {
        let stats = &answer.stats;
        let device = session.decoder().device();
        return output.json(&json!({
            "text": answer.text,
            "prompt_tokens": stats.prompt_tokens,
            "reused_tokens": stats.reused_tokens,
            "generated_tokens": stats.generated_tokens,
            "ttft_ms": stats.time_to_first_token.as_secs_f64() * 1e3,
            "prefill_tps": stats.prefill_tokens_per_second(),
            "decode_tps": stats.decode_tokens_per_second(),
            "peak_rss_bytes": peak_resident_bytes(),
            "kv_bytes": session.decoder().memory().kv,
            "backend": device.backend,
            "isa": device.device,
            "threads": device.threads,
            "step_downs": step_downs_json(session.decoder().step_downs()),
            "simulations": simulations,
            "head": head_json(&session.decoder().head()),
            "speculation": speculation_json(&stats.speculation),
            "stop": answer.stop.name(),
            "complete": answer.complete,
            "streaming": streaming_json(session.decoder()),
        }));
    }
    Ok(())
}

/// Guesses from the model called `name`, loaded as the other one was.
fn draft(
    args: &Args,
    name: &str,
    session: &Session,
    output: &mut Output,
) -> Result<Speculation, CliError> {
    let mut named = args.model.clone();
    named.model = name.into();
    let model = named.open(output)?;
    let draft = DraftModel::new(Session::new(model.clone(), args.load.load(&model, output)?));
    match draft.mismatch(session) {
        Some(why) => Err(CliError::Failed(format!("--draft {name}: {why}"))),
        None => Ok(Speculation::Drafter(Box::new(draft))),
    }
}

fn prompt(args: &Args) -> Result<String, CliError> {
    let mut piped = String::new();
    if !stdin().is_terminal() && (args.prompt.is_none() || has_input()) {
        stdin()
            .read_to_string(&mut piped)
            .map_err(|error| CliError::Failed(format!("standard input: {error}")))?;
    }
    let prompt = match (&args.prompt, piped.trim().is_empty()) {
        (Some(prompt), true) => prompt.clone(),
        (Some(prompt), false) => format!("{prompt}\n\n{piped}"),
        (None, _) => piped,
    };
    if prompt.is_empty() {
        return Err(CliError::Usage(
            "no prompt: give one as an argument or on standard input".into(),
        ));
    }
    Ok(prompt)
}

/// Whether somebody writes to standard input. With a prompt argument a pipe that stays silent (a
/// service's, a test's) must not hold the command up.
fn has_input() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::{FileType, fstat};
    let input = stdin();
    let Ok(status) = fstat(&input) else {
        return false;
    };
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => true,
        FileType::Fifo => {
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: SILENCE.as_nanos() as i64,
            };
            let mut descriptors = [PollFd::new(&input, PollFlags::IN)];
            poll(&mut descriptors, Some(&wait)).is_ok_and(|ready| ready > 0)
        }
        _ => false,
    }
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}
