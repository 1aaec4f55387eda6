//! The verbs of model delivery, one after the other, as in docs/delivery.md.
#![cfg(feature = "package")]

mod support;

use std::fs;
use std::path::Path;
use support::run;

fn path(directory: &Path, name: &str) -> String {
    directory.join(name).display().to_string()
}

#[test]
fn a_model_goes_from_file_to_device() {
    let directory = tempfile::tempdir().expect("a place");
    let at = |name: &str| path(directory.path(), name);
    let old: Vec<u8> = (0..200_000_u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    let mut new = old.clone();
    new.splice(1000..1010, *b"another text");
    fs::write(at("model.gguf"), &old).expect("written");
    fs::write(at("LICENCE"), "free").expect("written");

    let key = run(&["keygen", "-o", &at("release"), "--json"]).json();
    assert_eq!(key["name"].as_str().map(str::len), Some(64));
    run(&["keygen", "-o", &at("release")]).assert_fails_with(1, "release.key");
    let packed = run(&[
        "pack",
        &at("model.gguf"),
        &at("LICENCE"),
        "--name",
        "acme/helper",
        "--release",
        "1",
        "-o",
        &at("helper-1"),
        "--json",
    ])
    .json();
    assert_eq!(packed["files"], 2);

    let signature = at("helper-1/model.sig");
    let signed = run(&[
        "sign",
        &at("helper-1"),
        "--private-key",
        &at("release.key"),
        "--signature",
        &signature,
    ]);
    assert_eq!(signed.code, 0, "{}", signed.err);
    let verify = [
        "verify",
        &at("helper-1"),
        "--public-key",
        &at("release.pub"),
        "--signature",
        &signature,
    ];
    assert_eq!(run(&verify).code, 0);
    fs::write(at("helper-1/added"), "").expect("written");
    run(&verify).assert_fails_with(3, "added");
    fs::remove_file(at("helper-1/added")).expect("removed");

    run(&["keygen", "--kind", "seal", "-o", &at("device")]);
    run(&["keygen", "--kind", "seal", "-o", &at("stranger")]);
    let sealed = run(&[
        "seal",
        &at("helper-1"),
        "--recipients-file",
        &at("device.pub"),
        "-o",
        &at("sealed"),
    ]);
    assert_eq!(sealed.code, 0, "{}", sealed.err);
    run(&["seal", &at("helper-1"), "-o", &at("nobody")]).assert_fails_with(2, "recipient");
    run(&[
        "unseal",
        &at("sealed"),
        "-i",
        &at("stranger.key"),
        "-o",
        &at("stolen"),
    ])
    .assert_fails_with(3, "identities");
    assert_eq!(
        run(&[
            "unseal",
            &at("sealed"),
            "-i",
            &at("device.key"),
            "-o",
            &at("opened")
        ])
        .code,
        0
    );
    assert_eq!(fs::read(at("opened/model.gguf")).expect("there"), old);
    fs::rename(at("sealed/LICENCE"), at("sealed/NOTICE")).expect("renamed");
    run(&[
        "unseal",
        &at("sealed"),
        "-i",
        &at("device.key"),
        "-o",
        &at("again"),
    ])
    .assert_fails_with(3, "NOTICE");

    fs::write(at("new.gguf"), &new).expect("written");
    let made = run(&[
        "diff",
        &at("model.gguf"),
        &at("new.gguf"),
        "-o",
        &at("delta"),
        "--json",
    ])
    .json();
    assert!(made["size"].as_u64().expect("a size") < 200);
    let applied = run(&[
        "apply",
        &at("model.gguf"),
        &at("delta"),
        "-o",
        &at("out.gguf"),
        "--json",
    ])
    .json();
    assert_eq!(applied["blake3"], made["result_blake3"]);
    assert_eq!(fs::read(at("out.gguf")).expect("there"), new);
    run(&[
        "apply",
        &at("new.gguf"),
        &at("delta"),
        "-o",
        &at("wrong.gguf"),
    ])
    .assert_fails_with(3, "new.gguf");
}

#[test]
fn a_passphrase_protects_a_key() {
    let directory = tempfile::tempdir().expect("a place");
    let at = |name: &str| path(directory.path(), name);
    fs::write(at("passphrase"), "open sesame\n").expect("written");
    fs::write(at("wrong"), "open\n").expect("written");
    fs::write(at("model"), "weights").expect("written");
    let made = run(&[
        "keygen",
        "-o",
        &at("k"),
        "--passphrase-file",
        &at("passphrase"),
    ]);
    assert_eq!(made.code, 0, "{}", made.err);
    let sign = |passphrase: &str| {
        run(&[
            "sign",
            &at("model"),
            "--private-key",
            &at("k.key"),
            "--signature",
            &at("s"),
            "--passphrase-file",
            &at(passphrase),
        ])
    };
    sign("wrong").assert_fails_with(1, "passphrase");
    assert_eq!(sign("passphrase").code, 0);
    assert_eq!(
        run(&[
            "verify",
            &at("model"),
            "--public-key",
            &at("k.pub"),
            "--signature",
            &at("s")
        ])
        .code,
        0
    );
}
