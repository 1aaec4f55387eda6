//! `ondine devices`: where models could run here, and why not elsewhere.

use crate::error::CliError;
use crate::output::Output;
use ondine_npu::choose::{self, Settings};
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{Backend, DeviceReport, Unavailable};
use serde_json::{Value, json};
use std::sync::Arc;

/// Arguments of `ondine devices`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine devices
  ondine devices --json

Every backend is asked for its device without loading a model. Those that `--backend auto` tries are
numbered in its order.")]
pub struct Args {}

/// Probes and prints.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(_: &Args, output: &mut Output) -> Result<(), CliError> {
    let settings = Settings::default();
    let mut automatic: Vec<String> = choose::automatic(&settings)
        .iter()
        .map(|backend| backend.name().to_owned())
        .collect();
    automatic.push("cpu".into());
    let found: Vec<Found> = backends(&settings)
        .into_iter()
        .map(|(name, backend)| Found {
            order: automatic.iter().position(|other| *other == name),
            report: backend.and_then(|backend| backend.probe()),
            name,
        })
        .collect();
    if output.is_json() {
        let devices: Vec<Value> = found.iter().map(Found::json).collect();
        return output.json(&json!({ "devices": devices, "auto": automatic }));
    }
    for found in &found {
        output.line(&found.text())?;
    }
    Ok(())
}

type Candidate = (String, Result<Arc<dyn Backend>, Unavailable>);

fn backends(settings: &Settings) -> Vec<Candidate> {
    let cpu = CpuBackend::from_environment().map(|cpu| Arc::new(cpu) as Arc<dyn Backend>);
    let mut all = vec![("cpu".to_owned(), cpu)];
    for name in choose::NAMES {
        if let Ok(backend) = choose::named(name, settings) {
            all.push((backend.name().to_owned(), Ok(backend)));
        }
    }
    all
}

struct Found {
    name: String,
    /// Place in the order of `auto`.
    order: Option<usize>,
    report: Result<DeviceReport, Unavailable>,
}

impl Found {
    fn json(&self) -> Value {
        match &self.report {
            Ok(report) => json!({
                "backend": self.name,
                "available": true,
                "device": report.device,
                "threads": report.threads,
                "auto_order": self.order.map(|order| order + 1),
            }),
            Err(reason) => json!({
                "backend": self.name,
                "available": false,
                "reason": reason.kind(),
                "message": reason.to_string(),
                "auto_order": self.order.map(|order| order + 1),
            }),
        }
    }

    fn text(&self) -> String {
        let order = self
            .order
            .map_or(String::new(), |order| format!("{}.", order + 1));
        match &self.report {
            Ok(report) => format!("{order:>2} {:<14} here: {}", self.name, report.device),
            Err(reason) => {
                let kind = reason.kind();
                format!("{order:>2} {:<14} not used ({kind}): {reason}", self.name)
            }
        }
    }
}
