//! Keys: ECDSA on the curves that the format knows, and Ed25519; PEM on disk, private ones protected by a passphrase or not.

use super::SignatureError;
use crate::digest::Digest;
use crate::text::one_line;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{
    self as ring, EcdsaKeyPair, Ed25519KeyPair, KeyPair, UnparsedPublicKey,
};
use pkcs8::der::asn1::BitStringRef;
use pkcs8::der::pem::LineEnding;
use pkcs8::der::{Encode, SecretDocument};
use pkcs8::pkcs5::pbes2;
use pkcs8::spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};
use pkcs8::{EncryptedPrivateKeyInfoRef, ObjectIdentifier, PrivateKeyInfoRef};
use zeroize::Zeroizing;

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");

/// Rounds of PBKDF2-HMAC-SHA256 for a passphrase; OWASP's advice of 2023.
const PASSPHRASE_ROUNDS: u32 = 600_000;

/// Which signature algorithm a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256: what every verifier of the format reads.
    EcdsaP256,
    /// ECDSA on P-384 with SHA-384.
    EcdsaP384,
    /// ECDSA on P-521 with SHA-512.
    EcdsaP521,
    /// Ed25519: smaller and quicker, not read by all verifiers of the format.
    Ed25519,
}

/// A key that signs. Its bytes are wiped when it is dropped, by the library that holds them.
pub struct PrivateKey {
    pair: Pair,
    public: PublicKey,
}

/// A key that verifies.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    algorithm: Algorithm,
    /// Uncompressed point, or the 32 bytes of an Ed25519 key.
    bytes: Vec<u8>,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`SignatureError::Key`] when the system has no random numbers.
    pub fn generate(algorithm: Algorithm) -> Result<(Self, Zeroizing<Vec<u8>>), SignatureError> {
        let failed = |_| SignatureError::Key("no key could be made".into());
        let der = match algorithm.ecdsa() {
            Some((signing, _)) => EcdsaKeyPair::generate(signing)
                .and_then(|pair| pair.to_pkcs8v1())
                .map_err(failed)?,
            None => Ed25519KeyPair::generate()
                .and_then(|pair| pair.to_pkcs8v1())
                .map_err(failed)?,
        };
        let der = Zeroizing::new(der.as_ref().to_vec());
        Ok((Self::from_der(&der)?, der))
    }

    /// Makes a new key and its PEM text, protected by `passphrase` unless it is `None`.
    ///
    /// # Errors
    /// [`SignatureError::Key`] when the system has no random numbers.
    pub fn generate_pem(
        algorithm: Algorithm,
        passphrase: Option<&str>,
    ) -> Result<(Self, Zeroizing<String>), SignatureError> {
        let failed = |error: &dyn std::fmt::Display| SignatureError::Key(error.to_string());
        let (key, der) = Self::generate(algorithm)?;
        let info = PrivateKeyInfoRef::try_from(der.as_slice()).map_err(|error| failed(&error))?;
        let (label, document) = match passphrase {
            None => (
                "PRIVATE KEY",
                SecretDocument::try_from(der.as_slice()).map_err(|error| failed(&error))?,
            ),
            Some(passphrase) => {
                let random = SystemRandom::new();
                let (mut salt, mut iv) = ([0; 16], [0; 16]);
                random
                    .fill(&mut salt)
                    .and_then(|()| random.fill(&mut iv))
                    .map_err(|error| failed(&error))?;
                let parameters = pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(
                    PASSPHRASE_ROUNDS,
                    &salt,
                    iv,
                )
                .map_err(|error| failed(&error))?;
                let document = info
                    .encrypt_with_params(parameters, passphrase.as_bytes())
                    .map_err(|error| failed(&error))?;
                ("ENCRYPTED PRIVATE KEY", document)
            }
        };
        let pem = document
            .to_pem(label, LineEnding::LF)
            .map_err(|error| failed(&error))?;
        Ok((key, pem))
    }

    /// Reads PEM: PKCS#8, protected or not, or SEC 1 (`EC PRIVATE KEY`).
    ///
    /// # Errors
    /// [`SignatureError::Key`] for other kinds of key, [`SignatureError::Passphrase`] when the passphrase does not open it.
    pub fn from_pem(text: &str, passphrase: Option<&str>) -> Result<Self, SignatureError> {
        let (label, document) = read_pem(text, "PRIVATE KEY")?;
        if label != "ENCRYPTED PRIVATE KEY" {
            return Self::from_der(document.as_bytes());
        }
        let info = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|_| {
            SignatureError::Key(
                "its protection is not PKCS#8 with PBES2; convert it with openssl pkcs8 -topk8"
                    .into(),
            )
        })?;
        let open = info
            .decrypt(passphrase.ok_or(SignatureError::Passphrase)?)
            .map_err(|_| SignatureError::Passphrase)?;
        Self::from_der(open.as_bytes())
    }

    /// Its public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        match &self.pair {
            Pair::Ecdsa(pair) => pair
                .sign(&SystemRandom::new(), message)
                .map(|signature| signature.as_ref().to_vec()),
            Pair::Ed25519(pair) => pair
                .try_sign(message)
                .map(|signature| signature.as_ref().to_vec()),
        }
        .map_err(|_| SignatureError::Key("it could not sign".into()))
    }

    fn from_der(der: &[u8]) -> Result<Self, SignatureError> {
        for algorithm in [
            Algorithm::EcdsaP256,
            Algorithm::EcdsaP384,
            Algorithm::EcdsaP521,
        ] {
            if let Some((signing, _)) = algorithm.ecdsa()
                && let Ok(pair) = EcdsaKeyPair::from_private_key_der(signing, der)
            {
                let public = PublicKey {
                    algorithm,
                    bytes: pair.public_key().as_ref().to_vec(),
                };
                return Ok(PrivateKey {
                    pair: Pair::Ecdsa(pair),
                    public,
                });
            }
        }
        match Ed25519KeyPair::from_pkcs8(der) {
            Ok(pair) => {
                let public = PublicKey { algorithm: Algorithm::Ed25519, bytes: pair.public_key().as_ref().to_vec() };
                Ok(PrivateKey { pair: Pair::Ed25519(pair), public })
            }
            Err(_) => Err(SignatureError::Key("it is neither ECDSA on P-256, P-384 or P-521 nor Ed25519; make one with ondine keygen".into())),
        }
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "PrivateKey({:?})", self.public)
    }
}

impl PublicKey {
    /// Reads PEM (`PUBLIC KEY`).
    ///
    /// # Errors
    /// [`SignatureError::Key`] for anything but a key that can be used here.
    pub fn from_pem(text: &str) -> Result<Self, SignatureError> {
        let refused = || {
            SignatureError::Key("it is neither ECDSA on P-256, P-384 or P-521 nor Ed25519".into())
        };
        let (_, document) = read_pem(text, "PUBLIC KEY")?;
        let info = SubjectPublicKeyInfoRef::try_from(document.as_bytes()).map_err(|_| refused())?;
        let bytes = info
            .subject_public_key
            .as_bytes()
            .ok_or_else(refused)?
            .to_vec();
        let algorithm = match info.algorithm.oid {
            ED25519 => Algorithm::Ed25519,
            EC_PUBLIC_KEY => match info.algorithm.parameters_oid().map_err(|_| refused())? {
                P256 => Algorithm::EcdsaP256,
                P384 => Algorithm::EcdsaP384,
                P521 => Algorithm::EcdsaP521,
                _ => return Err(refused()),
            },
            _ => return Err(refused()),
        };
        let right_length = match algorithm {
            Algorithm::Ed25519 => 32,
            Algorithm::EcdsaP256 => 65,
            Algorithm::EcdsaP384 => 97,
            Algorithm::EcdsaP521 => 133,
        };
        if bytes.len() != right_length {
            return Err(SignatureError::Key(
                "its point is compressed or damaged; write it uncompressed".into(),
            ));
        }
        Ok(PublicKey { algorithm, bytes })
    }

    /// PEM (`PUBLIC KEY`), ending in a line end.
    pub fn to_pem(&self) -> String {
        self.to_der()
            .and_then(|der| pkcs8::der::Document::try_from(der).ok())
            .and_then(|document| document.to_pem("PUBLIC KEY", LineEnding::LF).ok())
            .unwrap_or_default()
    }

    /// `SubjectPublicKeyInfo` (RFC 5280).
    pub(super) fn to_der(&self) -> Option<Vec<u8>> {
        let curve = self.algorithm.curve();
        let info = SubjectPublicKeyInfoRef {
            algorithm: AlgorithmIdentifierRef {
                oid: if curve.is_some() {
                    EC_PUBLIC_KEY
                } else {
                    ED25519
                },
                parameters: curve.as_ref().map(Into::into),
            },
            subject_public_key: BitStringRef::from_bytes(&self.bytes).ok()?,
        };
        info.to_der().ok()
    }

    /// How Sigstore's `PublicKeyDetails` names the algorithm.
    pub(super) fn details(&self) -> &'static str {
        match self.algorithm {
            Algorithm::EcdsaP256 => "PKIX_ECDSA_P256_SHA_256",
            Algorithm::EcdsaP384 => "PKIX_ECDSA_P384_SHA_384",
            Algorithm::EcdsaP521 => "PKIX_ECDSA_P521_SHA_512",
            Algorithm::Ed25519 => "PKIX_ED25519",
        }
    }

    /// SHA-256 of the PEM text: how signature files name a key.
    pub fn hint(&self) -> Digest {
        Digest::sha256(self.to_pem().as_bytes())
    }

    /// The uncompressed point, or the 32 bytes of an Ed25519 key.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.bytes
    }

    /// Which algorithm it is for.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        let result = match self.algorithm.ecdsa() {
            Some((_, verification)) => {
                UnparsedPublicKey::new(verification, &self.bytes).verify(message, signature)
            }
            None => UnparsedPublicKey::new(&ring::ED25519, &self.bytes).verify(message, signature),
        };
        result.map_err(|_| SignatureError::Invalid)
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "PublicKey({:?}, {:?})",
            self.algorithm,
            self.hint()
        )
    }
}

impl Algorithm {
    fn ecdsa(
        self,
    ) -> Option<(
        &'static ring::EcdsaSigningAlgorithm,
        &'static ring::EcdsaVerificationAlgorithm,
    )> {
        match self {
            Algorithm::EcdsaP256 => Some((
                &ring::ECDSA_P256_SHA256_ASN1_SIGNING,
                &ring::ECDSA_P256_SHA256_ASN1,
            )),
            Algorithm::EcdsaP384 => Some((
                &ring::ECDSA_P384_SHA384_ASN1_SIGNING,
                &ring::ECDSA_P384_SHA384_ASN1,
            )),
            Algorithm::EcdsaP521 => Some((
                &ring::ECDSA_P521_SHA512_ASN1_SIGNING,
                &ring::ECDSA_P521_SHA512_ASN1,
            )),
            Algorithm::Ed25519 => None,
        }
    }

    fn curve(self) -> Option<ObjectIdentifier> {
        match self {
            Algorithm::EcdsaP256 => Some(P256),
            Algorithm::EcdsaP384 => Some(P384),
            Algorithm::EcdsaP521 => Some(P521),
            Algorithm::Ed25519 => None,
        }
    }
}

/// The first PEM block whose label ends in `kind`.
fn read_pem<'a>(text: &'a str, kind: &str) -> Result<(&'a str, SecretDocument), SignatureError> {
    let refused =
        |reason: &str| SignatureError::Key(format!("it is not PEM with a {kind} ({reason})"));
    let found = text.match_indices("-----BEGIN ").find_map(|(at, begin)| {
        let label = text[at + begin.len()..].split("-----").next()?;
        label.ends_with(kind).then_some((at, label))
    });
    let (start, label) = found.ok_or_else(|| refused("no such block"))?;
    let end_line = format!("-----END {label}-----");
    let length = text[start..]
        .find(&end_line)
        .ok_or_else(|| refused("no end"))?;
    let block = &text[start..start + length + end_line.len()];
    let (label, document) =
        SecretDocument::from_pem(block).map_err(|error| refused(&one_line(&error)))?;
    Ok((label, document))
}
