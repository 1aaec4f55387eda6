//! A sealed file. The input is tried as it is, and once more as what follows the wrapped key in a file whose wrapped key and header
//! tag are right, since no mutation would pass those gates otherwise.

use crate::Target;
use crate::directory::Directory;
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::{hkdf, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ondine_package::Limits;
use ondine_package::path::BundlePath;
use ondine_package::seal::{Cipher, Identity, SealedFile, header_digest, seal_file};
use std::path::Path;

/// The identity whose secret is 32 times 1, as age writes it.
const SECRET: [u8; 32] = [1; 32];
const FILE_KEY: [u8; 16] = [7; 16];
const SALT_BYTES: usize = 32;

pub(super) const TARGET: Target = Target {
    name: "sealed",
    run,
    words: &[
        "ondine-sealed/1\n",
        "age-encryption.org/v1\n",
        "-> X25519 ",
        "-> grease\n\n",
        "--- ",
        "model.gguf",
        "../x",
    ],
    seeds,
};

thread_local! {
    static DIRECTORY: Directory = Directory::new("sealed");
    static WRAPPED: String = wrapped();
}

fn run(bytes: &[u8]) {
    try_open(bytes);
    if bytes.len() > SALT_BYTES {
        try_open(&framed(bytes));
    }
}

fn try_open(bytes: &[u8]) {
    DIRECTORY.with(|directory| {
        let path = directory.put("sealed", bytes);
        let limits = Limits::default();
        let digest = header_digest(&path, &limits).expect("the file is readable");
        match SealedFile::open(&path, &[identity()], &limits) {
            Ok(sealed) => {
                assert_eq!(Some(sealed.header_digest()), digest);
                read_everything(&sealed);
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    });
}

fn read_everything(sealed: &SealedFile) {
    use ondine_package::ByteSource;
    let length = usize::try_from(sealed.len()).expect("a length that the file really has");
    let mut all = vec![0; length];
    let opened = sealed.read_plain(0, &mut all);
    let mut part = vec![0; length.min(100)];
    let at = (length - part.len()) / 2;
    let opened_part = sealed.read_plain(at as u64, &mut part);
    if opened.is_ok() {
        assert!(opened_part.is_ok());
        assert_eq!(part, all[at..at + part.len()]);
    }
    assert!(sealed.read_plain(sealed.len(), &mut [0]).is_err());
}

/// Salt, context and chunks in a file with the right wrapped key and header tag; a context ends where its first zero byte after the
/// fixed part is.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let (salt, rest) = bytes.split_at(SALT_BYTES);
    let name_at = rest.len().min(10);
    let end = rest[name_at..].iter().position(|byte| *byte == 0);
    let end = end.map_or(rest.len(), |end| name_at + end);
    let (context, chunks) = rest.split_at(end);
    let chunks = chunks.strip_prefix(&[0]).unwrap_or(chunks);
    WRAPPED.with(|wrapped| {
        let mut out = b"ondine-sealed/1\n".to_vec();
        let length = 2 + wrapped.len() + SALT_BYTES + context.len() + 32;
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.extend_from_slice(&(wrapped.len() as u16).to_le_bytes());
        out.extend_from_slice(wrapped.as_bytes());
        out.extend_from_slice(salt);
        out.extend_from_slice(context);
        let key = derive(salt, &FILE_KEY, b"ondine-seal/1 header");
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &out);
        out.extend_from_slice(tag.as_ref());
        out.extend_from_slice(chunks);
        out
    })
}

fn identity() -> Identity {
    let hrp = "AGE-SECRET-KEY-";
    Identity::parse(&bech32(hrp, &SECRET)).expect("an identity")
}

/// [`FILE_KEY`] wrapped for [`identity`], as age v1 has it.
fn wrapped() -> String {
    let ephemeral = PrivateKey::from_private_key(&X25519, &[2; 32]).expect("a secret");
    let mine = PrivateKey::from_private_key(&X25519, &SECRET).expect("a secret");
    let share = ephemeral.compute_public_key().expect("a public key");
    let recipient = mine.compute_public_key().expect("a public key");
    let salt = [share.as_ref(), recipient.as_ref()].concat();
    let peer = UnparsedPublicKey::new(&X25519, recipient.as_ref());
    let key = agree(&ephemeral, peer, (), |secret| {
        Ok(derive(&salt, secret, b"age-encryption.org/v1/X25519"))
    })
    .expect("a shared secret");
    let cipher = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &key).expect("a key"));
    let mut body = FILE_KEY.to_vec();
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let sealed = cipher.seal_in_place_append_tag(nonce, Aad::empty(), &mut body);
    sealed.expect("it seals");
    let signed = format!(
        "age-encryption.org/v1\n-> X25519 {}\n{}\n---",
        STANDARD_NO_PAD.encode(share.as_ref()),
        STANDARD_NO_PAD.encode(&body)
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, &derive(&[], &FILE_KEY, b"header"));
    let tag = hmac::sign(&key, signed.as_bytes());
    format!("{signed} {}\n", STANDARD_NO_PAD.encode(tag.as_ref()))
}

fn derive(salt: &[u8], secret: &[u8], info: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(secret)
        .expand(&[info], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out))
        .expect("32 bytes");
    out
}

/// Bech32 (BIP 173) in capitals.
fn bech32(prefix: &str, bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L";
    let mut groups = Vec::new();
    let (mut held, mut bits) = (0_u32, 0);
    for byte in bytes {
        held = held << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            groups.push((held >> bits & 31) as u8);
        }
    }
    if bits > 0 {
        groups.push((held << (5 - bits) & 31) as u8);
    }
    let lower = prefix.to_lowercase();
    let high = lower.bytes().map(|byte| byte >> 5);
    let low = lower.bytes().map(|byte| byte & 31);
    let all: Vec<u8> = high
        .chain([0])
        .chain(low)
        .chain(groups.iter().copied())
        .collect();
    let checksum = polymod(all.iter().copied().chain([0; 6])) ^ 1;
    groups.extend((0..6).map(|at| (checksum >> (5 * (5 - at)) & 31) as u8));
    let text: String = groups
        .iter()
        .map(|group| char::from(LETTERS[usize::from(*group)]))
        .collect();
    format!("{prefix}1{text}")
}

fn polymod(values: impl Iterator<Item = u8>) -> u32 {
    const GENERATOR: [u32; 5] = [
        0x3b6a_57b2,
        0x2650_8e6d,
        0x1ea1_19fa,
        0x3d42_33dd,
        0x2a14_62b3,
    ];
    values.fold(1, |sum, value| {
        let mixed = (sum & 0x1ff_ffff) << 5 ^ u32::from(value);
        (0..5)
            .filter(|bit| sum >> 25 >> bit & 1 == 1)
            .fold(mixed, |sum, bit| sum ^ GENERATOR[bit])
    })
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = DIRECTORY.with(|directory| {
        let made = |bytes: &[u8], cipher| {
            let plain = directory.put("plain", bytes);
            let sealed = directory.path().join("made");
            let name = BundlePath::parse("model.gguf").expect("a path");
            seal_file(&plain, &sealed, &name, &[identity().recipient()], cipher).expect("sealed");
            std::fs::read::<&Path>(&sealed).expect("it is there")
        };
        vec![
            made(b"some weights", Cipher::Aes256Gcm),
            made(b"", Cipher::XChaCha20Poly1305),
        ]
    });
    let mut framed = vec![3; SALT_BYTES];
    framed.extend_from_slice(&[1, 16]);
    framed.extend_from_slice(&12_u64.to_le_bytes());
    framed.extend_from_slice(b"model.gguf\0");
    framed.extend_from_slice(&[9; 28]);
    seeds.push(framed);
    seeds
}
