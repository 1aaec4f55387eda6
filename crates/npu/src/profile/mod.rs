//! What a device is: precisions, peaks, memories and costs, read from TOML and checked once.
//!
//! Every number carries its source, and what nobody published is left out. What a plan then cannot know it says.

mod file;
mod machine;
mod precision;

use std::path::Path;
use std::sync::OnceLock;

use thiserror::Error;

pub use machine::this_machine;
pub use precision::{Activations, Dtype, Precision};

/// A device, checked: every number is finite and positive.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Short name, such as `rk3588`.
    pub name: String,
    /// Name for people.
    pub title: String,
    /// Who makes it; vendors share a calibration constant.
    pub vendor: String,
    /// What kind of processor it is.
    pub kind: Kind,
    /// Share of the published peaks that this vendor's software reaches: bandwidth, and multiply-accumulates beside
    /// [`Kind::matrix_utilisation`]. One constant per vendor.
    pub calibration: f64,
    /// Whether the constant was fitted to a published speed of this vendor.
    pub calibrated: bool,
    /// Bytes per second that the memory's interface can carry.
    pub dram_bytes_per_second: f64,
    /// Bytes of on-chip memory that a program can fill, where published.
    pub sram_bytes: Option<u64>,
    /// Whether transfers and computation overlap.
    pub overlaps: bool,
    /// Seconds from the request of an operation to its start.
    pub launch_seconds: f64,
    /// Seconds from the request of a whole graph to its start.
    pub graph_seconds: f64,
    /// Elementwise results per second of the processor that does what the device cannot, where known.
    pub host_elements_per_second: Option<f64>,
    /// Operations that the device has; the others run on the host.
    pub operations: Vec<Operation>,
    /// Precisions, best first.
    pub precisions: Vec<Precision>,
    /// Tokens of a prompt that are computed together, where the software fixes it.
    pub prompt_chunk: Option<usize>,
    /// Most tokens of context that the software takes.
    pub context_limit: Option<usize>,
    /// Whether every step reads keys and values of the whole context, empty or not (static shapes).
    pub static_context: bool,
    /// Bytes of an element of keys and values.
    pub kv_bytes: usize,
    /// Whether a tied embedding table is kept a second time for the head.
    pub copies_tied_embedding: bool,
    /// Bytes that the vendor's runtime keeps beside weights, keys and values, where known.
    pub runtime_bytes: u64,
    /// Bytes of memory that the device can have at most, where published.
    pub memory_bytes: Option<u64>,
    /// Power modes with published watts.
    pub power_modes: Vec<PowerMode>,
    /// Where the numbers come from, as (number, source).
    pub sources: Vec<(String, String)>,
}

/// What kind of processor a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A neural processor: an array of multipliers behind a software-managed memory.
    Npu,
    /// Processor cores.
    Cpu,
}

impl Kind {
    /// Share of the peak multiply-accumulates that a matrix product over a chunk of a prompt keeps busy on a device of
    /// this kind before the vendor's constant: an array waits for its weights and for partial tiles, vector units
    /// of a processor do not.
    pub fn matrix_utilisation(self) -> f64 {
        match self {
            Kind::Npu => 1.0 / 3.0,
            Kind::Cpu => 1.0,
        }
    }
}

/// What a device may be able to do itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Matrix products.
    Matmul,
    /// Norms, with the residual addition.
    Norm,
    /// Rotary positions.
    Rope,
    /// Attention with its softmax.
    Attention,
    /// The activation function and the product of a gated network.
    Gate,
    /// The gated network's first two products and its activation in one pass.
    FusedGate,
}

/// A power mode.
#[derive(Debug, Clone, PartialEq)]
pub struct PowerMode {
    /// Name, such as `decode`.
    pub name: String,
    /// Watts while generating.
    pub watts: f64,
    /// Clock as a share of the fastest mode's.
    pub speed: f64,
}

/// Why there is no such profile.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProfileError {
    /// No device of that name.
    #[error("device `{name}` is not known; known are {known}, or give the path of a .toml profile")]
    Unknown {
        /// The name.
        name: String,
        /// All names.
        known: String,
    },
    /// The file is not a profile, or its numbers make no sense.
    #[error("device profile {file}: {what}")]
    Nonsense {
        /// The profile.
        file: String,
        /// What is wrong, and what to do about it.
        what: String,
    },
    /// The device has no such precision.
    #[error("{device} does not compute in {dtype}; it offers {offered}")]
    Precision {
        /// The device.
        device: String,
        /// What was asked for.
        dtype: String,
        /// What there is.
        offered: String,
    },
    /// The device has no such power mode.
    #[error("{device} has no power mode `{mode}` with published watts; it has {offered}")]
    PowerMode {
        /// The device.
        device: String,
        /// What was asked for.
        mode: String,
        /// What there is.
        offered: String,
    },
}

/// The built-in profiles, in the order of their names in [`names`].
///
/// # Errors
/// Never for the files that ship; a test reads them all.
pub fn all() -> Result<&'static [Profile], ProfileError> {
    static ALL: OnceLock<Result<Vec<Profile>, ProfileError>> = OnceLock::new();
    ALL.get_or_init(|| {
        file::BUILT_IN
            .iter()
            .map(|(name, text)| file::parse(name, text))
            .collect()
    })
    .as_deref()
    .map_err(Clone::clone)
}

/// Names of the built-in profiles.
pub fn names() -> impl Iterator<Item = &'static str> {
    file::BUILT_IN.iter().map(|(name, _)| *name)
}

/// The profile called `name`, or in the file `name` when that ends in `.toml`; `this-machine` is measured.
///
/// # Errors
/// [`ProfileError`] says what is wrong.
pub fn named(name: &str) -> Result<Profile, ProfileError> {
    if name == machine::NAME {
        return this_machine();
    }
    if name.ends_with(".toml") {
        return file::read(Path::new(name));
    }
    let found = all()?.iter().find(|profile| profile.name == name);
    found.cloned().ok_or_else(|| ProfileError::Unknown {
        name: name.to_owned(),
        known: names()
            .chain([machine::NAME])
            .collect::<Vec<_>>()
            .join(", "),
    })
}

impl Profile {
    /// Whether the device does `operation` itself.
    pub fn has(&self, operation: Operation) -> bool {
        self.operations.contains(&operation)
    }

    /// The precision called `dtype`, or the first one.
    ///
    /// # Errors
    /// [`ProfileError::Precision`].
    pub fn precision(&self, dtype: Option<&Dtype>) -> Result<&Precision, ProfileError> {
        let found = match dtype {
            None => self.precisions.first(),
            Some(dtype) => self.precisions.iter().find(|known| known.dtype == *dtype),
        };
        found.ok_or_else(|| ProfileError::Precision {
            device: self.name.clone(),
            dtype: dtype.map_or_else(String::new, ToString::to_string),
            offered: self
                .precisions
                .iter()
                .map(|precision| precision.dtype.to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// The power mode called `mode`; without a name the first, if any is published.
    ///
    /// # Errors
    /// [`ProfileError::PowerMode`].
    pub fn power_mode(&self, mode: Option<&str>) -> Result<Option<&PowerMode>, ProfileError> {
        let Some(mode) = mode else {
            return Ok(self.power_modes.first());
        };
        let found = self.power_modes.iter().find(|known| known.name == mode);
        found.map(Some).ok_or_else(|| ProfileError::PowerMode {
            device: self.name.clone(),
            mode: mode.to_owned(),
            offered: match self.power_modes.is_empty() {
                true => "none".into(),
                false => self
                    .power_modes
                    .iter()
                    .map(|mode| mode.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            },
        })
    }

    /// Bytes per second that software reaches.
    pub fn bandwidth(&self) -> f64 {
        self.dram_bytes_per_second * self.calibration
    }

    /// Multiply-accumulates per second that software reaches in `precision`, where the peak is published.
    pub fn matrix_rate(&self, precision: &Precision) -> Option<f64> {
        let peak = precision.macs_per_second?;
        Some(peak * self.kind.matrix_utilisation() * self.calibration)
    }
}
