//! Who vouches for a file's hash, and what happens when it is another.

use crate::machine::{Log, Machine, model_lines, noise, sha256};
use crate::server::{Response, Server};
use ondine_hub::Trust;

#[test]
fn a_file_with_another_hash_is_refused_and_leaves_nothing() {
    let server = Server::start(|_, _| Response::whole(&noise(1000, 1)));
    let wanted = noise(1000, 2);
    let machine = Machine::with_content(&wanted, &[server.url("/m")]);
    let (result, log) = machine.try_pull();
    let error = result.unwrap_err();
    assert!(error.is_refusal());
    let text = error.to_string();
    assert!(
        text.contains(&sha256(&wanted)) && text.contains(&sha256(&noise(1000, 1))),
        "{text}"
    );
    assert!(log.text().ends_with("finished"));
    assert_eq!(machine.files(), [""; 0]);
    // It came in one piece, so asking again would bring the same.
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn an_unknown_hash_is_remembered_at_first_use() {
    let server = Server::start(|_, before| Response::whole(&noise(1000, 3 + before as u64 / 2)));
    let machine = Machine::with_model(&format!(
        "sha256='unknown'\nsources=['{}']",
        server.url("/m")
    ));
    let (resolved, log) = machine.pull(&noise(1000, 3));
    assert_eq!(resolved.record.unwrap().trust, Trust::FirstUse);
    let digest = sha256(&noise(1000, 3));
    assert!(log.has(&format!(
        "note nobody states the sha256 of m: {digest} is remembered"
    )));
    // The same content again is right; other content under the same name is not.
    let log = Log::default();
    assert!(machine.hub().pull("m", true, &log).is_ok());
    assert!(!log.has("note"));
    let error = machine.hub().pull("m", true, &Log::default()).unwrap_err();
    assert!(error.is_refusal(), "{error}");
    assert_eq!(
        std::fs::read(machine.model_directory().join("m.gguf")).unwrap(),
        noise(1000, 3)
    );
}

#[test]
fn terms_are_shown_before_the_download() {
    let server = Server::start(|_, _| Response::whole(b"model"));
    let lines = model_lines(b"model", &[server.url("/m")]);
    let machine = Machine::with_model(&format!("terms='mind the terms'\n{lines}"));
    let (_, log) = machine.pull(b"model");
    assert!(
        log.text()
            .starts_with("note m is under the MIT: mind the terms"),
        "{}",
        log.text()
    );
}

#[test]
fn a_local_file_is_copied_and_checked() {
    let machine = Machine::new();
    let original = machine.directory.path().join("original.gguf");
    std::fs::write(&original, b"model").unwrap();
    let source = format!("file:{}", original.display());
    machine.set_model(&model_lines(b"model", std::slice::from_ref(&source)));
    let (resolved, _) = machine.pull(b"model");
    assert_ne!(resolved.path, original);
    let machine = Machine::with_content(b"MODEL", &[source]);
    assert!(machine.try_pull().0.unwrap_err().is_refusal());
    let machine = Machine::with_content(b"model", &["file:/no/such/file".to_string()]);
    let error = machine.pull_error();
    assert!(error.contains("cannot read /no/such/file"), "{error}");
}
