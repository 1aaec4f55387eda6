//! Recipients and identities of age, and its header: how a file key is wrapped.
//!
//! Format: age v1 (age-encryption.org/v1, C2SP), recipients of type X25519. Other stanzas are kept in the header's tag and
//! otherwise ignored, as the format asks.

use super::SealError;
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::{hkdf, hmac};
use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use zeroize::{Zeroize, Zeroizing};

const VERSION_LINE: &str = "age-encryption.org/v1\n";
const WRAP_INFO: &[u8] = b"age-encryption.org/v1/X25519";
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, NO_PAD);
/// Columns of base64 in the body of a stanza; a full line announces another one.
const COLUMNS: usize = 64;

/// Bytes of a file key.
pub const FILE_KEY_BYTES: usize = 16;
/// The key that everything in a file hangs on; wiped when dropped.
pub type FileKey = Zeroizing<[u8; FILE_KEY_BYTES]>;

/// Who may open a file: an X25519 public key, written `age1…`.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient([u8; 32]);

/// The secret half, written `AGE-SECRET-KEY-1…`; wiped when dropped.
pub struct Identity {
    secret: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Recipient {
    /// Reads `age1…`.
    ///
    /// # Errors
    /// [`SealError::Key`] for anything else.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let refused = || SealError::Key {
            what: "recipient",
            reason: "it is not an X25519 recipient, age1…",
        };
        let checked = CheckedHrpstring::new::<Bech32>(text.trim()).map_err(|_| refused())?;
        if checked.hrp() != Hrp::parse("age").map_err(|_| refused())? {
            return Err(refused());
        }
        let bytes: Vec<u8> = checked.byte_iter().collect();
        Ok(Recipient(bytes.try_into().map_err(|_| refused())?))
    }
}

impl std::fmt::Display for Recipient {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = Hrp::parse("age")
            .ok()
            .and_then(|hrp| bech32::encode::<Bech32>(hrp, &self.0).ok());
        formatter.write_str(&text.unwrap_or_default())
    }
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{self}")
    }
}

impl Identity {
    /// Makes a new one.
    ///
    /// # Errors
    /// [`SealError::Key`] when the system has no random numbers.
    pub fn generate() -> Result<Self, SealError> {
        let mut secret = Zeroizing::new([0; 32]);
        SystemRandom::new()
            .fill(secret.as_mut())
            .map_err(|_| SealError::Key {
                what: "identity",
                reason: "no random numbers",
            })?;
        Self::from_secret(secret)
    }

    /// Reads one `AGE-SECRET-KEY-1…`.
    ///
    /// # Errors
    /// [`SealError::Key`] for anything else.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let refused = || SealError::Key {
            what: "identity",
            reason: "it is not an X25519 identity, AGE-SECRET-KEY-1…",
        };
        let checked = CheckedHrpstring::new::<Bech32>(text.trim()).map_err(|_| refused())?;
        if checked.hrp() != Hrp::parse("age-secret-key-").map_err(|_| refused())? {
            return Err(refused());
        }
        let mut secret = Zeroizing::new([0; 32]);
        let mut bytes = checked.byte_iter();
        for byte in secret.iter_mut() {
            *byte = bytes.next().ok_or_else(refused)?;
        }
        if bytes.next().is_some() {
            return Err(refused());
        }
        Self::from_secret(secret)
    }

    /// Reads an identity file: one identity per line, `#` before comments.
    ///
    /// # Errors
    /// [`SealError::Key`] when a line is something else, or there is none.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, SealError> {
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let found = lines.map(Self::parse).collect::<Result<Vec<_>, _>>()?;
        match found.is_empty() {
            true => Err(SealError::Key {
                what: "identity",
                reason: "the file holds none",
            }),
            false => Ok(found),
        }
    }

    /// `AGE-SECRET-KEY-1…`.
    pub fn to_text(&self) -> Zeroizing<String> {
        let text = Hrp::parse("age-secret-key-")
            .ok()
            .and_then(|hrp| bech32::encode_upper::<Bech32>(hrp, self.secret.as_ref()).ok());
        Zeroizing::new(text.unwrap_or_default())
    }

    /// The public half.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.public)
    }

    pub(super) fn from_secret(secret: Zeroizing<[u8; 32]>) -> Result<Self, SealError> {
        let refused = |_| SealError::Key {
            what: "identity",
            reason: "the key is not usable",
        };
        let key =
            PrivateKey::from_private_key(&X25519, secret.as_ref()).map_err(|_| SealError::Key {
                what: "identity",
                reason: "the key is not usable",
            })?;
        let mut public = [0; 32];
        public.copy_from_slice(key.compute_public_key().map_err(refused)?.as_ref());
        Ok(Identity { secret, public })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Identity({})", self.recipient())
    }
}

/// Wraps `key` for each recipient.
pub(super) fn wrap(key: &FileKey, recipients: &[Recipient]) -> Option<String> {
    let mut header = String::from(VERSION_LINE);
    for recipient in recipients {
        let ephemeral = Identity::generate().ok()?;
        let wrapping = wrapping_key(&ephemeral, &recipient.0, &ephemeral.public, &recipient.0)?;
        let mut body = key.to_vec();
        wrapping
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key([0; 12]),
                Aad::empty(),
                &mut body,
            )
            .ok()?;
        header.push_str(&format!(
            "-> X25519 {}\n{}\n",
            BASE64.encode(ephemeral.public),
            BASE64.encode(&body)
        ));
    }
    header.push_str("---");
    let tag = hmac::sign(&header_key(key), header.as_bytes());
    header.push_str(&format!(" {}\n", BASE64.encode(tag.as_ref())));
    Some(header)
}

/// Why a header does not open.
pub(super) enum UnwrapError {
    Malformed(&'static str),
    NoIdentity,
}

/// Opens the first stanza that one of `identities` fits, and checks the header's tag.
pub(super) fn unwrap(
    header: &str,
    identities: &[Identity],
    most: usize,
) -> Result<FileKey, UnwrapError> {
    let bad = UnwrapError::Malformed;
    let rest = header
        .strip_prefix(VERSION_LINE)
        .ok_or(bad("it is not an age v1 header"))?;
    let tag_at = rest.find("---").ok_or(bad("it has no tag"))?;
    let (stanzas, tag_line) = rest.split_at(tag_at);
    let tag = tag_line
        .strip_prefix("--- ")
        .and_then(|line| line.strip_suffix('\n'))
        .and_then(|text| BASE64.decode(text).ok())
        .ok_or(bad("its tag is malformed"))?;
    let stanzas = parse_stanzas(stanzas, most).ok_or(bad("a stanza is malformed"))?;
    for (arguments, body) in &stanzas {
        let ["X25519", share] = arguments[..] else {
            continue;
        };
        let share: [u8; 32] = BASE64
            .decode(share)
            .ok()
            .and_then(|share| share.try_into().ok())
            .ok_or(bad("a share is malformed"))?;
        if body.len() != FILE_KEY_BYTES + 16 {
            return Err(bad("a wrapped key has the wrong length"));
        }
        for identity in identities {
            let Some(key) = open_stanza(identity, &share, body) else {
                continue;
            };
            let signed = &header[..VERSION_LINE.len() + tag_at + 3];
            hmac::verify(&header_key(&key), signed.as_bytes(), &tag)
                .map_err(|_| bad("its tag does not fit"))?;
            return Ok(key);
        }
    }
    Err(UnwrapError::NoIdentity)
}

fn open_stanza(identity: &Identity, share: &[u8; 32], body: &[u8]) -> Option<FileKey> {
    let wrapping = wrapping_key(identity, share, share, &identity.public)?;
    let mut body = Zeroizing::new(body.to_vec());
    let open = wrapping
        .open_in_place(
            Nonce::assume_unique_for_key([0; 12]),
            Aad::empty(),
            &mut body,
        )
        .ok()?;
    let mut key = Zeroizing::new([0; FILE_KEY_BYTES]);
    key.copy_from_slice(open);
    Some(key)
}

/// `None` also when the shared secret is all zeros, which the format forbids.
pub(super) fn agreed<T>(
    mine: &Identity,
    theirs: &[u8; 32],
    with: impl FnOnce(&[u8]) -> Option<T>,
) -> Option<T> {
    let key = PrivateKey::from_private_key(&X25519, mine.secret.as_ref()).ok()?;
    agree(
        &key,
        UnparsedPublicKey::new(&X25519, theirs),
        (),
        |secret| {
            if secret.iter().fold(0, |sum, byte| sum | byte) == 0 {
                return Err(());
            }
            with(secret).ok_or(())
        },
    )
    .ok()
}

fn wrapping_key(
    mine: &Identity,
    theirs: &[u8; 32],
    share: &[u8; 32],
    recipient: &[u8; 32],
) -> Option<LessSafeKey> {
    let salt: Vec<u8> = share.iter().chain(recipient).copied().collect();
    let mut out = Zeroizing::new([0; 32]);
    agreed(mine, theirs, |secret| {
        derive(&salt, secret, &[WRAP_INFO], &mut out)
    })?;
    UnboundKey::new(&CHACHA20_POLY1305, out.as_ref())
        .ok()
        .map(LessSafeKey::new)
}

fn header_key(key: &FileKey) -> hmac::Key {
    let mut out = Zeroizing::new([0; 32]);
    let _ = derive(&[], key.as_ref(), &[b"header"], &mut out);
    hmac::Key::new(hmac::HMAC_SHA256, out.as_ref())
}

/// HKDF-SHA256, 32 bytes.
pub(super) fn derive(salt: &[u8], secret: &[u8], info: &[&[u8]], out: &mut [u8; 32]) -> Option<()> {
    derive_any(salt, secret, info, out)
}

/// HKDF-SHA256 (RFC 5869) of any length that it has.
pub(super) fn derive_any(salt: &[u8], secret: &[u8], info: &[&[u8]], out: &mut [u8]) -> Option<()> {
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let filled = key
        .expand(info, OutputBytes(out.len()))
        .and_then(|okm| okm.fill(out));
    if filled.is_err() {
        out.zeroize();
        return None;
    }
    Some(())
}

struct OutputBytes(usize);

impl hkdf::KeyType for OutputBytes {
    fn len(&self) -> usize {
        self.0
    }
}

type Stanza<'a> = (Vec<&'a str>, Vec<u8>);

fn parse_stanzas(text: &str, most: usize) -> Option<Vec<Stanza<'_>>> {
    let mut found = Vec::new();
    let mut lines = text.strip_suffix('\n')?.split('\n');
    while let Some(line) = lines.next() {
        let arguments: Vec<&str> = line.strip_prefix("-> ")?.split(' ').collect();
        let printable = |argument: &&str| {
            !argument.is_empty() && argument.bytes().all(|byte| (33..=126).contains(&byte))
        };
        if !arguments.iter().all(printable) || found.len() == most {
            return None;
        }
        let mut body = String::new();
        loop {
            let line = lines.next()?;
            body.push_str(line);
            if line.len() > COLUMNS {
                return None;
            }
            if line.len() < COLUMNS {
                break;
            }
        }
        found.push((arguments, BASE64.decode(body).ok()?));
    }
    (!found.is_empty()).then_some(found)
}
