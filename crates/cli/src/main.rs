//! The `ondine` command: parses, calls a library, prints. One file per verb in `commands/`.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod error;
mod interrupt;
mod output;
mod progress;

use clap::Parser;
use cli::Cli;
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    interrupt::install();
    let mut output = Output::new(&cli.common);
    match commands::run(cli.command, &mut output).and_then(|()| output.finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
