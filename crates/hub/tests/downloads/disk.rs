//! A disk that is too small: noticed before the download where the size is known, and reported as such where it is not.

use crate::machine::{Machine, noise};
use crate::processes::child_command;
use crate::server::{Response, Server};
use ondine_hub::HubError;
use std::io::Write;
use std::process::Command;

#[test]
fn a_model_that_cannot_fit_is_not_begun() {
    let server = Server::start(|_, _| Response::whole(b"model"));
    let size = 1u64 << 60;
    let lines = format!("size={size}\nsources=['{0}', '{0}']", server.url("/m"));
    let (result, _) = Machine::with_model(&lines).try_pull();
    let error = result.unwrap_err();
    assert!(matches!(error, HubError::NotEnoughSpace { needed, .. } if needed == size));
    assert!(
        error
            .to_string()
            .contains("set ONDINE_HOME to another disk"),
        "{error}"
    );
    assert!(server.requests().is_empty());
}

/// A file system of 256 KiB, mounted for one process alone.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_is_reported_and_the_download_goes_on_later() {
    let content = noise(600_000, 1);
    let body = content.clone();
    let server = Server::start(move |request, _| Response::ranged(request, &body, "\"x\""));
    let machine = Machine::with_model(&format!("sources=['{}']", server.url("/m")));
    let home = machine.settings.home.clone();
    std::fs::create_dir_all(&home).unwrap();
    let mount = "mount -t tmpfs -o size=256k none \"$0\" || exit 77; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", mount])
        .arg(&home)
        .args(child_command(machine.directory.path()))
        .output();
    let said = match output {
        Ok(output) if output.status.code() == Some(1) => {
            String::from_utf8_lossy(&output.stderr).into_owned()
        }
        _ => String::new(),
    };
    if !said.contains("child: ") {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: no small disk can be mounted here ({said})"
        );
        return;
    }
    assert!(said.contains("child: not enough space in "), "{said}");
    assert_eq!(
        server.requests().len(),
        1,
        "a full disk is no reason to ask again"
    );
    machine.pull(&content);
}
