//! The verbs: each file holds its `Args` and its `run`.

use crate::error::CliError;
use crate::output::Output;
use clap::Subcommand;

#[cfg(feature = "package")]
mod apply;
mod bench;
mod cache;
#[cfg(feature = "compress")]
mod calibrate;
mod chat;
#[cfg(feature = "completions")]
mod completions;
#[cfg(feature = "package")]
mod delivery;
mod detokenize;
#[cfg(feature = "npu")]
mod devices;
#[cfg(feature = "package")]
mod diff;
#[cfg(feature = "compress")]
mod eval;
#[cfg(feature = "npu")]
mod export;
#[cfg(feature = "compress")]
mod gate;
#[cfg(feature = "package")]
mod gc;
mod generate;
mod inspect;
#[cfg(feature = "package")]
mod installed;
#[cfg(feature = "package")]
mod keygen;
mod load;
mod logits;
#[cfg(feature = "completions")]
mod man;
mod models;
#[cfg(feature = "package")]
mod pack;
mod perplexity;
#[cfg(feature = "npu")]
mod plan;
#[cfg(feature = "hybrid")]
mod policy;
#[cfg(feature = "package")]
mod publish;
#[cfg(feature = "pull")]
mod pull;
#[cfg(feature = "compress")]
mod quantize;
#[cfg(feature = "hybrid")]
mod redact;
#[cfg(all(feature = "package", feature = "pull"))]
mod registry;
#[cfg(feature = "package")]
mod remote;
#[cfg(feature = "package")]
mod rollback;
#[cfg(feature = "hybrid")]
mod route;
mod run;
#[cfg(feature = "package")]
mod seal;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "package")]
mod sign;
#[cfg(feature = "package")]
mod status;
mod tokenize;
#[cfg(feature = "package")]
mod unseal;
#[cfg(feature = "package")]
mod update;
#[cfg(feature = "package")]
mod verify;

/// One line per verb, in the order of the help text.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Download a model and print where it is
    #[cfg(feature = "pull")]
    Pull(pull::Args),
    /// List the models that are known by name
    Models(models::Args),
    /// Answer one prompt
    Run(run::Args),
    /// Talk with a model
    Chat(chat::Args),
    /// Serve models over HTTP, with the interfaces of OpenAI and Ollama and a page
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    /// Turn text into token ids
    Tokenize(tokenize::Args),
    /// Turn token ids into text
    Detokenize(detokenize::Args),
    /// Write the scores of every next token
    Logits(logits::Args),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::Args),
    /// Measure how fast a model runs here
    Bench(bench::Args),
    /// Write a model with smaller tensor types
    #[cfg(feature = "compress")]
    Quantize(quantize::Args),
    /// Measure which columns of a model's matrices matter
    #[cfg(feature = "compress")]
    Calibrate(calibrate::Args),
    /// Measure what a model can do
    #[cfg(feature = "compress")]
    Eval(eval::Args),
    /// Judge whether a model may replace another
    #[cfg(feature = "compress")]
    Gate(gate::Args),
    /// Predict how fast a model would run on a device that is not here
    #[cfg(feature = "npu")]
    Plan(plan::Args),
    /// List where models could run here, and why not elsewhere
    #[cfg(feature = "npu")]
    Devices(devices::Args),
    /// Write a model in the format of a vendor runtime
    #[cfg(feature = "npu")]
    Export(export::Args),
    /// Show what a model is
    Inspect(inspect::Args),
    /// Show or remove the packed weights that are kept on disk
    Cache(cache::Args),
    /// Find personal data and secrets in a text, and replace them
    #[cfg(feature = "hybrid")]
    Redact(redact::Args),
    /// Check a policy, or start from one
    #[cfg(feature = "hybrid")]
    Policy(policy::Args),
    /// Say where a prompt would be answered, and why
    #[cfg(feature = "hybrid")]
    Route(route::Args),
    /// Make a pair of keys, to sign or to seal models
    #[cfg(feature = "package")]
    Keygen(keygen::Args),
    /// Put a model and what belongs to it into a bundle
    #[cfg(feature = "package")]
    Pack(pack::Args),
    /// Sign a model
    #[cfg(feature = "package")]
    Sign(sign::Args),
    /// Check that a model is what was signed
    #[cfg(feature = "package")]
    Verify(verify::Args),
    /// Encrypt a model for some recipients
    #[cfg(feature = "package")]
    Seal(seal::Args),
    /// Decrypt a sealed model
    #[cfg(feature = "package")]
    Unseal(unseal::Args),
    /// Write what turns one version of a model into the next
    #[cfg(feature = "package")]
    Diff(diff::Args),
    /// Make the next version of a model from a delta
    #[cfg(feature = "package")]
    Apply(apply::Args),
    /// Offer a model's releases to devices
    #[cfg(feature = "package")]
    Publish(publish::Args),
    /// Bring an installed model to the release it should have
    #[cfg(feature = "package")]
    Update(update::Args),
    /// Say what is installed
    #[cfg(feature = "package")]
    Status(status::Args),
    /// Return an installed model to the release before
    #[cfg(feature = "package")]
    Rollback(rollback::Args),
    /// Remove what no installed release needs
    #[cfg(feature = "package")]
    Gc(gc::Args),
    /// Print a completion script for a shell
    #[cfg(feature = "completions")]
    Completions(completions::Args),
    /// Print the manual page, or write one page per verb
    #[cfg(feature = "completions")]
    Man(man::Args),
}

/// Runs a verb.
///
/// # Errors
/// Whatever the verb answers.
pub fn run(command: Command, output: &mut Output) -> Result<(), CliError> {
    match command {
        #[cfg(feature = "pull")]
        Command::Pull(args) => pull::run(&args, output),
        Command::Models(args) => models::run(&args, output),
        Command::Run(args) => run::run(&args, output),
        Command::Chat(args) => chat::run(&args, output),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(&args, output),
        Command::Tokenize(args) => tokenize::run(&args, output),
        Command::Detokenize(args) => detokenize::run(&args, output),
        Command::Logits(args) => logits::run(&args, output),
        Command::Perplexity(args) => perplexity::run(&args, output),
        Command::Bench(args) => bench::run(&args, output),
        #[cfg(feature = "compress")]
        Command::Quantize(args) => quantize::run(&args, output),
        #[cfg(feature = "compress")]
        Command::Calibrate(args) => calibrate::run(&args, output),
        #[cfg(feature = "compress")]
        Command::Eval(args) => eval::run(&args, output),
        #[cfg(feature = "compress")]
        Command::Gate(args) => gate::run(&args, output),
        #[cfg(feature = "npu")]
        Command::Plan(args) => plan::run(&args, output),
        #[cfg(feature = "npu")]
        Command::Devices(args) => devices::run(&args, output),
        #[cfg(feature = "npu")]
        Command::Export(args) => export::run(&args, output),
        Command::Inspect(args) => inspect::run(&args, output),
        Command::Cache(args) => cache::run(&args, output),
        #[cfg(feature = "hybrid")]
        Command::Redact(args) => redact::run(&args, output),
        #[cfg(feature = "hybrid")]
        Command::Policy(args) => policy::run(&args, output),
        #[cfg(feature = "hybrid")]
        Command::Route(args) => route::run(&args, output),
        #[cfg(feature = "package")]
        Command::Keygen(args) => keygen::run(&args, output),
        #[cfg(feature = "package")]
        Command::Pack(args) => pack::run(&args, output),
        #[cfg(feature = "package")]
        Command::Sign(args) => sign::run(&args, output),
        #[cfg(feature = "package")]
        Command::Verify(args) => verify::run(&args, output),
        #[cfg(feature = "package")]
        Command::Seal(args) => seal::run(&args, output),
        #[cfg(feature = "package")]
        Command::Unseal(args) => unseal::run(&args, output),
        #[cfg(feature = "package")]
        Command::Diff(args) => diff::run(&args, output),
        #[cfg(feature = "package")]
        Command::Apply(args) => apply::run(&args, output),
        #[cfg(feature = "package")]
        Command::Publish(args) => publish::run(&args, output),
        #[cfg(feature = "package")]
        Command::Update(args) => update::run(&args, output),
        #[cfg(feature = "package")]
        Command::Status(args) => status::run(&args, output),
        #[cfg(feature = "package")]
        Command::Rollback(args) => rollback::run(&args, output),
        #[cfg(feature = "package")]
        Command::Gc(args) => gc::run(&args, output),
        #[cfg(feature = "completions")]
        Command::Completions(args) => completions::run(&args, output),
        #[cfg(feature = "completions")]
        Command::Man(args) => man::run(&args, output),
    }
}
