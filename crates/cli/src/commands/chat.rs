//! `ondine chat`: a conversation in the terminal.

use super::generate::{GenerateArgs, answer};
use super::load::{LoadArgs, ModelArgs};
use crate::error::CliError;
use crate::interrupt;
use crate::output::Output;
use ondine_runtime::Session;
use ondine_runtime::chat_template::{ChatRequest, Message};
use std::io::{IsTerminal, Write, stdin, stdout};

/// Arguments of `ondine chat`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine chat
  ondine chat -m gemma-3-270m --system 'Answer in one sentence.'

In the conversation: /clear begins anew, /stats shows the last answer's figures, /quit or the end of
the input ends it. Ctrl-C stops an answer.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Instruction for the whole conversation
    #[arg(short, long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    generate: GenerateArgs,
}

/// Talks until the input ends.
///
/// # Errors
/// `Failed` when the model cannot be used.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
    args.generate.sampling()?;
    let model = args.model.open(output)?;
    let template = model.chat_template().map_err(|error| failed(&error))?;
    if template.is_fallback() {
        output.note(&format!("{} is used", template.origin()));
    }
    let mut session = Session::new(model.clone(), args.load.load(&model, output)?);
    let opening: Vec<Message> = args
        .system
        .iter()
        .map(|text| Message::system(text.as_str()))
        .collect();
    let mut messages = opening.clone();
    let interactive = stdin().is_terminal();
    let mut figures = String::from("no answer yet");
    loop {
        if interactive {
            output.flush()?;
            let _ = write!(stdout(), "> ").and_then(|()| stdout().flush());
        }
        let mut line = String::new();
        let read = stdin()
            .read_line(&mut line)
            .map_err(|error| CliError::Failed(format!("standard input: {error}")))?;
        if read == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => return Ok(()),
            "/clear" => {
                messages.clone_from(&opening);
                session.clear();
                continue;
            }
            "/stats" => {
                output.line(&figures)?;
                continue;
            }
            text => messages.push(Message::user(text)),
        }
        let request = ChatRequest::new(messages.clone());
        let rendered = template.render(&request).map_err(|error| failed(&error))?;
        let tokens = model.encode_rendered(&rendered);
        let options = args.generate.options(&model)?;
        let answer = answer(&mut session, &tokens, options, output)?;
        interrupt::clear();
        let stats = &answer.stats;
        figures = format!(
            "{} prompt tokens ({} reused), {} generated; first token after {:.0} ms, then {:.1} tokens/s; stopped by {}",
            stats.prompt_tokens,
            stats.reused_tokens,
            stats.generated_tokens,
            stats.time_to_first_token.as_secs_f64() * 1e3,
            stats.decode_tokens_per_second(),
            answer.stop.name()
        );
        if output.is_json() {
            output.json(&serde_json::json!({"role": "assistant", "content": answer.text}))?;
            output.flush()?;
        }
        messages.push(Message::assistant(answer.text));
    }
}
