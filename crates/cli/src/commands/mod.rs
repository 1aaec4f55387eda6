//! The verbs: each file holds its `Args` and its `run`.

use crate::error::CliError;
use crate::output::Output;
use clap::Subcommand;

#[cfg(feature = "completions")]
mod completions;
#[cfg(feature = "completions")]
mod man;
mod models;
#[cfg(feature = "pull")]
mod pull;

/// One line per verb, in the order of the help text.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Download a model and print where it is
    #[cfg(feature = "pull")]
    Pull(pull::Args),
    /// List the models that are known by name
    Models(models::Args),
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
        #[cfg(feature = "completions")]
        Command::Completions(args) => completions::run(&args, output),
        #[cfg(feature = "completions")]
        Command::Man(args) => man::run(&args, output),
    }
}
