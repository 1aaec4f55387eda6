//! A memory budget that the operating system enforces. Skipped, and said so, without a model or a control group.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{real_model, run, tiny_model};

const BUDGET: u64 = 128 << 20;

#[test]
fn a_model_runs_within_memory_that_the_system_bounds() {
    let Some(model) = real_model("smollm2-135m-instruct") else {
        return;
    };
    let Some(group) = Group::new(BUDGET) else {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: no control group for memory can be made here"
        );
        return;
    };
    let home = tempfile::tempdir().expect("a place");
    let model = model.display().to_string();
    let budget = format!("{}MiB", BUDGET >> 20);
    let arguments = [
        "run",
        "-m",
        &model,
        "A river is",
        "--raw",
        "--temp",
        "0",
        "-n",
        "12",
        "--json",
    ];
    let free = run(&[&arguments[..], &["--no-cache"]].concat()).json();
    let output = Command::new("sh")
        .arg("-c")
        .arg("echo $$ > \"$GROUP/cgroup.procs\" && exec \"$@\"")
        .args(["sh", env!("CARGO_BIN_EXE_ondine")])
        .args(arguments)
        .args(["--memory-budget", &budget])
        .env("GROUP", &group.path)
        .env("ONDINE_HOME", home.path())
        .output()
        .expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?} {errors}", output.status);
    let bounded: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(free["text"], bounded["text"]);
    let streaming = &bounded["streaming"];
    assert!(
        streaming["bytes_per_token"].as_f64() > Some(1e6),
        "{streaming}"
    );
    assert!(
        streaming["share_of_disk"].as_f64() > Some(0.0),
        "{streaming}"
    );
    let resident = streaming["resident_bytes"].as_u64().expect("a number");
    assert!(resident < BUDGET, "{streaming}");
}

#[test]
fn packed_weights_are_listed_and_cleared() {
    let home = tempfile::tempdir().expect("a place");
    let models = tempfile::tempdir().expect("a place");
    let model = tiny_model(models.path(), "llama");
    let ondine = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_ondine"))
            .args(arguments)
            .env("ONDINE_HOME", home.path())
            .output()
            .expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    assert_eq!(ondine(&["cache", "--json"])["bytes"], 0);
    let run = [
        "run", "-m", &model, "Hello", "--raw", "--temp", "0", "-n", "4", "--json",
    ];
    let free = ondine(&run);
    assert_eq!(
        ondine(&["cache", "list", "--json"])["bytes"],
        0,
        "too small to keep"
    );
    let bounded = ondine(&[&run[..], &["--memory-budget", "4GiB"]].concat());
    assert_eq!(free["text"], bounded["text"]);
    let list = ondine(&["cache", "list", "--json"]);
    assert_eq!(list["files"].as_array().map(Vec::len), Some(1), "{list}");
    let inspected = ondine(&["inspect", "-m", &model, "--json"]);
    assert_eq!(inspected["packed"]["path"], list["files"][0]["path"]);
    let cleared = ondine(&["cache", "clear", "--json"]);
    assert_eq!(cleared["freed_bytes"], list["bytes"]);
    assert_eq!(ondine(&["cache", "--json"])["bytes"], 0);
}

/// A control group that bounds memory, page cache included.
struct Group {
    path: PathBuf,
}

impl Group {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("ondine-test-{}", std::process::id());
        let places = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ];
        places.iter().find_map(|(root, limit)| {
            if !Path::new(root).join("cgroup.procs").is_file() {
                return None;
            }
            let path = Path::new(root).join(&name);
            fs::create_dir(&path).ok()?;
            let group = Group { path };
            fs::write(group.path.join(limit), bytes.to_string()).ok()?;
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
