//! `ondine completions`: a script for the user's shell.

use crate::cli::Cli;
use crate::error::CliError;
use crate::output::Output;
use clap::CommandFactory;
use clap_complete::Shell;

/// Arguments of `ondine completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine completions bash > ~/.local/share/bash-completion/completions/ondine
  ondine completions zsh > ~/.zfunc/_ondine
  ondine completions fish > ~/.config/fish/completions/ondine.fish")]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// None but a closed standard output.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ondine", &mut script);
    output.write(&String::from_utf8_lossy(&script))
}
