//! `ondine models`: what `pull` and `-m` know by name.

use crate::error::CliError;
use crate::output::Output;
use ondine_hub::{Hub, ModelStatus};
use serde_json::json;

/// Arguments of `ondine models`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine models
  ondine models --json")]
pub struct Args {}

/// Prints a table, or with `--json` an object `{\"models\": [...]}`.
///
/// # Errors
/// `Failed` if a registry file or the cache cannot be read.
pub fn run(_: &Args, output: &mut Output) -> Result<(), CliError> {
    let hub = Hub::from_environment()?;
    let models = hub.models()?;
    if output.is_json() {
        let list: Vec<_> = models.iter().map(describe).collect();
        return output.json(&json!({ "models": list }));
    }
    let mut rows =
        vec![["NAME", "SIZE", "HERE", "LICENCE", "SOURCE", "DESCRIPTION"].map(str::to_string)];
    rows.extend(models.iter().map(row));
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..5).map(width).collect();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        output.line(&format!("{line}{}", row[5]))?;
    }
    Ok(())
}

fn describe(model: &ModelStatus<'_>) -> serde_json::Value {
    let entry = model.entry;
    json!({
        "name": entry.name,
        "description": entry.description,
        "parameters": entry.parameters,
        "size": entry.size,
        "sha256": entry.sha256.or(model.record.as_ref().map(|record| record.sha256)).map(|digest| digest.to_string()),
        "licence": entry.licence,
        "terms": entry.terms,
        "cached": model.cached.is_some(),
        "path": model.cached,
        "trust": model.record.as_ref().map(|record| record.trust),
        "sources": entry.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn row(model: &ModelStatus<'_>) -> [String; 6] {
    let entry = model.entry;
    let size = entry
        .size
        .or(model.record.as_ref().map(|record| record.size));
    let kinds: Vec<String> = entry.sources.iter().map(kind).collect();
    [
        entry.name.clone(),
        size.map_or("?".to_string(), |bytes| {
            format!("{:.0} MB", bytes as f64 / 1e6)
        }),
        if model.cached.is_some() { "yes" } else { "no" }.to_string(),
        entry.licence.clone(),
        kinds.join(", "),
        entry.description.clone(),
    ]
}

/// The scheme of a source: `pypi`, `hf`, `https`, `file`.
fn kind(source: &ondine_hub::Source) -> String {
    source
        .to_string()
        .split(':')
        .next()
        .unwrap_or_default()
        .to_string()
}
