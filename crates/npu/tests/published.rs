//! Plans against published speeds: each within 25 % with one constant per vendor (`profiles/calibration.toml`).
//!
//! `tests/configs` holds the shapes that the models' publishers state in `config.json`.

use std::path::Path;

use ondine_npu::plan::{Plan, Request, plan};
use ondine_npu::profile::{self, Dtype};
use ondine_runtime::Limits;
use ondine_runtime::hf::describe;
use ondine_runtime::model::ModelSpec;

/// Greatest distance of a prediction from a published figure, as a share of it.
const TOLERANCE: f64 = 0.25;

/// (device, model, precision, context, TTFT in ms, tokens per second, memory in MiB).
type Row = (
    &'static str,
    &'static str,
    &'static str,
    usize,
    Option<f64>,
    f64,
    Option<f64>,
);

/// RKLLM: benchmark.md of airockchip/rknn-llm, prompt 128, 64 new tokens. XDNA2: FastFlowLM, llama3_results.
/// Intel: ExecuTorch pull request 14022. Qualcomm: vendor model card, context 4096.
const PUBLISHED: [Row; 14] = [
    (
        "rk3588",
        "qwen2-0.5b",
        "w8a8",
        192,
        Some(145.90),
        41.58,
        Some(669.56),
    ),
    (
        "rk3588",
        "tinyllama-1.1b",
        "w8a8",
        192,
        Some(243.93),
        24.43,
        Some(1093.66),
    ),
    (
        "rk3588",
        "phi-3-mini-3.8b",
        "w8a8",
        192,
        Some(1017.28),
        7.45,
        Some(3758.34),
    ),
    (
        "rk3576",
        "qwen2-0.5b",
        "w4a16",
        192,
        Some(342.37),
        32.56,
        Some(443.44),
    ),
    (
        "rk3576",
        "qwen2-0.5b",
        "w8a8",
        192,
        Some(344.27),
        21.73,
        Some(678.43),
    ),
    (
        "rk3576",
        "tinyllama-1.1b",
        "w4a16",
        192,
        Some(543.68),
        19.71,
        Some(601.09),
    ),
    ("xdna2", "llama-3.2-1b", "w4a16", 1 << 10, None, 36.7, None),
    ("xdna2", "llama-3.2-1b", "w4a16", 2 << 10, None, 35.8, None),
    ("xdna2", "llama-3.2-1b", "w4a16", 4 << 10, None, 33.2, None),
    ("xdna2", "llama-3.2-1b", "w4a16", 8 << 10, None, 29.6, None),
    ("xdna2", "llama-3.2-1b", "w4a16", 16 << 10, None, 24.0, None),
    ("xdna2", "llama-3.2-1b", "w4a16", 32 << 10, None, 17.7, None),
    (
        "intel-npu-4000",
        "llama-3.2-1b",
        "w4a16",
        1152,
        None,
        42.9,
        None,
    ),
    (
        "snapdragon-x-elite",
        "llama-3.1-8b",
        "w4a16",
        4096,
        None,
        10.0,
        None,
    ),
];

#[test]
fn predictions_lie_within_a_quarter_of_what_was_published() {
    let mut misses = Vec::new();
    for (device, model, dtype, context, ttft, speed, memory) in PUBLISHED {
        let plan = planned(device, model, dtype, context);
        let figures = [
            ("TTFT", ttft, plan.ttft_ms.unwrap_or(f64::NAN)),
            ("tokens/s", Some(speed), plan.tokens_per_second),
            ("memory", memory, plan.peak_dram_mib),
        ];
        for (what, published, predicted) in figures {
            let Some(published) = published else { continue };
            let off = predicted / published - 1.0;
            println!(
                "{device:<18} {model:<16} {dtype:<6} {context:>6} {what:<9} {published:>9.2} {predicted:>9.2} {:>+6.1} %",
                100.0 * off
            );
            if !misses_none(off) {
                misses.push(format!(
                    "{device} {model} {dtype} {context} {what}: {off:+.2}"
                ));
            }
        }
    }
    assert!(misses.is_empty(), "{misses:#?}");
}

/// The tolerance can fail: half of the bandwidth, or a head that is not counted, is beyond it.
#[test]
fn a_wrong_constant_would_be_noticed() {
    let mut profile = profile::named("rk3588").unwrap();
    profile.calibration /= 2.0;
    let request = request("w8a8", 192);
    let plan = plan(&spec("qwen2-0.5b"), &profile, &request).unwrap();
    assert!(!misses_none(plan.tokens_per_second / 41.58 - 1.0));
    let headless = {
        let mut spec = spec("qwen2-0.5b");
        spec.output.rows = 1;
        spec
    };
    let profile = profile::named("rk3588").unwrap();
    let plan = ondine_npu::plan::plan(&headless, &profile, &request).unwrap();
    assert!(!misses_none(plan.tokens_per_second / 41.58 - 1.0));
}

fn misses_none(off: f64) -> bool {
    off.abs() <= TOLERANCE
}

#[test]
fn energy_is_watts_times_time() {
    let plan = planned("xdna2", "llama-3.2-1b", "w4a16", 1024);
    let expected = 1.64 / plan.tokens_per_second * 1e3;
    assert!((plan.energy_per_token_mj.unwrap() - expected).abs() < 1e-6 * expected);
    assert_eq!(
        planned("rk3588", "qwen2-0.5b", "w8a8", 192).energy_per_token_mj,
        None
    );
}

fn planned(device: &str, model: &str, dtype: &str, context: usize) -> Plan {
    let profile = profile::named(device).unwrap();
    plan(&spec(model), &profile, &request(dtype, context)).unwrap()
}

fn request(dtype: &str, context: usize) -> Request {
    Request {
        dtype: Some(Dtype::parse(dtype).unwrap()),
        context: Some(context),
        prompt: Some(128),
        power: None,
    }
}

fn spec(model: &str) -> ModelSpec {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
    describe(&directory.join(format!("{model}.json")), &Limits::default()).unwrap()
}
