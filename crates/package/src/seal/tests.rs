use super::*;
use crate::Limits;
use crate::path::BundlePath;
use crate::source::ByteSource;
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

struct Case {
    directory: tempfile::TempDir,
    identity: Identity,
    plain: Vec<u8>,
}

impl Case {
    fn new(length: usize) -> Self {
        let plain = (0..length).map(|i| (i * 31 + i / 256) as u8).collect();
        Case {
            directory: tempfile::tempdir().unwrap(),
            identity: Identity::generate().unwrap(),
            plain,
        }
    }

    fn seal(&self, name: &str, cipher: Cipher) -> PathBuf {
        let (from, to) = (
            self.directory.path().join("plain"),
            self.directory.path().join(format!("{name}.sealed")),
        );
        fs::write(&from, &self.plain).unwrap();
        let name = BundlePath::parse(name).unwrap();
        seal_file(&from, &to, &name, &[self.identity.recipient()], cipher).unwrap();
        to
    }

    fn open(&self, path: &Path) -> Result<SealedFile, SealError> {
        SealedFile::open(
            path,
            std::slice::from_ref(&self.identity),
            &Limits::default(),
        )
    }

    fn read_all(&self, path: &Path) -> Result<Vec<u8>, SealError> {
        let to = self.directory.path().join("opened");
        unseal_file(
            path,
            &to,
            std::slice::from_ref(&self.identity),
            &Limits::default(),
        )?;
        Ok(fs::read(to).unwrap())
    }
}

#[test]
fn sealed_files_open_to_the_same_bytes() {
    for cipher in [Cipher::Aes256Gcm, Cipher::XChaCha20Poly1305] {
        for length in [
            0,
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            3 * CHUNK_BYTES,
            100 * CHUNK_BYTES + 5,
        ] {
            let case = Case::new(length);
            let sealed = case.seal("model.gguf", cipher);
            assert!(is_sealed(&sealed).unwrap());
            assert_eq!(
                case.read_all(&sealed).unwrap(),
                case.plain,
                "{cipher:?}, {length}"
            );
            let file = case.open(&sealed).unwrap();
            assert_eq!((file.len(), file.cipher()), (length as u64, cipher));
        }
    }
}

#[test]
fn any_range_can_be_read() {
    let case = Case::new(90 * CHUNK_BYTES + 1000);
    let file = case.open(&case.seal("model.gguf", Cipher::best())).unwrap();
    let chunk = CHUNK_BYTES;
    for (start, length) in [
        (0, 1),
        (5, 10),
        (chunk - 1, 2),
        (chunk, chunk),
        (1, 3 * chunk),
        (7, 89 * chunk),
        (chunk, 89 * chunk),
        (90 * chunk, 1000),
    ] {
        let mut out = vec![0; length];
        file.read_at(start as u64, &mut out).unwrap();
        assert!(
            out == case.plain[start..start + length],
            "{start}, {length}"
        );
    }
    assert!(file.read_at(90 * chunk as u64, &mut [0; 1001]).is_err());
    assert!(file.read_at(u64::MAX, &mut [0; 2]).is_err());
}

#[test]
fn every_swap_cut_and_splice_is_refused() {
    let case = Case::new(4 * CHUNK_BYTES + 100);
    let sealed = case.seal("a", Cipher::best());
    let good = fs::read(&sealed).unwrap();
    let chunk = CHUNK_BYTES + TAG_BYTES;
    let start = good.len() - 4 * chunk - 100 - TAG_BYTES;
    let other = fs::read(case.seal("b", Cipher::best())).unwrap();
    let again = fs::read(case.seal("a", Cipher::best())).unwrap();
    let swap = |bytes: &mut Vec<u8>, i: usize, j: usize| {
        let first = bytes[start + i * chunk..][..chunk].to_vec();
        bytes.copy_within(
            start + j * chunk..start + (j + 1) * chunk,
            start + i * chunk,
        );
        bytes[start + j * chunk..][..chunk].copy_from_slice(&first);
    };
    type Change<'a> = Box<dyn Fn(&mut Vec<u8>) + 'a>;
    let changes: Vec<(&str, Change)> = vec![
        ("swapped", Box::new(|b| swap(b, 1, 2))),
        (
            "repeated",
            Box::new(|b| b.copy_within(start..start + chunk, start + chunk)),
        ),
        ("cut in a chunk", Box::new(|b| b.truncate(b.len() - 1))),
        (
            "cut at a chunk",
            Box::new(|b| b.truncate(start + 4 * chunk)),
        ),
        ("cut to the header", Box::new(|b| b.truncate(start))),
        ("longer", Box::new(|b| b.push(0))),
        (
            "a chunk removed",
            Box::new(|b| drop(b.drain(start..start + chunk))),
        ),
        (
            "a chunk of another file",
            Box::new(|b| b[start..start + chunk].copy_from_slice(&other[start..start + chunk])),
        ),
        (
            "a chunk of the same file, sealed again",
            Box::new(|b| b[start..start + chunk].copy_from_slice(&again[start..start + chunk])),
        ),
        (
            "another header",
            Box::new(|b| b[..start].copy_from_slice(&other[..start])),
        ),
        (
            "the tail of another",
            Box::new(|b| b[start + chunk..].copy_from_slice(&again[start + chunk..])),
        ),
    ];
    for (name, change) in changes {
        let mut bytes = good.clone();
        change(&mut bytes);
        fs::write(&sealed, bytes).unwrap();
        assert!(
            case.read_all(&sealed)
                .is_err_and(|error| error.is_refusal()),
            "{name}"
        );
        assert!(
            !case.directory.path().join("opened").exists(),
            "{name}: a plain file was left"
        );
    }
    fs::write(&sealed, &good).unwrap();
    assert!(case.read_all(&sealed).is_ok());
}

#[test]
fn a_renamed_file_is_another_file() {
    let case = Case::new(10);
    let sealed = case.seal("a", Cipher::best());
    assert!(
        case.open(&sealed)
            .unwrap()
            .expect_name(&BundlePath::parse("a").unwrap())
            .is_ok()
    );
    assert!(matches!(
        case.open(&sealed)
            .unwrap()
            .expect_name(&BundlePath::parse("b").unwrap()),
        Err(SealError::Name { .. })
    ));
}

#[test]
fn only_recipients_open_it() {
    let case = Case::new(10);
    let (second, stranger) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let to = case.directory.path().join("s");
    let from = case.directory.path().join("plain");
    fs::write(&from, &case.plain).unwrap();
    let name = BundlePath::parse("a").unwrap();
    seal_file(
        &from,
        &to,
        &name,
        &[case.identity.recipient(), second.recipient()],
        Cipher::best(),
    )
    .unwrap();
    let open = |identities: &[Identity]| SealedFile::open(&to, identities, &Limits::default());
    assert!(open(&[second]).is_ok());
    assert!(case.open(&to).is_ok());
    assert!(matches!(open(&[stranger]), Err(SealError::NoIdentity(_))));
    assert!(matches!(open(&[]), Err(SealError::NoIdentity(_))));
    assert!(seal_file(&from, &to, &name, &[], Cipher::best()).is_err());
}

#[test]
fn keys_are_written_and_read_as_age_does() {
    // From the age test kit: this identity belongs to this recipient.
    let identity = Identity::parse(
        "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX",
    )
    .unwrap();
    assert_eq!(
        identity.recipient().to_string(),
        "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
    );
    let file = format!("# comment\n\n{}\n", identity.to_text().as_str());
    assert_eq!(
        Identity::parse_file(&file).unwrap()[0].recipient(),
        identity.recipient()
    );
    let recipient = identity.recipient();
    assert_eq!(Recipient::parse(&recipient.to_string()).unwrap(), recipient);
    for wrong in [
        "",
        "age1",
        "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwi",
        identity.to_text().as_str(),
    ] {
        assert!(Recipient::parse(wrong).is_err(), "{wrong}");
    }
    assert!(!format!("{identity:?}").contains("SECRET"));
}

proptest! {
    #[test]
    fn every_flipped_bit_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let case = Case::new(CHUNK_BYTES + 300);
        let sealed = case.seal("m", Cipher::best());
        let mut bytes = fs::read(&sealed).unwrap();
        // Half of the trials in the header, which is small.
        let at = if bit % 2 == 0 { at.index(400) } else { at.index(bytes.len()) };
        bytes[at] ^= 1 << bit;
        fs::write(&sealed, bytes).unwrap();
        prop_assert!(case.read_all(&sealed).is_err());
    }

    #[test]
    fn any_header_is_an_answer(rest in proptest::collection::vec(any::<u8>(), 0..300), text in "[ -~\n]{0,200}") {
        let identity = Identity::generate().unwrap();
        let mut bytes = header::MAGIC.to_vec();
        bytes.extend_from_slice(&(rest.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&rest);
        let _ = header::Header::parse(&bytes, std::slice::from_ref(&identity), &Limits::default(), "x").map(|_| ());
        let _ = header::Header::parse(&rest, &[], &Limits::default(), "x").map(|_| ());
        let _ = age::unwrap(&format!("age-encryption.org/v1\n-> {text}\n--- {text}\n"), &[identity], 8).map(|_| ());
    }
}
