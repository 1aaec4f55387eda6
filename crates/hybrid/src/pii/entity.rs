//! Names of kinds of data, and the classes that policies speak of.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// The kind of a finding, named as Presidio names it (`EMAIL_ADDRESS`) or as a user dictionary does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Entity(Cow<'static, str>);

impl Entity {
    /// A kind that is known when the program is built.
    pub const fn new(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// A kind that a user names.
    pub fn named(name: &str) -> Self {
        Self(Cow::Owned(name.to_string()))
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The class that a policy's rules speak of.
    pub fn class(&self) -> DataClass {
        match self.name() {
            "API_KEY" | "ACCESS_TOKEN" | "PRIVATE_KEY" | "PASSWORD" => DataClass::Secret,
            "CREDIT_CARD" | "IBAN_CODE" | "CRYPTO" | "US_BANK_NUMBER" | "ABA_ROUTING_NUMBER"
            | "SWIFT_BIC" => DataClass::Financial,
            "PHONE_NUMBER" | "TR_PHONE_NUMBER" | "PH_MOBILE_NUMBER" | "EMAIL_ADDRESS" => {
                DataClass::Contact
            }
            "IP_ADDRESS" | "MAC_ADDRESS" | "URL" | "IMEI" => DataClass::Network,
            "DATE_TIME" => DataClass::Date,
            "DE_PLZ" | "UK_POSTCODE" | "US_ZIP_CODE" | "LOCATION" => DataClass::Location,
            "PERSON" => DataClass::Name,
            "UK_NHS"
            | "AU_MEDICARE"
            | "US_MBI"
            | "US_NPI"
            | "MEDICAL_LICENSE"
            | "DE_HEALTH_INSURANCE"
            | "DE_LANR"
            | "DE_BSNR" => DataClass::Health,
            name if name.contains('_') && is_national(name) => DataClass::Identity,
            "PASSPORT_MRZ" | "VEHICLE_VIN" => DataClass::Identity,
            _ => DataClass::Custom,
        }
    }
}

/// True for names that begin with the two letters of a country.
fn is_national(name: &str) -> bool {
    name.as_bytes().get(2) == Some(&b'_') && name.as_bytes()[..2].iter().all(u8::is_ascii_uppercase)
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of harm a leak does; policies decide per class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataClass {
    /// Keys, tokens, passwords.
    Secret,
    /// Cards, accounts, wallets.
    Financial,
    /// National identifiers, passports, licences, plates.
    Identity,
    /// Identifiers of patients and of those who treat them.
    Health,
    /// E-mail addresses and telephone numbers.
    Contact,
    /// Postal codes and places.
    Location,
    /// Addresses of devices and pages.
    Network,
    /// Dates and times.
    Date,
    /// Names of people.
    Name,
    /// What user dictionaries name.
    Custom,
}

impl DataClass {
    /// Every class.
    pub const ALL: [Self; 10] = [
        Self::Secret,
        Self::Financial,
        Self::Identity,
        Self::Health,
        Self::Contact,
        Self::Location,
        Self::Network,
        Self::Date,
        Self::Name,
        Self::Custom,
    ];
}
