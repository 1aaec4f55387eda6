//! How quickly a sealed file opens on one core and on all, next to a plain read of the same bytes and to the bare cipher of aws-lc
//! on chunks of the same size.
//!
//! `cargo run --release -p ondine-package --example open_speed [MEBIBYTES]`

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ondine_package::path::BundlePath;
use ondine_package::seal::{Cipher, Identity, SealedFile, seal_file};
use ondine_package::source::FileSource;
use ondine_package::{ByteSource, Limits};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mebibytes: usize = std::env::args()
        .nth(1)
        .map_or(Ok(128), |text| text.parse())?;
    let plain: Vec<u8> = (0..mebibytes << 20).map(|i| (i ^ i >> 11) as u8).collect();
    let directory = std::env::temp_dir().join(format!("ondine-open-speed-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let (from, to) = (directory.join("plain"), directory.join("sealed"));
    std::fs::write(&from, &plain)?;
    let identity = Identity::generate()?;
    let mut out = vec![0; plain.len()];
    let file = FileSource::open(&from)?;
    report("plain read", plain.len(), || {
        file.read_at(0, &mut out).map_err(Into::into)
    })?;
    bare_cipher(plain.len())?;
    for cipher in [Cipher::Aes256Gcm, Cipher::XChaCha20Poly1305] {
        seal_file(
            &from,
            &to,
            &BundlePath::parse("plain")?,
            &[identity.recipient()],
            cipher,
        )?;
        let sealed = SealedFile::open(&to, std::slice::from_ref(&identity), &Limits::default())?;
        report(&format!("{cipher:?}, all cores"), plain.len(), || {
            sealed.read_at(0, &mut out).map_err(Into::into)
        })?;
        // Pieces below the size from which reads are spread over the cores.
        report(&format!("{cipher:?}, one core"), plain.len(), || {
            for (i, piece) in out.chunks_mut(1 << 20).enumerate() {
                sealed.read_at((i as u64) << 20, piece)?;
            }
            Ok(())
        })?;
        // One piece again and again: the cipher and the copy, without a slow memory behind them.
        let small = &mut out[..1 << 20];
        report(
            &format!("{cipher:?}, one core, in the cache"),
            plain.len(),
            || {
                for _ in 0..mebibytes {
                    sealed.read_at(0, small)?;
                }
                Ok(())
            },
        )?;
        assert!(
            out == plain,
            "the sealed file does not open to what was sealed"
        );
    }
    std::fs::remove_dir_all(directory)?;
    Ok(())
}

/// Opens one chunk of 64 KiB again and again, with nothing around it.
fn bare_cipher(bytes: usize) -> Result<(), Box<dyn std::error::Error>> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32])?);
    let nonce = || Nonce::assume_unique_for_key([1; 12]);
    let mut chunk = vec![5; 64 << 10];
    let tag = key.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut chunk)?;
    let mut out = vec![0; chunk.len()];
    report("bare AES-256-GCM of aws-lc, one core", bytes, || {
        for _ in 0..bytes / chunk.len() {
            key.open_separate_gather(nonce(), Aad::empty(), &chunk, tag.as_ref(), &mut out)?;
        }
        Ok(())
    })
}

/// Prints the best of five.
fn report(
    name: &str,
    bytes: usize,
    mut work: impl FnMut() -> Result<(), Box<dyn std::error::Error>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{name:<40} {:6.2} GB/s", bytes as f64 / best / 1e9);
    Ok(())
}
