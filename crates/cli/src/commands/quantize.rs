//! `ondine quantize`: a model with smaller tensor types.

use super::calibrate::{failed, windows};
use super::load::{ModelArgs, parse_size};
use crate::error::CliError;
use crate::interrupt;
use crate::output::Output;
use crate::progress::Bar;
use ondine_compress::imatrix::ImportanceMatrix;
use ondine_compress::sensitivity::{Target, allocate};
use ondine_compress::{Method, QuantizeOptions, QuantizeReport, quantize, writable};
use ondine_kernels::TensorType;
use ondine_runtime::backend::cpu::available_threads;
use ondine_runtime::{Limits, Model, open_model_file};
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `ondine quantize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine quantize model-f16.gguf model-q4.gguf --type Q4_K
  ondine quantize model-f16.gguf model-q4.gguf --type Q4_K --imatrix imatrix.gguf
  ondine quantize model-f16.gguf model-q4.gguf --type Q4_K --method gptq --calibration text.txt
  ondine quantize model-f16.gguf small.gguf --target-size 80MB --method gptq --calibration text.txt

The result is an ordinary GGUF file. Where rows do not fill a type's blocks, a type of about as many bits is
taken whose blocks they fill.")]
pub struct Args {
    /// Model that is made smaller: a name from `ondine models` or a .gguf file of any types
    #[arg(value_name = "IN")]
    input: String,
    /// Where the smaller model is written
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Type of the matrices
    #[arg(long = "type", value_name = "TYPE", default_value = "Q4_K", value_parser = parse_type)]
    tensor_type: TensorType,
    /// Type of tensors whose name contains PART, as ffn_down=Q6_K
    #[arg(long = "tensor-type", value_name = "PART=TYPE", value_parser = parse_override)]
    overrides: Vec<(String, TensorType)>,
    /// The embedding and the output head get the type too; they get six bits or more otherwise
    #[arg(long)]
    pure: bool,
    /// Tensors whose name contains PART keep their type
    #[arg(long, value_name = "PART")]
    keep: Vec<String>,
    /// Importance matrix, from `ondine calibrate` or llama-imatrix
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// How codes are chosen
    #[arg(long, value_enum, default_value = "search")]
    method: MethodArg,
    /// Bytes of the file at most, as 80MB: each matrix gets the type that its measured sensitivity earns
    #[arg(long, value_name = "SIZE", value_parser = parse_size, group = "target", requires = "calibration")]
    target_size: Option<u64>,
    /// Bits of a weight at most, on average over all tensors; types as with --target-size
    #[arg(long, value_name = "BITS", group = "target", requires = "calibration")]
    target_bpw: Option<f64>,
    /// Estimated mean KL divergence from the input's predictions at most, nats; types as with --target-size
    #[arg(long, value_name = "NATS", group = "target", requires = "calibration")]
    target_kl: Option<f64>,
    /// Text like what the model will read, for gptq and the targets
    #[arg(long, value_name = "FILE", required_if_eq("method", "gptq"))]
    calibration: Option<PathBuf>,
    /// Windows of 512 tokens of that text to read at most
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    chunks: u32,
    /// Threads; one per core unless given
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// How codes are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum MethodArg {
    /// Round to nearest: fast
    Nearest,
    /// Scales of the least squared error, weighted by the importance matrix if there is one
    Search,
    /// Errors are made good by the columns that follow; needs --calibration
    Gptq,
}

/// Writes the smaller model.
///
/// # Errors
/// `Failed` when a file cannot be used, `Usage` when input and output are one file.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let begun = Instant::now();
    let input = ModelArgs {
        model: args.input.clone(),
        #[cfg(feature = "package")]
        #[cfg(feature = "package")]
        identity: Vec::new(),
    }
    .path(output)?;
    if args
        .out
        .canonicalize()
        .is_ok_and(|out| input.canonicalize().is_ok_and(|input| input == out))
    {
        return Err(CliError::Usage(
            "IN and OUT are the same file; name another OUT".into(),
        ));
    }
    if input.is_dir() && input.join("config.json").is_file() {
        return Err(CliError::Failed(format!(
            "{}: is a checkpoint directory, whose vocabulary is not written to GGUF yet; convert it first",
            input.display()
        )));
    }
    let importance = args
        .imatrix
        .as_deref()
        .map(ImportanceMatrix::read)
        .transpose()
        .map_err(failed)?;
    let file = open_model_file(&input, &Limits::default())?;
    let mut types = HashMap::new();
    for tensor in file.tensors() {
        let named = args
            .overrides
            .iter()
            .rev()
            .find(|(part, _)| tensor.name.contains(part));
        if let Some((_, ty)) = named
            && tensor.shape.len() >= 2
            && tensor.columns().is_multiple_of(ty.block_len() as u64)
        {
            types.insert(tensor.name.clone(), *ty);
        }
    }
    let target = target(args)?;
    let calibrated = match &args.calibration {
        Some(text) if target.is_some() || args.method == MethodArg::Gptq => {
            let model = Model::open(&input, &Limits::default())?;
            let windows = windows(&model, text, 512, args.chunks)?;
            Some((model, windows))
        }
        _ => None,
    };
    let method = match (&calibrated, args.method) {
        (_, MethodArg::Nearest) => Method::Nearest,
        (Some((model, windows)), MethodArg::Gptq) => Method::Gptq {
            model,
            windows,
            memory: 1 << 30,
        },
        _ => Method::Search,
    };
    let mut options = QuantizeOptions {
        tensor_type: args.tensor_type,
        pure: args.pure,
        keep: args.keep.clone(),
        types,
        importance: importance.as_ref(),
        method,
        threads: args.threads.map_or_else(available_threads, usize::from),
    };
    let bar = Bar::new(output, "");
    let mut progress = |what: &str, done, all| {
        bar.set(done, all, what);
        !interrupt::is_interrupted()
    };
    let mut estimate = None;
    if let (Some(target), Some((model, windows))) = (target, &calibrated) {
        let mut scratch = args.out.as_os_str().to_owned();
        scratch.push(format!(".measured-{}", std::process::id()));
        let scratch = PathBuf::from(scratch);
        let found = allocate(model, &options, windows, target, &scratch, &mut progress);
        let found = found.map_err(failed)?;
        options.types.extend(found.types);
        estimate = Some(found.divergence);
    }
    let report = quantize(&file, &args.out, &options, &mut progress);
    bar.finish();
    print(
        &report.map_err(failed)?,
        estimate,
        args,
        begun.elapsed().as_secs_f64(),
        output,
    )
}

/// What the model must keep to, if anything.
fn target(args: &Args) -> Result<Option<Target>, CliError> {
    let positive = |name: &str, number: f64| match number.is_finite() && number > 0.0 {
        true => Ok(number),
        false => Err(CliError::Usage(format!("--{name}: is a number above 0"))),
    };
    Ok(if let Some(bytes) = args.target_size {
        Some(Target::FileBytes(bytes))
    } else if let Some(bits) = args.target_bpw {
        Some(Target::BitsPerWeight(positive("target-bpw", bits)?))
    } else if let Some(nats) = args.target_kl {
        Some(Target::Divergence(positive("target-kl", nats)?))
    } else {
        None
    })
}

fn print(
    report: &QuantizeReport,
    estimate: Option<f64>,
    args: &Args,
    seconds: f64,
    output: &mut Output,
) -> Result<(), CliError> {
    if output.is_json() {
        let tensors: Vec<_> = report
            .tensors
            .iter()
            .map(|tensor| {
                json!({
                    "name": tensor.name,
                    "before": tensor.before.name(),
                    "now": tensor.now.name(),
                    "bytes": tensor.bytes,
                })
            })
            .collect();
        return output.json(&json!({
            "file": args.out,
            "bytes_before": report.bytes_before,
            "bytes": report.bytes,
            "bits_per_weight": report.bits_per_weight(),
            "seconds": seconds,
            "estimated_kl": estimate,
            "tensors": tensors,
        }));
    }
    output.line(&format!(
        "{}: {:.1} MiB of tensors where there were {:.1} MiB, {:.2} bits per weight, in {seconds:.1} s",
        args.out.display(),
        report.bytes as f64 / f64::from(1 << 20),
        report.bytes_before as f64 / f64::from(1 << 20),
        report.bits_per_weight(),
    ))?;
    let Some(estimate) = estimate else {
        return Ok(());
    };
    let mut bytes: Vec<(TensorType, u64)> = Vec::new();
    for tensor in &report.tensors {
        match bytes.iter_mut().find(|(ty, _)| *ty == tensor.now) {
            Some((_, bytes)) => *bytes += tensor.bytes,
            None => bytes.push((tensor.now, tensor.bytes)),
        }
    }
    bytes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let shares = bytes.iter().map(|(ty, bytes)| {
        format!(
            "{} {:.1} MiB",
            ty.name(),
            *bytes as f64 / f64::from(1 << 20)
        )
    });
    output.line(&format!(
        "estimated KL {estimate:.5} nats; {}",
        shares.collect::<Vec<_>>().join(", ")
    ))
}

fn parse_type(text: &str) -> Result<TensorType, String> {
    let known = TensorType::ALL.into_iter().filter(|ty| writable(*ty));
    let mut names = Vec::new();
    for ty in known {
        if ty.name().eq_ignore_ascii_case(text) {
            return Ok(ty);
        }
        names.push(ty.name());
    }
    Err(format!("is one of {}", names.join(", ")))
}

fn parse_override(text: &str) -> Result<(String, TensorType), String> {
    let (part, ty) = text.split_once('=').ok_or("has the form PART=TYPE")?;
    Ok((part.to_owned(), parse_type(ty)?))
}
