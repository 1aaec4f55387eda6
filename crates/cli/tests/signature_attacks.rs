//! What `ondine verify` makes of model signatures that somebody tampered with, or signed with bad intent: exit code 3, always.
//!
//! Each attack is one line of a table: what is changed, and at which of three places. Changes of the statement are signed again
//! with the right key, so that only the statement's own rules can refuse them.
#![cfg(feature = "package")]

mod support;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use support::run;

/// A change of the statement, which is signed again.
type OfStatement = fn(&mut Value);
/// A change of the signature file.
type OfEnvelope = fn(&mut Value);
/// A change of the bytes of the statement, which is signed again, or of the signature file.
type OfText = fn(&str) -> String;
/// A change of the directory.
type OfFiles = fn(&Path);

const STATEMENTS: &[(&str, OfStatement)] = &[
    ("unsorted", |s| resources(s).swap(0, 1)),
    ("sorted as bytes, not by component", |s| {
        let last = resources(s).pop().expect("a file");
        resources(s).insert(1, last);
    }),
    ("a file twice", |s| {
        let first = resources(s)[0].clone();
        resources(s).insert(0, first);
    }),
    ("a file twice with another digest", |s| {
        let mut first = resources(s)[0].clone();
        first["digest"] = "00".repeat(32).into();
        resources(s).insert(1, first);
    }),
    ("a file missing", |s| drop(resources(s).remove(1))),
    ("a file too many", |s| add(s, 1, "a.gguf2")),
    ("no files", |s| resources(s).clear()),
    ("digests swapped", |s| {
        let digest = resources(s)[0]["digest"].clone();
        resources(s)[0]["digest"] = resources(s)[1]["digest"].clone();
        resources(s)[1]["digest"] = digest;
    }),
    ("upwards", |s| rename(s, 0, "../model/a.gguf")),
    ("upwards in the middle", |s| rename(s, 1, "d/../d/b")),
    ("absolute", |s| rename(s, 0, "/a.gguf")),
    ("absolute on Windows", |s| rename(s, 0, "C:\\a.gguf")),
    ("with a drive", |s| rename(s, 0, "C:a.gguf")),
    ("on a share", |s| rename(s, 0, "\\\\host\\a.gguf")),
    ("another stream of the file", |s| {
        rename(s, 0, "a.gguf::$DATA")
    }),
    ("backslash", |s| rename(s, 1, "d\\b")),
    ("dot before", |s| rename(s, 0, "./a.gguf")),
    ("two slashes", |s| rename(s, 1, "d//b")),
    ("slash after", |s| rename(s, 1, "d/b/")),
    ("empty name", |s| rename(s, 0, "")),
    ("only a dot among files", |s| rename(s, 0, ".")),
    ("a zero byte", |s| rename(s, 0, "a.gguf\0")),
    ("a line end", |s| rename(s, 0, "a.gguf\n")),
    ("a space after", |s| rename(s, 0, "a.gguf ")),
    ("a dot after", |s| rename(s, 0, "a.gguf.")),
    ("Cyrillic a", |s| rename(s, 0, "\u{430}.gguf")),
    ("full-width letter", |s| rename(s, 0, "\u{ff41}.gguf")),
    ("full-width dots upwards", |s| {
        rename(s, 0, "\u{ff0e}\u{ff0e}/a.gguf")
    }),
    ("division slash", |s| rename(s, 1, "d\u{2215}b")),
    ("zero-width space", |s| rename(s, 0, "a\u{200b}.gguf")),
    ("right-to-left override", |s| rename(s, 0, "\u{202e}a.gguf")),
    ("other case", |s| rename(s, 0, "A.gguf")),
    ("both cases", |s| add(s, 0, "A.gguf")),
    ("a very long name", |s| rename(s, 0, &"a".repeat(5000))),
    ("ten thousand directories", |s| {
        rename(s, 0, &"a/".repeat(10_000))
    }),
    ("digest in capitals", |s| {
        let digest = resources(s)[0]["digest"]
            .as_str()
            .expect("text")
            .to_uppercase();
        resources(s)[0]["digest"] = digest.into();
    }),
    ("digest too short", |s| {
        resources(s)[0]["digest"] = "ab".into()
    }),
    ("digest too long", |s| {
        let longer = format!("{}00", resources(s)[0]["digest"].as_str().expect("text"));
        resources(s)[0]["digest"] = longer.into();
    }),
    ("digest with a prefix", |s| {
        let prefixed = format!(
            "sha256:{}",
            resources(s)[0]["digest"].as_str().expect("text")
        );
        resources(s)[0]["digest"] = prefixed.into();
    }),
    ("digest is a number", |s| {
        resources(s)[0]["digest"] = json!(7)
    }),
    ("one file under another algorithm", |s| {
        resources(s)[0]["algorithm"] = "blake3".into()
    }),
    ("weak algorithm", |s| algorithm(s, "md5")),
    ("algorithm without a name", |s| algorithm(s, "")),
    ("algorithm in capitals", |s| algorithm(s, "SHA256")),
    ("other algorithm than the digests are of", |s| {
        algorithm(s, "blake3")
    }),
    ("other method", |s| {
        s["predicate"]["serialization"]["method"] = "shards".into()
    }),
    ("ignores what it lists", |s| ignore(s, json!(["d"]))),
    ("ignores everything", |s| ignore(s, json!(["."]))),
    ("ignores the root", |s| ignore(s, json!([""]))),
    ("ignores above", |s| ignore(s, json!(["../x"]))),
    ("ignores no list", |s| ignore(s, json!("d"))),
    ("lets links lead out", |s| {
        s["predicate"]["serialization"]["allow_symlinks"] = true.into()
    }),
    ("other statement type", |s| {
        s["_type"] = "https://in-toto.io/Statement/v0.1".into()
    }),
    ("other predicate type", |s| {
        s["predicateType"] = "https://slsa.dev/provenance/v1".into()
    }),
    ("older predicate type", |s| {
        s["predicateType"] = "https://model_signing/Digests/v0.1".into()
    }),
    ("no predicate", |s| drop(object(s).remove("predicate"))),
    ("something beside the predicate", |s| s["more"] = json!({})),
    ("something beside the files", |s| {
        s["predicate"]["more"] = json!([])
    }),
    ("something beside the digest", |s| {
        resources(s)[0]["size"] = json!(7)
    }),
    ("two subjects", |s| {
        let subject = s["subject"][0].clone();
        s["subject"].as_array_mut().expect("a list").push(subject);
    }),
    ("no subject", |s| s["subject"] = json!([])),
    ("subject with a second digest", |s| {
        s["subject"][0]["digest"]["sha512"] = "00".into()
    }),
    ("subject's name moves the cursor", |s| {
        s["subject"][0]["name"] = "\u{1b}[2Jgood".into()
    }),
    ("subject's name is a path", |s| {
        s["subject"][0]["name"] = "../other".into()
    }),
];

const ENVELOPES: &[(&str, OfEnvelope)] = &[
    ("two signatures", |e| {
        let first = e["dsseEnvelope"]["signatures"][0].clone();
        signatures(e).push(first);
    }),
    ("an empty signature before the right one", |e| {
        signatures(e).insert(0, json!({ "sig": "", "keyid": "" }));
    }),
    ("no signature", |e| signatures(e).clear()),
    ("empty signature", |e| signatures(e)[0]["sig"] = "".into()),
    ("signature is null", |e| {
        signatures(e)[0]["sig"] = Value::Null
    }),
    ("signature of zeros", |e| {
        signatures(e)[0]["sig"] = STANDARD.encode([0; 70]).into()
    }),
    ("signature of (0, 0)", |e| {
        signatures(e)[0]["sig"] = STANDARD.encode([0x30, 6, 2, 1, 0, 2, 1, 0]).into()
    }),
    ("signature with bytes after it", |e| {
        let mut bytes = STANDARD
            .decode(signatures(e)[0]["sig"].as_str().expect("text"))
            .expect("base64");
        bytes.push(0);
        signatures(e)[0]["sig"] = STANDARD.encode(bytes).into();
    }),
    ("base64 cut off", |e| {
        text_of(e, "payload", |text| text[..text.len() - 1].to_owned())
    }),
    ("base64 cut at a group", |e| {
        text_of(e, "payload", |text| text[..text.len() - 4].to_owned())
    }),
    ("base64 without padding", |e| {
        let text = signatures(e)[0]["sig"].as_str().expect("text");
        let bytes = STANDARD.decode(text).expect("base64");
        // A signature whose length is a multiple of three has no padding to leave out; a stray letter is as wrong.
        let text = match bytes.len() % 3 {
            0 => format!("{text}A"),
            _ => text.trim_end_matches('=').to_owned(),
        };
        signatures(e)[0]["sig"] = text.into();
    }),
    ("base64 with other low bits", |e| {
        // The last letter before padding has bits that nothing decodes to.
        let payload = STANDARD
            .decode(e["dsseEnvelope"]["payload"].as_str().expect("text"))
            .expect("base64");
        let mut text = STANDARD.encode(&payload[..payload.len() / 3 * 3 - 2]);
        let at = text.find('=').expect("padding") - 1;
        let other = if text.as_bytes()[at] == b'B' {
            "C"
        } else {
            "B"
        };
        text.replace_range(at..=at, other);
        e["dsseEnvelope"]["payload"] = text.into();
    }),
    ("base64 with a line end", |e| {
        text_of(e, "payload", |text| {
            format!("{}\n{}", &text[..8], &text[8..])
        })
    }),
    ("base64 with a space after", |e| {
        text_of(e, "payload", |text| format!("{text} "))
    }),
    ("base64 of the other alphabet", |e| {
        text_of(e, "payload", |text| format!("-_{}", &text[2..]))
    }),
    ("payload swapped", |e| {
        e["dsseEnvelope"]["payload"] = STANDARD.encode(b"{}").into()
    }),
    ("payload empty", |e| {
        e["dsseEnvelope"]["payload"] = "".into()
    }),
    ("payload not text", |e| {
        e["dsseEnvelope"]["payload"] = json!([1])
    }),
    ("other payload type", |e| {
        e["dsseEnvelope"]["payloadType"] = "application/json".into()
    }),
    ("payload type in other case", |e| {
        e["dsseEnvelope"]["payloadType"] = "Application/vnd.in-toto+json".into()
    }),
    ("no payload type", |e| {
        drop(object(&mut e["dsseEnvelope"]).remove("payloadType"))
    }),
    ("other media type", |e| {
        e["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1".into()
    }),
    ("later media type", |e| {
        e["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.4+json".into()
    }),
    ("no media type", |e| drop(object(e).remove("mediaType"))),
    ("other key id", |e| signatures(e)[0]["keyid"] = "abc".into()),
    ("other key's hint", |e| {
        e["verificationMaterial"]["publicKey"]["hint"] = "00".repeat(32).into()
    }),
    ("another key inside", |e| {
        e["verificationMaterial"]["publicKey"]["rawBytes"] = STANDARD.encode([4; 65]).into()
    }),
    ("another kind of key", |e| {
        e["verificationMaterial"]["publicKey"]["keyDetails"] = "PKIX_ED25519".into()
    }),
    ("key and certificate", |e| {
        e["verificationMaterial"]["certificate"] = json!({ "rawBytes": "" })
    }),
    ("a chain of certificates for the key", |e| {
        e["verificationMaterial"] = json!({ "x509CertificateChain": { "certificates": [] } })
    }),
    ("no key at all", |e| e["verificationMaterial"] = json!({})),
    ("entries of a log", |e| {
        e["verificationMaterial"]["tlogEntries"] = json!([{}])
    }),
    ("message and envelope", |e| {
        e["messageSignature"] = json!({ "signature": "" })
    }),
    ("message in place of the envelope", |e| {
        object(e).remove("dsseEnvelope");
        e["messageSignature"] = json!({ "signature": "" });
    }),
    ("something unknown", |e| e["more"] = json!(1)),
    ("a list", |e| *e = json!([e.clone()])),
];

const STATEMENT_TEXTS: &[(&str, OfText)] = &[
    ("subject twice", |text| {
        text.replacen("\"predicateType\"", "\"subject\":[],\"predicateType\"", 1)
    }),
    ("type twice, once escaped", |text| {
        text.replacen('{', "{\"\\u005ftype\":\"other\",", 1)
    }),
    ("a file's name twice", |text| {
        text.replacen(
            "\"name\":\"a.gguf\"",
            "\"name\":\"b\",\"name\":\"a.gguf\"",
            1,
        )
    }),
    ("files twice", |text| {
        text.replacen("\"resources\":", "\"resources\":[],\"resources\":", 1)
    }),
    ("bytes after it", |text| format!("{text}{{}}")),
    ("a zero byte after it", |text| format!("{text}\0")),
    ("a byte order mark", |text| format!("\u{feff}{text}")),
    ("nested without end", |_| "[".repeat(1 << 20)),
    ("nested under an unknown name", |text| {
        let deep = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
        text.replacen('{', &format!("{{\"more\":{deep},"), 1)
    }),
    ("cut off", |text| text[..text.len() / 2].to_owned()),
    ("empty", |_| String::new()),
    ("a lone surrogate", |text| {
        text.replacen("\"name\":\"a.gguf\"", "\"name\":\"a\\ud800.gguf\"", 1)
    }),
    ("a comment", |text| format!("/* */{text}")),
    ("a comma too many", |text| text.replacen("],", ",],", 1)),
];

const ENVELOPE_TEXTS: &[(&str, OfText)] = &[
    ("payload twice", |text| {
        text.replacen("\"payload\":", "\"payload\":\"e30=\",\"payload\":", 1)
    }),
    ("envelope twice", |text| {
        text.replacen(
            "\"dsseEnvelope\":",
            "\"dsseEnvelope\":null,\"dsseEnvelope\":",
            1,
        )
    }),
    ("signature twice, once escaped", |text| {
        text.replacen("\"sig\":", "\"\\u0073ig\":\"\",\"sig\":", 1)
    }),
    ("another bundle after it", |text| format!("{text}{text}")),
    ("a zero byte after it", |text| format!("{text}\0")),
    ("a byte order mark", |text| format!("\u{feff}{text}")),
    ("nested without end", |_| "{\"a\":".repeat(1 << 20)),
    ("cut off", |text| text[..text.len() - 1].to_owned()),
    ("empty", |_| String::new()),
    ("seventeen mebibytes", |text| {
        format!("{text}{}", " ".repeat(17 << 20))
    }),
];

const FILES: &[(&str, OfFiles)] = &[
    ("a flipped bit", |model| write(model, "a.gguf", b"weightr")),
    ("longer", |model| write(model, "a.gguf", b"weights\0")),
    ("shorter", |model| write(model, "a.gguf", b"weight")),
    ("added", |model| write(model, "d/new", b"")),
    ("added, hidden", |model| write(model, ".hidden", b"")),
    ("added beside the ignored", |model| {
        write(model, ".gitmodules", b"")
    }),
    ("removed", |model| {
        fs::remove_file(model.join("d/b")).expect("removed")
    }),
    ("renamed", |model| {
        fs::rename(model.join("d/b"), model.join("d/c")).expect("renamed")
    }),
    ("renamed in case", |model| {
        fs::rename(model.join("a.gguf"), model.join("A.gguf")).expect("renamed")
    }),
    ("swapped", |model| {
        write(model, "a.gguf", b"bee");
        write(model, "d/b", b"weights");
    }),
    ("a directory in place of a file", |model| {
        fs::remove_file(model.join("a.gguf")).expect("removed");
        fs::create_dir(model.join("a.gguf")).expect("made");
    }),
    #[cfg(unix)]
    ("a link to the same bytes outside", |model| {
        let outside = model.with_file_name("outside");
        fs::rename(model.join("a.gguf"), &outside).expect("moved");
        std::os::unix::fs::symlink(outside, model.join("a.gguf")).expect("linked");
    }),
    #[cfg(unix)]
    ("a directory that is a link", |model| {
        let outside = model.with_file_name("outside-d");
        fs::rename(model.join("d"), &outside).expect("moved");
        std::os::unix::fs::symlink(outside, model.join("d")).expect("linked");
    }),
    #[cfg(unix)]
    ("a link that leads nowhere", |model| {
        std::os::unix::fs::symlink("nowhere", model.join("e")).expect("linked");
    }),
    #[cfg(unix)]
    ("a name that is not UTF-8", |model| {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"\xff");
        fs::write(model.join(name), b"").expect("written");
    }),
    #[cfg(unix)]
    ("a socket", |model| {
        // Its name has to be short, wherever the test runs.
        let made = std::os::unix::net::UnixListener::bind(model.join("s"));
        assert!(made.is_ok(), "a socket can be made");
    }),
];

#[test]
fn every_attack_on_a_model_signature_is_refused() {
    let signed = Signed::new();
    assert_eq!(signed.verify(&signed.signature).0, 0, "the right one");
    let statement = signed.statement();
    let text = statement.to_string();
    // What is signed again without a change still verifies: the harness itself does not make the attacks fail.
    assert_eq!(signed.with_statement(&text).0, 0, "signed again");
    let mut wrong = Vec::new();
    let mut count = 0;
    let mut expect_refused = |name: String, (code, error): (i32, String)| {
        count += 1;
        if code != 3 || error.lines().count() != 1 {
            wrong.push(format!("{name}: exit code {code}, {error}"));
        }
    };
    for (name, change) in STATEMENTS {
        for hashed_again in [true, false] {
            let mut changed = statement.clone();
            change(&mut changed);
            if hashed_again {
                hash_again(&mut changed);
            }
            let kind = if hashed_again { ", hashed again" } else { "" };
            let answer = signed.with_statement(&changed.to_string());
            expect_refused(format!("statement, {name}{kind}"), answer);
        }
    }
    for (name, change) in STATEMENT_TEXTS {
        let answer = signed.with_statement(&change(&text));
        expect_refused(format!("statement's text, {name}"), answer);
    }
    let envelope = fs::read_to_string(&signed.signature).expect("readable");
    for (name, change) in ENVELOPES {
        let mut changed: Value = serde_json::from_str(&envelope).expect("JSON");
        change(&mut changed);
        let answer = signed.with_envelope(&changed.to_string());
        expect_refused(format!("envelope, {name}"), answer);
    }
    for (name, change) in ENVELOPE_TEXTS {
        let answer = signed.with_envelope(&change(&envelope));
        expect_refused(format!("envelope's text, {name}"), answer);
    }
    for (name, change) in FILES {
        let signed = Signed::new();
        change(&signed.model);
        let answer = signed.verify(&signed.signature);
        expect_refused(format!("files, {name}"), answer);
    }
    assert!(wrong.is_empty(), "{} of {count}: {wrong:#?}", wrong.len());
    println!("{count} attacks refused");
    assert!(count > 150);
}

/// A signed directory, its key and its signature beside it.
struct Signed {
    _place: tempfile::TempDir,
    model: PathBuf,
    signature: PathBuf,
    key: PathBuf,
}

impl Signed {
    fn new() -> Self {
        let place = tempfile::tempdir().expect("a place");
        let at = |name: &str| place.path().join(name);
        fs::create_dir_all(at("model/d")).expect("made");
        for (name, bytes) in [
            ("a.gguf", &b"weights"[..]),
            ("d/b", b"bee"),
            ("d.txt", b"text"),
        ] {
            write(&at("model"), name, bytes);
        }
        let text = |path: PathBuf| path.display().to_string();
        let made = run(&["keygen", "-o", &text(at("key"))]);
        assert_eq!(made.code, 0, "{}", made.err);
        let (model, signature, key) = (text(at("model")), text(at("sig")), text(at("key.key")));
        let made = run(&[
            "sign",
            &model,
            "--private-key",
            &key,
            "--signature",
            &signature,
        ]);
        assert_eq!(made.code, 0, "{}", made.err);
        Signed {
            model: at("model"),
            signature: at("sig"),
            key: at("key"),
            _place: place,
        }
    }

    fn verify(&self, signature: &Path) -> (i32, String) {
        let key = self.key.with_extension("pub").display().to_string();
        let (model, signature) = (
            self.model.display().to_string(),
            signature.display().to_string(),
        );
        let ran = run(&[
            "verify",
            &model,
            "--public-key",
            &key,
            "--signature",
            &signature,
        ]);
        (ran.code, ran.err)
    }

    fn statement(&self) -> Value {
        let envelope: Value =
            serde_json::from_slice(&fs::read(&self.signature).expect("readable")).expect("JSON");
        let payload = envelope["dsseEnvelope"]["payload"].as_str().expect("text");
        serde_json::from_slice(&STANDARD.decode(payload).expect("base64")).expect("JSON")
    }

    /// Signs `payload` with the right key.
    fn with_statement(&self, payload: &str) -> (i32, String) {
        let pem = fs::read_to_string(self.key.with_extension("key")).expect("readable");
        let body: String = pem
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect();
        let der = STANDARD.decode(body).expect("base64");
        let key = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, &der)
            .expect("an unprotected key");
        let kind = "application/vnd.in-toto+json";
        let signed = format!("DSSEv1 {} {kind} {} {payload}", kind.len(), payload.len());
        let signature = key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .expect("it signs");
        let mut envelope: Value =
            serde_json::from_slice(&fs::read(&self.signature).expect("readable")).expect("JSON");
        envelope["dsseEnvelope"]["payload"] = STANDARD.encode(payload).into();
        envelope["dsseEnvelope"]["signatures"][0]["sig"] = STANDARD.encode(signature).into();
        self.with_envelope(&envelope.to_string())
    }

    fn with_envelope(&self, text: &str) -> (i32, String) {
        let changed = self.signature.with_extension("changed");
        fs::write(&changed, text).expect("written");
        self.verify(&changed)
    }
}

fn write(model: &Path, name: &str, bytes: &[u8]) {
    fs::write(model.join(name), bytes).expect("written");
}

fn object(value: &mut Value) -> &mut serde_json::Map<String, Value> {
    value.as_object_mut().expect("an object")
}

fn resources(statement: &mut Value) -> &mut Vec<Value> {
    let list = &mut statement["predicate"]["resources"];
    list.as_array_mut().expect("a list")
}

fn signatures(envelope: &mut Value) -> &mut Vec<Value> {
    let list = &mut envelope["dsseEnvelope"]["signatures"];
    list.as_array_mut().expect("a list")
}

fn rename(statement: &mut Value, at: usize, name: &str) {
    resources(statement)[at]["name"] = name.into();
}

fn add(statement: &mut Value, at: usize, name: &str) {
    let mut copy = resources(statement)[0].clone();
    copy["name"] = name.into();
    resources(statement).insert(at, copy);
}

fn algorithm(statement: &mut Value, name: &str) {
    statement["predicate"]["serialization"]["hash_type"] = name.into();
    for resource in resources(statement) {
        resource["algorithm"] = name.into();
    }
}

fn ignore(statement: &mut Value, paths: Value) {
    statement["predicate"]["serialization"]["ignore_paths"] = paths;
}

fn text_of(envelope: &mut Value, field: &str, change: impl Fn(&str) -> String) {
    let text = change(envelope["dsseEnvelope"][field].as_str().expect("text"));
    envelope["dsseEnvelope"][field] = text.into();
}

/// Makes the subject's digest that of the listed files, as far as they have digests.
fn hash_again(statement: &mut Value) {
    let Some(list) = statement["predicate"]["resources"].as_array() else {
        return;
    };
    let mut hash = Sha256::new();
    for resource in list {
        let text = resource["digest"].as_str().unwrap_or_default();
        let bytes: Option<Vec<u8>> = (0..text.len() / 2)
            .map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok())
            .collect();
        hash.update(bytes.unwrap_or_default());
    }
    let digest: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if statement["subject"][0].is_object() {
        statement["subject"][0]["digest"]["sha256"] = digest.into();
    }
}
