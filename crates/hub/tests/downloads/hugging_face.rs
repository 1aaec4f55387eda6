//! `hf:` sources: the endpoint, the token, the announced hash, the cache that other tools share.

use crate::machine::{Machine, model_lines, noise, sha256};
use crate::server::{Response, Server};
use ondine_hub::Trust;
use std::path::Path;

const SOURCE: &str = "hf:org/repo/sub/m.gguf@v1";
const ADDRESS: &str = "/org/repo/resolve/v1/sub/m.gguf";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NOWHERE: &str = "http://127.0.0.1:1";

fn machine(lines: &str, endpoint: &str) -> Machine {
    let mut machine = Machine::with_model(lines);
    machine.settings.hugging_face.endpoint = Some(endpoint.parse().expect("an address"));
    machine.settings.hugging_face.cache = Some(machine.directory.path().join("hub"));
    machine
}

/// Puts a file where other tools keep it: content in `blobs`, a link in `snapshots`.
#[cfg(unix)]
fn share(cache: &Path, revision: &str, content: &[u8]) {
    let repository = cache.join("models--org--repo");
    let snapshot = repository.join("snapshots").join(COMMIT).join("sub");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repository.join("blobs")).unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("blobs/blob"), content).unwrap();
    std::os::unix::fs::symlink("../../../blobs/blob", snapshot.join("m.gguf")).unwrap();
    std::fs::write(repository.join("refs").join(revision), COMMIT).unwrap();
}

#[test]
fn the_token_goes_to_the_endpoint_and_nowhere_else() {
    let content = noise(1000, 1);
    let body = content.clone();
    let storage = Server::start(move |_, _| Response::whole(&body));
    let elsewhere = storage.url("/blob?signature=1");
    let endpoint = Server::start(move |request, _| match request.path.as_str() {
        ADDRESS => Response::status(302).with("location", "/moved"),
        "/moved" => Response::status(302).with("location", &elsewhere),
        _ => Response::status(404),
    });
    let lines = model_lines(&content, &[SOURCE.to_string()]);
    let mut machine = machine(&lines, &endpoint.url(""));
    machine.settings.hugging_face.token = Some("secret".to_string());
    let (_, log) = machine.pull(&content);
    let sent: Vec<_> = endpoint
        .requests()
        .iter()
        .map(|request| request.header("authorization").map(str::to_string))
        .collect();
    assert_eq!(
        sent,
        [
            Some("Bearer secret".to_string()),
            Some("Bearer secret".to_string())
        ]
    );
    let stored = storage.requests();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].header("authorization"), None);
    assert!(!log.has("secret"));
}

#[test]
fn the_token_is_not_sent_to_other_sources() {
    let server = Server::start(|_, _| Response::whole(b"model"));
    let lines = model_lines(b"model", &[server.url("/m")]);
    let mut machine = machine(&lines, NOWHERE);
    machine.settings.hugging_face.token = Some("secret".to_string());
    machine.pull(b"model");
    assert_eq!(server.requests()[0].header("authorization"), None);
}

#[test]
fn a_token_without_access_is_told_so() {
    let endpoint = Server::start(|_, _| Response::status(403));
    let lines = model_lines(b"model", &[SOURCE.to_string()]);
    let mut machine = machine(&lines, &endpoint.url(""));
    machine.settings.hugging_face.token = Some("secret".to_string());
    let error = machine.pull_error();
    assert!(
        error.contains("403; the token has no access, so accept the model's terms"),
        "{error}"
    );
    assert!(!error.contains("secret"));
}

#[test]
fn a_mirror_may_have_a_path() {
    let server = Server::start(|request, _| {
        if request.path == format!("/mirror{ADDRESS}") {
            Response::whole(b"model")
        } else {
            Response::status(404)
        }
    });
    let lines = model_lines(b"model", &[SOURCE.to_string()]);
    machine(&lines, &server.url("/mirror")).pull(b"model");
}

#[test]
fn the_announced_hash_counts_where_the_registry_has_none() {
    let right = Server::start(|_, _| {
        Response::whole(b"model").with("x-linked-etag", &format!("\"{}\"", sha256(b"model")))
    });
    let lines = format!("sha256='unknown'\nsources=['{SOURCE}']");
    let (resolved, _) = machine(&lines, &right.url("")).pull(b"model");
    assert_eq!(resolved.record.unwrap().trust, Trust::Announced);
    let wrong =
        Server::start(|_, _| Response::whole(b"model").with("x-linked-etag", &sha256(b"another")));
    let error = machine(&lines, &wrong.url("")).try_pull().0.unwrap_err();
    assert!(error.is_refusal(), "{error}");
}

#[test]
fn an_announcement_of_another_host_counts_for_nothing() {
    let storage =
        Server::start(|_, _| Response::whole(b"model").with("x-linked-etag", &sha256(b"model")));
    let elsewhere = storage.url("/blob");
    let endpoint = Server::start(move |_, _| Response::status(302).with("location", &elsewhere));
    let lines = format!("sources=['{SOURCE}']");
    let (resolved, _) = machine(&lines, &endpoint.url("")).pull(b"model");
    assert_eq!(resolved.record.unwrap().trust, Trust::FirstUse);
}

#[cfg(unix)]
#[test]
fn a_file_in_the_shared_cache_needs_no_connection() {
    let content = noise(1000, 2);
    let lines = model_lines(&content, &[SOURCE.to_string()]);
    let mut machine = machine(&lines, NOWHERE);
    machine.settings.offline = true;
    machine.settings.hugging_face.offline = true;
    let cache = machine.settings.hugging_face.cache.clone().unwrap();
    share(&cache, "v1", &content);
    let (resolved, _) = machine.pull(&content);
    assert_eq!(resolved.record.unwrap().trust, Trust::Registry);
    // The model stays when the shared cache is emptied.
    std::fs::remove_dir_all(cache).unwrap();
    assert!(machine.pull(&content).0.was_here);
    assert_eq!(machine.files(), ["m.gguf", "record.json"]);
}

#[cfg(unix)]
#[test]
fn a_damaged_file_in_the_shared_cache_is_passed_over() {
    for damaged in [noise(1000, 4), noise(999, 3), Vec::new()] {
        let content = noise(1000, 3);
        let body = content.clone();
        let endpoint = Server::start(move |_, _| Response::whole(&body));
        let lines = model_lines(&content, &[SOURCE.to_string()]);
        let machine = machine(&lines, &endpoint.url(""));
        let cache = machine.settings.hugging_face.cache.clone().unwrap();
        share(&cache, "v1", &damaged);
        machine.pull(&content);
        assert_eq!(endpoint.requests().len(), 1);
        assert_eq!(machine.files(), ["m.gguf", "record.json"]);
        let blob = cache.join("models--org--repo/blobs/blob");
        assert_eq!(
            std::fs::read(blob).unwrap(),
            damaged,
            "the cache of others was touched"
        );
    }
}

#[test]
fn their_own_offline_switch_is_honoured() {
    let endpoint = Server::start(|_, _| Response::whole(b"model"));
    let lines = model_lines(b"model", &[SOURCE.to_string()]);
    let mut machine = machine(&lines, &endpoint.url(""));
    machine.settings.hugging_face.offline = true;
    let error = machine.pull_error();
    assert!(error.contains("HF_HUB_OFFLINE forbids"), "{error}");
    assert!(endpoint.requests().is_empty());
}
