//! What follows `sim:` — a profile and settings, as in `rk3588,sram=2MiB,fault=device-lost@17`.

use std::time::Duration;

use thiserror::Error;

use crate::profile::{self, Dtype, Precision, Profile, ProfileError};

/// A simulated device.
#[derive(Debug, Clone)]
pub struct SimOptions {
    /// The device, its on-chip memory set to what was asked for.
    pub profile: Profile,
    /// The precision it computes in.
    pub precision: Precision,
    /// Stream buffers: 2, or 1 to see what double buffering gains.
    pub buffers: usize,
    /// What fails, and when.
    pub fault: Option<Fault>,
}

/// A fault to inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What fails.
    pub kind: FaultKind,
    /// In which step that gives scores, counted from 0 over the decoder's life; `None` is while loading, for those
    /// that can be noticed there, else the first step.
    pub step: Option<u64>,
    /// How long a hang lasts.
    pub hang: Duration,
}

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The device goes away and stays away.
    DeviceLost,
    /// Memory runs out.
    OutOfMemory,
    /// The driver is older than what is needed.
    DriverTooOld,
    /// The device's compiler refuses the model.
    CompileFailed,
    /// Scores that are not numbers.
    Nan,
    /// A step does not come back in time.
    Hang,
}

const KINDS: [(&str, FaultKind); 6] = [
    ("device-lost", FaultKind::DeviceLost),
    ("out-of-memory", FaultKind::OutOfMemory),
    ("driver-too-old", FaultKind::DriverTooOld),
    ("compile-failed", FaultKind::CompileFailed),
    ("nan", FaultKind::Nan),
    ("hang", FaultKind::Hang),
];

/// A hang ends by itself after this time, so that nothing waits for ever where nobody watches.
const HANG: Duration = Duration::from_secs(180);

/// Why there is no such simulated device.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SimOptionsError {
    /// The profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A setting.
    #[error("sim: {0}")]
    Setting(String),
}

impl SimOptions {
    /// Reads `PROFILE[,sram=BYTES][,dtype=TYPE][,buffers=1|2][,fault=KIND[@STEP]][,hang=MILLISECONDS]`.
    ///
    /// # Errors
    /// [`SimOptionsError`] in one sentence.
    pub fn parse(text: &str) -> Result<Self, SimOptionsError> {
        let mut parts = text.split(',');
        let mut profile = profile::named(parts.next().unwrap_or_default())?;
        let mut dtype = None;
        let mut buffers = 2;
        let mut fault = None;
        let mut hang = HANG;
        for part in parts {
            let wrong = |expected: &str| {
                SimOptionsError::Setting(format!("`{part}` is not understood; write {expected}"))
            };
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| wrong("settings as sram=2MiB,dtype=w8a8,fault=device-lost@17"))?;
            match key {
                "sram" => {
                    let bytes = size(value).ok_or_else(|| wrong("sram=2MiB or sram=512KiB"))?;
                    profile.sram_bytes = Some(bytes);
                }
                "dtype" => dtype = Some(Dtype::parse(value).map_err(SimOptionsError::Setting)?),
                "buffers" => {
                    buffers = match value {
                        "1" => 1,
                        "2" => 2,
                        _ => return Err(wrong("buffers=1 or buffers=2")),
                    }
                }
                "fault" => fault = Some(parse_fault(value).ok_or_else(|| wrong(&fault_help()))?),
                "hang" => {
                    let milliseconds: u64 = value
                        .parse()
                        .ok()
                        .filter(|milliseconds| *milliseconds <= 600_000)
                        .ok_or_else(|| wrong("hang=MILLISECONDS, at most 600000"))?;
                    hang = Duration::from_millis(milliseconds);
                }
                _ => return Err(wrong("one of sram, dtype, buffers, fault, hang")),
            }
        }
        let precision = profile.precision(dtype.as_ref())?.clone();
        Ok(SimOptions {
            profile,
            precision,
            buffers,
            fault: fault.map(|(kind, step)| Fault { kind, step, hang }),
        })
    }
}

fn parse_fault(text: &str) -> Option<(FaultKind, Option<u64>)> {
    let (name, step) = match text.split_once('@') {
        Some((name, step)) => (name, Some(step.parse().ok()?)),
        None => (text, None),
    };
    let (_, kind) = KINDS.iter().find(|(known, _)| *known == name)?;
    Some((*kind, step))
}

fn fault_help() -> String {
    let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
    format!("fault=KIND@STEP with one of {}", names.join(", "))
}

/// `2MiB`, `512KiB` or bytes.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix("MiB") {
        Some(number) => (number, 1 << 20),
        None => match text.strip_suffix("KiB") {
            Some(number) => (number, 1 << 10),
            None => (text, 1),
        },
    };
    let number: u64 = number.parse().ok()?;
    // No chip has more on-chip memory than this.
    number
        .checked_mul(unit)
        .filter(|bytes| (4096..=1 << 32).contains(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read() {
        let text = "rk3588,sram=2MiB,buffers=1,fault=hang@17,hang=50";
        let options = SimOptions::parse(text).unwrap();
        assert_eq!(options.profile.sram_bytes, Some(2 << 20));
        assert_eq!(options.buffers, 1);
        let fault = options.fault.unwrap();
        assert_eq!((fault.kind, fault.step), (FaultKind::Hang, Some(17)));
        assert_eq!(fault.hang, Duration::from_millis(50));
    }

    #[test]
    fn nonsense_is_refused_in_one_sentence() {
        for text in [
            "",
            "rk9999",
            "rk3588,",
            "rk3588,sram=2GB",
            "rk3588,sram=99999999999999999999",
            "rk3588,sram=1",
            "rk3588,dtype=w3a3",
            "rk3588,dtype=w4a16",
            "rk3588,buffers=3",
            "rk3588,fault=sulking",
            "rk3588,fault=nan@-1",
            "rk3588,hang=99999999",
            "rk3588,colour=red",
        ] {
            let error = SimOptions::parse(text).unwrap_err().to_string();
            assert!(!error.contains('\n') && error.len() > 10, "{text}: {error}");
        }
    }
}
