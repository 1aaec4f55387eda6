//! Vendor runtimes with real weights, and what happens without them. The runtimes lie where `ONDINE_TEST_RUNTIMES` says;
//! `test.sh` gets them. What is not there is skipped, and said so.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use ondine_fixtures::Tiny;
use serde_json::Value;
use support::{ondine, real_model};

/// Tokens that are scored.
const TOKENS: usize = 512;

/// Mean Kullback-Leibler divergence of the next token's distribution from the CPU backend's, in nats.
const DIVERGENCE: f64 = 0.02;

/// From the CPU backend's with the same weights as floats, where it does not round activations: what is left is the order
/// of sums, 4e-7 nats. Activations rounded to bytes in blocks of 32 make it 2e-3, as the test shows.
const EXACT_AGREEMENT: f64 = 0.99;
const EXACT_DIVERGENCE: f64 = 1e-4;

const TEXT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/wikitext2-valid-head.txt"
);

/// A vendor's runtime: the variable that names it, and its place below the directory of runtimes.
struct Runtime {
    variable: &'static str,
    place: &'static str,
}

const ONNX: Runtime = Runtime {
    variable: "ONDINE_ORT_LIB",
    place: "onnxruntime/onnxruntime/capi",
};
const ONNX_OPENVINO: Runtime = Runtime {
    variable: "ONDINE_ORT_LIB",
    place: "onnxruntime-openvino/onnxruntime/capi",
};
const OPENVINO: Runtime = Runtime {
    variable: "ONDINE_OPENVINO_LIB",
    place: "openvino/openvino/libs",
};

impl Runtime {
    fn directory(&self) -> Option<PathBuf> {
        let root = std::env::var_os("ONDINE_TEST_RUNTIMES").map(PathBuf::from);
        let path = root.map(|root| root.join(self.place));
        match path {
            Some(path) if path.is_dir() => Some(path),
            _ => {
                let _ = writeln!(
                    std::io::stderr(),
                    "skipped: {} is not in the directory that ONDINE_TEST_RUNTIMES names; ./test.sh gets it",
                    self.place
                );
                None
            }
        }
    }

    fn command(&self, cache: &Path, arguments: &[&str]) -> Option<Command> {
        let mut command = bare(cache, arguments);
        command.env(self.variable, self.directory()?);
        Some(command)
    }
}

/// A command that finds no runtime but those that a test names.
fn bare(cache: &Path, arguments: &[&str]) -> Command {
    let mut command = ondine(arguments);
    command
        .env("ONDINE_BACKEND_CACHE", cache)
        .env("ONDINE_ORT_LIB", "/nowhere/onnxruntime")
        .env("ONDINE_OPENVINO_LIB", "/nowhere/openvino")
        .env_remove("ONDINE_NPUW_DEVICES");
    command
}

fn succeed(mut command: Command) -> String {
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn fail(mut command: Command) -> String {
    let output = command.output().expect("it starts");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

/// A comparison of a backend with the CPU backend, by the command.
struct Comparison<'a> {
    scratch: &'a Path,
    model: &'a Path,
    runtime: &'a Runtime,
    backend: &'a str,
    positions: usize,
}

impl Comparison<'_> {
    /// (agreement, mean divergence), with further arguments; none without the runtime.
    fn run(&self, more: &[&str]) -> Option<(f64, f64)> {
        let (model, positions) = (self.model.display().to_string(), self.positions.to_string());
        let mut arguments = vec![
            "perplexity",
            "-m",
            &model,
            TEXT,
            "--backend",
            self.backend,
            "--against",
            "cpu",
            "--positions",
            &positions,
            "--ctx",
            "512",
            "--step-deadline",
            "900",
            "--json",
        ];
        arguments.extend(more);
        let mut command = self.runtime.command(self.scratch, &arguments)?;
        command.env("ONDINE_NPUW_DEVICES", "CPU");
        let found: Value = serde_json::from_str(&succeed(command)).expect("JSON");
        assert_eq!(found["positions"].to_string(), positions);
        assert_eq!(found["backend"], self.backend);
        let number = |name: &str| found["together"][name].as_f64().expect("a number");
        let (agreement, divergence) = (number("same_best"), number("mean_kl"));
        println!(
            "{}, {}{}: agreement {agreement:.4}, divergence {divergence:.2e}",
            self.model.file_name().unwrap_or_default().display(),
            self.backend,
            more.join(" "),
        );
        Some((agreement, divergence))
    }
}

/// Beside the CPU backend as it is. Its activations are rounded to 8 bits, in blocks of 32 or, for formats with a common
/// unit, of 256; that alone moves the likeliest token of 2 to 4 in 100, and no backend that does not round can be closer.
#[test]
fn the_same_weights_choose_the_same_tokens() {
    let scratch = tempfile::tempdir().expect("a directory");
    // (model, runtime, backend, positions, least agreement): Gemma's have blocks of 256.
    let candidates = [
        ("smollm2-135m-instruct", &ONNX, "onnx:cpu", TOKENS, 0.97),
        (
            "smollm2-135m-instruct",
            &ONNX_OPENVINO,
            "onnx:openvino",
            TOKENS,
            0.97,
        ),
        (
            "smollm2-135m-instruct",
            &OPENVINO,
            "openvino:CPU",
            TOKENS,
            0.97,
        ),
        ("gemma-3-270m", &ONNX, "onnx:cpu", 128, 0.96),
        ("gemma-3-270m", &OPENVINO, "openvino:CPU", 128, 0.96),
    ];
    for (model, runtime, backend, positions, least) in candidates {
        let Some(path) = real_model(model) else {
            continue;
        };
        let comparison = Comparison {
            scratch: scratch.path(),
            model: &path,
            runtime,
            backend,
            positions,
        };
        let Some((agreement, divergence)) = comparison.run(&[]) else {
            continue;
        };
        assert!(
            agreement >= least && divergence <= DIVERGENCE,
            "{model}, {backend}: agreement {agreement}, divergence {divergence}"
        );
    }
}

/// Beside the same weights as floats, which the CPU backend multiplies without rounding activations.
#[test]
#[cfg(feature = "compress")]
fn exports_carry_the_weights_exactly() {
    let scratch = tempfile::tempdir().expect("a directory");
    let Some(path) = real_model("smollm2-135m-instruct") else {
        return;
    };
    let floats = scratch.path().join("floats.gguf");
    let (from, to) = (path.display().to_string(), floats.display().to_string());
    let arguments = ["quantize", &from, &to, "--type", "F32", "--pure"];
    succeed(bare(scratch.path(), &arguments));
    for (runtime, backend) in [
        (&ONNX, "onnx:cpu"),
        (&ONNX_OPENVINO, "onnx:openvino"),
        (&OPENVINO, "openvino:CPU"),
    ] {
        let comparison = Comparison {
            scratch: scratch.path(),
            model: &path,
            runtime,
            backend,
            positions: 64,
        };
        let Some((agreement, divergence)) = comparison.run(&["--reference", &to]) else {
            continue;
        };
        assert!(
            agreement >= EXACT_AGREEMENT && divergence <= EXACT_DIVERGENCE,
            "{backend}: agreement {agreement}, divergence {divergence}"
        );
        if backend == "openvino:CPU" {
            let rounding = "DYNAMIC_QUANTIZATION_GROUP_SIZE=32";
            let rounded = comparison.run(&["--reference", &to, "--ep-option", rounding]);
            let (_, divergence) = rounded.expect("it was there before");
            assert!(divergence > EXACT_DIVERGENCE, "{rounding} is not seen");
        }
    }
}

/// Where a device forces another grid, the export says how far weights are from the model's.
#[test]
fn the_loss_of_a_forced_grid_is_said() {
    let scratch = tempfile::tempdir().expect("a directory");
    let Some(path) = real_model("smollm2-135m-instruct") else {
        return;
    };
    let model = path.display().to_string();
    for (form, bounds) in [("npu-int8", 0.004..0.015), ("npu-int4", 0.03..0.1)] {
        let out = scratch.path().join(form).display().to_string();
        let arguments = [
            "export", "openvino", "-m", &model, &out, "--form", form, "--ctx", "256",
        ];
        let said = succeed(bare(scratch.path(), &arguments));
        let error = said.split("relative error ").nth(1).expect("a loss");
        let error = error.split_whitespace().next().expect("a number");
        let error: f64 = error.parse().expect("a number");
        assert!(bounds.contains(&error), "{form}: {said}");
    }
    let comparison = Comparison {
        scratch: scratch.path(),
        model: &path,
        runtime: &OPENVINO,
        backend: "openvino:NPU",
        positions: 32,
    };
    // Each matrix is rounded again here: the distribution stays near, near ties do not.
    if let Some((agreement, divergence)) = comparison.run(&[]) {
        assert!(
            agreement >= 0.8 && divergence <= 0.03,
            "agreement {agreement}, divergence {divergence}"
        );
    }
}

#[test]
fn accelerator_pipelines_answer() {
    let scratch = tempfile::tempdir().expect("a directory");
    let Some(model) = real_model("smollm2-135m-instruct") else {
        return;
    };
    let model = model.display().to_string();
    for (runtime, backend) in [
        (&ONNX_OPENVINO, "onnx:openvino"),
        (&OPENVINO, "openvino:NPU"),
    ] {
        let arguments = [
            "run",
            "-m",
            &model,
            "What is gravity?",
            "--temp",
            "0",
            "-n",
            "12",
            "--ctx",
            "256",
            "--backend",
            backend,
            "--json",
        ];
        let Some(mut command) = runtime.command(scratch.path(), &arguments) else {
            continue;
        };
        // The NPU's own pipeline, on the processor.
        command.env("ONDINE_NPUW_DEVICES", "CPU");
        let answer: Value = serde_json::from_str(&succeed(command)).expect("JSON");
        let text = answer["text"].as_str().expect("a text");
        assert!(text.contains("fundamental"), "{backend}: {text}");
        assert_eq!(answer["backend"], backend);
    }
}

#[test]
fn the_official_checker_accepts_an_export() {
    let scratch = tempfile::tempdir().expect("a directory");
    let root = std::env::var_os("ONDINE_TEST_RUNTIMES").map(PathBuf::from);
    let Some(package) = root
        .map(|root| root.join("onnx"))
        .filter(|path| path.is_dir())
    else {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: onnx is not in the directory that ONDINE_TEST_RUNTIMES names; ./test.sh gets it"
        );
        return;
    };
    for architecture in ["llama", "gemma2", "bloom", "gpt2", "phi3"] {
        let model = tiny(scratch.path(), architecture);
        let out = scratch.path().join(architecture);
        let out = out.display().to_string();
        succeed(bare(
            scratch.path(),
            &["export", "onnx", "-m", &model, &out, "--ctx", "32"],
        ));
        let mut checker = Command::new("python3");
        checker.env("PYTHONPATH", &package).args([
            "-c",
            "import glob, onnx, sys\nfor f in glob.glob(sys.argv[1] + '/*.onnx'): onnx.checker.check_model(f)",
            &out,
        ]);
        succeed(checker);
    }
}

#[test]
fn what_is_missing_or_damaged_has_a_typed_reason() {
    let scratch = tempfile::tempdir().expect("a directory");
    let model = tiny(scratch.path(), "llama");
    let arguments = |backend: &'static str, model: &str| -> Vec<String> {
        let words = [
            "run", "-m", model, "a", "--raw", "-n", "4", "--temp", "0", "--ctx", "32",
        ];
        let words = words.into_iter().chain(["--backend", backend]);
        words.map(String::from).collect()
    };
    let command = |backend, model: &str| {
        let arguments = arguments(backend, model);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        bare(scratch.path(), &words)
    };
    for backend in ["onnx:cpu", "openvino:CPU"] {
        let said = fail(command(backend, &model));
        assert!(said.contains("NotPresent"), "{said}");
    }
    // No library at all.
    let text = scratch.path().join("libonnxruntime.so");
    std::fs::write(&text, "no library").expect("written");
    let mut wrong = command("onnx:cpu", &model);
    wrong.env("ONDINE_ORT_LIB", &text);
    assert!(fail(wrong).contains("NotPresent"));

    // With a second backend the answer comes from there, and the first one's reason is told.
    let expected = succeed(command("cpu", &model));
    let mut moved = command("onnx:cpu+openvino+cpu", &model);
    let output = moved.output().expect("it starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("NotPresent").count(), 2, "{said}");
    let mut json = command("onnx:cpu+cpu", &model);
    json.arg("--json");
    let answer: Value = serde_json::from_str(&succeed(json)).expect("JSON");
    assert_eq!(answer["backend"], "cpu");
    assert_eq!(answer["step_downs"][0]["reason"], "NotPresent");
    assert_eq!(answer["step_downs"][0]["moment"], "probe");

    let Some(directory) = ONNX.directory() else {
        return;
    };
    let with_runtime = |model: &str| {
        let mut command = command("onnx:cpu", model);
        command.env("ONDINE_ORT_LIB", &directory);
        command
    };
    let answer = succeed(with_runtime(&model));
    let experts = tiny(scratch.path(), "olmoe");
    assert!(fail(with_runtime(&experts)).contains("UnsupportedOp"));
    // One byte of the kept weights is turned over.
    let entries = std::fs::read_dir(scratch.path()).expect("entries");
    let kept = entries
        .filter_map(|entry| Some(entry.ok()?.path().join("weights.bin")))
        .find(|path| path.is_file())
        .expect("a cache entry");
    let mut bytes = std::fs::read(&kept).expect("weights");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&kept, bytes).expect("written");
    // It is refused, made again, and that is said, once.
    for damaged in [true, false] {
        let output = with_runtime(&model).output().expect("it starts");
        assert_eq!(String::from_utf8_lossy(&output.stdout), answer);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.contains("CacheDamaged"), damaged, "{said}");
    }
}

/// A library of the right shape and of another time: as ONNX Runtime 1.10 answers.
#[test]
fn a_library_that_is_too_old_says_so() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (source, library) = (
        scratch.path().join("old.c"),
        scratch.path().join("libonnxruntime.so"),
    );
    let text = "#include <stdint.h>\n\
        static const void *api(uint32_t version) { return version > 10 ? 0 : \"\"; }\n\
        static const char *version(void) { return \"1.10.0\"; }\n\
        static const struct { const void *(*api)(uint32_t); const char *(*version)(void); } base = { api, version };\n\
        const void *OrtGetApiBase(void) { return &base; }\n";
    std::fs::write(&source, text).expect("written");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library);
    if !compiler
        .arg(&source)
        .status()
        .is_ok_and(|status| status.success())
    {
        let _ = writeln!(std::io::stderr(), "skipped: `cc` makes no library here");
        return;
    }
    let model = tiny(scratch.path(), "llama");
    let arguments = ["run", "-m", &model, "a", "--raw", "-n", "2", "--backend"];
    let old = |backend: &str| {
        let mut command = bare(scratch.path(), &[&arguments[..], &[backend]].concat());
        command.env("ONDINE_ORT_LIB", &library);
        command
    };
    let said = fail(old("onnx:cpu"));
    assert!(said.contains("DriverTooOld"), "{said}");
    assert!(said.contains("1.10.0"), "{said}");
    // A library of something else, and one that lacks what was added later.
    let with_openvino = |library: &Path| {
        let words = [&arguments[..], &["openvino:CPU"]].concat();
        let mut command = bare(scratch.path(), &words);
        command.env("ONDINE_OPENVINO_LIB", library);
        fail(command)
    };
    let said = with_openvino(&library);
    assert!(said.contains("NotPresent"), "{said}");
    let old = scratch.path().join("libopenvino_c.so");
    std::fs::write(&old, b"\x7fELF\0ov_core_create\0ov_core_free\0").expect("written");
    let said = with_openvino(&old);
    assert!(said.contains("DriverTooOld"), "{said}");
}

/// Weights pass through memory matrix by matrix: as floats those of this model would need a gigabyte.
#[test]
fn an_export_needs_little_memory() {
    let scratch = tempfile::tempdir().expect("a directory");
    let Some(path) = real_model("gemma-3-270m") else {
        return;
    };
    let model = path.display().to_string();
    for format in ["onnx", "openvino"] {
        let out = scratch.path().join(format).display().to_string();
        let arguments = [
            "export", format, "-m", &model, &out, "--ctx", "512", "--json",
        ];
        let said = succeed(bare(scratch.path(), &arguments));
        let report: Value = serde_json::from_str(&said).expect("JSON");
        let bytes = report["weights_bytes"].as_u64().expect("a number");
        let Some(peak) = report["peak_rss_bytes"].as_u64() else {
            continue;
        };
        println!("{format}: {bytes} bytes of weights, peak {peak}");
        assert!(bytes > 200 << 20, "{bytes}");
        assert!(peak < 320 << 20, "{format}: {peak}");
    }
}

/// A real model through 2 MiB of on-chip memory, by the command.
#[test]
fn a_simulated_device_answers_within_its_memory() {
    let scratch = tempfile::tempdir().expect("a directory");
    let Some(path) = real_model("smollm2-135m-instruct") else {
        return;
    };
    let model = path.display().to_string();
    let arguments = [
        "run",
        "-m",
        &model,
        "What is gravity?",
        "--temp",
        "0",
        "-n",
        "8",
        "--ctx",
        "128",
        "--backend",
        "sim:intel-npu-4000,dtype=w8a16,sram=2MiB",
        "--json",
    ];
    let command = bare(scratch.path(), &arguments);
    let answer: Value = serde_json::from_str(&succeed(command)).expect("JSON");
    let text = answer["text"].as_str().expect("a text");
    assert!(text.contains("fundamental"), "{text}");
    let simulation = &answer["simulations"][0];
    assert_eq!(simulation["sram_bytes"], 2 << 20, "{simulation}");
    let high = simulation["high_water_bytes"].as_u64().expect("a number");
    assert!((1..=2 << 20).contains(&high), "{simulation}");
    let gain = simulation["double_buffering"].as_f64().expect("a number");
    assert!(gain >= 1.0, "{simulation}");
}

#[test]
fn devices_say_why_they_are_not_used() {
    let scratch = tempfile::tempdir().expect("a directory");
    let listed = succeed(bare(scratch.path(), &["devices", "--json"]));
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let devices = listed["devices"].as_array().expect("a list");
    assert_eq!(devices[0]["backend"], "cpu");
    assert_eq!(devices[0]["available"], true);
    for device in &devices[1..] {
        assert_eq!(device["available"], false, "{device}");
        assert_eq!(device["reason"], "NotPresent", "{device}");
    }
    assert_eq!(
        listed["auto"].as_array().and_then(|all| all.last()),
        Some(&"cpu".into())
    );
}

fn tiny(directory: &Path, architecture: &'static str) -> String {
    let tiny = Tiny {
        tensor_type: ondine_kernels::TensorType::Q8_0,
        ..Tiny::new(architecture, 3)
    };
    let path = directory.join(format!("{architecture}.gguf"));
    std::fs::write(&path, tiny.gguf()).expect("written");
    path.display().to_string()
}
