//! `ondine inspect`: what a model is.

use super::load::{ModelArgs, packed_cache};
use crate::error::CliError;
use crate::output::Output;
use ondine_runtime::gguf::Value as MetadataValue;
use ondine_runtime::model::{FeedForward, Mixer, ModelSpec, model_spec};
use ondine_runtime::{Limits, open_model_file};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Arguments of `ondine inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine inspect
  ondine inspect -m model.gguf --tensors
  ondine inspect -m model.gguf --json | jq .metadata")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Prints metadata, shape and tensors.
///
/// # Errors
/// `Failed` when the model cannot be read.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let path = args.model.path(output)?;
    let limits = Limits::default();
    let file = open_model_file(&path, &limits)?;
    let spec = model_spec(&file, &limits);
    let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    let mut parameters = 0u64;
    for tensor in file.tensors() {
        let of_type = types.entry(tensor.tensor_type.name()).or_default();
        of_type.0 += 1;
        of_type.1 += tensor.bytes;
        parameters += tensor.shape.iter().product::<u64>();
    }
    let packed = packed_cache().and_then(|cache| cache.file_of(file.sources()));
    if output.is_json() {
        let metadata: Map<String, Value> = file
            .metadata
            .iter()
            .map(|(key, value)| (key.to_owned(), metadata_json(value)))
            .collect();
        let tensors: Vec<Value> = file
            .tensors()
            .iter()
            .map(|tensor| {
                json!({
                    "name": tensor.name,
                    "shape": tensor.shape,
                    "type": tensor.tensor_type.name(),
                    "offset": tensor.offset,
                    "bytes": tensor.bytes,
                })
            })
            .collect();
        let mut value = json!({
            "path": path,
            "bytes": file.bytes(),
            "files": file.sources().len(),
            "parameters": parameters,
            "metadata": metadata,
            "types": types.iter().map(|(name, (count, bytes))| (name.to_string(), json!({"tensors": count, "bytes": bytes}))).collect::<Map<_, _>>(),
            "tensors": tensors,
        });
        if let Some(packed) = &packed {
            value["packed"] = json!({"path": packed.path, "bytes": packed.bytes});
        }
        match spec {
            Ok(spec) => value["model"] = spec_json(&spec),
            Err(error) => value["not_runnable"] = error.to_string().into(),
        }
        return output.json(&value);
    }
    output.line(&format!(
        "{}\n  {:.1} MB in {} file(s), {:.1} M parameters, {} tensors",
        path.display(),
        file.bytes() as f64 / 1e6,
        file.sources().len(),
        parameters as f64 / 1e6,
        file.tensors().len()
    ))?;
    for (name, (count, bytes)) in &types {
        output.line(&format!(
            "  {name:<8} {count:>5} tensors {:>10.1} MB",
            *bytes as f64 / 1e6
        ))?;
    }
    match &spec {
        Ok(spec) => {
            for line in spec_lines(spec) {
                output.line(&format!("  {line}"))?;
            }
        }
        Err(error) => output.line(&format!("  cannot be run: {error}"))?,
    }
    if let Some(packed) = &packed {
        output.line(&format!(
            "  packed weights: {:.1} MB in {}",
            packed.bytes as f64 / 1e6,
            packed.path.display()
        ))?;
    }
    output.line("metadata")?;
    for (key, value) in file.metadata.iter() {
        output.line(&format!("  {key} = {}", metadata_text(value)))?;
    }
    if args.tensors {
        output.line("tensors")?;
        for tensor in file.tensors() {
            output.line(&format!(
                "  {:<36} {:<7} {:?}",
                tensor.name,
                tensor.tensor_type.name(),
                tensor.shape
            ))?;
        }
    }
    Ok(())
}

fn spec_json(spec: &ModelSpec) -> Value {
    let first_attention = spec.layers.iter().find_map(|layer| match &layer.mixer {
        Mixer::Attention(attention) => Some(attention),
        Mixer::ShortConvolution(_) => None,
    });
    let mut value = json!({
        "architecture": spec.architecture,
        "name": spec.name,
        "vocabulary": spec.vocabulary,
        "embedding": spec.embedding,
        "layers": spec.layers.len(),
        "context": spec.context_length,
        "tied_output": spec.tied_output,
        "kv_bytes_per_token_f16": spec.kv_elements_per_position() * 2,
    });
    if let Some(attention) = first_attention {
        value["heads"] = attention.heads.into();
        value["kv_heads"] = attention.kv_heads.into();
        value["head_dim"] = attention.key_dim.into();
    }
    value
}

fn spec_lines(spec: &ModelSpec) -> Vec<String> {
    let mut lines = vec![format!(
        "{} ({}): {} layers, embedding {}, vocabulary {}, context {}{}",
        spec.name,
        spec.architecture,
        spec.layers.len(),
        spec.embedding,
        spec.vocabulary,
        spec.context_length,
        if spec.tied_output { ", tied head" } else { "" }
    )];
    if let Some(layer) = spec.layers.last() {
        let mixer = match &layer.mixer {
            Mixer::Attention(a) => format!(
                "{} heads, {} key/value heads, head size {}",
                a.heads, a.kv_heads, a.key_dim
            ),
            Mixer::ShortConvolution(c) => format!("short convolution of {} taps", c.taps),
        };
        let feed_forward = match &layer.feed_forward {
            FeedForward::Gated(gated) => format!("feed-forward {}", gated.gate.rows),
            FeedForward::Plain { up, .. } => format!("feed-forward {}", up.rows),
            FeedForward::Experts(experts) => format!(
                "{} experts, {} used per token",
                experts.experts.len(),
                experts.used
            ),
        };
        lines.push(format!("{mixer}, {feed_forward}"));
    }
    lines.push(format!(
        "keys and values: {} bytes per token (f16)",
        spec.kv_elements_per_position() * 2
    ));
    lines
}

/// Elements of an array that are shown.
const SHOWN: usize = 4;

fn metadata_json(value: MetadataValue<'_>) -> Value {
    match value {
        MetadataValue::Integer(value) => match i64::try_from(value) {
            Ok(value) => value.into(),
            Err(_) => value.to_string().into(),
        },
        MetadataValue::Float(value) => value.into(),
        MetadataValue::Bool(value) => value.into(),
        MetadataValue::String(bytes) => String::from_utf8_lossy(bytes).into(),
        MetadataValue::Array(array) => json!({
            "length": array.len(),
            "first": array_elements(&array),
        }),
    }
}

fn metadata_text(value: MetadataValue<'_>) -> String {
    const LONGEST: usize = 90;
    match value {
        MetadataValue::Integer(value) => value.to_string(),
        MetadataValue::Float(value) => value.to_string(),
        MetadataValue::Bool(value) => value.to_string(),
        MetadataValue::String(bytes) => {
            let text = format!("{:?}", String::from_utf8_lossy(bytes));
            match text.char_indices().nth(LONGEST) {
                Some((cut, _)) => format!("{}… ({} bytes)", &text[..cut], bytes.len()),
                None => text,
            }
        }
        MetadataValue::Array(array) => {
            let first: Vec<String> = array_elements(&array)
                .iter()
                .map(ToString::to_string)
                .collect();
            let more = if array.len() > SHOWN { ", …" } else { "" };
            format!("[{}{more}] ({} elements)", first.join(", "), array.len())
        }
    }
}

fn array_elements(array: &ondine_runtime::gguf::Array<'_>) -> Vec<Value> {
    if let Some(strings) = array.strings() {
        return strings
            .take(SHOWN)
            .map(|bytes| String::from_utf8_lossy(bytes).into())
            .collect();
    }
    if let Some(integers) = array.integers() {
        return integers.take(SHOWN).map(Value::from).collect();
    }
    match array.floats() {
        Some(floats) => floats.take(SHOWN).map(Value::from).collect(),
        None => Vec::new(),
    }
}
