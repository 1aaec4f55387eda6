//! The trust policy: which keys may sign which models, how many of them must, until when, and which no longer may.

use super::ReleaseError;
use crate::Limits;
use crate::bundle::Manifest;
use crate::digest::Digest;
use crate::signature::{PublicKey, SignatureError, Verified, verify_manifest};
use crate::text::one_line;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const FORMAT: &str = "ondine-trust-1";

/// A trust policy. In a repository it is a target of the signed metadata, so that no old one can be put back.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    format: String,
    /// Keys by a name of your own.
    pub keys: BTreeMap<String, TrustedKey>,
    /// The first rule whose `models` matches decides.
    pub rules: Vec<TrustRule>,
}

/// A key that may sign.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedKey {
    /// The public key, PEM.
    pub public: String,
    /// From then on it no longer counts (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<jiff::Timestamp>,
    /// It no longer counts, whatever it signed and whenever.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
}

/// Who may sign some models.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustRule {
    /// A model's name, or its beginning and `*`.
    pub models: String,
    /// Names of the keys.
    pub keys: Vec<String>,
    /// How many different ones must have signed.
    pub threshold: usize,
}

impl Trust {
    /// One key for one model.
    pub fn one(models: &str, public: &PublicKey) -> Self {
        let key = TrustedKey {
            public: public.to_pem(),
            expires: None,
            revoked: false,
        };
        Trust {
            format: FORMAT.to_owned(),
            keys: [("release".to_owned(), key)].into(),
            rules: vec![TrustRule {
                models: models.to_owned(),
                keys: vec!["release".to_owned()],
                threshold: 1,
            }],
        }
    }

    /// Reads a policy and checks that it can be met.
    ///
    /// # Errors
    /// [`ReleaseError::Metadata`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ReleaseError> {
        let refused = |reason: String| ReleaseError::Metadata {
            what: "trust policy".into(),
            reason,
        };
        let trust: Trust =
            serde_json::from_slice(bytes).map_err(|error| refused(one_line(&error)))?;
        if trust.format != FORMAT {
            return Err(refused(format!("its format is not {FORMAT:?}")));
        }
        for (name, key) in &trust.keys {
            PublicKey::from_pem(&key.public)
                .map_err(|error| refused(format!("key {name:?}: {error}")))?;
        }
        for rule in &trust.rules {
            let distinct: BTreeSet<&String> = rule.keys.iter().collect();
            if rule.threshold == 0 || rule.threshold > distinct.len() {
                return Err(refused(format!(
                    "for {:?} {} of {} keys must sign",
                    rule.models,
                    rule.threshold,
                    distinct.len()
                )));
            }
            if let Some(unknown) = rule.keys.iter().find(|key| !trust.keys.contains_key(*key)) {
                return Err(refused(format!(
                    "for {:?} it names a key {unknown:?} that it does not have",
                    rule.models
                )));
            }
        }
        Ok(trust)
    }

    /// The policy as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Checks that enough of the keys that may sign this model have signed this manifest and exactly its files.
    ///
    /// # Errors
    /// [`ReleaseError::Untrusted`] with what is missing.
    pub fn check(
        &self,
        signatures: &[Vec<u8>],
        manifest_bytes: &[u8],
        manifest: &Manifest,
        now: jiff::Timestamp,
        limits: &Limits,
    ) -> Result<Verified, ReleaseError> {
        let refused = |reason: String| ReleaseError::Untrusted {
            version: manifest.version,
            reason,
        };
        let rule = self.rule(&manifest.name).ok_or_else(|| {
            refused(format!(
                "the trust policy lets nobody sign {:?}",
                manifest.name
            ))
        })?;
        let mut good: BTreeMap<Digest, Verified> = BTreeMap::new();
        let mut reasons: Vec<String> = Vec::new();
        for (name, key) in &self.keys {
            let public = PublicKey::from_pem(&key.public)
                .map_err(|error| refused(format!("key {name:?}: {error}")))?;
            for signature in signatures {
                match verify_manifest(signature, &public, manifest_bytes, manifest, limits) {
                    Ok(_) if key.revoked => reasons.push(format!("key {name:?} was revoked")),
                    Ok(_) if key.expires.is_some_and(|end| end <= now) => {
                        reasons.push(format!("key {name:?} has expired"));
                    }
                    Ok(_) if !rule.keys.contains(name) => {
                        reasons.push(format!("key {name:?} may not sign this model"));
                    }
                    // By the key itself, not its name: one key under two names counts once.
                    Ok(verified) => drop(good.insert(public.hint(), verified)),
                    Err(SignatureError::OtherKey(_) | SignatureError::Invalid) => {}
                    Err(error) => reasons.push(error.to_string()),
                }
            }
        }
        let found = good.len();
        match good.into_values().next() {
            Some(verified) if found >= rule.threshold => Ok(verified),
            _ => {
                let mut reason =
                    format!("{found} of {} required signatures are good", rule.threshold);
                reasons.sort();
                reasons.dedup();
                for more in reasons {
                    reason.push_str("; ");
                    reason.push_str(&more);
                }
                Err(refused(reason))
            }
        }
    }

    fn rule(&self, model: &str) -> Option<&TrustRule> {
        self.rules
            .iter()
            .find(|rule| match rule.models.strip_suffix('*') {
                Some(start) => model.starts_with(start),
                None => model == rule.models,
            })
    }
}
