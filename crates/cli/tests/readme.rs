//! The README's commands do what it says. Skipped, and said so, without the real models.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

const README: &str = include_str!("../../../README.md");
const SCHEMA: &str = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":12}},"required":["name"],"additionalProperties":false}"#;

#[test]
fn the_commands_of_the_readme_work() {
    let (Some(small), Some(other)) = (
        support::real_model("smollm2-135m-instruct"),
        support::real_model("gemma-3-270m"),
    ) else {
        return;
    };
    let place = tempfile::tempdir().expect("a place");
    let bin = place.path().join("bin");
    std::fs::create_dir(&bin).expect("made");
    link(Path::new(env!("CARGO_BIN_EXE_ondine")), &bin.join("ondine"));
    link(&small, &place.path().join("model.gguf"));
    // The models as `pull` leaves them.
    let home = place.path().join("home");
    for (name, file, path) in [
        (
            "smollm2-135m-instruct",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            &small,
        ),
        ("gemma-3-270m", "gemma-3-270m-Q4_K_M.gguf", &other),
    ] {
        let directory = home.join("models").join(name);
        std::fs::create_dir_all(&directory).expect("made");
        link(path, &directory.join(file));
    }
    std::fs::write(place.path().join("person.json"), SCHEMA).expect("written");
    let path = format!(
        "{}:{}",
        bin.display(),
        std::env::var("PATH").expect("a path")
    );

    let mut run = 0;
    for line in commands() {
        // The binary is the one under test; long answers are cut, and a chat's input ends at once.
        let line = line.replace("cargo run --release --", "ondine");
        if !line.contains("ondine ")
            || line.contains("cargo ")
            || line.contains('|') && line.contains('…')
        {
            continue;
        }
        let line = match line.contains("ondine run") && !line.contains(" -n ") {
            true => format!("{line} -n 24"),
            false => line.replace("bench -p 512 -n 128", "bench -p 64 -n 8 -r 1"),
        };
        let output = Command::new("sh")
            .args(["-c", &line])
            .current_dir(place.path())
            .env("PATH", &path)
            .env("ONDINE_OFFLINE", "1")
            .env("ONDINE_HOME", &home)
            .stdin(Stdio::null())
            .output()
            .expect("it starts");
        let error = String::from_utf8_lossy(&output.stderr);
        let constrained = line.contains("--json-schema") && output.status.code() == Some(1);
        assert!(output.status.success() || constrained, "{line}: {error}");
        run += 1;
    }
    assert!(run >= 7, "only {run} commands were found");
}

/// The lines of the shell blocks, comments left out.
fn commands() -> Vec<String> {
    let blocks = README.split("```sh\n").skip(1);
    let blocks = blocks.filter_map(|block| block.split("```").next());
    let lines = blocks.flat_map(str::lines);
    lines
        .map(|line| line.split("  #").next().unwrap_or(line).trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

fn link(from: &Path, to: &Path) {
    std::os::unix::fs::symlink(from, to).expect("linked");
}
