//! Personal data and secrets in text: what it is, where it is, how sure that is.
//!
//! A [`Scanner`] looks for formats, proves them with check digits, raises the confidence where context words stand near, and
//! reads the text again the way a decoder would (escapes, base64, full-width and invisible characters). The time is linear in
//! the text. Findings carry byte offsets of the original text.
//!
//! The kinds, their names and the scores of formats follow Microsoft Presidio's recognisers, so that results can be compared;
//! the checks are built from the issuing authorities' descriptions.

mod checksum;
mod context;
mod decode;
mod dictionary;
mod engine;
mod entity;
mod generic;
mod iban;
mod national;
mod network;
mod phone;
mod places;
mod recognizer;
mod scanner;
mod secret;
mod stream;

pub use dictionary::Dictionary;
pub use entity::{DataClass, Entity};
pub use recognizer::{Strictness, Validity};
pub use scanner::{Finding, ScanError, ScanOptions, Scanner};
pub use stream::StreamScanner;
