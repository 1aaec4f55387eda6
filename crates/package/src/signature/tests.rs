use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use std::fs;

struct Signed {
    directory: tempfile::TempDir,
    key: PrivateKey,
}

impl Signed {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("model");
        fs::create_dir_all(model.join("d/e")).unwrap();
        for (name, bytes) in [
            ("a.gguf", b"weights".as_slice()),
            ("d.txt", b"text"),
            ("d/b", b"bee"),
            ("d/e/c", b""),
        ] {
            fs::write(model.join(name), bytes).unwrap();
        }
        let (key, _) = PrivateKey::generate(Algorithm::EcdsaP256).unwrap();
        let signed = Signed { directory, key };
        let text = sign(
            &signed.model(),
            &signed.signature(),
            &signed.key,
            &Limits::default(),
        )
        .unwrap();
        fs::write(signed.signature(), text).unwrap();
        signed
    }

    fn model(&self) -> PathBuf {
        self.directory.path().join("model")
    }

    fn signature(&self) -> PathBuf {
        self.model().join("model.sig")
    }

    fn verify(&self) -> Result<Verified, SignatureError> {
        verify(
            &self.model(),
            &self.signature(),
            self.key.public(),
            &Limits::default(),
        )
    }

    /// Signs whatever payload, correctly: what a signer with bad intent, or a bad tool, can do.
    fn with_payload(&self, payload: &str) -> Result<Verified, SignatureError> {
        fs::write(
            self.signature(),
            envelope::seal(payload.as_bytes(), &self.key).unwrap(),
        )
        .unwrap();
        self.verify()
    }

    fn payload(&self) -> String {
        let bundle: serde_json::Value =
            serde_json::from_slice(&fs::read(self.signature()).unwrap()).unwrap();
        let payload = STANDARD
            .decode(bundle["dsseEnvelope"]["payload"].as_str().unwrap())
            .unwrap();
        String::from_utf8(payload).unwrap()
    }
}

#[test]
fn a_signed_directory_verifies() {
    let signed = Signed::new();
    let verified = signed.verify().unwrap();
    assert_eq!(verified.name, "model");
    let names: Vec<_> = verified
        .files
        .iter()
        .map(|(path, _)| path.as_str())
        .collect();
    assert_eq!(names, ["a.gguf", "d/b", "d/e/c", "d.txt"]);
}

#[test]
fn a_single_file_verifies() {
    let directory = tempfile::tempdir().unwrap();
    let (model, signature) = (
        directory.path().join("m.gguf"),
        directory.path().join("m.sig"),
    );
    fs::write(&model, b"weights").unwrap();
    let (key, _) = PrivateKey::generate(Algorithm::Ed25519).unwrap();
    fs::write(
        &signature,
        sign(&model, &signature, &key, &Limits::default()).unwrap(),
    )
    .unwrap();
    verify(&model, &signature, key.public(), &Limits::default()).unwrap();
    fs::write(&model, b"weighty").unwrap();
    assert!(matches!(
        verify(&model, &signature, key.public(), &Limits::default()),
        Err(SignatureError::Changed(_))
    ));
}

#[test]
fn every_change_of_the_directory_is_refused() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("flipped", |model| {
            fs::write(model.join("a.gguf"), b"weighty").unwrap()
        }),
        ("added", |model| {
            fs::write(model.join("d/new"), b"").unwrap()
        }),
        ("removed", |model| {
            fs::remove_file(model.join("d/e/c")).unwrap()
        }),
        ("renamed", |model| {
            fs::rename(model.join("d/b"), model.join("d/B")).unwrap()
        }),
        ("swapped", |model| {
            fs::write(model.join("a.gguf"), b"text").unwrap();
            fs::write(model.join("d.txt"), b"weights").unwrap();
        }),
        ("moved", |model| {
            fs::rename(model.join("d/e/c"), model.join("c")).unwrap()
        }),
    ];
    for (name, change) in changes {
        let signed = Signed::new();
        change(&signed.model());
        assert!(
            signed.verify().is_err_and(|error| error.is_refusal()),
            "{name}"
        );
    }
}

#[cfg(unix)]
#[test]
fn links_and_special_files_are_refused() {
    use std::os::unix::fs::symlink;
    let signed = Signed::new();
    let outside = signed.directory.path().join("outside");
    fs::write(&outside, b"weights").unwrap();
    fs::remove_file(signed.model().join("a.gguf")).unwrap();
    symlink(&outside, signed.model().join("a.gguf")).unwrap();
    assert!(matches!(
        signed.verify(),
        Err(SignatureError::SymbolicLink(_))
    ));

    let signed = Signed::new();
    fs::rename(signed.model().join("d"), signed.directory.path().join("d")).unwrap();
    symlink(signed.directory.path().join("d"), signed.model().join("d")).unwrap();
    assert!(matches!(
        signed.verify(),
        Err(SignatureError::SymbolicLink(_))
    ));

    let signed = Signed::new();
    let _socket = std::os::unix::net::UnixListener::bind(signed.model().join("s")).unwrap();
    assert!(matches!(signed.verify(), Err(SignatureError::Special(_))));
}

#[test]
fn every_flipped_bit_of_the_signature_file_is_refused() {
    let signed = Signed::new();
    let bytes = fs::read(signed.signature()).unwrap();
    let base64 = |byte: u8| byte.is_ascii_alphanumeric();
    for at in 0..bytes.len() {
        // Inside long runs of base64 one bit per byte is enough; everywhere else all eight are tried.
        let long_run = at > 8 && bytes[at - 8..=at].iter().all(|byte| base64(*byte));
        for bit in (0..8).filter(|bit| !long_run || *bit == at % 8) {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            let opened = envelope::open(&changed, signed.key.public());
            assert!(
                opened.is_err(),
                "byte {at}, bit {bit}: {:?}",
                char::from(bytes[at])
            );
        }
    }
}

#[test]
fn signed_statements_that_break_a_rule_are_refused() {
    let signed = Signed::new();
    let good = signed.payload();
    assert!(signed.with_payload(&good).is_ok());
    let value: serde_json::Value = serde_json::from_str(&good).unwrap();
    type Change = fn(&mut serde_json::Value);
    let rehash = |value: &mut serde_json::Value| {
        let all: Vec<u8> = value["predicate"]["resources"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|r| {
                Digest::from_hex(r["digest"].as_str().unwrap_or_default())
                    .unwrap_or(Digest([0; 32]))
                    .0
            })
            .collect();
        value["subject"][0]["digest"]["sha256"] = Digest::sha256(&all).to_hex().into();
    };
    fn resources(value: &mut serde_json::Value) -> &mut Vec<serde_json::Value> {
        value["predicate"]["resources"].as_array_mut().unwrap()
    }
    let changes: [(&str, Change); 24] = [
        ("unsorted", |v| resources(v).swap(0, 1)),
        ("duplicated", |v| {
            let first = resources(v)[0].clone();
            resources(v).insert(0, first);
        }),
        ("missing", |v| drop(resources(v).remove(1))),
        ("extra", |v| {
            let mut extra = resources(v)[0].clone();
            extra["name"] = "a.gguf2".into();
            resources(v).insert(1, extra);
        }),
        ("none", |v| resources(v).clear()),
        ("upwards", |v| {
            resources(v)[0]["name"] = "../model/a.gguf".into()
        }),
        ("absolute", |v| resources(v)[0]["name"] = "/a.gguf".into()),
        ("dotted", |v| resources(v)[0]["name"] = "./a.gguf".into()),
        ("doubled slash", |v| resources(v)[1]["name"] = "d//b".into()),
        ("empty name", |v| resources(v)[0]["name"] = "".into()),
        ("backslash", |v| resources(v)[1]["name"] = "d\\b".into()),
        ("nul", |v| resources(v)[0]["name"] = "a.gguf\0".into()),
        ("shouted digest", |v| {
            let digest = resources(v)[0]["digest"].as_str().unwrap().to_uppercase();
            resources(v)[0]["digest"] = digest.into();
        }),
        ("short digest", |v| resources(v)[0]["digest"] = "ab".into()),
        ("other algorithm", |v| {
            resources(v)[0]["algorithm"] = "blake3".into()
        }),
        ("weak algorithm", |v| {
            v["predicate"]["serialization"]["hash_type"] = "md5".into();
            resources(v)
                .iter_mut()
                .for_each(|r| r["algorithm"] = "md5".into());
        }),
        ("ignored and listed", |v| {
            v["predicate"]["serialization"]["ignore_paths"] = serde_json::json!(["d"])
        }),
        ("all ignored", |v| {
            v["predicate"]["serialization"]["ignore_paths"] = serde_json::json!(["."])
        }),
        ("ignored above", |v| {
            v["predicate"]["serialization"]["ignore_paths"] = serde_json::json!(["../x"])
        }),
        ("method", |v| {
            v["predicate"]["serialization"]["method"] = "shards".into()
        }),
        ("statement type", |v| {
            v["_type"] = "https://in-toto.io/Statement/v0.1".into()
        }),
        ("predicate type", |v| {
            v["predicateType"] = "https://model_signing/Digests/v0.1".into()
        }),
        ("two subjects", |v| {
            let subject = v["subject"][0].clone();
            v["subject"].as_array_mut().unwrap().push(subject);
        }),
        ("no subject", |v| v["subject"] = serde_json::json!([])),
    ];
    for (name, change) in changes {
        let mut changed = value.clone();
        change(&mut changed);
        if !matches!(name, "two subjects" | "no subject") {
            rehash(&mut changed);
        }
        assert!(
            signed
                .with_payload(&changed.to_string())
                .is_err_and(|e| e.is_refusal()),
            "{name}"
        );
    }
    let mut other_root = value.clone();
    other_root["subject"][0]["digest"]["sha256"] = Digest::sha256(b"other").to_hex().into();
    assert!(matches!(
        signed.with_payload(&other_root.to_string()),
        Err(SignatureError::Statement(_))
    ));
    let doubled = good.replacen("\"predicateType\"", "\"subject\":[],\"predicateType\"", 1);
    assert!(
        signed.with_payload(&doubled).is_err(),
        "a key that is there twice"
    );
}

#[test]
fn envelopes_that_break_a_rule_are_refused() {
    let signed = Signed::new();
    let good: serde_json::Value =
        serde_json::from_slice(&fs::read(signed.signature()).unwrap()).unwrap();
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 11] = [
        ("two signatures", |v| {
            let first = v["dsseEnvelope"]["signatures"][0].clone();
            v["dsseEnvelope"]["signatures"]
                .as_array_mut()
                .unwrap()
                .push(first);
        }),
        ("no signature", |v| {
            v["dsseEnvelope"]["signatures"] = serde_json::json!([])
        }),
        ("payload type", |v| {
            v["dsseEnvelope"]["payloadType"] = "application/json".into()
        }),
        ("media type", |v| {
            v["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1".into()
        }),
        ("no media type", |v| {
            drop(v.as_object_mut().unwrap().remove("mediaType"))
        }),
        ("hint", |v| {
            v["verificationMaterial"]["publicKey"]["hint"] = Digest::sha256(b"").to_hex().into()
        }),
        ("second content", |v| {
            v["messageSignature"] = serde_json::json!({})
        }),
        ("certificate", |v| {
            v["verificationMaterial"]["certificate"] = serde_json::json!({"rawBytes": ""})
        }),
        ("log entries", |v| {
            v["verificationMaterial"]["tlogEntries"] = serde_json::json!([{}])
        }),
        ("no padding", |v| {
            let text = v["dsseEnvelope"]["signatures"][0]["sig"]
                .as_str()
                .unwrap()
                .trim_end_matches('=')
                .to_owned()
                + "A";
            v["dsseEnvelope"]["signatures"][0]["sig"] = text.into();
        }),
        ("empty signature", |v| {
            v["dsseEnvelope"]["signatures"][0]["sig"] = "".into()
        }),
    ];
    for (name, change) in changes {
        let mut changed = good.clone();
        change(&mut changed);
        fs::write(signed.signature(), changed.to_string()).unwrap();
        assert!(signed.verify().is_err(), "{name}");
    }
}

#[test]
fn another_key_is_refused() {
    let signed = Signed::new();
    for algorithm in [
        Algorithm::EcdsaP256,
        Algorithm::EcdsaP384,
        Algorithm::Ed25519,
    ] {
        let (other, _) = PrivateKey::generate(algorithm).unwrap();
        let result = verify(
            &signed.model(),
            &signed.signature(),
            other.public(),
            &Limits::default(),
        );
        assert!(matches!(result, Err(SignatureError::OtherKey(_))));
        let mut bundle: serde_json::Value =
            serde_json::from_slice(&fs::read(signed.signature()).unwrap()).unwrap();
        bundle["verificationMaterial"]["publicKey"]["hint"] = other.public().hint().to_hex().into();
        let forged = signed.directory.path().join("forged");
        fs::write(&forged, bundle.to_string()).unwrap();
        fs::remove_file(signed.signature()).unwrap();
        let result = verify(&signed.model(), &forged, other.public(), &Limits::default());
        assert!(matches!(result, Err(SignatureError::Invalid)));
        fs::write(
            signed.signature(),
            sign(
                &signed.model(),
                &signed.signature(),
                &signed.key,
                &Limits::default(),
            )
            .unwrap(),
        )
        .unwrap();
    }
}

#[test]
fn keys_survive_pem_with_and_without_a_passphrase() {
    for algorithm in [
        Algorithm::EcdsaP256,
        Algorithm::EcdsaP384,
        Algorithm::EcdsaP521,
        Algorithm::Ed25519,
    ] {
        let (key, pem) = PrivateKey::generate_pem(algorithm, None).unwrap();
        assert_eq!(
            PrivateKey::from_pem(&pem, None).unwrap().public(),
            key.public()
        );
        assert_eq!(
            &PublicKey::from_pem(&key.public().to_pem()).unwrap(),
            key.public()
        );
        assert!(PublicKey::from_pem(&pem).is_err());
    }
    let (key, pem) = PrivateKey::generate_pem(Algorithm::EcdsaP256, Some("open sesame")).unwrap();
    assert!(pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    assert_eq!(
        PrivateKey::from_pem(&pem, Some("open sesame"))
            .unwrap()
            .public(),
        key.public()
    );
    assert!(matches!(
        PrivateKey::from_pem(&pem, Some("open")),
        Err(SignatureError::Passphrase)
    ));
    assert!(matches!(
        PrivateKey::from_pem(&pem, None),
        Err(SignatureError::Passphrase)
    ));
    assert!(!format!("{key:?}").contains("PRIVATE KEY"));
}

proptest! {
    #[test]
    fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
        let (key, _) = PrivateKey::generate(Algorithm::Ed25519).unwrap();
        let _ = envelope::open(&bytes, key.public());
        let _ = Statement::parse(&bytes, &Limits::default()).map(|_| ());
        let _ = PublicKey::from_pem(&text);
        let _ = PrivateKey::from_pem(&format!("-----BEGIN EC PRIVATE KEY-----\n{text}\n-----END EC PRIVATE KEY-----"), None);
    }
}
