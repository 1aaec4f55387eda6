//! `ondine policy`: checks a policy, shows its rules, prints examples and the schema.

use crate::error::CliError;
use crate::output::Output;
use ondine_hybrid::pii::DataClass;
use ondine_hybrid::policy::{EXAMPLES, Policy, SCHEMA};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `ondine policy`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine policy example office > policy.toml
  ondine policy check policy.toml
  ondine policy schema

Without a policy nothing leaves the device.")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Read a policy and show its rules; exit code 3 if it is none
    Check {
        /// The policy
        file: PathBuf,
    },
    /// Print a policy to start from: health, children or office
    Example {
        /// Its name
        name: String,
    },
    /// Print the JSON schema of policies
    Schema,
}

/// Runs the action.
///
/// # Errors
/// `Refused` for a file that is no policy, `Failed` when it cannot be read.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    match &args.action {
        Action::Schema => output.write(SCHEMA),
        Action::Example { name } => match EXAMPLES.iter().find(|(known, _)| known == name) {
            Some((_, text)) => output.write(text),
            None => Err(CliError::Usage(format!(
                "{name} is no example; there are health, children and office"
            ))),
        },
        Action::Check { file } => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| CliError::Failed(format!("{}: {error}", file.display())))?;
            let policy = Policy::parse(&text)
                .map_err(|error| CliError::Refused(format!("{}: {error}", file.display())))?;
            show(&policy, output)
        }
    }
}

fn show(policy: &Policy, output: &mut Output) -> Result<(), CliError> {
    let name = |value: Value| value.as_str().unwrap_or_default().to_string();
    let rules: Vec<(String, String)> = DataClass::ALL
        .iter()
        .map(|class| (name(json!(class)), name(json!(policy.rule(*class)))))
        .collect();
    let providers: Vec<&str> = policy
        .providers()
        .iter()
        .map(|provider| provider.name.as_str())
        .collect();
    if output.is_json() {
        let rules: serde_json::Map<String, Value> = rules
            .into_iter()
            .map(|(class, rule)| (class, json!(rule)))
            .collect();
        return output.json(
            &json!({"name": policy.name(), "rules": rules, "providers": providers, "valid": true}),
        );
    }
    output.line(&format!("{}: valid", policy.name()))?;
    for (class, rule) in rules {
        output.line(&format!("  {class:<10} {rule}"))?;
    }
    match providers[..] {
        [] => output.line("  providers  none, so everything stays on the device"),
        _ => output.line(&format!("  providers  {}", providers.join(", "))),
    }
}
