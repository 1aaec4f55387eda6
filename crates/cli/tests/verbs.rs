//! Every verb that uses a model, on tiny models: what it prints, and how it fails.

mod support;

use support::{run, run_with_input, tiny_model};

#[test]
fn run_prints_text_or_one_object() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "llama");
    let plain = run(&[
        "run", "-m", &model, "Hello", "-n", "5", "--temp", "0", "--raw",
    ]);
    assert_eq!(plain.code, 0, "{}", plain.err);
    let json = run(&[
        "run", "-m", &model, "Hello", "-n", "5", "--temp", "0", "--raw", "--json",
    ])
    .json();
    assert_eq!(
        plain.out.trim_end_matches('\n'),
        json["text"].as_str().expect("text").trim_end_matches('\n')
    );
    assert_eq!(json["generated_tokens"], 5);
    assert_eq!(json["stop"], "length");
    for field in [
        "prompt_tokens",
        "ttft_ms",
        "prefill_tps",
        "decode_tps",
        "peak_rss_bytes",
    ] {
        assert!(json[field].as_f64().expect(field) > 0.0, "{field}");
    }
    assert_eq!(json["backend"], "cpu");
    assert!(["scalar", "avx2", "avx512"].contains(&json["isa"].as_str().expect("isa")));
}

#[test]
fn standard_input_is_the_prompt_or_its_context() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "llama");
    let flags = [
        "run", "-m", &model, "-n", "3", "--temp", "0", "--raw", "--json",
    ];
    let piped = run_with_input(&flags, "Hello").json();
    let argument = run(&[&flags[..], &["Hello"]].concat()).json();
    assert_eq!(piped["text"], argument["text"]);
    let both = run_with_input(&[&flags[..], &["Hello"]].concat(), "there").json();
    assert!(both["prompt_tokens"].as_u64() > argument["prompt_tokens"].as_u64());
    run(&flags[..flags.len() - 1]).assert_fails_with(2, "no prompt");
}

#[test]
fn a_missing_chat_template_is_told() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "qwen2");
    let ran = run(&["run", "-m", &model, "Hello", "-n", "2"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("template"), "{}", ran.err);
}

#[test]
fn the_instruction_set_can_be_forced() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "gemma3");
    let mut texts = Vec::new();
    for isa in ["scalar", "avx2", "avx512"] {
        let mut command = support::ondine(&[
            "run", "-m", &model, "Hello", "-n", "20", "--temp", "0", "--raw", "--json",
        ]);
        let output = command.env("ONDINE_ISA", isa).output().expect("it starts");
        if output.status.success() {
            let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(value["isa"], isa);
            texts.push(value["text"].clone());
        } else {
            let error = String::from_utf8(output.stderr).expect("UTF-8");
            assert!(error.contains("ONDINE_ISA"), "{error}");
        }
    }
    assert!(texts.iter().all(|text| *text == texts[0]));
    let output = support::ondine(&["run", "-m", &model, "x"])
        .env("ONDINE_ISA", "mmx")
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn tokenize_and_detokenize_are_inverse() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "llama");
    let text = "The thing and the end. Grüße 😀\n\n  ok";
    let json = run_with_input(&["tokenize", "-m", &model, "--json", "--no-special"], text).json();
    let ids: Vec<String> = json["ids"]
        .as_array()
        .expect("ids")
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(json["pieces"].as_array().expect("pieces").len(), ids.len());
    let mut arguments = vec!["detokenize", "-m", &model];
    arguments.extend(ids.iter().map(String::as_str));
    let back = run(&arguments);
    assert_eq!(back.out.trim_end_matches('\n'), text, "{}", back.err);
    let lines = "{\"text\":\"the\"}\n{\"text\":\"\"}\n{\"text\":\"a\\nb\"}\n";
    let ran = run_with_input(
        &["tokenize", "-m", &model, "--jsonl", "--no-special"],
        lines,
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.out.lines().count(), 3);
    for line in ran.out.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(value["ids"].is_array());
    }
}

#[test]
fn logits_writes_floats_of_the_shape_it_says() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "phi3");
    let out = directory.path().join("logits.f32").display().to_string();
    let json = run(&[
        "logits", "-m", &model, "--tokens", "1,2,3", "--out", &out, "--json",
    ])
    .json();
    let bytes = std::fs::metadata(&out).expect("written").len();
    assert_eq!(json["shape"][0], 3);
    assert_eq!(bytes, 3 * 4 * json["shape"][1].as_u64().expect("a number"));
    run(&["logits", "-m", &model, "--tokens", "1,99999", "--out", &out])
        .assert_fails_with(1, "99999");
    run(&[
        "logits",
        "-m",
        &model,
        "--tokens",
        "1",
        "--out",
        "/nowhere/at/all",
    ])
    .assert_fails_with(1, "/nowhere");
}

#[test]
fn perplexity_scores_half_of_each_window() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "gpt2");
    let text = directory.path().join("text.txt");
    std::fs::write(&text, "The thing and the other thing. ".repeat(100)).expect("written");
    let text = text.display().to_string();
    let json = run(&[
        "perplexity",
        "-m",
        &model,
        &text,
        "--ctx",
        "64",
        "--chunks",
        "3",
        "--json",
    ])
    .json();
    assert_eq!(json["chunks"], 3);
    assert!(json["ppl"].as_f64().expect("a number") > 1.0);
    let nll = json["nll"].as_f64().expect("a number");
    assert!((nll.exp() / json["ppl"].as_f64().expect("a number") - 1.0).abs() < 1e-6);
    std::fs::write(&text, [0xff, 0xfe]).expect("written");
    run(&["perplexity", "-m", &model, &text]).assert_fails_with(1, "UTF-8");
}

#[test]
fn bench_prints_medians_and_the_limit() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "olmoe");
    let arguments = [
        "bench", "-m", &model, "-p", "16", "-n", "8", "-d", "0,32", "-r", "2",
    ];
    let json = run(&[&arguments[..], &["--json"]].concat()).json();
    let names: Vec<_> = json["tests"]
        .as_array()
        .expect("tests")
        .iter()
        .map(|test| test["name"].clone())
        .collect();
    assert_eq!(names, ["pp16", "tg8", "pp16@d32", "tg8@d32"]);
    for test in json["tests"].as_array().expect("tests") {
        let rate = &test["tokens_per_second"];
        let number = |name: &str| rate[name].as_f64().expect("a number");
        assert!(number("min") <= number("median") && number("median") <= number("max"));
    }
    assert!(json["tests"][1]["bytes_per_token"].as_u64() > Some(0));
    assert!(json["limits"]["read_bytes_per_second"].as_f64() > Some(1e8));
    assert_eq!(run(&arguments).code, 0);
}

#[test]
fn bench_decodes_several_sequences_and_has_neighbours() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "llama");
    let arguments = [
        "bench",
        "-m",
        &model,
        "-p",
        "0",
        "-n",
        "8",
        "-d",
        "0,4",
        "--batch",
        "1,3",
        "-r",
        "1",
        "--neighbours",
        "1",
        "-t",
        "2",
    ];
    let json = run(&[&arguments[..], &["--json"]].concat()).json();
    let tests = json["tests"].as_array().expect("tests");
    let names: Vec<_> = tests.iter().map(|test| test["name"].clone()).collect();
    assert_eq!(names, ["tg8", "tg8x3", "tg8@d4", "tg8x3@d4"]);
    for test in tests {
        let beside = test["tokens_per_second_beside_neighbours"]["median"].as_f64();
        assert!(beside > Some(0.0));
        let alone = test["tokens_per_second"]["median"].as_f64();
        let kept = test["share_kept"].as_f64().expect("a share");
        let expected = beside.zip(alone).map(|(beside, alone)| beside / alone);
        assert!(expected.is_some_and(|expected| (kept / expected - 1.0).abs() < 1e-9));
    }
    let step = |test: usize| {
        let batch = tests[test]["batch"].as_u64().expect("a number");
        batch * tests[test]["bytes_per_token"].as_u64().expect("a number")
    };
    // Weights are read once for all sequences, keys and values by each.
    assert!(step(0) < step(1) + 3 && step(1) < 2 * step(0));
    let text = run(&arguments).out;
    assert!(
        text.contains("beside 1 busy") && text.contains("kept"),
        "{text}"
    );
}

#[test]
fn inspect_shows_what_a_model_is() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "qwen3moe");
    let json = run(&["inspect", "-m", &model, "--json"]).json();
    assert_eq!(json["metadata"]["general.architecture"], "qwen3moe");
    assert!(json["parameters"].as_u64() > Some(10_000));
    let text = run(&["inspect", "-m", &model, "--tensors"]);
    assert!(text.out.contains("ffn_gate_exps"), "{}", text.out);
}

#[test]
fn chat_answers_line_by_line_and_remembers() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "llama");
    let ran = run_with_input(
        &["chat", "-m", &model, "-n", "3", "--temp", "0", "--quiet"],
        "Hello\n/stats\nAgain\n/stats\n/clear\n/quit\n",
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    let stats: Vec<&str> = ran
        .out
        .lines()
        .filter(|line| line.contains("prompt tokens"))
        .collect();
    assert_eq!(stats.len(), 2, "{}", ran.out);
    assert!(stats[0].contains("(0 reused)"), "{}", stats[0]);
    assert!(!stats[1].contains("(0 reused)"), "{}", stats[1]);
}

#[test]
fn constraints_hold() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "llama");
    let schema = directory.path().join("schema.json");
    std::fs::write(&schema, r#"{"type":"object","properties":{"on":{"type":"boolean"},"room":{"enum":["hall","bath"]}},"required":["on","room"],"additionalProperties":false}"#)
        .expect("written");
    let schema = schema.display().to_string();
    for seed in ["1", "2", "3"] {
        let json = run(&[
            "run",
            "-m",
            &model,
            "x",
            "--raw",
            "--json",
            "--seed",
            seed,
            "-n",
            "800",
            "--json-schema",
            &schema,
        ])
        .json();
        assert_eq!(json["stop"], "complete", "{json}");
        let answer: serde_json::Value =
            serde_json::from_str(json["text"].as_str().expect("text")).expect("JSON");
        assert!(answer["on"].is_boolean());
        assert!(["hall", "bath"].contains(&answer["room"].as_str().expect("a room")));
        let json = run(&[
            "run",
            "-m",
            &model,
            "x",
            "--raw",
            "--json",
            "--seed",
            seed,
            "-n",
            "50",
            "--regex",
            "[0-9]{3}-[a-f]{2}",
        ])
        .json();
        let text = json["text"].as_str().expect("text");
        assert!(text.len() == 6 && text.as_bytes()[3] == b'-', "{text}");
    }
    std::fs::write(&schema, "{").expect("written");
    run(&["run", "-m", &model, "x", "--raw", "--json-schema", &schema])
        .assert_fails_with(1, "schema.json");
    run(&["run", "-m", &model, "x", "--raw", "--regex", "("]).assert_fails_with(1, "reg");
}

#[test]
fn bad_input_gets_one_sentence() {
    let directory = tempfile::tempdir().expect("a place");
    let model = tiny_model(directory.path(), "llama");
    let damaged = directory.path().join("damaged.gguf");
    let bytes = std::fs::read(&model).expect("it is there");
    std::fs::write(&damaged, &bytes[..bytes.len() / 2]).expect("written");
    let damaged = damaged.display().to_string();
    for verb in [
        &["run", "x"][..],
        &["chat"],
        &["inspect"],
        &["bench"],
        &["logits", "--tokens", "1", "--out", "x"],
    ] {
        run(&[verb, &["-m", &damaged]].concat()).assert_fails_with(1, "damaged.gguf");
    }
    run(&["run", "-m", "no-such-model-anywhere", "x"])
        .assert_fails_with(1, "no-such-model-anywhere");
    run(&["run", "-m", &model, "x", "--top-p", "7"]).assert_fails_with(2, "top");
    let long = "word ".repeat(5000);
    run(&["run", "-m", &model, "--raw", &long]).assert_fails_with(1, "context");
}
