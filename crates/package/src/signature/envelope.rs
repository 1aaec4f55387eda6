//! The signature file: a Sigstore bundle that holds a DSSE envelope.
//!
//! Formats: Sigstore bundle v0.3, DSSE v1 (`PAE` is what is signed: lengths before contents, so that no two envelopes have
//! the same signed bytes).

use super::{PrivateKey, PublicKey, SignatureError};
use crate::text::one_line;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// Signs `payload` and wraps it.
pub(super) fn seal(payload: &[u8], key: &PrivateKey) -> Result<String, SignatureError> {
    let signature = key.sign(&pre_authentication_encoding(payload))?;
    let bundle = Bundle {
        media_type: MEDIA_TYPE.to_owned(),
        verification_material: Material {
            public_key: PublicKeyHint {
                hint: Some(key.public().hint().to_hex()),
                raw_bytes: None,
                key_details: None,
            },
            tlog_entries: Vec::new(),
        },
        dsse_envelope: Envelope {
            payload: STANDARD.encode(payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![Signature {
                sig: STANDARD.encode(signature),
                keyid: Some(String::new()),
            }],
        },
    };
    serde_json::to_string(&bundle).map_err(|error| refused(error.to_string()))
}

/// Checks the envelope and its signature; answers the payload.
pub(super) fn open(bytes: &[u8], key: &PublicKey) -> Result<Vec<u8>, SignatureError> {
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(|error| {
        refused(format!(
            "it is not of the right shape ({})",
            one_line(&error)
        ))
    })?;
    if bundle.media_type != MEDIA_TYPE {
        return Err(refused(format!(
            "its media type is {:?}",
            bundle.media_type
        )));
    }
    if !bundle.verification_material.tlog_entries.is_empty() {
        return Err(refused(
            "it has log entries, which belong to another method than keys",
        ));
    }
    let material = bundle.verification_material.public_key;
    if let Some(hint) = material.hint.as_ref().filter(|hint| !hint.is_empty())
        && *hint != key.hint().to_hex()
    {
        return Err(SignatureError::OtherKey(hint.chars().take(64).collect()));
    }
    check_beside_hint(&material, key)?;
    let envelope = bundle.dsse_envelope;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(refused(format!(
            "its payload type is {:?}",
            envelope.payload_type
        )));
    }
    let [signature] = <[Signature; 1]>::try_from(envelope.signatures)
        .map_err(|_| refused("it does not have exactly one signature"))?;
    if signature
        .keyid
        .is_some_and(|keyid| !keyid.is_empty() && keyid != key.hint().to_hex())
    {
        return Err(refused("the signature names another key"));
    }
    let decode = |text: &str| {
        STANDARD
            .decode(text)
            .map_err(|_| refused("a field is not base64"))
    };
    let payload = decode(&envelope.payload)?;
    key.verify(
        &pre_authentication_encoding(&payload),
        &decode(&signature.sig)?,
    )?;
    Ok(payload)
}

/// A key beside the hint must be the key that is trusted: nothing here is taken from the file, but another reader might.
fn check_beside_hint(material: &PublicKeyHint, key: &PublicKey) -> Result<(), SignatureError> {
    let other = || refused("it carries another key than the one that is trusted");
    if let Some(raw) = &material.raw_bytes {
        let bytes = STANDARD.decode(raw).map_err(|_| other())?;
        let pem = key.to_pem();
        if bytes != key.raw() && bytes != pem.as_bytes() && Some(bytes) != key.to_der() {
            return Err(other());
        }
    }
    match &material.key_details {
        Some(details) if details != key.details() => Err(other()),
        _ => Ok(()),
    }
}

fn pre_authentication_encoding(payload: &[u8]) -> Vec<u8> {
    let mut out = format!(
        "DSSEv1 {} {} {} ",
        PAYLOAD_TYPE.len(),
        PAYLOAD_TYPE,
        payload.len()
    )
    .into_bytes();
    out.extend_from_slice(payload);
    out
}

fn refused(reason: impl Into<String>) -> SignatureError {
    SignatureError::Envelope(reason.into())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Material {
    public_key: PublicKeyHint,
    #[serde(default)]
    tlog_entries: Vec<serde_json::Value>,
}

/// `rawBytes` and `keyDetails` are what early writers put beside the hint; they must agree with the key that is trusted.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PublicKeyHint {
    #[serde(default)]
    hint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    raw_bytes: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_details: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    sig: String,
    #[serde(default)]
    keyid: Option<String>,
}
