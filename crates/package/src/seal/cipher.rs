//! One chunk: authenticated encryption with a nonce made of the chunk's index and whether it is the last.

use super::TAG_BYTES;
use super::age::derive;
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use chacha20::{R20, hchacha};
use zeroize::Zeroizing;

/// How chunks are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256 in Galois/counter mode (NIST SP 800-38D): the quickest where the processor has AES instructions.
    Aes256Gcm,
    /// XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha): the quickest where it has none.
    XChaCha20Poly1305,
}

impl Cipher {
    /// The quicker one on this machine. Either can be opened everywhere.
    pub fn best() -> Self {
        if has_aes() {
            Cipher::Aes256Gcm
        } else {
            Cipher::XChaCha20Poly1305
        }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Cipher::Aes256Gcm => 1,
            Cipher::XChaCha20Poly1305 => 2,
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        [Cipher::Aes256Gcm, Cipher::XChaCha20Poly1305]
            .into_iter()
            .find(|cipher| cipher.number() == number)
    }
}

/// The key of all chunks of one file.
pub(super) struct ChunkKey(LessSafeKey);

impl ChunkKey {
    /// `context` is everything that a chunk is bound to besides its index.
    pub fn derive(
        cipher: Cipher,
        file_key: &[u8],
        salt: &[u8; 32],
        context: &[u8],
    ) -> Option<Self> {
        let mut key = Zeroizing::new([0; 32]);
        derive(
            salt,
            file_key,
            &[b"ondine-seal/1 chunks", context],
            &mut key,
        )?;
        match cipher {
            Cipher::Aes256Gcm => UnboundKey::new(&AES_256_GCM, key.as_ref()),
            Cipher::XChaCha20Poly1305 => {
                // XChaCha20 is ChaCha20 under HChaCha20(key, first 16 bytes of the nonce): those are the file's, so that this
                // happens once per file and not once per chunk.
                let mut prefix = Zeroizing::new([0; 32]);
                derive(
                    salt,
                    file_key,
                    &[b"ondine-seal/1 nonce", context],
                    &mut prefix,
                )?;
                let nonce: [u8; 16] = prefix[..16].try_into().ok()?;
                UnboundKey::new(&CHACHA20_POLY1305, extend(&key, &nonce).as_ref())
            }
        }
        .ok()
        .map(|key| ChunkKey(LessSafeKey::new(key)))
    }

    /// Encrypts `chunk` in place; answers its tag.
    pub fn seal(&self, index: u64, last: bool, chunk: &mut [u8]) -> Option<[u8; TAG_BYTES]> {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(index, last), Aad::empty(), chunk)
            .ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Decrypts `sealed` (without its tag) into `out` of the same length. On failure `out` holds nothing of the text.
    pub fn open(
        &self,
        index: u64,
        last: bool,
        sealed: &[u8],
        tag: &[u8],
        out: &mut [u8],
    ) -> Option<()> {
        let opened =
            self.0
                .open_separate_gather(nonce(index, last), Aad::empty(), sealed, tag, out);
        if opened.is_err() {
            out.fill(0);
        }
        opened.ok()
    }
}

/// HChaCha20: the key of ChaCha20 that makes it XChaCha20 with this start of the nonce.
pub(super) fn extend(key: &[u8; 32], nonce: &[u8; 16]) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new([0; 32]);
    out.copy_from_slice(&hchacha::<R20>(key.into(), nonce.into()));
    out
}

/// The last 8 bytes hold the index and the flag, so that they are also the rest of an XChaCha20 nonce.
fn nonce(index: u64, last: bool) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&(index << 8 | u64::from(last)).to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    /// draft-irtf-cfrg-xchacha-03, section 2.2.1.
    #[test]
    fn hchacha20_of_the_draft() {
        let key =
            Digest::from_hex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
                .unwrap()
                .0;
        let nonce: [u8; 16] = bytes("000000090000004a0000000031415927")
            .try_into()
            .unwrap();
        let expected =
            Digest::from_hex("82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc")
                .unwrap();
        assert_eq!(Digest(*extend(&key, &nonce)), expected);
    }

    /// draft-irtf-cfrg-xchacha-03, appendix A.3.1, through the same parts as [`ChunkKey`].
    #[test]
    fn xchacha20_poly1305_of_the_draft() {
        let key =
            Digest::from_hex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f")
                .unwrap()
                .0;
        let nonce = bytes("404142434445464748494a4b4c4d4e4f5051525354555657");
        let mut text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.".to_vec();
        let sub_key = extend(&key, nonce[..16].try_into().unwrap());
        let cipher =
            LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, sub_key.as_ref()).unwrap());
        let mut rest = [0; 12];
        rest[4..].copy_from_slice(&nonce[16..]);
        let data = bytes("50515253c0c1c2c3c4c5c6c7");
        let tag = cipher
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(rest),
                Aad::from(data),
                &mut text,
            )
            .unwrap();
        assert_eq!(text[..16], bytes("bd6d179d3e83d43b9576579493c0e939")[..]);
        assert_eq!(tag.as_ref(), bytes("c0875924c1c7987947deafd8780acf49"));
    }

    #[test]
    fn a_chunk_opens_only_at_its_place() {
        for cipher in [Cipher::Aes256Gcm, Cipher::XChaCha20Poly1305] {
            let key = ChunkKey::derive(cipher, &[7; 16], &[1; 32], b"context").unwrap();
            let mut sealed = *b"some weights";
            let tag = key.seal(5, false, &mut sealed).unwrap();
            let mut out = [0; 12];
            key.open(5, false, &sealed, &tag, &mut out).unwrap();
            assert_eq!(&out, b"some weights");
            assert!(key.open(6, false, &sealed, &tag, &mut out).is_none());
            assert!(key.open(5, true, &sealed, &tag, &mut out).is_none());
            for (file_key, salt, context) in [
                ([8; 16], [1; 32], b"context"),
                ([7; 16], [2; 32], b"context"),
                ([7; 16], [1; 32], b"kontext"),
            ] {
                let other = ChunkKey::derive(cipher, &file_key, &salt, context).unwrap();
                assert!(other.open(5, false, &sealed, &tag, &mut out).is_none());
            }
        }
    }
}
