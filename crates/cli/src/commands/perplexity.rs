//! `ondine perplexity`: how well a model predicts a text.

use super::load::{LoadArgs, ModelArgs, streaming_json};
use crate::error::CliError;
use crate::interrupt;
use crate::output::Output;
use crate::progress::Bar;
use ondine_kernels::Isa;
use ondine_runtime::Model;
use ondine_runtime::backend::Decoder;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::fidelity::{Agreement, fidelity};
use ondine_runtime::perplexity::perplexity;
use ondine_runtime::tokenizer::EncodeOptions;
use serde_json::json;
use std::path::PathBuf;
#[cfg(feature = "npu")]
use std::sync::Arc;

/// Tokens of a window unless `--ctx` says otherwise; the convention of published figures.
const DEFAULT_WINDOW: usize = 512;

/// Arguments of `ondine perplexity`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ondine perplexity text.txt
  ondine perplexity -m gemma-3-270m wiki.valid.txt --ctx 512 --chunks 20 --json
  ondine perplexity text.txt --against scalar          what the fast kernels change
  ondine perplexity text.txt --backend onnx:cpu --against cpu --positions 512 --json
  ondine perplexity text.txt --backend onnx:cpu --against cpu --reference the-same-f32.gguf
  ondine perplexity -m small.gguf text.txt --reference model-f16.gguf --chunks 20

The text is cut into windows of --ctx tokens; the second half of each is scored (llama.cpp's
convention, so that figures compare).")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Text file, UTF-8
    file: PathBuf,
    /// Windows to score at most; all unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Compare with the kernels of another instruction set (scalar is the reference) or with another backend instead of
    /// scoring: how often is the likeliest token the same, how far apart are the distributions
    #[arg(long, value_name = "ISA|BACKEND", conflicts_with = "chunks")]
    against: Option<String>,
    /// Model that this one was made of: also says how far apart their predictions are (KL divergence, likeliest token);
    /// with --against, the model that the other backend runs
    #[cfg(feature = "compress")]
    #[arg(long, value_name = "MODEL")]
    reference: Option<String>,
    /// Positions to compare with --against
    #[arg(long, value_name = "N", default_value_t = 2000, requires = "against",
          value_parser = clap::value_parser!(u32).range(1..))]
    positions: u32,
}

/// Scores the text.
///
/// # Errors
/// `Failed` when the model or the text cannot be used.
pub fn run(args: &Args, output: &mut Output) -> Result<(), CliError> {
    let name = args.file.display();
    let bytes =
        std::fs::read(&args.file).map_err(|error| CliError::Failed(format!("{name}: {error}")))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| CliError::Failed(format!("{name}: is not UTF-8; convert it first")))?;
    let model = args.model.open(output)?;
    let tokenizer = model.tokenizer();
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let tokens = tokenizer.encode(
        text,
        EncodeOptions {
            add_special: true,
            parse_special: false,
        },
    );
    let window = args
        .load
        .context
        .map_or(DEFAULT_WINDOW, |tokens| tokens as usize);
    if tokens.len() < window || window < 4 {
        return Err(CliError::Failed(format!(
            "{name}: has {} tokens, too few for a window of {window}; give more text or another --ctx",
            tokens.len()
        )));
    }
    let begin = tokenizer.adds_bos().then(|| tokenizer.bos()).flatten();
    let mut options = args.load.options();
    // All scores are wanted of each position, except beside another backend.
    options.screened_head &= args.against.is_some();
    if options.memory_budget.is_some() {
        // A budget cuts the context where none is asked for.
        options.context = Some(window);
    }
    if args.against.is_some() && options.context.is_none() {
        // What is compiled for a context need not hold more than a window.
        options.context = Some(window);
    }
    #[cfg(feature = "compress")]
    if args.reference.is_some() {
        // All scores are wanted, and two models are in memory.
        (options.screened_head, options.context) = (false, Some(window));
    }
    let mut decoder = args.load.load_with(&model, &options, output)?;
    if let Some(isa) = &args.against {
        let compared = Compared {
            tokens,
            window,
            begin,
        };
        #[cfg(feature = "npu")]
        if args.load.backends != ["cpu"] || !super::load::is_isa(isa) || args.has_reference() {
            let reference_model = args.reference_model(&model, output)?;
            let reference = (args.load).load_against(isa, &reference_model, &options, output)?;
            return compare_backends(args, decoder.as_mut(), reference, &compared, output);
        }
        return compare(args, isa, &model, decoder.as_mut(), &compared, output);
    }
    #[cfg(feature = "compress")]
    if let Some(reference) = &args.reference {
        let windows = tokens.len() / window;
        let windows = args
            .chunks
            .map_or(windows, |most| windows.min(most as usize));
        let mut kept = tokens[..windows * window].to_vec();
        if let Some(begin) = begin {
            kept.chunks_exact_mut(window)
                .for_each(|window| window[0] = begin);
        }
        let windows = ondine_compress::calibrate::Windows {
            tokens: kept,
            length: window,
        };
        return compare_models(
            args,
            reference,
            decoder.as_mut(),
            &options,
            &windows,
            output,
        );
    }
    let bar = Bar::new(output, "windows");
    let most = args.chunks.map(|windows| windows as usize);
    let result = perplexity(
        decoder.as_mut(),
        &tokens,
        window,
        most,
        begin,
        |done, all, so_far| {
            bar.set(done, all, &format!("perplexity {so_far:.4}"));
            !interrupt::is_interrupted()
        },
    );
    bar.finish();
    let result = result.map_err(|error| CliError::Failed(error.to_string()))?;
    if interrupt::is_interrupted() {
        return Err(CliError::Interrupted("interrupted".into()));
    }
    if output.is_json() {
        return output.json(&json!({
            "nll": result.nll,
            "ppl": result.ppl,
            "standard_error": result.standard_error,
            "tokens": result.tokens,
            "chunks": result.windows,
            "ctx": window,
            "isa": decoder.device().device,
            "streaming": streaming_json(decoder.as_ref()),
        }));
    }
    output.line(&format!(
        "perplexity {:.4} ± {:.4} ({} tokens scored in {} windows of {window})",
        result.ppl,
        result.ppl * result.standard_error,
        result.tokens,
        result.windows,
    ))
}

impl Args {
    #[cfg(all(feature = "npu", feature = "compress"))]
    fn has_reference(&self) -> bool {
        self.reference.is_some()
    }

    #[cfg(all(feature = "npu", not(feature = "compress")))]
    fn has_reference(&self) -> bool {
        false
    }

    /// The model that the other backend runs: `model` unless another is named, which must know the same tokens.
    #[cfg(feature = "npu")]
    fn reference_model(
        &self,
        model: &Arc<Model>,
        #[cfg_attr(not(feature = "compress"), expect(unused_variables))] output: &Output,
    ) -> Result<Arc<Model>, CliError> {
        #[cfg(feature = "compress")]
        if let Some(name) = &self.reference {
            let other = ModelArgs {
                model: name.clone(),
                ..self.model.clone()
            }
            .open(output)?;
            let (own, its) = (model.spec().vocabulary, other.spec().vocabulary);
            if own != its {
                return Err(CliError::Failed(format!(
                    "--reference {name}: knows {its} tokens and the model {own}; give one of the same vocabulary"
                )));
            }
            return Ok(other);
        }
        Ok(model.clone())
    }
}

/// Compares with the model that this one was made of.
#[cfg(feature = "compress")]
fn compare_models(
    args: &Args,
    reference: &str,
    decoder: &mut dyn Decoder,
    options: &ondine_runtime::backend::LoadOptions,
    windows: &ondine_compress::calibrate::Windows,
    output: &mut Output,
) -> Result<(), CliError> {
    let model = ModelArgs {
        model: reference.to_owned(),
        ..args.model.clone()
    }
    .open(output)?;
    let mut reference = args.load.load_with(&model, options, output)?;
    let bar = Bar::new(output, "windows");
    let result = ondine_compress::comparison::compare(
        decoder,
        reference.as_mut(),
        windows,
        &mut |done, all, so_far| {
            bar.set(done, all, &format!("KL {so_far:.5}"));
            !interrupt::is_interrupted()
        },
    );
    bar.finish();
    let result = result.map_err(super::calibrate::failed)?;
    let (kl, kl_error) = result.mean(|position| position.divergence);
    let (nll, _) = result.mean(|position| position.loss);
    let (reference_nll, _) = result.mean(|position| position.reference_loss);
    let (same_best, _) = result.mean(|position| f64::from(u8::from(position.same_best)));
    if output.is_json() {
        return output.json(&json!({
            "nll": nll,
            "ppl": nll.exp(),
            "reference_ppl": reference_nll.exp(),
            "mean_kl": kl,
            "mean_kl_standard_error": kl_error,
            "median_kl": result.quantile(0.5),
            "kl_99": result.quantile(0.99),
            "largest_kl": result.quantile(1.0),
            "same_best": same_best,
            "tokens": result.positions.len(),
            "chunks": result.windows,
            "ctx": windows.length,
            "isa": decoder.device().device,
        }));
    }
    output.line(&format!(
        "perplexity {:.4}, that of the reference {:.4} ({} tokens scored in {} windows of {})",
        nll.exp(),
        reference_nll.exp(),
        result.positions.len(),
        result.windows,
        windows.length
    ))?;
    output.line(&format!(
        "mean KL {kl:.5} ± {kl_error:.5} nats, median {:.5}, 99 % below {:.4}, largest {:.3}; same likeliest token {:.2} %",
        result.quantile(0.5),
        result.quantile(0.99),
        result.quantile(1.0),
        100.0 * same_best
    ))
}

/// What is compared.
struct Compared {
    tokens: Vec<u32>,
    window: usize,
    begin: Option<u32>,
}

/// Compares the decoder with one that uses the kernels called `isa`.
fn compare(
    args: &Args,
    isa: &str,
    model: &Model,
    decoder: &mut dyn Decoder,
    compared: &Compared,
    output: &mut Output,
) -> Result<(), CliError> {
    let isa =
        Isa::from_name(isa).map_err(|error| CliError::Usage(format!("--against: {error}")))?;
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
    let mut reference = model
        .load(&CpuBackend::with_isa(isa), &args.load.options())
        .map_err(|error| failed(&error))?;
    let bar = Bar::new(output, "positions");
    let result = fidelity(
        decoder,
        reference.as_mut(),
        &compared.tokens,
        compared.window,
        args.positions as usize,
        compared.begin,
        |done, all| {
            bar.set(done, all, "");
            !interrupt::is_interrupted()
        },
    );
    bar.finish();
    let result = result.map_err(|error| failed(&error))?;
    if interrupt::is_interrupted() {
        return Err(CliError::Interrupted("interrupted".into()));
    }
    let positions = result.positions.max(1) as f64;
    let head = decoder.head();
    if output.is_json() {
        let agreement = |agreement: &Agreement| {
            json!({
                "same_best": agreement.same_best as f64 / positions,
                "mean_kl": agreement.divergence / positions,
                "largest_kl": agreement.largest_divergence,
            })
        };
        return output.json(&json!({
            "isa": decoder.device().device,
            "against": isa.name(),
            "positions": result.positions,
            "ctx": compared.window,
            "together": agreement(&result.together),
            "one_by_one": agreement(&result.single),
            "best_scores": {
                "positions": result.selected,
                "different_from_full": result.selected_wrongly,
                "fallback_rate": head.fallback_rate(),
            },
        }));
    }
    output.line(&format!(
        "{} against {}: {} positions in windows of {}",
        decoder.device().device,
        isa.name(),
        result.positions,
        compared.window
    ))?;
    for (name, agreement) in [
        ("together", &result.together),
        ("one by one", &result.single),
    ] {
        output.line(&format!(
            "tokens {name:<11} same likeliest token {:.2} %, mean KL {:.2e}, largest {:.2e} nats",
            100.0 * agreement.same_best as f64 / positions,
            agreement.divergence / positions,
            agreement.largest_divergence
        ))?;
    }
    output.line(&format!(
        "best scores alone: {} positions, {} differ from the full scores; {:.1} % needed the whole head",
        result.selected,
        result.selected_wrongly,
        100.0 * head.fallback_rate()
    ))
}

/// Compares a decoder on any backend with a reference on another.
#[cfg(feature = "npu")]
fn compare_backends(
    args: &Args,
    decoder: &mut dyn Decoder,
    mut reference: Box<dyn Decoder>,
    compared: &Compared,
    output: &mut Output,
) -> Result<(), CliError> {
    let bar = Bar::new(output, "positions");
    let result = ondine_runtime::fidelity::agreement(
        decoder,
        reference.as_mut(),
        &compared.tokens,
        compared.window,
        args.positions as usize,
        compared.begin,
        |done, all| {
            bar.set(done, all, "");
            !interrupt::is_interrupted()
        },
    );
    bar.finish();
    let (compared_positions, found) =
        result.map_err(|error| CliError::Failed(error.to_string()))?;
    if interrupt::is_interrupted() {
        return Err(CliError::Interrupted("interrupted".into()));
    }
    let simulations = args.load.simulations(output);
    let positions = compared_positions.max(1) as f64;
    let same_best = found.same_best as f64 / positions;
    let mean_kl = found.divergence / positions;
    if output.is_json() {
        return output.json(&json!({
            "backend": decoder.device().backend,
            "isa": decoder.device().device,
            "against": args.against,
            "positions": compared_positions,
            "ctx": compared.window,
            "together": {
                "same_best": same_best,
                "mean_kl": mean_kl,
                "largest_kl": found.largest_divergence,
            },
            "step_downs": super::load::step_downs_json(decoder.step_downs()),
            "simulations": simulations,
        }));
    }
    output.line(&format!(
        "{} against {}: {compared_positions} positions in windows of {}",
        decoder.device().device,
        reference.device().device,
        compared.window
    ))?;
    output.line(&format!(
        "same likeliest token {:.2} %, mean KL {mean_kl:.2e}, largest {:.2e} nats",
        100.0 * same_best,
        found.largest_divergence
    ))
}
