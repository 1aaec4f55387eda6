//! `ondine serve`: models over HTTP.

use super::load::{DEFAULT_MODEL, LoadArgs, ModelArgs};
use crate::error::CliError;
use crate::interrupt;
use crate::output::Output;
use ondine_hybrid::policy::Policy;
use ondine_runtime::{Limits, Model};
use ondine_server::engine::{Engine, EngineOptions};
use ondine_server::{
    App, Hybrid, HybridOptions, Models, Offer, OnDevice, Placement, Server, ServerOptions,
};
use serde_json::json;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// Arguments of `ondine serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine serve
  ondine serve -m smollm2-135m-instruct -m gemma-3-270m --listen 127.0.0.1:9000
  ondine serve --policy policy.toml
  ondine serve --listen 0.0.0.0:8080 --token \"$(cat token)\"

  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'

OpenAI's clients take http://127.0.0.1:8080/v1 as base URL, Ollama's http://127.0.0.1:8080 as host; a browser finds a page at /.
Ctrl-C lets running answers finish; a second one ends at once.")]
pub struct Args {
    /// Model: a name from `ondine models`, a .gguf file, or a directory; may be repeated, the first is the default
    #[arg(short, long = "model", value_name = "MODEL", default_value = DEFAULT_MODEL)]
    models: Vec<String>,
    #[command(flatten)]
    load: LoadArgs,
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Token that requests must carry; needed to listen on an address that others can reach
    #[arg(long, env = "ONDINE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Origin whose pages may use the server, such as https://example.org; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Conversations computed together at most
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=512))]
    parallel: u16,
    /// Requests that may wait; more are refused
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: u16,
    /// Megabytes for keys and values, of running and of kept conversations
    #[arg(long, value_name = "MB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    kv_memory: u32,
    /// Megabytes of those for conversations that ended, kept for those that begin alike; 0 keeps none
    #[arg(long, value_name = "MB", default_value_t = 256)]
    prefix_cache: u32,
    /// What may be answered elsewhere, and where; without one everything is answered here
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Hand over to a provider, if the policy lets it, where the mean log-probability of 16 tokens falls below this
    #[arg(
        long,
        value_name = "LOGPROB",
        requires = "policy",
        allow_negative_numbers = true
    )]
    unsure_below: Option<f32>,
    /// Kilobytes of a request at most
    #[arg(long, value_name = "KB", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    max_request: u32,
    /// Seconds for a whole answer; requests may ask for less
    #[arg(long, value_name = "SECONDS", default_value_t = 900, value_parser = clap::value_parser!(u32).range(1..))]
    answer_timeout: u32,
}

/// Serves until it is interrupted.
///
/// # Errors
/// `Refused` for an address that others can reach without a token; `Failed` when a model cannot be used or the address is taken.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    if args
        .token
        .as_ref()
        .is_some_and(|token| token.trim().is_empty())
    {
        return Err(CliError::Usage(
            "the token is empty; give one that cannot be guessed".into(),
        ));
    }
    let options = ServerOptions {
        token: args.token.clone(),
        origins: args.allow_origin.clone(),
        body_bytes: args.max_request as usize * 1000,
        answer_timeout: Duration::from_secs(args.answer_timeout.into()),
        ..ServerOptions::default()
    };
    if options.token.is_none() && !args.listen.ip().is_loopback() {
        return Err(CliError::Refused(format!(
            "{} can be reached by others: give a --token that they need",
            args.listen.ip()
        )));
    }
    let offers: Vec<Offer> = args
        .models
        .iter()
        .map(|name| offer(name, args, output))
        .collect::<Result<_, _>>()?;
    for (index, offer) in offers.iter().enumerate() {
        if offers[..index].iter().any(|other| other.name == offer.name) {
            return Err(CliError::Usage(format!(
                "two models are called {}; rename one file",
                offer.name
            )));
        }
    }
    let placement = placement(args)?;
    let names: Vec<String> = offers.iter().map(|offer| offer.name.clone()).collect();
    let models = Models::new(offers);
    models.engine(None).map_err(failed)?;
    let app = App::new(models, placement, options).map_err(failed)?;
    let server = Server::bind(args.listen, app).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => CliError::Failed(format!(
            "{} is taken; choose another port with --listen",
            args.listen
        )),
        _ => CliError::Failed(format!("{}: {error}", args.listen)),
    })?;
    let address = server.address().map_err(failed)?;
    match output.is_json() {
        true => output.json(&json!({"address": address.to_string(), "url": format!("http://{address}"), "models": names}))?,
        false => output.line(&format!("http://{address} serves {}", names.join(", ")))?,
    }
    output.flush()?;
    server.run(&interrupt::is_interrupted).map_err(failed)
}

/// Where requests run: here, or where the policy lets them.
fn placement(args: &Args) -> Result<Box<dyn Placement>, CliError> {
    let Some(path) = &args.policy else {
        return Ok(Box::new(OnDevice));
    };
    if args.unsure_below.is_some_and(|bound| !bound.is_finite()) {
        let message = "--unsure-below must be a number, such as -2.5";
        return Err(CliError::Usage(message.into()));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?;
    let policy = Policy::parse(&text)
        .map_err(|error| CliError::Refused(format!("{}: {error}", path.display())))?;
    let options = HybridOptions {
        unsure_below: args.unsure_below,
        ..HybridOptions::default()
    };
    let hybrid = Hybrid::new(policy, options)
        .map_err(|error| CliError::Refused(format!("{}: {error}", path.display())))?;
    Ok(Box::new(hybrid))
}

/// What a model of the command line offers; its weights are loaded when they are first needed.
fn offer(name: &str, args: &Args, output: &Output) -> Result<Offer, CliError> {
    let path = ModelArgs::named(name).path(output)?;
    let metadata = std::fs::metadata(&path).ok();
    // One model is loaded at a time from them.
    let load = Mutex::new(args.load.clone());
    let quiet = output.is_quiet();
    let engine = EngineOptions {
        parallel: args.parallel.into(),
        queue: args.queue.into(),
        kv_bytes: u64::from(args.kv_memory) * 1_000_000,
        prefix_bytes: u64::from(args.prefix_cache) * 1_000_000,
    };
    let shown = match Path::new(name).exists() {
        true => path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        false => name.to_owned(),
    };
    Ok(Offer {
        name: shown,
        modified: metadata
            .as_ref()
            .and_then(|data| data.modified().ok())
            .unwrap_or(SystemTime::UNIX_EPOCH),
        bytes: metadata.map_or(0, |data| data.len()),
        loader: Box::new(move || {
            let model = Model::open(&path, &Limits::default());
            let model = Arc::new(model.map_err(|error| error.to_string())?);
            let load = load
                .lock()
                .map_err(|_| "loading failed; start the server again")?;
            let decoder = load.load_remarking(&model, &load.options(), quiet);
            let decoder = decoder.map_err(|error| error.to_string())?;
            Engine::start(model, decoder, engine)
                .map_err(|error| format!("there is no thread for the model: {error}"))
        }),
    })
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}
