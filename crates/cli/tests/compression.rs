//! Smaller models and what that cost, on tiny models: calibrate, quantize, perplexity --reference, eval, gate.

mod support;

use std::path::Path;
use support::{run, tiny_model};

/// Text of letters, the same each time.
fn text(directory: &Path) -> String {
    let mut random = ondine_fixtures::Random::new(9);
    let letters: String = (0..3000)
        .map(|_| char::from(b'a' + random.below(26) as u8))
        .collect();
    write(directory, "text.txt", &letters)
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

fn path(directory: &Path, name: &str) -> String {
    directory.join(name).display().to_string()
}

#[test]
fn what_is_calibrated_and_quantised_is_near_the_original() {
    let directory = tempfile::tempdir().expect("a place");
    let directory = directory.path();
    let model = tiny_model(directory, "llama");
    let text = text(directory);
    let imatrix = path(directory, "imatrix.gguf");
    let flags = ["--ctx", "32", "--chunks", "8", "--json"];
    let calibrated = run(&[
        &["calibrate", "-m", &model, &text, "-o", &imatrix][..],
        &flags,
    ]
    .concat());
    assert_eq!(calibrated.code, 0, "{}", calibrated.err);
    assert_eq!(calibrated.json()["tokens"], 256);
    let small = path(directory, "small.gguf");
    let mut found = Vec::new();
    for ty in ["Q8_0", "Q4_1"] {
        let quantised = run(&[
            "quantize",
            &model,
            &small,
            "--type",
            ty,
            "--pure",
            "--imatrix",
            &imatrix,
            "--json",
        ]);
        assert_eq!(quantised.code, 0, "{}", quantised.err);
        let report = quantised.json();
        assert!(report["bits_per_weight"].as_f64().expect("bits") < 11.0);
        let compared = run(&[
            &["perplexity", "-m", &small, &text, "--reference", &model][..],
            &flags,
        ]
        .concat());
        assert_eq!(compared.code, 0, "{}", compared.err);
        let compared = compared.json();
        assert_eq!(compared["tokens"], 8 * 15);
        found.push(compared["mean_kl"].as_f64().expect("nats"));
    }
    assert!(0.0 < found[0] && found[0] < 0.003, "{found:?}");
    assert!(5.0 * found[0] < found[1] && found[1] < 0.3, "{found:?}");
    let same = run(&[
        &["perplexity", "-m", &model, &text, "--reference", &model][..],
        &flags,
    ]
    .concat());
    assert_eq!(same.json()["mean_kl"], 0.0);
    assert_eq!(same.json()["same_best"], 1.0);
}

#[test]
fn a_target_is_kept_to() {
    let directory = tempfile::tempdir().expect("a place");
    let directory = directory.path();
    let model = tiny_model(directory, "llama");
    let text = text(directory);
    let out = path(directory, "out.gguf");
    let quantize = |target: &[&str]| {
        let flags = ["--calibration", &text, "--method", "gptq", "--json"];
        run(&[&["quantize", &model, &out][..], &flags, target].concat())
    };
    let before = std::fs::metadata(&model).expect("a file").len();
    let mut sizes = Vec::new();
    for share in [3, 4] {
        let most = before / share;
        let ran = quantize(&["--target-size", &most.to_string()]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert!(ran.json()["estimated_kl"].as_f64().expect("nats") >= 0.0);
        let size = std::fs::metadata(&out).expect("a file").len();
        assert!(size <= most, "{size} {most}");
        sizes.push(ran.json()["estimated_kl"].as_f64().expect("nats"));
    }
    assert!(sizes[0] < sizes[1], "{sizes:?}");
    let ran = quantize(&["--target-bpw", "6"]);
    assert!(ran.json()["bits_per_weight"].as_f64().expect("bits") <= 6.0);
    let ran = quantize(&["--target-kl", "0.01"]);
    assert!(ran.json()["estimated_kl"].as_f64().expect("nats") <= 0.01);
    quantize(&["--target-size", "100"]).assert_fails_with(1, "larger file");
    quantize(&["--target-size", "1MB", "--target-kl", "1"]);
    let names = std::fs::read_dir(directory).expect("a place").count();
    assert_eq!(names, 3, "nothing is left behind");
}

#[test]
fn a_gate_passes_the_same_and_refuses_the_worse() {
    let directory = tempfile::tempdir().expect("a place");
    let directory = directory.path();
    let model = tiny_model(directory, "llama");
    text(directory);
    write(
        directory,
        "questions.jsonl",
        "{\"query\": \"a?\", \"choices\": [\"b\", \"cd\"], \"gold\": 0}\n",
    );
    write(
        directory,
        "prompts.jsonl",
        "{\"prompt\": \"Hello\", \"regex\": \".*\"}\n{\"prompt\": \"Hello\", \"schema\": {\"type\": \"object\"}}\n",
    );
    let suite = write(
        directory,
        "suite.toml",
        "name = \"tiny\"\n[[text]]\nname = \"letters\"\nfile = \"text.txt\"\nwindow = 32\nwindows = 6\n\
[[choice]]\nname = \"questions\"\nfile = \"questions.jsonl\"\n\
[[prompts]]\nname = \"own\"\nfile = \"prompts.jsonl\"\nmax_tokens = 4\nchat = false\n",
    );
    let results = path(directory, "results");
    let page = path(directory, "page.html");
    let flags = ["--suite", &suite, "--results", &results, "--json"];
    let measured = run(&[
        &["eval", "-m", &model, "--reference", &model, "--html", &page][..],
        &flags,
    ]
    .concat());
    assert_eq!(measured.code, 0, "{}", measured.err);
    let tasks = measured.json();
    assert_eq!(tasks["tasks"][0]["kl"]["mean"], 0.0);
    assert_eq!(tasks["tasks"][2]["score"]["mean"], 0.5);
    assert!(
        std::fs::read_to_string(&page)
            .expect("a page")
            .contains("letters")
    );
    let gate = |candidate: &str| {
        run(&[
            &["gate", "--baseline", &model, "--candidate", candidate][..],
            &flags,
        ]
        .concat())
    };
    let same = gate(&model);
    assert_eq!((same.code, &same.json()["passes"]), (0, &true.into()));
    // A layer of two bits.
    let worse = path(directory, "worse.gguf");
    let overridden = ["--type", "F16", "--tensor-type", "blk.1.=MXFP4"];
    let ran = run(&[&["quantize", &model, &worse][..], &overridden].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    let refused = gate(&worse);
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert_eq!(refused.json()["passes"], false);
    // Another model of the same shape.
    let other = ondine_fixtures::Tiny::new("llama", 2).gguf();
    let path = directory.join("other.gguf");
    std::fs::write(&path, other).expect("written");
    let refused = gate(&path.display().to_string());
    assert_eq!(refused.code, 3);
    assert!(refused.err.contains("kl of letters"), "{}", refused.err);
}
