//! A model's signature file. The input is tried as the file, and once more as the statement in a file that is signed with the right
//! key, since no mutation would pass that gate otherwise; and as a public key.

use crate::Target;
use crate::directory::Directory;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ondine_package::Limits;
use ondine_package::signature::{
    PrivateKey, PublicKey, SignatureError, Signed, Signer, verify, verify_identity,
};

const SECRET: [u8; 32] = [7; 32];
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

pub(super) const TARGET: Target = Target {
    name: "signature",
    run,
    words: &[
        "\"_type\":",
        "\"subject\":",
        "\"predicateType\":",
        "\"predicate\":",
        "\"resources\":",
        "\"serialization\":",
        "\"ignore_paths\":",
        "\"allow_symlinks\":true",
        "\"hash_type\":\"blake3\"",
        "\"dsseEnvelope\":",
        "\"verificationMaterial\":",
        "\"signatures\":",
        "\"keyid\":",
        "\"rawBytes\":",
        "..",
        "\\u0000",
    ],
    seeds,
};

thread_local! {
    static DIRECTORY: Directory = model();
    static KEY: (Ed25519KeyPair, PrivateKey) = key();
}

fn run(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(key) = PublicKey::from_pem(text)
    {
        assert_eq!(PublicKey::from_pem(&key.to_pem()).ok(), Some(key));
    }
    try_file(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        try_file(signed(text).as_bytes());
    }
}

fn try_file(bytes: &[u8]) {
    DIRECTORY.with(|directory| {
        let signature = directory.put("signature", bytes);
        let model = directory.path().join("model");
        KEY.with(|(_, key)| {
            let limits = Limits::default();
            match verify(&model, &signature, key.public(), &limits) {
                Ok(verified) => assert_eq!(verified.files.len(), 2),
                Err(error) => check(&error),
            }
            let signer = Signer::Key(key.public());
            let logged = verify_identity(Signed::Path(&model), &signature, signer, None, &limits);
            match logged {
                Ok(_) => panic!("nothing here is in a log"),
                Err(error) => check(&error),
            }
        });
    });
}

fn check(error: &SignatureError) {
    assert!(!error.to_string().contains('\n'), "{error}");
    assert!(error.is_refusal(), "{error}");
}

fn signed(payload: &str) -> String {
    KEY.with(|(pair, key)| {
        let encoded = format!(
            "DSSEv1 {} {PAYLOAD_TYPE} {} {payload}",
            PAYLOAD_TYPE.len(),
            payload.len()
        );
        format!(
            r#"{{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{{"publicKey":{{"hint":"{}"}},"tlogEntries":[]}},"dsseEnvelope":{{"payload":"{}","payloadType":"{PAYLOAD_TYPE}","signatures":[{{"sig":"{}","keyid":""}}]}}}}"#,
            key.public().hint().to_hex(),
            STANDARD.encode(payload),
            STANDARD.encode(pair.sign(encoded.as_bytes()))
        )
    })
}

fn model() -> Directory {
    let directory = Directory::new("signature");
    std::fs::create_dir_all(directory.path().join("model/d")).expect("a directory can be made");
    directory.put("model/a.gguf", b"weights");
    directory.put("model/d/b", b"bee");
    directory
}

fn key() -> (Ed25519KeyPair, PrivateKey) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&SECRET).expect("any 32 bytes are a key");
    let der = pair.to_pkcs8v1().expect("it can be written");
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(der.as_ref())
    );
    let private = PrivateKey::from_pem(&pem, None).expect("it is a key");
    (pair, private)
}

fn seeds() -> Vec<Vec<u8>> {
    use ondine_package::digest::Digest;
    let (a, b) = (Digest::sha256(b"weights"), Digest::sha256(b"bee"));
    let root = Digest::sha256(&[a.0, b.0].concat());
    let statement = format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"name":"model","digest":{{"sha256":"{}"}}}}],"predicateType":"https://model_signing/signature/v1.0","predicate":{{"serialization":{{"method":"files","hash_type":"sha256","allow_symlinks":false,"ignore_paths":[".git"]}},"resources":[{{"name":"a.gguf","algorithm":"sha256","digest":"{}"}},{{"name":"d/b","algorithm":"sha256","digest":"{}"}}]}}}}"#,
        root.to_hex(),
        a.to_hex(),
        b.to_hex()
    );
    let file = signed(&statement);
    let pem = KEY.with(|(_, key)| key.public().to_pem());
    [statement, file, pem].map(String::into_bytes).to_vec()
}
