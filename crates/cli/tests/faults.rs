//! Faults of a device in the middle of an answer, through the command: the text is the one without faults, the reason is
//! right, and nothing waits longer than its deadline.

mod support;

use std::time::{Duration, Instant};

use ondine_fixtures::Tiny;
use serde_json::Value;
use support::{ondine, real_model};

/// Tokens of an answer.
const TOKENS: usize = 64;

/// A fault, and the reason that is to be told.
const FAULTS: [(&str, &str); 6] = [
    ("device-lost", "DeviceLost"),
    ("out-of-memory", "OutOfMemory"),
    ("driver-too-old", "DriverTooOld"),
    ("compile-failed", "CompileFailed"),
    ("nan", "BadResult"),
    ("hang", "Timeout"),
];

/// What a step may take where one hangs, and elsewhere, in milliseconds: a hundred times what it does take, so that a busy
/// machine changes nothing.
const DEADLINE: u64 = 2_000;
const NO_DEADLINE: u64 = 60_000;

/// How long a hang lasts: longer than the whole command may take.
const HANG: u64 = 120_000;

#[test]
fn a_fault_at_any_token_does_not_change_the_answer() {
    let directory = tempfile::tempdir().expect("a directory");
    let tiny = Tiny {
        tensor_type: ondine_kernels::TensorType::Q8_0,
        ..Tiny::new("llama", 5)
    };
    let path = directory.path().join("tiny.gguf");
    std::fs::write(&path, tiny.gguf()).expect("written");
    let path = path.display().to_string();
    let device = Device {
        model: &path,
        prompt: &["a", "--raw"],
        profile: "rk3588",
        context: "128",
    };
    // Every token for the first fault, the others' in between, so that each place has a fault of several kinds.
    let expected = device.answer(None);
    for (index, (fault, reason)) in FAULTS.into_iter().enumerate() {
        let every = match fault {
            "device-lost" => 1,
            // Each costs a deadline.
            "hang" => 21,
            _ => 8,
        };
        for step in (index % every..TOKENS).step_by(every) {
            device.check(&expected, fault, reason, step);
        }
    }
}

#[test]
fn a_real_answer_goes_on_after_a_fault() {
    let Some(model) = real_model("smollm2-135m-instruct") else {
        return;
    };
    let model = model.display().to_string();
    let device = Device {
        model: &model,
        prompt: &["What is gravity?"],
        profile: "rk3588",
        context: "128",
    };
    let expected = device.answer(None);
    device.check(&expected, "device-lost", "DeviceLost", 5);
}

/// Where answers come from.
struct Device<'a> {
    model: &'a str,
    prompt: &'a [&'a str],
    profile: &'a str,
    context: &'a str,
}

impl Device<'_> {
    /// The answer of the device, failing with `fault`, and of the same device without a fault after it.
    fn answer(&self, fault: Option<(&str, usize)>) -> Value {
        let whole = format!("sim:{}", self.profile);
        let backend = match fault {
            None => whole,
            Some((fault, step)) => format!("{whole},fault={fault}@{step},hang={HANG}+{whole}"),
        };
        let tokens = match self.prompt {
            [_, "--raw"] => TOKENS,
            _ => 8,
        };
        let deadline = match fault {
            Some(("hang", _)) => DEADLINE,
            _ => NO_DEADLINE,
        };
        let (tokens, deadline) = (tokens.to_string(), (deadline / 1000).to_string());
        let mut arguments = vec!["run", "-m", self.model];
        arguments.extend(self.prompt);
        arguments.extend([
            "-n",
            &tokens,
            "--ignore-eos",
            // With guessed tokens there are fewer steps than tokens.
            "--no-speculation",
            "--temp",
            "0",
            "--ctx",
            self.context,
        ]);
        arguments.extend([
            "--backend",
            &backend,
            "--step-deadline",
            &deadline,
            "--json",
        ]);
        let output = ondine(&arguments).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{backend}: {said}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn check(&self, expected: &Value, fault: &str, reason: &str, step: usize) {
        let begun = Instant::now();
        let answer = self.answer(Some((fault, step)));
        assert!(begun.elapsed() < Duration::from_millis(HANG));
        assert_eq!(answer["text"], expected["text"], "{fault} at {step}");
        assert_eq!(answer["generated_tokens"], expected["generated_tokens"]);
        let downs = answer["step_downs"].as_array().expect("a list");
        assert_eq!(downs.len(), 1, "{fault} at {step}: {downs:?}");
        assert_eq!(downs[0]["reason"], reason, "{fault} at {step}");
        assert_eq!(downs[0]["moment"], "generation", "{fault} at {step}");
    }
}
