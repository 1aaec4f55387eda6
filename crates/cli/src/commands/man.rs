//! `ondine man`: the manual, from the same definitions as the help text.

use crate::cli::Cli;
use crate::error::CliError;
use crate::output::Output;
use clap::CommandFactory;
use std::path::PathBuf;

/// Arguments of `ondine man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine man | man -l -
  ondine man --dir ~/.local/share/man/man1")]
pub struct Args {
    /// Write ondine.1 and one page per verb into this directory, which is made if need be
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

/// Prints the page of the command, or writes all pages.
///
/// # Errors
/// `Failed`, naming the file that cannot be written.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let command = Cli::command();
    let Some(directory) = &args.dir else {
        return output.write(&page(command)?);
    };
    let failed = |error| {
        CliError::Failed(format!(
            "cannot write pages to {}: {error}",
            directory.display()
        ))
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(command, directory).map_err(failed)?;
    output.line(&directory.display().to_string())
}

fn page(command: clap::Command) -> Result<String, CliError> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
