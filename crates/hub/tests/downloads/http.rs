//! `https:` sources: ranges, broken connections, redirects, statuses, the order of sources.

use crate::machine::{Log, Machine, model_lines, noise};
use crate::server::{Response, Server};
use ondine_hub::{HubError, Trust};
use std::time::Duration;

const LENGTH: usize = 600_000;
const CUT: usize = 250_000;
const TAG: &str = "\"version-1\"";

#[test]
fn a_model_is_verified_recorded_and_not_fetched_again() {
    let content = noise(LENGTH, 1);
    let body = content.clone();
    let server = Server::start(move |_, _| Response::whole(&body));
    let machine = Machine::with_content(&content, &[server.url("/m")]);
    let (resolved, log) = machine.pull(&content);
    assert!(!resolved.was_here);
    assert_eq!(resolved.record.unwrap().trust, Trust::Registry);
    assert_eq!(machine.files(), ["m.gguf", "record.json"]);
    assert!(log.has("started Download Some(600000) 0"), "{}", log.text());
    assert!(log.has("advanced 600000") && log.text().ends_with("finished"));
    assert!(machine.pull(&content).0.was_here);
    assert!(
        machine
            .hub()
            .resolve("m", &Log::default())
            .unwrap()
            .was_here
    );
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_broken_connection_is_continued_in_the_same_run() {
    let content = noise(LENGTH, 2);
    let body = content.clone();
    let server = Server::start(move |request, before| {
        let answer = Response::ranged(request, &body, TAG);
        if before == 0 {
            answer.cut_after(CUT)
        } else {
            answer
        }
    });
    let machine = Machine::with_content(&content, &[server.url("/m")]);
    let (_, log) = machine.pull(&content);
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].header("range"), None);
    assert_eq!(requests[1].range_start(), Some(CUT));
    assert_eq!(requests[1].header("if-range"), Some(TAG));
    assert!(log.has("retrying") && log.has("started Download Some(600000) 250000"));
}

#[test]
fn an_interrupted_download_is_continued_by_the_next_run() {
    let content = noise(LENGTH, 3);
    let body = content.clone();
    let server = Server::start(move |request, before| {
        let answer = Response::ranged(request, &body, TAG);
        if before == 0 {
            answer.cut_after(CUT)
        } else {
            answer
        }
    });
    let mut machine = Machine::with_content(&content, &[server.url("/m")]);
    machine.settings.retry.fruitless = 0;
    let error = machine.pull_error();
    assert!(error.contains("250000") && !error.contains('\n'), "{error}");
    assert_eq!(std::fs::metadata(machine.part()).unwrap().len(), CUT as u64);
    let (_, log) = machine.pull(&content);
    assert_eq!(server.requests()[1].range_start(), Some(CUT));
    assert!(log.has("started Verify Some(250000)"), "{}", log.text());
    assert_eq!(machine.files(), ["m.gguf", "record.json"]);
}

#[test]
fn a_cancelled_download_is_continued_by_the_next_run() {
    let content = noise(LENGTH, 4);
    let body = content.clone();
    let server = Server::start(move |request, before| {
        let answer = Response::ranged(request, &body, TAG);
        if before == 0 {
            answer.cut_after(CUT)
        } else {
            answer
        }
    });
    let machine = Machine::with_content(&content, &[server.url("/m")]);
    let log = Log::cancelling();
    let result = machine.hub().pull("m", false, &log);
    assert!(matches!(result, Err(HubError::Cancelled)), "{result:?}");
    let here = std::fs::metadata(machine.part()).unwrap().len();
    assert!(here > 0 && here <= CUT as u64, "{here} bytes");
    machine.pull(&content);
    assert_eq!(server.requests()[1].range_start(), Some(here as usize));
}

#[test]
fn a_server_without_ranges_sends_everything_again() {
    let content = noise(LENGTH, 5);
    let body = content.clone();
    let server = Server::start(move |_, before| {
        let answer = Response::whole(&body).with("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT");
        if before == 0 {
            answer.cut_after(CUT)
        } else {
            answer
        }
    });
    let machine = Machine::with_content(&content, &[server.url("/m")]);
    machine.pull(&content);
    assert_eq!(server.requests()[1].range_start(), Some(CUT));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn halves_of_two_versions_are_never_joined() {
    // Neither a careful server, which answers 200, nor one that ignores If-Range, may lead to a mixture. Nobody states a hash.
    for is_careful in [true, false] {
        let (old, new) = (noise(LENGTH, 6), noise(LENGTH, 7));
        let body = new.clone();
        let server = Server::start(
            move |request, before| match (before, request.range_start()) {
                (0, _) => Response::whole(&old).with("etag", TAG).cut_after(CUT),
                (_, Some(start)) if !is_careful => {
                    Response::part(&body, start).with("etag", "\"version-2\"")
                }
                _ => Response::ranged(request, &body, "\"version-2\""),
            },
        );
        let machine = Machine::with_model(&format!("sources=['{}']", server.url("/m")));
        machine.pull(&new);
    }
}

#[test]
fn damage_on_the_disk_is_mended_from_the_start() {
    let content = noise(LENGTH, 8);
    let body = content.clone();
    let server = Server::start(move |request, before| {
        let answer = Response::ranged(request, &body, TAG);
        if before == 0 {
            answer.cut_after(CUT)
        } else {
            answer
        }
    });
    let mut machine = Machine::with_content(&content, &[server.url("/m")]);
    machine.settings.retry.fruitless = 0;
    machine.pull_error();
    let mut part = std::fs::read(machine.part()).unwrap();
    part[1000] ^= 1;
    std::fs::write(machine.part(), part).unwrap();
    machine.pull(&content);
    let starts: Vec<_> = server
        .requests()
        .iter()
        .map(|request| request.range_start())
        .collect();
    assert_eq!(starts, [None, Some(CUT), None]);
}

#[test]
fn a_body_that_always_ends_early_is_given_up_with_a_reason() {
    let content = noise(LENGTH, 9);
    let body = content.clone();
    let server = Server::start(move |_, _| Response::whole(&body).cut_after(CUT));
    let machine = Machine::with_content(&content, &[server.url("/m")]);
    let error = machine.pull_error();
    assert!(
        error.starts_with("cannot get 'm': http://127.0.0.1:"),
        "{error}"
    );
    assert!(error.contains("250000"), "{error}");
    assert!(server.requests().len() <= 6);
}

#[test]
fn a_body_without_a_length_is_measured_against_the_registry() {
    let content = noise(LENGTH, 10);
    let body = content.clone();
    let server = Server::start(move |_, before| {
        let sent = if before == 0 { CUT } else { LENGTH };
        Response::whole(&body[..sent]).without_length()
    });
    let machine = Machine::with_content(&content, &[server.url("/m")]);
    let (_, log) = machine.pull(&content);
    assert!(
        log.has("the transfer ended after 250000 of 600000 bytes"),
        "{}",
        log.text()
    );
}

#[test]
fn what_is_too_long_is_refused_before_or_while_it_comes() {
    let content = noise(LENGTH, 11);
    let lines = |url: String| model_lines(&content, &[url]);
    let announced = Server::start(|_, _| Response::whole(&noise(LENGTH + 1, 11)));
    let error = Machine::with_model(&lines(announced.url("/m"))).pull_error();
    assert!(
        error.contains("600001 bytes long where 600000 are expected"),
        "{error}"
    );
    let silent = Server::start(|_, _| Response::whole(&noise(2 * LENGTH, 11)).without_length());
    let machine = Machine::with_model(&lines(silent.url("/m")));
    let error = machine.pull_error();
    assert!(error.contains("where 600000 are expected"), "{error}");
    assert!(std::fs::metadata(machine.part()).unwrap().len() <= LENGTH as u64);
    let mut machine = Machine::with_model(&format!("sources=['{}']", silent.url("/m")));
    machine.settings.limits.model_bytes = 1000;
    let error = machine.pull_error();
    assert!(
        error.contains("larger than the limit of 1000 bytes"),
        "{error}"
    );
}

#[test]
fn redirects_are_followed_a_bounded_number_of_times() {
    let content = noise(1000, 12);
    let body = content.clone();
    let server = Server::start(move |request, _| match request.path.as_str() {
        "/m" => Response::status(302).with("location", "folder/second?signature=1"),
        "/folder/second?signature=1" => Response::status(307).with("location", "/third"),
        "/third" => Response::whole(&body),
        "/loop" => Response::status(301).with("location", "/loop"),
        "/away" => Response::status(302).with("location", "http://example.org/m"),
        "/nowhere" => Response::status(303),
        _ => Response::status(404),
    });
    Machine::with_content(&content, &[server.url("/m")]).pull(&content);
    for (path, reason) in [
        ("/loop", "more than 8 redirects in a row"),
        (
            "/away",
            "plain http is accepted only for this machine itself",
        ),
        ("/nowhere", "it names no target"),
    ] {
        let before = server.requests().len();
        let error = Machine::with_content(&content, &[server.url(path)]).pull_error();
        assert!(error.contains(reason), "{error}");
        assert!(server.requests().len() - before <= 9);
    }
}

#[test]
fn each_status_says_what_to_do_and_only_passing_ones_are_tried_again() {
    for (status, tries, text) in [
        (404, 1, "the server answered 404; the file is not there"),
        (
            401,
            1,
            "the server answered 401; it asks for a login, so set HF_TOKEN",
        ),
        (403, 1, "the server answered 403; it asks for a login"),
        (400, 1, "the server answered 400"),
        (429, 3, "the server answered 429"),
        (500, 3, "the server answered 500"),
        (503, 3, "the server answered 503"),
    ] {
        let server =
            Server::start(move |_, _| Response::status(status).with("retry-after", "1000"));
        let machine = Machine::with_content(b"model", &[server.url("/m")]);
        let (result, log) = machine.try_pull();
        let error = result.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert!(!error.is_refusal());
        assert_eq!(server.requests().len(), tries, "{status}");
        // The server's wish for a pause is heard, within the machine's own bound.
        assert_eq!(log.has("retrying after 5ms"), tries > 1, "{}", log.text());
    }
}

#[test]
fn a_server_that_recovers_is_forgiven() {
    let content = noise(1000, 13);
    let body = content.clone();
    let server = Server::start(move |_, before| match before {
        0 => Response::status(503),
        1 => Response::status(429),
        _ => Response::whole(&body),
    });
    Machine::with_content(&content, &[server.url("/m")]).pull(&content);
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_compressed_answer_is_refused() {
    let server = Server::start(|_, _| Response::whole(b"model").with("content-encoding", "gzip"));
    let machine = Machine::with_content(b"model", &[server.url("/m")]);
    let error = machine.pull_error();
    assert!(error.contains("compressed"), "{error}");
}

#[test]
fn a_server_that_falls_silent_is_given_up() {
    let pause = Duration::from_millis(1500);
    let server = Server::start(move |_, _| Response::whole(b"model").pausing_at(2, pause));
    let mut machine = Machine::with_content(b"model", &[server.url("/m")]);
    machine.settings.timeouts.idle = Duration::from_millis(100);
    machine.settings.retry.fruitless = 1;
    let error = machine.pull_error();
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn sources_are_tried_in_order_and_the_first_right_one_wins() {
    let content = noise(1000, 14);
    let body = content.clone();
    let server = Server::start(move |request, _| match request.path.as_str() {
        "/wrong" => Response::whole(&noise(1000, 15)),
        "/right" | "/never" => Response::whole(&body),
        _ => Response::status(404),
    });
    let sources = ["/gone", "/wrong", "/right", "/never"].map(|path| server.url(path));
    let machine = Machine::with_content(&content, &sources);
    let (resolved, log) = machine.pull(&content);
    assert_eq!(resolved.record.unwrap().source, sources[2]);
    let paths: Vec<_> = server
        .requests()
        .into_iter()
        .map(|request| request.path)
        .collect();
    assert_eq!(paths, ["/gone", "/wrong", "/right"]);
    assert!(log.has(&format!("failed {}: the server answered 404", sources[0])));
    assert!(log.has(&format!("failed {}: its sha256 is", sources[1])));
}

#[test]
fn what_one_source_brought_survives_the_failure_of_the_next() {
    let content = noise(LENGTH, 16);
    let body = content.clone();
    let server = Server::start(move |request, before| match request.path.as_str() {
        "/first" if before == 0 => Response::ranged(request, &body, TAG).cut_after(CUT),
        "/first" => Response::ranged(request, &body, TAG),
        _ => Response::status(404),
    });
    let mut machine =
        Machine::with_content(&content, &[server.url("/first"), server.url("/second")]);
    machine.settings.retry.fruitless = 0;
    let error = machine.pull_error();
    assert!(error.contains("/first: ") && error.contains("/second: the server answered 404"));
    machine.pull(&content);
    assert_eq!(server.requests()[2].range_start(), Some(CUT));
    assert_eq!(machine.files(), ["m.gguf", "record.json"]);
}

#[test]
fn an_address_is_a_model_without_a_registry() {
    let content = noise(1000, 17);
    let body = content.clone();
    let server = Server::start(move |_, _| Response::whole(&body));
    let machine = Machine::new();
    let found = machine
        .hub()
        .resolve(&server.url("/a/own.gguf?x=1"), &Log::default())
        .unwrap();
    assert!(found.path.ends_with("own.gguf") && found.entry.is_none());
    assert_eq!(std::fs::read(found.path).unwrap(), content);
}

#[test]
fn offline_means_no_connection() {
    let server = Server::start(|_, _| Response::whole(b"model"));
    let mut machine = Machine::with_content(b"model", &[server.url("/m")]);
    machine.settings.offline = true;
    let error = machine.pull_error();
    assert!(
        error.starts_with("'m' is not on this machine and ONDINE_OFFLINE forbids"),
        "{error}"
    );
    assert!(server.requests().is_empty());
}
